"""What a command finds when it starts, and what becomes of its end. With real processes and a real scheduler."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpusched.scheduler.runner.model import Run
from gpusched.v1 import job_pb2
from runner.running import Job, Runner, output
from support.server import Server

Go = Callable[..., tuple[Run, job_pb2.Job]]


@pytest.fixture
def go(shared_server: Server, shared_runner: Runner, lease: Callable[..., Job], tmp_path: Path) -> Go:
    """`go(*command, **changes of the run)` runs it to its end: the run, and the job as the server has it then."""

    def run_it(*command: str, **changes: Any) -> tuple[Run, job_pb2.Job]:
        job = lease(shared_server)
        run = job.run(tmp_path, command, **changes)
        shared_runner.launch(run)
        ended = job.wait()
        assert not job.processes()
        return run, ended

    return run_it


def look(code: str) -> tuple[str, ...]:
    """A command that prints what Python code makes of itself, as JSON."""
    return (sys.executable, "-c", f"import json, os, signal, sys\nprint(json.dumps({code}))")


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_exit_status(go: Go, status: int) -> None:
    _, job = go("sh", "-c", f"exit {status}")
    assert job.outcome.exit_status == status
    assert job.state == (job_pb2.JOB_STATE_FAILED if status else job_pb2.JOB_STATE_COMPLETED)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGINT])
def test_death_by_a_signal(go: Go, number: int) -> None:
    _, job = go("sh", "-c", f"kill -{int(number)} $$")
    assert (job.outcome.signal, job.outcome.HasField("exit_status")) == (number, False)


def test_both_streams_in_the_order_of_their_writing(go: Go) -> None:
    run, _ = go("sh", "-c", "echo one; echo two >&2; echo three; echo four >&2")
    assert output(run) == "one\ntwo\nthree\nfour\n"
    assert os.stat(run.output_path).st_mode & 0o777 == 0o600


def test_binary_output_comes_through(go: Go) -> None:
    run, _ = go(sys.executable, "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000)")
    assert Path(run.output_path).read_bytes() == bytes(range(256)) * 1000


def test_output_is_added_to_a_file_that_is_there(go: Go, tmp_path: Path) -> None:
    path = tmp_path / "there.log"
    path.write_text("before\n")
    go("echo", "after", output_path=str(path))
    assert path.read_text() == "before\nafter\n"


def test_directories_for_the_output_are_made(go: Go, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "log"
    go("echo", "here", output_path=str(path))
    assert path.read_text() == "here\n"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_environment_is_exactly_the_one_given(go: Go) -> None:
    given = {"PATH": os.environ["PATH"], "ONE": "1", "EMPTY": "", "BYTES": os.fsdecode(b"\xff\xfe"), "LINES": "a\nb"}
    run, _ = go(*look("{os.fsencode(k).hex(): os.fsencode(v).hex() for k, v in os.environ.items()}"), environment=given)
    seen = {bytes.fromhex(k): bytes.fromhex(v) for k, v in json.loads(output(run)).items()}
    seen.pop(b"LC_CTYPE", None)  # Python's own doing, where there is no locale
    assert seen == {os.fsencode(k): os.fsencode(v) for k, v in given.items()}


def test_command_is_looked_for_in_its_own_path(go: Go, tmp_path: Path) -> None:
    script = tmp_path / "only-here"
    script.write_text("#!/bin/sh\necho found $1\n")
    script.chmod(0o755)
    run, _ = go("only-here", "it", environment={"PATH": f"/nowhere:{tmp_path}:/usr/bin:/bin"})
    assert output(run) == "found it\n"


def test_working_directory_and_a_path_relative_to_it(go: Go, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "script").write_text("pwd\n")  # without #!, as shells take it
    (place / "script").chmod(0o755)
    run, _ = go("./script", working_directory=str(place))
    assert output(run) == f"{place}\n"


def test_stdin_is_empty(go: Go) -> None:
    run, job = go("sh", "-c", "cat; readlink /proc/self/fd/0")
    assert (output(run), job.outcome.exit_status) == ("/dev/null\n", 0)


def test_no_descriptor_but_the_three(go: Go) -> None:
    run, _ = go(*look("[fd for fd in range(1024) if os.path.exists(f'/proc/self/fd/{fd}')]"))
    assert json.loads(output(run)) == [0, 1, 2]


def test_signals_are_as_they_are_by_default(go: Go) -> None:
    run, _ = go("cat", "/proc/self/status")
    fields = dict(line.split(":\t") for line in output(run).splitlines())
    own_to_glibc = 1 << 31 | 1 << 32  # its posix_spawn ignores two signals that only it can use
    assert {name: int(fields[name], 16) & ~own_to_glibc for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd")} == {
        "SigBlk": 0,
        "SigIgn": 0,
        "SigCgt": 0,
        "SigPnd": 0,
    }


def test_a_broken_pipe_kills_as_it_should(go: Go) -> None:
    run, _ = go("bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}")
    assert output(run) == f"y\n{128 + signal.SIGPIPE}\n"


def test_own_session_group_and_umask(go: Go, shared_runner: Runner) -> None:
    run, _ = go(*look("[os.getpid() == os.getsid(0) == os.getpgid(0), os.umask(0), os.getppid()]"))
    leads, umask, parent = json.loads(output(run))
    assert leads and umask == 0o022
    assert parent != shared_runner.agent


def test_limit_of_open_files_is_the_servers(shared_server: Server, lease: Callable[..., Job], tmp_path: Path) -> None:
    """The agent raises its own."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
    try:
        with Runner(tmp_path) as runner:
            job = lease(shared_server)
            run = job.run(tmp_path, ("sh", "-c", "ulimit -Sn"))
            runner.launch(run)
            job.wait()
            assert resource.prlimit(runner.agent, resource.RLIMIT_NOFILE)[0] > 400
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert output(run) == "400\n"


def test_a_gigabyte_without_a_newline_costs_no_memory(go: Go) -> None:
    _, job = go("sh", "-c", "head -c 1073741824 /dev/zero", output_path="/dev/null")
    assert job.outcome.exit_status == 0


# -- what cannot run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        ("missing", 127, "cannot run 'no-such-command': no such file or directory"),
        ("missing path", 127, "cannot run '/no/such/command': no such file or directory"),
        ("through a file", 127, "cannot run '{dir}/plain/command': not a directory"),
        ("plain", 126, "cannot run '{dir}/plain': permission denied (it is not executable)"),
        ("plain in path", 126, "cannot run 'plain': permission denied ({dir}/plain is not executable)"),
        ("directory", 126, "cannot run '{dir}': is a directory"),
        ("no interpreter", 127, "cannot run '{dir}/bad': the interpreter that it names was not found"),
        ("too long", 126, "cannot run 'true': argument list too long"),
        ("NUL", 125, "cannot run 'true': embedded null byte"),
    ],
)
def test_command_that_cannot_run(go: Go, tmp_path: Path, make: str, status: int, message: str) -> None:
    (tmp_path / "plain").write_text("echo no\n")
    (tmp_path / "bad").write_text("#!/no/such/interpreter\n")
    (tmp_path / "bad").chmod(0o755)
    command = {
        "missing": ("no-such-command",),
        "missing path": ("/no/such/command",),
        "through a file": (f"{tmp_path}/plain/command",),
        "plain": (f"{tmp_path}/plain",),
        "plain in path": ("plain",),
        "directory": (str(tmp_path),),
        "no interpreter": (f"{tmp_path}/bad",),
        "too long": ("true", "x" * 3_000_000),
        "NUL": ("true", "a\0b"),
    }[make]
    run, job = go(*command, environment={"PATH": f"/usr/bin:/bin:{tmp_path}"})
    expected = message.format(dir=tmp_path)
    assert job.outcome.exit_status == status
    assert expected in job.outcome.message
    assert output(run) == f"gpusched: {expected}\n"


def test_working_directory_that_is_not_there(go: Go) -> None:
    run, job = go("true", working_directory="/no/such/place")
    expected = "cannot enter the working directory '/no/such/place': no such file or directory"
    assert (job.outcome.exit_status, output(run)) == (125, f"gpusched: {expected}\n")
    assert expected in job.outcome.message


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/proc/no/such", "no such file or directory"),
        ("{dir}", "is a directory"),
        ("{dir}/plain/log", "its directory is not a directory"),
        ("{dir}/pipe", "nobody reads from that pipe"),
        ("{dir}/" + "x" * 300, "file name too long"),
    ],
)
def test_output_that_cannot_be_written(go: Go, tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "plain").touch()
    os.mkfifo(tmp_path / "pipe")
    witness = tmp_path / "witness"
    path = path.format(dir=tmp_path)
    _, job = go("touch", str(witness), output_path=path)
    assert job.outcome.exit_status == 125
    assert f"cannot write the output file '{path}': {why}" in job.outcome.message
    assert not witness.exists(), "it must not run where its output is lost"


def test_an_unreadable_directory_and_file_as_another_user(go: Go) -> None:
    """As root everything is allowed; the tests of permissions are for others."""
    if os.getuid() == 0:
        pytest.skip("root may do everything")
    _, job = go("true", working_directory="/root")
    assert "permission denied" in job.outcome.message
