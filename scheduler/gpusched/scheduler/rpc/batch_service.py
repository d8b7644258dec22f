"""Submit, WaitJob, StreamLogs and RequeueJob: commands that the scheduler runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import grpc

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.errors import Denied, Invalid, NotFound, NotSatisfiable, Unavailable
from gpusched.scheduler.core.jobs import Job, JobId, JobSpec, Kind
from gpusched.scheduler.core.states import Finished, Running, State
from gpusched.scheduler.rpc import convert
from gpusched.scheduler.rpc.batch_convert import batch_of
from gpusched.scheduler.rpc.callers import Caller
from gpusched.scheduler.rpc.errors import guarded
from gpusched.scheduler.rpc.logs import read_log, tail_offset
from gpusched.scheduler.rpc.services import Services
from gpusched.scheduler.rpc.streams import stream
from gpusched.v1 import job_pb2, scheduler_pb2

Context = grpc.aio.ServicerContext[Any, Any]

#: Seconds between two looks for more output while a run goes on.
LOOK_EVERY = 0.1
#: A begin time that passed this many seconds ago at most means now (clocks differ, calls take time).
PAST = 60.0


class BatchService:
    """Batch jobs. A part of the Scheduler servicer."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._driver = services.driver
        self._engine = services.driver.engine
        #: Jobs whose callers were told that they could not be taken on.
        self._refused: set[JobId] = set()

    @guarded
    async def Submit(  # noqa: N802
        self, request: scheduler_pb2.SubmitRequest, context: Context
    ) -> scheduler_pb2.SubmitResponse:
        caller = self._services.callers.identify(context)
        if caller.owner.uid != self._services.about.uid:
            user = self._services.about.user
            raise Denied(
                f"batch jobs run as the scheduler's own user, {user}, and are taken from {user} alone; "
                "use gsrun, or run a scheduler of your own",
                reason="NOT_SERVER_USER",
            )
        job = self._known(caller.owner.uid, request.request_id) if request.request_id else None
        if job is None:
            job = await self._submit(self._batch_spec(request, caller))
        elif job.spec.batch is None:
            raise Invalid(f"request_id: belongs to job {job.id}, which is no batch job", field="request_id")
        else:
            await self._driver.saved()
        return scheduler_pb2.SubmitResponse(job=self._show(job, caller))

    @guarded
    async def RequeueJob(  # noqa: N802
        self, request: scheduler_pb2.RequeueJobRequest, context: Context
    ) -> scheduler_pb2.RequeueJobResponse:
        caller = self._services.callers.identify(context)
        job = self._services.archive.job(convert.job_id(request.job_id))
        self._services.callers.require_owner(caller, job, "requeue")
        if isinstance(job.status, Finished):
            if job.spec.batch is None:
                raise NotSatisfiable(f"job {job.id} is no batch job; its client runs it", field="job_id")
            # An ended job stays as it ended; the same work is a new job.
            batch = replace(job.spec.batch, dependencies=(), begin_at=None, held=False)
            job = await self._submit(replace(job.spec, batch=batch, request_id=""))
        else:
            self._driver.handle(ev.Requeue(job.id, f"queued again by {caller.owner.name}"))
            await self._driver.saved()
        return scheduler_pb2.RequeueJobResponse(job=self._show(job, caller))

    @stream
    async def WaitJob(self, request: scheduler_pb2.WaitJobRequest, context: Context) -> None:  # noqa: N802
        caller = self._services.callers.identify(context)
        job = self._services.archive.job(convert.job_id(request.job_id))
        watch = self._services.watchers.watch_jobs(job.id)
        try:
            while True:
                watch.take_jobs()
                await context.write(scheduler_pb2.WaitJobResponse(job=self._show(job, caller, history=True)))
                if isinstance(job.status, Finished):
                    return
                while not watch.jobs:
                    await watch.wait()
        finally:
            self._services.watchers.forget(watch)

    @stream
    async def StreamLogs(self, request: scheduler_pb2.StreamLogsRequest, context: Context) -> None:  # noqa: N802
        caller = self._services.callers.identify(context)
        job = self._services.archive.job(convert.job_id(request.job_id))
        self._services.callers.require_owner(caller, job, "read the output of")
        if job.spec.batch is None:
            raise NotSatisfiable(
                f"job {job.id} is no batch job: its output went to the terminal it was started from", field="job_id"
            )
        if request.attempt < 0 or request.tail_lines < 0 or request.offset < 0:
            raise Invalid("attempt, tail_lines and offset must not be negative", field="attempt")
        if request.tail_lines and request.offset:
            raise Invalid("offset: makes no sense together with tail_lines; give one of them", field="offset")
        first = attempt = request.attempt or max(job.attempt, 1)
        offset, seen, before = request.offset, False, None
        while await self._reached(job, attempt, wait=request.follow):
            path = self._services.launcher.output_path(job, attempt)
            if before not in (None, path):
                offset = 0
            elif before is None and request.tail_lines:
                offset = await asyncio.get_running_loop().run_in_executor(None, tail_offset, path, request.tail_lines)
            there, offset = await self._copy(job, attempt, offset, request.follow, context)
            seen, before = seen or there, path
            if not request.follow:
                break
            attempt += 1
        if not seen:
            raise self._no_output(job, first)

    async def _reached(self, job: Job, attempt: int, *, wait: bool) -> bool:
        """Whether a job has had its so-manieth run, or, if `wait`, will have had it before it ends."""
        watch = self._services.watchers.watch_jobs(job.id)
        try:
            while job.attempt < attempt and wait and not isinstance(job.status, Finished):
                await watch.wait()
                watch.take_jobs()
            return job.attempt >= attempt
        finally:
            self._services.watchers.forget(watch)

    async def _copy(self, job: Job, attempt: int, offset: int, follow: bool, context: Context) -> tuple[bool, int]:
        """Write what a run has put out from an offset on, to its end if `follow`.

        Returns:
            Whether there was such a file, or may yet be; and the offset of what would come next.
        """
        path = self._services.launcher.output_path(job, attempt)
        loop = asyncio.get_running_loop()
        seen = False
        while True:
            # Ended before the read, so that what it wrote last is in it.
            over = not (isinstance(job.status, Running) and job.attempt == attempt)
            data = await loop.run_in_executor(None, read_log, path, offset)
            seen = seen or data is not None
            if data:
                await context.write(scheduler_pb2.StreamLogsResponse(data=data, offset=offset, attempt=attempt))
                offset += len(data)
            elif over or not follow:
                return seen or not over, offset
            else:
                await asyncio.sleep(LOOK_EVERY)

    def _no_output(self, job: Job, attempt: int) -> NotFound:
        """Why there is nothing to read of a run."""
        if attempt <= job.attempt:
            text = f"the output of job {job.id}, attempt {attempt}, is not there (any more)"
            path = self._services.launcher.output_path(job, attempt)
            failed = [
                each.outcome.message for each in job.attempts if each.number == attempt and each.outcome.exit_status
            ]
            return NotFound("; ".join([f"{text}: {path}", *(f"it ended with {said}" for said in failed)]))
        if job.attempt:
            text = f"attempt: job {job.id} has had {job.attempt} run{'s' if job.attempt > 1 else ''}"
            return NotFound(text, reason="NO_SUCH_ATTEMPT", field="attempt")
        if isinstance(job.status, Finished):
            return NotFound(
                f"job {job.id} ended without having started, so it has no output: {job.status.outcome.message}"
            )
        return NotFound(f"job {job.id} has not started yet, so it has no output yet; follow it (-f) to wait for that")

    # -- helpers -------------------------------------------------------------------------------------------

    def _known(self, uid: int, request_id: str) -> Job | None:
        """The job that an earlier call with this id made, None if there is none."""
        job = self._engine.job_by_request(uid, request_id)
        if job is None:
            return self._services.archive.job_by_request(uid, request_id)
        # Its caller was told that it was not taken on, and now tries again.
        return None if job.id in self._refused else job

    async def _submit(self, spec: JobSpec) -> Job:
        """Take a job on, and return when that is saved. Raises DomainError."""
        job = self._accept(spec)
        try:
            await self._driver.saved()
        except Unavailable:
            # It was not acknowledged, so it must not run behind the caller's back. By force: it may have its GPUs
            # already, and its command would be started with the very save that makes good for this one.
            self._refused.add(job.id)
            if not job.state.final:
                self._driver.handle(ev.Force(job.id, State.CANCELLED, "refused, as it could not be saved"))
            raise
        return job

    def _accept(self, spec: JobSpec) -> Job:
        ended: list[tuple[int, State]] = []
        if spec.batch is not None:
            for dependency in spec.batch.dependencies:
                if JobId(dependency.job) not in self._engine.jobs:
                    known = self._services.archive.job(JobId(dependency.job), "dependencies")
                    ended.append((dependency.job, known.state))
        for effect in self._driver.handle(ev.Submit(spec, tuple(ended))):
            if isinstance(effect, do.Accepted):
                return self._engine.job(effect.job)
        raise AssertionError("a submit was neither accepted nor refused")

    def _batch_spec(self, request: scheduler_pb2.SubmitRequest, caller: Caller) -> JobSpec:
        self._services.callers.require_priority(caller, request.priority)
        name = request.name
        if not name and request.command:
            # The command's own name, as far as it may be shown.
            name = "".join(c if c.isprintable() else "?" for c in PurePath(request.command[0]).name[:128])
        batch = batch_of(request)
        if batch.begin_at is not None and batch.begin_at <= self._driver.now():
            late = self._driver.now() - batch.begin_at
            if late > PAST:
                raise Invalid(f"begin_at: lies {late:.0f} s in the past; leave it out to start now", field="begin_at")
            batch = replace(batch, begin_at=None)
        return JobSpec(
            owner=caller.owner,
            request=replace(convert.request_of(request.resources), node=self._services.about.node),
            name=name,
            priority=request.priority,
            command=tuple(request.command),
            kind=Kind.BATCH,
            time_limit=convert.seconds(request, "time_limit"),
            request_id=request.request_id,
            batch=batch,
            estimate=convert.seconds(request, "estimate"),
            preemptible=request.preemptible,
            signal=convert.signal_of(request),
        )

    def _show(self, job: Job, caller: Caller, *, history: bool = False) -> job_pb2.Job:
        return self._services.show(job, caller, history=history)
