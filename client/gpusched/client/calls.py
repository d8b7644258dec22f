"""What the sync and the async client both ask. Imports protobuf."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from gpusched.client import convert, views
from gpusched.client.errors import GpuschedError, PermissionDenied
from gpusched.client.usage import UsageError
from gpusched.v1 import admin_pb2, admin_pb2_grpc, job_pb2, scheduler_pb2, scheduler_pb2_grpc

PAGE_SIZE = 500
CALL_SECONDS = 10.0

States = Iterable["views.JobState | str"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call: method (`Scheduler.GetJob`), request, and how its answer (or each message of its stream) is read."""

    method: str
    request: Any
    read: Callable[[Any], T]


class Stubs:
    """The services behind one channel, of either kind."""

    def __init__(self, channel: Any) -> None:
        self._services: dict[str, Any] = {
            "Scheduler": scheduler_pb2_grpc.SchedulerStub(channel),
            "Admin": admin_pb2_grpc.AdminStub(channel),
        }

    def method(self, call: Call[Any]) -> Callable[..., Any]:
        """The stub's method that makes the call.

        It raises UsageError for a timeout that is none, and GpuschedError (reason CLOSED) where the channel was closed.
        """
        service, _, name = call.method.partition(".")
        made = getattr(self._services[service], name)

        def method(request: Any, *, timeout: float | None = None, **rest: Any) -> Any:
            if isinstance(timeout, bool) or not isinstance(timeout, (int, float, type(None))):
                checked_timeout(timeout)  # a call's own may well be nothing: what is left of a wait
            try:
                return made(request, timeout=timeout, **rest)
            except (ValueError, grpc.aio.UsageError) as error:
                if "closed" not in str(error):
                    raise
            raise GpuschedError("this client was closed; open another one", reason="CLOSED")

        return method


def checked_timeout(timeout: float) -> float:
    """How long an answer may take, in seconds; raises UsageError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
        raise UsageError("timeout", timeout, "give a number of seconds, more than 0")
    return timeout


def status() -> Call[views.Status]:
    return Call("Scheduler.GetStatus", scheduler_pb2.GetStatusRequest(), convert.status)


def jobs_page(filter: scheduler_pb2.JobFilter, token: str) -> Call[tuple[list[views.Job], str]]:
    """One page of jobs, and the token of the next; empty on the last."""
    request = scheduler_pb2.ListJobsRequest(filter=filter, page_size=PAGE_SIZE, page_token=token)
    return Call("Scheduler.ListJobs", request, lambda a: ([convert.job(job) for job in a.jobs], a.next_page_token))


def job(job_id: str) -> Call[views.Job]:
    return Call("Scheduler.GetJob", scheduler_pb2.GetJobRequest(job_id=str(job_id)), lambda a: convert.job(a.job))


def watch_jobs(job_id: str, filter: scheduler_pb2.JobFilter) -> Call[views.JobsChange]:
    request = scheduler_pb2.WatchJobsRequest(job_id=str(job_id), filter=filter)
    return Call("Scheduler.WatchJobs", request, convert.jobs_change)


def gpus(node: str) -> Call[list[views.Gpu]]:
    return Call("Scheduler.ListGpus", scheduler_pb2.ListGpusRequest(node=node), _gpus)


def watch_gpus(node: str) -> Call[list[views.Gpu]]:
    return Call("Scheduler.WatchGpus", scheduler_pb2.WatchGpusRequest(node=node), _gpus)


def nodes() -> Call[list[views.Node]]:
    request = scheduler_pb2.ListNodesRequest()
    return Call("Scheduler.ListNodes", request, lambda a: [convert.node(node) for node in a.nodes])


def explain(job_id: str) -> Call[views.Explanation]:
    return Call("Scheduler.ExplainJob", scheduler_pb2.ExplainJobRequest(job_id=str(job_id)), convert.explanation)


def cancel(job_id: str, reason: str) -> Call[views.Job]:
    request = scheduler_pb2.CancelJobRequest(job_id=str(job_id), reason=reason)
    return Call("Scheduler.CancelJob", request, lambda a: convert.job(a.job))


def set_priority(job_id: str, priority: int) -> Call[views.Job]:
    """Raises UsageError for what is no number; the scheduler knows which ones there are."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
        raise UsageError("priority", priority, "give a whole number from -100 to 100")
    request = scheduler_pb2.UpdateJobRequest(job=job_pb2.Job(id=str(job_id), priority=priority))
    request.update_mask.paths.append("priority")
    return Call("Scheduler.UpdateJob", request, lambda a: convert.job(a.job))


def drain(gpu: str | int | None, node: str | None, reason: str) -> Call[list[views.Gpu]]:
    return Call("Admin.Drain", admin_pb2.DrainRequest(target=_target(gpu, node), reason=reason), _gpus)


def undrain(gpu: str | int | None, node: str | None) -> Call[list[views.Gpu]]:
    return Call("Admin.Undrain", admin_pb2.UndrainRequest(target=_target(gpu, node)), _gpus)


def pause(reason: str) -> Call[None]:
    return Call("Admin.PauseScheduling", admin_pb2.PauseSchedulingRequest(reason=reason), _nothing)


def resume() -> Call[None]:
    return Call("Admin.ResumeScheduling", admin_pb2.ResumeSchedulingRequest(), _nothing)


def job_filter(states: States, user: str, name: str, include_ended: bool, node: str) -> scheduler_pb2.JobFilter:
    """Which jobs; raises UsageError for an unknown state."""
    numbers: list[Any] = []
    for state in (states,) if isinstance(states, str) else states:
        try:
            numbers.append(job_pb2.JobState.Value(f"JOB_STATE_{views.JobState(state).name}"))
        except ValueError:
            known = ", ".join(each for each in views.JobState if each is not views.JobState.UNKNOWN)
            raise UsageError("states", str(state), f"give any of {known}") from None
    return scheduler_pb2.JobFilter(states=numbers, user=user, name=name, include_ended=include_ended, node=node)


def wants_administrator(error: GpuschedError) -> bool:
    """Whether the same call may succeed with the administrator's token."""
    return isinstance(error, PermissionDenied) and error.reason in ("ADMIN_REQUIRED", "NOT_OWNER")


def _target(gpu: str | int | None, node: str | None) -> admin_pb2.DrainTarget:
    if (gpu is None) == (node is None):
        raise UsageError("gpu", gpu, "name either a gpu (uuid, index or node:index) or a node")
    return admin_pb2.DrainTarget(gpu=str(gpu)) if gpu is not None else admin_pb2.DrainTarget(node=node)


def _gpus(answer: Any) -> list[views.Gpu]:
    return [convert.gpu(gpu) for gpu in answer.gpus]


def _nothing(answer: Any) -> None:
    return None
