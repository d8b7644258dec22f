"""`gpusched nodes`: the machines, and how many of their GPUs are free."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

from gpusched.client.cli.output import Cell, Column, Mode, Output, Row, document
from gpusched.client.cli.parsing import Parser, add_listing
from gpusched.client.cli.session import Session

COLUMNS = (
    Column("NODE", least=8),
    Column("GPUS", right=True),
    Column("HELD", right=True),
    Column("FREE", right=True),
    Column("CORES LEFT", right=True, drop=4),
    Column("MEM LEFT", right=True, drop=5),
    Column("STATE"),
    Column("DRIVER", drop=2),
    Column("SEEN", right=True, drop=1),
    Column("LABELS", least=6, drop=3),
)


def configure(parser: Parser) -> None:
    """Arguments."""
    add_listing(parser, ids="names")


def run(args: argparse.Namespace, output: Output) -> int:
    """List, once or on."""
    import gpusched.v1.scheduler_pb2 as pb

    with Session(args, output) as session:

        def fetch() -> Any:
            return session.call(session.scheduler.ListNodes, pb.ListNodesRequest())

        if args.watch:
            from gpusched.client.cli.watch import Poll, follow

            return follow(session, output, lambda: Poll(fetch), NodesView(output))
        nodes = fetch().nodes
        if output.mode is Mode.JSON:
            output.json({"nodes": [document(node) for node in nodes]})
        elif output.mode is Mode.QUIET:
            output.ids(node.name for node in nodes)
        elif nodes:
            output.lines(output.table(COLUMNS, rows(nodes, time.time())))
        else:
            output.note("no nodes")
        return 0


def rows(nodes: Iterable[Any], now: float) -> list[Row]:
    """A table's rows, one a node."""
    return [_row(node, now) for node in nodes]


def _row(node: Any, now: float) -> Row:
    from gpusched.client.cli import show
    from gpusched.client.units import format_duration

    seen = show.NONE
    if node.HasField("last_seen_at"):
        seen = format_duration(max(now - show.seconds(node.last_seen_at), 0)) + " ago"
    labels = ",".join(f"{key}={value}" for key, value in sorted(node.labels.items()))
    return Row(
        [
            Cell(node.name, "bold"),
            Cell(str(node.gpus_total)),
            Cell(str(node.gpus_allocated)),
            Cell(str(node.gpus_free)),
            Cell(f"{node.cpus_free}/{node.cpus_total}" if node.cpus_total else show.NONE),
            Cell(_memory(node, show) if node.memory_total_bytes else show.NONE),
            Cell("drained", "magenta") if node.drained else Cell("up", "green"),
            Cell(node.driver_version or show.NONE),
            Cell(seen),
            Cell(labels or show.NONE),
        ]
    )


def _memory(node: Any, show: Any) -> str:
    return f"{show.gibibytes(node.memory_free_bytes)}/{show.gibibytes(node.memory_total_bytes)} GiB"


class NodesView:
    """The newest list."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._nodes: list[Any] = []
        self._told: list[bytes] = []
        self._changed = False

    def take(self, message: Any) -> None:
        """Keep it, and see whether anything but the time of the look is new."""
        self._nodes = list(message.nodes)
        told = [_timeless(node) for node in self._nodes]
        self._changed = told != self._told
        self._told = told

    def frame(self) -> list[str]:
        """The table."""
        return self._output.table(COLUMNS, rows(self._nodes, time.time())) if self._nodes else ["no nodes"]

    def news(self) -> list[str]:
        """The table, if it changed."""
        return [*self.frame(), ""] if self._changed else []

    def document(self, message: Any) -> object | None:
        """As JSON, if it changed."""
        return document(message) if self._changed else None


def _timeless(node: Any) -> bytes:
    copy = type(node)()
    copy.CopyFrom(node)
    copy.ClearField("last_seen_at")
    text: bytes = copy.SerializeToString(deterministic=True)
    return text
