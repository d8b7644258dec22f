"""`gpusched gpus`: what each GPU does, who holds it, and what is the matter with it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

from gpusched.client.cli.output import Cell, Column, Mode, Output, Row, Table, document, paint
from gpusched.client.cli.parsing import Parser, add_listing, checked, short_text
from gpusched.client.cli.session import Session

COLUMNS = (
    Column("GPU"),
    Column("STATE"),
    Column("MODEL", least=8, drop=5),
    Column("MEMORY", right=True, drop=1),
    Column("UTIL", right=True),
    Column("TEMP", right=True, drop=4),
    Column("POWER", right=True, drop=6),
    Column("JOB"),
    Column("USER", least=4, drop=2),
)


def configure(parser: Parser) -> None:
    """Arguments."""
    add_listing(parser, ids="uuids")
    parser.add_argument("--node", metavar="NODE", type=checked("--node", short_text), help="this node's alone")
    parser.add_argument("--topology", action="store_true", help="show how the GPUs of each node are connected")


def run(args: argparse.Namespace, output: Output) -> int:
    """List, once or on."""
    import gpusched.v1.scheduler_pb2 as pb

    with Session(args, output) as session:
        node = args.node or ""
        if args.topology:
            from gpusched.client.cli.topology import show_topology

            if args.watch:
                args.fail("--topology does not change: it cannot be had with --watch")
            return show_topology(session, output, node)
        if args.watch:
            from gpusched.client.cli.watch import follow

            request = pb.WatchGpusRequest(node=node)
            return follow(session, output, lambda: session.scheduler.WatchGpus(request), GpusView(output))
        gpus = session.call(session.scheduler.ListGpus, pb.ListGpusRequest(node=node)).gpus
        if output.mode is Mode.JSON:
            output.json({"gpus": [document(gpu) for gpu in gpus]})
        elif output.mode is Mode.QUIET:
            output.ids(gpu.uuid for gpu in gpus)
        elif gpus:
            output.lines(output.table(COLUMNS, rows(gpus)))
        else:
            output.note(f"no GPUs on node '{node}'" if node else "no GPUs")
        return 0


def rows(gpus: Iterable[Any]) -> list[Row]:
    """A table's rows, one a GPU."""
    gpus = list(gpus)
    several = len({gpu.node for gpu in gpus}) > 1
    return [row(gpu, several) for gpu in gpus]


def row(gpu: Any, with_node: bool) -> Row:
    """A GPU's line, and beneath it what is the matter with it."""
    from gpusched.client.cli import show

    state = show.gpu_state(gpu.state)
    colour = show.STATE_COLOURS.get(state, "")
    name = f"{gpu.node}:{gpu.index}" if with_node else str(gpu.index)
    total = show.gibibytes(gpu.memory_bytes)
    used = show.gibibytes(gpu.memory_used_bytes) if gpu.memory_used_bytes >= 0 else "?"
    cells = [
        Cell(name, "bold"),
        Cell(state, colour),
        Cell(gpu.model.removeprefix("NVIDIA ")),
        Cell(f"{used}/{total} GiB"),
        Cell(_reading(gpu.utilization_percent, "%")),
        Cell(_reading(gpu.temperature_celsius, "°C")),
        Cell(_reading(round(gpu.power_watts), " W")),
        Cell(gpu.job_id or ",".join(share.job_id for share in gpu.shares) or show.NONE),
        Cell(gpu.user or ",".join(dict.fromkeys(share.user for share in gpu.shares)) or show.NONE),
    ]
    return Row(cells, note=_note(gpu, state), note_colour=colour)


def _reading(number: int, unit: str) -> str:
    return f"{number}{unit}" if number >= 0 else "?"


def _note(gpu: Any, state: str) -> str:
    """What is the matter with it, where something is."""
    words = "; ".join(filter(None, [str(gpu.message), _shares(gpu)]))
    if not words and state == "ALLOCATED" and gpu.drained:
        words = "drained: no new job after this one"
    if not words or state in ("FREE", "CHECKING"):
        return ""
    return words if words.startswith("GPU ") else f"GPU {gpu.index}: {words}"


def _shares(gpu: Any) -> str:
    """Who has how much of it, what they take, and what is left."""
    if not gpu.shares:
        return ""
    from gpusched.client.units import format_size

    parts = [
        f"job {share.job_id} ({share.user}) has {format_size(share.memory_bytes)}"
        + (f" and takes {format_size(share.memory_used_bytes)}" if share.memory_used_bytes else "")
        for share in gpu.shares
    ]
    left = format_size(gpu.memory_left_bytes) if gpu.memory_left_bytes else "nothing"
    return f"shared: {', '.join(parts)}; {left} left"


class GpusView:
    """GPUs as a stream of changes and readings tells them."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._gpus: dict[str, Any] = {}
        self._news: list[Any] = []
        self._printed: dict[str, list[str]] = {}
        self._table: Table | None = None

    def take(self, message: Any) -> None:
        """Each message has the GPUs that are new or newly read."""
        self._news = list(message.gpus)
        for gpu in message.gpus:
            self._gpus[gpu.uuid] = gpu

    def frame(self) -> list[str]:
        """Table and counts."""
        from gpusched.client.cli import show

        gpus = sorted(self._gpus.values(), key=lambda gpu: (gpu.node, gpu.index))
        if not gpus:
            return ["no GPUs"]
        free = sum(show.gpu_state(gpu.state) == "FREE" for gpu in gpus)
        text = f"{free} of {show.count(len(gpus), 'GPU')} free; {time.strftime('%H:%M:%S')}, ^C ends"
        return [*self._output.table(COLUMNS, rows(gpus)), "", paint(text, "dim", self._output.colour)]

    def news(self) -> list[str]:
        """The table at first, then the lines that came to read otherwise."""
        first = self._table is None
        if self._table is None:
            self._table = Table(COLUMNS, self._output.width, self._output.colour)
        several = len({gpu.node for gpu in self._gpus.values()}) > 1
        lines = self._table.lines(rows(self._news)) if first else []
        for gpu in self._news:
            text = self._table.more(row(gpu, several))
            if not first and self._printed.get(gpu.uuid) != text:
                lines += text
            self._printed[gpu.uuid] = text
        return lines

    def document(self, message: Any) -> object | None:
        """As it came."""
        return document(message)
