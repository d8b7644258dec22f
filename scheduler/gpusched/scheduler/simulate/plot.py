"""Pictures of a schedule, by matplotlib where that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpusched.scheduler.core.model import NodeInfo
from gpusched.scheduler.simulate.replay import Replayed
from gpusched.scheduler.simulate.workload import LoggedJob, Seconds, SimulationError

#: With more jobs than this a chart of who had what is but noise.
GANTT_JOBS = 300
#: Points along the axis of time; what lies between them is summed up.
_POINTS = 1200
_ENDINGS = (".svg", ".png")
_UNITS = ((86400 * 3, 86400, "days"), (3600 * 3, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))


def check(path: str) -> None:
    """Raises SimulationError if a picture could not be made, before any work is done for it."""
    if Path(path).suffix.lower() not in _ENDINGS:
        raise SimulationError(f"--plot: {path[:200]!r} must end with .svg or .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise SimulationError("--plot: needs matplotlib, which is not installed: pip install 'gpusched[plot]'")


def wants_placements(kind: str, jobs: int) -> bool:
    """Whether a plot shows who had which GPU."""
    return kind == "gantt" or (kind == "auto" and jobs <= GANTT_JOBS)


def draw(
    path: str, kind: str, title: str, jobs: Sequence[LoggedJob], done: Replayed, nodes: tuple[NodeInfo, ...]
) -> None:
    """Write a picture.

    Args:
        path: file, .svg or .png.
        kind: `gantt`, `queue` or `auto`.
        title: above it.
        jobs: that were replayed.
        done: what came of it; with placements where `wants_placements`.
        nodes: where they ran.

    Raises:
        SimulationError: it cannot be written.
    """
    # Without pyplot: no window system is looked for, and nothing is kept after it.
    from matplotlib.figure import Figure

    origin = jobs[0].submit
    last = max(start + job.run for job, start in zip(jobs, done.starts, strict=True))
    unit, name = next((size, name) for least, size, name in _UNITS if last - origin >= least)
    gpus = sum(len(node.devices) for node in nodes)
    if wants_placements(kind, len(jobs)):
        figure: Any = Figure(figsize=(12, max(3.0, min(20.0, 1.5 + 0.25 * gpus))), layout="constrained")
        axes = figure.subplots()
        _gantt(axes, jobs, done, nodes, origin, unit)
    else:
        figure = Figure(figsize=(12, 6), layout="constrained")
        axes, below = figure.subplots(2, sharex=True)
        _queue(axes, below, jobs, done, gpus, (origin, last), unit)
        axes = below
    axes.set_xlabel(f"{name} since the first submit")
    figure.suptitle(title.replace("$", r"\$"))
    try:
        figure.savefig(path)
    except OSError as error:
        raise SimulationError(f"cannot write {path}: {error.strerror or error}") from None


def _gantt(
    axes: Any,
    jobs: Sequence[LoggedJob],
    done: Replayed,
    nodes: tuple[NodeInfo, ...],
    origin: Seconds,
    unit: int,
) -> None:
    """A row for each GPU, a bar for each job on it, in the colour of its user."""
    uuids = [device.uuid for node in nodes for device in node.devices]
    row = {uuid: number for number, uuid in enumerate(uuids)}
    colours = {user: f"C{number % 10}" for number, user in enumerate(dict.fromkeys(job.user for job in jobs))}
    for job, start, devices in zip(jobs, done.starts, done.placements, strict=True):
        left, width = (start - origin) / unit, job.run / unit
        rows = sorted(row[uuid] for uuid in devices)
        axes.barh(
            rows, width, left=left, height=0.9, color=colours[job.user], edgecolor="white", linewidth=0.5, alpha=0.85
        )
        middle = rows[(len(rows) - 1) // 2]
        axes.text(left + width / 2, middle, str(job.id)[:12], ha="center", va="center", fontsize=6, clip_on=True)
    axes.set_ylim(len(uuids) - 0.5, -0.5)
    step = -(-len(uuids) // 64)
    axes.set_yticks(range(0, len(uuids), step), uuids[::step], fontsize=7)
    axes.set_ylabel("GPU")


def _queue(
    above: Any,
    below: Any,
    jobs: Sequence[LoggedJob],
    done: Replayed,
    gpus: int,
    span: tuple[Seconds, Seconds],
    unit: int,
) -> None:
    """How many wait, and how many GPUs are in use, over time."""
    waiting: list[tuple[Seconds, int]] = []
    busy: list[tuple[Seconds, int]] = []
    for job, start in zip(jobs, done.starts, strict=True):
        waiting += ((job.submit, 1), (start, -1))
        busy += ((start, job.gpus), (start + job.run, -job.gpus))
    for axes, changes, label in ((above, waiting, "jobs waiting"), (below, busy, "GPUs in use")):
        times, means = averages(changes, *span)
        axes.fill_between([(at - span[0]) / unit for at in times], means, step="post", alpha=0.6, linewidth=0.5)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
    below.axhline(gpus, color="black", linewidth=0.8)


def averages(
    changes: Sequence[tuple[Seconds, int]], first: Seconds, last: Seconds, points: int = _POINTS
) -> tuple[list[float], list[float]]:
    """A stepwise count over time, averaged over intervals of equal length.

    Args:
        changes: (when, by how much), in any order.
        first, last: the span of time, in seconds.
        points: how many intervals.

    Returns:
        Where each interval begins, and the mean of the count over it.
    """
    length = (last - first) / points or 1.0
    sums = [0.0] * points
    level, at = 0, float(first)

    def stay(until: float) -> None:
        nonlocal at
        while at < until:
            interval = min(int((at - first) / length), points - 1)
            if interval < points - 1 and first + (interval + 1) * length <= at:  # rounding
                interval += 1
            end = until if interval == points - 1 else min(until, first + (interval + 1) * length)
            sums[interval] += level * (end - at)
            at = end

    for when, by in sorted(changes):
        stay(float(when))
        level += by
    stay(float(last))
    return [first + number * length for number in range(points)], [each / length for each in sums]
