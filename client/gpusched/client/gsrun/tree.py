"""The processes below one process: finding them all, and ending them all.

Whoever ends a tree here is a child subreaper, so whatever the tree's processes do (fork, daemonise, call setsid), an
orphan becomes its child: as long as it has a child left, something is left, and when it has none, nothing is.
"""

# Without pathlib, gsrun starts quicker.
# ruff: noqa: PTH110, PTH208
from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.05


class Process:
    """A process, told from a later one with the same id by its start time (clock ticks since boot)."""

    __slots__ = ("dead", "name", "parent", "pid", "start_ticks", "state")

    def __init__(self, pid: int, parent: int, state: str, threads: int, start_ticks: int, name: str) -> None:
        self.pid = pid
        self.parent = parent
        self.state = state
        self.start_ticks = start_ticks
        self.name = name
        # Ended, and only waits to be reaped. A zombie with threads is one whose first thread alone has ended.
        self.dead = state in "ZX" and threads <= 1

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.start_ticks

    def __repr__(self) -> str:
        return f"Process({self.pid} {self.name!r} {self.state} of {self.parent})"


def look_up(pid: int) -> Process | None:
    """What the kernel says about a process now; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name is in parentheses and may itself hold any character.
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    if len(fields) < 20:
        return None
    name = head.partition(b"(")[2].decode("utf-8", "replace")
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[17]), int(fields[19]), name)


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process, by all of its threads; empty if it is gone."""
    found: list[int] = []
    tasks = f"/proc/{pid}/task"
    try:
        threads = os.listdir(tasks)
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"{tasks}/{thread}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
        except FileNotFoundError:
            if look_up(pid) is not None and not _kernel_lists_children():
                return children_by_scan(pid)
        except OSError:
            continue
    return found


def children_by_scan(pid: int) -> list[int]:
    """The same on a kernel that keeps no such list, from all processes."""
    return [process.pid for process in _all_processes() if process.parent == pid]


def descendants(root: int, excluded: Iterable[tuple[int, int]] = ()) -> list[Process]:
    """Everything below a process, parents before children, the dead who are not reaped yet included.

    Args:
        root: process id; not part of the answer.
        excluded: (pid, start ticks) of those that are left out, with all below them.
    """
    left_out = set(excluded)
    found: list[Process] = []
    seen = {root}
    todo = [root]
    while todo:
        for pid in children_of(todo.pop(0)):
            process = None if pid in seen else look_up(pid)
            if process is None or process.identity in left_out:
                continue
            seen.add(pid)
            found.append(process)
            todo.append(pid)
    return found


def is_ancestor(pid: int, start_ticks: int, of: int) -> bool:
    """Whether the process with this id and start time is `of` itself or above it."""
    process = look_up(of)
    for _ in range(10_000):  # a chain that long would be a loop
        if process is None:
            return False
        if process.pid == pid:
            return process.start_ticks == start_ticks
        if process.parent <= 0:
            return False
        process = look_up(process.parent)
    return False


def send_signal(process: Process, number: int) -> bool:
    """Signal exactly this process, never one that took over its id. False if it is not ours to signal."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        now = look_up(process.pid)
        if now is not None and now.start_ticks == process.start_ticks:
            signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    finally:
        os.close(fd)
    return True


def signal_all(processes: Iterable[Process], number: int) -> list[Process]:
    """Signal each of them; gives those that are not ours to signal (setuid programs)."""
    return [process for process in processes if not send_signal(process, number)]


def reap(on_ended: Callable[[int, int], None] | None = None) -> bool:
    """Collect all children that have ended, each told with its pid and wait status. False if none is left, dead or
    alive.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if on_ended is not None:
            on_ended(pid, status)


def kill_all(
    excluded: Iterable[tuple[int, int]] = (),
    on_stuck: Callable[[list[Process]], None] | None = None,
    stuck_after: float = 3.0,
    on_ended: Callable[[int, int], None] | None = None,
) -> list[Process]:
    """Kill everything below this process, a child subreaper, and wait until it is dead and reaped.

    Returns only when nothing is left that can be killed. What forks faster than one look is found by the next: the
    dead do not fork.

    Args:
        excluded: (pid, start ticks) of children that are none of ours, left alone with all below them.
        on_stuck: called once with what is left after `stuck_after` seconds (a driver that does not let go, say).
        on_ended: told the pid and wait status of each child that is reaped here.

    Returns:
        Those that are not ours to kill.
    """
    spared = set(excluded)
    stuck_at = time.monotonic() + stuck_after
    pause = _FIRST_PAUSE
    me = os.getpid()
    empty_looks = 0
    while True:
        seen = descendants(me, spared)
        out_of_reach = signal_all(seen, signal.SIGKILL)
        if not reap(on_ended):
            return []
        # The kernel's list of children may skip one while others end: one empty look proves nothing.
        empty_looks = empty_looks + 1 if len(seen) == len(out_of_reach) else 0
        if empty_looks == 3:
            return out_of_reach
        if on_stuck is not None and time.monotonic() > stuck_at:
            on_stuck(seen)
            on_stuck = None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def names_of(processes: Iterable[Process], limit: int = 5) -> str:
    """The names of processes for people: `python (3), sleep`."""
    counts: dict[str, int] = {}
    for process in processes:
        counts[process.name] = counts.get(process.name, 0) + 1
    shown = [f"{name} ({count})" if count > 1 else name for name, count in list(counts.items())[:limit]]
    return ", ".join(shown) + (", …" if len(counts) > limit else "")


def _kernel_lists_children() -> bool:
    """Whether this kernel has /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN)."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _all_processes() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := look_up(int(name))) is not None:
            yield process
