"""Who may hold how much at a time: GPUs and running jobs of users and accounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpusched.scheduler.core.errors import NotSatisfiable
from gpusched.scheduler.core.fairshare import ShareTree
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.policy import PolicySettings, Quota


@dataclass(frozen=True, slots=True)
class Excess:
    """A quota that a start would exceed.

    Attributes:
        quota: which one.
        held: GPUs, or running jobs, that count towards it now.
        jobs: it is the number of jobs that would be exceeded, else that of GPUs.
    """

    quota: Quota
    held: int
    jobs: bool

    @property
    def whose(self) -> str:
        """The user or the account that it holds for."""
        name = self.quota.name
        return f"account {name.rstrip('/')}" if name.endswith("/") else name

    def message(self, kept: Sequence[JobId] = ()) -> str:
        """In words: who has how much, and what is allowed.

        Args:
            kept: jobs for which GPUs are kept that count towards the quota.
        """
        names = ", ".join(str(each) for each in kept[:3])
        if self.jobs:
            too = f" or about to run (job {names})" if kept else ""
            return f"{self.whose} has {_counted(self.held, 'job')} running{too}, and may have {self.quota.jobs} (quota)"
        too = f", with those kept for job {names}" if kept else ""
        return f"{self.whose} holds {_counted(self.held, 'GPU')}{too}, and may have {self.quota.gpus} (quota)"


class Quotas:
    """What everybody holds, beside what he may. Made by `quotas_of`; knows nothing of what ran before."""

    def __init__(self, policy: PolicySettings) -> None:
        self._policy = policy
        self._tree = ShareTree(dict(policy.shares))
        self._named = {quota.name: quota for quota in policy.quotas}
        self._by_user: dict[str, tuple[Quota, ...]] = {}
        self._gpus: dict[str, int] = {}
        self._jobs: dict[str, int] = {}

    def group(self, job: Job) -> str:
        """What sets jobs with equal requests apart in a pass: their owners, who may hold different amounts."""
        return job.spec.owner.name

    def take(self, user: str, gpus: int) -> None:
        """A job of a user has got so many GPUs."""
        self._count(user, gpus, 1)

    def give_back(self, user: str, gpus: int) -> None:
        """A job of a user no longer has its GPUs."""
        self._count(user, -gpus, -1)

    def excess(self, user: str, gpus: int) -> Excess | None:
        """The quota that one more job with so many GPUs would exceed, None if it may start. Jobs come first."""
        applying = self.of(user)
        for quota in applying:
            running = self._jobs.get(quota.name, 0)
            if quota.jobs and running >= quota.jobs:
                return Excess(quota, running, jobs=True)
        for quota in applying:
            held = self._gpus.get(quota.name, 0)
            if quota.gpus and held + gpus > quota.gpus:
                return Excess(quota, held, jobs=False)
        return None

    def is_over(self, user: str) -> bool:
        """Whether a user has more now than he may, as when quotas were lowered."""
        return any(
            (quota.jobs and self._jobs.get(quota.name, 0) > quota.jobs)
            or (quota.gpus and self._gpus.get(quota.name, 0) > quota.gpus)
            for quota in self.of(user)
        )

    def check(self, user: str, gpus: int) -> None:
        """Refuse what would exceed a quota even if nothing of the user ran.

        Raises:
            NotSatisfiable: it would, and nothing may be borrowed.
        """
        if self._policy.borrow:
            return
        for quota in self.of(user):
            if quota.gpus and gpus > quota.gpus:
                whose = f"account {quota.name.rstrip('/')}" if quota.name.endswith("/") else user
                raise NotSatisfiable(
                    f"resources.gpus: {gpus} GPUs are more than {whose} may hold at a time, {quota.gpus} (quota)",
                    reason="QUOTA",
                    field="resources.gpus",
                )

    def of(self, user: str) -> tuple[Quota, ...]:
        """All that hold for a user: his own, and those of his accounts from the innermost out."""
        found = self._by_user.get(user)
        if found is None:
            policy = self._policy
            own = self._named.get(user) or Quota(user, policy.user_gpus, policy.user_jobs)
            names = self._tree.account(user).split("/")
            paths = ["/".join(names[:depth]) + "/" for depth in range(len(names), 0, -1)]
            applying = [own, *(self._named[path] for path in paths if path in self._named)]
            found = self._by_user[user] = tuple(quota for quota in applying if quota.gpus or quota.jobs)
        return found

    def _count(self, user: str, gpus: int, jobs: int) -> None:
        for quota in self.of(user):
            self._gpus[quota.name] = self._gpus.get(quota.name, 0) + gpus
            self._jobs[quota.name] = self._jobs.get(quota.name, 0) + jobs


def quotas_of(policy: PolicySettings) -> Quotas | None:
    """The quotas of a policy, None if it has none, so that nothing is counted in vain."""
    return Quotas(policy) if policy.user_gpus or policy.user_jobs or policy.quotas else None


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
