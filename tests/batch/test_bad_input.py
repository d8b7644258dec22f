"""What makes no sense is refused with the field's name, or fails the job with the reason in its account and its log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from batch.box import SOON, Box, after, refusal, request, retry, seconds, state_of
from cli.commands import CLI
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("command", {"command": []}),
        ("command", {"command": [""]}),
        ("command", {"command": ["a\0b"]}),
        ("command", {"command": ["x"] * 5000}),
        ("environment", {"environment": {"": "x"}}),
        ("environment", {"environment": {"A=B": "x"}}),
        ("environment", {"environment": {"A": "x\0"}}),
        ("environment", {"environment": {"A": "x" * 300_000}}),
        ("working_directory", {"working_directory": "here"}),
        ("output_path", {"output_path": "out.txt"}),
        ("output_path", {"output_path": "/x" * 3000}),
        ("retry.max_retries", {"retry": job_pb2.RetryPolicy(max_retries=101)}),
        ("retry.max_retries", {"retry": job_pb2.RetryPolicy(max_retries=-1)}),
        ("retry.backoff", {"retry": retry(1, -1.0)}),
        ("retry.exit_statuses", {"retry": retry(1, 1.0, 0)}),
        ("retry.exit_statuses", {"retry": retry(1, 1.0, 256)}),
        ("dependencies", {"dependencies": after("999999")}),
        ("dependencies", {"dependencies": after("0")}),
        ("dependencies", {"dependencies": after("me")}),
        ("dependencies", {"dependencies": [job_pb2.Dependency(job_id="1", condition=7)]}),  # type: ignore[arg-type]
        ("begin_at", {"begin_at": Timestamp(seconds=1_000_000_000)}),
        ("time_limit", {"time_limit": seconds(0)}),
        ("time_limit", {"time_limit": seconds(-5)}),
        ("grace", {"grace": seconds(-1)}),
        ("grace", {"grace": seconds(4000)}),
        ("name", {"name": "two\nlines"}),
        ("name", {"name": "x" * 129}),
        ("priority", {"priority": 101}),
        ("request_id", {"request_id": "x" * 129}),
        ("resources.gpus", {"resources": resources_pb2.ResourceRequest(gpus=0)}),
        ("resources.gpus", {"resources": resources_pb2.ResourceRequest(gpus=9)}),
        ("resources.gpu_model", {"resources": resources_pb2.ResourceRequest(gpus=1, gpu_model="TPU")}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refused_submit_names_the_field(shared: Box, field: str, change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "command": ["true"],
        "working_directory": "/",
        "resources": resources_pb2.ResourceRequest(gpus=1),
        "held": True,
    }
    with pytest.raises(grpc.RpcError) as caught:
        shared.stub.Submit(scheduler_pb2.SubmitRequest(**fields | change), timeout=SOON)
    code, _, named, text = refusal(caught.value)
    assert code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND")
    assert named == field and text.startswith(f"{field}: "), text


def test_a_cycle_cannot_be_made(shared: Box) -> None:
    """A job follows older ones only: the next one's number is refused, and so is one that is followed twice."""
    last = shared.submit("true", held=True)
    for dependencies in (after(str(int(last) + 1)), after(last) * 2):
        with pytest.raises(grpc.RpcError) as caught:
            shared.submit("true", dependencies=dependencies)
        assert refusal(caught.value)[2] == "dependencies"
    shared.cancel(last)


def test_following_what_has_ended(shared: Box) -> None:
    good, bad = shared.submit("true"), shared.submit("false")
    for each in (good, bad):
        shared.ended(each)
    with pytest.raises(grpc.RpcError) as caught:
        shared.submit("true", dependencies=after(bad))
    code, reason, field, text = refusal(caught.value)
    assert (code, reason, field) == ("FAILED_PRECONDITION", "DEPENDENCY_NEVER", "dependencies")
    assert text == f"dependencies: job {bad} has ended failed, so it will never be ok"
    job = shared.ended(shared.submit("true", dependencies=[*after(good), *after(bad, "FAILED")]))
    assert state_of(job) == "COMPLETED", "all is as it was to be, so it starts at once"


def test_a_begin_time_that_has_just_passed_means_now(shared: Box) -> None:
    now = Timestamp()
    now.GetCurrentTime()
    now.seconds -= 5
    assert state_of(shared.ended(shared.submit("true", begin_at=now))) == "COMPLETED"


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        ("missing", 127, "no such file or directory"),
        ("plain", 126, "permission denied"),
        ("directory", 126, "permission denied"),
        ("nobody", 127, "the interpreter that it names was not found"),
        ("workdir", 125, "cannot enter the working directory"),
        ("output", 125, "cannot write the output file"),
    ],
)
def test_a_command_that_cannot_start(shared: Box, tmp_path: Path, make: str, status: int, words: str) -> None:
    """The job fails, with the reason in `gpusched job` and, where there is one, in the log."""
    path, fields = tmp_path / "program", {"working_directory": "/", "output_path": ""}
    match make:
        case "plain":
            path.write_text("#!/bin/sh\n")
        case "directory":
            path.mkdir()
        case "nobody":
            path.write_text("#!/no/such/interpreter\n")
            path.chmod(0o755)
        case "workdir":
            fields["working_directory"] = str(tmp_path / "none")
        case "output":
            fields["output_path"] = f"{tmp_path}/here/x"
            (tmp_path / "here").write_text("a file, not a directory")
    words = words if make not in ("plain", "directory") else ""
    command = [str(path)] if make not in ("workdir", "output") else ["true"]
    job_id = shared.stub.Submit(
        scheduler_pb2.SubmitRequest(command=command, resources=resources_pb2.ResourceRequest(gpus=1), **fields),
        timeout=SOON,
    ).job.id
    job = shared.ended(job_id)
    assert (state_of(job), job.outcome.exit_status) == ("FAILED", status)
    assert words in job.outcome.message and (command == ["true"] or str(path) in job.outcome.message)
    text = shared.quick("job", job_id).stdout.decode()
    why = job.outcome.message.partition(": ")[2]
    assert why and f"exit status {status}; {why}" in text
    if make != "output":
        assert shared.log(job_id).decode() == f"gpusched: {why}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "a command is missing, such as: gpusched submit -- python train.py"),
        (["--"], "a command is missing"),
        (["-n", "0", "true"], "-n 0 asks for nothing; give a number of GPUs, or --cpus or --mem beside it"),
        (["--gpus", "two", "true"], "--gpus: 'two' will not do"),
        (["--gpu-memory", "lots", "true"], "--gpu-memory: 'lots' will not do: give a size such as 40G"),
        (["--priority", "101", "true"], "--priority: '101' will not do: give a whole number from -100 to 100"),
        (["--name", "a\nb", "true"], "--name: 'a\\nb' will not do: give one line"),
        (["--time", "soon", "true"], "--time: 'soon' will not do: give a duration such as 45s"),
        (["--grace", "-1", "true"], "grace: '-1' will not do"),
        (["--env", "=x", "true"], "--env: '=x' will not do: give NAME=VALUE"),
        (["--env", "SURELY_NOT_SET", "true"], "--env: 'SURELY_NOT_SET' will not do: that variable is not set here"),
        (["--retries", "-1", "true"], "--retries: '-1' will not do: give a whole number from 0 to 100"),
        (["--retry-on", "0", "true"], "--retry-on: '0' will not do: give a whole number from 1 to 255"),
        (["--backoff", "x", "true"], "backoff: 'x' will not do"),
        (["--after", "x", "true"], "after: 'x' will not do: give a job's id, alone or with :ok, :any or :failed"),
        (["--after", "1:maybe", "true"], "after: '1:maybe' will not do"),
        (["--begin", "tomorrow", "true"], "begin: 'tomorrow' will not do: give now+2h, 14:30"),
        (["--begin", "25:00", "true"], "begin: '25:00' will not do"),
        (["--begin", "now+", "true"], "begin: '' will not do"),
        (["--jsno", "true"], "unrecognized arguments: --jsno"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_a_slip_of_the_finger_is_told_before_anything_is_sent(shared: Box, argv: list[str], words: str) -> None:
    done = shared.quick("submit", *argv)
    assert (done.returncode, done.stdout) == (2, b""), done
    text = done.stderr.decode()
    assert text.startswith("gpusched: ") and words in text and text.count("\n") == 1, text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-n", "9", "true"], "--gpus: asks for 9 GPUs, but there are only 8"),
        (["--gpu-model", "TPU", "true"], "--gpu-model: no GPU on node"),
        (["--begin", "2020-01-01T00:00", "true"], "--begin: lies "),
        (["--time", "0", "true"], "--time: 0 s is out of range"),
        (["--after", "999999", "true"], "--after: there is no job 999999"),
        (["--grace", "2h", "true"], "grace: 7200 s is out of range; 0 s to 3600 s"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_what_this_machine_refuses_is_its_own_sentence(shared: Box, argv: list[str], words: str) -> None:
    done = shared.quick("submit", *argv)
    assert (done.returncode, done.stdout) == (1, b""), done
    assert done.stderr.decode().startswith("gpusched: ") and words in done.stderr.decode()


@pytest.mark.parametrize(
    ("argv", "field"),
    [([b"--", b"echo", b"\xff"], "command"), ([b"--env", b"A=\xff", b"true"], "--env")],
    ids=["command", "env"],
)
def test_what_is_no_text_is_refused_and_not_changed(shared: Box, argv: list[bytes], field: str) -> None:
    command = [*map(os.fsencode, CLI), b"submit", *argv]
    done = subprocess.run(command, env=shared.server.env, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, b""), done
    assert done.stderr.startswith(f"gpusched: {field}: ".encode()) and b"give text in UTF-8" in done.stderr
    assert sys.getfilesystemencoding() == "utf-8"


def test_an_inherited_variable_that_is_no_text_is_left_out(shared: Box) -> None:
    environment = {**{os.fsencode(k): os.fsencode(v) for k, v in shared.server.env.items()}, b"ODD": b"\xff"}
    done = subprocess.run(
        [*CLI, "submit", "--", "env"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    shared.ended(done.stdout.strip())
    assert b"ODD" not in shared.log(done.stdout.strip())


def test_a_huge_request_is_refused(shared: Box) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shared.stub.Submit(request("true", environment={"A": "x" * (2 << 20)}), timeout=SOON)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
