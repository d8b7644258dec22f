"""What comes out of a replay, and what is said where it cannot: each thing fails by itself."""

from __future__ import annotations

import csv
import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias

from gpusched.scheduler.simulate.replay import Replayed
from gpusched.scheduler.simulate.workload import LoggedJob, SimulationError

#: Puts one thing out. Raises SimulationError, or BrokenPipeError where nobody reads it any more.
Output: TypeAlias = Callable[[], None]
#: Exit status where nobody reads any more, as a shell has it: 128 and SIGPIPE.
NOBODY_READS = 141


def each(outputs: Iterable[Output]) -> int:
    """Put all out, and say what cannot be. Returns the exit status."""
    status = 0
    for output in outputs:
        try:
            output()
        except SimulationError as error:
            complain(str(error))
            status = 1
        except BrokenPipeError:
            status = status or NOBODY_READS
    return status


def complain(text: str) -> None:
    """One line on the standard error, if that can be."""
    try:
        put(f"gpusched: {text}\n", sys.stderr)
    except (SimulationError, BrokenPipeError):
        return


def put(text: str, stream: TextIO | None) -> None:
    """Write to the standard output or error, all of it. Raises SimulationError, BrokenPipeError."""
    name = "standard error" if stream is sys.stderr and stream is not None else "standard output"
    if stream is None:
        raise SimulationError(f"cannot write to the {name}: it is closed")
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # What is still in the buffer would fail once more, and with a traceback, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise SimulationError(f"cannot write to the {name}: {error.strerror or error}") from None


def write_starts(path: str, jobs: Sequence[LoggedJob], done: Replayed) -> None:
    """Write job_id,start_s; `-` is the standard output. Raises SimulationError, BrokenPipeError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("job_id", "start_s"))
    writer.writerows((job.id, start) for job, start in zip(jobs, done.starts, strict=True))
    if path == "-":
        put(text.getvalue(), sys.stdout)
        return
    try:
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            file.write(text.getvalue())
    except OSError as error:
        raise SimulationError(f"cannot write {path}: {error.strerror or error}") from None


def refuse_to_overwrite(log: str, files: Mapping[str, str | None]) -> None:
    """See to it that no output takes the place of the log or of another output.

    Args:
        log: the file that is read; `-` is the standard input.
        files: what is written, by its option; None where nothing is.

    Raises:
        SimulationError: one would.
    """
    taken: dict[tuple[int, int] | str, str] = {}
    try:
        taken[_identity(os.fstat(sys.stdin.fileno()) if log == "-" else Path(log).stat())] = "the LOG itself"
    except (OSError, ValueError, AttributeError):
        pass  # There is none: whoever reads it says so.
    for option, path in files.items():
        if not path or path == "-":
            continue
        try:
            there = Path(path).stat()
        except (OSError, ValueError):
            identity: tuple[int, int] | str = os.path.realpath(path)
        else:
            if not stat.S_ISREG(there.st_mode):
                continue
            identity = _identity(there)
        if identity in taken:
            raise SimulationError(f"{option}: {path[:200]!r} is {taken[identity]}, which would be lost; name another")
        taken[identity] = f"the file of {option}"


def _identity(of: os.stat_result) -> tuple[int, int]:
    return of.st_dev, of.st_ino
