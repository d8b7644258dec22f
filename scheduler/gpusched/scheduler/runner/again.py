"""When a supervisor may take another run: only if nothing of the last one shows in what the next command would inherit.

A command runs as its supervisor's user, and could have changed what it inherits: by `renice`, `taskset`, `prlimit` and
the like on its parent. What only a process itself can change (environment, working directory, umask, signals,
descriptors) is as the supervisor sets it for each run.
"""

from __future__ import annotations

import os
import resource

MOST_RUNS = 50
"""Runs of one supervisor."""
MOST_RUN_BYTES = 64 * 1024
"""A run that takes more as a message gets a supervisor of its own."""
IDLE_SECONDS = 1.0
"""So long the agent keeps a supervisor that has nothing to do."""
MOST_IDLE = 32

_LIMITS = tuple(sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")}))
_FILES = ("/proc/self/oom_score_adj", "/proc/self/cgroup")


def heritage() -> tuple[object, ...]:
    """What a command inherits from this process that others can change."""
    return (
        *map(resource.getrlimit, _LIMITS),
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getscheduler(0),
        os.sched_getaffinity(0),
        *map(_content, _FILES),
    )


def _content(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)
