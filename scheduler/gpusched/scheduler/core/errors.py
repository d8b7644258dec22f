"""Refusals of the domain, each with the sentence for people and the reason for programs.

`rpc/errors.py` maps each class to one gRPC status; a new error is a class here and a row there.
"""

from __future__ import annotations


class DomainError(Exception):
    """A request that cannot be done; nothing has changed.

    Args:
        message: one sentence for people: what is wrong, and what is allowed.
        reason: UPPER_SNAKE_CASE constant for programs.
        field: the request field at fault, if one is.
        retry_after: seconds after which trying again may help, if it may.
        metadata: more facts for programs.
    """

    default_reason = "FAILED"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.retry_after = retry_after
        self.metadata = metadata or {}


class Invalid(DomainError):
    """A field has a value that is never allowed."""

    default_reason = "INVALID_REQUEST"


class NotSatisfiable(DomainError):
    """The state of things forbids it: more than exists, or a job that has ended."""

    default_reason = "NOT_SATISFIABLE"


class Exhausted(DomainError):
    """A limit is reached, or nothing is free for one who will not wait."""

    default_reason = "NO_GPU_FREE"


class NotFound(DomainError):
    default_reason = "JOB_NOT_FOUND"


class Denied(DomainError):
    default_reason = "NOT_OWNER"


class Unauthenticated(DomainError):
    default_reason = "UNAUTHENTICATED"


class Aborted(DomainError):
    """A lease or a grant that is no longer the caller's."""

    default_reason = "LEASE_LOST"


class Cancelled(DomainError):
    default_reason = "JOB_CANCELLED"


class WaitedTooLong(DomainError):
    default_reason = "MAX_WAIT"


class Unavailable(DomainError):
    default_reason = "SERVER_STOPPING"


class IllegalMove(AssertionError):
    """A job was moved along an edge that the table of legal moves does not have: a bug in the engine."""
