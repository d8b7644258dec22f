"""`gpusched submit`: each option, as the job that comes of it has it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from batch.box import SOON, Box, Gate, after, is_dead, retry, seconds, state_of
from cli.commands import CLI
from support.waiting import wait_until


def test_every_option_reaches_the_job(shared: Box, tmp_path: Path, gate: Gate) -> None:
    first = shared.submit(gate.words)
    done = shared.cli(
        *("submit", "-n", "2", "--gpu-memory", "40G", "--gpu-model", "simulated", "--priority", "7", "--name", "all"),
        *("--time", "1h", "--env", "WORD=two words", "--workdir", str(tmp_path), "-o", "out-%j-%a", "--grace", "3s"),
        *("--retries", "2", "--backoff", "4s", "--retry-on", "3", "--retry-on", "9", "--requeue"),
        *("--after", f"{first}:any", "--begin", "now+1h", "--hold", "--", "sh", "-c", "echo $WORD; pwd"),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    job_id = done.stdout.strip()
    assert done.stdout == f"{int(first) + 1}\n" == f"{job_id}\n", "a pipe gets the id and nothing else"
    job = json.loads(shared.good("job", job_id, "--json"))
    begin = job.pop("begin_at")
    assert begin > job["submitted_at"]
    expected: dict[str, Any] = {
        "state": "JOB_STATE_QUEUED",
        "kind": "JOB_KIND_BATCH",
        "name": "all",
        "priority": 7,
        "time_limit": "3600s",
        "command": ["sh", "-c", "echo $WORD; pwd"],
        "working_directory": str(tmp_path),
        "output_path": f"{tmp_path}/out-%j-%a",
        "retry": {"max_retries": 2, "backoff": "4s", "exit_statuses": [3, 9]},
        "requeue": True,
        "dependencies": [{"job_id": first, "condition": "DEPENDENCY_CONDITION_ANY"}],
        "held": True,
        "attempt": 0,
    }
    assert {name: job[name] for name in expected} == expected
    resources = job["resources"]
    assert (resources["gpus"], resources["gpu_memory_bytes"]) == (2, str(40 << 30))
    assert resources["gpu_model"].lower() == "simulated"
    assert job["reason"]["code"] == "REASON_CODE_HELD"
    shared.good("unhold", job_id)
    assert shared.reason(job_id) == "DEPENDENCY"
    gate.open()
    wait_until(lambda: shared.reason(job_id) == "BEGIN_TIME", SOON)
    shared.cancel(job_id)
    assert not list(tmp_path.glob("out*"))


def test_options_of_those_that_run(shared: Box, tmp_path: Path) -> None:
    """Two GPUs, a name from the command, a directory, a file for each attempt."""
    place = tmp_path / "place"
    place.mkdir()
    job_id = shared.good(
        *("submit", "-n", "2", "--workdir", str(place), "--output", str(tmp_path / "deep/out-%j-%a")),
        *("--retries", "1", "--backoff", "50ms", "--"),
        *("sh", "-c", "pwd; echo $GPUSCHED_JOB_ID $GPUSCHED_ATTEMPT; echo $CUDA_VISIBLE_DEVICES | wc -w; exit 4"),
    ).strip()
    job = shared.ended(job_id)
    assert (state_of(job), job.outcome.exit_status, job.name, len(job.gpus)) == ("FAILED", 4, "sh", 2)
    for number in (1, 2):
        written = (tmp_path / f"deep/out-{job_id}-{number}").read_text()
        assert written == f"{place}\n{job_id} {number}\n1\n"
        assert job.attempts[number - 1].output_path == f"{tmp_path}/deep/out-{job_id}-{number}"
        assert shared.log(job_id, attempt=number).decode() == written


def test_environment(shared: Box, tmp_path: Path) -> None:
    ours = shared.server.env | {
        "PASSED": "yes",
        "CUDA_VISIBLE_DEVICES": "9",
        "GPUSCHED_JOB_ID": "777",
        "GPUSCHED_GPUS": "fake",
        "EMPTY": "",
        "LINES": "a\nb",
    }

    def variables(*options: str) -> dict[str, str]:
        command = [*CLI, "submit", *options, "--", "/usr/bin/env", "-0"]
        done = subprocess.run(command, env=ours, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        job_id = done.stdout.strip()
        assert shared.ended(job_id).working_directory == str(tmp_path), "where it was submitted"
        return dict(line.split("=", 1) for line in shared.log(job_id).decode().split("\0") if line)

    whole = variables("--env", "ADDED=1=2", "--env", "PASSED=changed")
    assert (whole["ADDED"], whole["PASSED"], whole["EMPTY"], whole["LINES"]) == ("1=2", "changed", "", "a\nb")
    assert whole["PATH"] == ours["PATH"]
    assert whole["CUDA_VISIBLE_DEVICES"] in "01234567", "its own lease's, not its submitter's"
    assert whole["GPUSCHED_JOB_ID"] not in ("", "777")
    assert whole["GPUSCHED_URL"] == shared.server.address
    assert "GPUSCHED_AUTOSTART" not in whole, "what the submitter set for itself"
    bare = variables("--clean-env", "--env", "PASSED", "--env", "ADDED=x")
    assert (bare.pop("PASSED"), bare.pop("ADDED")) == ("yes", "x")
    assert {name for name in bare if not name.startswith("GPUSCHED_")} <= {
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")
    }


@pytest.mark.slow
def test_failures_are_tried_again_with_growing_pauses(shared: Box, tmp_path: Path) -> None:
    script = f"date +%s.%N >>{tmp_path}/times; echo run $GPUSCHED_ATTEMPT; exit 3"
    tried, kept = shared.submit(script, retry=retry(3, 0.2, 3)), shared.submit("exit 5", retry=retry(3, 0.2, 3))
    job = shared.ended(tried)
    assert [state_of(each) for each in job.attempts] == ["FAILED"] * 4
    assert [each.outcome.exit_status for each in job.attempts] == [3] * 4
    assert [shared.log(tried, attempt=number) for number in (1, 2, 3, 4)] == [
        f"run {n}\n".encode() for n in range(1, 5)
    ]
    assert [each.number for each in job.attempts] == [1, 2, 3, 4]
    times = [float(line) for line in (tmp_path / "times").read_text().split()]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(pause >= wanted for pause, wanted in zip(pauses, (0.2, 0.4, 0.8), strict=True)), pauses
    assert "exit 3; tried again in 0.2 s" in shared.history(tried)
    assert [each.outcome.exit_status for each in shared.ended(kept).attempts] == [5], "not one of the statuses"


def test_a_success_ends_the_retries(shared: Box) -> None:
    job = shared.ended(shared.submit("test $GPUSCHED_ATTEMPT = 2", retry=retry(5)))
    assert (state_of(job), len(job.attempts)) == ("COMPLETED", 2)


@pytest.mark.parametrize("requeue", [True, False], ids=["requeue", "no-requeue"])
def test_a_killed_supervisor(shared: Box, gate: Gate, requeue: bool) -> None:
    """`kill -9` of it: the command is dead, and the job lost or queued again. A loss counts as no failure."""
    job_id = shared.submit(
        f"echo pid $$; test $GPUSCHED_ATTEMPT = 1 || exit 7; {gate.words}", requeue=requeue, retry=retry(1)
    )
    command = int(shared.said(job_id, "pid").split()[1])
    holder = wait_until(lambda: shared.attached(job_id), SOON).holder_pid
    assert psutil.Process(command).ppid() == holder
    os.kill(holder, signal.SIGKILL)
    job = shared.ended(job_id)
    assert is_dead(command), "before its lease ends"
    if not requeue:
        assert (state_of(job), [state_of(each) for each in job.attempts]) == ("LOST", ["LOST"])
        assert "supervisor" in job.outcome.message
        return
    assert [state_of(each) for each in job.attempts] == ["LOST", "FAILED", "FAILED"], "the one retry is still there"
    assert "queued again" in shared.history(job_id)
    assert shared.log(job_id, attempt=1).startswith(b"pid ") and shared.log(job_id, attempt=3).startswith(b"pid ")


@pytest.mark.parametrize(
    ("condition", "script", "state"),
    [
        ("UNSPECIFIED", "exit 0", "COMPLETED"),
        ("OK", "exit 0", "COMPLETED"),
        ("OK", "exit 1", "CANCELLED"),
        ("ANY", "exit 0", "COMPLETED"),
        ("ANY", "kill -9 $$", "COMPLETED"),
        ("FAILED", "exit 1", "COMPLETED"),
        ("FAILED", "exit 0", "CANCELLED"),
    ],
)
def test_after(shared: Box, gate: Gate, condition: str, script: str, state: str) -> None:
    first = shared.submit(f"{gate.words}; {script}")
    second = shared.submit("true", dependencies=after(first, condition))
    third = shared.submit("true", dependencies=after(second))
    assert (shared.reason(second), shared.reason(third)) == ("DEPENDENCY", "DEPENDENCY")
    assert f"job {first}" in shared.job(second).reason.message
    gate.open()
    assert [state_of(shared.ended(each)) for each in (second, third)] == [state] * 2
    if state == "CANCELLED":
        assert f"job {first}, which it was to follow" in shared.job(second).outcome.message
    else:
        assert shared.job(second).started_at.ToNanoseconds() >= shared.job(first).ended_at.ToNanoseconds()


@pytest.mark.slow
def test_begin(shared: Box) -> None:
    job_id = shared.good("submit", "--begin", "now+1500ms", "--", "true").strip()
    job = shared.job(job_id)
    assert job.reason.code and job.reason.until == job.begin_at
    assert "begin time" in shared.good("explain", job_id)
    assert shared.reason(job_id) == "BEGIN_TIME"
    done = shared.ended(job_id)
    assert state_of(done) == "COMPLETED"
    assert 0 <= (done.started_at.ToNanoseconds() - job.begin_at.ToNanoseconds()) / 1e9 < 2.0


def test_hold(shared: Box) -> None:
    job_id = shared.submit("true", held=True)
    later = shared.submit("true")
    assert state_of(shared.ended(later)) == "COMPLETED", "a held job keeps nobody"
    assert (shared.state(job_id), shared.reason(job_id)) == ("QUEUED", "HELD")
    assert shared.good("unhold", job_id) == f"job {job_id} is no longer held\n"
    assert state_of(shared.ended(job_id)) == "COMPLETED"


@pytest.mark.slow
def test_time_limit_asks_and_then_kills(shared: Box) -> None:
    """One that listens ends by itself; one that does not is killed, and all that it has started with it."""
    polite = shared.submit("trap 'echo asked; exit 0' TERM; echo on; while :; do sleep 0.05; done", time_limit=1)
    deaf = shared.submit("trap '' TERM; echo on; sleep 100 & wait; wait; sleep 100", time_limit=1, grace=seconds(0.7))
    began = time.monotonic()
    first, second = shared.ended(polite), shared.ended(deaf)
    assert time.monotonic() - began < 15
    assert (state_of(first), state_of(second)) == ("TIMED_OUT", "TIMED_OUT")
    assert b"asked" in shared.log(polite)
    assert 1.0 <= first.usage.wall.ToNanoseconds() / 1e9 <= second.usage.wall.ToNanoseconds() / 1e9
    assert second.usage.wall.ToNanoseconds() / 1e9 >= 1.7, "it had its grace"
    for log in (shared.log(polite), shared.log(deaf)):
        assert b"gpusched: the time limit of 1s is reached; ending the command" in log
    assert [shared.quick("wait", each).returncode for each in (polite, deaf)] == [124, 124]


def test_json_and_quiet(shared: Box) -> None:
    job = json.loads(shared.good("submit", "--json", "--name", "one", "--", "true"))
    assert (job["name"], job["command"]) == ("one", ["true"])
    assert shared.good("submit", "-q", "true") == f"{int(job['id']) + 1}\n", "the -- may be left out"


def test_a_request_id_submits_once(shared: Box) -> None:
    first = shared.submit("true", request_id="only once")
    assert shared.submit("echo again", request_id="only once") == first
    shared.ended(first)
    assert shared.submit("true", request_id="only once") == first, "after its end, too"
    assert shared.submit("true", request_id="twice") != first
