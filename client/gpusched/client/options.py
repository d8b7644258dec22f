"""What `acquire` was asked for, checked before anything is started."""

from __future__ import annotations

import inspect
import operator
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from gpusched.client.address import server_address
from gpusched.client.units import duration_seconds, parse_signal, parse_size
from gpusched.client.usage import UsageError
from gpusched.client.where import ANYWHERE, Where, checked_where

MAX_GPUS = 100_000
MAX_NAME = 128
MAX_COMMAND_WORDS = 100
MAX_COMMAND_CHARS = 4000


@dataclass(frozen=True, slots=True)
class AcquireOptions:
    """A checked request. Durations are in seconds, None for no limit; `nested` is `auto` or `new`."""

    address: str
    gpus: int
    gpu_memory_bytes: int = 0
    gpu_model: str = ""
    where: Where = ANYWHERE
    priority: int = 0
    name: str = ""
    time_limit: float | None = None
    max_wait: float | None = None
    immediate: bool = False
    estimate: float | None = None
    preemptible: bool = False
    signal: tuple[str, float] | None = None
    nested: str = "auto"

    def message(self) -> dict[str, Any]:
        """The fields that the helper wants."""
        return {
            "address": self.address,
            "gpus": self.gpus,
            "gpu_memory_bytes": self.gpu_memory_bytes,
            "gpu_model": self.gpu_model,
            "where": self.where._asdict(),
            "priority": self.priority,
            "name": self.name,
            "time_limit": self.time_limit,
            "max_wait": self.max_wait,
            "immediate": self.immediate,
            "estimate": self.estimate,
            "preemptible": self.preemptible,
            "signal": self.signal,
            "command": own_command(),
        }


def checked_options(
    gpus: int | None,
    *,
    gpu_memory: str | int | None,
    gpu_model: str | None,
    nodes: str | Iterable[str] | None,
    gpu_ids: str | int | Iterable[str | int] | None,
    exclude: str | int | Iterable[str | int] | None,
    labels: Mapping[str, str] | None,
    gpus_per_node: int | None,
    placement: str | None,
    shared: bool = False,
    cpus: int | None = None,
    mem: str | int | None = None,
    priority: int,
    name: str | None,
    time_limit: float | str | timedelta | None,
    max_wait: float | str | timedelta | None,
    immediate: bool,
    estimate: float | str | timedelta | None = None,
    preemptible: bool = False,
    signal: str | None = None,
    url: str | None,
    nested: str | None,
) -> AcquireOptions:
    """Parameters of `acquire` as a checked request; raises UsageError, which names the parameter."""
    limit = None if time_limit is None else duration_seconds(time_limit, "time_limit")
    if limit == 0:
        raise UsageError("time_limit", time_limit, "give more than no time at all, or None for no limit")
    expected = None if estimate is None else duration_seconds(estimate, "estimate")
    if expected == 0:
        raise UsageError("estimate", estimate, "give more than no time at all, or None if you cannot say")
    where = checked_where(
        nodes=nodes,
        gpu_ids=gpu_ids,
        exclude=exclude,
        labels=labels,
        gpus_per_node=gpus_per_node,
        placement=placement,
        shared=shared,
        cpus=cpus,
        mem=mem,
    )
    return AcquireOptions(
        address=server_address(url),
        gpus=_whole("gpus", len(where.gpu_ids) or 1 if gpus is None else gpus, 0 if where.of_host else 1, MAX_GPUS),
        gpu_memory_bytes=0 if gpu_memory is None else parse_size(gpu_memory, "gpu_memory"),
        gpu_model=_text("gpu_model", gpu_model or ""),
        where=where,
        priority=_whole("priority", priority, -100, 100),
        name=_text("name", name) if name is not None else default_name(),
        time_limit=limit,
        max_wait=None if max_wait is None else duration_seconds(max_wait, "max_wait"),
        immediate=_flag("immediate", immediate),
        estimate=expected,
        preemptible=_flag("preemptible", preemptible),
        signal=None if signal is None else parse_signal(signal),
        nested=_nested(nested),
    )


def check_callback(field: str, value: object, *, coroutines: bool) -> None:
    """Refuse what cannot be called; raises UsageError, which names the parameter.

    Args:
        field: named in the error.
        value: the callback, or None for none.
        coroutines: somebody awaits what a coroutine function gives.
    """
    if value is None:
        return
    if not callable(value):
        raise UsageError(field, value, "give a function, or None")
    if not coroutines and inspect.iscoroutinefunction(value):
        raise UsageError(field, value, "give an ordinary function; gpusched.client.aio awaits coroutine functions")


def default_name() -> str:
    """What lists call this process's jobs: the notebook, the script, or python."""
    path = os.environ.get("JPY_SESSION_NAME") or (sys.argv[0] if sys.argv else "")
    name = Path(path).name if path not in ("", "-c", "-m") else ""
    return "".join(c for c in name if c.isprintable())[:MAX_NAME] or "python"


def own_command() -> list[str]:
    """This process's command line, as much of it as lists will want."""
    words: list[str] = []
    room = MAX_COMMAND_CHARS
    for word in sys.orig_argv[:MAX_COMMAND_WORDS]:
        words.append(word[:room].encode("utf-8", "replace").decode())
        room -= len(word)
        if room <= 0:
            break
    return words


def _whole(field: str, value: int, least: int, most: int) -> int:
    allowed = f"give a whole number from {least} to {most}"
    if isinstance(value, bool):
        raise UsageError(field, value, allowed)
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(field, value, allowed) from None
    if not least <= number <= most:
        raise UsageError(field, value, allowed)
    return number


def _flag(field: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise UsageError(field, value, "give True or False")
    return value


def _text(field: str, value: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise UsageError(field, value, f"give at most {MAX_NAME} characters, without line breaks or control characters")
    return value


def _nested(value: str | None) -> str:
    field = "nested"
    if value is None:
        value, field = os.environ.get("GPUSCHED_NESTED") or "auto", "GPUSCHED_NESTED"
    if value not in ("auto", "new"):
        raise UsageError(field, value, "give 'auto' (use the outer lease) or 'new' (always ask for GPUs of one's own)")
    return value
