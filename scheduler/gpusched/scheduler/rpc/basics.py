"""The small conversions that the larger ones share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2

from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.jobs import JobId, Kind
from gpusched.scheduler.core.model import DeviceInfo, Placement, Request
from gpusched.scheduler.core.sharing import Grant
from gpusched.scheduler.core.states import Outcome, State
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2

STATES = {state: job_pb2.JobState.Value(f"JOB_STATE_{state.name}") for state in State}
STATES_BACK = {number: state for state, number in STATES.items()}
#: Only requests up to this size, in bytes, are remembered.
_KNOWN_BYTES = 256
#: Of a GPU that is gone since (an old job's), the uuid is all that is known.
_UNKNOWN = DeviceInfo("", -1, "", "", 0)
KINDS = {kind: job_pb2.JobKind.Value(f"JOB_KIND_{kind.name}") for kind in Kind}

PLACEMENTS = {each: resources_pb2.Placement.Value(f"PLACEMENT_{each.name}") for each in Placement}
PLACEMENTS_BACK = {number: each for each, number in PLACEMENTS.items()} | {0: Placement.PACK}
#: Seconds between the signal before a preemption and its end, for who does not say.
DEFAULT_NOTICE = 60.0
_PLACEMENT_NAMES = [f"PLACEMENT_{each.name}" for each in Placement]


# -- from the wire -----------------------------------------------------------------------------------------


def job_id(text: str, field: str = "job_id") -> JobId:
    """Raises Invalid."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Invalid(f"{field}: {text[:40]!r} is no job id; ids are whole numbers such as 17", field=field)
    return JobId(int(text))


def seconds(message: Any, field: str) -> float | None:
    """A Duration in seconds, None if unset. Raises Invalid."""
    if not message.HasField(field):
        return None
    duration = getattr(message, field)
    if abs(duration.nanos) >= 10**9 or duration.seconds * duration.nanos < 0:
        raise Invalid(
            f"{field}: {duration.seconds} s and {duration.nanos} ns is no duration; nanos are from 0 to 999999999 and "
            "have the sign of seconds",
            field=field,
        )
    return float(duration.seconds) + float(duration.nanos) / 1e9


def signal_of(message: scheduler_pb2.AcquireRequest | scheduler_pb2.SubmitRequest) -> tuple[str, float] | None:
    """The signal before a preemption, as `JobSpec.signal` has it. Raises Invalid."""
    if not message.HasField("preempt_signal"):
        return None
    name = message.preempt_signal.name.strip().upper().removeprefix("SIG")
    before = seconds(message.preempt_signal, "before")
    return name, DEFAULT_NOTICE if before is None else before


def request_of(message: resources_pb2.ResourceRequest) -> Request:
    """Raises Invalid."""
    data = message.SerializeToString(deterministic=True)
    # Most jobs ask for what others have asked for.
    return _known_request(data) if len(data) <= _KNOWN_BYTES else _request_of(message)


@lru_cache(maxsize=1024)
def _known_request(data: bytes) -> Request:
    return _request_of(resources_pb2.ResourceRequest.FromString(data))


def _request_of(message: resources_pb2.ResourceRequest) -> Request:
    model = message.gpu_model.strip()
    placement = PLACEMENTS_BACK.get(message.placement)
    if placement is None:
        raise Invalid(
            f"resources.placement: {message.placement} is none; allowed are {', '.join(sorted(_PLACEMENT_NAMES))}",
            field="resources.placement",
        )
    return Request(
        gpus=message.gpus,
        memory_bytes=message.gpu_memory_bytes,
        model=model.lower(),
        node=message.node,
        nodes=_names(message.nodes),
        gpu_ids=_names(message.gpu_ids),
        exclude=_names(message.exclude),
        labels=tuple(sorted(message.labels.items())),
        per_node=message.gpus_per_node,
        placement=placement,
        shared=message.shared,
        cpus=message.cpus,
        host_bytes=message.memory_bytes,
        spelled_model=model,
    )


def _names(given: Iterable[str]) -> tuple[str, ...]:
    """In one order, so that equal requests compare equal."""
    return tuple(sorted(set(given)))


def outcome_of(message: job_pb2.Outcome) -> Outcome:
    """Raises Invalid."""
    status = message.exit_status if message.HasField("exit_status") else None
    if status is not None and not 0 <= status <= 255:
        raise Invalid(f"outcome.exit_status: {status} is out of range; 0 to 255", field="outcome.exit_status")
    if not 0 <= message.signal <= 64:
        raise Invalid(f"outcome.signal: {message.signal} is no signal; 0 to 64", field="outcome.signal")
    text = "".join(c if c.isprintable() else "?" for c in message.message[:500])
    return Outcome(status, message.signal, text)


# -- to the wire -------------------------------------------------------------------------------------------


def timestamp(at: float | None) -> timestamp_pb2.Timestamp | None:
    return None if at is None else timestamp_at(at)


def timestamp_at(at: float) -> timestamp_pb2.Timestamp:
    whole = math.floor(at)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((at - whole) * 1e9))


def set_time(message: timestamp_pb2.Timestamp, at: float) -> None:
    """Make a message's own timestamp say a time."""
    message.seconds = whole = math.floor(at)
    message.nanos = int((at - whole) * 1e9)


def duration(length: float | None) -> duration_pb2.Duration | None:
    return None if length is None else duration_of(length)


def duration_of(length: float) -> duration_pb2.Duration:
    whole = math.floor(length)
    return duration_pb2.Duration(seconds=whole, nanos=int((length - whole) * 1e9))


def time_of(message: Any, field: str) -> float | None:
    """A Timestamp in seconds since the epoch, None if unset. Raises Invalid."""
    if not message.HasField(field):
        return None
    stamp = getattr(message, field)
    if not 0 <= stamp.nanos < 10**9 or not 0 <= stamp.seconds < 253402300800:
        raise Invalid(f"{field}: is no time between the years 1970 and 9999", field=field)
    return float(stamp.seconds) + float(stamp.nanos) / 1e9


def outcome(value: Outcome) -> job_pb2.Outcome:
    return job_pb2.Outcome(exit_status=value.exit_status, signal=value.signal, message=value.message)


def resources(request: Request) -> resources_pb2.ResourceRequest:
    return resources_pb2.ResourceRequest(
        gpus=request.gpus,
        gpu_memory_bytes=request.memory_bytes,
        gpu_model=request.model,
        node=request.node,
        nodes=request.nodes,
        gpu_ids=request.gpu_ids,
        exclude=request.exclude,
        labels=dict(request.labels),
        gpus_per_node=request.per_node,
        shared=request.shared,
        cpus=request.cpus,
        memory_bytes=request.host_bytes,
        # As it was asked: unset means the usual.
        placement=0 if request.placement is Placement.PACK else PLACEMENTS[request.placement],  # type: ignore[arg-type]
    )


def allocated(engine: Engine, uuids: tuple[str, ...]) -> list[job_pb2.AllocatedGpu]:
    devices = engine.pool.devices
    share = uuids.memory if isinstance(uuids, Grant) else 0
    return [_allocated(uuid, devices[uuid].info if uuid in devices else _UNKNOWN, share) for uuid in uuids]


def _allocated(uuid: str, info: DeviceInfo, share: int) -> job_pb2.AllocatedGpu:
    return job_pb2.AllocatedGpu(
        uuid=uuid,
        index=info.index,
        node=info.node,
        model=info.model,
        memory_bytes=info.memory_bytes,
        share_bytes=share,
    )
