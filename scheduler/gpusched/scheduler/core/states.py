"""Job states as data: what each one carries, and one table of legal moves."""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, TypeAlias

from gpusched.scheduler.core.values import value


class State(Enum):
    """Name of a job's state, as users see it."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    PREEMPTED = "preempted"
    LOST = "lost"

    # There is one of each: the hash of `Enum` goes by the name, in Python.
    __hash__ = object.__hash__

    @property
    def final(self) -> bool:
        return not LEGAL_MOVES[self]


#: From each state, the states that a job may go to next. Rendered into docs/architecture.md.
LEGAL_MOVES: dict[State, tuple[State, ...]] = {
    State.QUEUED: (State.RUNNING, State.CANCELLED, State.FAILED),
    State.RUNNING: (
        State.QUEUED,
        State.COMPLETED,
        State.FAILED,
        State.CANCELLED,
        State.TIMED_OUT,
        State.PREEMPTED,
        State.LOST,
    ),
    State.COMPLETED: (),
    State.FAILED: (),
    State.CANCELLED: (),
    State.TIMED_OUT: (),
    State.PREEMPTED: (),
    State.LOST: (),
}


#: An epoch has the server's (synced) count of starts above so many bits, and a running number below: it never goes
#: back, whatever a power loss takes.
EPOCH_BITS = 32


@value
class Lease:
    """A job's hold on particular GPUs.

    Attributes:
        epoch: fencing token; rises with every grant of this scheduler, ever.
        devices: uuids, in the order given to the holder.
        granted_at, confirm_by, expires_at: seconds of the engine's clock; None where there is no such time.
    """

    epoch: int
    devices: tuple[str, ...]
    granted_at: float
    confirm_by: float | None = None
    expires_at: float | None = None

    @property
    def id(self) -> str:
        """For people: start of the server and number within it."""
        return f"L{self.epoch >> EPOCH_BITS}.{self.epoch & ((1 << EPOCH_BITS) - 1)}"


@value
class Outcome:
    """How a job's work ended, as its holder or the engine tells."""

    exit_status: int | None = None
    signal: int = 0
    message: str = ""


class Gate(Enum):
    """What keeps a waiting job from being considered at all; it keeps its rank meanwhile."""

    UNCONFIRMED = "unconfirmed"  # it did not confirm a grant; until it answers
    REATTACH = "reattach"  # the server restarted; until its client is back
    HELD = "held"
    DEPENDENCY = "dependency"
    BEGIN_TIME = "begin time"
    BACKOFF = "backoff"


@value
class Queued:
    """Waiting. One with a gate keeps its rank and is passed over."""

    state: ClassVar[State] = State.QUEUED
    since: float
    gate: Gate | None = None

    @property
    def awake(self) -> bool:
        return self.gate is None


@value
class Running:
    state: ClassVar[State] = State.RUNNING
    since: float
    lease: Lease
    confirmed: bool


@value
class Finished:
    at: float
    state: State
    outcome: Outcome
    lease: Lease | None = None  # what it had, if it ever ran


Status: TypeAlias = Queued | Running | Finished


def moves_table() -> str:
    """The legal moves as a markdown table, for the docs."""
    rows = [
        f"| `{state.name}` | {', '.join(f'`{to.name}`' for to in moves) or 'final'} |"
        for state, moves in LEGAL_MOVES.items()
    ]
    return "\n".join(["| from | to |", "|---|---|", *rows])
