"""What happens to the engine: one immutable value each, handled by `Engine.handle`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from gpusched.scheduler.core.jobs import JobId, JobSpec
from gpusched.scheduler.core.model import Condition
from gpusched.scheduler.core.states import Outcome


@dataclass(frozen=True, slots=True)
class Submit:
    """Somebody asks for GPUs. Raises Invalid, NotSatisfiable, Exhausted."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Attach:
    """Another stream takes over a job's ticket; the end of the old one will mean nothing.

    A new secret replaces the old one where `token_hash` is given. Raises NotFound, Aborted.
    """

    job: JobId
    token_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Leave:
    """A stream ended, for whatever reason."""

    job: JobId
    attachment: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """A granted holder says that it is awake. Raises NotFound, Aborted."""

    job: JobId
    epoch: int


@dataclass(frozen=True, slots=True)
class Release:
    """A holder ends its own lease and says how its work ended. Raises NotFound, Aborted."""

    job: JobId
    epoch: int
    outcome: Outcome
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """A waiting job ends at once; a running one is told, and made to after the grace.

    Raises NotFound, NotSatisfiable.
    """

    job: JobId
    message: str


@dataclass(frozen=True, slots=True)
class Update:
    """Change what may be changed; None leaves it. Raises NotFound, NotSatisfiable."""

    job: JobId
    priority: int | None = None
    name: str | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at one device said."""

    uuid: str
    condition: Condition
    message: str = ""


@dataclass(frozen=True, slots=True)
class Observe:
    """Looks at devices. Of a leased device only a fault, and its end, count."""

    seen: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Take devices (and a node as a whole, if named) out of service. `reason` None puts them back."""

    devices: tuple[str, ...]
    reason: str | None
    node: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Start nothing new. `reason` None resumes."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class Pass:
    """Look who can start; asked for by `Engine.pass_wanted`, once for a burst of events."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but the passing of time."""


Event: TypeAlias = Submit | Attach | Leave | Confirm | Release | Cancel | Update | Observe | Drain | Pause | Pass | Tick
