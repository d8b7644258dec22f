"""`gpusched cancel ID…`: end jobs, waiting or running."""

from __future__ import annotations

import argparse
from typing import Any

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, add_json, checked, job_id, short_text
from gpusched.client.cli.session import Session


def configure(parser: Parser) -> None:
    """Arguments."""
    parser.add_argument("ids", metavar="ID", nargs="*", type=checked("ID", job_id), help="a job's id")
    parser.add_argument("--all", action="store_true", help="all your jobs that have not ended")
    parser.add_argument(
        "--name", metavar="TEXT", type=checked("--name", short_text), help="your jobs with this in the name"
    )
    parser.add_argument(
        "--reason", metavar="TEXT", default="", type=checked("--reason", short_text), help="shown to the job's holder"
    )
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Try each; 1 if any could not be cancelled."""
    import gpusched.v1.scheduler_pb2 as pb
    from gpusched.client.errors import GpuschedError, ServerUnavailable

    chosen = bool(args.ids) + args.all + (args.name is not None)
    if args.name is not None and not args.name.strip():
        args.fail("--name: is empty, and would be in every name; give a part of the name, or --all")
    if chosen != 1:
        args.fail("give ids, --all or --name" + (", one of them only" if chosen else ""))
    jobs: list[object] = []
    errors: list[object] = []
    with Session(args, output) as session:
        ids = list(dict.fromkeys(args.ids or _own(session, args.name or "")))
        if not ids:
            output.say("no job of yours matches")
        done: dict[str, Any] = {}
        try:
            # The last first: they wait, and would be given the GPUs of those that are ended, or end along with them.
            for number in reversed(ids):
                request = pb.CancelJobRequest(job_id=number, reason=args.reason)
                try:
                    done[number] = session.call_as_owner(session.scheduler.CancelJob, request).job
                except ServerUnavailable:
                    raise
                except GpuschedError as error:
                    done[number] = error
        finally:
            for number in (each for each in ids if each in done):
                answer = done[number]
                if isinstance(answer, GpuschedError):
                    output.error(_named(number, str(answer)))
                    errors.append({"job_id": number, "reason": answer.reason, "message": str(answer)})
                else:
                    output.say(_told(answer))
                    jobs.append(document(answer) if output.mode is Mode.JSON else None)
    if output.mode is Mode.JSON:
        output.json({"jobs": jobs, "errors": errors})
    return 1 if errors else 0


def _own(session: Session, name: str) -> list[str]:
    """Ids of the caller's jobs that have not ended."""
    import gpusched.v1.scheduler_pb2 as pb

    caller = session.call(session.scheduler.GetStatus, pb.GetStatusRequest()).caller
    wanted = pb.JobFilter(user=caller, name=name)
    ids: list[str] = []
    token = ""
    while True:
        request = pb.ListJobsRequest(filter=wanted, page_size=1000, page_token=token)
        answer = session.call(session.scheduler.ListJobs, request)
        ids += [job.id for job in answer.jobs]
        token = answer.next_page_token
        if not token:
            return ids


def _named(number: str, message: str) -> str:
    """The server's sentence, with the job's id where it does not say it."""
    return message if number in message else f"job {number}: {message}"


def _told(job: Any) -> str:
    from gpusched.client.cli import show

    if show.has_ended(job):
        return f"job {job.id} is {show.job_state(job.state).lower().replace('_', ' ')}"
    return f"job {job.id} is told to end; its GPUs are taken back if it does not"
