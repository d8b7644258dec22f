"""Proof of being an administrator: a short-lived token from a Unix socket that checks SO_PEERCRED.

A loopback connection tells who created its socket, which is not always who speaks (see `identity`). Acts of an
administrator therefore carry a token as well, which the kernel's word about the Unix socket's other end earns.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import secrets
import socket
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

TOKEN_LIFETIME_S = 60.0

_OVERFLOW_UID = 65534  # stands for every user that this user namespace does not know
_LONGEST_PATH = 107  # bytes, sockaddr_un less its closing zero
_PAYLOAD = struct.Struct("!IQ16s")  # uid, expiry in milliseconds, nonce
_MAC_BYTES = hashlib.sha256().digest_size
_TOKEN_BYTES = _PAYLOAD.size + _MAC_BYTES
_TOKEN_CHARACTERS = 4 * _TOKEN_BYTES // 3  # without padding, as the size is a multiple of three
_UCRED = struct.Struct("iII")  # pid, uid, gid


class AdminTokens:
    """Hands out tokens over a Unix socket, and recognises them later.

    The key lives and dies with this object: nobody else's token, nor one of an earlier start, is recognised.
    """

    def __init__(self, path: Path, allowed_uids: frozenset[int], clock: Callable[[], float]) -> None:
        """Prepare to listen on a socket.

        Args:
            path: where to put the socket. One too long for a Unix socket is replaced by a short one at `start`.
            allowed_uids: the users who get tokens: the server's own, root, and whom the operator names.
            clock: now in seconds, from any fixed start.
        """
        self._wanted_path = path
        self._allowed = allowed_uids - {_OVERFLOW_UID}
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._server: asyncio.Server | None = None
        self._bound: tuple[Path, tuple[int, int]] | None = None  # path, and its device and inode
        self._own_directory: Path | None = None

    @property
    def path(self) -> Path:
        """Where the socket is; after `start` this is what clients are to be told."""
        return self._bound[0] if self._bound else self._wanted_path

    async def start(self) -> None:
        """Listen. Raises OSError, FileExistsError where something that is not a socket has the path."""
        path = self._wanted_path
        if len(os.fsencode(path)) > _LONGEST_PATH:
            path = self._short_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale_socket(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(os.fspath(path))
            found = path.lstat()
            self._bound = (path, (found.st_dev, found.st_ino))
            # Before it listens, so that nobody is let in by a wider mode. SO_PEERCRED decides in any case.
            path.chmod(0o600 if self._allowed <= {os.geteuid(), 0} else 0o666)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener)
        except BaseException:
            listener.close()
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening and remove the socket; tokens given out stay good for their minute."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._bound is not None:
            path, identity = self._bound
            self._bound = None
            try:
                found = path.lstat()
                if (found.st_dev, found.st_ino) == identity:  # not one that a successor has put there
                    path.unlink()
            except OSError:
                pass
        if self._own_directory is not None:
            try:
                self._own_directory.rmdir()
            except OSError:
                pass
            self._own_directory = None

    def verify(self, token: str) -> int | None:
        """The uid that a token was given to; None for one that is forged, mangled or expired."""
        if len(token) != _TOKEN_CHARACTERS or not token.isascii():
            return None
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if len(raw) != _TOKEN_BYTES:
            return None
        payload, mac = raw[: _PAYLOAD.size], raw[_PAYLOAD.size :]
        if not hmac.compare_digest(mac, self._mac(payload)):
            return None
        uid, expiry_ms, _ = _PAYLOAD.unpack(payload)
        if self._clock() * 1000 >= expiry_ms or uid not in self._allowed:
            return None
        return int(uid)

    def _token(self, uid: int) -> str:
        expiry_ms = int((self._clock() + TOKEN_LIFETIME_S) * 1000)
        payload = _PAYLOAD.pack(uid, expiry_ms, secrets.token_bytes(16))
        return base64.urlsafe_b64encode(payload + self._mac(payload)).decode("ascii")

    def _mac(self, payload: bytes) -> bytes:
        return hmac.new(self._key, payload, hashlib.sha256).digest()

    async def _serve(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection: a line with a token, or nothing for those who have no right to one."""
        try:
            connection = writer.get_extra_info("socket")
            _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid in self._allowed:
                writer.write(self._token(uid).encode("ascii") + b"\n")  # fits any socket buffer: never waits
        except OSError:
            pass  # gone already
        finally:
            writer.close()

    def _short_path(self) -> Path:
        """A short place for the socket, in a directory that only its owner may enter."""
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
        name = f"gpusched-admin-{os.getpid()}.sock"
        if runtime.is_absolute() and len(os.fsencode(runtime / name)) <= _LONGEST_PATH and _is_private(runtime):
            return runtime / name
        short_tmp = tempfile.gettempdir() if len(os.fsencode(tempfile.gettempdir())) <= 60 else "/tmp"
        self._own_directory = Path(tempfile.mkdtemp(prefix="gpusched-", dir=short_tmp))
        return self._own_directory / "admin.sock"


def _is_private(directory: Path) -> bool:
    try:
        found = directory.stat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _remove_stale_socket(path: Path) -> None:
    """Remove what an earlier server left; the lock on the state directory says that it is gone."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is in the way: it is not a socket; move it")
        path.unlink()
    except FileNotFoundError:
        pass
