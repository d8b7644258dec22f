"""`gsrun --detach`: the command becomes a batch job of the scheduler's, and gsrun ends."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NoReturn

from gpusched.client.gsrun import asking, exits
from gpusched.client.gsrun.options import Options
from gpusched.client.usage import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpusched.v1 import scheduler_pb2

CALL_SECONDS = 10.0
TRY_SECONDS = 3.0
"""For how long a scheduler that went away in the middle is asked again."""
PAUSE_SECONDS = 0.1
MAX_REQUEST_BYTES = 1 << 20
_OF_GSRUN = ("GPUSCHED_HOLDER", "GPUSCHED_ATTEMPT")


class _Failed(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run(options: Options, address: str) -> NoReturn:
    """Submit the command line's command and end the process; the job's id goes to stdout.

    Raises:
        UsageError: if there is something that cannot be handed on.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        job_id = _submit(options, address)
    except _Failed as failure:
        _say(f"gsrun: {failure}")
        os._exit(failure.code)
    _write(1, f"{job_id}\n")
    if not options.quiet:
        url = f" --url {options.url}" if options.url else ""
        _say(f"gsrun: queued as job {job_id}; follow it with: gpusched{url} logs -f {job_id}")
    os._exit(0)


def _submit(options: Options, address: str) -> str:
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


def _persist(address: str, request: scheduler_pb2.SubmitRequest, say: Callable[[str], None]) -> str:
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


def _call(address: str, request: scheduler_pb2.SubmitRequest) -> str:
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
        return str(answer.job.id)


def _request(options: Options) -> scheduler_pb2.SubmitRequest:
    """Raises UsageError if something of it is no text, or it is too much."""
    from gpusched.v1 import scheduler_pb2

    words = [_text("the command", word) for word in options.command]
    request = scheduler_pb2.SubmitRequest(
        resources=asking.resources(options, ""),
        command=words,
        name=options.name,
        priority=options.priority,
        environment=_environment(),
        working_directory=_text("the working directory", os.getcwd()),  # noqa: PTH109
        request_id=os.urandom(16).hex(),
    )
    if options.time_limit:
        request.time_limit.FromMilliseconds(round(options.time_limit * 1000))
    if grace := os.environ.get("GPUSCHED_KILL_AFTER"):
        from gpusched.client.units import parse_duration

        request.grace.FromMilliseconds(round(parse_duration(grace, "GPUSCHED_KILL_AFTER") * 1000))
    if (size := request.ByteSize()) > MAX_REQUEST_BYTES:
        allowed = f"command and environment together may be {MAX_REQUEST_BYTES} bytes; `env -i` makes a smaller one"
        raise UsageError("--detach", f"{size} bytes", allowed)
    return request


def _environment() -> dict[str, str]:
    """Ours, less what belongs to a lease that we may run under; the scheduler sets that anew."""
    from gpusched.client.environment import OF_A_LEASE

    kept = {name: value for name, value in os.environ.items() if name not in OF_A_LEASE and name not in _OF_GSRUN}
    return {_text("a variable's name", name): _text(f"the variable {name}", value) for name, value in kept.items()}


def _text(what: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        shown = value.encode("utf-8", "replace").decode()[:80]
        raise UsageError(
            "--detach", shown, f"{what} must be UTF-8 text to be handed on; run it without --detach"
        ) from None
    return value


def _say(text: str) -> None:
    _write(2, f"{text}\n")


def _write(fd: int, text: str) -> None:
    try:
        os.write(fd, text.encode("utf-8", "replace"))
    except OSError:
        pass
