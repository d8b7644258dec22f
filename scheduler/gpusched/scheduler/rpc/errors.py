"""Domain errors to gRPC statuses, by one table, with google.rpc details; the client has its inverse."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gpusched.scheduler.core import errors
from gpusched.scheduler.rpc.decoding import Malformed

log = logging.getLogger("gpusched.rpc")

DOMAIN = "gpusched"

#: Longest error text in bytes. It travels in headers, up to three times and encoded; clients drop calls whose headers
#: are above 8 KiB, and then the user would see nothing of it.
MAX_TEXT = 1000

CODES: dict[type[errors.DomainError], grpc.StatusCode] = {
    errors.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotSatisfiable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Denied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.WaitedTooLong: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

#: The error that ends a stream, by the reason of the engine's `Ended`.
ENDINGS: dict[str, type[errors.DomainError]] = {
    "MAX_WAIT": errors.WaitedTooLong,
    "NO_GPU_FREE": errors.Exhausted,
    "JOB_CANCELLED": errors.Cancelled,
    "LEASE_REVOKED": errors.Aborted,
}

#: What the library raises when the client has gone in the middle of a write; nothing is left to be told to anyone.
_GONE = ("ExecuteBatchError", "UsageError", "InternalError")

Servicer = TypeVar("Servicer", bound=Callable[..., Awaitable[Any]])


def to_status(error: errors.DomainError) -> status_pb2.Status:
    """The rich status of an error: its text, ErrorInfo, and BadRequest or RetryInfo where they help."""
    code = CODES[type(error)]
    text = _short(error.message)
    status = status_pb2.Status(code=code.value[0], message=text)
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration(nanos=int(error.retry_after * 1e9) % 10**9, seconds=int(error.retry_after))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _short(text: str) -> str:
    data = text.encode()
    return text if len(data) <= MAX_TEXT else data[: MAX_TEXT - 3].decode(errors="ignore") + "…"


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.DomainError) -> NoReturn:
    """End a call with a domain error."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")


def is_gone(error: Exception) -> bool:
    """Whether the library refuses a write since nobody is there to take it."""
    return type(error).__name__ in _GONE


def guarded(method: Servicer) -> Servicer:
    """Let a servicer method raise domain errors. Anything else is logged and told without its traceback."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            if isinstance(request, Malformed):
                raise errors.Invalid(f"the request cannot be read: {request.why}")
            return await method(self, request, context)
        except errors.DomainError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            if is_gone(error):
                log.debug("client gone during %s", method.__name__)
                # As for any client that goes; the library would log a traceback about the status that nobody takes.
                raise asyncio.CancelledError from None
            log.exception("%s failed", method.__name__)
            await context.abort(
                grpc.StatusCode.INTERNAL, "gpusched has a bug: this call failed; the server's log has the details"
            )

    return call  # type: ignore[return-value]
