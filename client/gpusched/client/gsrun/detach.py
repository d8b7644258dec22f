"""`gsrun --detach`: the command becomes a batch job of the scheduler's, and gsrun ends."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NoReturn

from gpusched.client.gsrun import asking, exits
from gpusched.client.gsrun.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpusched.v1 import job_pb2, scheduler_pb2

CALL_SECONDS = 10.0
TRY_SECONDS = 3.0
"""For how long a scheduler that went away in the middle is asked again."""
PAUSE_SECONDS = 0.1


class _Failed(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run(options: Options, address: str) -> NoReturn:
    """Submit the command line's command and end the process; the job's id goes to stdout.

    Raises:
        UsageError: if there is something in it that cannot be handed on.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        job = _submit(options, address)
    except _Failed as failure:
        _say(f"gsrun: {failure}")
        os._exit(failure.code)
    _write(1, f"{job.id}\n")
    if not options.quiet:
        # The answer has the limit that the scheduler sets where none was asked for.
        if options.signal and not (job.HasField("time_limit") or job.preemptible):
            _say("gsrun: --signal has no effect without --time or --preemptible")
        url = f" --url {options.url}" if options.url else ""
        _say(f"gsrun: queued as job {job.id}; follow it with: gpusched{url} logs -f {job.id}")
    os._exit(0)


def _submit(options: Options, address: str) -> job_pb2.Job:
    request = _request(options)
    from gpusched.client.autostart import AutostartFailed, ensure_server
    from gpusched.client.errors import GpuschedError
    from gpusched.client.transport import addressed

    def say(text: str) -> None:
        if not options.quiet:
            _say(text if text.startswith("gpusched: ") else f"gsrun: {text}")

    try:
        ensure_server(address, say)
        return _persist(address, request, say)
    except AutostartFailed as error:
        raise _Failed(str(error), exits.NO_SERVER) from None
    except GpuschedError as error:
        raise _Failed(asking.in_our_words(addressed(error, address)), asking.exit_code(error)) from None


def _persist(address: str, request: scheduler_pb2.SubmitRequest, say: Callable[[str], None]) -> job_pb2.Job:
    """Submit, and again for a moment if the scheduler went away meanwhile: by its id it is one job, however often it
    was heard. Raises GpuschedError.
    """
    from gpusched.client.errors import ServerUnavailable
    from gpusched.client.serveruser import check_server_user

    until = time.monotonic() + TRY_SECONDS
    answered = False
    while True:
        try:
            check_server_user(address, say)
            return _call(address, request)
        except ServerUnavailable as error:
            answered = answered or "refused" not in str(error).lower()
            if not answered or time.monotonic() > until:
                raise
        time.sleep(PAUSE_SECONDS)


def _call(address: str, request: scheduler_pb2.SubmitRequest) -> job_pb2.Job:
    """Raises GpuschedError."""
    import grpc

    from gpusched.client.errors import from_rpc_error
    from gpusched.client.transport import open_channel
    from gpusched.v1 import scheduler_pb2_grpc

    with open_channel(address) as channel:
        try:
            answer: Any = scheduler_pb2_grpc.SchedulerStub(channel).Submit(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        job: job_pb2.Job = answer.job
        return job


def _request(options: Options) -> scheduler_pb2.SubmitRequest:
    """What this command line submits; in the present environment and directory. Raises UsageError."""
    from gpusched.client.submission import Submission
    from gpusched.client.units import parse_duration

    grace = os.environ.get("GPUSCHED_KILL_AFTER")
    request: scheduler_pb2.SubmitRequest = Submission(
        command=options.command,
        gpus=options.gpus,
        gpu_memory=options.gpu_memory_bytes or None,
        gpu_model=options.gpu_model,
        **_where(options),
        priority=options.priority,
        name=options.name,
        time_limit=options.time_limit or None,
        estimate=options.estimate or None,
        preemptible=options.preemptible,
        signal=options.signal or None,
        grace=parse_duration(grace, "GPUSCHED_KILL_AFTER") if grace else None,
    ).request()
    return request


def _where(options: Options) -> dict[str, Any]:
    return options.where | ({"labels": dict(options.where["labels"])} if "labels" in options.where else {})


def _say(text: str) -> None:
    _write(2, f"{text}\n")


def _write(fd: int, text: str) -> None:
    try:
        os.write(fd, text.encode("utf-8", "replace"))
    except OSError:
        pass
