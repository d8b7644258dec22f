"""All jobs that are kept: those that the engine has at hand, and ended ones that only the store has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice

from gpusched.scheduler.codec import job_of
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import NotFound, NotSatisfiable, Unavailable
from gpusched.scheduler.core.jobs import HistoryLine, Job, JobId
from gpusched.scheduler.core.states import State
from gpusched.scheduler.ports import Store, StoreError

log = logging.getLogger("gpusched.store")

#: Ended jobs read from the store at a time.
_CHUNK = 200
#: So many of the jobs that ended before the server was started are known by the ids of their calls.
_REMEMBERED = 2000


class Archive:
    """
    Args:
        engine: has the jobs that have not ended, and some that have.
        store: has them all, as of the last save.
    """

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine = engine
        self._store = store
        self._requests: dict[tuple[int, str], JobId] | None = None

    def job(self, job_id: JobId, field: str = "job_id") -> Job:
        """A job, ended or not.

        Raises:
            NotFound: there is none, or it ended so long ago that it is kept no more.
            Unavailable: the store, or what it has of this job, cannot be read.
        """
        found = self._engine.jobs.get(job_id)
        if found is not None:
            return found
        try:
            record = self._store.job(job_id)
            if record is not None:
                return job_of(record, self._store.events(job_id))
        except StoreError as error:
            raise Unavailable(str(error), reason="STORE") from None
        except ValueError as error:
            raise Unavailable(f"{error}; `gpusched doctor` tells more", reason="STORE") from None
        raise NotFound(f"{field}: there is no job {job_id} (ended jobs are kept for a while only)", field=field)

    def living(self, job_id: JobId, field: str = "job_id") -> Job:
        """A job that the engine knows: one that has not ended, or ended of late.

        Raises:
            NotFound: there is none.
            NotSatisfiable: it ended longer ago; nothing can be done about it.
            Unavailable: the store cannot be read.
        """
        job = self.job(job_id, field)
        if job_id not in self._engine.jobs:
            ended = job.state.value.replace("_", " ")
            raise NotSatisfiable(f"{field}: job {job_id} has ended already ({ended})", reason="JOB_ENDED", field=field)
        return job

    def job_by_request(self, uid: int, request_id: str) -> Job | None:
        """The batch job that a user's call with this id made, None if there is none, or the engine knows it.

        Args:
            uid: the user.
            request_id: not empty.

        Raises:
            Unavailable: the store cannot be read.
        """
        if self._requests is None:
            # Those that end from now on are remembered by the engine.
            jobs = islice(self.ended(frozenset(State), "", ""), _REMEMBERED)
            batch = [job for job in jobs if job.spec.batch is not None and job.spec.request_id]
            self._requests = {(job.spec.owner.uid, job.spec.request_id): job.id for job in reversed(batch)}
        job_id = self._requests.get((uid, request_id))
        return None if job_id is None else self.job(job_id)

    def history(self, job: Job) -> list[HistoryLine]:
        """What happened to a job, oldest first: all of it, where the store can be read."""
        try:
            events = self._store.events(job.id)
        except StoreError:
            events = ()
        saved = [HistoryLine(line.at, State(line.state), line.message) for line in events]
        # What happened in this moment may not be saved yet; what happened before a restart is only there.
        last = saved[-1] if saved else None
        newer = [line for line in job.history if last is None or line.at > last.at]
        return saved + newer

    def ended(
        self, states: frozenset[State], user: str, name: str, after: tuple[float, int] | None = None
    ) -> Iterator[Job]:
        """Ended jobs in some states, newest first, as far as they are saved and can be read.

        Args:
            states: only these.
            user: only this login name or uid; empty for all.
            name: only those whose names contain it; empty for all.
            after: (when, id) of the one before the first.

        Raises:
            Unavailable: the store cannot be read.
        """
        names = frozenset(state.value for state in states if state.final)
        while names:
            try:
                records = self._store.ended_jobs(states=names, user=user, name=name, after=after, limit=_CHUNK)
            except StoreError as error:
                raise Unavailable(str(error), reason="STORE") from None
            for record in records:
                try:
                    yield self._engine.jobs.get(JobId(record.id)) or job_of(record)
                except ValueError as error:
                    log.warning("left out of a list: %s", error)
            if len(records) < _CHUNK:
                return
            last = records[-1]
            after = (last.ended_at or 0.0, last.id)

    def unreadable(self) -> list[str]:
        """A sentence for each ended job that the store has in a form that nobody knows. Raises StoreError."""
        said: list[str] = []
        after: tuple[float, int] | None = None
        while True:
            records = self._store.ended_jobs(after=after, limit=_CHUNK)
            for record in records:
                try:
                    job_of(record)
                except ValueError as error:
                    said.append(str(error))
            if len(records) < _CHUNK:
                return said
            after = (records[-1].ended_at or 0.0, records[-1].id)

    def count_ended(self, states: frozenset[State], user: str, name: str) -> int:
        """How many `ended` would give. Raises Unavailable."""
        names = frozenset(state.value for state in states if state.final)
        if not names:
            return 0
        try:
            return self._store.count_ended(states=names, user=user, name=name)
        except StoreError as error:
            raise Unavailable(str(error), reason="STORE") from None
