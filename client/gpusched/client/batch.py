"""Batch jobs from Python: `submit(["python", "train.py"], gpus=2).result()`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from gpusched.client import batch_calls, views
from gpusched.client.api import Client
from gpusched.client.batch_calls import JobFailed, Patience, checked_result
from gpusched.client.errors import GpuschedError, ServerUnavailable
from gpusched.client.fields import in_parameters
from gpusched.client.submission import Submission

__all__ = ["JobFailed", "SubmittedJob", "submit"]


def submit(command: Sequence[str], *, url: str | None = None, **options: Any) -> SubmittedJob:
    """Queue a command that the scheduler runs; it goes on without this process.

    Args:
        command: the program and its arguments; no shell runs it.
        url: the scheduler's address; one is started here if none runs at the default address.
        options: the other attributes of `submission.Submission`: gpus, gpu_memory, gpu_model, nodes, gpu_ids, exclude,
            labels, gpus_per_node, placement, priority, name, time_limit, environment, workdir, output,
            retries, backoff, retry_on, requeue, after, begin, hold, grace,
            estimate, preemptible, signal.

    Returns:
        The job, safe from a power loss.

    Raises:
        UsageError: a value is malformed.
        GpuschedError: the scheduler refuses, or does not answer.
    """
    request = Submission(command=command, **options).request()
    client = Client(batch_calls.ready_address(url))
    try:
        job = Patience(time.monotonic, time.sleep).call(lambda: client._call(batch_calls.submit(request)))
    except GpuschedError as error:
        client.close()
        raise in_parameters(error) from None
    except BaseException:
        client.close()
        raise
    return SubmittedJob(client, job.id)


class SubmittedJob:
    """A batch job. Its methods outlast a restart of the scheduler.

    Args:
        client: through which it is looked at; closed by `close()` or the end of a `with` block.
        job_id: which one; `SubmittedJob(Client(), "17")` takes up any job.
    """

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = str(job_id)

    def __repr__(self) -> str:
        return f"<SubmittedJob {self.id} at {self._client.address}>"

    def __enter__(self) -> SubmittedJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the job goes on."""
        self._client.close()

    def status(self) -> views.Job:
        """All about it, as it is now."""
        return self._client.job(self.id)

    def wait(self, timeout: float | None = None) -> views.Job:
        """Until it has ended.

        Args:
            timeout: seconds, None for ever.

        Raises:
            TimeoutError: it has not ended by then.
            GpuschedError: the scheduler is away for more than a minute, or does not know the job (any more).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        patience = Patience(time.monotonic, time.sleep)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"job {self.id} has not ended within {timeout:g} s")
            try:
                job = self._until_ended(left, patience)
            except ServerUnavailable as error:
                patience.suffer(error)
                continue
            if job is not None:
                return job

    def result(self, timeout: float | None = None) -> views.Job:
        """Until it has completed with exit status 0; raises JobFailed if it ends otherwise, and what `wait` raises."""
        return checked_result(self.wait(timeout))

    def logs(self, *, follow: bool = False, tail: int = 0, attempt: int = 0) -> Iterator[bytes]:
        """What its command wrote, stdout and stderr together, piece by piece.

        Args:
            follow: go on until the job has ended.
            tail: only the last lines; 0 for all.
            attempt: of this run; 0 for the newest.

        Raises:
            GpuschedError: there is no output (yet), it is not ours to read, or the scheduler does not answer.
        """
        offset: int | None = None
        patience = Patience(time.monotonic, time.sleep)
        while True:
            try:
                for piece in self._client._stream(batch_calls.logs(self.id, follow, tail, attempt, offset)):
                    patience.relax()
                    attempt, offset = piece.attempt, piece.offset + len(piece.data)
                    yield piece.data
                return
            except ServerUnavailable as error:
                if not follow or offset is None:
                    raise
                patience.suffer(error)

    def cancel(self, reason: str = "") -> views.Job:
        """End it; a run is told first and has a while to end by itself."""
        return self._client.cancel(self.id, reason)

    def _until_ended(self, left: float | None, patience: Patience) -> views.Job | None:
        """The job when it has ended, None when the time is up."""
        call = batch_calls.wait(self.id)
        running = self._client._stubs.method(call)(call.request, timeout=left)
        return batch_calls.last_of_wait(running, call, self._client.address, patience.relax)
