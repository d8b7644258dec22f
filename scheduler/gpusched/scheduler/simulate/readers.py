"""Logs from files: the Standard Workload Format, and CSV with named columns; plain or gzip."""

from __future__ import annotations

import csv
import gzip
import io
import math
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gpusched.scheduler.core.constraints import MAX_NAME
from gpusched.scheduler.core.policy import MAX_SECONDS
from gpusched.scheduler.simulate.filters import Filter
from gpusched.scheduler.simulate.workload import LoggedJob, Seconds, SimulationError

_GZIP = b"\x1f\x8b"
#: Greatest number that a log may have: beyond it, seconds would lose their fractions.
_MOST = 10**12

#: Fields of a line of the Standard Workload Format that are read, counted from 0.
_SWF_FIELDS = 18
_SWF_ID, _SWF_SUBMIT, _SWF_RUN, _SWF_USED, _SWF_ASKED, _SWF_LIMIT, _SWF_USER = 0, 1, 3, 4, 7, 8, 11
_SWF_NAMES = (
    *("job", "submit", "wait", "run", "procs_used", "cpu", "memory_used", "procs", "req", "memory", "status", "user"),
    *("group", "executable", "queue", "partition", "preceding", "think"),
)

_CSV_NEEDED = "job_id, submit_s, run_s, and gpus or procs"
_CSV_COLUMNS = frozenset(
    ("job_id", "submit_s", "run_s", "gpus", "procs", "req_s", "user", "priority", "name", "estimate_s")
)


@dataclass(slots=True)
class Log:
    """A log that was read.

    Attributes:
        name: the file's, for people.
        jobs: in the order of their submit times; equal ones in the order of their ids if all of those are whole
            numbers, else in the file's.
        gpus: size of the machine as the log tells it, None if it does not.
        has_requested: whether any job's requested time is known.
        has_hints: whether anything else says how long jobs may take: an estimate, or a name to learn by.
        incomplete: rows that were left out as they cannot be replayed.
        filtered: rows that the filters left out.
    """

    name: str
    jobs: list[LoggedJob] = field(default_factory=list)
    gpus: int | None = None
    has_requested: bool = False
    has_hints: bool = False
    incomplete: int = 0
    filtered: int = 0


class _Incomplete(SimulationError):
    """A row without what a replay needs, though well written."""


def read_log(
    path: str,
    *,
    filters: tuple[Filter, ...] = (),
    sort: bool = False,
    skip_incomplete: bool = False,
    called: str = "",
) -> Log:
    """Read a log.

    Args:
        path: file, or `-` for the standard input; SWF or CSV, gzip or not, told by what is in it.
        filters: only rows that all of these match.
        sort: put rows in the order of their submit times, rather than refuse those that go back.
        skip_incomplete: leave rows out (and count them) that have no run time or ask for nothing.
        called: its name for messages; the path if empty.

    Raises:
        SimulationError: it cannot be read or understood; the text has the line's number.
    """
    name = called or path
    log = Log(name)
    with _reading(name), _open(path) as file:
        first = _first_line(file)
        if first is None:
            raise SimulationError(f"{name} is empty")
        number, line = first
        rows: Iterator[LoggedJob]
        if line.lstrip().startswith(";") or _looks_like_swf(line):
            rows = _read_swf(file, number, line, log, filters, skip_incomplete)
        elif separator := _other_separator(line):
            raise SimulationError(
                f"{name}:{number}: columns are separated by {separator}; a CSV log has commas between them"
            )
        elif "," in line:
            rows = _read_csv(file, number, line, log, filters, skip_incomplete)
        else:
            raise SimulationError(
                f"{name}:{number}: neither a CSV header nor a line of 18 numbers (SWF): {line.strip()[:60]!r}"
            )
        jobs = log.jobs = _in_order(rows, name, sort)
    if not jobs:
        why = "that match" if log.filtered else "that could be replayed" if log.incomplete else "in it"
        raise SimulationError(f"{name}: there are no jobs {why}")
    log.has_requested = any(job.requested is not None for job in jobs)
    log.has_hints = any(job.name or job.estimate is not None for job in jobs)
    return log


# -- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def _open(path: str) -> Iterator[io.TextIOBase]:
    if path == "-":
        yield _decoded(sys.stdin.buffer)
        return
    with Path(path).open("rb") as file:
        yield _decoded(file)


def _decoded(file: BinaryIO) -> io.TextIOBase:
    assert isinstance(file, io.BufferedReader)
    raw: Any = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file
    # What is no UTF-8 can only be in names; numbers with it in them are refused by line.
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Say what is the matter with a file in one line."""
    try:
        yield
    except OSError as error:
        # A damaged gzip file is an OSError without a number.
        raise SimulationError(f"cannot read {name}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise SimulationError(f"cannot read {name}: the gzip data is damaged or cut off ({error})") from None


def _other_separator(line: str) -> str:
    """What stands in a CSV header where commas should; empty if they do."""
    for char, called in ((";", "semicolons"), ("\t", "tabs")):
        columns = {each.strip().strip('"') for each in line.split(char)}
        if len(columns & _CSV_COLUMNS) > 1:
            return called
    return ""


def _first_line(file: io.TextIOBase) -> tuple[int, str] | None:
    for number, line in enumerate(file, 1):
        if line.strip():
            return number, line
    return None


def _in_order(rows: Iterable[LoggedJob], name: str, sort: bool) -> list[LoggedJob]:
    jobs: list[LoggedJob] = []
    seen: dict[int | str, int] = {}
    before: Seconds = -1
    for job in rows:
        if job.submit < before and not sort:
            raise SimulationError(
                f"{name}:{job.line}: job {job.id} is submitted at {job.submit}, before the one above it ({before}); "
                f"--sort puts them in order"
            )
        before = job.submit
        if (other := seen.setdefault(job.id, job.line)) != job.line:
            raise SimulationError(f"{name}:{job.line}: job {job.id} is there already, in line {other}")
        jobs.append(job)
    if all(type(job.id) is int for job in jobs):
        jobs.sort(key=lambda job: (job.submit, job.id))
    else:
        jobs.sort(key=lambda job: job.submit)
    return jobs


# -- the Standard Workload Format -------------------------------------------------------------------------------------


def _looks_like_swf(line: str) -> bool:
    parts = line.split()
    return len(parts) == _SWF_FIELDS and "," not in line and parts[0].lstrip("-").isdigit()


def _read_swf(
    file: io.TextIOBase, number: int, line: str, log: Log, filters: tuple[Filter, ...], skip_incomplete: bool
) -> Iterator[LoggedJob]:
    number -= 1
    asked_for = [(each, _column(_SWF_NAMES, each, log.name)) for each in filters]
    for text in _chain(line, file):
        number += 1
        if text.lstrip().startswith(";"):
            _swf_comment(text, log)
            continue
        parts = text.split()
        if not parts:
            continue
        where = f"{log.name}:{number}"
        if len(parts) != _SWF_FIELDS:
            raise SimulationError(f"{where}: has {len(parts)} fields; a line of the SWF has {_SWF_FIELDS}")
        if any(not each.matches(parts[column]) for each, column in asked_for):
            log.filtered += 1
            continue
        try:
            if type(_number(parts[_SWF_ID], "job number")) is not int:
                raise SimulationError(f"job number: {parts[_SWF_ID][:40]!r} is no whole number")
            asked, limit = _number(parts[_SWF_ASKED], "procs"), _seconds(parts[_SWF_LIMIT], "requested time")
            used = _number(parts[_SWF_USED], "procs used")
            yield _job(
                number,
                parts[_SWF_ID],
                _number(parts[_SWF_SUBMIT], "submit time"),
                _seconds(parts[_SWF_RUN], "run time"),
                asked if asked > 0 else used,
                limit if limit > 0 else None,
                "" if parts[_SWF_USER] == "-1" else parts[_SWF_USER],
            )
        except _Incomplete as error:
            _leave_out(log, where, error, skip_incomplete)
        except SimulationError as error:
            raise SimulationError(f"{where}: {error}") from None


def _swf_comment(text: str, log: Log) -> None:
    key, _, value = text.strip().lstrip("; ").partition(":")
    words = value.split()
    if key.strip().lower() == "maxprocs" and words and words[0].isascii() and words[0].isdigit() and len(words[0]) < 10:
        log.gpus = int(words[0]) or None


# -- CSV --------------------------------------------------------------------------------------------------------------


def _read_csv(
    file: io.TextIOBase, number: int, line: str, log: Log, filters: tuple[Filter, ...], skip_incomplete: bool
) -> Iterator[LoggedJob]:
    name = log.name
    reader = csv.reader(_chain(line, file), strict=True)
    before = number - 1
    try:
        header = [each.strip() for each in next(reader)]
        places = {each: place for place, each in enumerate(header)}
        if len(places) < len(header):
            twice = next(each for each in header if header.count(each) > 1)
            raise SimulationError(f"{name}:{number}: column {twice!r} is there twice")
        gpus_name = next((each for each in ("gpus", "procs") if each in places), "gpus")
        missing = [each for each in ("job_id", "submit_s", "run_s", gpus_name) if each not in places]
        if missing:
            raise SimulationError(
                f"{name}:{number}: no column {', '.join(missing)}; needed are {_CSV_NEEDED}, and there are "
                f"{', '.join(header)[:200]}"
            )
        at_id, at_submit, at_run, at_gpus = (places[each] for each in ("job_id", "submit_s", "run_s", gpus_name))
        at_limit, at_user, at_priority = (places.get(each) for each in ("req_s", "user", "priority"))
        at_name, at_estimate = places.get("name"), places.get("estimate_s")
        asked_for = [(each, _column(header, each, name)) for each in filters]
        for row in reader:
            number = before + reader.line_num
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            where = f"{name}:{number}"
            if len(row) != len(header):
                raise SimulationError(f"{where}: has {len(row)} fields, and the header {len(header)}")
            if asked_for and any(not each.matches(row[column]) for each, column in asked_for):
                log.filtered += 1
                continue
            try:
                limit = None
                if at_limit is not None and row[at_limit].strip() not in ("", "-1"):
                    limit = _seconds(row[at_limit], "req_s")
                estimate = None
                if at_estimate is not None and row[at_estimate].strip() not in ("", "-1"):
                    estimate = _seconds(row[at_estimate], "estimate_s")
                priority: Seconds = 0
                if at_priority is not None and row[at_priority].strip():
                    priority = _number(row[at_priority], "priority")
                yield _job(
                    number,
                    row[at_id],
                    _number(row[at_submit], "submit_s"),
                    _seconds(row[at_run], "run_s"),
                    _number(row[at_gpus], gpus_name),
                    limit,
                    row[at_user].strip() if at_user is not None else "",
                    priority,
                    row[at_name].strip() if at_name is not None else "",
                    estimate,
                )
            except _Incomplete as error:
                _leave_out(log, where, error, skip_incomplete)
            except SimulationError as error:
                raise SimulationError(f"{where}: {error}") from None
    except csv.Error as error:
        raise SimulationError(f"{name}:{before + reader.line_num}: is no CSV: {error}") from None


# -- values -----------------------------------------------------------------------------------------------------------


def _chain(line: str, file: Iterable[str]) -> Iterator[str]:
    yield line
    yield from file


def _column(header: Iterable[str], wanted: Filter, name: str) -> int:
    columns = list(header)
    if wanted.column not in columns:
        raise SimulationError(
            f"{wanted.option}: {name} has no column {wanted.column!r}; there are {', '.join(columns)[:200]}"
        )
    return columns.index(wanted.column)


def _leave_out(log: Log, where: str, error: SimulationError, skip: bool) -> None:
    if not skip:
        raise SimulationError(f"{where}: {error}; --skip-incomplete leaves such rows out") from None
    log.incomplete += 1


def _number(text: str, field: str) -> Seconds:
    """A number of a row; whole ones stay whole."""
    digits = text.strip()
    if digits.isdigit() and digits.isascii() and len(digits) <= 13:
        return int(digits)
    if not digits:
        raise _Incomplete(f"{field} is missing")
    try:
        value = float(digits)
    except ValueError:
        value = math.nan
    if math.isnan(value) or "_" in digits or not digits.isascii():
        raise SimulationError(f"{field}: {text[:40]!r} is no number")
    if abs(value) > _MOST:
        raise SimulationError(f"{field}: {text[:40]!r} is out of range")
    return int(value) if value.is_integer() else value


def _seconds(text: str, field: str) -> Seconds:
    """How long something takes: no longer than the scheduler takes any limit for one."""
    value = _number(text, field)
    if value > MAX_SECONDS:
        raise SimulationError(
            f"{field}: {text.strip()[:40]} s is out of range; allowed are {MAX_SECONDS:,.0f} s at most (ten years)"
        )
    return value


def _job(
    line: int,
    id_text: str,
    submit: Seconds,
    run: Seconds,
    gpus: Seconds,
    requested: Seconds | None,
    user: str,
    priority: Seconds = 0,
    name: str = "",
    estimate: Seconds | None = None,
) -> LoggedJob:
    id_text = id_text.strip()
    if not id_text or len(id_text) > 64:
        raise SimulationError("job id: must have 1 to 64 characters")
    job_id = int(id_text) if id_text.isdigit() and id_text.isascii() and len(id_text) < 19 else id_text
    if submit < 0:
        raise SimulationError(f"job {job_id}: submit time {submit}; it must not be negative")
    if run < 0:
        raise _Incomplete(f"job {job_id}: run time {run}; it must not be negative")
    if gpus <= 0:
        raise _Incomplete(f"job {job_id}: asks for {gpus} GPUs or processors; it must be 1 or more")
    for what, value in (("GPUs or processors", gpus), ("priority", priority)):
        if type(value) is not int:
            raise SimulationError(f"job {job_id}: {what} {value}; it must be a whole number")
    if requested is not None and requested <= 0:
        raise SimulationError(f"job {job_id}: requested time {requested}; it must be more than 0, or empty")
    if estimate is not None and estimate <= 0:
        raise SimulationError(f"job {job_id}: estimate_s {estimate}; it must be more than 0, or empty")
    if not name.isprintable():
        name = "".join(char if char.isprintable() else "?" for char in name)
    if not -100 <= priority <= 100:
        raise SimulationError(f"job {job_id}: priority {priority}; allowed are -100 to 100")
    return LoggedJob(line, job_id, submit, run, int(gpus), requested, user, int(priority), name[:MAX_NAME], estimate)
