"""One family of exceptions for everything the scheduler may answer. Imports grpc only inside functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

DOMAIN = "gpusched"


class GpuschedWarning(UserWarning):
    """Something about a lease that needs the user's eye but stops nothing."""


class GpuschedError(Exception):
    """An answer other than success. `str()` of it is for people.

    Attributes:
        reason: the server's word for it, for programs (`NOT_SATISFIABLE`, …); empty if there is none.
        field: the field of the request that it is about; empty if it is about none.
        retry_after: seconds after which trying again may help; None if the server did not say.
    """

    def __init__(self, message: str = "", *, reason: str = "", field: str = "", retry_after: float | None = None):
        super().__init__(message)
        self.reason = reason
        self.field = field
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {"reason": self.reason, "field": self.field, "retry_after": self.retry_after}


class InvalidRequest(GpuschedError, ValueError):
    """A field of the request is wrong (INVALID_ARGUMENT); the message says which and what is allowed."""


class NotSatisfiable(GpuschedError):
    """More was asked for than there is, ever (FAILED_PRECONDITION)."""


class JobEnded(GpuschedError):
    """The job has ended already (FAILED_PRECONDITION, reason JOB_ENDED)."""


class LimitReached(GpuschedError):
    """The queue is full, or `immediate` was asked and no GPU is free (RESOURCE_EXHAUSTED)."""


class JobNotFound(GpuschedError, LookupError):
    """No such job (NOT_FOUND)."""


class PermissionDenied(GpuschedError):
    """Somebody else's job, or an administrator's call (PERMISSION_DENIED)."""


class Unauthenticated(GpuschedError):
    """The server could not tell who calls (UNAUTHENTICATED)."""


class LeaseLost(GpuschedError):
    """The lease is no longer ours: revoked, expired, or its epoch has passed (ABORTED)."""


class WaitTimeout(GpuschedError, TimeoutError):
    """The GPUs did not come within `max_wait` (DEADLINE_EXCEEDED)."""


class ServerUnavailable(GpuschedError, ConnectionError):
    """No scheduler answers, or the connection to it was lost (UNAVAILABLE)."""


class JobCancelled(GpuschedError):
    """Somebody ended the job while it waited or ran (CANCELLED, reason JOB_CANCELLED)."""


class ServerMismatch(GpuschedError):
    """What answers is another version of gpusched, or not gpusched at all (UNIMPLEMENTED)."""


_BY_CODE: dict[str, type[GpuschedError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "FAILED_PRECONDITION": NotSatisfiable,
    "RESOURCE_EXHAUSTED": LimitReached,
    "NOT_FOUND": JobNotFound,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": Unauthenticated,
    "ABORTED": LeaseLost,
    "DEADLINE_EXCEEDED": WaitTimeout,
    "UNAVAILABLE": ServerUnavailable,
    "CANCELLED": JobCancelled,
    "UNIMPLEMENTED": ServerMismatch,
}

# Finer than the status code.
_BY_REASON: dict[str, type[GpuschedError]] = {
    "JOB_ENDED": JobEnded,
    "JOB_CANCELLED": JobCancelled,
}


def from_rpc_error(error: grpc.RpcError) -> GpuschedError:
    """The exception that a failed call means; never raises. Use as `raise from_rpc_error(e) from None`."""
    code_of = getattr(error, "code", None)
    code = code_of() if callable(code_of) else None
    name: str = code.name if code is not None else "UNKNOWN"
    details_of = getattr(error, "details", None)
    message: str = (details_of() if callable(details_of) else None) or ""
    reason, field, retry_after = _rich_details(error)
    kind = _BY_REASON.get(reason) or _BY_CODE.get(name, GpuschedError)
    if not reason:
        kind, message = _library_status(name, kind, message)
    return kind(message, reason=reason, field=field, retry_after=retry_after)


def from_fields(kind: str, message: str, reason: str = "", field: str = "") -> GpuschedError:
    """The exception named `kind`, as another process reported it; an unknown name gives the base class."""
    found = globals().get(kind)
    if not (isinstance(found, type) and issubclass(found, GpuschedError)):
        found = GpuschedError
    return found(message, reason=reason, field=field)


def _library_status(name: str, kind: type[GpuschedError], message: str) -> tuple[type[GpuschedError], str]:
    """What a status without our details means: the gRPC library made it, or something that is not gpusched."""
    if name == "UNIMPLEMENTED":
        return ServerMismatch, (
            "what answers does not know this call: it is another version of gpusched, or not gpusched at all "
            f"(compare `gpusched status` with `gpusched --version`; the server said: {message or 'nothing'})"
        )
    if name == "RESOURCE_EXHAUSTED" and "larger than max" in message:
        sizes = " bytes, at most ".join(word.strip("(.)") for word in message.split() if word.strip("(.)").isdigit())
        return InvalidRequest, (
            f"the command and its environment are too much for one request ({sizes}); shorter arguments or a smaller "
            "environment (`env -i`) will do"
        )
    if name == "CANCELLED":
        return ServerUnavailable, f"the connection to the scheduler was lost ({message or 'cancelled'})"
    if "http1" in message.lower() or "http/1" in message.lower() or "http status" in message.lower():
        return ServerMismatch, f"what answers there is a web server, not gpusched ({message})"
    if name == "UNAVAILABLE" and "SETTINGS" in message:
        return ServerUnavailable, "something listens there but does not answer: it hangs, or it is not gpusched"
    if name == "UNAVAILABLE":
        return ServerUnavailable, f"the scheduler cannot be reached ({message or 'no answer'})"
    if name == "DEADLINE_EXCEEDED":
        return ServerUnavailable, f"the scheduler did not answer in time ({message or 'deadline exceeded'})"
    if name in ("UNKNOWN", "INTERNAL", "DATA_LOSS"):
        return GpuschedError, f"the scheduler had an error of its own ({name}: {message or 'no details'})"
    return kind, message or name


def _rich_details(error: grpc.RpcError) -> tuple[str, str, float | None]:
    """Reason, field and retry delay out of the status details; what is missing or broken is left empty."""
    trailers_of = getattr(error, "trailing_metadata", None)
    trailers = (trailers_of() if callable(trailers_of) else None) or ()
    packed = next((value for key, value in trailers if key == "grpc-status-details-bin"), None)
    if not isinstance(packed, bytes):
        return "", "", None
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    reason, field, retry_after = "", "", None
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                reason = info.reason if info.domain == DOMAIN else ""
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest.FromString(detail.value)
                field = bad.field_violations[0].field if bad.field_violations else ""
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo.FromString(detail.value)
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    except DecodeError:
        return "", "", None
    return reason, field, retry_after
