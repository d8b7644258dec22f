"""Orders of the queue, by name. A new one is a file here and a line below."""

from __future__ import annotations

from gpusched.scheduler.core.fairshare import ShareTree, UsageBook
from gpusched.scheduler.core.orders.base import Order
from gpusched.scheduler.core.orders.fair_share import FairShare
from gpusched.scheduler.core.orders.fifo import Fifo
from gpusched.scheduler.core.orders.priority import Priority
from gpusched.scheduler.core.orders.sjf import ShortestFirst
from gpusched.scheduler.core.policy import PolicySettings


def make_order(policy: PolicySettings, book: UsageBook) -> Order:
    """The order that a policy names.

    Args:
        policy: its knobs.
        book: what everybody has used so far.
    """
    match policy.order:
        case "fifo":
            return Fifo()
        case "priority":
            return Priority(policy.aging)
        case "sjf":
            return ShortestFirst(policy.starvation)
        case "fair_share":
            return FairShare(book, ShareTree(dict(policy.shares)))
        case _:
            raise AssertionError(f"there is no order {policy.order}")
