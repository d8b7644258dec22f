"""What may be asked for at all: each refusal names the field and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping

from gpusched.scheduler.core.batch import BatchSpec
from gpusched.scheduler.core.constraints import MAX_NAME, check_request
from gpusched.scheduler.core.errors import Exhausted, Invalid, NotFound, NotSatisfiable
from gpusched.scheduler.core.events import Update
from gpusched.scheduler.core.jobs import Job, JobId, JobSpec
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.settings import MAX_PRIORITY, MIN_PRIORITY, Settings
from gpusched.scheduler.core.states import Queued, State

#: Most words and characters of a command that are kept for lists.
MAX_COMMAND_WORDS = 4096
MAX_COMMAND_CHARS = 65536
#: Most characters of a batch job's environment, retries, jobs to follow, and seconds between request and kill.
MAX_ENVIRONMENT_CHARS = 262144
MAX_RETRIES = 100
MAX_DEPENDENCIES = 100
MAX_GRACE = 3600.0
#: Longest time that may be asked for, in seconds: ten years.
MAX_SECONDS = 10 * 365 * 86400.0
#: Signals that a job may ask for before it is preempted, and how long before at most, in seconds.
SIGNALS = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "CONT", "XCPU", "WINCH")
MAX_NOTICE = 86400.0


#: So many requests are remembered as good.
MAX_CHECKED = 1024

#: What holds where nothing else was set.
NO_LIMITS = Settings()


def check(spec: JobSpec, pool: Pool, settings: Settings = NO_LIMITS) -> None:
    """Refuse what is malformed, and what this machine could not give even if all of it were idle.

    Raises:
        Invalid: a field has a value that is never allowed.
        NotSatisfiable: more than exists.
        Exhausted: more than a limit allows.
    """
    if spec.name:
        check_name(spec.name)
    if spec.priority:
        check_priority(spec.priority)
    if spec.command:
        _check_command(spec.command)
    if spec.time_limit is not None:
        _check_seconds("time_limit", spec.time_limit)
        check_limit(spec.time_limit, settings)
    if spec.max_wait is not None:
        _check_seconds("max_wait", spec.max_wait, zero=True)
    if spec.estimate is not None:
        _check_seconds("estimate", spec.estimate)
    if spec.signal is not None:
        _check_signal(*spec.signal)
    if spec.batch is not None:
        _check_batch(spec.command, spec.batch)
    if spec.request_id and (len(spec.request_id) > MAX_NAME or not spec.request_id.isprintable()):
        raise Invalid(f"request_id: at most {MAX_NAME} printable characters", field="request_id")
    request = spec.request
    if pool.checked.get(id(request)) is not request:
        check_request(request, pool)
        if len(pool.checked) >= MAX_CHECKED:
            pool.checked.clear()
        pool.checked[id(request)] = request


def check_room(waiting: int, settings: Settings) -> None:
    """Raises Exhausted if no more jobs may wait."""
    if settings.max_queue and waiting >= settings.max_queue:
        raise Exhausted(
            f"the queue is full: {waiting} jobs wait, and max-queue allows {settings.max_queue}; try again later",
            reason="QUEUE_FULL",
            retry_after=30.0,
        )


def check_limit(time_limit: float, settings: Settings) -> None:
    """Raises Exhausted if a job may not take that long."""
    if settings.max_limit is not None and time_limit > settings.max_limit:
        raise Exhausted(
            f"time_limit: {time_limit:g} s is more than max-time-limit allows, {settings.max_limit:g} s",
            reason="TIME_LIMIT_TOO_LONG",
            field="time_limit",
        )


def check_update(event: Update, job: Job, settings: Settings) -> None:
    """Refuse a change before any of it is made. Raises Invalid, NotSatisfiable, Exhausted."""
    if event.priority is not None:
        check_priority(event.priority)
    if event.name is not None:
        check_name(event.name)
    waits = isinstance(job.status, Queued)
    if event.held is not None and event.held != job.held and not waits:
        raise NotSatisfiable(f"held: job {job.id} runs; only a job that waits can be held", field="held")
    if event.time_limit is not None:
        _check_seconds("time_limit", event.time_limit)
        check_limit(event.time_limit, settings)
        if not waits:
            raise NotSatisfiable(
                f"time_limit: job {job.id} runs; only that of a job that waits can be changed", field="time_limit"
            )


def unmet(batch: BatchSpec, jobs: Mapping[JobId, Job], ended: Mapping[int, State]) -> set[int]:
    """The jobs that a new one is to follow and that have not ended.

    Args:
        batch: the new one.
        jobs: those that the engine knows.
        ended: final states of those that it has forgotten.

    Raises:
        NotFound: one of them does not exist.
        NotSatisfiable: one of them ended in another way than is waited for.
    """
    waiting = set()
    for dependency in batch.dependencies:
        job = jobs.get(JobId(dependency.job))
        state = job.state if job is not None else ended.get(dependency.job)
        if state is None:
            raise NotFound(f"dependencies: there is no job {dependency.job} to follow", field="dependencies")
        if not state.final:
            waiting.add(dependency.job)
        elif not dependency.after.satisfied_by(state):
            raise NotSatisfiable(
                f"dependencies: job {dependency.job} has ended {state.value.replace('_', ' ')}, "
                f"so it will never be {dependency.after.value}",
                reason="DEPENDENCY_NEVER",
                field="dependencies",
            )
    return waiting


def check_name(name: str) -> None:
    """Raises Invalid."""
    if len(name) > MAX_NAME:
        raise Invalid(f"name: has {len(name)} characters; at most {MAX_NAME} are allowed", field="name")
    if not name.isprintable():
        raise Invalid("name: has control characters or line breaks; only printable ones are allowed", field="name")


def check_priority(priority: int) -> None:
    """Raises Invalid."""
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise Invalid(
            f"priority: {priority} is out of range; allowed are {MIN_PRIORITY} to {MAX_PRIORITY}", field="priority"
        )


def _check_command(command: tuple[str, ...]) -> None:
    if len(command) > MAX_COMMAND_WORDS or sum(map(len, command)) > MAX_COMMAND_CHARS:
        raise Invalid(
            f"command: at most {MAX_COMMAND_WORDS} words and {MAX_COMMAND_CHARS} characters are allowed here",
            field="command",
        )


def _check_batch(command: tuple[str, ...], batch: BatchSpec) -> None:
    if not command or not command[0]:
        raise Invalid("command: is empty; give the program to run and its arguments", field="command")
    if any("\0" in word for word in command):
        raise Invalid("command: has a zero byte in it", field="command")
    for name, value in batch.environment:
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise Invalid(
                f"environment: {name[:80]!r} is no name of a variable; it must not be empty nor hold '='",
                field="environment",
            )
    if sum(len(name) + len(value) for name, value in batch.environment) > MAX_ENVIRONMENT_CHARS:
        raise Invalid(f"environment: at most {MAX_ENVIRONMENT_CHARS} characters are allowed", field="environment")
    for field, path in (("working_directory", batch.working_directory), ("output_path", batch.output_path)):
        if path and (not path.startswith("/") or "\0" in path or len(path) > 4096):
            raise Invalid(f"{field}: must be an absolute path of at most 4096 characters", field=field)
    retry = batch.retry
    if not 0 <= retry.max_retries <= MAX_RETRIES:
        raise Invalid(
            f"retry.max_retries: {retry.max_retries} is out of range; 0 to {MAX_RETRIES}", field="retry.max_retries"
        )
    _check_seconds("retry.backoff", retry.backoff, zero=True)
    if any(not 1 <= status <= 255 for status in retry.exit_statuses):
        raise Invalid("retry.exit_statuses: allowed are 1 to 255", field="retry.exit_statuses")
    if not 0 <= batch.grace <= MAX_GRACE:
        raise Invalid(f"grace: {batch.grace:g} s is out of range; 0 s to {MAX_GRACE:g} s", field="grace")
    if len(batch.dependencies) > MAX_DEPENDENCIES:
        raise Invalid(f"dependencies: at most {MAX_DEPENDENCIES} are allowed", field="dependencies")
    if len({dependency.job for dependency in batch.dependencies}) < len(batch.dependencies):
        raise Invalid("dependencies: name each job once", field="dependencies")


def _check_signal(name: str, before: float) -> None:
    field = "preempt_signal"
    if name not in SIGNALS:
        raise Invalid(f"{field}.name: {name[:40]!r} is none of {', '.join(SIGNALS)}", field=f"{field}.name")
    if not 0 < before <= MAX_NOTICE:
        text = f"{field}.before: {before:g} s is out of range; allowed is more than 0 s up to {MAX_NOTICE:g} s"
        raise Invalid(text, field=f"{field}.before")


def _check_seconds(field: str, value: float, *, zero: bool = False) -> None:
    if not (0 <= value <= MAX_SECONDS) or (value == 0 and not zero):
        allowed = "from 0 s" if zero else "more than 0 s"
        raise Invalid(f"{field}: {value:g} s is out of range; allowed is {allowed} up to ten years", field=field)
