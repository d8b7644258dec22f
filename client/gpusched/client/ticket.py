"""From a request to its lease and back: the steps that the sync and the async `acquire` share.

The steps are generators that yield futures and get their results, so that each side waits in its own way.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Generic, TypeVar

from gpusched.client import environment, scope, wire
from gpusched.client.environment import process_environment
from gpusched.client.errors import GpuschedError, GpuschedWarning, LeaseLost, NotSatisfiable
from gpusched.client.lease import BaseLease
from gpusched.client.lease_views import AllocatedGpu, Notice, QueueUpdate
from gpusched.client.notebook import show
from gpusched.client.options import AcquireOptions, check_callback
from gpusched.client.session import Message, Session, live_sessions
from gpusched.client.units import format_size
from gpusched.client.variables import lease_variables

C = TypeVar("C")
L = TypeVar("L", bound=BaseLease)
R = TypeVar("R")
Steps = Generator["Future[Message]", Message, R]

_said: set[str] = set()


class BaseTicket(Generic[L]):
    """One request for GPUs, from before it is made until its lease has ended."""

    _lease_class: ClassVar[type[BaseLease]]
    _takes_coroutines: ClassVar[bool] = False

    def __init__(
        self,
        options: AcquireOptions,
        on_update: Callable[[QueueUpdate], object] | None,
        on_notice: Callable[[Notice], object] | None,
        on_lost: Callable[[LeaseLost], object] | None,
        environ: bool,
    ) -> None:
        for field, callback in (("on_update", on_update), ("on_notice", on_notice), ("on_lost", on_lost)):
            check_callback(field, callback, coroutines=self._takes_coroutines)
        self._options = options
        self._on_update = on_update
        self._on_notice = on_notice
        self._on_lost = on_lost
        self._environ = environ
        self._dispatch: Callable[[Callable[[], object]], object] | None = None
        self._session: Session | None = None
        self._lease: L | None = None
        self._begun = False
        self._closed = False
        self.job_id = ""

    @property
    def lease(self) -> L:
        """The lease; raises GpuschedError before the grant."""
        if self._lease is None:
            raise GpuschedError("the GPUs are not granted yet")
        return self._lease

    @property
    def granted(self) -> bool:
        """Whether the lease is there."""
        return self._lease is not None

    def __del__(self) -> None:
        # A granted one is referenced by its lease; this one only waits, and nobody will hear of its grant.
        if getattr(self, "_session", None) is not None and self._lease is None and not self._closed:
            warnings.warn("a request for GPUs was dropped without close()", ResourceWarning, stacklevel=2, source=self)
            self._give_up()

    # -- towards the grant -------------------------------------------------------------------------------

    def _advance(self) -> Steps[QueueUpdate | None]:
        """Until the next change of place, or None for the grant; raises GpuschedError if there will be none."""
        if self._closed:
            raise GpuschedError("this request was closed; make a new one with acquire(...)")
        if not self._begun:
            self._begun = True
            yield from self._begin()
        while self._lease is None:
            assert self._session is not None
            message = yield self._session.receive()
            kind = message["kind"]
            if kind == wire.QUEUED:
                return wire.load(QueueUpdate, message["update"])
            if kind == wire.GRANTED:
                # Here and not in the reader's thread: a ticket that nobody waits for any more must not take GPUs.
                self._session.confirm()
            elif kind == wire.CONFIRMED:
                self._granted(self._session)
            elif kind == wire.ACCEPTED:
                self.job_id = message["job_id"]
            elif kind == wire.FAILED:
                raise wire.load_error(message["error"])
            elif kind == wire.SAY:
                say(message["text"])
        return None

    def _begin(self) -> Steps[None]:
        options = self._options
        if options.nested == "auto":
            outer = scope.enclosing()
            if outer is not None and outer.address == options.address:
                self._borrow(outer.gpus, outer.env, outer.job_id, outer.id, outer)
                outer._inner.append(self.lease)
                return
            held = [session.grant.job_id for session in live_sessions() if session.grant]
            if job_id := scope.inherited_job(options.address, held):
                yield from self._borrow_from_job(job_id)
                if self._lease is not None:
                    return
        yield from self._reuse_kept()
        if self._lease is not None:
            return
        if self._environ and (user := environment.cuda_user()):
            _warn(
                f"{user} in this process already: CUDA_VISIBLE_DEVICES no longer changes which GPUs it uses. Acquire "
                "before the first use of CUDA, or move work to the devices of lease.gpus yourself"
            )
        self._session = Session(options.address, wire.encode(wire.ACQUIRE, request=options.message()), self._dispatch)

    def _borrow_from_job(self, job_id: str) -> Steps[None]:
        """Use the GPUs of the job whose variables we inherited, if we still run under it."""
        address = self._options.address
        asking = Session(address, wire.encode(wire.LOOK_UP, job_id=job_id, address=address))
        try:
            while (answer := (yield asking.receive()))["kind"] not in (wire.JOB, wire.FAILED):
                if answer["kind"] == wire.SAY:
                    say(answer["text"])
        finally:
            asking.abandon()
        uuids = [uuid for uuid in os.environ.get("GPUSCHED_GPUS", "").split(",") if uuid]
        if answer["kind"] == wire.JOB and answer["job"] is not None:
            from gpusched.client.views import Job  # brings all views along, which other leases do not need

            job = wire.load(Job, answer["job"])
            if not scope.runs_under(job):
                return
            # In the order of the variables, which may show fewer than the job has: a nested lease inside it.
            known = {gpu.uuid: gpu for gpu in job.gpus}
            gpus = tuple(known.get(uuid, AllocatedGpu(uuid)) for uuid in uuids) or job.gpus
            self._borrow(gpus, os.environ, job_id, job.lease_id, None)
        elif answer["error"]["type"] == "ServerUnavailable" and uuids:
            # A scheduler that is away takes nobody's GPUs: believe the variables.
            self._borrow(tuple(AllocatedGpu(uuid) for uuid in uuids), os.environ, job_id, "", None)
        # Else it knows no such job: the variables are left over from another time.

    def _borrow(
        self,
        gpus: tuple[AllocatedGpu, ...],
        variables: Mapping[str, str],
        job_id: str,
        lease_id: str,
        outer: BaseLease | None,
    ) -> None:
        """Make a lease of GPUs that an outer one holds (of this process or not); NotSatisfiable if they will not do."""
        positions = scope.fitting(gpus, self._options)
        if positions is None:
            raise NotSatisfiable(scope.too_few(job_id, gpus, self._options), reason="NESTED")
        inherited = {name: variables[name] for name in environment.OF_A_LEASE if name in variables}
        chosen = tuple(gpus[position] for position in positions)
        _say_once(scope.inside(job_id, chosen, self._options))
        self.job_id = job_id
        self._hand_over(
            lease_id=lease_id,
            job_id=job_id,
            gpus=chosen,
            env=environment.narrowed(inherited, positions),
            expires_at=outer.expires_at if outer is not None else None,
            session=outer._session if outer is not None else None,
            nested=True,
        )
        self._limit(self.lease, outer._deadline if outer is not None else None)

    def _limit(self, lease: BaseLease, outer_deadline: float | None = None) -> None:
        """Give a part of a lease a time limit of its own: the earlier one counts, and it ends nothing but this part."""
        limit = self._options.time_limit
        lease._deadline = outer_deadline
        if limit is not None:
            deadline, at = time.monotonic() + limit, datetime.now(UTC) + timedelta(seconds=limit)
            lease._deadline = min(deadline, outer_deadline) if outer_deadline is not None else deadline
            lease.expires_at = min(at, lease.expires_at) if lease.expires_at is not None else at

    def _reuse_kept(self) -> Steps[None]:
        """Look at what earlier blocks left behind: what is empty by now is given back, what is not is used again."""
        taken, reused = scope.take_kept(), None
        try:
            for session in taken:
                answer = yield session.finish(_outcome(None, session), keep_if_busy=True)
                ours = session.address == self._options.address and self._options.nested != "new"
                ours = ours and (session.deadline is None or time.monotonic() < session.deadline)
                if answer["kind"] == wire.KEPT and ours and reused is None and self._positions_in(session):
                    reused = session
        finally:
            for session in taken:
                if session is not reused and not session.over:
                    scope.keep(session)
        if reused is not None:
            self._session = reused
            self._granted(reused, self._positions_in(reused))
            self._limit(self.lease)
            say(_goes_on(self.lease, reused))

    def _positions_in(self, session: Session) -> list[int] | None:
        return scope.fitting(session.grant.gpus, self._options) if session.grant is not None else None

    def _granted(self, session: Session, positions: list[int] | None = None) -> None:
        grant = session.grant
        assert grant is not None
        whole = list(range(len(grant.gpus)))
        session.on_notice, session.on_lost = self._callback(self._on_notice), self._callback(self._on_lost)
        session.dispatch = self._dispatch
        if positions is None and self._options.time_limit is not None:
            session.deadline = time.monotonic() + self._options.time_limit
        self.job_id = grant.job_id
        self._hand_over(
            lease_id=grant.lease_id,
            job_id=grant.job_id,
            gpus=tuple(grant.gpus[position] for position in positions or whole),
            env=environment.narrowed(lease_variables(grant.environment, self._options.address), positions or whole),
            granted_at=grant.granted_at,
            expires_at=grant.expires_at,
            session=session,
        )

    def _callback(self, callback: Callable[[C], object] | None) -> Callable[[C], object] | None:
        """What the session is to call for it."""
        return callback

    def _hand_over(self, **fields: Any) -> None:
        lease: Any = self._lease_class(address=self._options.address, **fields)
        lease._ticket = self
        self._lease = lease
        if self._environ:
            process_environment.push(lease.env)
            scope.enter(lease)

    # -- towards the end ---------------------------------------------------------------------------------

    def _end(self, error: BaseException | None, *, in_block: bool) -> Steps[None]:
        """Give the lease back, once. Raises LeaseLost if it was lost in a block that knows nothing of it."""
        lease, session = self._lease, self._session
        if self._closed:
            return
        if lease is not None and os.getpid() != lease._owner_pid and not in_block:
            return  # a forked child's release: not its lease to end, and it still works under it
        self._closed = True
        if lease is None:
            if session is not None:
                session.abandon()
            return
        _leave(lease)
        if os.getpid() != lease._owner_pid:
            return  # a forked child leaves its parent's block
        warning = ""
        if session is not None and not session.over:
            answer = yield session.finish(_outcome(error, session), keep_if_busy=True)
            if answer["kind"] == wire.KEPT:
                scope.keep(session)
                warning = _still_busy(answer["processes"])
            elif answer.get("away"):
                warning = "the scheduler is away and could not be told that this lease has ended; it will notice"
        lease._released.set()
        if warning:
            _warn(warning)
        lost = lease._session.lost if lease._session is not None else None
        if lost is not None and in_block:
            if error is None:
                raise LeaseLost(str(lost), reason=lost.reason)
            if not isinstance(error, LeaseLost):
                error.add_note(f"gpusched: the lease was lost meanwhile: {lost}")

    def _give_up(self) -> None:
        """After an interrupted wait for the end: kill the helper, which frees everything at once."""
        if self._session is not None and not self._session.over:
            self._session.abandon()
        if self._lease is not None:
            _leave(self._lease)
            self._lease._released.set()
        self._closed = True


def _leave(lease: BaseLease) -> None:
    """Put the variables back. Leases inside this one, whose blocks were never closed, end with it."""
    for inner in lease._inner:
        if not inner.released:
            _leave(inner)
            inner._released.set()
    process_environment.pop(lease.env)
    scope.leave(lease)


def say(text: str) -> None:
    """A line for the user, on stderr."""
    show(f"{text}\n")


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say(text)


def _warn(text: str) -> None:
    # Out of this module and those that call it: the user's own line is what the warning is about.
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("gpusched.client"):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, GpuschedWarning, stacklevel=level)


def _outcome(error: BaseException | None, session: Session) -> Message:
    status = 0 if error is None else 1
    if isinstance(error, SystemExit):  # as the interpreter and the kernel make a status of it
        code = error.code
        status = code & 0xFF if isinstance(code, int) else 0 if code is None else 1
    if error is None or status == 0:
        return {"exit_status": 0, "message": "", "timed_out": False}
    # A limit that was given to a part of the lease alone is no end of the job's own time.
    over = session.deadline is not None and time.monotonic() >= session.deadline
    timed_out = over and isinstance(error, LeaseLost) and error.reason == "TIME_LIMIT"
    # The type alone: an exception's text may hold what history is not meant to show.
    return {"exit_status": status, "message": f"ended by {type(error).__name__}", "timed_out": timed_out}


def _goes_on(lease: BaseLease, session: Session) -> str:
    still = "hold" if len(lease.gpus) > 1 else "holds"
    text = f"gpusched: job {lease.job_id} goes on: its {scope.names(lease.gpus)} still {still} this process's data"
    expires_at = session.grant.expires_at if session.grant is not None else None
    if expires_at is None:
        return text
    until, today = expires_at.astimezone(), datetime.now(UTC).astimezone().date()
    shown = f"{until:%H:%M:%S}" if until.date() == today else f"{until:%Y-%m-%d %H:%M:%S}"
    return f"{text}; its time limit ends at {shown}"


def _still_busy(processes: list[list[int]]) -> str:
    own = os.getpid()
    held = "; ".join(
        f"GPU {index} still holds {format_size(size) + ' of' if size else 'memory of'} "
        f"{'this process' if pid == own else f'process {pid}'}"
        for index, pid, size in processes
    )
    return (
        f"{held} (a CUDA context lives until its process ends): the lease is kept until then, and the next acquire() "
        "in this process gets the same GPUs"
    )
