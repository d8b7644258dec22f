"""`gpusched job ID`: everything about one job."""

from __future__ import annotations

import argparse
import time
from typing import Any

from gpusched.client.cli.output import Cell, Mode, Output, document, paint
from gpusched.client.cli.parsing import Parser, add_listing, checked, job_id
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("id", metavar="ID", type=checked("ID", job_id), help="the job's id")
    add_listing(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Show it, once or until the job has ended."""
    import gpusched.v1.scheduler_pb2 as pb

    with Session(args, output) as session:
        if args.watch:
            from gpusched.client.cli.watch import follow

            request = pb.WatchJobsRequest(job_id=args.id)
            return follow(session, output, lambda: session.scheduler.WatchJobs(request), JobView(output))
        job = session.call(session.scheduler.GetJob, pb.GetJobRequest(job_id=args.id)).job
        if output.mode is Mode.JSON:
            output.json(document(job))
        else:
            output.lines(account(job, output))
        return 0


def account(job: Any, output: Output) -> list[str]:
    """A job in full, as lines."""
    import shlex

    from gpusched.client.cli import show
    from gpusched.client.units import format_duration, format_size

    now = time.time()
    state = show.job_state(job.state)
    # One without a GPU asks for something of a host, which `where` says.
    asks = show.count(job.resources.gpus, "GPU") if job.resources.gpus else ""
    if job.resources.shared:
        asks += f" shared, {format_size(job.resources.gpu_memory_bytes)} of each"
    elif job.resources.gpu_memory_bytes:
        asks += f" of at least {format_size(job.resources.gpu_memory_bytes)}"
    if job.resources.gpu_model:
        asks += f", model with “{job.resources.gpu_model}”"
    if job.resources.node:
        asks += f", on {job.resources.node}"
    asks = (asks + show.where(job.resources)).removeprefix(", ") or show.NONE
    facts = [
        ("Job", Cell(job.id + (f"  {job.name}" if job.name else ""))),
        ("State", Cell(_state(job, state), show.STATE_COLOURS.get(state, ""))),
        ("User", Cell(f"{job.user} (uid {job.uid})")),
        ("Asks for", Cell(asks)),
        ("Priority", Cell(str(job.priority))),
        ("Time limit", Cell(show.limit(job) if job.HasField("time_limit") else "none")),
    ]
    if job.HasField("estimate"):
        facts.append(("Estimate", Cell(format_duration(show.seconds(job.estimate)))))
    if job.preemptible:
        facts.append(("Preemptible", Cell("yes")))
    if job.HasField("preempt_signal"):
        before = format_duration(show.seconds(job.preempt_signal.before))
        facts.append(("Signal", Cell(f"{job.preempt_signal.name}, {before} before it is ended")))
    if job.command:
        facts.append(("Command", Cell(shlex.join(job.command))))
    facts += _batch(job)
    if job.HasField("submitted_at"):
        facts.append(("Asked", Cell(show.clock(job.submitted_at))))
    if job.HasField("started_at"):
        facts.append(("Started", Cell(show.clock(job.started_at) + _waited(job))))
    if job.ending:
        facts.append(("Asked to end", Cell(f"by {show.clock(job.ending_at)}: {job.ending}", "yellow")))
    if job.HasField("ended_at"):
        ran = f", after {show.elapsed(job, now)}" if job.HasField("started_at") else ""
        facts.append(("Ended", Cell(show.clock(job.ended_at) + ran)))
    if state == "QUEUED" and job.reason.message:
        facts.append(("Waits for", Cell(job.reason.message)))
    if state == "QUEUED" and job.HasField("forecast"):
        facts.append(("Expected", Cell(show.clock(job.forecast))))
    if state == "QUEUED" and job.HasField("promise"):
        facts.append(("At the latest", Cell(show.clock(job.promise))))
    had = "Had" if show.has_ended(job) else "Has"
    facts += [(had if n == 0 else "", Cell(_gpu(gpu))) for n, gpu in enumerate(job.gpus)]
    if job.lease_id:
        facts.append(("Lease", Cell(job.lease_id)))
    if job.holder_pid:
        facts.append(("Holder", Cell(f"pid {job.holder_pid}" + (f" on {job.node}" if job.node else ""))))
    if job.HasField("outcome"):
        facts.append(("Outcome", Cell(_outcome(job.outcome))))
    facts += _used(job)
    lines = output.facts(facts)
    if len(job.attempts) > 1:
        lines += ["", paint("Attempts", "bold", output.colour), *_attempts(job.attempts, output)]
    if job.history:
        lines += ["", paint("History", "bold", output.colour), *_history(job.history, output)]
    return lines


def _waited(job: Any) -> str:
    """How long it had waited when its present run started, where that is known."""
    from gpusched.client.cli import show
    from gpusched.client.units import format_duration

    since = show.waits_since(job)
    if since is None:
        return ""
    waited = show.seconds(job.started_at) - since
    again = " since the run before" if job.attempt > 1 else ""
    if waited < 1:
        return ", at once" + (" after the run before" if again else "")
    return f", after a wait of {format_duration(waited)}{again}"


def _batch(job: Any) -> list[tuple[str, Cell]]:
    """What a batch job has and no other."""
    from gpusched.v1 import job_pb2

    facts = []
    if job.working_directory:
        facts.append(("Runs in", Cell(job.working_directory)))
    output_path = job.attempts[-1].output_path if job.attempts else job.output_path
    if output_path:
        facts.append(("Output", Cell(output_path)))
    if job.attempt > 1 or job.retry.max_retries:
        retries = f"{job.retry.max_retries} retries" if job.retry.max_retries != 1 else "1 retry"
        only = f" after exit {', '.join(map(str, job.retry.exit_statuses))}" if job.retry.exit_statuses else ""
        facts.append(("Attempt", Cell(f"{job.attempt}, {retries} allowed{only}")))
    if job.requeue:
        facts.append(("If lost", Cell("queued again")))
    conditions = {job_pb2.DEPENDENCY_CONDITION_OK: "completes", job_pb2.DEPENDENCY_CONDITION_FAILED: "fails"}
    if job.dependencies:
        after = [f"job {each.job_id} {conditions.get(each.condition, 'ends')}" for each in job.dependencies]
        facts.append(("After", Cell(", ".join(after))))
    if job.HasField("begin_at"):
        from gpusched.client.cli import show

        facts.append(("Not before", Cell(show.clock(job.begin_at))))
    if job.retry.HasField("backoff"):
        from gpusched.client.cli import show

        facts.append(("Backoff", Cell(_short(show.seconds(job.retry.backoff)))))
    return facts


def _used(job: Any) -> list[tuple[str, Cell]]:
    from gpusched.client.cli import show
    from gpusched.client.units import format_size

    if not job.HasField("usage"):
        return []
    usage = job.usage
    parts = [f"{_short(show.seconds(usage.wall))} long", f"{_short(show.seconds(usage.cpu))} of CPU"]
    if usage.peak_memory_bytes:
        parts.append(f"at most {format_size(usage.peak_memory_bytes)} of memory")
    if usage.gpu_seconds:
        parts.append(f"{usage.gpu_seconds:.1f} GPU-seconds")
    if usage.peak_gpu_memory_bytes:
        parts.append(f"at most {format_size(usage.peak_gpu_memory_bytes)} of GPU memory")
    return [("Used", Cell(", ".join(parts)))]


def _short(seconds: float) -> str:
    """A duration of which tenths may matter."""
    from gpusched.client.units import format_duration

    return f"{seconds:.2g}s" if 0 < seconds < 10 else format_duration(seconds)


def _attempts(attempts: Any, output: Output) -> list[str]:
    from gpusched.client.cli import show

    return output.facts(
        [
            (
                f"  {attempt.number}  {show.clock(attempt.started_at)}  {show.job_state(attempt.state):<9}",
                Cell(attempt.outcome.message or show.allocation(attempt.gpus, with_node=True) or show.NONE),
            )
            for attempt in attempts
        ],
        bold=False,
    )


def _state(job: Any, state: str) -> str:
    from gpusched.client.cli import show
    from gpusched.client.units import format_duration

    if state == "QUEUED" and job.position:
        since = show.waits_since(job)
        waits = f", waiting for {format_duration(max(time.time() - since, 0))}" if since is not None else ""
        return f"{state}, place {job.position} in the queue{waits}"
    if state == "RUNNING":
        return f"{state} for {show.elapsed(job, time.time())}"
    return state


def _gpu(gpu: Any) -> str:
    from gpusched.client.units import format_size

    if not gpu.node:
        return f"a GPU that is gone ({gpu.uuid})"
    memory = f", {format_size(gpu.memory_bytes)}" if gpu.memory_bytes else ""
    return f"GPU {gpu.index} on {gpu.node}: {gpu.model}{memory} ({gpu.uuid})"


def _outcome(outcome: Any) -> str:
    from gpusched.client.cli import show

    parts = []
    if outcome.signal:
        parts.append(show.ended(outcome))
    elif outcome.HasField("exit_status"):
        parts.append(f"exit status {outcome.exit_status}")
    # The server's sentence begins with the same in its own words.
    said = outcome.message.partition(": ")
    detail = said[2] if said[0] == f"exit {outcome.exit_status}" or said[0].startswith("killed by") else outcome.message
    if detail:
        parts.append(detail)
    return "; ".join(parts) or show.NONE


def _history(history: Any, output: Output) -> list[str]:
    from gpusched.client.cli import show

    return output.facts(
        [(f"  {show.clock(event.at)}  {show.job_state(event.state):<9}", Cell(event.message)) for event in history],
        bold=False,
    )


class JobView:
    """The newest account of one job."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._job: Any = None
        self._said: tuple[str, str] | None = None

    def take(self, message: Any) -> None:
        """Keep the newest."""
        for job in message.jobs:
            self._job = job

    def frame(self) -> list[str]:
        """The account."""
        return account(self._job, self._output) if self._job else []

    def news(self) -> list[str]:
        """A line with the time, where its state, place or reason changed."""
        from gpusched.client.cli import show

        if self._job is None:
            return []
        state = show.job_state(self._job.state)
        words = [_state(self._job, state).split(", waiting", 1)[0] if state == "QUEUED" else state]
        if state == "RUNNING":
            gpus = show.allocation(self._job.gpus, with_node=True)
            words.append(f"on GPU {gpus}" if gpus else f"with {show.where(self._job.resources).removeprefix(', ')}")
        elif detail := (self._job.reason.message if state == "QUEUED" else _outcome(self._job.outcome)):
            words.append(detail)
        line = f"job {self._job.id} {': '.join(words)}"
        if self._said == (self._job.id, line):
            return []
        self._said = (self._job.id, line)
        return [f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}"]

    def document(self, message: Any) -> object | None:
        """The job, as `gpusched job --json` shows it, less its history."""
        return document(message.jobs[-1]) if message.jobs else None
