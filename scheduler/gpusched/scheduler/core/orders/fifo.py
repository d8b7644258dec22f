"""First in, first out, whatever the priority."""

from __future__ import annotations

from gpusched.scheduler.core.orders.base import Order


class Fifo(Order):
    """The order of arrival."""
