"""Who owns the port: a server of another user gets our requests and decides over our GPUs."""

from __future__ import annotations

import ipaddress
import os
import pwd
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from gpusched.client.address import is_loopback, split_address
from gpusched.client.errors import PermissionDenied, ServerUnavailable
from gpusched.client.usage import UsageError

_LISTEN = "0A"
_named: set[tuple[str, int]] = set()


class ServerRefused(PermissionDenied):
    """The server belongs to a user whom `GPUSCHED_SERVER_USER` does not list."""


def listener_uid(address: str) -> int | None:
    """User id that owns the socket which listens at a loopback `host:port`; None if there is none or it is elsewhere.

    Where a socket for exactly that address and one for all addresses both listen, the kernel gives calls to the
    exact one, and so does this.
    """
    if not is_loopback(address):
        return None
    host, port = split_address(address)
    wanted = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    exact: int | None = None
    wildcard: int | None = None
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] != _LISTEN:
                continue
            hex_host, _, hex_port = columns[1].partition(":")
            if int(hex_port, 16) != port:
                continue
            local = _kernel_address(hex_host)
            if local == wanted:
                exact = int(columns[7])
            elif local.is_unspecified and local.version >= wanted.version:
                wildcard = int(columns[7])
    return exact if exact is not None else wildcard


def check_server_user(address: str, warn: Callable[[str], None]) -> None:
    """Look at who owns the server's socket, before it is told anything.

    With `GPUSCHED_SERVER_USER` (names or uids, comma-separated) exactly those users are taken. Without it root and
    our own user are taken silently, and anybody else is named once through `warn`. A server on another machine has no
    socket here and passes.

    Raises:
        ServerRefused: if the owner is not among those that the variable lists.
        ServerUnavailable: if the variable is set and nobody listens there.
        UsageError: if the variable names an unknown user.
    """
    if not is_loopback(address):
        return
    listed = _listed_users()
    uid = listener_uid(address)
    if listed is not None:
        if uid is None:
            text = f"no scheduler answers at {address} (connection refused)"
            raise ServerUnavailable(f"{text}; start one with: gpusched serve --detach")
        if uid not in listed:
            raise ServerRefused(
                f"the server at {address} belongs to {_user_name(uid)}, and GPUSCHED_SERVER_USER allows "
                f"only {os.environ['GPUSCHED_SERVER_USER']}"
            )
        return
    if uid is None or uid in (0, os.getuid()) or (address, uid) in _named:
        return
    _named.add((address, uid))
    warn(
        f"the scheduler at {address} is run by {_user_name(uid)}, not by root or you "
        "(set GPUSCHED_SERVER_USER to the user you trust)"
    )


def _listed_users() -> frozenset[int] | None:
    text = os.environ.get("GPUSCHED_SERVER_USER", "")
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        return None
    uids = set()
    for name in names:
        try:
            uids.add(int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid)
        except KeyError:
            raise UsageError("GPUSCHED_SERVER_USER", name, "give users of this machine, by name or uid") from None
    return frozenset(uids)


def _user_name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _kernel_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of a /proc/net/tcp line: 32-bit words, each in the machine's byte order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    packed = b"".join(words)
    if len(packed) == 4:
        return ipaddress.IPv4Address(socket.inet_ntop(socket.AF_INET, packed))
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address
