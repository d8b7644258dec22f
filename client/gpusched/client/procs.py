"""Processes of this machine, as /proc tells. Linux only, standard library only."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

_TO_MAIN_THREAD = 1  # PIDFD_SIGNAL_THREAD


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process (a zombie counts as one)."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def parent(pid: int) -> int | None:
    """The parent's process id; None if there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZX"


def ancestors(pid: int) -> Iterator[int]:
    """The process itself, its parent, and so on up to pid 1, as far as they can be seen."""
    seen: set[int] = set()
    current: int | None = pid
    while current and current not in seen:
        seen.add(current)
        yield current
        current = parent(current)


def has_open(pid: int, path: str) -> bool:
    """Whether a process has the file open; False if that cannot be seen."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    if os.readlink(entry.path) == path:  # noqa: PTH115 (a Path per descriptor is what costs)
                        return True
                except OSError:
                    continue  # closed meanwhile
    except OSError:
        pass
    return False


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command name, state first."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The name is in parentheses and may itself hold spaces and parentheses.
    return text[text.rindex(")") + 2 :].split()


def send_if_caught(pid: int, ticks: int, name: str) -> str:
    """Send a process a signal that it has a handler for; what came in between, in words, or nothing.

    Args:
        pid, ticks: the process, and when it started: its number may be another's by now.
        name: of the signal, without SIG.
    """
    from gpusched.client.gsrun.limit import has_handler  # the helper process alone comes here

    number = getattr(signal, f"SIG{name}", None)
    if not isinstance(number, signal.Signals):
        return "this system has no such signal"
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return "the process has ended"
    except OSError:
        process = -1  # a kernel before 5.3
    try:
        if start_ticks(pid) != ticks:
            return "the process has ended"
        if not has_handler(pid, number):
            return f"process {pid} has no handler for it"
        if process < 0:
            os.kill(pid, number)
            return ""
        try:
            # To the main thread alone, which is where Python runs handlers: another one that takes the signal leaves
            # a main thread that waits in a system call asleep.
            signal.pidfd_send_signal(process, number, None, _TO_MAIN_THREAD)
        except OSError:
            signal.pidfd_send_signal(process, number)  # a kernel before 6.9
    except OSError as error:
        return str(error.strerror)
    finally:
        if process >= 0:
            os.close(process)
    return ""
