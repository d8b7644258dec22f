"""Processes of this machine, as /proc tells. Linux only, standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


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
