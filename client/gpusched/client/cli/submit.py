"""`gpusched submit -- COMMAND`: queue a command that the scheduler runs."""

from __future__ import annotations

import argparse
import os
from typing import Any

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.parsing import Parser, checked, short_text, whole_number
from gpusched.client.cli.session import Session
from gpusched.client.usage import UsageError

#: The option that a parameter of a submission comes from, where it is not called the same.
_OPTIONS = {
    "nodes": "--node",
    "gpu_ids": "--gpu-id",
    "labels": "--constraint",
    "placement": "--pack or --spread",
    "time_limit": "--time",
    "environment": "--env",
    "command": "command",
}


def configure(parser: Parser) -> None:
    """Arguments: those of gsrun, and those of a batch job."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print the job as one JSON document")
    group.add_argument("-q", "--quiet", action="store_true", help="print the id alone (so does a pipe)")
    add = parser.add_argument
    add(
        "-n",
        "--gpus",
        metavar="GPUS",
        type=checked("--gpus", whole_number(0, 2**31 - 1)),
        help="how many GPUs (default 1, or all of --gpu-id); 0 with --cpus or --mem alone",
    )
    add("--gpu-memory", metavar="SIZE", help="each GPU has at least this much, such as 40G")
    add("--gpu-model", metavar="TEXT", help="each GPU's model has this in its name, such as H100")
    add("--gpu-id", metavar="GPU[,GPU]", action="append", help="only these, by index, node:index or uuid")
    add("--exclude", metavar="NAME[,NAME]", action="append", help="not these GPUs or nodes")
    add(
        "--constraint",
        metavar="KEY=VALUE",
        action="append",
        type=checked("--constraint", _label),
        help="only where there is this label, such as disk=nvme; may be repeated",
    )
    add("--node", metavar="NAME[,NAME]", action="append", help="only these nodes")
    add(
        "--gpus-per-node",
        metavar="GPUS",
        type=checked("--gpus-per-node", whole_number(1, 2**31 - 1)),
        help="exactly so many on each node that is used",
    )
    placement = parser.add_mutually_exclusive_group()
    placement.add_argument(
        "--pack", dest="placement", action="store_const", const="pack", help="the fullest node that holds it (default)"
    )
    placement.add_argument(
        "--spread", dest="placement", action="store_const", const="spread", help="evenly over the emptiest nodes"
    )
    add("--shared", action="store_true", help="have only --gpu-memory of each GPU, beside others that do the same")
    add("--cpus", metavar="N", type=checked("--cpus", whole_number(1, 2**31 - 1)), help="cores on each node")
    add("--mem", metavar="SIZE", help="memory of the host on each node, such as 32G")
    add(
        "--priority",
        metavar="N",
        type=checked("--priority", whole_number(-100, 100)),
        default=0,
        help="-100 to 100; higher comes first, above 0 is the administrator's to give",
    )
    add("--name", metavar="NAME", type=checked("--name", short_text), help="shown in lists (default: the command's)")
    add("--time", metavar="TIME", dest="time_limit", help="the run is ended at this limit, such as 2h")
    add("--estimate", metavar="TIME", help="how long it is expected to take; nothing ends at it")
    add("--preemptible", action="store_true", help="it may be ended for a job of a higher tier")
    add("--signal", metavar="NAME@TIME", help="what it is sent so long before that or the time limit, such as USR1@60s")
    add(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set a variable on top of the present environment; NAME alone passes just that one on; may be repeated",
    )
    add("--clean-env", action="store_true", help="pass nothing of the present environment on but what --env names")
    add("--workdir", metavar="DIR", help="where the command runs (default: here)")
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="file for what it writes, %%j is the job's id and %%a the attempt (default: see gpusched logs)",
    )
    add(
        "--retries",
        metavar="N",
        type=checked("--retries", whole_number(0, 100)),
        default=0,
        help="run it again after a failure, at most so often",
    )
    add("--backoff", metavar="TIME", help="pause before the first retry, doubled each time (default 10s)")
    add(
        "--retry-on",
        metavar="STATUS",
        action="append",
        type=checked("--retry-on", whole_number(1, 255)),
        default=[],
        help="only after this exit status; may be repeated",
    )
    add("--requeue", action="store_true", help="queue it again if its run is lost (one that is preempted always is)")
    add(
        "--after",
        metavar="ID[:ok|:any|:failed]",
        action="append",
        default=[],
        help="start after that job has ended, by default with exit status 0; may be repeated",
    )
    add("--begin", metavar="TIME", help="start no earlier: now+2h, 14:30 or 2026-11-23T14:30")
    add("--hold", action="store_true", help="wait until `gpusched unhold`")
    add("--grace", metavar="TIME", help="between the request to end and the kill (default 15s)")
    add("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments; no shell runs it")


def run(args: argparse.Namespace, output: Output) -> int:
    """Queue it and print its id."""
    from gpusched.client.submission import Submission

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        args.fail("a command is missing, such as: gpusched submit -- python train.py")
    if args.gpus == 0 and not (args.cpus or args.mem):
        args.fail("-n 0 asks for nothing; give a number of GPUs, or --cpus or --mem beside it")
    submission = Submission(
        command=command,
        gpus=args.gpus,
        gpu_memory=args.gpu_memory,
        gpu_model=args.gpu_model,
        nodes=args.node,
        gpu_ids=args.gpu_id,
        exclude=args.exclude,
        labels=dict(args.constraint or ()),
        gpus_per_node=args.gpus_per_node,
        placement=args.placement,
        shared=args.shared,
        cpus=args.cpus,
        mem=args.mem,
        priority=args.priority,
        name=args.name,
        time_limit=args.time_limit,
        environment=_environment(args),
        workdir=args.workdir,
        output=args.output,
        retries=args.retries,
        backoff=args.backoff,
        retry_on=args.retry_on,
        requeue=args.requeue,
        after=args.after,
        begin=args.begin,
        hold=args.hold,
        grace=args.grace,
        estimate=args.estimate,
        preemptible=args.preemptible,
        signal=args.signal,
    )
    try:
        request = submission.request()
    except UsageError as error:
        raise UsageError(_option(error.field), error.value, error.allowed) from None
    with Session(args, output) as session:
        job = _submit(session, request)
    if args.signal and not (job.HasField("time_limit") or job.preemptible or output.mode is Mode.QUIET):
        output.note("gpusched: --signal has no effect without --time or --preemptible")
    if output.mode is Mode.JSON:
        output.json(document(job))
    else:
        output.ids([job.id])
        if output.mode is Mode.TABLE and output.width is not None:
            output.note(f"queued as job {job.id}; follow it with: gpusched logs -f {job.id}")
    return 0


def _submit(session: Session, request: Any) -> Any:
    """The job. Raises GpuschedError in the words of the command line."""
    from gpusched.client.errors import GpuschedError
    from gpusched.client.fields import PARAMETERS, named

    try:
        return session.call(session.scheduler.Submit, request).job
    except GpuschedError as error:
        option = _option(PARAMETERS.get(error.field, error.field))
        raise type(error)(named(error, {error.field: option}), reason=error.reason, field=error.field) from None


def _option(parameter: str) -> str:
    """What is typed for a parameter of a submission; of other fields, their names."""
    from gpusched.client.submission import Submission

    if parameter not in Submission.__dataclass_fields__:
        return parameter
    return _OPTIONS.get(parameter) or f"--{parameter.replace('_', '-')}"


def _label(text: str, field: str) -> tuple[str, str]:
    from gpusched.client.where import label

    return label(field, text)


def _environment(args: argparse.Namespace) -> dict[str, str] | None:
    """The command's environment, None for just the present one."""
    from gpusched.client.submission import environment_of

    if not args.env and not args.clean_env:
        return None
    environment = {} if args.clean_env else environment_of(None)
    for text in args.env:
        name, is_set, value = text.partition("=")
        if not name:
            raise UsageError("--env", text, "give NAME=VALUE, or NAME to pass that variable on")
        if is_set:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
        else:
            raise UsageError("--env", text, "that variable is not set here; give NAME=VALUE")
    return environment
