"""Has supervisors started for granted batch jobs. A listener of the driver."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.batch import Usage
from gpusched.scheduler.core.errors import DomainError, Unavailable
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.states import Outcome, Running, State
from gpusched.scheduler.driver import Driver
from gpusched.scheduler.environment import lease_environment
from gpusched.scheduler.run_tokens import RunTokens
from gpusched.scheduler.runner.model import Report, Run, kept_log

#: Seconds after a restart within which an agent of before has begun whatever it was told to; half of a short window.
BEGUN_WITHIN = 5.0


class Runner(Protocol):
    """What starts supervisors on this machine."""

    def launch(self, run: Run) -> None:
        """Start one; a failure is told by the callback that the runner was made with."""


class Launcher:
    """
    Args:
        driver: whose batch jobs are run.
        tokens: makes the supervisors' secrets.
        address: where the supervisors find this server.
        state_id: names the state that they belong to.
        logs: directory for the output of jobs that name no file.
        peak_memory: the most GPU memory that was seen in use by a running job, in bytes.
    """

    def __init__(
        self,
        driver: Driver,
        tokens: RunTokens,
        address: str,
        state_id: str,
        logs: Path,
        peak_memory: Callable[[JobId], int],
    ) -> None:
        self._driver = driver
        self._tokens = tokens
        self._address = address
        self._state_id = state_id
        self.logs = logs
        self._peak_memory = peak_memory
        self.runner: Runner | None = None

    def on_effect(self, effect: do.Effect) -> None:
        if not isinstance(effect, do.StartRun):
            return
        job = self._driver.engine.jobs[effect.job]
        batch = job.spec.batch
        if self.runner is None or batch is None or job.lease is None or job.lease.epoch != effect.lease.epoch:
            return  # ended, or started anew, while the grant was being saved
        environment = dict(batch.environment)
        environment.update(lease_environment(self._driver.engine, job, effect.lease))
        environment["GPUSCHED_ATTEMPT"] = str(effect.attempt)
        environment["GPUSCHED_URL"] = self._address
        self.runner.launch(
            Run(
                job_id=str(job.id),
                epoch=effect.lease.epoch,
                attempt=effect.attempt,
                resume_token=self._tokens.make(job.id, effect.lease.epoch),
                address=self._address,
                state_id=self._state_id,
                command=job.spec.command,
                environment=environment,
                working_directory=batch.working_directory or _home(),
                output_path=str(self.output_path(job, effect.attempt)),
                time_limit=job.time_limit,
                grace=batch.grace,
                state_directory=str(self.logs.parent),
                signal=job.spec.signal,
            )
        )

    def on_failed(self, job_id: str, epoch: int, message: str) -> None:
        """A supervisor could not be started."""
        self._driver.handle(ev.NotStarted(JobId(int(job_id)), epoch, message))

    async def on_report(self, job_id: str, epoch: int, report: Report) -> bool:
        """A run has ended; its supervisor says how. Returns when that is saved, with False if it cannot be."""
        job = JobId(int(job_id))
        message = "".join(c if c.isprintable() else "?" for c in report.message[:500])
        usage = Usage(report.wall, report.cpu, report.peak_memory_bytes, report.gpu_seconds, self._peak_memory(job))
        outcome = Outcome(report.exit_status, report.signal, message)
        try:
            self._driver.handle(ev.Release(job, epoch, outcome, report.timed_out, usage))
        except DomainError:
            pass  # it has lost that lease, or the job has ended: nobody waits for its word, once that is saved
        try:
            await self._driver.saved()
        except Unavailable:
            return False
        return True

    async def queue_again_what_never_began(self) -> None:
        """After a restart: queue runs again that were granted and never begun, a while after the start.

        The server before this one died between the save of the grant and its word to the agent, or the machine did:
        nobody will come for that lease, and no command has run. A supervisor makes the run's log before anything else,
        wherever the output goes, so that one which is not there tells. Should it be merely late, its lease is refused
        and it ends.
        """
        await asyncio.sleep(min(BEGUN_WITHIN, self._driver.engine.settings.window / 2))
        for job_id in sorted(self._driver.engine.absent):
            job = self._driver.engine.jobs[job_id]
            if self._never_began(job):
                state, why = State.QUEUED, "its run was never begun, as the scheduler died at that moment; queued again"
                if job.cancelling is not None:
                    state, why = State.CANCELLED, job.cancelling[0]
                self._driver.handle(ev.Force(job_id, state, why))

    def _never_began(self, job: Job) -> bool:
        if job.spec.batch is None or not isinstance(job.status, Running) or job.status.confirmed:
            return False
        return not os.path.lexists(kept_log(self.logs, str(job.id), job.attempt))

    def output_path(self, job: Job, attempt: int) -> Path:
        """Where a run's output goes."""
        asked = job.spec.batch.output_path if job.spec.batch is not None else ""
        if asked:
            return Path(asked.replace("%j", str(job.id)).replace("%a", str(attempt)))
        return kept_log(self.logs, str(job.id), attempt)


def _home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a user that is a mere number, as in a container
        return "/"
