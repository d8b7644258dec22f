"""A policy that an administrator has set, as text that outlives the server; and what it means for those who run."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.policy import PolicySettings, Quota
from gpusched.scheduler.core.quotas import quotas_of
from gpusched.scheduler.core.recovery import POLICY
from gpusched.scheduler.logs import log_event

log = logging.getLogger("gpusched.main")

#: Most notes of one answer.
_MAX_NOTES = 20


def dump(policy: PolicySettings) -> str:
    """A policy as JSON text."""
    return json.dumps(asdict(policy), separators=(",", ":"))


def load(text: str, otherwise: PolicySettings) -> PolicySettings:
    """A policy from its text.

    Args:
        text: what `dump` made, perhaps in another version.
        otherwise: where knobs come from that the text does not have.

    Raises:
        ValueError: the text is none, or of a policy that this version does not know.
    """
    known = {field.name for field in fields(PolicySettings)}
    try:
        parts: dict[str, Any] = {name: value for name, value in json.loads(text).items() if name in known}
        if "shares" in parts:
            parts["shares"] = tuple((path, number) for path, number in parts["shares"])
        if "quotas" in parts:
            parts["quotas"] = tuple(Quota(**quota) for quota in parts["quotas"])
        return replace(otherwise, **parts)
    except (Invalid, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a policy is kept in a form that this version does not know ({error})") from error


def in_force(configured: PolicySettings, settings: Mapping[str, str]) -> PolicySettings:
    """The policy to start with: the one that an administrator has set, if one is kept, else the configured one.

    Args:
        configured: what the configuration says.
        settings: those that are kept.
    """
    text = settings.get(POLICY)
    if text is None:
        return configured
    try:
        policy = load(text, configured)
    except ValueError as error:
        log_event(log, "the policy is that of the configuration", level=logging.WARNING, message=str(error))
        return configured
    if policy != configured:
        log_event(log, "the policy is what an administrator has set", policy=text)
    return policy


def notes(policy: PolicySettings, running: Iterable[Job], waiting: Iterable[Job] = ()) -> list[str]:
    """What limits of a policy mean for those who have more than them: nothing is taken away.

    Args:
        policy: the new one.
        running: the jobs that run.
        waiting: jobs that wait, one of each kind.

    Returns:
        A sentence for each user and account that is above its quota, and for each job that asks for more than one.
    """
    quotas = quotas_of(policy)
    if quotas is None:
        return []
    gpus: Counter[Quota] = Counter()
    jobs: Counter[Quota] = Counter()
    for job in running:
        for quota in quotas.of(job.spec.owner.name):
            gpus[quota] += len(job.lease.devices) if job.lease is not None else 0
            jobs[quota] += 1
    said = []
    for quota in sorted(jobs, key=lambda quota: quota.name):
        over = []
        if quota.gpus and gpus[quota] > quota.gpus:
            over.append(f"{gpus[quota]} GPUs, {quota.gpus} are allowed")
        if quota.jobs and jobs[quota] > quota.jobs:
            over.append(f"{jobs[quota]} running jobs, {quota.jobs} are allowed")
        if over:
            text = f"{quota.name} has {' and '.join(over)}"
            said.append(f"{text}: nothing is taken away, and nothing new starts until that fits")
    for job in waiting:
        most = min((quota.gpus for quota in quotas.of(job.spec.owner.name) if quota.gpus), default=job.request.gpus)
        if job.request.gpus > most:
            until = "it starts by borrowing, if at all" if policy.borrow else "it waits until that is changed"
            said.append(
                f"job {job.id} ({job.spec.owner.name}) asks for {job.request.gpus} GPUs, {most} are allowed: {until}"
            )
    return [*said[:_MAX_NOTES], *([f"and {len(said) - _MAX_NOTES} more"] if len(said) > _MAX_NOTES else [])]
