"""The parts that need no supervisor: what goes over the socket, and what becomes of runs when an agent dies."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler.runner import frames, spawn
from gpusched.scheduler.runner import runner as runner_module
from gpusched.scheduler.runner.model import Run
from runner.running import QUICK, Runner, make_run
from support.waiting import wait_until


@given(st.text(alphabet=st.characters()), st.one_of(st.none(), st.floats(0, 1e9)), st.floats(0, 1e9))
def test_a_run_comes_through_as_it_was(text: str, limit: float | None, grace: float) -> None:
    run = make_run(Path("/somewhere"), ("cmd", text), environment={"NAME": text}, time_limit=limit, grace=grace)
    assert Run.from_json(run.to_json()) == run
    assert Run.from_json(run.to_json().encode()) == run


def test_secrets_are_not_shown() -> None:
    run = make_run(Path("/somewhere"), ("cmd",), resume_token="hidden-token", environment={"KEY": "hidden-value"})
    assert "hidden" not in repr(run)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"job_id": "1"}', "nonsense", '{"command": 1}'])
def test_what_is_no_run(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Run.from_json(text)


@pytest.mark.parametrize(("gpus", "count"), [(None, 0), ("", 0), ("GPU-1", 1), ("GPU-1,GPU-2,GPU-3", 3)])
def test_gpus_of_a_run(gpus: str | None, count: int) -> None:
    environment = {} if gpus is None else {"GPUSCHED_GPUS": gpus}
    assert make_run(Path("/"), ("cmd",), environment=environment).gpus == count


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 50))
def test_frames_in_pieces(payloads: list[bytes], piece: int) -> None:
    data = b"".join(map(frames.pack, payloads))
    buffer = frames.Buffer()
    seen = []
    for at in range(0, len(data), piece):
        buffer.feed(data[at : at + piece])
        while (payload := buffer.take()) is not None:
            seen.append(payload)
    assert seen == payloads


def test_frames_that_are_too_large() -> None:
    buffer = frames.Buffer()
    buffer.feed(b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="4294967295 bytes"):
        buffer.take()


def test_a_line_of_ours_follows_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    output = spawn.Output(str(path))
    output.say("first")
    with path.open("a") as file:
        file.write("no end")
    output.say("second")
    assert path.read_text() == "gpusched: first\nno end\ngpusched: second\n"
    path.unlink()
    path.write_text("another file by that name")
    output.say("to the old one")
    assert path.read_text() == "another file by that name"


def test_a_line_that_cannot_be_written_is_no_matter() -> None:
    spawn.Output("/dev/full").say("lost")


# -- an agent that does not do what it should --------------------------------------------------------------

PREAMBLE = """
import socket, sys
from gpusched.scheduler.runner import frames
from gpusched.scheduler.runner.model import Run
server = socket.socket(fileno=int(sys.argv[1]))
buffer = frames.Buffer()
def next_run():
    while (payload := buffer.take()) is None:
        buffer.feed(server.recv(4096) or sys.exit())
    return Run.from_json(payload)
"""


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next agents do, as code; the last one goes on being the next."""
    codes: list[str] = []

    def spawn_fake(sock: socket.socket, _: Path, files: tuple[int, int]) -> subprocess.Popen[bytes]:
        code = codes.pop(0) if len(codes) > 1 else codes[0]
        command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), str(sock.fileno())]
        return subprocess.Popen(command, pass_fds=(sock.fileno(),))

    monkeypatch.setattr(runner_module, "_spawn", spawn_fake)
    return codes


STARTS = """
while True:
    server.sendall(frames.answer(frames.FAILED, *next_run().key, message="seen by the second"))
"""


def test_what_an_agent_had_taken_when_it_died_is_not_given_to_another(agents: list[str], tmp_path: Path) -> None:
    """It may run already: two of it would be worse than none."""
    agents += ["server.sendall(frames.answer(frames.TAKEN, *next_run().key))", STARTS]
    with Runner(tmp_path) as runner:
        runner.launch(make_run(tmp_path, ("one",), job_id="1"))
        failures = wait_until(lambda: runner.failures, QUICK, "a failure")
        assert failures == [("1", 1, "the scheduler's agent died while it started the job")]
        runner.launch(make_run(tmp_path, ("two",), job_id="2"))
        wait_until(lambda: len(runner.failures) == 2, QUICK, "another")
        assert runner.failures[1] == ("2", 1, "seen by the second")


def test_what_an_agent_had_not_taken_is(agents: list[str], tmp_path: Path) -> None:
    agents += ["next_run()", STARTS]
    with Runner(tmp_path) as runner:
        runner.launch(make_run(tmp_path, ("one",), job_id="1"))
        assert wait_until(lambda: runner.failures, QUICK, "a failure") == [("1", 1, "seen by the second")]


def test_what_an_agent_had_started_is_none_of_the_next_ones(agents: list[str], tmp_path: Path) -> None:
    agents += ["server.sendall(frames.answer(frames.STARTED, *next_run().key, pid=1))", STARTS]
    with Runner(tmp_path) as runner:
        runner.launch(make_run(tmp_path, ("one",), job_id="1"))
        wait_until(lambda: runner.agent != runner.agents[0], QUICK, "another agent")
        runner.launch(make_run(tmp_path, ("two",), job_id="2"))
        assert wait_until(lambda: runner.failures, QUICK, "a failure") == [("2", 1, "seen by the second")]


def test_launch_after_the_end_is_told(agents: list[str], tmp_path: Path) -> None:
    agents += [STARTS]
    with Runner(tmp_path) as runner:
        runner.call(runner.process_runner.close())
        runner.launch(make_run(tmp_path, ("one",), job_id="1"))
        failures = wait_until(lambda: runner.failures, QUICK, "a failure")
        assert failures == [("1", 1, "the run cannot be started: the scheduler is stopping")]
