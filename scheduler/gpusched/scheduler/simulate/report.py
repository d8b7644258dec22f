"""What is printed: a list of figures for one policy, a table for several, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpusched.scheduler.core.model import Placement
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.simulate.metrics import Metrics
from gpusched.scheduler.simulate.options import KNOBS
from gpusched.scheduler.simulate.readers import Log
from gpusched.scheduler.simulate.replay import Estimate, Events, Replayed

_ESTIMATES = {Estimate.LIMIT: "the users' limits", Estimate.EXACT: "exact run times"}
_HEADERS = ("POLICY", "BACKFILL", "WAIT MEAN", "MEDIAN", "P90", "MAX", "SLOWDOWN", "USED", "FAIRNESS", "JOBS/S")


@dataclass(frozen=True, slots=True)
class About:
    """What was replayed, on what. `reading` is how long it took to read the log, in seconds."""

    log: Log
    nodes: int
    gpus: int
    placement: Placement
    estimate: Estimate
    too_large: int
    reading: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it under one policy. `took` is how long the replay took, in seconds."""

    policy: PolicySettings
    events: Events
    metrics: Metrics
    replayed: Replayed
    took: float


def name_of(policy: PolicySettings) -> str:
    """A policy in a few words."""
    return f"{policy.order}, {_backfill(policy)}"


def lines(about: About, outcomes: Sequence[Outcome]) -> list[str]:
    """For people."""
    first = outcomes[0].metrics
    users = f" of {first.users:,} user{'s' if first.users != 1 else ''}" if first.users else ""
    nodes = f" in {about.nodes:,} nodes ({about.placement.value})" if about.nodes > 1 else ""
    hints = ", their estimates and similar runs" if about.estimate is Estimate.LIMIT and about.log.has_hints else ""
    text = [
        f"{_clean(about.log.name)}: {count(first.jobs, 'job')}{users} on {count(about.gpus, 'GPU')}{nodes}; "
        f"estimates: {_ESTIMATES[about.estimate]}{hints}"
    ]
    notes = (
        (about.too_large, "left out, larger than the machine"),
        (about.log.incomplete, "left out, without run time or processors"),
        (about.log.filtered, "left out by filters"),
        (outcomes[0].replayed.outlived, "ran for longer than their limit, which is taken to be their run time"),
    )
    text += [f"  {number:,} {what}" for number, what in notes if number]
    return [*text, "", *(_details(outcomes[0]) if len(outcomes) == 1 else _table(outcomes))]


def document(about: About, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """For programs."""
    return {
        "log": about.log.name,
        "nodes": about.nodes,
        "gpus": about.gpus,
        "placement": about.placement.value,
        "estimate": about.estimate.value,
        "jobs": outcomes[0].metrics.jobs,
        "users": outcomes[0].metrics.users,
        "left_out": {
            "too_large": about.too_large,
            "incomplete": about.log.incomplete,
            "filtered": about.log.filtered,
        },
        "outlived_limit": outcomes[0].replayed.outlived,
        "read_seconds": about.reading,
        "runs": [
            {
                "policy": each.policy.order,
                "backfill": each.policy.backfill,
                "candidates": each.policy.candidates,
                "knobs": {name: getattr(each.policy, name) for name in KNOBS},
                "events": each.events.value,
                **{key: value for key, value in asdict(each.metrics).items() if key not in ("jobs", "users")},
                "replay_seconds": each.took,
                "jobs_per_second": each.metrics.jobs / each.took,
                "engine_events": each.replayed.events,
            }
            for each in outcomes
        ],
    }


def _details(outcome: Outcome) -> list[str]:
    it = outcome.metrics
    waits = (
        ("mean", it.wait_mean),
        ("median", it.wait_median),
        ("90 % at most", it.wait_p90),
        ("longest", it.wait_max),
        ("all together", it.wait_total),
    )
    rows = [
        ("policy", f"{name_of(outcome.policy)}; events {outcome.events.value}"),
        *((f"wait, {what}", f"{seconds:,.2f} s ({span(seconds)})") for what, seconds in waits),
        ("mean bounded slowdown", f"{it.slowdown_mean:,.6f}"),
        ("GPUs in use", f"{100 * it.utilisation:.2f} % of the makespan"),
        ("makespan", f"{it.makespan:,.0f} s ({span(it.makespan)})"),
        ("fairness among users", "-" if it.fairness is None else f"{it.fairness:.4f} (Jain; 1 is even)"),
        ("replayed", f"in {outcome.took:.2f} s, {it.jobs / outcome.took:,.0f} jobs/s"),
    ]
    return [f"{name:<22} {value}" for name, value in rows]


def _table(outcomes: Sequence[Outcome]) -> list[str]:
    rows: list[tuple[str, ...]] = [_HEADERS]
    for outcome in outcomes:
        it = outcome.metrics
        rows.append(
            (
                outcome.policy.order,
                _backfill(outcome.policy).removesuffix(" backfill"),
                *(span(wait) for wait in (it.wait_mean, it.wait_median, it.wait_p90, it.wait_max)),
                f"{it.slowdown_mean:,.2f}",
                f"{100 * it.utilisation:.1f}%",
                "-" if it.fairness is None else f"{it.fairness:.3f}",
                f"{it.jobs / outcome.took:,.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADERS))]
    return [
        "  ".join(
            cell.ljust(wide) if column < 2 else cell.rjust(wide)
            for column, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _backfill(policy: PolicySettings) -> str:
    if policy.backfill == "none":
        return "no backfill"
    sjbf = policy.backfill == "easy" and policy.candidates == "sjbf"
    return f"{policy.backfill}{' sjbf' if sjbf else ''} backfill"


def span(seconds: float) -> str:
    """A duration in its two largest units: `2d03h`, `4h08m`, `7m05s`, `12s`, `0.5s`."""
    whole = round(seconds)
    if seconds < 10 and whole != seconds:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days:,}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def count(number: int, what: str) -> str:
    """`1 job`, `2,000 jobs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
