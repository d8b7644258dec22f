"""What the engine changed since it was last saved: gathered as it happens, taken by the driver as one batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpusched.scheduler.core.jobs import HistoryLine, Job, JobId
from gpusched.scheduler.core.records import LeaseRecord


@dataclass(slots=True)
class Changes:
    """
    Attributes:
        jobs: whose record is out of date.
        events: new lines of history, in order: whose, what, and in which of its runs.
        ended: (epoch, when) of leases that ended.
        leases: new ones that have not ended since.
        settings: values by key, None for removed.
        sync: something here is acknowledged only when it is safe from a power loss.
    """

    jobs: dict[JobId, Job] = field(default_factory=dict)
    events: list[tuple[JobId, HistoryLine, int]] = field(default_factory=list)
    ended: list[tuple[int, float]] = field(default_factory=list)
    leases: list[LeaseRecord] = field(default_factory=list)
    settings: dict[str, str | None] = field(default_factory=dict)
    sync: bool = False

    def __bool__(self) -> bool:
        return bool(self.jobs or self.events or self.ended or self.leases or self.settings)

    def before(self, later: Changes) -> Changes:
        """These, and then later ones, as one (these could not be saved)."""
        return Changes(
            self.jobs | later.jobs,
            self.events + later.events,
            self.ended + later.ended,
            self.leases + later.leases,
            self.settings | later.settings,
            self.sync or later.sync,
        )
