"""A policy between its message and the core's value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from gpusched.scheduler.core.constraints import MAX_NAME
from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.policy import PolicySettings, Quota
from gpusched.scheduler.rpc.basics import duration_of, seconds
from gpusched.v1 import admin_pb2, policy_pb2

FIELDS = tuple(field.name for field in fields(PolicySettings))
#: Most shares, and most quotas.
MAX_LIST = 1000
#: Seconds; as the server's own option has it.
LEAST_HALF_LIFE = 1.0
_DURATIONS = ("freeze_wait", "aging", "starvation", "half_life", "preempt_after", "preempt_grace")


def policy(value: PolicySettings) -> policy_pb2.Policy:
    message = policy_pb2.Policy()
    for name in FIELDS:
        each = getattr(value, name)
        if name in _DURATIONS:
            getattr(message, name).CopyFrom(duration_of(each))
        elif name == "shares":
            message.shares.extend(policy_pb2.Share(path=path, shares=number) for path, number in each)
        elif name == "quotas":
            message.quotas.extend(policy_pb2.Quota(name=quota.name, gpus=quota.gpus, jobs=quota.jobs) for quota in each)
        else:
            setattr(message, name, each)
    return message


def policy_of(request: admin_pb2.SetPolicyRequest, present: PolicySettings) -> PolicySettings:
    """The policy that a request asks for.

    Args:
        present: the one in force, of which it changes some fields.

    Raises:
        Invalid: a field does not exist, or has a value that is not allowed.
    """
    message = request.policy
    paths = list(dict.fromkeys(request.update_mask.paths)) or [field.name for field, _ in message.ListFields()]
    unknown = [path for path in paths if path not in FIELDS]
    if unknown or not paths:
        what = f"{unknown[0][:80]!r} is no field of a policy" if unknown else "nothing is to be changed"
        raise Invalid(f"update_mask: {what}; allowed are {', '.join(FIELDS)}", field="update_mask")
    return replace(present, **{path: _read(message, path) for path in paths})


def _read(message: policy_pb2.Policy, name: str) -> Any:
    return _READERS.get(name, getattr)(message, name)


def _seconds(message: policy_pb2.Policy, name: str) -> float:
    try:
        return seconds(message, name) or 0.0
    except Invalid as error:
        raise Invalid(f"policy.{error.message}", field=f"policy.{name}") from None


def _half_life(message: policy_pb2.Policy, name: str) -> float:
    found = _seconds(message, name)
    if found < LEAST_HALF_LIFE:
        text = f"policy.{name}: {found:g} s is not allowed; it must be {LEAST_HALF_LIFE:g} s or more"
        raise Invalid(text, field=f"policy.{name}")
    return found


def _shares(message: policy_pb2.Policy, name: str) -> tuple[tuple[str, float], ...]:
    _check_names(name, [share.path for share in message.shares])
    return tuple((share.path, share.shares) for share in message.shares)


def _quotas(message: policy_pb2.Policy, name: str) -> tuple[Quota, ...]:
    _check_names(name, [quota.name for quota in message.quotas])
    return tuple(Quota(quota.name, quota.gpus, quota.jobs) for quota in message.quotas)


def _check_names(field: str, names: list[str]) -> None:
    field = f"policy.{field}"
    if len(names) > MAX_LIST:
        raise Invalid(f"{field}: {len(names)} are too many; at most {MAX_LIST} are allowed", field=field)
    for name in names:
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise Invalid(f"{field}: a name must have 1 to {MAX_NAME} printable characters", field=field)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Invalid(f"{field}: {twice} is named twice", field=field)


_READERS: dict[str, Callable[[policy_pb2.Policy, str], Any]] = {
    **dict.fromkeys(_DURATIONS, _seconds),
    "half_life": _half_life,
    "shares": _shares,
    "quotas": _quotas,
}
