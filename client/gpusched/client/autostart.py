"""Start a scheduler on this machine when none runs: one, however many clients want it at once."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpusched.client.address import DEFAULT_HOST, split_address
from gpusched.client.errors import ServerUnavailable
from gpusched.client.usage import UsageError

_PROBE_SECONDS = 2.0
_LOCK_POLL_SECONDS = 0.05
_TAKEN = "uses the state directory"
"""What the scheduler says of one that was quicker."""
_TAKEN_SECONDS = 5.0
_SWITCH = dict.fromkeys(("", "1", "yes", "true", "on"), True) | dict.fromkeys(("0", "no", "false", "off"), False)
_NOTHING_LISTENS = (errno.ECONNREFUSED,)


class AutostartFailed(ServerUnavailable):
    """No scheduler ran and none could be started; the message has what it said."""


def state_dir() -> Path:
    """The state directory that a scheduler of this user has unless told otherwise."""
    if chosen := os.environ.get("GPUSCHED_STATE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "gpusched"


def ensure_server(address: str, say: Callable[[str], None], timeout: float = 20.0) -> None:
    """See to it that something listens at the address, by starting a scheduler if need be.

    Does nothing when the port accepts, when the address is not 127.0.0.1, or when `GPUSCHED_AUTOSTART` is `0`: the
    first call will then tell how things are.

    Args:
        address: `host:port`.
        say: called with one line, by the client that started the server and by no other.
        timeout: seconds in all, the wait for another client's start included.

    Raises:
        UsageError: if that variable cannot be meant.
        AutostartFailed: if the server could not be started; has its own words (no NVIDIA driver, say).
    """
    host, port = split_address(address)
    if not may_start(address) or _accepts(host, port):
        return
    deadline = time.monotonic() + timeout
    with _start_lock(host, port, deadline) as locked:
        if not locked or _accepts(host, port):
            return
        try:
            say(_start(address, deadline))
        except AutostartFailed as error:
            # `gpusched serve` by hand, this very moment: it has the state directory before it listens.
            if _TAKEN not in str(error) or not _begins_to_listen(host, port, deadline):
                raise


def may_start(address: str) -> bool:
    """Whether clients start a scheduler where none answers at the address. Raises UsageError."""
    return split_address(address)[0] == DEFAULT_HOST and _is_wanted()


def _is_wanted() -> bool:
    """What `GPUSCHED_AUTOSTART` says. Raises UsageError."""
    said = os.environ.get("GPUSCHED_AUTOSTART", "")
    wanted = _SWITCH.get(said.strip().lower())
    if wanted is None:
        raise UsageError("GPUSCHED_AUTOSTART", said, "give 0 (start no scheduler) or 1 (the default)")
    return wanted


def _accepts(host: str, port: int) -> bool:
    """Whether somebody listens. Only a refusal is a no: a listener too busy to answer is a listener."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        return probe.connect_ex((host, port)) not in _NOTHING_LISTENS


def _begins_to_listen(host: str, port: int, deadline: float) -> bool:
    """Whether somebody does within a few seconds."""
    patience = min(deadline, time.monotonic() + _TAKEN_SECONDS)
    while not _accepts(host, port):
        if time.monotonic() > patience:
            return False
        time.sleep(_LOCK_POLL_SECONDS)
    return True


@contextmanager
def _start_lock(host: str, port: int, deadline: float) -> Iterator[bool]:
    """Hold the lock that lets one client start the server; False if meanwhile the port began to accept."""
    directory = state_dir()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / f"autostart-{port}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AutostartFailed(
            f"no scheduler answers at {host}:{port}, and none can be started: {error.strerror}: {error.filename} "
            "(GPUSCHED_STATE_DIR names another directory)"
        ) from None
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise AutostartFailed(f"cannot lock {directory}: {error.strerror}") from None
            else:
                yield True
                return
            if _accepts(host, port):
                yield False
                return
            if time.monotonic() > deadline:
                raise AutostartFailed(
                    f"no scheduler answers at {host}:{port}, and another client that is starting one has not "
                    f"finished (look for `gpusched serve` and at the log in {directory})"
                )
            time.sleep(_LOCK_POLL_SECONDS)
    finally:
        os.close(descriptor)


def _start(address: str, deadline: float) -> str:
    """Run `serve --detach`, which returns when the server serves; gives the line to say."""
    # Costs start-up time, which those who find a running scheduler need not pay.
    import subprocess
    import tempfile

    host, port = split_address(address)
    command = [sys.executable, "-P", "-m", "gpusched.scheduler", "serve", "--detach", "--port", str(port)]
    # A file, not a pipe: the detached server may keep its end open for ever.
    with tempfile.TemporaryFile() as output:
        try:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=max(1.0, deadline - time.monotonic()),
                start_new_session=True,
                check=False,
            ).returncode
            failure = "" if status == 0 else f"it ended with status {status}"
        except subprocess.TimeoutExpired:
            failure = "it took too long"
        except OSError as error:
            failure = f"{command[0]}: {error.strerror}"
        output.seek(0)
        said = output.read().decode("utf-8", "replace").strip()
    if not failure and not _accepts(host, port):
        failure = "it said that it serves, but nothing listens"
    if failure:
        words = "\n".join(line.removeprefix("gpusched: ") for line in said.splitlines()[-10:]) or failure
        raise AutostartFailed(f"no scheduler answers at {address}, and one could not be started: {words}")
    details = re.search(r"\(pid \d+.*\)", said)
    return f"gpusched: no scheduler was running; started one on {address}{f' {details[0]}' if details else ''}"
