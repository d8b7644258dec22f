"""What gsrun needs of Linux that Python 3.11 does not offer: child subreapers, process names, signalfd.

Through ctypes, which costs 1.5 ms of start-up; every call is one that glibc and musl have had for fifteen years.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator

_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_SFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_SIGINFO_BYTES = 128  # struct signalfd_siginfo
_SIGSET_BYTES = 128  # sigset_t of glibc and musl

FROM_KERNEL = 0x80
"""`si_code` of a signal that the terminal made (^C, ^Z, ^\\, a new window size)."""

_libc = ctypes.CDLL(None, use_errno=True)


class SignalRead:
    """One signal as signalfd tells it.

    Attributes:
        number: the signal.
        code: `FROM_KERNEL` or how else it was made (0: by kill).
        sender: process id of the sender, 0 if there is none.
    """

    __slots__ = ("code", "number", "sender")

    def __init__(self, number: int, code: int, sender: int) -> None:
        self.number = number
        self.code = code
        self.sender = sender

    @property
    def by_terminal(self) -> bool:
        """Whether the whole foreground group got it from the terminal, and not this process alone from kill()."""
        return self.code == FROM_KERNEL


def become_subreaper(on: bool = True) -> None:
    """Orphans among this process's descendants become its children (or, off again, go to init). Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def set_process_name(name: str) -> None:
    """The name that ps and top show, at most 15 bytes. Raises OSError."""
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def open_signalfd(signals: Iterable[int]) -> int:
    """A descriptor that reads the given signals, which the caller has blocked. Raises OSError."""
    mask = ctypes.create_string_buffer(_SIGSET_BYTES)
    _libc.sigemptyset(mask)
    for number in signals:
        _libc.sigaddset(mask, number)
    fd = int(_libc.signalfd(-1, mask, _SFD_NONBLOCK_CLOEXEC))
    if fd < 0:
        raise _os_error()
    return fd


def read_signals(fd: int) -> Iterator[SignalRead]:
    """All signals that wait in a signalfd."""
    while True:
        try:
            data = os.read(fd, 16 * _SIGINFO_BYTES)
        except BlockingIOError:
            return
        for at in range(0, len(data), _SIGINFO_BYTES):
            # ssi_signo, ssi_errno, ssi_code and ssi_pid are the first four 32-bit words.
            words = memoryview(data)[at : at + 16].cast("i")
            yield SignalRead(words[0], words[2], words[3])


def _prctl(option: int, argument: int | ctypes.c_char_p) -> None:
    value = ctypes.c_ulong(argument) if isinstance(argument, int) else argument
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, value, zero, zero, zero) != 0:
        raise _os_error()


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
