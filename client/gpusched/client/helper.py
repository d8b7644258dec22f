"""The process that keeps a lease for a notebook or script: `python -m gpusched.client.helper FD PID START_TICKS`.

It holds the `Acquire` stream, so that the user's process has no gRPC threads, no sockets that forked workers would
keep open, and no protobuf version to agree on. It watches its owner by a pidfd: whatever ends the owner, kill -9
included, ends this process at once, the stream with it, and so the lease. A pipe would not do, since forked workers
keep copies of its other end.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from gpusched.client import procs, wire
from gpusched.client.errors import GpuschedError
from gpusched.client.usage import UsageError

_POLL_SECONDS = 0.05
_SEND_SECONDS = 10.0

Message = dict[str, Any]


class Link:
    """Our end of the socket to the owner; any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()

    def send(self, kind: str, **fields: Any) -> None:
        """Tell the owner. An owner that reads no more is dead or stopped, and is dealt with elsewhere."""
        with self._lock:
            try:
                self.sock.sendall(wire.encode(kind, **fields))
            except OSError:
                pass

    def fail(self, error: GpuschedError) -> NoReturn:
        """Tell that nothing was granted, and end."""
        self.send(wire.FAILED, error=wire.dump_error(error))
        os._exit(0)


def main() -> NoReturn:
    """Serve one owner until it has finished or is gone."""
    descriptor, owner_pid, owner_ticks = (int(argument) for argument in sys.argv[1:4])
    link = Link(socket.socket(fileno=descriptor))
    commands: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_work, args=(commands, link, owner_pid, owner_ticks), daemon=True).start()
    for message in _commands_of_living(owner_pid, owner_ticks, link.sock):
        commands.put(message)
    os._exit(0)


def _work(commands: queue.SimpleQueue[Message], link: Link, owner_pid: int, owner_ticks: int) -> None:
    try:
        first = commands.get()
        # Imported here, while the main thread already watches the owner.
        from gpusched.client import keeper

        if first["kind"] == wire.LOOK_UP:
            keeper.look_up(first, link)
        else:
            keeper.Keeper(first["request"], link, owner_pid, owner_ticks).serve(commands)
    except GpuschedError as error:
        link.fail(error)
    except UsageError as error:
        link.fail(GpuschedError(str(error), reason="USAGE"))
    except BaseException as error:
        import traceback

        traceback.print_exc()  # into the file that the owner keeps for this
        sys.stderr.flush()
        link.fail(GpuschedError(f"the helper process failed: {type(error).__name__}: {error}", reason="HELPER_FAILED"))
    os._exit(0)


def _commands_of_living(pid: int, ticks: int, sock: socket.socket) -> Iterator[Message]:
    """The owner's messages, for as long as it lives and keeps the socket open."""
    poller = select.poll()
    # Receiving must not block this thread; sending, by others, may wait a moment.
    poller.register(sock, select.POLLIN | select.POLLHUP)
    watched = -1
    try:
        watched = os.pidfd_open(pid)
        poller.register(watched, select.POLLIN)
    except ProcessLookupError:
        return
    except OSError:
        pass  # a kernel before 5.3: looked at again and again instead
    if procs.start_ticks(pid) != ticks:
        return  # the owner died before the pidfd was opened, and its number went to another process
    _limit_sends(sock)
    buffer = b""
    while True:
        ready = poller.poll(None if watched >= 0 else _POLL_SECONDS * 1000)
        if any(descriptor == watched for descriptor, _ in ready) or (watched < 0 and procs.start_ticks(pid) != ticks):
            return
        if not ready:
            continue
        try:
            received = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError:
            return
        if not received:
            return
        *lines, buffer = (buffer + received).split(b"\n")
        yield from (wire.decode(line) for line in lines)


def _limit_sends(sock: socket.socket) -> None:
    """An owner that does not read (stopped with a full socket) must not hold up a thread for ever."""
    seconds = int(_SEND_SECONDS).to_bytes(8, sys.byteorder) + bytes(8)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)


if __name__ == "__main__":
    main()
