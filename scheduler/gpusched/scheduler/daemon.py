"""The scheduler as a background process: detaching, telling that it serves, and stopping it again.

`detach` forks, so it comes before gRPC, asyncio or any thread; this module imports none of them.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

from gpusched.scheduler.identity import process_start_ticks, process_uid, user_name
from gpusched.scheduler.locks import RunningServer, StartRefused, check_private, read_running

_EXIT_OK = 0
_EXIT_FAILED = 1
_EXIT_STILL_RUNNING = 3
_EXIT_INTERRUPTED = 130


class ReadyPipe:
    """Tells whoever started this server how that went, once; later words go nowhere."""

    def __init__(self, descriptor: int | None) -> None:
        """Write to a pipe's end that this object then owns; None says it on stderr and to systemd."""
        self._descriptor = descriptor
        self._said = False

    @classmethod
    def foreground(cls) -> ReadyPipe:
        """For a server that runs in the foreground."""
        return cls(None)

    def ready(self, address: str) -> None:
        """Say that the server accepts calls.

        Args:
            address: `host:port`.
        """
        if self._said:
            return
        self._said = True
        if self._descriptor is None:
            _say(f"serving on {address} (pid {os.getpid()})")
            notify_systemd("READY=1")
        else:
            self._send(f"ok {address} {os.getpid()}\n")

    def failed(self, message: str) -> None:
        """Say why the server does not start; the caller then ends with a status other than 0.

        Args:
            message: for people, without a `gpusched:` in front.
        """
        if self._said:
            return
        self._said = True
        _say(message)  # in the background this is the log
        if self._descriptor is not None:
            self._send(f"error {message}")

    def _send(self, text: str) -> None:
        assert self._descriptor is not None
        data = text.encode("utf-8", "backslashreplace")
        # Who started us may have given up: then nobody needs to know.
        with suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]
        os.close(self._descriptor)
        self._descriptor = None


def detach(log_path: Path, timeout: float = 20.0) -> ReadyPipe:
    """Go on in a background process of its own session; the process that called waits for it and exits.

    In the background: stdin is empty, stdout and stderr go to the log, the working directory is `/`, files are made
    for their owner only, SIGHUP is ignored, and nothing that the caller had open is kept. (Where logind is told to
    kill users' processes at log-out, only a service or `loginctl enable-linger` outlives that.)

    Args:
        log_path: file to append to; its directory is made if need be.
        timeout: seconds that the background process has to call `ready` or `failed`; it is ended if it does not.

    Returns:
        What the background process has to call; in the calling process this never returns.
    """
    try:
        log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before anything is written: what another user has put there may lead anywhere.
        check_private(log_path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        log = _above_stdio(os.open(log_path, flags, 0o600))
    except StartRefused as error:
        _say(str(error))
        sys.exit(_EXIT_FAILED)
    except OSError as error:
        _say(f"cannot write the log {log_path}: {os.strerror(error.errno or 0)}; choose another --state-dir")
        sys.exit(_EXIT_FAILED)
    read_end, write_end = (_above_stdio(end) for end in os.pipe())
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    child = os.fork()
    if child:
        os.close(write_end)
        os.close(log)
        os.waitpid(child, 0)
        _wait_for_word(read_end, log_path, timeout)
    try:
        os.setsid()
        if os.fork():
            os._exit(0)  # so that what goes on does not lead the session, and never gets a terminal
        _settle_in_background(log, write_end)
        os.write(write_end, f"pid {os.getpid()}\n".encode())
    except BaseException as error:
        with suppress(OSError):
            os.write(write_end, f"error cannot go to the background: {error}".encode())
        os._exit(_EXIT_FAILED)
    return ReadyPipe(write_end)


def stop(state_dir: Path, timeout: float, address: str = "", named_by: str = "") -> int:
    """Ask the scheduler that uses a state directory to end, wait for that, and say how it went on stderr.

    Args:
        state_dir: the directory.
        timeout: seconds to wait.
        address: `host:port` of the one that is meant, empty for whichever it is.
        named_by: the flag or variable that says so.

    Returns:
        Exit status: 0 it has ended, 1 none runs, it is not the one that is meant or not ours to end, 3 it still runs
        after `timeout`.
    """
    try:
        running = read_running(state_dir)
        if running is None:
            _say(f"no scheduler runs with state directory {state_dir}")
            return _EXIT_FAILED
        if address and running.address and running.address != address:
            _say(
                f"{named_by} names a scheduler at {address}, but the one with state directory {state_dir} serves on "
                f"{running.address} (pid {running.pid}): nothing was stopped; give the other one's directory with "
                f"--state-dir or GPUSCHED_STATE_DIR, or stop this one with --url {running.address}"
            )
            return _EXIT_FAILED
        process = _open_process(state_dir, running)
        if process is None:
            return _EXIT_FAILED
    except OSError as error:
        _say(f"cannot look into state directory {state_dir}: {os.strerror(error.errno or 0)}")
        return _EXIT_FAILED
    named = f"the scheduler (pid {running.pid}{f', {running.address}' if running.address else ''})"
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(timeout * 1000):
            _say(f"{named} still runs {timeout:g} s after it was told to end; see its log, or: kill -9 {running.pid}")
            return _EXIT_STILL_RUNNING
    except ProcessLookupError:
        pass  # it ended by itself meanwhile
    except PermissionError:
        uid = process_uid(running.pid)
        owner = "another user" if uid is None else user_name(uid)
        _say(f"{named} belongs to {owner}; only its owner and root can stop it")
        return _EXIT_FAILED
    finally:
        os.close(process)
    _say(f"{named} has stopped")
    return _EXIT_OK


def notify_systemd(state: str) -> None:
    """Tell systemd something such as `READY=1`, if it started this process and wants to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
        try:
            client.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            _say(f"systemd cannot be told {state}: {error}")


def _settle_in_background(log: int, ready: int) -> None:
    """Let go of everything that belongs to whoever started us."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    os.umask(0o077)
    nothing = _above_stdio(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    for number, source in enumerate((nothing, log, log)):
        os.dup2(source, number)
    # A pipe of the caller's, kept open, would let `$(gpusched serve --detach)` wait for ever.
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if number > 2 and number != ready:
            with suppress(OSError):  # the one that listed them
                os.close(number)
    # Line by line, so that the log shows what happened before a crash; also where the caller had closed them.
    sys.stdin = _stream(0, "r")
    sys.stdout = _stream(1, "w")
    sys.stderr = _stream(2, "w")


def _stream(descriptor: int, mode: str) -> IO[str]:
    return open(descriptor, mode, encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


def _wait_for_word(pipe: int, log_path: Path, timeout: float) -> NoReturn:
    """The rest of the process that called `detach`: hear how the start went, say so, and exit."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    heard = b""
    pid = 0
    try:
        while True:
            first, has_pid, word = heard.decode("utf-8", "replace").partition("\n")
            if has_pid and first.startswith("pid "):
                pid = int(first[4:])
            if word.startswith("ok ") and word.endswith("\n"):
                _, address, server = word.split()
                _say(f"serving on {address} (pid {server}, log {log_path})")
                sys.exit(_EXIT_OK)
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                _end(pid)
                _say(f"the scheduler did not begin to serve within {timeout:g} s and was stopped; see {log_path}")
                sys.exit(_EXIT_FAILED)
            data = os.read(pipe, 65536)
            if not data:
                break
            heard += data
    except KeyboardInterrupt:
        _end(pid)
        sys.exit(_EXIT_INTERRUPTED)
    _, found, message = heard.decode("utf-8", "replace").partition("error ")
    _say(message if found else f"the scheduler ended before it served; see {log_path}")
    sys.exit(_EXIT_FAILED)


def _above_stdio(descriptor: int) -> int:
    """The same file under a number above 2: those three may be free here, and will be replaced."""
    if descriptor > 2:
        return descriptor
    higher = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return higher


def _end(pid: int) -> None:
    """Kill a server that has not begun to serve. It has nothing to lose yet, and may not listen to anything less."""
    if pid:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _open_process(state_dir: Path, running: RunningServer) -> int | None:
    """A descriptor of the very process that holds the lock; None, said why, if there is no telling."""
    try:
        process = os.pidfd_open(running.pid) if running.pid else None
    except ProcessLookupError:
        process = None
    if process is not None:
        # With the descriptor open, the pid can no longer pass to another process unnoticed.
        if read_running(state_dir) == running and process_start_ticks(running.pid) == running.start_ticks:
            return process
        os.close(process)
    if read_running(state_dir) is None:
        _say(f"no scheduler runs with state directory {state_dir}")
    else:
        _say(
            f"the scheduler with state directory {state_dir} cannot be reached from here: it is just starting, "
            "or runs in another container; stop it there"
        )
    return None


def _say(message: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(f"gpusched: {message}", file=sys.stderr, flush=True)
