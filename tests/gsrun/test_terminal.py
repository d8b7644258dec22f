"""gsrun typed into an interactive bash on a terminal: the live line, job control, the keys."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import pytest

from gpusched.v1 import scheduler_pb2, scheduler_pb2_grpc
from gsrun.conftest import GPUS
from gsrun.running import GSRUN, Gsrun, Terminal, marked, state_of
from support.server import Server
from support.waiting import wait_until

Start = Callable[..., Gsrun]
Stub = scheduler_pb2_grpc.SchedulerStub
ALL = ("-n", str(GPUS))

CLEAR = re.escape("\r\x1b[K")


@pytest.fixture
def busy(gsrun: Start) -> Gsrun:
    """A gsrun on all GPUs, until the test ends it."""
    run = gsrun(*ALL, "--name", "train", "sh", "-c", "echo up; exec sleep 100")
    run.wait_for_out("up")
    return run


def counts(stub: Stub) -> tuple[int, int]:
    """Jobs running and queued."""
    status = stub.GetStatus(scheduler_pb2.GetStatusRequest())
    return status.jobs_running, status.jobs_queued


def sleepers(terminal: Terminal) -> list[str]:
    return [line for line in marked(terminal.mark) if line.split()[1] == "sleep"]


def test_exit_status_and_output(terminal: Terminal) -> None:
    assert "out\r\n" in terminal.run("$GSRUN sh -c 'echo out; exit 5'")
    assert "5" in terminal.run("echo $?")


def test_command_reads_the_terminal(terminal: Terminal) -> None:
    terminal.type("$GSRUN bash -c 'read -p name: x; echo \"hello <$x>\"'\n")
    terminal.expect("\nname:")
    terminal.type("alice\n")
    terminal.expect("hello <alice>")


def test_command_knows_the_window_size(terminal: Terminal) -> None:
    assert "24 100" in terminal.run("$GSRUN stty size")
    terminal.type("$GSRUN bash -c 'trap \"stty size; exit\" WINCH; echo up; while :; do sleep 0.05; done'\n")
    terminal.expect("\nup")
    terminal.resize(50, 132)
    terminal.expect("50 132")


def test_control_c_kills_the_command_and_stops_the_loop(terminal: Terminal) -> None:
    # exec: dash itself loses a Ctrl-C that comes while it starts a program (15 % of those typed at its first word).
    terminal.type("for i in 1 2 3; do $GSRUN sh -c 'echo round $0; exec sleep 100' $i; done\n")
    terminal.expect("\nround 1")
    terminal.type("\x03")
    after = terminal.expect(re.escape(Terminal.PROMPT))
    assert "round 2" not in after
    assert "130" in terminal.run("echo $?")
    wait_until(lambda: not sleepers(terminal))


def test_control_c_is_the_commands_to_handle(terminal: Terminal) -> None:
    terminal.type("$GSRUN bash -c 'trap \"echo caught; exit 7\" INT; echo up; while :; do sleep 0.05; done'\n")
    terminal.expect("\nup")
    terminal.type("\x03")
    terminal.expect("caught")
    terminal.expect(re.escape(Terminal.PROMPT))
    output = terminal.run("echo status $?")
    assert "status 7" in output
    assert terminal.text.count("caught") == 2, "once typed, once said: it came twice"


def test_control_backslash(terminal: Terminal) -> None:
    terminal.run("ulimit -c 0")
    terminal.type("$GSRUN sh -c 'echo up; exec sleep 100'\n")
    terminal.expect("\nup")
    terminal.type("\x1c")
    terminal.expect(re.escape(Terminal.PROMPT))
    assert "131" in terminal.run("echo $?")


def test_control_z_fg_bg(terminal: Terminal, stub: Stub) -> None:
    """Stopped and continued as a command alone would be; the lease is kept all the time."""
    terminal.type("$GSRUN bash -c 'echo up; read x; echo \"got $x\"; sleep 0.3; echo end'\n")
    terminal.expect("\nup")
    terminal.type("\x1a")
    terminal.expect(r"\[1\]\+\s+Stopped")
    terminal.expect(re.escape(Terminal.PROMPT))
    assert counts(stub) == (1, 0)
    terminal.run("bg")
    # In the background its read from the terminal stops it, as it would without gsrun.
    front = terminal.gsrun_pids()[0]
    wait_until(lambda: state_of(front) == "T")
    assert counts(stub) == (1, 0)
    terminal.type("fg\n")
    terminal.expect("fg\r\n")
    wait_until(lambda: state_of(front) == "S")
    terminal.type("hello\n")
    terminal.expect("got hello")
    terminal.expect("end")
    terminal.expect(re.escape(Terminal.PROMPT))
    assert "0" in terminal.run("echo $?")


@pytest.mark.slow
def test_stopped_by_kill_of_the_job_and_continued(terminal: Terminal) -> None:
    """SIGSTOP to the whole group and `fg`: the front must not stop itself once more after the fg."""
    for _ in range(3):
        terminal.type("$GSRUN sh -c 'echo up; exec sleep 100' &\n")
        terminal.expect(r"[\n ]up\r")
        terminal.run("kill -STOP %1")
        front = terminal.gsrun_pids()[0]
        wait_until(lambda front=front: state_of(front) == "T")
        terminal.type("fg\n")
        terminal.expect("sleep 100'")
        wait_until(lambda front=front: state_of(front) == "S")
        assert "Stopped" not in terminal.read_for(0.2)
        terminal.type("\x03")
        terminal.expect(re.escape(Terminal.PROMPT))


@pytest.mark.slow
def test_pipeline_under_job_control(terminal: Terminal) -> None:
    # Not sh: dash starts programs by vfork, and a child that is stopped before its exec keeps it from stopping.
    terminal.type("$GSRUN bash -c 'echo one; sleep 0.5; echo two' | $GSRUN cat\n")
    terminal.expect("\none")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect(re.escape(Terminal.PROMPT))
    terminal.type("fg\n")
    terminal.expect("\ntwo")
    terminal.expect(re.escape(Terminal.PROMPT))


def test_kill_9_of_the_job(terminal: Terminal, stub: Stub) -> None:
    terminal.type("$GSRUN sh -c 'echo up; setsid sleep 100 & sleep 100' &\n")
    terminal.expect(r"[\n ]up\r")
    terminal.run("kill -9 %1")
    wait_until(lambda: not sleepers(terminal), 3)
    wait_until(lambda: counts(stub) == (0, 0))


def test_closed_terminal_ends_it_all(terminal: Terminal, stub: Stub) -> None:
    terminal.type("$GSRUN sh -c 'echo up; sleep 100'\n")
    terminal.expect("\nup")
    os.close(terminal.master)
    terminal.master = os.open(os.devnull, os.O_RDONLY)
    wait_until(lambda: not sleepers(terminal), 5)
    wait_until(lambda: counts(stub) == (0, 0))


# -- waiting -------------------------------------------------------------------------------------------------


def test_live_line(terminal: Terminal, busy: Gsrun) -> None:
    terminal.type("$GSRUN -n 1 sh -c 'echo up'\n")
    reason = r"needs 1 GPU, 0 free; GPU 0,1,2,3 held by \w+ \(train\)(?: · expected at [0-9:]+| …)?"
    terminal.expect(rf"\rgsrun: 1st of 1 in the queue · {reason} · waiting (\d+)s\x1b\[K")
    terminal.expect(r"waiting 1s\x1b\[K")  # it ticks, with no change in the queue
    terminal.expect(r"waiting 2s\x1b\[K")
    busy.signal(signal.SIGTERM)
    rest = terminal.expect("up\r\n")
    assert re.search(f"{CLEAR}up\r\n$", rest), "the line is taken away before the command says anything"
    assert "\n" not in rest.removesuffix("up\r\n"), "one line, redrawn in place"


def test_live_line_fits_a_narrow_window(terminal: Terminal, busy: Gsrun) -> None:
    terminal.resize(24, 40)
    terminal.type("$GSRUN -n 1 true\n")
    line = terminal.expect(r"1st of 1[^\r\n\x1b]*waiting \d+s\x1b\[K").rpartition("\r")[2].removesuffix("\x1b[K")
    assert len(line) <= 40 - 1 - len("^C"), "the terminal may add those to it"
    assert "…" in line
    terminal.resize(24, 24)
    terminal.expect(r"\r1[^\r\n\x1b]{0,7}… · waiting \d+s\x1b\[K")
    terminal.resize(24, 150)
    terminal.expect(r"gsrun: [^\r\n…]*needs 1 GPU[^\r\n…]*waiting \d+s\x1b\[K")
    busy.signal(signal.SIGTERM)
    terminal.expect(re.escape(Terminal.PROMPT))


def test_control_c_while_queued(terminal: Terminal, busy: Gsrun, stub: Stub) -> None:
    terminal.type("$GSRUN -n 1 sh -c 'echo ran'\n")
    terminal.expect("1st of 1 in the queue")
    terminal.type("\x03")
    terminal.expect(re.escape(Terminal.PROMPT))
    assert "130" in terminal.run("echo $?")
    wait_until(lambda: counts(stub) == (1, 0))
    busy.signal(signal.SIGTERM)
    assert "\nran" not in terminal.text


@pytest.mark.slow
def test_control_z_while_queued_keeps_the_place(terminal: Terminal, busy: Gsrun, gsrun: Start, stub: Stub) -> None:
    terminal.type("$GSRUN -n 4 sh -c 'echo ran first'\n")
    terminal.expect("1st of 1 in the queue")
    other = gsrun("-n", "1", "sh", "-c", "echo other")
    other.wait_for_err("2nd of 2")
    terminal.type("\x1a")
    terminal.expect(r"\[1\]\+\s+Stopped")
    terminal.expect(re.escape(Terminal.PROMPT))
    assert counts(stub) == (1, 2)
    terminal.run("bg")
    assert "gsrun:" not in terminal.read_for(1.2), "it drew over the shell's prompt from the background"
    terminal.type("fg\n")
    terminal.expect("1st of 2 in the queue")
    busy.signal(signal.SIGTERM)
    terminal.expect("\rran first|\nran first|\x1b\\[Kran first")
    assert other.wait() == 0


def test_dumb_terminal_gets_plain_lines(terminal: Terminal, busy: Gsrun) -> None:
    terminal.type("TERM=dumb $GSRUN -n 1 true\n")
    terminal.expect(r"\ngsrun: 1st of 1 in the queue")
    assert "\x1b" not in terminal.read_for(0.3)
    busy.signal(signal.SIGTERM)
    terminal.expect(re.escape(Terminal.PROMPT))


def test_background_command_that_writes(terminal: Terminal, idle: Server) -> None:
    """`stty tostop` stops what writes from the background; gsrun's own lines never stop it."""
    terminal.run("stty tostop")
    terminal.type(f"{' '.join(GSRUN)} -v sh -c 'exec >/dev/null 2>&1; sleep 0.3' &\n")
    terminal.expect(re.escape(Terminal.PROMPT))
    began = time.monotonic()
    terminal.run("wait")
    assert time.monotonic() - began < 10
