"""Reading what batch jobs wrote: in bounded pieces, and from near the end without reading all before it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

#: Bytes in one piece; and how far from the end the last lines are looked for.
PIECE = 64 * 1024
MAX_TAIL = 16 * 1024 * 1024


def read_log(path: Path, offset: int) -> bytes | None:
    """The next piece of a log from an offset in bytes, empty at its end, None if there is no such file.

    Only of plain files: what goes into a pipe or a terminal is not ours to take.
    """
    try:
        with _plain(path) as file:
            file.seek(offset)
            return file.read(PIECE)
    except OSError:
        return None


def tail_offset(path: Path, lines: int) -> int:
    """Where the last lines of a log begin, in bytes from its start. Looks back at most MAX_TAIL."""
    try:
        with _plain(path) as file:
            end = position = file.seek(0, os.SEEK_END)
            wanted = lines
            while position > 0 and end - position < MAX_TAIL:
                start = max(0, position - PIECE)
                file.seek(start)
                block = file.read(position - start)
                if position == end and block.endswith(b"\n"):
                    block = block[:-1]  # the newline that ends the last line begins none
                found = block.count(b"\n")
                if found >= wanted:
                    cut = len(block)
                    for _ in range(wanted):
                        cut = block.rindex(b"\n", 0, cut)
                    return start + cut + 1
                wanted -= found
                position = start
            return position
    except OSError:
        return 0


def _plain(path: Path) -> BinaryIO:
    """Raises OSError, too, if it is no plain file. Opening a pipe must not wait for its other end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    return open(descriptor, "rb")
