"""What only batch jobs have: a command that the scheduler runs, tries again, and starts after other jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from gpusched.scheduler.core.states import Outcome, State

#: Pause before the first retry when the user names none, and the longest one, in seconds.
DEFAULT_BACKOFF = 10.0
MAX_BACKOFF = 3600.0
#: Seconds between the request to end and the kill when the user names none.
DEFAULT_GRACE = 15.0
#: A job whose runs are lost this many times in a row is not queued again: something about it kills its supervisor.
MAX_LOSSES = 5


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to run a failed job again.

    Attributes:
        max_retries: further runs after the first.
        backoff: seconds before the first retry; doubles with each further one, up to MAX_BACKOFF.
        exit_statuses: only after these, empty for any failure.
    """

    max_retries: int = 0
    backoff: float = DEFAULT_BACKOFF
    exit_statuses: frozenset[int] = frozenset()

    def pause_after(self, failures: int, outcome: Outcome) -> float | None:
        """Seconds to wait before the next run, None if there is none.

        Args:
            failures: failed runs so far, the one just ended included.
            outcome: how that one ended.
        """
        if failures > self.max_retries:
            return None
        if self.exit_statuses and outcome.exit_status not in self.exit_statuses:
            return None
        return min(self.backoff * 2.0 ** min(failures - 1, 60), MAX_BACKOFF)


class After(Enum):
    """What must have become of a job that another one follows."""

    OK = "ok"
    ANY = "any"
    FAILED = "failed"

    def satisfied_by(self, state: State) -> bool:
        """Whether a final state is what is waited for."""
        match self:
            case After.OK:
                return state is State.COMPLETED
            case After.ANY:
                return True
            case After.FAILED:
                return state is not State.COMPLETED
            case _:
                assert_never(self)


@dataclass(frozen=True, slots=True)
class Dependency:
    job: int
    after: After = After.OK


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used. CPU seconds are those of the command and all it waited for; 0 where not known."""

    wall: float = 0.0
    cpu: float = 0.0
    peak_memory_bytes: int = 0
    gpu_seconds: float = 0.0
    peak_gpu_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a batch job that has ended. The running one is told from the job's lease."""

    number: int
    started_at: float
    ended_at: float
    state: State
    outcome: Outcome
    devices: tuple[str, ...]
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """The command and how it is to be run.

    Attributes:
        environment: as (name, value); never shown.
        working_directory: absolute path.
        output_path: absolute path, where "%j" is the job's id and "%a" the attempt; empty for the scheduler's own.
        requeue: queue it again if a run is lost; one that is preempted is queued again in any case.
        begin_at: not before, on the engine's clock.
        grace: seconds between the request to end and the kill.
    """

    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    working_directory: str = ""
    output_path: str = ""
    retry: RetryPolicy = RetryPolicy()
    requeue: bool = False
    dependencies: tuple[Dependency, ...] = ()
    begin_at: float | None = None
    held: bool = False
    grace: float = DEFAULT_GRACE
