"""What the driver needs from the outside world, as protocols; `main` chooses who provides it."""

from __future__ import annotations

from typing import Protocol

from gpusched.scheduler.core.model import DeviceReading, Holder, NodeInfo, Owner, ProcessReading


class InventoryError(Exception):
    """The GPUs of this machine cannot be listed; the message says why and what to do, for people."""


class Inventory(Protocol):
    """The GPUs. Every method may be called from a worker thread, one call at a time for each GPU."""

    @property
    def mode(self) -> str:
        """`real` or `simulated`."""

    @property
    def blocking(self) -> bool:
        """True when calls may take long, and are to be made off the event loop, with a time-out."""

    def discover(self) -> tuple[NodeInfo, ...]:
        """All nodes with their GPUs; called once at start. Raises InventoryError."""

    def read(self, uuid: str) -> DeviceReading:
        """A full reading of one GPU. A sick GPU gives a reading with `fault`, never an exception."""

    def processes(self, uuid: str) -> tuple[ProcessReading, ...]:
        """Only what sits on one GPU: the quick look before it is handed on. Raises OSError if it cannot tell."""

    def released(self, uuid: str, owner: Owner, holder: Holder | None) -> None:
        """A lease on the GPU ended (a simulation lets the holder's process linger; hardware needs no telling)."""

    def clear_fault(self, uuid: str) -> None:
        """Believe a GPU that it is well again, until it shows otherwise (an administrator put it back into service)."""

    def close(self) -> None:
        """Let go of the driver library."""
