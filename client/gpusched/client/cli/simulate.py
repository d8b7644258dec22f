"""`gpusched simulate`: the scheduler's simulator takes over, arguments unread, but for `--from-history`.

A history is asked of the running scheduler, as any user may, and handed over as a log on the standard input.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from typing import Any

from gpusched.client.cli.output import Output
from gpusched.client.cli.parsing import Parser
from gpusched.client.cli.session import Session

_PAGE = 500
_COLUMNS = ("job_id", "submit_s", "run_s", "gpus", "req_s", "user", "priority", "start_s", "state")


def configure(parser: argparse.ArgumentParser) -> None:
    """Nothing: the simulator reads its arguments itself."""


def run(args: argparse.Namespace, output: Output) -> int:
    """Become the simulator; comes back only if that cannot be started. Raises GpuschedError, UsageError."""
    words = list(args.rest)
    if "--from-history" in words and not {"-h", "--help"} & set(words):
        words = _with_history(words, args, output)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [sys.executable, "-m", "gpusched.scheduler", args.command, *words])
    except OSError as error:
        output.error(f"cannot start {sys.executable}: {error.strerror}")
    return 1


def _with_history(words: list[str], args: argparse.Namespace, output: Output) -> list[str]:
    """The same arguments with a log in place of `--from-history`: that log is now the standard input."""
    parser = Parser("gpusched simulate", "")
    parser.add_argument("--from-history", action="store_true")
    parser.add_argument("--url", default=args.url)
    parser.add_argument("--gpus")
    parser.add_argument("--nodes")
    # As the server itself places, so that its history is compared with what it does.
    parser.add_argument("--placement", default="pack")
    known, rest = parser.parse_known_args(words)
    with Session(known, output) as session:
        jobs = _ended_jobs(session)
        shape = [f"--{name}={value}" for name in ("gpus", "nodes") if (value := getattr(known, name)) is not None]
        if not shape:
            shape = [f"--nodes={_shape(session)}"]
    log, never_ran = history_csv(jobs)
    if never_ran:
        what = "job ended without a run and is" if never_ran == 1 else "jobs ended without a run and are"
        output.note(f"{never_ran:,} {what} left out")
    file = os.memfd_create("history")
    with os.fdopen(os.dup(file), "wb") as writer:
        writer.write(log.encode("utf-8", "replace"))
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)
    return ["-", f"--called=history of {session.address}", *shape, f"--placement={known.placement}", *rest]


def _ended_jobs(session: Session) -> list[Any]:
    import gpusched.v1.scheduler_pb2 as pb

    jobs: list[Any] = []
    token = ""
    while True:
        wanted = pb.JobFilter(include_ended=True)
        answer = session.call(
            session.scheduler.ListJobs, pb.ListJobsRequest(filter=wanted, page_size=_PAGE, page_token=token)
        )
        jobs += (job for job in answer.jobs if job.HasField("ended_at"))
        token = answer.next_page_token
        if not token:
            return jobs


def _shape(session: Session) -> str:
    """The scheduler's own machine, as `--nodes` takes it."""
    import gpusched.v1.scheduler_pb2 as pb

    nodes = session.call(session.scheduler.ListNodes, pb.ListNodesRequest()).nodes
    return ",".join(f"1x{node.gpus_total}" for node in nodes if node.gpus_total) or "1x1"


def history_csv(jobs: list[Any]) -> tuple[str, int]:
    """A log out of jobs that have ended.

    Args:
        jobs: as the contract has them (gpusched.v1.Job).

    Returns:
        CSV with whole seconds since the epoch, in the order of submit times, and how many jobs never ran.
    """
    rows = []
    for job in jobs:
        if not job.HasField("started_at"):
            continue
        submit, start, end = (at.seconds + at.nanos / 1e9 for at in (job.submitted_at, job.started_at, job.ended_at))
        limit = job.time_limit.seconds + job.time_limit.nanos / 1e9 if job.HasField("time_limit") else None
        rows.append(
            (
                job.id,
                _number(submit),
                _number(max(end - start, 0.0)),
                job.resources.gpus,
                "" if limit is None else _number(limit),
                job.user,
                job.priority,
                _number(start),
                job.state,
            )
        )
    rows.sort(key=lambda row: (float(row[1]), int(row[0]) if row[0].isdigit() else 0))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    return text.getvalue(), len(jobs) - len(rows)


def _number(seconds: float) -> str:
    return f"{seconds:.3f}"
