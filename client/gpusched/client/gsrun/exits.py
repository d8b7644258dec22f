"""Exit codes of gsrun itself, for when there is no exit status of a command to pass on. Told in docs/gsrun.md."""

from __future__ import annotations

USAGE = 2
"""A wrong option or value, or a request that this machine can never meet."""
NO_SERVER = 69
"""No scheduler answers, none could be started, or what answers is not (this) gpusched. EX_UNAVAILABLE."""
NO_GPUS_NOW = 75
"""Not granted: `--immediate` and none free, `--max-wait` passed, queue full. Trying again may help. EX_TEMPFAIL."""
LEASE_LOST = 76
"""The scheduler took the lease back while the command ran; the command was ended."""
NOT_ALLOWED = 77
"""The scheduler refuses this user, or this user refuses the scheduler's. EX_NOPERM."""
TIME_LIMIT = 124
"""The command reached its `--time` and was ended, as timeout(1) says it."""
OWN_FAILURE = 125
"""gsrun failed, or one of its processes was killed; the command was ended."""
CANNOT_EXECUTE = 126
"""The command was found and cannot be run, as shells say it."""
NOT_FOUND = 127
"""The command was not found, as shells say it."""
CANCELLED = 143
"""Somebody cancelled the job: the command was ended by SIGTERM, or had not started."""


def for_signal(number: int) -> int:
    """The exit code that stands for death by a signal, as shells have it."""
    return 128 + number
