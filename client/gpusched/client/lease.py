"""A lease as its user sees it: GPUs, variables, notices, and whether it is still held."""

from __future__ import annotations

import html
import os
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from typing import NoReturn

from gpusched.client.errors import GpuschedError, LeaseLost
from gpusched.client.lease_views import AllocatedGpu, Notice
from gpusched.client.session import Session
from gpusched.client.units import format_size


class BaseLease:
    """GPUs that are ours. Made by `acquire`; the sync and the async lease add `release()`.

    Attributes:
        id: the lease's id.
        job_id: the job that it belongs to, as `gpusched job` takes it.
        address: the scheduler's address.
        gpus: what was granted, in the order of CUDA_VISIBLE_DEVICES.
        env: the variables for work under the lease; for a subprocess: `env=os.environ | lease.env`.
        granted_at: when it began; None if unknown.
        expires_at: when the time limit ends; None without a limit.
        nested: True when it is part of an outer lease, which goes on after it.
    """

    def __init__(
        self,
        *,
        lease_id: str,
        job_id: str,
        address: str,
        gpus: tuple[AllocatedGpu, ...],
        env: Mapping[str, str],
        granted_at: datetime | None = None,
        expires_at: datetime | None = None,
        session: Session | None = None,
        nested: bool = False,
    ) -> None:
        self.id = lease_id
        self.job_id = job_id
        self.address = address
        self.gpus = gpus
        self.env = dict(env)
        self.granted_at = granted_at
        self.expires_at = expires_at
        self.nested = nested
        self._session = session
        self._deadline: float | None = None  # beside the session's: where the lease is part of one that goes on longer
        self._owner_pid = os.getpid()
        self._released = threading.Event()
        self._inner: list[BaseLease] = []  # nested leases of this process that use our GPUs

    @property
    def notices(self) -> tuple[Notice, ...]:
        """All notices so far, oldest first."""
        return self._session.notices if self._session else ()

    @property
    def lost(self) -> bool:
        """Whether the lease was taken away. A lease that was released is not lost."""
        return self._session is not None and self._session.lost is not None

    @property
    def released(self) -> bool:
        """Whether it was given back by us."""
        return self._released.is_set()

    def check(self) -> None:
        """Call it now and then in a long loop.

        Raises:
            LeaseLost: if the lease was taken away, or its time limit has passed (reason TIME_LIMIT).
            GpuschedError: if it was given back (reason RELEASED), or in a forked child, which has no part in the lease.
        """
        self._refuse_in_child()
        session = self._session
        if session is not None and session.lost is not None:
            raise _fresh(session.lost)
        if self.released:
            raise GpuschedError(
                "this lease was given back, and its GPUs may be somebody else's by now; acquire() again",
                reason="RELEASED",
            )
        now = time.monotonic()
        if session is not None and session.deadline is not None and now >= session.deadline:
            raise LeaseLost(
                "the time limit of this lease is over; the scheduler takes its GPUs back shortly", reason="TIME_LIMIT"
            )
        if self._deadline is not None and now >= self._deadline:
            raise LeaseLost(
                f"the time limit of this part of job {self.job_id} is over; the job itself goes on", reason="TIME_LIMIT"
            )

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait in this thread until the lease is lost, at most `timeout` seconds; tells whether it is.

        One that belongs to another process (inside `gsrun`) is never lost here: the wait ends when it is given back.
        """
        if self._session is None:
            self._released.wait(timeout)
            return False
        return self._session.lost_event.wait(timeout)

    def __len__(self) -> int:
        return len(self.gpus)

    def __repr__(self) -> str:
        state = "lost" if self.lost else "released" if self.released else "held"
        gpus = ", ".join(str(gpu.index) if gpu.index >= 0 else gpu.uuid for gpu in self.gpus)
        return f"<Lease of job {self.job_id}: {f'GPU {gpus}' if gpus else 'no GPU'} ({state})>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        rows = "".join(
            f"<tr><td>{gpu.index}</td><td>{html.escape(gpu.model)}</td><td>{format_size(gpu.memory_bytes)}</td>"
            f"<td>{html.escape(gpu.node)}</td><td><code>{html.escape(gpu.uuid)}</code></td></tr>"
            for gpu in self.gpus
        )
        state = "lost" if self.lost else "released" if self.released else "held"
        head = "<tr><th>GPU</th><th>model</th><th>memory</th><th>node</th><th>uuid</th></tr>"
        table = f"<table>{head}{rows}</table>" if rows else ": no GPU"
        return f"<b>gpusched</b> job {html.escape(self.job_id)} ({state}){table}"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lease belongs to the process that acquired it and cannot be sent to another; send lease.env")

    def _refuse_in_child(self) -> None:
        if os.getpid() != self._owner_pid:
            raise GpuschedError(
                f"this lease belongs to process {self._owner_pid}; a forked child ({os.getpid()}) works under it, but "
                "cannot check or release it"
            )


def _fresh(error: LeaseLost) -> LeaseLost:
    """A copy to raise: one exception object raised in several places collects all their tracebacks."""
    return LeaseLost(str(error), reason=error.reason, field=error.field)
