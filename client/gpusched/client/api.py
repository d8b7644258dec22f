"""The client for looking at and steering the scheduler: `with Client() as client: client.jobs()`."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar

import grpc

from gpusched.client import calls, views
from gpusched.client.address import server_address
from gpusched.client.admin import fetch_token
from gpusched.client.calls import CALL_SECONDS, Call, States
from gpusched.client.errors import PermissionDenied
from gpusched.client.notebook import show
from gpusched.client.serveruser import check_server_user, listener_uid
from gpusched.client.transport import failure, open_channel

T = TypeVar("T")


class Client:
    """A connection to the scheduler; it is made at the first call, and never starts a scheduler.

    Every method raises GpuschedError, by its subclasses: ServerUnavailable when nobody answers, PermissionDenied for
    what is not ours to do, JobNotFound, InvalidRequest and so on. What needs the administrator's token fetches it,
    where the caller may have it.

    Args:
        url: `host:port`; default `GPUSCHED_URL`, `GPUSCHED_PORT`, or 127.0.0.1:9123.
        timeout: seconds that an answer may take.

    Raises:
        UsageError: if the address is none.
        ServerRefused: if `GPUSCHED_SERVER_USER` does not list the server's user.
    """

    def __init__(self, url: str | None = None, *, timeout: float = CALL_SECONDS) -> None:
        self.address = server_address(url)
        self._timeout = calls.checked_timeout(timeout)
        check_server_user(self.address, lambda text: show(f"gpusched: note: {text}\n"))
        self._channel = open_channel(self.address)
        self._stubs = calls.Stubs(self._channel)

    def close(self) -> None:
        """Close the connection; watches end with ServerUnavailable."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def status(self) -> views.Status:
        """Who answers, and a count of everything."""
        return self._call(calls.status())

    def jobs(
        self, *, states: States = (), user: str = "", name: str = "", include_ended: bool = False, node: str = ""
    ) -> list[views.Job]:
        """Jobs that match all of this: running ones first, then the queue in its order, then ended ones, newest first.

        Args:
            states: only these; empty for all that have not ended, or all with `include_ended`.
            user: only this user's.
            name: only those whose name contains this.
            include_ended: with those in the history.
            node: only those on this node.
        """
        filter = calls.job_filter(states, user, name, include_ended, node)
        jobs, token = self._call(calls.jobs_page(filter, ""))
        while token:
            more, token = self._call(calls.jobs_page(filter, token))
            jobs += more
        return jobs

    def job(self, job_id: str) -> views.Job:
        """One job, with its history."""
        return self._call(calls.job(job_id))

    def watch_jobs(
        self,
        job_id: str = "",
        *,
        states: States = (),
        user: str = "",
        name: str = "",
        include_ended: bool = False,
        node: str = "",
    ) -> Iterator[views.JobsChange]:
        """All matching jobs, then those that change, for as long as it is iterated; one job's watch ends with it."""
        filter = calls.job_filter(states, user, name, include_ended, node)
        return self._stream(calls.watch_jobs(job_id, filter))

    def gpus(self, node: str = "") -> list[views.Gpu]:
        """GPUs with their last readings; of one node, or all."""
        return self._call(calls.gpus(node))

    def watch_gpus(self, node: str = "") -> Iterator[list[views.Gpu]]:
        """GPUs now, and again at each change or reading, for as long as it is iterated."""
        return self._stream(calls.watch_gpus(node))

    def nodes(self) -> list[views.Node]:
        """Machines with GPUs."""
        return self._call(calls.nodes())

    def explain(self, job_id: str) -> views.Explanation:
        """Why a job waits."""
        return self._call(calls.explain(job_id))

    def cancel(self, job_id: str, reason: str = "") -> views.Job:
        """End a job. One that runs is told first, and has a while to end by itself; the reason is shown to it."""
        return self._call(calls.cancel(job_id, reason))

    def set_priority(self, job_id: str, priority: int) -> views.Job:
        """Move a job to another tier, -100 to 100, higher first."""
        return self._call(calls.set_priority(job_id, priority))

    def drain(self, gpu: str | int | None = None, *, node: str | None = None, reason: str = "") -> list[views.Gpu]:
        """Take a GPU (uuid, index or node:index) or a node out of service; running jobs keep it until their end."""
        return self._call(calls.drain(gpu, node, reason))

    def undrain(self, gpu: str | int | None = None, *, node: str | None = None) -> list[views.Gpu]:
        """Put a GPU or a node back into service."""
        return self._call(calls.undrain(gpu, node))

    def pause(self, reason: str = "") -> None:
        """Start nothing new; the reason is shown to all who wait."""
        self._call(calls.pause(reason))

    def resume(self) -> None:
        """The opposite of `pause`."""
        self._call(calls.resume())

    def _call(self, call: Call[T]) -> T:
        method = self._stubs.method(call)
        try:
            return call.read(method(call.request, timeout=self._timeout))
        except grpc.RpcError as error:
            refusal = failure(error, self.address)
        if not calls.wants_administrator(refusal):
            raise refusal
        try:
            token = fetch_token(self.status().admin_socket, listener_uid(self.address))
        except PermissionDenied:
            raise refusal from None
        try:
            metadata = (("authorization", f"Bearer {token}"),)
            return call.read(method(call.request, timeout=self._timeout, metadata=metadata))
        except grpc.RpcError as error:
            raise failure(error, self.address) from None

    def _stream(self, call: Call[T]) -> Iterator[T]:
        running: Any = self._stubs.method(call)(call.request)
        try:
            for message in running:
                yield call.read(message)
        except grpc.RpcError as error:
            raise failure(error, self.address) from None
        finally:
            running.cancel()


def connect(url: str | None = None, *, timeout: float = CALL_SECONDS) -> Client:
    """A `Client`, after the scheduler has answered; raises GpuschedError if it does not."""
    client = Client(url, timeout=timeout)
    try:
        client.status()
    except BaseException:
        client.close()
        raise
    return client
