"""`gpusched explain ID`: why a job waits, in sentences."""

from __future__ import annotations

import argparse
import time
from typing import Any

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_listing, checked, job_id
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("id", metavar="ID", type=checked("ID", job_id), help="the job's id")
    add_listing(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Explain, once or until the job has ended."""
    import gpusched.v1.scheduler_pb2 as pb

    with Session(args, output) as session:

        def fetch() -> Any:
            return session.call(session.scheduler.ExplainJob, pb.ExplainJobRequest(job_id=args.id))

        if args.watch:
            from gpusched.client.cli import show
            from gpusched.client.cli.watch import Poll, follow

            def over(answer: Any) -> bool:
                return show.has_ended(answer.job)

            return follow(session, output, lambda: Poll(fetch, over), ExplainView(output))
        answer = fetch()
        if output.mode is Mode.JSON:
            output.json(document(answer))
        else:
            output.lines(_sentences(answer, output))
        return 0


def _sentences(answer: Any, output: Output) -> list[str]:
    return [line for sentence in answer.lines for line in output.paragraph(sentence)]


class ExplainView:
    """The newest explanation."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._answer: Any = None
        self._changed = False

    def take(self, message: Any) -> None:
        """Keep it, and see whether it reads otherwise than the last one."""
        self._changed = self._answer is None or list(message.lines) != list(self._answer.lines)
        self._answer = message

    def frame(self) -> list[str]:
        """The sentences."""
        return _sentences(self._answer, self._output)

    def news(self) -> list[str]:
        """The sentences under the time, if they changed."""
        return [time.strftime("%Y-%m-%d %H:%M:%S"), *self.frame(), ""] if self._changed else []

    def document(self, message: Any) -> object | None:
        """As JSON, if it changed."""
        return document(message) if self._changed else None
