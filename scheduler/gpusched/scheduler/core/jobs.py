"""A job: one request for GPUs, from its acceptance to its final state."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

from gpusched.scheduler.core.batch import Attempt, BatchSpec
from gpusched.scheduler.core.errors import IllegalMove
from gpusched.scheduler.core.model import Holder, Owner, Request
from gpusched.scheduler.core.orders.base import Key, Lane
from gpusched.scheduler.core.states import LEGAL_MOVES, Finished, Gate, Lease, Queued, Running, State, Status
from gpusched.scheduler.core.values import value

JobId = NewType("JobId", int)

#: Lines of history kept per job.
HISTORY_LINES = 50


class Kind(Enum):
    INTERACTIVE = "interactive"
    BATCH = "batch"


@value
class JobSpec:
    """What a user asks: everything about a job that is known before it is accepted.

    Attributes:
        time_limit: seconds the work may take, None for no limit.
        max_wait: seconds it may wait in the queue, None for ever.
        immediate: end it at once if it cannot start.
        auto_confirm: a grant needs no confirmation.
        token_hash: hash of the secret that re-attaches to it.
        request_id: the client's own id for the call, against duplicates; empty for none.
        batch: the command and how it is run, None for interactive work.
        estimate: seconds the work is expected to take, None if the user does not say.
        preemptible: it may be ended for a job of a higher tier.
        signal: (name, seconds) of the signal that it gets so long before it is ended for another, such as
            ("USR1", 60.0); None for none.
    """

    owner: Owner
    request: Request
    name: str = ""
    priority: int = 0
    command: tuple[str, ...] = ()
    kind: Kind = Kind.INTERACTIVE
    time_limit: float | None = None
    max_wait: float | None = None
    immediate: bool = False
    auto_confirm: bool = False
    holder: Holder | None = None
    token_hash: bytes = field(default=b"", repr=False)
    request_id: str = ""
    batch: BatchSpec | None = None
    estimate: float | None = None
    preemptible: bool = False
    signal: tuple[str, float] | None = None


#: Gates of jobs that are passed over for a moment, and whose turn may come at any other.
_STANDING = (Gate.UNCONFIRMED, Gate.REATTACH)


@value
class HistoryLine:
    at: float
    state: State
    message: str


@dataclass(slots=True, eq=False)
class Job:
    """A job that was accepted. Only the engine changes it."""

    id: JobId
    spec: JobSpec
    submitted_at: float
    priority: int
    name: str
    status: Status
    token_hash: bytes = field(default=b"", repr=False)
    #: The process at the other end of its stream, where known.
    holder: Holder | None = None
    #: Counts the streams that held this ticket; the end of an older one means nothing.
    attachment: int = 1
    #: Set while somebody asked a running job to end: what to say, and when it will be made to.
    cancelling: tuple[str, float] | None = None
    #: Set while it is to make room for another job: what to say, and when its lease is taken.
    preempting: tuple[str, float] | None = None
    #: How often it was told so.
    preempted: int = 0
    #: Seconds its work may take, None for no limit.
    time_limit: float | None = None
    #: Runs of a batch job: so far, failed ones, and ones lost in a row.
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    #: Its owner does not want it started.
    held: bool = False
    #: Not to be started before: begin time, or the pause after a failure.
    not_before: float | None = None
    #: Jobs that it follows and that have not ended.
    unmet: set[int] = field(default_factory=set)
    #: The run under way is to be queued again when it ends.
    requeue_asked: bool = False
    #: Parts of the window for coming back that passed without a sign of its holder, over restarts in a row.
    missed: int = 0
    history: list[HistoryLine] = field(default_factory=list)
    #: Seconds its work is expected to take, as far as anybody can say.
    expected: float | None = None
    #: It has waited so long that the order lets it go first.
    starved: bool = False
    #: How often a later job has gone before it while it had a promise.
    bypassed: int = 0
    #: Its place in the queue, set by the queue: lane, and key within it.
    lane: Lane = ()
    key: Key = ()

    @property
    def state(self) -> State:
        return self.status.state

    @property
    def request(self) -> Request:
        return self.spec.request

    @property
    def lease(self) -> Lease | None:
        """What it holds now."""
        return self.status.lease if isinstance(self.status, Running) else None

    @property
    def awake(self) -> bool:
        """It waits, and nothing keeps it from being considered."""
        status = self.status
        return type(status) is Queued and status.gate is None

    @property
    def in_line(self) -> bool:
        """It waits for its turn: not for its owner's word, a time, or the end of another job."""
        status = self.status
        return type(status) is Queued and (status.gate is None or status.gate in _STANDING)

    def move(self, status: Status, at: float, message: str) -> HistoryLine:
        """Go to another state, along the table of legal moves. Returns the new line of its history.

        Raises:
            IllegalMove: the table has no such edge; the text has the job's recent history.
        """
        old, new = self.status.state, status.state
        if new not in LEGAL_MOVES[old] and not (old is new and isinstance(status, Queued | Running)):
            recent = "; ".join(f"{line.at:.3f} {line.state.name} {line.message}" for line in self.history[-8:])
            raise IllegalMove(
                f"job {self.id}: {old.name} -> {new.name} is no legal move ({message}); history: {recent}"
            )
        self.status = status
        return self.note(at, message)

    def note(self, at: float, message: str) -> HistoryLine:
        """Add a line to the history without a change of state. Returns it."""
        line = HistoryLine(at, self.status.state, message)
        history = self.history
        history.append(line)
        if len(history) > HISTORY_LINES:
            # The first line (how it came to be) is worth more than the second.
            del history[1]
        return line

    def gate_at(self, now: float) -> Gate | None:
        """What keeps it from being considered, of all that it knows itself."""
        if self.held:
            return Gate.HELD
        if self.unmet:
            return Gate.DEPENDENCY
        if self.not_before is not None and now < self.not_before:
            return Gate.BACKOFF if self.attempt else Gate.BEGIN_TIME
        return None

    @property
    def started_at(self) -> float | None:
        match self.status:
            case Running():
                return self.status.lease.granted_at
            case Finished(lease=Lease(granted_at=at)):
                return at
            case _:
                return None
