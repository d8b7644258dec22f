"""Who calls: the kernel's answer for a loopback connection, asked for through NETLINK_SOCK_DIAG.

The caller's own socket is looked up by the connection's exact 4-tuple, which costs some 15 microseconds
and no right at all. Known limits, the reason why acts of an administrator ask for more (`admin_token`):
a socket keeps the uid of its creator, whoever holds it now (passed descriptors, setuid programs, forwarders
run by root), and a caller that resets its connection and has the port reused at once is taken for the new owner.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import socket
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h; not in Python's socket module.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_TCP_ESTABLISHED = 1
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2 up to its socket id: family, protocol, extensions, states
_SOCKET_ID = struct.Struct("!HH16s16sI8s")  # inet_diag_sockid: ports, addresses, interface, cookie
_ANSWER = struct.Struct("=BBBB48sIIIII")  # inet_diag_msg: …, state, …, socket id, expires, queues, uid, inode
_ERROR = struct.Struct("=i")

_PEER = re.compile(r"ipv([46]):(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", re.ASCII)
_MAPPED_PREFIX = b"\0" * 10 + b"\xff\xff"
_LOOPBACK_V4 = b"\x7f\0\0\1"
_LOOPBACK_V6 = b"\0" * 15 + b"\1"

# What the kernel says of a user that it cannot name in this user namespace: nobody in particular.
_OVERFLOW_UID = 65534
_QUERY_TIMEOUT_S = 0.25
_KERNEL = (0, 0)


class UnknownCaller(Exception):
    """The kernel does not vouch for any user at the other end; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The user at the other end of a connection.

    Attributes:
        uid: user id, as the kernel told.
        user: login name, or the uid in digits where it has none.
    """

    uid: int
    user: str


class PeerIdentifier:
    """Finds out which user is at the other end of connections to one loopback port.

    It keeps one netlink socket and is meant for one thread, the event loop's: the kernel answers while
    it is being asked, so that a query does not wait for anything.
    """

    def __init__(self, server_port: int) -> None:
        """Identify callers of `server_port`, a TCP port bound to 127.0.0.1 (or ::1)."""
        self._server_port = server_port
        self._socket: socket.socket | None = None
        self._sequence = 0
        self._names: dict[int, str] = {}

    def identify(self, peer: str) -> Caller:
        """Tell who holds the client's end of a connection.

        Args:
            peer: what `context.peer()` gives, such as `ipv4:127.0.0.1:41234` or `ipv6:%5B::1%5D:41234`.

        Raises:
            UnknownCaller: the peer is not on loopback, or its socket is not established, has no owner
                left, or belongs to a user unknown here. To be answered with UNAUTHENTICATED.
        """
        answer = self._query(_question(peer, self._server_port))
        if answer is None:
            raise UnknownCaller("your connection is not known to the kernel (it was closed, or is not of this machine)")
        state, uid, inode = answer
        if state != _TCP_ESTABLISHED or inode == 0:
            # Kernels report uid 0 for a socket that its owner has closed: never take that for root.
            raise UnknownCaller("your connection is closing, and closed connections have no owner")
        if uid == _OVERFLOW_UID:
            raise UnknownCaller(
                f"your connection belongs to uid {_OVERFLOW_UID}, which stands for users unknown on this machine "
                "(another user namespace?)"
            )
        return Caller(uid, self._user_name(uid))

    def close(self) -> None:
        """Let go of the netlink socket; the next query opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _user_name(self, uid: int) -> str:
        name = self._names.get(uid)
        if name is None:
            name = self._names[uid] = user_name(uid)
        return name

    def _query(self, question: _Question) -> tuple[int, int, int] | None:
        """State, uid and inode of the one socket with exactly these ends; None if there is none."""
        for last_try in (False, True):
            try:
                answer = self._exchange(question.body)
            except OSError as error:
                self.close()  # whatever is wrong with it, or still queued in it, a fresh one is clean
                if last_try:
                    raise UnknownCaller(f"the kernel cannot be asked who you are: {error}") from error
                continue
            break
        if answer is None:
            return None
        _, state, _, _, found, _, _, _, uid, inode = _ANSWER.unpack_from(answer)
        # The kernel's look-up also finds listeners on the port; only the very connection counts.
        if _ends(found) != question.ends:
            return None
        return state, uid, inode

    def _exchange(self, body: bytes) -> bytes | None:
        """Send one request and return its answer's body; None if no such socket exists. Raises OSError."""
        netlink = self._socket
        if netlink is None:
            netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
            netlink.settimeout(_QUERY_TIMEOUT_S)
            self._socket = netlink
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, sequence, 0)
        netlink.sendto(header + body, _KERNEL)
        deadline = time.monotonic() + _QUERY_TIMEOUT_S
        while True:
            data, sender = netlink.recvfrom(8192)
            length, kind, _, answered, _ = _HEADER.unpack_from(data.ljust(_HEADER.size, b"\0"))
            if sender[0] != 0 or answered != sequence:
                # Not the kernel, or the late answer to an older question.
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "no answer in time")
                continue
            if kind == _SOCK_DIAG_BY_FAMILY and _HEADER.size + _ANSWER.size <= length <= len(data):
                return data[_HEADER.size : length]
            code = -_ERROR.unpack_from(data, _HEADER.size)[0] if kind == _NLMSG_ERROR else errno.EPROTO
            if code == errno.ENOENT:
                return None
            raise OSError(code, os.strerror(code))


def user_name(uid: int) -> str:
    """The login name of a user, or the uid in digits if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def process_uid(pid: int) -> int | None:
    """The real uid of a process, None if there is none of that pid (or it cannot be seen)."""
    try:
        status = Path(f"/proc/{pid:d}/status").read_bytes()
    except OSError:
        return None
    match = re.search(rb"^Uid:\s+([0-9]+)", status, re.MULTILINE)
    return int(match[1]) if match else None


def process_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none of that pid.

    Together with the pid it names a process for good, however soon the pid is used again.
    """
    try:
        stat = Path(f"/proc/{pid:d}/stat").read_bytes()
    except OSError:
        return None
    # The command's name, in parentheses, may itself contain spaces and parentheses.
    fields = stat[stat.rfind(b")") + 1 :].split()
    return int(fields[19]) if len(fields) > 19 else None  # field 22 of the whole line


class _Question(NamedTuple):
    """What the kernel is asked about a connection.

    Attributes:
        body: the request, without its header.
        ends: the two ends, address and port each, of the connection that it is about.
    """

    body: bytes
    ends: tuple[tuple[bytes, int], tuple[bytes, int]]


@lru_cache(maxsize=1024)
def _question(peer: str, server_port: int) -> _Question:
    """The question about a peer. Only that is remembered, never the answer: the kernel is asked at each call.

    Raises:
        UnknownCaller: the peer is not on loopback, or cannot be read.
    """
    family, address, port = _parse_peer(peer)
    server = _LOOPBACK_V4 if family == socket.AF_INET else _LOOPBACK_V6
    # The caller's socket is the one asked for, so its address is the source.
    socket_id = _SOCKET_ID.pack(port, server_port, address.ljust(16, b"\0"), server.ljust(16, b"\0"), 0, _NO_COOKIE)
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES) + socket_id
    return _Question(body, ((address, port), (server, server_port)))


def _parse_peer(peer: str) -> tuple[int, bytes, int]:
    """Address family, packed address and port; mapped addresses become IPv4. Raises UnknownCaller."""
    match = _PEER.fullmatch(unquote(peer))
    if match is None:
        raise UnknownCaller("the address that you call from is not one of this machine's loopback addresses")
    version, bracketed, bare, digits = match.groups()
    try:
        if version == "4":
            family, address = socket.AF_INET, socket.inet_pton(socket.AF_INET, bare)
        else:
            family, address = _unmapped(socket.inet_pton(socket.AF_INET6, bracketed))
    except (OSError, TypeError) as error:  # TypeError: brackets where there are none, or the reverse
        raise UnknownCaller("the address that you call from cannot be read") from error
    port = int(digits)
    if not 0 < port < 65536:
        raise UnknownCaller("the address that you call from has no port")
    if not (address[0] == 127 if family == socket.AF_INET else address == _LOOPBACK_V6):
        raise UnknownCaller("you call from another machine; only callers on loopback are known by their user")
    return family, address, port


def _unmapped(address: bytes) -> tuple[socket.AddressFamily, bytes]:
    """The family and packed form of an address, an IPv4 one for an IPv4-mapped IPv6 one."""
    if len(address) == 4:
        return socket.AF_INET, address
    if address.startswith(_MAPPED_PREFIX):
        return socket.AF_INET, address[12:]
    return socket.AF_INET6, address


@lru_cache(maxsize=1024)
def _ends(socket_id: bytes) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
    """Both ends in an answer's socket id, comparable with what was asked for."""
    source_port, destination_port, source, destination, _, _ = _SOCKET_ID.unpack(socket_id)
    ends = []
    for address, port in ((source, source_port), (destination, destination_port)):
        # An IPv4 socket has its address in front of zeroes; ::1 has its one at the end.
        is_v4 = any(address[:4]) and not any(address[4:])
        ends.append((address[:4] if is_v4 else _unmapped(address)[1], port))
    return ends[0], ends[1]
