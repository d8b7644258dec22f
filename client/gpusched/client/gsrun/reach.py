"""Reaching the scheduler: whether somebody listens, the connection that we have, pauses between tries."""

# Without pathlib, gsrun starts quicker.
# ruff: noqa: PTH115, PTH208
from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
_PROBE_SECONDS = 2.0
_ESTABLISHED = 1  # linux/tcp_states.h
_DOMAIN = "gpusched"


class Backoff:
    """Pauses between tries: from a tenth of a second, doubling to a second, each cut by chance to half at most."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def reset(self) -> None:
        """Begin again with the shortest."""
        self._next = FIRST_PAUSE

    def pause(self) -> None:
        """Sleep for the next one."""
        import random  # slow to import, and most runs never need it

        time.sleep(self._next * (0.5 + random.random() / 2))
        self._next = min(2 * self._next, LONGEST_PAUSE)


def silence(address: str) -> str:
    """Why nobody can be reached at `host:port`; empty if somebody listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        return str(error.strerror or error).lower()
    return ""


def connection_fd(address: str) -> int | None:
    """Descriptor of this process's TCP connection to `host:port`; None if it has none that stands."""
    port = int(address.rpartition(":")[2])
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6) and _stands(sock, port):
                    return int(name)
        except OSError:
            continue  # not connected, or closed meanwhile
    return None


def state_of(error: grpc.RpcError) -> str:
    """Which server state has refused a call, as the refusal says; empty if it does not say."""
    trailers: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    packed = next((value for key, value in trailers or () if key == "grpc-status-details-bin"), None)
    if not isinstance(packed, bytes):
        return ""
    from google.rpc import error_details_pb2, status_pb2

    try:
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                return info.metadata["state_id"] if info.domain == _DOMAIN and "state_id" in info.metadata else ""
    except ValueError:  # DecodeError is one
        pass
    return ""


def _stands(sock: socket.socket, port: int) -> bool:
    """Whether a socket is connected to a port, and not merely was. gRPC dials IPv4 through an IPv6 socket."""
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == _ESTABLISHED and sock.getpeername()[1] == port
