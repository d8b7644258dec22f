"""A command that starts many processes in every way that hides them, for tests of what gsrun leaves behind.

usage: forest.py COUNT [stubborn] [end]. Prints `ready` when all are up, then waits for ever; with
`end`, until a line comes on stdin.
`stubborn` ones ignore every signal that can be ignored.
"""

from __future__ import annotations

import os
import signal
import sys


def wait_for_ever() -> None:
    while True:
        signal.pause()


def plant(kind: int, ready: int) -> None:
    """One more process below or beside us, which says so on a pipe."""
    if os.fork():
        return
    if kind % 4 == 1:
        os.setsid()
    elif kind % 4 == 2:  # a daemon by the book: new session, second fork, parent gone
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
    elif kind % 4 == 3 and os.fork():  # a child with a child
        wait_for_ever()
    if "stubborn" in sys.argv:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
    os.write(ready, b"x")
    os.close(ready)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    wait_for_ever()


def main() -> None:
    count = int(sys.argv[1])
    read, write = os.pipe()
    for kind in range(count):
        plant(kind, write)
    seen = 0
    while seen < count:
        seen += len(os.read(read, 4096))
    print("ready", flush=True)
    if "end" in sys.argv:
        sys.stdin.readline()
        sys.exit(3)
    wait_for_ever()


main()
