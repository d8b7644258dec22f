"""Lines of JSON between the user's process and its helper; both ends are the same installation.

A message is an object with a `kind`; everything else in it is plain JSON or a view.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from gpusched.client import errors

T = TypeVar("T")

# From the user's process.
ACQUIRE = "acquire"  # the request
LOOK_UP = "look_up"  # job_id: tell what that job has
CONFIRM = "confirm"  # epoch: we are awake
FINISH = "finish"  # outcome, keep_if_busy

# From the helper.
SAY = "say"  # text: a line for the user
ACCEPTED = "accepted"  # job_id
QUEUED = "queued"  # update
GRANTED = "granted"  # grant: answer with CONFIRM
CONFIRMED = "confirmed"  # epoch: the grant stands
NOTICE = "notice"  # notice
FAILED = "failed"  # error: nothing was granted
LOST = "lost"  # error: the lease is gone
JOB = "job"  # job or error: answer to LOOK_UP
RELEASED = "released"  # away: the scheduler could not be told. Answer to FINISH
KEPT = "kept"  # processes: list of [gpu index, pid, bytes]. Answer to FINISH


def dump(value: Any) -> Any:
    """A view, or what is made of views, as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: dump(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    return value


def load(kind: type[T], value: Any) -> T:
    """The inverse of `dump` for a view of the given class."""
    return typing.cast(T, _load(kind, value))


def _load(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None
        return _load(next(argument for argument in arguments if argument is not type(None)), value)
    if origin is tuple:
        return tuple(_load(arguments[0], item) for item in value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _load(hints[name], item) for name, item in value.items()})
    if kind is datetime:
        return datetime.fromtimestamp(value, UTC)
    if kind is timedelta:
        return timedelta(seconds=value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    return value


def dump_error(error: errors.GpuschedError) -> dict[str, Any]:
    """An exception for the other end."""
    # A subclass that only this process knows is told as the nearest one that both do.
    known = next(base for base in type(error).__mro__ if base.__module__ == errors.__name__)
    return {"type": known.__name__, "message": str(error), "reason": error.reason, "field": error.field}


def load_error(value: Mapping[str, str]) -> errors.GpuschedError:
    """The inverse of `dump_error`."""
    return errors.from_fields(value["type"], value["message"], value["reason"], value["field"])


def encode(kind: str, **fields: Any) -> bytes:
    """A message as one line."""
    return json.dumps({"kind": kind, **{name: dump(value) for name, value in fields.items()}}).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """A line of `encode`, without its end."""
    message: dict[str, Any] = json.loads(line)
    return message


def messages(sock: socket.socket) -> Iterator[dict[str, Any]]:
    """Messages from the other end until it closes or dies; half a line at the end is dropped."""
    buffer = b""
    while True:
        try:
            received = sock.recv(65536)
        except OSError:
            return
        if not received:
            return
        *lines, buffer = (buffer + received).split(b"\n")
        yield from map(decode, lines)
