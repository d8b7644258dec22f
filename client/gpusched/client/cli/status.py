"""`gpusched status`: who answers, and a count of everything."""

from __future__ import annotations

import argparse
import time
from typing import Any

from gpusched.client.cli.output import Cell, Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_listing
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    add_listing(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Show it, once or on."""
    import gpusched.v1.scheduler_pb2 as pb

    with Session(args, output) as session:

        def fetch() -> Any:
            return session.call(session.scheduler.GetStatus, pb.GetStatusRequest())

        if args.watch:
            from gpusched.client.cli.watch import Poll, follow

            return follow(session, output, lambda: Poll(fetch), StatusView(output))
        status = fetch()
        if output.mode is Mode.JSON:
            output.json(document(status))
        else:
            output.lines(block(status, output))
        return 0


def block(status: Any, output: Output) -> list[str]:
    """The status as lines."""
    from gpusched.client.cli import show
    from gpusched.client.units import format_duration

    gpus = f"{status.gpus_free} of {status.gpus_total} free"
    if status.gpus_allocated:
        gpus += f", {status.gpus_allocated} held"
    if (out := status.gpus_total - status.gpus_free - status.gpus_allocated) > 0:
        gpus += f", {out} out of use"
    if status.inventory_mode == "simulated":
        gpus += " (simulated)"
    scheduling = Cell("on", "green")
    if status.trouble:
        scheduling = Cell(f"halted, as state cannot be saved: {status.trouble}", "red")
    elif status.paused:
        scheduling = Cell("paused" + (f": {status.pause_reason}" if status.pause_reason else ""), "yellow")
    # In an answer that is kept on the screen while the server is away, its clock must not go on: it is as told.
    uptime = format_duration(show.seconds(status.uptime))
    return output.facts(
        [
            ("Service", Cell(f"{status.service} {status.version}")),
            ("Address", Cell(status.address)),
            ("Up", Cell(f"{uptime}, since {show.clock(status.started_at)}")),
            ("Runs as", Cell(f"{status.user} on {status.node}, pid {status.pid}")),
            ("GPUs", Cell(gpus)),
            ("Jobs", Cell(f"{status.jobs_running} running, {status.jobs_queued} waiting, {status.jobs_total} known")),
            ("Scheduling", scheduling),
            ("Policy", Cell(_policy(status) or show.NONE)),
            ("You are", Cell(status.caller or show.NONE)),
        ]
    )


def _policy(status: Any) -> str:
    policy = status.policy_settings
    backfill = f", {policy.backfill} backfill" if policy.backfill not in ("", "none") else ""
    return f"{status.policy}{backfill}{' (set by an administrator)' if status.policy_changed else ''}"


class StatusView:
    """The newest status."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._status: Any = None
        self._changed = False

    def take(self, message: Any) -> None:
        """Keep it, and see whether anything but the time is new."""
        self._changed = self._status is None or _timeless(message) != _timeless(self._status)
        self._status = message

    def frame(self) -> list[str]:
        """The block."""
        return block(self._status, self._output)

    def news(self) -> list[str]:
        """The block under the time, if it changed."""
        return [time.strftime("%Y-%m-%d %H:%M:%S"), *self.frame(), ""] if self._changed else []

    def document(self, message: Any) -> object | None:
        """As JSON, if it changed."""
        return document(message) if self._changed else None


def _timeless(status: Any) -> bytes:
    copy = type(status)()
    copy.CopyFrom(status)
    copy.ClearField("uptime")
    text: bytes = copy.SerializeToString(deterministic=True)
    return text
