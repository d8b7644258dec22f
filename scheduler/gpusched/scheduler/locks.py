"""One scheduler per state directory and per GPU: locks that end with the process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gpusched.scheduler.identity import process_start_ticks, user_name

LOCK_NAME = "scheduler.lock"

# File systems of other machines: SQLite's write-ahead log shares memory between processes, and locks do not
# always reach other hosts. `fuse.` ones by the name of their program.
_NETWORK_FILESYSTEMS = frozenset(
    {
        "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.beegfs", "fuse.ceph", "fuse.ceph-fuse",
        "fuse.cephfs", "fuse.curlftpfs", "fuse.davfs2", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs",
        "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuse.weed", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
        "nfs", "nfs3", "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf",
        "wekafs",
    }
)  # fmt: skip

# struct flock: type, whence, start, length, pid. All zeroes but the type mean the whole file.
_FLOCK = struct.Struct("@hhqqi4x")
_RECORD_BYTES = 1024
_UCRED = struct.Struct("iII")  # pid, uid, gid
_PROBES = 1024  # unanswered questions that a GPU's socket keeps before it stops telling who has it


class StartRefused(Exception):
    """The scheduler must not start like this; the message says why and what to do, for people."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """The scheduler that uses a state directory.

    Attributes:
        pid: its process id, as it sees itself; 0 if it has not said yet.
        start_ticks: its start in clock ticks since boot, 0 if it has not said yet.
        address: `host:port` that it serves on, empty until it does.
    """

    pid: int
    start_ticks: int
    address: str


class StateLock:
    """The exclusive use of a state directory, until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over an open, locked lock file; use `lock_state_dir`."""
        self.path = path
        self._descriptor = descriptor

    def announce(self, address: str) -> None:
        """Write down where this scheduler serves, for `read_running`.

        Args:
            address: `host:port`, empty while it does not serve yet.
        """
        pid = os.getpid()
        record = {"pid": pid, "start_ticks": process_start_ticks(pid) or 0, "address": address}
        # Always the same size and in one write, so that a reader never sees half of it.
        os.pwrite(self._descriptor, json.dumps(record).ljust(_RECORD_BYTES - 1).encode() + b"\n", 0)

    def release(self) -> None:
        """Let another scheduler use the directory. The file stays: removing it could let two in."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_state_dir(path: Path, *, mountinfo: str | None = None) -> StateLock:
    """Make a state directory if need be and take it for this process.

    The lock belongs to the open file (F_OFD_SETLK), so that it can be looked at without being taken. It is not
    passed on to programs that this process starts, but is to processes forked without exec.

    Args:
        path: the state directory.
        mountinfo: what to believe instead of /proc/self/mountinfo, for tests.

    Raises:
        StartRefused: it is on a network file system, not ours alone, used by another scheduler, or cannot be made.
    """
    path = path.absolute()
    kind = _filesystem_type(path, mountinfo)
    if kind in _NETWORK_FILESYSTEMS:
        raise StartRefused(
            f"state directory {path} is on {kind}, where SQLite's WAL is unsafe; choose a local one with "
            "--state-dir or GPUSCHED_STATE_DIR"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(path)
        descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartRefused(
            f"state directory {path} cannot be used: {os.strerror(error.errno or 0)}; choose another one with "
            "--state-dir or GPUSCHED_STATE_DIR"
        ) from error
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise StartRefused(
                f"state directory {path} cannot be locked: {os.strerror(error.errno or 0)}; choose a local one with "
                "--state-dir or GPUSCHED_STATE_DIR"
            ) from error
        raise StartRefused(_in_use(path)) from error
    lock = StateLock(path, descriptor)
    lock.announce("")
    return lock


def read_running(path: Path) -> RunningServer | None:
    """The scheduler that uses a state directory now; None if none does. Disturbs nobody.

    Args:
        path: the state directory.

    Raises:
        OSError: the directory's lock file may not be read.
    """
    try:
        descriptor = os.open(path / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
        if kind == fcntl.F_UNLCK:
            return None
        return _parse_record(os.pread(descriptor, _RECORD_BYTES, 0))
    finally:
        os.close(descriptor)


class GpuLocks:
    """The exclusive management of some GPUs, until `release` or the end of the process."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        """Take over bound sockets; use `lock_gpus`."""
        self._sockets = sockets

    def release(self) -> None:
        """Let another scheduler manage the GPUs."""
        for held in self._sockets:
            held.close()
        self._sockets = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_gpus(uuids: Iterable[str]) -> GpuLocks:
    """Claim GPUs for this process, all of them or none: an abstract Unix socket for each uuid.

    Such names have no file to be left behind or deleted, and are shared by all users; a container with a network
    namespace of its own has its own names, though.

    Args:
        uuids: real GPUs only. Simulated ones are no one's but their scheduler's: leave them out.

    Raises:
        StartRefused: another process has one of them.
    """
    sockets: list[socket.socket] = []
    try:
        # In one order everywhere, so that of two schedulers starting together one gets them all.
        for uuid in sorted(set(uuids)):
            held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            sockets.append(held)
            try:
                held.bind(_gpu_address(uuid))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise StartRefused(f"GPU {uuid} cannot be claimed: {error}") from error
                raise StartRefused(
                    f"GPU {uuid} is already managed by another scheduler on this machine{_owner_of(uuid)}; "
                    "use that one, or stop it first"
                ) from error
            # It never accepts: listening lets others read from the kernel who has it.
            held.listen(_PROBES)
    except BaseException:
        for held in sockets:
            held.close()
        raise
    return GpuLocks(sockets)


def _gpu_address(uuid: str) -> str:
    return f"\0gpusched-gpu-{uuid}"


def _owner_of(uuid: str) -> str:
    """Who holds a GPU's socket, as far as the kernel tells: ` (pid 17, user alice)`, or nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_gpu_address(uuid))
            pid, uid, _ = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except OSError:
            return ""
    return f" (pid {pid}, user {user_name(uid)})"


def check_private(path: Path) -> None:
    """That nobody else may put anything into a state directory. Raises StartRefused, OSError."""
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if found.st_uid != os.geteuid():
        raise StartRefused(
            f"state directory {path} belongs to {user_name(found.st_uid)}, not to {user_name(os.geteuid())}; "
            "choose another one with --state-dir or GPUSCHED_STATE_DIR"
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise StartRefused(
            f"state directory {path} may be written by others (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"take that right away with: chmod go-w '{path}'"
        )


def _in_use(path: Path) -> str:
    running = None
    try:
        running = read_running(path)
    except OSError:
        pass
    who = ""
    if running is not None and running.pid:
        who = f" (pid {running.pid}{f', {running.address}' if running.address else ''})"
    return (
        f"another gpusched scheduler{who} uses the state directory {path}; stop it with `gpusched stop`, "
        "or choose another directory with --state-dir or GPUSCHED_STATE_DIR"
    )


def _parse_record(data: bytes) -> RunningServer:
    """What a lock file says; zeroes where it says nothing readable (the scheduler is just starting)."""
    try:
        record = json.loads(data)
        return RunningServer(int(record["pid"]), int(record["start_ticks"]), str(record["address"]))
    except (ValueError, KeyError, TypeError):
        return RunningServer(0, 0, "")


def _filesystem_type(path: Path, mountinfo: str | None) -> str:
    """The type of the file system that a path is or would be on, empty if it cannot be told."""
    place = os.path.realpath(path)
    if mountinfo is None:
        # Looking at the nearest directory that exists makes an automounter mount what belongs there.
        nearest = Path(place)
        try:
            while not nearest.exists() and nearest != nearest.parent:
                nearest = nearest.parent
            mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""
    found, longest = "", -1
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5:
            continue
        mounted = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = place == mounted or place.startswith(mounted.rstrip("/") + "/")
        # Of several mounts at one place the last one listed is on top.
        if inside and len(mounted) >= longest:
            found, longest = kinds[0], len(mounted)
    return found
