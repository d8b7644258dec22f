"""Messages between gsrun's two processes: one packet each, a kind and text fields.

Both ends are the same program, forked: there is no version to agree on, and nobody else has the socket.
"""

from __future__ import annotations

import socket
from collections import deque

MAX_BYTES = 32768
_SEPARATOR = "\0"

# From the holder to the front.
WAIT = "wait"  # text of the live line: only the newest matters
ASK = "ask"  # epoch: are you awake? With the connection to the scheduler as an attached descriptor
SHARE = "share"  # a new connection to the scheduler is attached, in place of the one before
STARTED = "started"  # process id of the command, job id, GPUs in words
SAY = "say"  # a line for the user, unless quiet
ERROR = "error"  # a line for the user, always
DETAIL = "detail"  # a line for the user who asked for more
STOPPED = "stopped"  # signal number: the command was stopped
CONTINUED = "continued"
ANSWER = "answer"  # what --dry-run was asked for, on stdout
DONE = "done"  # exit code, signal number (0: none)

# From the front to the holder.
READY = "ready"  # epoch: answer to ASK
SIGNAL = "signal"  # number, "terminal" or "kill", "started" if the command was known to run


class Peer:
    """One end of the socket pair. Never blocks: what the other end does not take yet waits here, in order."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.closed = False
        self._outbox: deque[tuple[str, bytes, tuple[int, ...]]] = deque()

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits until the other end reads."""
        return bool(self._outbox)

    def send(self, kind: str, *fields: object, fds: tuple[int, ...] = ()) -> None:
        """Send a message; a WAIT takes the place of one that the other end has not taken yet."""
        text = _SEPARATOR.join((kind, *(str(field).replace(_SEPARATOR, " ") for field in fields)))
        packet = text.encode("utf-8", "replace")[:MAX_BYTES]
        if kind == WAIT:
            self._outbox = deque(item for item in self._outbox if item[0] != WAIT)
        self._outbox.append((kind, packet, fds))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other end takes it."""
        while self._outbox:
            _, packet, fds = self._outbox[0]
            try:
                if fds:
                    socket.send_fds(self.sock, [packet], list(fds))
                else:
                    self.sock.send(packet)
            except BlockingIOError:
                return
            except OSError:
                # The other end is gone, which its death tells; what it sent before is still to be received.
                self._outbox.clear()
                return
            self._outbox.popleft()

    def receive(self) -> tuple[list[tuple[str, list[str]]], list[int]]:
        """All messages that wait, and the descriptors that came with them; `closed` is set at the end."""
        messages: list[tuple[str, list[str]]] = []
        received: list[int] = []
        while not self.closed:
            try:
                packet, fds, _, _ = socket.recv_fds(self.sock, MAX_BYTES, 4)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # said once, before what waits here: the other end went and left a message of ours unread
            except OSError:
                self.closed = True
                break
            received.extend(fds)
            if not packet:
                self.closed = True
                break
            kind, *fields = packet.decode("utf-8", "replace").split(_SEPARATOR)
            messages.append((kind, fields))
        return messages, received
