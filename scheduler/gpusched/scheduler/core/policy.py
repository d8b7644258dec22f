"""How the queue is ordered and who may pass whom: the knobs of a policy, and what may be set."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.fairshare import ShareTree

#: Orders by their names; an alias stands for the same order.
ORDERS = ("fifo", "priority", "sjf", "fair_share")
ALIASES = {"fcfs": "fifo"}
BACKFILLS = ("none", "easy", "conservative")
CANDIDATES = ("queue", "sjbf")
#: Most reservations that a pass keeps.
MAX_DEPTH = 64
#: Longest time of any knob, in seconds: ten years.
MAX_SECONDS = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Quota:
    """What a user, or all users of an account together, may have at a time.

    Attributes:
        name: a user, or an account of `PolicySettings.shares` with a slash at its end ("physics/").
        gpus: at most so many GPUs, 0 for any number.
        jobs: at most so many running jobs, 0 for any number.
    """

    name: str
    gpus: int = 0
    jobs: int = 0


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """One policy. Immutable; a change of policy is another value.

    Attributes:
        order: who is next: one of ORDERS.
        backfill: who may go before a job that must wait: one of BACKFILLS.
        candidates: whom backfill tries first: jobs in the queue's order, or ("sjbf") the shortest limit first.
        depth: how many waiting jobs that would compete have a reservation under "easy" (a count, from 1).
        freeze_bypasses: a job passed so often is passed only by those that end before it can start, 0 for never.
        freeze_wait: the same for one that has waited so long (seconds), 0 for never.
        aging: under "priority", seconds of waiting that are worth one tier, 0 for none.
        starvation: under "sjf", seconds after which a job goes before all shorter ones of its tier, 0 for never.
        half_life: under "fair_share", seconds in which past use counts half.
        shares: under "fair_share", (path, shares) of users and accounts; see `fairshare.ShareTree`.
        preemption: a waiting job may end preemptible ones of lower tiers.
        preempt_after: seconds that a job runs at least before it may be preempted.
        preempt_grace: seconds from the word that a job is preempted until its lease is taken.
        preempt_most: how often one job may be preempted (a count), 0 for any number.
        user_gpus: GPUs that each user may hold at a time, 0 for any number.
        user_jobs: jobs that each user may have running, 0 for any number.
        quotas: what holds for particular users and accounts instead.
        borrow: a user may have more than his GPUs while nobody else waits for them.
    """

    order: str = "priority"
    backfill: str = "easy"
    candidates: str = "queue"
    depth: int = 1
    freeze_bypasses: int = 0
    freeze_wait: float = 0.0
    aging: float = 86400.0
    starvation: float = 0.0
    half_life: float = 7 * 86400.0
    shares: tuple[tuple[str, float], ...] = ()
    preemption: bool = False
    preempt_after: float = 600.0
    preempt_grace: float = 60.0
    preempt_most: int = 3
    user_gpus: int = 0
    user_jobs: int = 0
    quotas: tuple[Quota, ...] = ()
    borrow: bool = False

    def __post_init__(self) -> None:
        order = ALIASES.get(self.order, self.order)
        if order not in ORDERS:
            known = ", ".join((*ORDERS, *(f"{alias} (= {name})" for alias, name in ALIASES.items())))
            raise Invalid(f"policy.order: there is no policy {self.order!r}; there are: {known}", field="policy.order")
        object.__setattr__(self, "order", order)
        _one_of("policy.backfill", self.backfill, BACKFILLS)
        _one_of("policy.candidates", self.candidates, CANDIDATES)
        if not 1 <= self.depth <= MAX_DEPTH:
            raise Invalid(f"policy.depth: {self.depth} is not from 1 to {MAX_DEPTH}", field="policy.depth")
        if self.freeze_bypasses < 0:
            text = f"policy.freeze_bypasses: {self.freeze_bypasses} is below 0 (0 = never)"
            raise Invalid(text, field="policy.freeze_bypasses")
        for name in ("preempt_most", "user_gpus", "user_jobs"):
            if getattr(self, name) < 0:
                raise Invalid(f"policy.{name}: {getattr(self, name)} is below 0 (0 = no limit)", field=f"policy.{name}")
        for quota in self.quotas:
            if not quota.name or quota.gpus < 0 or quota.jobs < 0:
                what = f"{quota.name!r} with {quota.gpus} GPUs and {quota.jobs} jobs"
                raise Invalid(f"policy.quotas: {what}; give a name, and 0 or more of both", field="policy.quotas")
        names = [quota.name for quota in self.quotas]
        for name in names:
            if names.count(name) > 1:
                raise Invalid(f"policy.quotas: {name!r} is named twice", field="policy.quotas")
            if name.endswith("/") and not any(path.startswith(name) for path, _ in self.shares):
                text = f"policy.quotas: there is no account {name!r}; accounts are those of policy.shares"
                raise Invalid(text, field="policy.quotas")
        for name in ("freeze_wait", "aging", "starvation", "preempt_after", "preempt_grace"):
            _seconds(f"policy.{name}", getattr(self, name), zero=True)
        _seconds("policy.half_life", self.half_life, zero=False)
        ShareTree(dict(self.shares))


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Invalid(f"{field}: {value!r} is none of {', '.join(allowed)}", field=field)


def _seconds(field: str, value: float, *, zero: bool) -> None:
    if not isfinite(value) or value < 0 or value > MAX_SECONDS or (value == 0 and not zero):
        allowed = f"{'from' if zero else 'above'} 0 s, and at most {MAX_SECONDS / 86400 / 365:g} years"
        raise Invalid(f"{field}: {value:g} is not allowed; it must be {allowed}", field=field)
