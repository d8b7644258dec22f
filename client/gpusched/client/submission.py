"""What a batch job asks for, from words and Python values to the request: shared by the CLI, gsrun and the API."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from gpusched.client.units import duration_seconds, parse_signal, parse_size
from gpusched.client.usage import UsageError
from gpusched.client.where import checked_where

AFTER = ("ok", "any", "failed")
_AFTER = re.compile(r"(\d{1,18})(?::([a-z]+))?", re.ASCII)
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", re.ASCII)

BEGIN_ALLOWED = "give now+2h, 14:30 (today, or tomorrow if that has passed) or 2026-11-23T14:30"
AFTER_ALLOWED = "give a job's id, alone or with :ok, :any or :failed, such as 17:ok"
COMMAND_ALLOWED = "give the program and its arguments as a list of words"
RETRY_ON_ALLOWED = "give exit statuses, 1 to 255"
MAX_RETRIES = 100

#: Variables that name the lease that the submitter itself is under; the job gets its own.
_NOT_PASSED_ON = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")


class HasId(Protocol):
    """A job: a `SubmittedJob`, or one of `Client.jobs()`."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A batch job to be.

    Attributes:
        command: the program and its arguments; no shell runs it.
        gpus: how many; None for one, or all of `gpu_ids`.
        gpu_memory: least memory of each, "40G" or bytes; None for any.
        gpu_model: text in the model's name, None for any.
        nodes: names of the nodes that will do, None for any.
        gpu_ids: GPUs that will do, by index, "node:index" or uuid, as "0,3" or a list; None for any.
        exclude: nodes and GPUs that will not do.
        labels: what the node, or the GPU itself, must be labelled with.
        gpus_per_node: exactly so many on each node that is used.
        placement: "pack" (the fullest node that holds it, the default) or "spread" (evenly over the emptiest).
        shared: have only `gpu_memory` of each GPU, beside other jobs that do the same.
        cpus: cores on each node that is used; None for none in particular.
        mem: memory of the host on each node that is used, "32G" or bytes; None for none in particular.
        time_limit: "2h", seconds or a timedelta; None for the scheduler's default.
        environment: the command's; None for the present one.
        workdir: where it runs; None for the present directory.
        output: file for what it writes, "%j" is the job's id and "%a" the attempt; None for the scheduler's own.
        retries: further runs after a failed one.
        backoff: pause before the first retry; it doubles.
        retry_on: only after this exit status, or these; empty for any failure.
        requeue: queue it again if its run is lost; one that is preempted is queued again in any case.
        after: the job or jobs that it follows, each as a job, an id, or "17:ok", "17:any" or "17:failed".
        begin: not before, see BEGIN_ALLOWED, or a datetime.
        hold: wait until it is released by hand.
        grace: between the request to end and the kill; None for 15 s.
        estimate: how long the work is expected to take, "2h", seconds or a timedelta; nothing ends at it.
        preemptible: it may be ended for a job of a higher tier.
        signal: "USR1@60s": what it is sent, and how long before its time limit, or before it is ended for another job.
    """

    command: Sequence[str | os.PathLike[str]]
    gpus: int | None = None
    gpu_memory: str | int | None = None
    gpu_model: str | None = None
    nodes: str | Iterable[str] | None = None
    gpu_ids: str | int | Iterable[str | int] | None = None
    exclude: str | int | Iterable[str | int] | None = None
    labels: Mapping[str, str] | None = None
    gpus_per_node: int | None = None
    placement: str | None = None
    shared: bool = False
    cpus: int | None = None
    mem: str | int | None = None
    priority: int = 0
    name: str | None = None
    time_limit: str | float | timedelta | None = None
    environment: Mapping[str, str] | None = field(default=None, repr=False)
    workdir: str | os.PathLike[str] | None = None
    output: str | os.PathLike[str] | None = None
    retries: int = 0
    backoff: str | float | timedelta | None = None
    retry_on: int | Iterable[int] | None = ()
    requeue: bool = False
    after: str | int | HasId | Iterable[str | int | HasId] | None = ()
    begin: str | datetime | None = None
    hold: bool = False
    grace: str | float | timedelta | None = None
    estimate: str | float | timedelta | None = None
    preemptible: bool = False
    signal: str | None = None

    def request(self, now: float | None = None) -> Any:
        """The `SubmitRequest`, with an id of its own so that a retried call submits once.

        Args:
            now: seconds since the epoch, for `begin`; the present by default.

        Raises:
            UsageError: a value is malformed; the text names it and what is allowed.
        """
        from google.protobuf.duration_pb2 import Duration

        import gpusched.v1.job_pb2 as job_pb
        import gpusched.v1.resources_pb2 as resources_pb
        import gpusched.v1.scheduler_pb2 as pb

        command = _command(self.command)
        where = checked_where(
            nodes=self.nodes,
            gpu_ids=self.gpu_ids,
            exclude=self.exclude,
            labels=self.labels,
            gpus_per_node=self.gpus_per_node,
            placement=self.placement,
            shared=self.shared,
            cpus=self.cpus,
            mem=self.mem,
        )
        gpus = len(where.gpu_ids) or 1 if self.gpus is None else self.gpus
        resources = resources_pb.ResourceRequest(
            gpus=_whole("gpus", gpus, 0), gpu_model=_text("gpu_model", self.gpu_model or "")
        )
        where.put(resources)
        if self.gpu_memory is not None:
            resources.gpu_memory_bytes = parse_size(self.gpu_memory, "gpu_memory")
        message = pb.SubmitRequest(
            resources=resources,
            command=command,
            name=_text("name", self.name or ""),
            priority=_whole("priority", self.priority, -100, 100),
            environment=_checked_environment(self.environment),
            working_directory=_absolute("workdir", self.workdir or "."),
            output_path=_absolute("output", self.output) if self.output else "",
            retry=job_pb.RetryPolicy(
                max_retries=_whole("retries", self.retries, 0, MAX_RETRIES),
                exit_statuses=_statuses(self.retry_on),
            ),
            requeue=_flag("requeue", self.requeue),
            dependencies=[_dependency(each) for each in _several("after", self.after, AFTER_ALLOWED)],
            held=_flag("hold", self.hold),
            preemptible=_flag("preemptible", self.preemptible),
            request_id=secrets.token_hex(16),
        )

        def put(target: Duration, value: str | float | timedelta | None, name: str) -> None:
            if value is not None:
                target.FromNanoseconds(round(duration_seconds(value, name) * 1e9))

        put(message.time_limit, self.time_limit, "time_limit")
        put(message.retry.backoff, self.backoff, "backoff")
        put(message.grace, self.grace, "grace")
        put(message.estimate, self.estimate, "estimate")
        if self.signal is not None:
            message.preempt_signal.name, before = parse_signal(self.signal)
            put(message.preempt_signal.before, before, "signal")
        if self.begin is not None:
            message.begin_at.FromNanoseconds(round(begin_time(self.begin, time.time() if now is None else now) * 1e9))
        return message


def environment_of(given: Mapping[str, str] | None) -> dict[str, str]:
    """The environment that a job gets: the given one, or the present one without what names the present lease.

    Values that are no text in UTF-8 are left out: the contract has no place for them.
    """
    if given is not None:
        return dict(given)
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_PASSED_ON and not name.startswith("GPUSCHED_") and _is_text(name + value)
    }


def begin_time(value: str | datetime, now: float) -> float:
    """Seconds since the epoch from `now+2h`, `14:30`, an ISO date and time, or a datetime (local if it has no zone).

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(value, datetime):
        try:
            return value.timestamp()
        except (ValueError, OverflowError, OSError):
            raise UsageError("begin", str(value), BEGIN_ALLOWED) from None
    if not isinstance(value, str):
        raise UsageError("begin", value, f"{BEGIN_ALLOWED}, or a datetime")
    text = value.strip()
    if text == "now":
        return now
    if text.startswith("now+"):
        return now + duration_seconds(text[4:], "begin")
    clock = _CLOCK.fullmatch(text)
    try:
        if clock:
            hour, minute, second = int(clock[1]), int(clock[2]), int(clock[3] or 0)
            today = datetime.fromtimestamp(now).replace(hour=hour, minute=minute, second=second, microsecond=0)
            return today.timestamp() if today.timestamp() > now else (today + timedelta(days=1)).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError("begin", value, BEGIN_ALLOWED) from None


def _command(given: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The words of a command; what is no list of them is none, a string in particular."""
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise UsageError("command", given, COMMAND_ALLOWED)
    words: list[str] = []
    for word in given:
        if not isinstance(word, (str, os.PathLike)):
            raise UsageError("command", word, f"{COMMAND_ALLOWED}; each is text or a path")
        words.append(_text("command", os.fspath(word)))
    if not words:
        raise UsageError("command", given, COMMAND_ALLOWED)
    return words


def _several(name: str, given: Any, allowed: str) -> list[Any]:
    """One or several, as a list: text is one, never its characters."""
    if given is None:
        return []
    if isinstance(given, (str, int)) or hasattr(given, "id"):
        return [given]
    if isinstance(given, (bytes, bytearray, Mapping)) or not isinstance(given, Iterable):
        raise UsageError(name, given, f"{allowed}, or a list of these")
    return list(given)


def _dependency(value: str | int | HasId) -> Any:
    import gpusched.v1.job_pb2 as job_pb

    named = value if isinstance(value, (str, int)) else getattr(value, "id", None)
    found = None if isinstance(named, bool) else _AFTER.fullmatch(str(named).strip())
    if not found or (found[2] or "ok") not in AFTER:
        raise UsageError("after", value, AFTER_ALLOWED)
    condition: Any = job_pb.DependencyCondition.Value(f"DEPENDENCY_CONDITION_{(found[2] or 'ok').upper()}")
    return job_pb.Dependency(job_id=found[1], condition=condition)


def _statuses(given: int | Iterable[int] | None) -> list[int]:
    statuses = _several("retry_on", given, RETRY_ON_ALLOWED)
    if any(isinstance(each, bool) or not isinstance(each, int) or not 1 <= each <= 255 for each in statuses):
        raise UsageError("retry_on", given, RETRY_ON_ALLOWED)
    return statuses


def _whole(name: str, value: int, least: int, most: int = 2**31 - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        allowed = f"{least} or more" if most == 2**31 - 1 else f"{least} to {most}"
        raise UsageError(name, value, f"give a whole number, {allowed}")
    return value


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise UsageError(name, value, "give True or False")
    return value


def _absolute(name: str, path: str | os.PathLike[str]) -> str:
    """The path from the root, as text."""
    if not isinstance(path, (str, os.PathLike)):
        raise UsageError(name, path, "give a path")
    text = _text(name, os.fspath(path))
    try:
        return str(Path(text).absolute())
    except OSError as error:
        gone = "is gone" if isinstance(error, FileNotFoundError) else f"is not to be found ({error.strerror})"
        allowed = f"the present directory {gone}; change to one that is there, or name another by its whole path"
        raise UsageError(name, text, allowed) from None


def _checked_environment(given: Mapping[str, str] | None) -> dict[str, str]:
    if given is not None and not isinstance(given, Mapping):
        raise UsageError("environment", given, "give a mapping of names to values, such as {'SEED': '7'}")
    environment = environment_of(given)
    for name, value in environment.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError("environment", f"{name}={value}", "give names and values as text")
        _text("environment", f"{name}={value}")
    return environment


def _text(name: str, value: str) -> str:
    """The same; bytes that are no text have no place in the contract, and must not become others behind one's back."""
    if not isinstance(value, str) or not _is_text(value):
        raise UsageError(name, value, "give text in UTF-8")
    return value


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
