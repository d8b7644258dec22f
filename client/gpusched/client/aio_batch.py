"""The same for asyncio: `await (await submit(["python", "train.py"])).result()`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import grpc

from gpusched.client import batch_calls, views
from gpusched.client.aio_client import Client
from gpusched.client.batch_calls import RETRY_EVERY, JobFailed, Patience, checked_result, has_ended
from gpusched.client.errors import GpuschedError, ServerUnavailable
from gpusched.client.fields import in_parameters
from gpusched.client.submission import Submission
from gpusched.client.transport import failure

__all__ = ["JobFailed", "SubmittedJob", "submit"]


async def submit(command: Sequence[str], *, url: str | None = None, **options: Any) -> SubmittedJob:
    """Queue a command that the scheduler runs. See `gpusched.client.batch.submit`."""
    request = Submission(command=command, **options).request()
    address = await asyncio.to_thread(batch_calls.ready_address, url)
    client = Client(address)
    patience = Patience(time.monotonic)
    try:
        while True:
            try:
                job = await client._call(batch_calls.submit(request))
                return SubmittedJob(client, job.id)
            except ServerUnavailable as error:
                patience.suffer(error)
                await asyncio.sleep(RETRY_EVERY)
    except GpuschedError as error:
        await client.close()
        raise in_parameters(error) from None
    except BaseException:
        await client.close()
        raise


class SubmittedJob:
    """A batch job. Its methods outlast a restart of the scheduler. See `gpusched.client.batch.SubmittedJob`."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = str(job_id)

    def __repr__(self) -> str:
        return f"<SubmittedJob {self.id} at {self._client.address}>"

    async def __aenter__(self) -> SubmittedJob:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the job goes on."""
        await self._client.close()

    async def status(self) -> views.Job:
        """All about it, as it is now."""
        return await self._client.job(self.id)

    async def wait(self) -> views.Job:
        """Until it has ended (`asyncio.timeout` bounds it). Raises GpuschedError."""
        patience = Patience(time.monotonic)
        call = batch_calls.wait(self.id)
        while True:
            job: views.Job | None = None
            running: Any = self._client._stubs.method(call)(call.request)
            try:
                async for message in running:
                    patience.relax()
                    job = call.read(message)
            except grpc.RpcError as error:
                told = failure(error, self._client.address)
                if not isinstance(told, ServerUnavailable):
                    raise told from None
                patience.suffer(told)
                await asyncio.sleep(RETRY_EVERY)
            finally:
                running.cancel()
            if job is not None and has_ended(job):
                return job

    async def result(self) -> views.Job:
        """Until it has completed with exit status 0; raises JobFailed if it ends otherwise, and what `wait` raises."""
        return checked_result(await self.wait())

    async def logs(self, *, follow: bool = False, tail: int = 0, attempt: int = 0) -> AsyncIterator[bytes]:
        """What its command wrote, piece by piece. See `gpusched.client.batch.SubmittedJob.logs`."""
        offset: int | None = None
        patience = Patience(time.monotonic)
        while True:
            try:
                async for piece in self._client._stream(batch_calls.logs(self.id, follow, tail, attempt, offset)):
                    patience.relax()
                    attempt, offset = piece.attempt, piece.offset + len(piece.data)
                    yield piece.data
                return
            except ServerUnavailable as error:
                if not follow or offset is None:
                    raise
                patience.suffer(error)
                await asyncio.sleep(RETRY_EVERY)

    async def cancel(self, reason: str = "") -> views.Job:
        """End it; a run is told first and has a while to end by itself."""
        return await self._client.cancel(self.id, reason)
