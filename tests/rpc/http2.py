"""HTTP/2 by hand: just enough to send one gRPC call and then misbehave as no gRPC library would."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def settings() -> bytes:
    """No settings of our own."""
    return frame(SETTINGS, 0, 0, b"")


def acknowledge() -> bytes:
    """Of the other side's settings; what it sends of ours."""
    return frame(SETTINGS, ACK, 0, b"")


def small_window(size: int) -> bytes:
    """Settings that let the server send so many bytes on each stream."""
    return frame(SETTINGS, 0, 0, struct.pack("!HI", INITIAL_WINDOW_SIZE, size))


def call(method: str, message: bytes, stream: int = 1) -> bytes:
    """A whole call: headers, one message, end of stream. Header fields are literals that enter no table."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)
    body = b"\x00" + struct.pack("!I", len(message)) + message
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


def reset(stream: int) -> bytes:
    """Cancel a call."""
    return frame(RST_STREAM, 0, stream, struct.pack("!I", 8))


def read_until(connection: socket.socket, kind: int) -> None:
    """Read whole frames, up to the first of a kind. Raises EOFError."""
    while True:
        head = _exactly(connection, 9)
        _exactly(connection, int.from_bytes(head[:3], "big"))
        if head[3] == kind:
            return


def deaf(address: str, method: str, message: bytes, count: int, window: int | None) -> list[socket.socket]:
    """Connections with many calls, whose answers nobody reads.

    Args:
        address: host:port.
        count: how many calls, in twenties.
        window: bytes that we let the server send on each stream; None for the usual 64 KiB.
    """
    host, port = address.rsplit(":", 1)
    connections = []
    for _ in range(count // 20):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((host, int(port)))
        ours = settings() if window is None else small_window(window)
        calls = b"".join(call(method, message, 2 * number + 1) for number in range(20))
        connection.sendall(PREFACE + ours + acknowledge() + calls)
        connections.append(connection)
    return connections


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value
