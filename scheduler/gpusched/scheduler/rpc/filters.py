"""Which jobs a list or a watch is about."""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.states import Finished, Running, State
from gpusched.scheduler.rpc import convert
from gpusched.v1 import scheduler_pb2


@dataclass(frozen=True, slots=True)
class Filter:
    """All conditions hold together; an empty one holds always."""

    states: frozenset[State]
    user: str
    name: str
    node: str

    @classmethod
    def of(cls, message: scheduler_pb2.JobFilter) -> Filter:
        """Raises Invalid."""
        states = set()
        for number in message.states:
            if number not in convert.STATES_BACK:
                allowed = ", ".join(f"JOB_STATE_{state.name}" for state in State)
                raise Invalid(f"filter.states: {number} is no job state; allowed are {allowed}", field="filter.states")
            states.add(convert.STATES_BACK[number])
        if not states:
            states = set(State) if message.include_ended else {State.QUEUED, State.RUNNING}
        return cls(frozenset(states), message.user, message.name.lower(), message.node)

    @property
    def wants_ended(self) -> bool:
        return any(state.final for state in self.states)

    def matches(self, job: Job, pool: Pool) -> bool:
        return (
            job.state in self.states
            and self.user in ("", job.spec.owner.name, str(job.spec.owner.uid))
            and (not self.name or self.name in job.name.lower())
            and (not self.node or self.node in _nodes(job, pool))
        )


def _nodes(job: Job, pool: Pool) -> set[str]:
    """Where a job has or had its GPUs; of one that waits, the node that it asks for."""
    lease = job.status.lease if isinstance(job.status, Running | Finished) else None
    if lease is None:
        return {job.request.node}
    # A device may be gone since.
    return {device.info.node for uuid in lease.devices if (device := pool.devices.get(uuid)) is not None}
