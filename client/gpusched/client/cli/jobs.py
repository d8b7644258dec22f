"""`gpusched jobs`: running and waiting jobs, and ended ones where asked."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

from gpusched.client.cli.output import Cell, Column, Mode, Output, Row, Table, document, paint
from gpusched.client.cli.parsing import Parser, add_listing, checked, short_text, whole_number
from gpusched.client.cli.session import Session, Stream
from gpusched.client.usage import UsageError

STATES = ("queued", "running", "completed", "failed", "cancelled", "timed_out", "preempted", "lost")

PAGE = 500
ENDED_LIMIT = 1000

COLUMNS = (
    Column("JOB"),
    Column("STATE"),
    Column("USER", least=5, drop=2),
    Column("NAME", least=8, drop=3),
    Column("GPUS", least=6),
    Column("POSITION", short="POS", right=True),
    Column("TIME", right=True),
    Column("LIMIT", right=True, drop=5),
    Column("REASON", least=10, drop=4),
)


def configure(parser: Parser) -> None:
    """Arguments."""
    add_listing(parser, ids="ids")
    parser.add_argument("-a", "--all", action="store_true", help="ended jobs too")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("-u", "--user", metavar="USER", type=checked("--user", short_text), help="this user's jobs")
    whose.add_argument("-m", "--mine", action="store_true", help="your own jobs")
    parser.add_argument(
        "-s", "--state", metavar="STATE", action="append", type=checked("--state", _states), dest="states",
        help=f"jobs in this state ({', '.join(STATES)}); several with commas",
    )  # fmt: skip
    parser.add_argument("--name", metavar="TEXT", type=checked("--name", short_text), help="jobs with this in the name")
    parser.add_argument("--node", metavar="NODE", type=checked("--node", short_text), help="jobs on this node")
    parser.add_argument(
        "-l", "--limit", metavar="N", type=checked("--limit", whole_number(0, 10**9)),
        help=f"at most so many; 0: no limit (the default; with ended jobs it is {ENDED_LIMIT})",
    )  # fmt: skip


def run(args: argparse.Namespace, output: Output) -> int:
    """List, once or on."""
    if args.watch and args.limit:
        args.fail("--limit cannot be had with --watch")
    import gpusched.v1.scheduler_pb2 as pb

    with Session(args, output) as session:
        wanted = _filter(args, session)
        if args.watch:
            from gpusched.client.cli.watch import follow

            view = JobsView(output, wanted)

            def open_stream() -> Stream:
                view.restart()
                stream: Stream = session.scheduler.WatchJobs(pb.WatchJobsRequest(filter=wanted))
                return stream

            return follow(session, output, open_stream, view)
        limit = args.limit
        if limit is None:
            limit = ENDED_LIMIT if args.all or args.states else 0
        jobs, total = _fetch(session, wanted, limit)
        _print(jobs, total, output, narrowed=bool(args.states or args.user or args.mine or args.name or args.node))
        return 0


def _states(text: str, field: str) -> list[str]:
    names = [name.strip().lower().replace("-", "_") for name in text.split(",")]
    if unknown := [name for name in names if name not in STATES]:
        raise UsageError(field, unknown[0], f"give one of {', '.join(STATES)}")
    return names


def _filter(args: argparse.Namespace, session: Session) -> Any:
    import gpusched.v1.scheduler_pb2 as pb

    user = args.user
    if args.mine:
        # The server's own word for us: the name it files our jobs under.
        user = session.call(session.scheduler.GetStatus, pb.GetStatusRequest()).caller
    names = [name for group in args.states or () for name in group]
    return pb.JobFilter(
        states=[f"JOB_STATE_{name.upper()}" for name in names],
        user=user or "",
        name=args.name or "",
        node=args.node or "",
        include_ended=args.all,
    )


def _fetch(session: Session, wanted: Any, limit: int) -> tuple[list[Any], int]:
    """All jobs that match, page by page, at most `limit` (0: all), and how many there are."""
    import gpusched.v1.scheduler_pb2 as pb

    jobs: list[Any] = []
    token = ""
    while True:
        size = min(PAGE, limit - len(jobs)) if limit else PAGE
        request = pb.ListJobsRequest(filter=wanted, page_size=size, page_token=token)
        answer = session.call(session.scheduler.ListJobs, request)
        jobs += answer.jobs
        token = answer.next_page_token
        if not token or (limit and len(jobs) >= limit):
            return jobs, max(answer.total_size, len(jobs))


def _print(jobs: list[Any], total: int, output: Output, narrowed: bool) -> None:
    if output.mode is Mode.JSON:
        output.json({"jobs": [document(job) for job in jobs], "total_size": total})
    elif output.mode is Mode.QUIET:
        output.ids(job.id for job in jobs)
    elif jobs:
        now = time.time()
        output.lines(output.table(COLUMNS, rows(jobs, now)))
    else:
        output.note("no jobs match" if narrowed else "no jobs: nothing runs and nothing waits")
    if len(jobs) < total:
        output.note(f"{len(jobs)} of {total} jobs shown; --limit 0 shows all")


def rows(jobs: Iterable[Any], now: float) -> list[Row]:
    """A table's rows, one a job."""
    jobs = list(jobs)
    several = len({gpu.node for job in jobs for gpu in job.gpus}) > 1
    return [row(job, now, several) for job in jobs]


def row(job: Any, now: float, with_node: bool) -> Row:
    """A job's line."""
    from gpusched.client.cli import show

    state = show.job_state(job.state)
    colour = show.STATE_COLOURS.get(state, "")
    faint = "dim" if show.has_ended(job) else ""
    asks = f"asks {job.resources.gpus}" if job.resources.gpus else "none"
    gpus = show.allocation(job.gpus, with_node) if job.gpus else asks
    position = str(job.position) if state == "QUEUED" and job.position else show.NONE
    return Row(
        [
            Cell(job.id, faint or "bold"),
            Cell(state, colour),
            Cell(job.user, faint),
            Cell(job.name or show.NONE, faint),
            Cell(gpus, faint),
            Cell(position, faint),
            Cell(show.elapsed(job, now), faint),
            Cell(show.limit(job), faint),
            Cell(show.short_reason(job) or show.NONE, faint),
        ]
    )


class JobsView:
    """Jobs as a stream of changes tells them."""

    def __init__(self, output: Output, wanted: Any) -> None:
        self._output = output
        self._ended_too = wanted.include_ended or any(state > 2 for state in wanted.states)
        self._states = frozenset(wanted.states)
        self._jobs: dict[str, Any] = {}
        self._news: list[Any] = []
        self._stale = False
        self._table: Table | None = None

    def restart(self) -> None:
        """A new stream begins: what it tells first replaces what is known."""
        self._stale = True

    def take(self, message: Any) -> None:
        """A stream begins with all jobs, in several messages if there are many; then come those that changed."""
        if self._stale:
            self._jobs.clear()
            self._stale = False
        self._news = list(message.jobs)
        for job in message.jobs:
            if self._keeps(job):
                self._jobs[job.id] = job
            else:
                self._jobs.pop(job.id, None)

    def _keeps(self, job: Any) -> bool:
        from gpusched.client.cli import show

        if self._states and job.state not in self._states:
            return False
        return self._ended_too or not show.has_ended(job)

    def frame(self) -> list[str]:
        """Table and counts."""
        from gpusched.client.cli import show

        now = time.time()
        jobs = sorted(self._jobs.values(), key=_order)
        states = [show.job_state(job.state) for job in jobs]
        summary = f"{states.count('RUNNING')} running, {states.count('QUEUED')} waiting"
        lines = self._output.table(COLUMNS, rows(jobs, now)) if jobs else ["nothing runs and nothing waits"]
        text = f"{summary}; {time.strftime('%H:%M:%S', time.localtime(now))}, ^C ends"
        return [*lines, "", paint(text, "dim", self._output.colour)]

    def news(self) -> list[str]:
        """The table at first, then the lines of the jobs that changed."""
        now = time.time()
        if self._table is None:
            self._table = Table(COLUMNS, self._output.width, self._output.colour)
            return self._table.lines(rows(self._news, now))
        several = len({gpu.node for job in self._jobs.values() for gpu in job.gpus}) > 1
        return [line for job in self._news for line in self._table.more(row(job, now, several))]

    def document(self, message: Any) -> object | None:
        """As it came."""
        return document(message)


def _order(job: Any) -> tuple[int, float, int]:
    """Running ones by start, the queue in its order, then ended ones, newest first."""
    from gpusched.client.cli import show

    state = show.job_state(job.state)
    number = int(job.id) if job.id.isdigit() else 0
    if state == "RUNNING":
        return 0, show.seconds(job.started_at), number
    if state == "QUEUED":
        return 1, job.position or float("inf"), number
    return 2, -show.seconds(job.ended_at), -number
