"""Who a process is, from /proc: owner, name, start time and the chain of its ancestors."""

from __future__ import annotations

import functools
import pwd
from dataclasses import dataclass
from pathlib import Path

from gpusched.scheduler.core.model import ProcessReading

PROC = Path("/proc")

# The kernel cuts names off here; longer ones are completed from the command line.
_COMM_LENGTH = 15
_WALK_ATTEMPTS = 3
_DEEPEST_CHAIN = 1024


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says: name as the kernel keeps it, parent, start in clock ticks since boot."""

    pid: int
    command: str
    ppid: int
    start_ticks: int


def parse_stat(text: str) -> Stat:
    """Read one line of /proc/PID/stat. The name may itself hold spaces and parentheses, so the last `)` ends it.

    Raises ValueError for a line that is not of that form.
    """
    opening, closing = text.find("("), text.rfind(")")
    if opening < 0 or closing < opening:
        raise ValueError(f"not a line of /proc/PID/stat: {text[:80]!r}")
    after = text[closing + 1 :].split()
    try:
        # Counted from field 3, the state: field 4 is the parent, field 22 the start time.
        return Stat(int(text[:opening]), text[opening + 1 : closing], int(after[1]), int(after[19]))
    except IndexError:
        raise ValueError(f"too short for a line of /proc/PID/stat: {text[:80]!r}") from None


def read_stat(pid: int, root: Path = PROC) -> Stat | None:
    """The process's stat line, or None if there is no such process in this PID namespace."""
    try:
        return parse_stat(_read(root / str(pid) / "stat"))
    except (OSError, ValueError):
        return None


def ancestors(pid: int, root: Path = PROC) -> tuple[tuple[int, int], ...]:
    """(pid, start_ticks) of the process, its parent and so on up to pid 1; empty if there is no such process.

    A parent that dies during the walk hands its child to another one, so a broken walk is made again.
    """
    chain: tuple[tuple[int, int], ...] = ()
    for _ in range(_WALK_ATTEMPTS):
        chain, complete = _walk(pid, root)
        if complete or not chain:
            break
    return chain


def describe(pid: int, memory_bytes: int = 0, root: Path = PROC) -> ProcessReading:
    """A process on a GPU, by its pid.

    Args:
        pid: as the driver named it; it may be of another PID namespace, or gone already.
        memory_bytes: what it holds on the GPU, 0 if unknown.
        root: where the proc file system is.

    Returns:
        The reading; user, command and ancestors stay unknown where /proc does not have the process.
    """
    stat = read_stat(pid, root)
    if stat is None:
        return ProcessReading(pid=pid, memory_bytes=memory_bytes)
    uid = _real_uid(pid, root)
    return ProcessReading(
        pid=pid,
        start_ticks=stat.start_ticks,
        uid=uid,
        user=user_name(uid) if uid >= 0 else "?",
        command=_full_name(stat, root),
        memory_bytes=memory_bytes,
        ancestors=ancestors(pid, root),
    )


@functools.lru_cache(maxsize=1024)
def user_name(uid: int) -> str:
    """The user's log-in name, or the number itself where nobody has a name for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _walk(pid: int, root: Path) -> tuple[tuple[tuple[int, int], ...], bool]:
    """The chain as far as it could be followed, and whether it reached the top."""
    chain: list[tuple[int, int]] = []
    youngest = None
    while pid > 0 and len(chain) < _DEEPEST_CHAIN:
        stat = read_stat(pid, root)
        # A "parent" younger than its child is a stranger that got the dead parent's pid.
        if stat is None or (youngest is not None and stat.start_ticks > youngest):
            return tuple(chain), False
        chain.append((pid, stat.start_ticks))
        youngest, pid = stat.start_ticks, stat.ppid
    return tuple(chain), True


def _full_name(stat: Stat, root: Path) -> str:
    name = stat.command
    if len(name.encode()) >= _COMM_LENGTH:
        try:
            first = _read(root / str(stat.pid) / "cmdline").split("\0", 1)[0]
        except OSError:
            first = ""
        program = first.rsplit("/", 1)[-1]
        if program.startswith(name) and len(program) <= 64:
            name = program
    # Processes name themselves: nothing that moves a terminal's cursor may pass.
    return "".join(c if c.isprintable() else "?" for c in name) or "?"


def _real_uid(pid: int, root: Path) -> int:
    # Not the owner of the folder /proc/PID: that is root for processes that may not be dumped.
    try:
        for line in _read(root / str(pid) / "status").splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass  # gone in between, or hidden by the mount option hidepid
    return -1


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")
