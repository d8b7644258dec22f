"""Acquire, Confirm and Release: the stream that is ticket, grant and lease."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import explain as why
from gpusched.scheduler.core.errors import Aborted, Denied, Invalid
from gpusched.scheduler.core.jobs import Job, JobId, JobSpec
from gpusched.scheduler.core.model import Holder, Owner
from gpusched.scheduler.core.outlook import Expected
from gpusched.scheduler.core.states import Queued, Running
from gpusched.scheduler.desk import Superseded, Ticket
from gpusched.scheduler.identity import process_start_ticks, process_uid
from gpusched.scheduler.rpc import convert
from gpusched.scheduler.rpc.batch_convert import usage_of
from gpusched.scheduler.rpc.callers import Caller
from gpusched.scheduler.rpc.errors import ENDINGS, guarded
from gpusched.scheduler.rpc.services import Services
from gpusched.scheduler.rpc.streams import stream
from gpusched.v1 import scheduler_pb2

log = logging.getLogger("gpusched.lease")

Context = grpc.aio.ServicerContext[Any, Any]

_Place = tuple[int, int, str]
"""Place in the queue, how many wait, and the reason in words."""


def hash_token(token: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(token.encode()).digest()


class LeaseService:
    """The calls of a holder. One half of the Scheduler servicer."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._driver = services.driver
        self._engine = services.driver.engine

    @stream
    async def Acquire(self, request: scheduler_pb2.AcquireRequest, context: Context) -> None:  # noqa: N802
        caller = self._services.callers.identify(context)
        if request.dry_run:
            await context.write(self._dry_run(request, caller))
            return
        try:
            job, token, resumed = self._enter(request, caller)
        except Aborted:
            await self._driver.saved()  # see _kept
            raise
        ticket = self._services.desk.open(job, job.attachment)
        if isinstance(job.status, Running):
            # A re-attached holder is told again what it has; a new job's grant comes from the pass.
            ticket.put(do.Granted(job.id, job.status.lease))
            if job.cancelling is not None:
                ticket.put(do.Notify(job.id, do.NoticeKind.CANCEL, *job.cancelling))
            elif job.preempting is not None:
                ticket.put(do.Notify(job.id, do.NoticeKind.PREEMPTION, *job.preempting))
        try:
            # Saved before it is told, so that a place once told outlives the server.
            await self._driver.saved()
            del request
            await self._serve(ticket, context, self._accepted(job, token, resumed))
        finally:
            # However the stream ends: in one synchronous step, safe to repeat, with nothing awaited.
            self._services.desk.close(ticket)
            if not self._services.stopping:
                self._driver.handle(ev.Leave(job.id, ticket.attachment))

    @guarded
    async def Confirm(  # noqa: N802
        self, request: scheduler_pb2.ConfirmRequest, context: Context
    ) -> scheduler_pb2.ConfirmResponse:
        caller = self._services.callers.identify(context)
        async with self._kept():
            job = self._held(request, caller)
            self._driver.handle(ev.Confirm(job.id, request.epoch))
        return scheduler_pb2.ConfirmResponse()

    @guarded
    async def Release(  # noqa: N802
        self, request: scheduler_pb2.ReleaseRequest, context: Context
    ) -> scheduler_pb2.ReleaseResponse:
        caller = self._services.callers.identify(context)
        async with self._kept():
            job = self._held(request, caller)
            outcome = convert.outcome_of(request.outcome)
            usage = usage_of(request.usage) if request.HasField("usage") else None
            if usage is not None and not usage.peak_gpu_memory_bytes:
                usage = replace(usage, peak_gpu_memory_bytes=self._services.observer.peak_memory(job.id))
            self._driver.handle(ev.Release(job.id, request.epoch, outcome, request.timed_out, usage))
        return scheduler_pb2.ReleaseResponse()

    @asynccontextmanager
    async def _kept(self) -> AsyncIterator[None]:
        """Answer only when all that has happened is saved: that a lease is over, too, ends its holder's efforts."""
        try:
            yield
        except Aborted:
            await self._driver.saved()
            raise
        await self._driver.saved()

    # -- the stream ----------------------------------------------------------------------------------------

    def _accepted(self, job: Job, token: str, resumed: bool) -> scheduler_pb2.Accepted:
        state_id = self._services.state_id
        return scheduler_pb2.Accepted(job_id=str(job.id), resume_token=token, state_id=state_id, resumed=resumed)

    async def _serve(self, ticket: Ticket, context: Context, accepted: scheduler_pb2.Accepted | None) -> None:
        """Tell the stream all that happens to its job; with the acceptance comes what is known by now."""
        job = ticket.job
        told: _Place | None = None
        while True:
            message = ticket.take()
            response = None
            match message:
                case None:
                    if ticket.stale:
                        ticket.stale = False
                        response, told = self._place_in_queue(job, told)
                case do.Granted():
                    # One that was withdrawn meanwhile is told all the same: the answer to it is a sign of life.
                    status = job.status
                    confirmed = isinstance(status, Running) and status.lease is message.lease and status.confirmed
                    response = convert.granted(self._engine, job, message.lease, confirmed=confirmed)
                    told = None
                case do.Withdrawn():
                    ticket.stale = True
                    told = None
                    continue
                case do.Notify():
                    response = convert.notice(message)
                case do.Ended():
                    response = convert.ended(message)
                case Superseded():
                    pass
            if accepted is not None:
                response = response or scheduler_pb2.AcquireResponse()
                response.accepted.CopyFrom(accepted)
                accepted = None
            if response is not None:
                await context.write(response)
            match message:
                case None:
                    await ticket.wait()
                case do.Ended():
                    if message.reason:
                        raise ENDINGS[message.reason](message.message, reason=message.reason)
                    return
                case Superseded():
                    raise Aborted("another stream re-attached to this job", reason="SUPERSEDED")

    def _place_in_queue(
        self, job: Job, told: _Place | None
    ) -> tuple[scheduler_pb2.AcquireResponse | None, _Place | None]:
        """The job's place in the queue, unless it is what was told last; and what was told last then."""
        if not isinstance(job.status, Queued):
            return None, told
        cause = why.explain(self._engine, job)
        if cause is None or (cause.code is why.Code.STARTING and self._engine.pass_wanted and told is None):
            # The pass under way will tell better, and at once.
            return None, told
        place = (self._engine.queue.position(job), self._engine.queue.in_line, cause.message)
        if place == told:
            return None, told
        expected = self._engine.outlook.of(job, self._driver.now())
        return convert.queued(self._engine, job, place[0], place[1], cause, expected), place

    # -- entering ------------------------------------------------------------------------------------------

    def _enter(self, request: scheduler_pb2.AcquireRequest, caller: Caller) -> tuple[Job, str, bool]:
        """Find or make the job that the stream will speak for. Returns it, its token, and whether it was there."""
        if request.resume_token:
            job = self._job_of(request.resume_token)
            if job is None or job.spec.owner.uid != caller.owner.uid:
                # Whose word this is decides whether the holder's lease is lost or its scheduler only away.
                raise Aborted(
                    "resume_token: no job of yours waits or runs under it (any more)",
                    field="resume_token",
                    metadata={"state_id": self._services.state_id},
                )
            holder = _checked_holder(request.holder, caller.owner) if request.HasField("holder") else None
            self._driver.handle(ev.Attach(job.id, holder=holder))
            return job, request.resume_token, True
        token = secrets.token_urlsafe(24)
        if request.request_id:
            job = self._engine.job_by_request(caller.owner.uid, request.request_id)
            if job is not None and job.spec.batch is None:
                self._driver.handle(ev.Attach(job.id, hash_token(token)))
                return job, token, True
        spec = self._spec(request, caller, hash_token(token))
        for effect in self._driver.handle(ev.Submit(spec)):
            if isinstance(effect, do.Accepted):
                return self._engine.job(effect.job), token, False
        raise AssertionError("a submit was neither accepted nor refused")

    def _spec(self, request: scheduler_pb2.AcquireRequest, caller: Caller, token_hash: bytes) -> JobSpec:
        self._services.callers.require_priority(caller, request.priority)
        if request.immediate and request.HasField("max_wait"):
            raise Invalid("max_wait: makes no sense together with immediate; give one of them", field="max_wait")
        return JobSpec(
            owner=caller.owner,
            request=convert.request_of(request.resources),
            name=request.name,
            priority=request.priority,
            command=tuple(request.command),
            time_limit=convert.seconds(request, "time_limit"),
            max_wait=convert.seconds(request, "max_wait"),
            immediate=request.immediate,
            auto_confirm=request.auto_confirm,
            holder=_checked_holder(request.holder, caller.owner) if request.HasField("holder") else None,
            token_hash=token_hash,
            request_id=request.request_id,
            estimate=convert.seconds(request, "estimate"),
            preemptible=request.preemptible,
            signal=convert.signal_of(request),
        )

    def _held(self, request: scheduler_pb2.ConfirmRequest | scheduler_pb2.ReleaseRequest, caller: Caller) -> Job:
        """The caller's job that the secret belongs to."""
        number = convert.job_id(request.job_id)
        job = self._job_of(request.resume_token)
        if job is None or job.id != number:
            state = {"state_id": self._services.state_id}
            # A run's secret proves that this state once made the grant, even if the job is forgotten since.
            ours = self._services.tokens.parse(request.resume_token) is not None
            if ours or self._services.archive.job(number).state.final:
                message = f"job {number} has ended, or no longer holds that lease"
                raise Aborted(message, reason="JOB_ENDED", field="job_id", metadata=state)
            raise Denied(
                f"resume_token: is not that of job {number}",
                reason="WRONG_TOKEN",
                field="resume_token",
                metadata=state,
            )
        if job.spec.owner.uid != caller.owner.uid:
            raise Denied(f"job {job.id} is not yours", field="job_id")
        return job

    def _job_of(self, token: str) -> Job | None:
        """The job that waits or runs under a secret: a client's, or that of a batch job's run."""
        run = self._services.tokens.parse(token)
        if run is None:
            return self._engine.job_by_token(hash_token(token))
        job = self._engine.running.get(JobId(run[0]))
        return job if job is not None and job.lease is not None and job.lease.epoch == run[1] else None

    def _dry_run(self, request: scheduler_pb2.AcquireRequest, caller: Caller) -> scheduler_pb2.AcquireResponse:
        spec = self._spec(request, caller, b"")
        now = self._driver.now()
        job, devices = self._engine.dry_run(spec, now)
        if devices is not None:
            return scheduler_pb2.AcquireResponse(
                dry_run=scheduler_pb2.DryRun(starts_now=True, gpus=convert.allocated(self._engine, devices))
            )
        position = self._engine.queue.position(job)
        choice = self._engine.would_preempt(job, now)
        cause = why.foresee(self._engine, job, choice)
        if choice is None:
            expected = self._engine.outlook.tried(job, now)
        else:
            at_latest = now + self._engine.settings.policy.preempt_grace
            expected = Expected(at_latest, at_latest)
        return scheduler_pb2.AcquireResponse(
            dry_run=scheduler_pb2.DryRun(
                position=position,
                reason=convert.reason_of(cause),
                forecast=convert.timestamp(expected.forecast),
                promise=convert.timestamp(expected.promise),
            )
        )


def _checked_holder(message: scheduler_pb2.Holder, owner: Owner) -> Holder | None:
    """The holder's process, if it is there and the caller's own.

    Raises:
        Invalid: it is somebody else's: GPU processes would be taken for those of the lease.
    """
    if message.pid <= 0:
        return None
    uid = process_uid(message.pid)
    if uid is None:
        # Another pid namespace, or gone already: then nothing can be attributed, and the stream still decides.
        return None
    if owner.uid not in (0, uid):
        raise Invalid(f"holder.pid: process {message.pid} is not yours", field="holder.pid")
    return Holder(message.pid, message.start_ticks or process_start_ticks(message.pid) or 0)
