"""`gpusched policy`: show how the queue is ordered and who may pass whom, or change it at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpusched.client.cli.output import Cell, Column, Mode, Output, Row, document
from gpusched.client.cli.parsing import Parser, add_json, checked, whole_number
from gpusched.client.cli.session import Session
from gpusched.client.usage import UsageError

_MOST = 2**31 - 1
_SHARE = "give PATH=N, such as alice=2 or physics/bob=0.5, or PATH=none to forget it"
_QUOTA = "give NAME=GPUS or NAME=GPUS:JOBS, such as alice=4 or physics/=8:20, or NAME=none to forget it"


@dataclass(frozen=True, slots=True)
class Knob:
    """One field of a policy: how it is given and what it means. `listed`: it may be given several times."""

    field: str
    flag: str
    placeholder: str
    meaning: str
    parse: Callable[[str, str], Any]
    listed: bool = False


def configure(parser: Parser) -> None:
    """Arguments: one for each field."""
    parser.add_argument("order", metavar="POLICY", nargs="?", help="fifo, priority, sjf or fair_share; none: show it")
    parser.add_argument("--reset", action="store_true", help="go back to what the scheduler was started with")
    for knob in KNOBS[1:]:
        parser.add_argument(
            knob.flag,
            dest=knob.field,
            metavar=knob.placeholder,
            type=checked(knob.flag, knob.parse),
            action="append" if knob.listed else "store",
            help=knob.meaning,
        )
    add_json(parser)


def run(args: argparse.Namespace, output: Output) -> int:
    """Show it; or change what was named, leave the rest as it is, and show what came of it."""
    import gpusched.v1.admin_pb2 as pb

    given = [knob for knob in KNOBS if getattr(args, knob.field) is not None]
    if args.reset and given:
        args.fail("--reset goes alone")
    with Session(args, output) as session:
        if args.reset:
            return _change(session, output, pb.SetPolicyRequest(reset=True))
        if given:
            return _change(session, output, _request(session, args, given))
        status = _status(session)
        if output.mode is Mode.JSON:
            output.json({"policy": document(status.policy_settings), "changed": status.policy_changed})
        elif output.mode is Mode.TABLE:
            output.lines(table(status.policy_settings, output))
            if status.policy_changed:
                output.note("set by an administrator; `gpusched policy --reset` goes back to the configuration")
        return 0


def table(policy: Any, output: Output) -> list[str]:
    """Every field, under the name that changes it."""
    columns = (Column("OPTION"), Column("VALUE", least=10), Column("MEANING", least=20, drop=1))
    return output.table(
        columns,
        [Row((Cell(knob.flag), Cell(_shown(policy, knob)), Cell(knob.meaning, "dim"))) for knob in KNOBS],
    )


def _change(session: Session, output: Output, request: Any) -> int:
    from gpusched.client.errors import InvalidRequest

    try:
        answer = session.call_as_admin(session.admin.SetPolicy, request)
    except InvalidRequest as error:
        # In the words of the command line.
        flag = next((knob.flag for knob in KNOBS if error.field == f"policy.{knob.field}"), error.field)
        raise InvalidRequest(f"{flag}: {str(error).removeprefix(f'{error.field}: ')}", field=error.field) from None
    if output.mode is Mode.JSON:
        output.json({"policy": document(answer.policy), "notes": list(answer.notes)})
    elif output.mode is Mode.TABLE:
        output.lines(table(answer.policy, output))
        for note in answer.notes:
            output.note(note)
    return 0


def _request(session: Session, args: argparse.Namespace, given: list[Knob]) -> Any:
    import gpusched.v1.admin_pb2 as pb

    request = pb.SetPolicyRequest()
    request.update_mask.paths.extend(knob.field for knob in given)
    present: Any = _status(session).policy_settings if any(knob.listed for knob in given) else None
    for knob in given:
        value = getattr(args, knob.field)
        target = getattr(request.policy, knob.field)
        if knob.field == "shares":
            shares = {share.path: share.shares for share in present.shares} | dict(value)
            for path, number in shares.items():
                if number is not None:
                    target.add(path=path, shares=number)
        elif knob.field == "quotas":
            quotas = {quota.name: (quota.gpus, quota.jobs) for quota in present.quotas} | dict(value)
            for name, most in quotas.items():
                if most is not None:
                    target.add(name=name, gpus=most[0], jobs=most[1])
        elif isinstance(value, float):
            target.FromNanoseconds(round(value * 1e9))
        else:
            setattr(request.policy, knob.field, value)
    return request


def _status(session: Session) -> Any:
    import gpusched.v1.scheduler_pb2 as pb

    return session.call(session.scheduler.GetStatus, pb.GetStatusRequest())


def _shown(policy: Any, knob: Knob) -> str:
    from gpusched.client.cli import show
    from gpusched.client.units import format_duration

    value = getattr(policy, knob.field)
    if knob.field == "shares":
        return ", ".join(f"{share.path}={share.shares:g}" for share in value) or show.NONE
    if knob.field == "quotas":
        return ", ".join(f"{q.name}={q.gpus}" + (f":{q.jobs}" if q.jobs else "") for q in value) or show.NONE
    if isinstance(value, bool):
        return "on" if value else "off"
    if knob.parse not in (_duration, _half_life):
        return str(value)
    seconds = show.seconds(value)
    # One below a second is not 0s, which means never.
    return f"{seconds:g}s" if 0 < seconds < 10 else format_duration(seconds)


def _name(text: str, field: str) -> str:
    if not text or not text.isprintable() or len(text) > 100:
        raise UsageError(field, text, "give a name, such as `gpusched policy` shows them")
    return text


def _switch(text: str, field: str) -> bool:
    if text not in ("on", "off"):
        raise UsageError(field, text, "give on or off")
    return text == "on"


def _duration(text: str, field: str) -> float:
    from gpusched.client.units import parse_duration

    return parse_duration(text, field)


def _half_life(text: str, field: str) -> float:
    from gpusched.client.units import DURATION_ALLOWED

    seconds = _duration(text, field)
    if seconds < 1:
        raise UsageError(field, text, f"{DURATION_ALLOWED}, 1s or more")
    return seconds


def _share(text: str, field: str) -> tuple[str, float | None]:
    path, equals, number = text.partition("=")
    try:
        value = None if number == "none" else float(number)
    except ValueError:
        equals = ""
    if not path or not equals:
        raise UsageError(field, text, _SHARE)
    return path, value


def _quota(text: str, field: str) -> tuple[str, tuple[int, int] | None]:
    name, equals, numbers = text.partition("=")
    if not name or not equals:
        raise UsageError(field, text, _QUOTA)
    if numbers == "none":
        return name, None
    parts = numbers.split(":")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts):
        raise UsageError(field, text, _QUOTA)
    return name, (int(parts[0]), int(parts[1]) if len(parts) > 1 else 0)


_count = whole_number(0, _MOST)

#: In the order of the contract. The first is the command's own argument.
KNOBS = (
    Knob("order", "policy", "POLICY", "who is next", _name),
    Knob("backfill", "--backfill", "NAME", "who may go before a job that must wait: none, easy, conservative", _name),
    Knob("candidates", "--candidates", "NAME", "whom backfill tries first: queue, sjbf (the shortest limit)", _name),
    Knob("depth", "--reservation-depth", "JOBS", "waiting jobs with a reservation under easy, 1 to 64", _count),
    Knob("freeze_bypasses", "--freeze-bypasses", "TIMES", "passed so often, a job is protected; 0: never", _count),
    Knob("freeze_wait", "--freeze-wait", "TIME", "the same after so long a wait; 0s: never", _duration),
    Knob("aging", "--aging", "TIME", "priority: waiting that is worth one tier; 0s: none", _duration),
    Knob("starvation", "--starvation", "TIME", "sjf: waiting after which a job goes first; 0s: never", _duration),
    Knob("half_life", "--half-life", "TIME", "fair_share: time in which past use counts half", _half_life),
    Knob("shares", "--share", "PATH=N", "fair_share: shares of a user or account; PATH=none forgets", _share, True),
    Knob("preemption", "--preemption", "on/off", "jobs of higher tiers may end preemptible ones", _switch),
    Knob("preempt_after", "--preempt-after", "TIME", "time that a job runs at least before that", _duration),
    Knob("preempt_grace", "--preempt-grace", "TIME", "time from the word to the end", _duration),
    Knob("preempt_most", "--preempt-most", "TIMES", "how often one job may be preempted; 0: any number", _count),
    Knob("user_gpus", "--user-gpus", "GPUS", "GPUs that each user may hold; 0: any number", _count),
    Knob("user_jobs", "--user-jobs", "JOBS", "jobs that each user may have running; 0: any number", _count),
    Knob("quotas", "--quota", "NAME=GPUS[:JOBS]", "what holds for one user or account/ instead", _quota, True),
    Knob("borrow", "--borrow", "on/off", "more than that, while nobody else waits for them", _switch),
)
