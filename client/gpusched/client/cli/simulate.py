"""`gpusched simulate`: the scheduler's simulator takes over, arguments unread, but for `--from-history`.

A history is asked of the running scheduler, as any user may, and handed over as a log on the standard input.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from typing import Any, NamedTuple

from gpusched.client.cli.output import Output
from gpusched.client.cli.parsing import Parser
from gpusched.client.cli.session import Session

_PAGE = 500
_COLUMNS = (
    *("job_id", "submit_s", "run_s", "gpus", "req_s", "user", "priority", "start_s", "state"),
    *("name", "estimate_s"),
)
#: What the scheduler's policy and the simulator both have: by the policy's field, which is the option's name too.
_NAMES = ("backfill", "candidates")
_COUNTS = ("depth", "freeze_bypasses")
_TIMES = ("freeze_wait", "aging", "starvation", "half_life")
#: Least time that a log can tell, and most characters of a job's name.
_LEAST = 1e-3
_LONGEST_NAME = 128
#: The simulator's options that take no value.
_FLAGS = frozenset(("--from-history", "--sort", "--skip-incomplete", "--skip-too-large", "--json"))


class LeftOut(NamedTuple):
    """How many jobs of a history are not in its log, and why: the first of these that is true of a job."""

    never_ran: int = 0
    without_gpus: int = 0
    shared: int = 0

    def note(self) -> str:
        """What to tell the user; empty if nothing was left out."""
        parts = (
            (self.never_ran, "that ended without a run"),
            (self.without_gpus, "without GPUs"),
            (self.shared, "with a share of a GPU"),
        )
        told = [f"{number:,} job{'' if number == 1 else 's'} {what}" for number, what in parts if number]
        return f"left out: {', '.join(told)}" if told else ""


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
    if (log := _log_among(words)) is not None:
        parser.error(f"a LOG ({log[:200]!r}) and --from-history exclude each other: leave one of them out")
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
        policy = _policy(session)
    log, left_out = history_csv(jobs)
    if note := left_out.note():
        output.note(note)
    file = os.memfd_create("history")
    with os.fdopen(os.dup(file), "wb") as writer:
        writer.write(log.encode("utf-8", "replace"))
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)
    # What the user gives stands behind the scheduler's own policy, and so counts.
    called = f"--called=history of {session.address}"
    return ["-", called, *shape, f"--placement={known.placement}", *policy, *rest]


def _log_among(words: list[str]) -> str | None:
    """The LOG, if one is named: what is neither an option nor an option's value."""
    rest = iter(words)
    for word in rest:
        if word == "-" or not word.startswith("-"):
            return word
        if "=" not in word and word not in _FLAGS:
            next(rest, None)
    return None


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


def _policy(session: Session) -> list[str]:
    """The scheduler's own policy, as options of the simulator."""
    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.cli import show

    status = session.call(session.scheduler.GetStatus, pb.GetStatusRequest())
    if not status.HasField("policy_settings"):
        return []
    policy = status.policy_settings
    values = {"policy": policy.order}
    values |= {name: str(getattr(policy, name)) for name in (*_NAMES, *_COUNTS)}
    values |= {name: str(show.seconds(getattr(policy, name))) for name in _TIMES}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def history_csv(jobs: list[Any]) -> tuple[str, LeftOut]:
    """A log out of jobs that have ended.

    Args:
        jobs: as the contract has them (gpusched.v1.Job).

    Returns:
        CSV with seconds since the epoch, in the order of submit times, and what was left out.
    """
    from gpusched.client.cli import show

    rows = []
    never_ran = without_gpus = shared = 0
    for job in jobs:
        if not job.HasField("started_at"):
            never_ran += 1
            continue
        if not job.resources.gpus:
            without_gpus += 1
            continue
        if job.resources.shared:
            shared += 1
            continue
        submit, start, end = (show.seconds(at) for at in (job.submitted_at, job.started_at, job.ended_at))
        limit = show.seconds(job.time_limit) if job.HasField("time_limit") else None
        rows.append(
            (
                job.id,
                _number(submit),
                _number(max(end - start, 0.0)),
                job.resources.gpus,
                "" if limit is None else _number(max(limit, _LEAST)),
                job.user,
                job.priority,
                _number(start),
                job.state,
                _name(job),
                _number(max(show.seconds(job.estimate), _LEAST)) if job.HasField("estimate") else "",
            )
        )
    rows.sort(key=lambda row: (float(row[1]), int(row[0]) if row[0].isdigit() else 0))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    return text.getvalue(), LeftOut(never_ran, without_gpus, shared)


def _name(job: Any) -> str:
    """What similar work has in common: its name or, without one, its program (which is shown of one's own jobs alone).

    No longer than names may be; of a program its end says more.
    """
    program = job.command[0] if job.command else ""
    return job.name or "".join(char if char.isprintable() else "?" for char in program)[-_LONGEST_NAME:]


def _number(seconds: float) -> str:
    return f"{seconds:.3f}"
