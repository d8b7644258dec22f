"""Going to the background, saying so, and stopping, all with real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gpusched.scheduler.daemon import ReadyPipe, notify_systemd, stop
from gpusched.scheduler.locks import read_running
from support.server import clean_environment
from support.waiting import wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

DETACH = """
import json, os, signal, sys, time
from pathlib import Path
from gpusched.scheduler.daemon import detach
pipe = detach(Path(sys.argv[1]), timeout=float(sys.argv[2]))
"""
SERVE = (
    DETACH
    + """
print("to stdout")
print("to stderr", file=sys.stderr)
open(Path(sys.argv[1]).with_name("made"), "w").close()
facts = {
    "pid": os.getpid(), "sid": os.getsid(0), "pgid": os.getpgid(0), "ppid": os.getppid(), "cwd": os.getcwd(),
    "stdin": os.readlink("/proc/self/fd/0"), "eof": sys.stdin.read(),
    "hup": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
    "heavy": [name for name in ("grpc", "asyncio") if name in sys.modules],
    "pipes": 0,
}
for fd in os.listdir("/proc/self/fd"):
    if os.path.lexists(f"/proc/self/fd/{fd}"):
        facts["pipes"] += "pipe:" in os.readlink(f"/proc/self/fd/{fd}")
Path(sys.argv[1]).with_name("facts").write_text(json.dumps(facts))
pipe.ready("127.0.0.1:4711")
pipe.failed("too late to matter")
time.sleep(60)
"""
)
HOLD = """
import signal, sys, time
from pathlib import Path
from gpusched.scheduler.locks import lock_state_dir
lock = lock_state_dir(Path(sys.argv[1]))
lock.announce("127.0.0.1:4711")
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def run(script: str, log: Path, timeout: float = 20, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, str(log), str(timeout)],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=30,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@contextmanager
def cleaned_up(said: str) -> Iterator[int]:
    """The pid in what was said; that process is killed in the end."""
    found = re.search(r"\(pid (\d+)", said)
    assert found, said
    try:
        yield int(found[1])
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(found[1]), signal.SIGKILL)


@contextmanager
def holder(state_dir: Path, manner: str = "polite", **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has a state directory's lock, as a server would."""
    command = [sys.executable, "-c", HOLD, str(state_dir), manner]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        **options,  # type: ignore[call-overload]
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_detached_server_has_nothing_of_its_caller(tmp_path: Path) -> None:
    log = tmp_path / "state" / "server.log"
    read_end, write_end = os.pipe()
    done = run(SERVE, log, pass_fds=(write_end,))
    os.close(write_end)
    with cleaned_up(done.stderr) as pid:
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"gpusched: serving on 127.0.0.1:4711 (pid {pid}, log {log})\n"
        facts = json.loads((log.parent / "facts").read_text())
        assert facts["pid"] == pid
        assert facts["sid"] == facts["pgid"] != pid  # no session leader: it can never get a terminal
        assert facts["sid"] != os.getsid(0)
        assert (facts["cwd"], facts["stdin"], facts["eof"], facts["hup"]) == ("/", "/dev/null", "", True)
        assert facts["heavy"] == []
        assert facts["pipes"] == 1  # its own way to say that it is ready
        assert os.read(read_end, 1) == b""  # our pipe has no writer left
        assert (log.parent / "made").stat().st_mode & 0o777 == 0o600
        assert log.stat().st_mode & 0o777 == 0o600 and log.parent.stat().st_mode & 0o777 == 0o700
        assert log.read_text() == "to stdout\nto stderr\n"
    os.close(read_end)


def test_the_log_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("before\n")
    done = run(SERVE, log)
    with cleaned_up(done.stderr):
        assert log.read_text().startswith("before\nto stdout\n")


def test_a_caller_waiting_for_its_output_is_let_go(tmp_path: Path) -> None:
    """`$(gpusched serve --detach)` ends although the server lives."""
    command = (
        f'x=$({shlex.quote(sys.executable)} -c {shlex.quote(SERVE)} {tmp_path}/server.log 20 2>&1); echo "got: $x"'
    )
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, env=clean_environment(), timeout=30, check=False
    )
    with cleaned_up(done.stdout):
        assert done.stdout.startswith("got: gpusched: serving on")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_caller_with_closed_stdio(tmp_path: Path, closed: str) -> None:
    log = tmp_path / "server.log"
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(SERVE)} {log} 20 {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, env=clean_environment(), timeout=30, check=False
    )
    facts = json.loads((tmp_path / "facts").read_text())
    with cleaned_up(f"(pid {facts['pid']}"):
        assert done.returncode == 0
        assert (facts["stdin"], facts["eof"]) == ("/dev/null", "")
        assert log.read_text() == "to stdout\nto stderr\n"


def test_it_outlives_the_terminal(tmp_path: Path) -> None:
    """A log-in's end: its terminal goes away, and SIGHUP comes to everything in its session."""
    log = tmp_path / "server.log"
    shell, terminal = pty.fork()
    if shell == 0:
        os.execve(sys.executable, [sys.executable, "-c", SERVE, str(log), "20"], clean_environment())
    said = b""
    with suppress(OSError):
        while data := os.read(terminal, 1024):
            said += data
    os.waitpid(shell, 0)
    os.close(terminal)
    with cleaned_up(said.decode()) as pid:
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert state[0] != "Z" and state[4] == "0"  # alive, and without a controlling terminal


@as_root
def test_the_log_leads_nowhere_that_another_user_chose(tmp_path: Path) -> None:
    """Nothing is written by way of a directory that is not ours alone."""
    theirs, victim = tmp_path / "theirs", tmp_path / "victim"
    theirs.mkdir()
    (theirs / "server.log").symlink_to(victim)
    os.chown(theirs, 54321, 54321)
    done = run(SERVE, theirs / "server.log")
    assert done.returncode == 1 and "belongs to 54321" in done.stderr
    os.chown(theirs, 0, 0)
    done = run(SERVE, theirs / "server.log")
    assert done.returncode == 1 and "cannot write the log" in done.stderr
    assert not victim.exists()


def test_a_refusal_reaches_the_caller(tmp_path: Path) -> None:
    script = DETACH + "pipe.failed('no NVIDIA driver here;\\nok 127.0.0.1:1 1\\nerror try --simulate 8'); sys.exit(1)"
    done = run(script, tmp_path / "server.log")
    assert done.returncode == 1
    message = "gpusched: no NVIDIA driver here;\nok 127.0.0.1:1 1\nerror try --simulate 8\n"
    assert done.stderr == message
    assert (tmp_path / "server.log").read_text() == message


def test_a_death_before_it_serves_points_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    done = run(DETACH + "raise SystemExit('bang')", log)
    assert (done.returncode, done.stderr) == (1, f"gpusched: the scheduler ended before it served; see {log}\n")
    assert "bang" in log.read_text()


@pytest.mark.slow
def test_a_server_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    script = DETACH + "Path(sys.argv[1]).with_name('pid').write_text(str(os.getpid())); time.sleep(60)"
    done = run(script, tmp_path / "server.log", timeout=1.0)
    assert done.returncode == 1
    assert "did not begin to serve within 1 s and was stopped" in done.stderr
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text())


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(DETACH, tmp_path / "file" / "server.log")
    assert done.returncode == 1
    assert done.stderr.startswith("gpusched: cannot write the log ") and "Traceback" not in done.stderr


def test_a_caller_that_is_gone_does_no_harm(tmp_path: Path) -> None:
    script = "import os, select\ncaller = os.getpid()\n" + DETACH
    script += "os.kill(caller, signal.SIGKILL)\n"
    script += "gone = select.poll(); gone.register(pipe._descriptor, select.POLLERR); gone.poll()\n"
    script += "pipe.ready('127.0.0.1:1')\nPath(sys.argv[1]).with_name('survived').touch()\n"
    assert run(script, tmp_path / "server.log").returncode == -signal.SIGKILL
    wait_until((tmp_path / "survived").exists)


def test_foreground_says_where_it_serves_once(capfd: pytest.CaptureFixture[str]) -> None:
    pipe = ReadyPipe.foreground()
    pipe.ready("127.0.0.1:4711")
    pipe.ready("127.0.0.1:4711")
    pipe.failed("not any more")
    assert capfd.readouterr().err == f"gpusched: serving on 127.0.0.1:4711 (pid {os.getpid()})\n"


def test_foreground_failure(capfd: pytest.CaptureFixture[str]) -> None:
    ReadyPipe.foreground().failed("port 9123 is taken")
    assert capfd.readouterr().err == "gpusched: port 9123 is taken\n"


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@gpusched-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        ReadyPipe.foreground().ready("127.0.0.1:4711")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify"])
def test_without_systemd_nothing_breaks(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify_systemd("READY=1")


def test_stop_waits_for_the_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with holder(tmp_path) as server:
        assert stop(tmp_path, 10) == 0
        assert capfd.readouterr().err == f"gpusched: the scheduler (pid {server.pid}, 127.0.0.1:4711) has stopped\n"
        assert server.wait(5) == -signal.SIGTERM
    assert read_running(tmp_path) is None


def test_stop_of_another_scheduler_than_the_one_that_is_meant(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with holder(tmp_path) as server:
        assert stop(tmp_path, 10, "127.0.0.1:4712", "GPUSCHED_PORT") == 1
        assert capfd.readouterr().err == (
            f"gpusched: GPUSCHED_PORT names a scheduler at 127.0.0.1:4712, but the one with state directory {tmp_path} "
            f"serves on 127.0.0.1:4711 (pid {server.pid}): nothing was stopped; give the other one's directory with "
            "--state-dir or GPUSCHED_STATE_DIR, or stop this one with --url 127.0.0.1:4711\n"
        )
        assert server.poll() is None
        assert stop(tmp_path, 10, "127.0.0.1:4711", "--url") == 0


def test_stop_with_nothing_to_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        assert stop(directory, 1) == 1
        assert capfd.readouterr().err == f"gpusched: no scheduler runs with state directory {directory}\n"


def test_stop_after_kill_9(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with holder(tmp_path) as server:
        server.kill()
        server.wait()
        assert stop(tmp_path, 1) == 1
        assert "no scheduler runs" in capfd.readouterr().err


def test_stop_gives_up_after_its_timeout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with holder(tmp_path, "stubborn") as server:
        assert stop(tmp_path, 0.2) == 3
        assert (
            f"still runs 0.2 s after it was told to end; see its log, or: kill -9 {server.pid}"
            in capfd.readouterr().err
        )
        assert server.poll() is None


def test_stop_never_hits_a_process_that_does_not_hold_the_lock(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pid from another container, or one used again, means another process here."""
    with holder(tmp_path), subprocess.Popen(["/bin/sleep", "60"]) as bystander:
        (tmp_path / "scheduler.lock").write_text(
            json.dumps({"pid": bystander.pid, "start_ticks": 1, "address": "127.0.0.1:1"})
        )
        assert stop(tmp_path, 1) == 1
        assert "cannot be reached from here" in capfd.readouterr().err
        assert bystander.poll() is None
        bystander.kill()


def test_stop_of_a_server_that_ends_by_itself(tmp_path: Path) -> None:
    with holder(tmp_path) as server:
        ender = threading.Timer(0.05, server.kill)
        ender.start()
        assert stop(tmp_path, 10) in (0, 1)
        ender.join()


@as_root
def test_stop_of_another_users_server(tmp_path: Path) -> None:
    """Run as that other user, who can read the lock's directory but not signal the server."""
    with holder(tmp_path):
        for path in (tmp_path, tmp_path / "scheduler.lock"):
            path.chmod(0o755)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                os.fchdir(os.open(tmp_path, os.O_PATH))  # the directories above are private
                os.dup2(write_end, 2)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                os.setgid(12345)
                os.setuid(12345)
                status = stop(Path("."), 1)
            finally:
                os._exit(status)
        os.close(write_end)
        with open(read_end) as pipe:
            said = pipe.read()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert "belongs to root; only its owner and root can stop it" in said
