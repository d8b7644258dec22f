"""Looking and steering: the calls of people and tools. The other half of the Scheduler servicer."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import grpc

from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import explain as why
from gpusched.scheduler.core.errors import Invalid, NotSatisfiable
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.states import Finished
from gpusched.scheduler.rpc import convert
from gpusched.scheduler.rpc.callers import Caller
from gpusched.scheduler.rpc.errors import guarded
from gpusched.scheduler.rpc.filters import Filter
from gpusched.scheduler.rpc.policy_convert import policy
from gpusched.scheduler.rpc.services import Services
from gpusched.scheduler.rpc.streams import stream
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2

Context = grpc.aio.ServicerContext[Any, Any]

#: Jobs on a page when the caller does not say, and at most.
PAGE, MAX_PAGE = 100, 1000
#: Most bytes of jobs in one answer, well below the 4 MiB that clients take by default.
MAX_ANSWER = 2 << 20
#: Jobs in one answer of a watch: few, as the others wait while they are put into words.
PART = 250
#: Seconds over which changes are gathered into one answer of a watch, and between two looks at the queue's places.
GATHER, PLACES_EVERY = 0.02, 0.5
#: At most so many places of waiting jobs are told anew in one answer.
MAX_PLACES = 200
#: At most so many ended jobs are in the first answer of a watch.
MAX_ENDED = 1000
#: So many ended jobs are looked at in one go where they have to be counted one by one.
COUNTED_AT_ONCE = 100
UPDATABLE = ("priority", "name", "held", "time_limit")
#: Longest page token, in characters.
MAX_TOKEN = 200


class QueryService:
    """Reads and changes jobs, GPUs and nodes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._driver = services.driver
        self._engine = services.driver.engine

    # -- status ------------------------------------------------------------------------------------------

    @guarded
    async def GetStatus(  # noqa: N802
        self, request: scheduler_pb2.GetStatusRequest, context: Context
    ) -> scheduler_pb2.GetStatusResponse:
        caller = self._services.callers.identify(context)
        engine, about = self._engine, self._services.about
        devices = engine.pool.devices.values()
        return scheduler_pb2.GetStatusResponse(
            service="gpusched",
            version=about.version,
            started_at=convert.timestamp(about.started_at),
            uptime=convert.duration(self._driver.now() - about.started_at),
            address=about.address,
            gpus_total=len(devices),
            gpus_allocated=sum(device.held for device in devices),
            gpus_free=sum(len(node.available) for node in engine.pool.nodes.values()),
            jobs_running=len(engine.running),
            jobs_queued=len(engine.queue),
            jobs_total=len(engine.jobs),
            paused=engine.paused is not None,
            pause_reason=engine.paused or "",
            inventory_mode=about.mode,
            node=about.node,
            user=about.user,
            uid=about.uid,
            pid=about.pid,
            state_id=self._services.state_id,
            admin_socket=about.admin_socket,
            policy=engine.settings.policy.order,
            caller=caller.owner.name,
            policy_settings=policy(engine.settings.policy),
            policy_changed=engine.settings.policy != self._services.policy,
            trouble=engine.halted or "",
        )

    # -- jobs ----------------------------------------------------------------------------------------------

    @guarded
    async def GetJob(  # noqa: N802
        self, request: scheduler_pb2.GetJobRequest, context: Context
    ) -> scheduler_pb2.GetJobResponse:
        caller = self._services.callers.identify(context)
        job = self._services.archive.job(convert.job_id(request.job_id))
        return scheduler_pb2.GetJobResponse(job=self._show(job, caller, history=True))

    @guarded
    async def ListJobs(  # noqa: N802
        self, request: scheduler_pb2.ListJobsRequest, context: Context
    ) -> scheduler_pb2.ListJobsResponse:
        caller = self._services.callers.identify(context)
        wanted = Filter.of(request.filter)
        if request.page_size < 0:
            raise Invalid(f"page_size: {request.page_size} is not allowed; 0 to {MAX_PAGE}", field="page_size")
        size = min(request.page_size or PAGE, MAX_PAGE)
        after = _decode_page(request.page_token)
        found: list[Job] = []
        total = await self._count_ended(wanted)
        for place, job in self._alive(wanted):
            total += 1
            if (after is None or place > after) and len(found) <= size:
                found.append(job)
        found += islice(self._ended(wanted, after), size + 1 - len(found))
        page = self._part(found[:size], caller)
        return scheduler_pb2.ListJobsResponse(
            jobs=page,
            next_page_token=_encode_page(self._place(found[len(page) - 1])) if len(page) < len(found) else "",
            total_size=total,
        )

    @stream
    async def WatchJobs(self, request: scheduler_pb2.WatchJobsRequest, context: Context) -> None:  # noqa: N802
        caller = self._services.callers.identify(context)
        wanted = Filter.of(request.filter)
        only = self._services.archive.job(convert.job_id(request.job_id)) if request.job_id else None
        watch = self._services.watchers.watch_jobs(only.id if only else None)
        try:
            jobs = [only] if only else [job for _, job in self._alive(wanted)]
            if only is None:
                jobs += islice(self._ended(wanted), MAX_ENDED)
            shown = {job.id for job in jobs}
            places = {job.id: self._place_text(job) for job in jobs[:MAX_PLACES]}
            await self._write_jobs(context, jobs, caller, snapshot=True)
            looked = 0.0
            while only is None or not isinstance(only.status, Finished) or watch.jobs:
                await watch.wait()
                await asyncio.sleep(GATHER)
                changed: dict[JobId, Job] = {}
                ids = watch.take_jobs()
                if ids is None:
                    ids = set(self._engine.jobs)
                    shown &= ids
                    places = {job_id: place for job_id, place in places.items() if job_id in ids}
                for job_id in sorted(ids):
                    job = self._engine.jobs.get(job_id)
                    if job is not None and (
                        only is not None or wanted.matches(job, self._engine.pool) or job_id in shown
                    ):
                        changed[job_id] = job
                        shown.add(job_id)
                    if job is None or isinstance(job.status, Finished):
                        shown.discard(job_id)
                        places.pop(job_id, None)
                if watch.queue:
                    if self._driver.now() - looked >= PLACES_EVERY:
                        looked, watch.queue = self._driver.now(), False
                        for job in self._moved(only, wanted, places):
                            changed[job.id] = job
                    else:
                        asyncio.get_running_loop().call_later(PLACES_EVERY, watch.wake)
                if changed:
                    await self._write_jobs(context, list(changed.values()), caller)
        finally:
            self._services.watchers.forget(watch)

    @guarded
    async def CancelJob(  # noqa: N802
        self, request: scheduler_pb2.CancelJobRequest, context: Context
    ) -> scheduler_pb2.CancelJobResponse:
        caller = self._services.callers.identify(context)
        job = self._services.archive.living(convert.job_id(request.job_id))
        self._services.callers.require_owner(caller, job, "cancel")
        message = f"cancelled by {caller.owner.name}"
        if request.reason:
            message += f": {_text(request.reason, 'reason')}"
        self._driver.handle(ev.Cancel(job.id, message))
        await self._driver.saved()
        return scheduler_pb2.CancelJobResponse(job=self._show(job, caller))

    @guarded
    async def UpdateJob(  # noqa: N802
        self, request: scheduler_pb2.UpdateJobRequest, context: Context
    ) -> scheduler_pb2.UpdateJobResponse:
        caller = self._services.callers.identify(context)
        job = self._services.archive.living(convert.job_id(request.job.id, "job.id"), "job.id")
        self._services.callers.require_owner(caller, job, "change")
        paths = list(request.update_mask.paths)
        unknown = [path for path in paths if path not in UPDATABLE]
        if unknown or not paths:
            what = f"{unknown[0][:80]!r} cannot be changed" if unknown else "is empty"
            raise Invalid(f"update_mask: {what}; allowed are {', '.join(UPDATABLE)}", field="update_mask")
        priority = request.job.priority if "priority" in paths else None
        if priority is not None and priority > job.priority:
            self._services.callers.require_priority(caller, priority)
        name = request.job.name if "name" in paths else None
        held = request.job.held if "held" in paths else None
        limit = convert.seconds(request.job, "time_limit") if "time_limit" in paths else None
        if limit is None and "time_limit" in paths:
            raise Invalid(
                "job.time_limit: is not set; give a time, as a limit cannot be taken away", field="job.time_limit"
            )
        self._driver.handle(ev.Update(job.id, priority, name, held, limit, by=caller.owner.name))
        await self._driver.saved()
        return scheduler_pb2.UpdateJobResponse(job=self._show(job, caller))

    @guarded
    async def ExplainJob(  # noqa: N802
        self, request: scheduler_pb2.ExplainJobRequest, context: Context
    ) -> scheduler_pb2.ExplainJobResponse:
        caller = self._services.callers.identify(context)
        job = self._services.archive.job(convert.job_id(request.job_id))
        cause = why.explain(self._engine, job)
        if cause is None:
            lines = [f"Job {job.id} does not wait: it is {job.state.value.replace('_', ' ')}."]
            if isinstance(job.status, Finished):
                lines.append(f"It ended: {job.status.outcome.message}.")
        else:
            lines = why.lines(self._engine, job, cause, self._driver.now())
        return scheduler_pb2.ExplainJobResponse(job=self._show(job, caller, history=True), lines=lines)

    # -- GPUs and nodes ------------------------------------------------------------------------------------

    @guarded
    async def ListGpus(  # noqa: N802
        self, request: scheduler_pb2.ListGpusRequest, context: Context
    ) -> scheduler_pb2.ListGpusResponse:
        self._services.callers.identify(context)
        return scheduler_pb2.ListGpusResponse(gpus=self._gpus(request.node))

    @stream
    async def WatchGpus(self, request: scheduler_pb2.WatchGpusRequest, context: Context) -> None:  # noqa: N802
        self._services.callers.identify(context)
        watch = self._services.watchers.watch_gpus()
        try:
            while True:
                await context.write(scheduler_pb2.WatchGpusResponse(gpus=self._gpus(request.node)))
                await watch.wait()
                await asyncio.sleep(GATHER)
        finally:
            self._services.watchers.forget(watch)

    @guarded
    async def ListNodes(  # noqa: N802
        self, request: scheduler_pb2.ListNodesRequest, context: Context
    ) -> scheduler_pb2.ListNodesResponse:
        self._services.callers.identify(context)
        readings = self._services.observer.readings
        nodes = []
        for node in self._engine.pool.nodes.values():
            seen = [readings[device.uuid][1] for device in node.devices if device.uuid in readings]
            nodes.append(convert.node(self._engine, node, max(seen, default=None)))
        return scheduler_pb2.ListNodesResponse(nodes=nodes)

    # -- helpers -------------------------------------------------------------------------------------------

    def _show(self, job: Job, caller: Caller, *, history: bool = False) -> job_pb2.Job:
        return self._services.show(job, caller, history=history)

    def _part(self, jobs: list[Job], caller: Caller) -> list[job_pb2.Job]:
        """The first of some jobs, as many as go into one answer: at least one, if there is one."""
        part: list[job_pb2.Job] = []
        size = 0
        for job in jobs:
            message = self._show(job, caller)
            size += message.ByteSize()
            if part and size > MAX_ANSWER:
                break
            part.append(message)
        return part

    async def _write_jobs(self, context: Context, jobs: list[Job], caller: Caller, *, snapshot: bool = False) -> None:
        """Write jobs in as many answers as they need; a snapshot has one even if there are none."""
        start = 0
        while start < len(jobs) or (snapshot and start == 0):
            part = self._part(jobs[start : start + PART], caller)
            await context.write(scheduler_pb2.WatchJobsResponse(jobs=part, snapshot=snapshot))
            start += max(1, len(part))

    def _gpus(self, node: str) -> list[resources_pb2.Gpu]:
        pool = self._engine.pool
        if node and node not in pool.nodes:
            raise NotSatisfiable(
                f"node: there is no node {node[:80]!r}; there is {self._services.node_names()}",
                reason="UNKNOWN_NODE",
                field="node",
            )
        readings = self._services.observer.readings
        return [
            convert.gpu(self._engine, device, *readings.get(device.uuid, (None, None)))
            for name, found in pool.nodes.items()
            if node in ("", name)
            for device in found.devices
        ]

    def _alive(self, wanted: Filter) -> Iterator[tuple[tuple[float, ...], Job]]:
        """Jobs that match and have not ended: running ones first, then the queue, with their places in the list."""
        for source in (sorted(self._engine.running.values(), key=lambda job: job.id), self._engine.queue):
            for job in source:
                if wanted.matches(job, self._engine.pool):
                    yield self._place(job), job

    def _place(self, job: Job) -> tuple[float, ...]:
        return _place(job, self._engine.queue.lane_index.get(job.lane, 0))

    def _ended(self, wanted: Filter, after: tuple[float, ...] | None = None) -> Iterator[Job]:
        """Ended jobs that match, newest first, from a place in the list on."""
        start = (-after[1], int(-after[2])) if after is not None and after[0] == 2.0 else None
        ended = self._services.archive.ended(wanted.states, wanted.user, wanted.name, start)
        return (job for job in ended if wanted.matches(job, self._engine.pool))

    async def _count_ended(self, wanted: Filter) -> int:
        """How many ended jobs match."""
        if not wanted.node:
            return self._services.archive.count_ended(wanted.states, wanted.user, wanted.name)
        # The store knows no nodes: they are read, a few at a time.
        total = 0
        for number, job in enumerate(self._services.archive.ended(wanted.states, wanted.user, wanted.name)):
            total += wanted.matches(job, self._engine.pool)
            if number % COUNTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return total

    def _moved(self, only: Job | None, wanted: Filter, places: dict[Any, Any]) -> list[Job]:
        """Waiting jobs whose place or reason is not what was told."""
        moved = []
        if only is not None:
            waiting = [only] if only in self._engine.queue else []
        else:
            waiting = []
            for job in self._engine.queue:
                if len(waiting) == MAX_PLACES:
                    break
                if wanted.matches(job, self._engine.pool):
                    waiting.append(job)
        for job in waiting:
            text = self._place_text(job)
            if places.get(job.id) != text:
                places[job.id] = text
                moved.append(job)
        return moved

    def _place_text(self, job: Job) -> tuple[int, str] | None:
        cause = why.explain(self._engine, job)
        return None if cause is None else (self._engine.queue.position(job), cause.message)


#: Largest number in a page token.
_MAX_NUMBER = 2.0**53


def _place(job: Job, lane: int) -> tuple[float, ...]:
    """Where a job stands in a list of all; later in the list is greater. `lane` is its lane's number."""
    if isinstance(job.status, Finished):
        return (2.0, -job.status.at, -float(job.id))
    if job.lease is not None:
        return (0.0, float(job.id))
    return (1.0, float(lane), *(min(float(part), _MAX_NUMBER) for part in job.key))


def _encode_page(place: tuple[float, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _decode_page(token: str) -> tuple[float, ...] | None:
    if not token:
        return None
    try:
        # The length first: a long token could nest deeper or count higher than Python likes.
        place = json.loads(base64.urlsafe_b64decode(token.encode())) if len(token) <= MAX_TOKEN else None
    except ValueError:
        place = None
    if not (
        isinstance(place, list)
        and all(isinstance(number, float) and abs(number) <= _MAX_NUMBER for number in place)
        and ((len(place), *place[:1]) in ((2, 0.0), (3, 2.0)) or (3 <= len(place) <= 6 and place[0] == 1.0))
    ):
        raise Invalid("page_token: is not one that ListJobs gave", field="page_token")
    return tuple(place)


def _text(text: str, field: str) -> str:
    """Free text for people, on one line. Raises Invalid."""
    if len(text) > 500 or not text.isprintable():
        raise Invalid(f"{field}: at most 500 printable characters are allowed", field=field)
    return text
