"""Small logs and short ways to replay them."""

from __future__ import annotations

from collections.abc import Sequence

from gpusched.scheduler.core.model import NodeInfo
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.simulate.replay import Estimate, Events, replay, settings_for
from gpusched.scheduler.simulate.workload import LoggedJob, Seconds, flat_pool


def job(number: int, submit: Seconds, run: Seconds, gpus: int, requested: Seconds | None = None) -> LoggedJob:
    return LoggedJob(0, number, submit, run, gpus, requested, "u")


def starts(
    jobs: Sequence[LoggedJob],
    nodes: int | tuple[NodeInfo, ...],
    order: str = "fifo",
    backfill: str = "none",
    *,
    candidates: str = "queue",
    estimate: Estimate = Estimate.EXACT,
    events: Events = Events.TOGETHER,
) -> list[Seconds]:
    """When each of them starts."""
    policy = PolicySettings(order, backfill, candidates)
    pool = flat_pool(nodes) if isinstance(nodes, int) else nodes
    settings = settings_for(policy)
    return replay(jobs, pool, settings, estimate=estimate, events=events).starts
