"""What the processes below this one use."""

from __future__ import annotations

import os
import resource

import psutil

_UNSURE_KIB = 1024  # the kernel counts pages of each CPU by themselves, and adds them up now and then


def memory_below(root: int) -> int:
    """Bytes of memory that all processes below one have resident.

    Pages that processes may share (files, shared memory) are counted once, for the process that has most of them;
    what forked processes share as copy-on-write cannot be told apart and is counted for each.
    """
    private, most_shared = 0, 0
    try:
        below = psutil.Process(root).children(recursive=True)
    except psutil.Error:
        return 0
    for process in below:
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue  # ended meanwhile
        private += max(0, memory.rss - memory.shared)
        most_shared = max(most_shared, memory.shared)
    return private + most_shared


class Meter:
    """Watches what the children of this process use."""

    def __init__(self) -> None:
        self._inherited = 0
        self._peak = 0
        self._cpu_before = 0.0

    def started(self) -> None:
        """A child was started this moment.

        The kernel counts the memory of the process that forked as that of the one that was executed: only what is
        more than ours is the child's for sure.
        """
        self._inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + _UNSURE_KIB
        self._cpu_before = _cpu_of_children()

    def sample(self) -> None:
        """Look at the memory once."""
        self._peak = max(self._peak, memory_below(os.getpid()))

    def cpu(self) -> float:
        """Seconds of all children that were started and reaped since, and of all that they waited for."""
        return _cpu_of_children() - self._cpu_before

    def peak_memory_bytes(self) -> int:
        """The most that was seen, 0 for what was too short and too small to be.

        Where it is not 0, later children of this process cannot be told from it.
        """
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return max(self._peak, largest * 1024 if largest > self._inherited else 0)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
