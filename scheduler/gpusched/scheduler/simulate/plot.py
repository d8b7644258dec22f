"""Pictures of a schedule, by matplotlib where that is installed."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gpusched.scheduler.core.model import NodeInfo
from gpusched.scheduler.simulate.replay import Replayed
from gpusched.scheduler.simulate.series import Change, means, peaks
from gpusched.scheduler.simulate.workload import LoggedJob, Seconds, SimulationError

#: With more jobs than this a chart of who had what is but noise.
GANTT_JOBS = 300
#: So many users have a colour of their own: the cycle of colours begins anew after them.
USERS = 10
_OTHERS = "0.8"
_ENDINGS = (".svg", ".png")
_UNITS = ((86400 * 3, 86400, "days"), (3600 * 3, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))
#: Inches of a picture, and how many letters of a job's name would stand side by side in it, at most.
_WIDTH = 12.0
_LETTERS = 400
#: Most characters of a title, of a user and of a job's name in its bar.
_TITLE, _USER, _JOB = 140, 24, 12


class _Label(NamedTuple):
    """A job's name in its bar, and how large that is: in units of time, and in rows."""

    text: Any
    width: float
    height: float


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
        SimulationError: it cannot be drawn or written. What was there under that name stays if it cannot be drawn.
    """
    picture = io.BytesIO()
    try:
        with _quietly():
            figure_of(kind, title, jobs, done, nodes).savefig(picture, format=Path(path).suffix[1:].lower())
    except (
        Exception
    ) as error:  # Whatever matplotlib may raise, the user has asked for a picture, and not for its parts.
        why = str(error).strip().splitlines()
        raise SimulationError(f"cannot draw {path}: {type(error).__name__}{f': {why[0]}' if why else ''}") from None
    try:
        Path(path).write_bytes(picture.getvalue())
    except OSError as error:
        raise SimulationError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _quietly() -> Iterator[None]:
    """No word of matplotlib's to the user: of characters that its font lacks, caches that it makes, and so on."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import matplotlib

            # Texts are what users wrote: no LaTeX, whatever their own settings say.
            with matplotlib.rc_context({"text.usetex": False}):
                yield
    finally:
        logger.setLevel(before)


def figure_of(kind: str, title: str, jobs: Sequence[LoggedJob], done: Replayed, nodes: tuple[NodeInfo, ...]) -> Any:
    """The picture as matplotlib has it. Arguments are those of `draw`."""
    # Without pyplot: no window system is looked for, and nothing is kept after it.
    from matplotlib.figure import Figure

    origin = jobs[0].submit
    last = max(start + job.run for job, start in zip(jobs, done.starts, strict=True))
    unit, name = next((size, name) for least, size, name in _UNITS if last - origin >= least)
    gpus = sum(len(node.devices) for node in nodes)
    if wants_placements(kind, len(jobs)):
        figure: Any = Figure(figsize=(_WIDTH, max(3.0, min(20.0, 1.5 + 0.25 * gpus))), layout="constrained")
        axes = figure.subplots()
        labels = _gantt(figure, axes, jobs, done, nodes, (origin, last), unit)
    else:
        figure = Figure(figsize=(_WIDTH, 6), layout="constrained")
        axes, below = figure.subplots(2, sharex=True)
        _queue(axes, below, jobs, done, gpus, (origin, last), unit)
        axes, labels = below, []
    axes.set_xlabel(f"{name} since the first submit")
    figure.suptitle(_plain(title, _TITLE), parse_math=False)
    _drop_too_large(figure, axes, labels)
    return figure


def _plain(text: str, most: int) -> str:
    """A text of others for a picture: an SVG, which is XML, must not have any character there is."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


# -- who had which GPU ------------------------------------------------------------------------------------------------


def _gantt(
    figure: Any,
    axes: Any,
    jobs: Sequence[LoggedJob],
    done: Replayed,
    nodes: tuple[NodeInfo, ...],
    span: tuple[Seconds, Seconds],
    unit: int,
) -> list[_Label]:
    """A row for each GPU, a bar for each job on it, in the colour of its user. Gives the names in the bars."""
    uuids = [device.uuid for node in nodes for device in node.devices]
    row = {uuid: number for number, uuid in enumerate(uuids)}
    colours = _legend(figure, jobs)
    bars: list[tuple[float, float, float, float, str]] = []
    labels = []
    for job, start, devices in zip(jobs, done.starts, done.placements, strict=True):
        left, width = (start - span[0]) / unit, job.run / unit
        blocks = list(_blocks(sorted(row[uuid] for uuid in devices)))
        bars += (
            (first + (count - 1) / 2, width, left, count - 0.1, colours.get(job.user, _OTHERS))
            for first, count in blocks
        )
        if job.run * _LETTERS < span[1] - span[0]:
            continue
        first, count = max(blocks, key=lambda block: block[1])
        text = axes.text(
            left + width / 2, first + (count - 1) / 2, _plain(str(job.id), _JOB),
            ha="center", va="center", fontsize=6, clip_on=True, in_layout=False, parse_math=False,
        )  # fmt: skip
        labels.append(_Label(text, width, count - 0.1))
    middles, widths, lefts, heights, colour = zip(*bars, strict=True)
    axes.barh(middles, widths, left=lefts, height=heights, color=colour, edgecolor="white", linewidth=0.5, alpha=0.85)
    axes.margins(x=0.01)
    axes.set_ylim(len(uuids) - 0.5, -0.5)
    step = -(-len(uuids) // 64)
    names = [_plain(uuid, _USER) for uuid in uuids[::step]]
    axes.set_yticks(range(0, len(uuids), step), names, fontsize=7, parse_math=False)
    axes.set_ylabel("GPU")
    return labels


def _blocks(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rows (in order) that follow one another: the first of each block, and how many they are."""
    first = before = rows[0]
    for each in rows[1:]:
        if each != before + 1:
            yield first, before + 1 - first
            first = each
        before = each
    yield first, before + 1 - first


def _legend(figure: Any, jobs: Sequence[LoggedJob]) -> dict[str, str]:
    """The colours of those users who have one, which are those with the most work; says whose they are."""
    from matplotlib.patches import Patch

    work: defaultdict[str, float] = defaultdict(float)
    for job in jobs:
        work[job.user] += job.run * job.gpus
    most = set(sorted(work, key=lambda user: -work[user])[:USERS])
    colours = {user: f"C{number}" for number, user in enumerate(user for user in work if user in most)}
    if any(work):
        entries = [(_plain(user, _USER) or "(not told)", colour) for user, colour in colours.items()]
        if len(work) > len(colours):
            entries.append((f"and {len(work) - len(colours):,} more", _OTHERS))
        patches = [Patch(color=colour, alpha=0.85) for _, colour in entries]
        # An entry that begins with an underscore would be left out; a text that is set later is not looked at.
        legend = figure.legend(
            patches, ["-"] * len(entries), loc="outside right upper", title="user", fontsize=7, title_fontsize=8
        )
        for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
            text.set_parse_math(False)
            text.set_text(name)
    return colours


def _drop_too_large(figure: Any, axes: Any, labels: Sequence[_Label]) -> None:
    """Take away names that would stand out of their bars."""
    if not labels:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    figure.draw_without_rendering()
    (left, top), (right, bottom) = axes.transData.transform([(0, 0), (1, 1)])
    for text, width, height in labels:
        box = text.get_window_extent(renderer)
        if box.width > width * abs(right - left) - 2 or box.height > height * abs(top - bottom):
            text.remove()


# -- the queue --------------------------------------------------------------------------------------------------------


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
    waiting: list[Change] = []
    busy: list[Change] = []
    for job, start in zip(jobs, done.starts, strict=True):
        waiting += ((job.submit, 1), (start, -1))
        busy += ((start, job.gpus), (start + job.run, -job.gpus))
    shown = ((above, peaks(waiting, *span), "jobs waiting"), (below, means(busy, *span), "GPUs in use"))
    for axes, (times, values, about), label in shown:
        at = [(time - span[0]) / unit for time in times]
        axes.fill_between(at, values, step="post", alpha=0.5, linewidth=0)
        # A short peak has hardly any area, but its line is seen.
        axes.step(at, values, where="post", linewidth=0.8)
        axes.set_ylabel(label)
        if about:
            axes.set_title(about, loc="left", fontsize=8)
        axes.set_ylim(bottom=0)
        # What happens at the very beginning would be hidden by the frame.
        axes.margins(x=0.01)
    below.axhline(gpus, color="black", linewidth=0.8)
