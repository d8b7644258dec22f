"""What happens to the engine: one immutable value each, handled by `Engine.handle`."""

from __future__ import annotations

from typing import TypeAlias

from gpusched.scheduler.core.batch import Usage
from gpusched.scheduler.core.jobs import JobId, JobSpec
from gpusched.scheduler.core.model import Condition, Holder
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.states import Outcome, State
from gpusched.scheduler.core.values import value


@value
class Submit:
    """Somebody asks for GPUs, or for a command to be run. Raises Invalid, NotSatisfiable, NotFound, Exhausted.

    `ended` has the states of jobs that it follows and that the engine has forgotten.
    """

    spec: JobSpec
    ended: tuple[tuple[int, State], ...] = ()


@value
class Attach:
    """Another stream takes over a job's ticket; the end of the old one will mean nothing.

    A new secret and a new holder process, where given, replace the old ones. Raises NotFound, Aborted.
    """

    job: JobId
    token_hash: bytes = b""
    holder: Holder | None = None


@value
class Leave:
    """A stream ended, for whatever reason."""

    job: JobId
    attachment: int


@value
class Confirm:
    """A granted holder says that it is awake. Raises NotFound, Aborted."""

    job: JobId
    epoch: int


@value
class Release:
    """A holder ends its own lease and says how its work ended. Raises NotFound, Aborted."""

    job: JobId
    epoch: int
    outcome: Outcome
    timed_out: bool = False
    usage: Usage | None = None


@value
class Cancel:
    """A waiting job ends at once; a running one is told, and made to after the grace.

    Raises NotFound, NotSatisfiable.
    """

    job: JobId
    message: str


@value
class Update:
    """Change what may be changed; None leaves it. Raises NotFound, NotSatisfiable."""

    job: JobId
    priority: int | None = None
    name: str | None = None
    held: bool | None = None
    time_limit: float | None = None
    by: str = ""


@value
class NotStarted:
    """A batch job's supervisor could not be started, or was killed; nothing is left of its command."""

    job: JobId
    epoch: int
    message: str


@value
class Requeue:
    """End a batch job's run and queue it again. Raises NotFound, NotSatisfiable."""

    job: JobId
    message: str


@value
class Force:
    """An administrator moves a job by hand, along a legal move. Raises NotFound, NotSatisfiable."""

    job: JobId
    state: State
    message: str


@value
class Halt:
    """State cannot be saved: start nothing, take nothing on. `reason` None goes on."""

    reason: str | None


@value
class Seen:
    """What a look at one device said. `taken`: of a shared one, jobs and the bytes that their processes have of it."""

    uuid: str
    condition: Condition
    message: str = ""
    taken: tuple[tuple[int, int], ...] = ()


@value
class Observe:
    """Looks at devices. Of a leased device only a fault, and its end, count."""

    seen: tuple[Seen, ...]


@value
class Drain:
    """Take devices (and a node as a whole, if named) out of service. `reason` None puts them back."""

    devices: tuple[str, ...]
    reason: str | None
    node: str = ""


@value
class Pause:
    """Start nothing new. `reason` None resumes."""

    reason: str | None


@value
class SetPolicy:
    """Order the queue anew, and let others pass than before. Waiting jobs keep their numbers and times.

    `kept` is the policy as text that is to be there after a restart, None for what the configuration says then.
    """

    policy: PolicySettings
    kept: str | None = None


@value
class Pass:
    """Look who can start; asked for by `Engine.pass_wanted`, once for a burst of events."""


@value
class Tick:
    """Nothing but the passing of time."""


Event: TypeAlias = (
    Submit
    | Attach
    | Leave
    | Confirm
    | Release
    | Cancel
    | Update
    | NotStarted
    | Requeue
    | Force
    | Halt
    | Observe
    | Drain
    | Pause
    | SetPolicy
    | Pass
    | Tick
)
