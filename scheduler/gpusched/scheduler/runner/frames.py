"""Messages between the server and its agent: JSON with its length in front, over a stream socket."""

from __future__ import annotations

import json
import struct
from typing import Any

_HEADER = struct.Struct(">I")
MAX_BYTES = 64 * 1024 * 1024

TAKEN = "taken"
"""The agent has read a run and is about to fork for it: from here on it must not be sent to another agent."""
STARTED = "started"
"""The run's supervisor was forked; with its `pid`."""
FAILED = "failed"
"""The run could not be started, or its supervisor died without a word; with a `message` for people. Nothing is left of
the command by then."""

REPORT = "report"
"""The run has ended; with its `report`, as text. The server answers by a frame that `reply` makes."""
_REPLY = b'{"reply"'


def pack(payload: str | bytes) -> bytes:
    """A frame. Raises ValueError if it is too large."""
    data = payload.encode("ascii") if isinstance(payload, str) else payload
    if len(data) > MAX_BYTES:
        raise ValueError(f"a message of {len(data)} bytes is more than {MAX_BYTES}")
    return _HEADER.pack(len(data)) + data


def answer(kind: str, job_id: str, epoch: int, **more: object) -> bytes:
    """A frame of the agent's about one run."""
    return pack(json.dumps({"kind": kind, "job_id": job_id, "epoch": epoch, **more}))


def read_answer(payload: bytes) -> tuple[str, str, int, dict[str, Any]]:
    """Kind, job, epoch and all fields of a payload that `answer` made."""
    fields = json.loads(payload)
    return fields["kind"], fields["job_id"], fields["epoch"], fields


def reply(job_id: str, epoch: int, *, settled: bool) -> bytes:
    """A frame of the server's: whether a report is dealt with; else it is to be delivered in the other way."""
    return pack(json.dumps({"reply": settled, "job_id": job_id, "epoch": epoch}))


def read_reply(payload: bytes) -> tuple[str, int, bool] | None:
    """Job, epoch and whether it is settled, of a payload that `reply` made; None for any other, which is a run."""
    if not payload.startswith(_REPLY):
        return None
    fields = json.loads(payload)
    return fields["job_id"], fields["epoch"], fields["reply"]


class Buffer:
    """Bytes as they come in, frames as they are complete."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def take(self) -> bytes | None:
        """The payload of the next frame, None if it is not all there. Raises ValueError if it cannot be one."""
        if len(self._data) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._data)
        if length > MAX_BYTES:
            raise ValueError(f"a frame of {length} bytes")
        end = _HEADER.size + length
        if len(self._data) < end:
            return None
        payload = bytes(self._data[_HEADER.size : end])
        del self._data[:end]
        return payload
