"""What the driver needs from the outside world, as protocols; `main` chooses who provides it."""

from __future__ import annotations

from typing import Protocol

from gpusched.scheduler.core.model import DeviceReading, Holder, NodeInfo, Owner, ProcessReading
from gpusched.scheduler.core.records import Batch, Boot, EventRecord, JobRecord


class InventoryError(Exception):
    """The GPUs of this machine cannot be listed; the message says why and what to do, for people."""


class StoreError(Exception):
    """State cannot be read or saved; the message says why and what to do, for people.

    Attributes:
        passing: trying again later may work (a full disk, a lock), as against a corrupt or foreign file.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class Store(Protocol):
    """Durable state. One server uses it at a time; calls may come from any thread.

    Every method may raise StoreError, and has then changed nothing.
    """

    def open(self) -> Boot:
        """Bring the schema up to date, count this start (synced), and read what has not ended."""

    def commit(self, batch: Batch) -> None:
        """Keep a batch in one transaction; with `batch.sync`, safe from power loss when it returns."""

    def job(self, job_id: int) -> JobRecord | None:
        """One job, ended or not."""

    def events(self, job_id: int) -> tuple[EventRecord, ...]:
        """A job's history, oldest first."""

    def ended_jobs(
        self,
        *,
        states: frozenset[str] = frozenset(),
        user: str = "",
        name: str = "",
        after: tuple[float, int] | None = None,
        limit: int = 100,
    ) -> tuple[JobRecord, ...]:
        """Ended jobs, newest first (by ended_at, then id).

        Args:
            states: only these; empty for all final ones.
            user: only this login name or decimal uid; empty for all.
            name: only names that contain this, case-insensitively.
            after: (ended_at, id) of the last one of the page before.
            limit: at most so many.
        """

    def count_ended(self, *, states: frozenset[str] = frozenset(), user: str = "", name: str = "") -> int:
        """How many `ended_jobs` would give in all."""

    def prune(self, before: float, limit: int = 1000) -> int:
        """Forget jobs that ended before a time (seconds since the epoch), with events and leases. Returns how many."""

    def check(self) -> list[str]:
        """Look for damage and contradictions. Returns a sentence for each, none if all is well."""

    def close(self) -> None:
        """Let go of the file."""


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
