"""`gpusched simulate`: reads a log, replays it under one policy or several, and tells how they compare."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpusched.scheduler.core.errors import DomainError
from gpusched.scheduler.core.model import NodeInfo, Placement
from gpusched.scheduler.core.policy import BACKFILLS, CANDIDATES, ORDERS, PolicySettings
from gpusched.scheduler.simulate import outputs, plot, report
from gpusched.scheduler.simulate.filters import Filter, parse_filter
from gpusched.scheduler.simulate.metrics import measure
from gpusched.scheduler.simulate.options import AUTO, KNOBS, parse
from gpusched.scheduler.simulate.readers import Log, read_log
from gpusched.scheduler.simulate.replay import Estimate, Events, replay, settings_for
from gpusched.scheduler.simulate.workload import LoggedJob, SimulationError, flat_pool, node_pool


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns the exit status: 0, 1 if the log cannot be replayed, 2 for a mistake in arguments."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parse(argv)
        try:
            plan = _plan(args)
        except (SimulationError, DomainError) as error:
            args.fail(_of_option(error))
        return outputs.each(_run(args, plan))
    except SimulationError as error:
        outputs.complain(str(error))
        return 1
    except BrokenPipeError:
        return outputs.NOBODY_READS
    except KeyboardInterrupt:
        return 130


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the arguments ask for."""

    filters: tuple[Filter, ...]
    nodes: tuple[NodeInfo, ...] | None
    policies: tuple[PolicySettings, ...]


def _plan(args: argparse.Namespace) -> _Plan:
    """Check arguments before anything is read. Raises SimulationError, DomainError."""
    filters = [parse_filter(text) for text in args.filter]
    if args.vc is not None:
        filters.append(Filter("vc", "=", args.vc, "--vc"))
    nodes = None
    if args.nodes is not None:
        nodes = node_pool(args.nodes)
    elif args.gpus is not None:
        if not (args.gpus.isascii() and args.gpus.isdigit() and len(args.gpus) < 10):
            raise SimulationError(f"--gpus: {args.gpus[:60]!r} is no number of GPUs")
        nodes = flat_pool(int(args.gpus))
    knobs = {name: value for name in KNOBS if (value := getattr(args, name)) is not None}
    names = itertools.product(
        _names(args.policy, ORDERS), _names(args.backfill, BACKFILLS), _names(args.candidates, CANDIDATES)
    )
    policies = tuple(
        dict.fromkeys(
            PolicySettings(order, backfill, candidates, **knobs)
            for order, backfill, candidates in names
            # Only EASY puts candidates in an order.
            if backfill == "easy" or candidates == _names(args.candidates, CANDIDATES)[0]
        )
    )
    if len(policies) > 1 and (args.starts or args.plot):
        raise SimulationError(f"{'--starts' if args.starts else '--plot'}: is for one policy, not for several")
    if args.starts == "-" and args.json:
        raise SimulationError("--starts: - is the standard output, where --json prints; name a file")
    if args.plot:
        plot.check(args.plot)
    outputs.refuse_to_overwrite(args.log, {"--starts": args.starts, "--plot": args.plot})
    return _Plan(tuple(filters), nodes, policies)


def _names(text: str, known: tuple[str, ...]) -> list[str]:
    parts = [part.strip().replace("-", "_") for part in text.split(",")]
    return list(dict.fromkeys(name for part in parts for name in (known if part == "all" else (part,))))


def _of_option(error: SimulationError | DomainError) -> str:
    """What is wrong with an argument, by the option's name where the engine has its own for it."""
    field = getattr(error, "field", "")
    if not field:
        return str(error)
    name = field.removeprefix("policy.")
    option = "policy" if name == "order" else name.replace("_", "-")
    return f"--{option}: {str(error).removeprefix(f'{field}: ')}"


def _run(args: argparse.Namespace, plan: _Plan) -> Iterator[outputs.Output]:
    """Replay, and then give what is to be put out, in that order. Raises SimulationError."""
    began = time.perf_counter()
    log = read_log(
        args.log,
        filters=plan.filters,
        sort=args.sort,
        skip_incomplete=args.skip_incomplete,
        called=(args.called or "standard input") if args.log == "-" else args.log,
    )
    nodes = plan.nodes
    if nodes is None:
        if log.gpus is None:
            raise SimulationError(f"{log.name} does not say how large its machine is: give --gpus N or --nodes NxM")
        nodes = flat_pool(log.gpus)
    gpus = sum(len(node.devices) for node in nodes)
    placement = _placement(args.placement, nodes)
    jobs, too_large = _fitting(log, gpus, args.skip_too_large)
    estimate = Estimate(args.estimate) if args.estimate else Estimate.LIMIT if log.has_requested else Estimate.EXACT
    if estimate is Estimate.LIMIT and not (log.has_requested or log.has_hints):
        raise SimulationError(f"{log.name} has no requested times; with --estimate exact, run times are taken for them")
    about = report.About(log, len(nodes), gpus, placement, estimate, too_large, time.perf_counter() - began)
    outcomes = []
    for policy in plan.policies:
        events = Events(args.events) if args.events != AUTO else _events_of(policy)
        settings = settings_for(policy)
        gantt = bool(args.plot) and plot.wants_placements(args.plot_kind, len(jobs))
        began = time.perf_counter()
        with without_collections():
            done = replay(
                jobs,
                nodes,
                settings,
                estimate=estimate,
                events=events,
                placement=placement,
                keep_placements=gantt,
            )
        took = time.perf_counter() - began
        outcomes.append(report.Outcome(policy, events, measure(jobs, done.starts, gpus), done, took))
    if args.json:
        figures = json.dumps(report.document(about, outcomes), indent=2, allow_nan=False)
    else:
        figures = "\n".join(report.lines(about, outcomes))
    done = outcomes[0].replayed
    # What takes long or may fail comes last: figures of a long replay are not lost to a picture.
    yield lambda: outputs.put(f"{figures}\n", sys.stderr if args.starts == "-" else sys.stdout)
    if args.starts:
        yield lambda: outputs.write_starts(args.starts, jobs, done)
    if args.plot:
        title = f"{Path(log.name).name}: {report.name_of(plan.policies[0])} on {report.count(gpus, 'GPU')}"
        yield lambda: plot.draw(args.plot, args.plot_kind, title, jobs, done, nodes)


def _events_of(policy: PolicySettings) -> Events:
    """The order of events that published schedules were made with, so that ours can be compared with them."""
    return Events.ONE_BY_ONE if policy.backfill == "easy" else Events.TOGETHER


def _placement(name: str, nodes: tuple[NodeInfo, ...]) -> Placement:
    """By default the rule of GPU clusters whose logs are published; one node leaves nothing to choose."""
    if name == AUTO:
        return Placement.CONSOLIDATE if len(nodes) > 1 else Placement.PACK
    return Placement(name)


def _fitting(log: Log, gpus: int, skip: bool) -> tuple[list[LoggedJob], int]:
    """The jobs that the machine has room for, and how many were left out."""
    jobs = [job for job in log.jobs if job.gpus <= gpus]
    left_out = len(log.jobs) - len(jobs)
    if left_out and not skip:
        first = min((job for job in log.jobs if job.gpus > gpus), key=lambda job: job.line)
        raise SimulationError(
            f"{log.name}:{first.line}: job {first.id} needs {first.gpus} GPUs, and there are {gpus} "
            f"(jobs like that: {left_out}); --skip-too-large leaves them out"
        )
    if not jobs:
        raise SimulationError(f"{log.name}: no job fits on {gpus} GPUs")
    return jobs, left_out


@contextmanager
def without_collections() -> Iterator[None]:
    """A replay makes no garbage in cycles, and looking for it among a million objects takes a third of the time."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
