"""Raw gRPC calls for the tests of the service: nothing of the client library is between a test and the wire."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gpusched.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    job_pb2,
    resources_pb2,
    scheduler_pb2,
    scheduler_pb2_grpc,
    simulation_pb2,
    simulation_pb2_grpc,
)

#: Seconds that anything may take which should happen at once; long, because the machine may be busy.
PATIENCE = 15.0
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


@dataclass(frozen=True)
class Refusal:
    """How a call ended, with what its google.rpc details say."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    fields: tuple[str, ...] = ()
    details: tuple[Any, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, error: Any) -> Refusal:
        """From an AioRpcError or an ended call."""
        code, message = error.code(), error.details() or ""
        status = rpc_status.from_call(error)
        found: dict[str, Any] = {}
        details = []
        for packed in status.details if status is not None else ():
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
                if packed.Is(kind.DESCRIPTOR):
                    detail = kind()
                    packed.Unpack(detail)
                    details.append(detail)
                    if isinstance(detail, error_details_pb2.ErrorInfo):
                        found.update(reason=detail.reason, domain=detail.domain)
                    elif isinstance(detail, error_details_pb2.BadRequest):
                        found["fields"] = tuple(violation.field for violation in detail.field_violations)
        return cls(code, message, details=tuple(details), **found)


async def refusal(call: Any) -> Refusal:
    """Await a unary call that must fail, and give how."""
    try:
        answer = await asyncio.wait_for(call, PATIENCE)
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    raise AssertionError(f"was not refused: {answer}")


class StreamEnded(Exception):
    """The stream has no more events."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def parts(message: scheduler_pb2.AcquireResponse) -> list[scheduler_pb2.AcquireResponse]:
    """The acceptance and the event of a message, each as one of its own."""
    if not message.HasField("accepted"):
        return [message]
    first = scheduler_pb2.AcquireResponse(accepted=message.accepted)
    message.ClearField("accepted")
    return [first, message] if message.WhichOneof("event") else [first]


class Stream:
    """An Acquire stream, read event by event."""

    def __init__(self, client: Client, call: Any) -> None:
        self.client = client
        self.call = call
        self.seen: list[str] = []
        self.accepted = scheduler_pb2.Accepted()
        self.grant = scheduler_pb2.Granted()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        # A read that is cancelled by a time-out cancels the whole call, so a task of its own does the reading.
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for event in self.call:
                for one in parts(event):
                    self._events.put_nowait(one)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            self._events.put_nowait(None)

    async def next(self, timeout: float = PATIENCE) -> tuple[str, Any]:
        """Kind and content of the next event. Raises StreamEnded, TimeoutError."""
        async with asyncio.timeout(timeout):
            event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)
            code = await self.call.code()
            raise StreamEnded(Refusal.of(_Ended(code, await self.call.details(), await self.call.trailing_metadata())))
        kind = event.WhichOneof("event") or "accepted"
        self.seen.append(kind)
        content = getattr(event, kind)
        if kind == "accepted":
            self.accepted = content
        elif kind == "granted":
            self.grant = content
        return kind, content

    async def nothing_for(self, duration: float) -> None:
        """Fail if an event comes, or the stream ends, within some seconds."""
        try:
            async with asyncio.timeout(duration):
                event = await self._events.get()
        except TimeoutError:
            return
        raise AssertionError(f"unexpected: {event or await self.end()}")

    async def until(self, wanted: str, timeout: float = PATIENCE) -> Any:
        """The next event of a kind; others are passed over."""
        async with asyncio.timeout(timeout):
            while True:
                kind, content = await self.next(timeout)
                if kind == wanted:
                    return content

    async def queued_as(self, condition: Any, timeout: float = PATIENCE) -> scheduler_pb2.Queued:
        """The first state in the queue for which a condition holds."""
        async with asyncio.timeout(timeout):
            while True:
                content = await self.until("queued", timeout)
                if condition(content):
                    return content

    async def enter(self) -> scheduler_pb2.Accepted:
        """The first event, which must be the acceptance."""
        kind, _ = await self.next()
        assert kind == "accepted"
        return self.accepted

    async def granted(self, timeout: float = PATIENCE) -> scheduler_pb2.Granted:
        """Wait for the grant and confirm it."""
        grant = await self.until("granted", timeout)
        if grant.HasField("confirm_by"):
            await self.confirm()
        return grant

    async def confirm(self, **changes: Any) -> None:
        """Confirm the last grant."""
        await self.client.scheduler.Confirm(scheduler_pb2.ConfirmRequest(**(self.key | changes)), timeout=PATIENCE)

    def release(self, **changes: Any) -> Any:
        """The call that ends the lease."""
        return self.client.scheduler.Release(scheduler_pb2.ReleaseRequest(**(self.key | changes)), timeout=PATIENCE)

    @property
    def job_id(self) -> str:
        return self.accepted.job_id

    @property
    def indices(self) -> list[int]:
        return [gpu.index for gpu in self.grant.gpus]

    @property
    def key(self) -> dict[str, Any]:
        """What Confirm and Release ask for."""
        return {
            "job_id": self.accepted.job_id,
            "resume_token": self.accepted.resume_token,
            "epoch": self.grant.epoch,
        }

    async def end(self, timeout: float = PATIENCE) -> Refusal:
        """Read on to the end, and give how it ended."""
        async with asyncio.timeout(timeout):
            while True:
                try:
                    await self.next(timeout)
                except StreamEnded as ended:
                    return ended.refusal

    def cancel(self) -> None:
        self.call.cancel()


@dataclass(frozen=True)
class _Ended:
    """A finished call in the shape of an error, for `rpc_status.from_call`."""

    _code: grpc.StatusCode
    _details: str
    _trailing: Any

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


class Client:
    """One connection to a server.

    Args:
        address: host:port.
        token: an administrator's, sent with every call; empty for none.
    """

    def __init__(self, address: str, token: str = "") -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.scheduler = _Stub(scheduler_pb2_grpc.SchedulerStub(self.channel), self.metadata)
        self.admin = _Stub(admin_pb2_grpc.AdminStub(self.channel), self.metadata)
        self.simulation = _Stub(simulation_pb2_grpc.SimulationStub(self.channel), self.metadata)
        self._streams: list[Stream] = []

    def acquire(self, gpus: int = 1, **fields: Any) -> Stream:
        """Open an Acquire stream. Durations may be given in seconds."""
        for name in ("time_limit", "max_wait"):
            if isinstance(fields.get(name), int | float):
                fields[name] = seconds(fields[name])
        resources = {name: fields.pop(name) for name in ("gpu_memory_bytes", "gpu_model", "node") if name in fields}
        request = scheduler_pb2.AcquireRequest(
            resources=resources_pb2.ResourceRequest(gpus=gpus, **resources), **fields
        )
        return self.open(request)

    def open(self, request: scheduler_pb2.AcquireRequest) -> Stream:
        stream = Stream(self, self.scheduler.Acquire(request))
        self._streams.append(stream)
        return stream

    async def holder(self, gpus: int = 1, **fields: Any) -> Stream:
        """A stream with its GPUs, confirmed."""
        stream = self.acquire(gpus, **fields)
        await stream.enter()
        await stream.granted()
        return stream

    async def waiter(self, gpus: int = 1, **fields: Any) -> Stream:
        """A stream that has been told its place in the queue."""
        stream = self.acquire(gpus, **fields)
        await stream.enter()
        await stream.until("queued")
        return stream

    async def job(self, job_id: str) -> job_pb2.Job:
        answer = await self.scheduler.GetJob(scheduler_pb2.GetJobRequest(job_id=job_id), timeout=PATIENCE)
        return answer.job

    async def job_in(self, job_id: str, state: str, timeout: float = PATIENCE) -> job_pb2.Job:
        """The job once it is in a state, such as `LOST`."""
        wanted = job_pb2.JobState.Value(f"JOB_STATE_{state}")
        return await self.eventually(lambda: self.job(job_id), lambda job: job.state == wanted, timeout)

    async def gpus(self, **fields: Any) -> list[resources_pb2.Gpu]:
        return list((await self.scheduler.ListGpus(scheduler_pb2.ListGpusRequest(**fields), timeout=PATIENCE)).gpus)

    async def gpu(self, index: int) -> resources_pb2.Gpu:
        return (await self.gpus())[index]

    async def gpu_in(self, index: int, state: str, timeout: float = PATIENCE) -> resources_pb2.Gpu:
        """A GPU once it is in a state, such as `FREE`."""
        wanted = resources_pb2.GpuState.Value(f"GPU_STATE_{state}")
        return await self.eventually(lambda: self.gpu(index), lambda gpu: gpu.state == wanted, timeout)

    async def status(self) -> scheduler_pb2.GetStatusResponse:
        return await self.scheduler.GetStatus(scheduler_pb2.GetStatusRequest(), timeout=PATIENCE)

    async def simulate(self, gpu: str, **fields: Any) -> resources_pb2.Gpu:
        """Change a simulated GPU."""
        if isinstance(fields.get("linger"), int | float):
            fields["linger"] = seconds(fields["linger"])
        request = simulation_pb2.SetSimulatedGpuRequest(gpu=gpu, **fields)
        return (await self.simulation.SetSimulatedGpu(request, timeout=PATIENCE)).gpu

    async def cancel_job(self, job_id: str, reason: str = "") -> job_pb2.Job:
        request = scheduler_pb2.CancelJobRequest(job_id=job_id, reason=reason)
        return (await self.scheduler.CancelJob(request, timeout=PATIENCE)).job

    async def drain(self, gpu: str = "", node: str = "", reason: str = "") -> list[resources_pb2.Gpu]:
        request = admin_pb2.DrainRequest(target=_target(gpu, node), reason=reason)
        return list((await self.admin.Drain(request, timeout=PATIENCE)).gpus)

    async def undrain(self, gpu: str = "", node: str = "") -> list[resources_pb2.Gpu]:
        request = admin_pb2.UndrainRequest(target=_target(gpu, node))
        return list((await self.admin.Undrain(request, timeout=PATIENCE)).gpus)

    async def eventually(self, ask: Any, condition: Any, timeout: float = PATIENCE) -> Any:
        """Ask again and again until the answer is as wanted."""
        answer = await ask()
        deadline = asyncio.get_running_loop().time() + timeout
        while not condition(answer):
            assert asyncio.get_running_loop().time() < deadline, f"not within {timeout} s; last answer: {answer}"
            await asyncio.sleep(0.01)
            answer = await ask()
        return answer

    async def close(self) -> None:
        for stream in self._streams:
            stream.cancel()
        await self.channel.close()


class _Stub:
    """A stub whose calls all carry the same metadata."""

    def __init__(self, stub: Any, metadata: Any) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)

        def call(request: Any, **options: Any) -> Any:
            return method(request, **({"metadata": self._metadata} | options))

        return call


def seconds(value: float) -> duration_pb2.Duration:
    """A Duration."""
    whole = int(value)
    return duration_pb2.Duration(seconds=whole, nanos=round((value - whole) * 1e9))


async def until(condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """The first true value that a condition gives."""
    async with asyncio.timeout(timeout):
        while True:
            if value := condition():
                return value
            await asyncio.sleep(0.002)


async def admin_token(address: str) -> str:
    """The administrator's token, from the server's Unix socket."""
    client = Client(address)
    try:
        path = (await client.status()).admin_socket
    finally:
        await client.close()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(path)
        return connection.makefile("r").readline().strip()


def _target(gpu: str, node: str) -> admin_pb2.DrainTarget:
    return admin_pb2.DrainTarget(node=node) if node else admin_pb2.DrainTarget(gpu=gpu)
