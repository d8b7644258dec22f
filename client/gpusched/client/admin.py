"""The administrator's token: the scheduler's Unix socket gives it to the scheduler's own user and to root."""

from __future__ import annotations

import socket
import struct

from gpusched.client.errors import PermissionDenied

TOKEN_SECONDS = 60
"""A token is good for this long, in seconds; fetch a fresh one for each use."""

_LONGEST_TOKEN = 4096
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: the kernel's struct ucred


def fetch_token(socket_path: str, server_uid: int | None = None, timeout: float = 5.0) -> str:
    """The token to send as `authorization: Bearer TOKEN` with an administrator's call.

    Args:
        socket_path: `GetStatusResponse.admin_socket`.
        server_uid: owner of the port that will be sent the token, where known. A server of one user that names
            the socket of another would otherwise be handed a token which is not meant for it.
        timeout: seconds.

    Raises:
        PermissionDenied: if the socket gives you none, or belongs to another user than the server.
    """
    if not socket_path:
        raise PermissionDenied("this scheduler has no administrator's socket, so nobody can act as its administrator")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(socket_path)
            _check_owner(connection, socket_path, server_uid)
            token = _read(connection)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PermissionDenied(_refusal(f"{socket_path}: {reason}")) from None
    if not token:
        raise PermissionDenied(_refusal(f"{socket_path} gave no token"))
    return token


def _check_owner(connection: socket.socket, socket_path: str, server_uid: int | None) -> None:
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(packed)
    if server_uid is not None and uid != server_uid:
        raise PermissionDenied(
            f"the scheduler's port belongs to uid {server_uid}, but the administrator's socket that it names "
            f"({socket_path}) to uid {uid}: no token is sent to it"
        )


def _read(connection: socket.socket) -> str:
    answer = b""
    while len(answer) <= _LONGEST_TOKEN and (part := connection.recv(_LONGEST_TOKEN)):
        answer += part
    token = answer.decode("ascii").strip()
    if len(token) > _LONGEST_TOKEN or (token and not token.isprintable()):
        raise ValueError("what it gave is not a token")
    return token


def _refusal(detail: str) -> str:
    return f"only the user who runs the scheduler, and root, may do that ({detail})"
