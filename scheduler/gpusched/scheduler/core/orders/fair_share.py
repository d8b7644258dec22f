"""Those who have had less than their share go first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from gpusched.scheduler.core.fairshare import ShareTree, UsageBook
from gpusched.scheduler.core.orders.base import Lane, Order

if TYPE_CHECKING:
    from gpusched.scheduler.core.jobs import Job


class FairShare(Order):
    """Tier, then the user's fair-share factor, then arrival.

    Args:
        book: what everybody has used.
        tree: what share is due to whom.
    """

    single = False

    def __init__(self, book: UsageBook, tree: ShareTree) -> None:
        self._book = book
        self._tree = tree

    def lane(self, job: Job) -> Lane:
        return (-job.priority, job.spec.owner.name)

    def arrange(self, lanes: Iterable[Lane], now: float) -> list[Lane]:
        waiting = [cast("tuple[int, str]", lane) for lane in lanes]
        users = {*self._book.users(), *(user for _, user in waiting)}
        factors = self._tree.factors({user: self._book.used(user, now) for user in sorted(users)})
        # Names last, so that users who are equal keep one order.
        return [*sorted(waiting, key=lambda lane: (lane[0], -factors[lane[1]], lane[1]))]
