"""A refusal in the words of whoever asked: the contract's names of fields mean nothing to who never wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusched.client.errors import GpuschedError

#: The parameter of `acquire` and `submit` that a field of the request comes from; all others are called the same.
PARAMETERS = {
    "resources.gpus": "gpus",
    "resources.gpu_memory_bytes": "gpu_memory",
    "resources.gpu_model": "gpu_model",
    "resources.node": "node",
    "resources.nodes": "nodes",
    "resources.gpu_ids": "gpu_ids",
    "resources.exclude": "exclude",
    "resources.labels": "labels",
    "resources.gpus_per_node": "gpus_per_node",
    "resources.placement": "placement",
    "resources.shared": "shared",
    "resources.cpus": "cpus",
    "resources.memory_bytes": "mem",
    "preempt_signal.name": "signal",
    "preempt_signal.before": "signal",
    "working_directory": "workdir",
    "output_path": "output",
    "retry.max_retries": "retries",
    "retry.backoff": "backoff",
    "retry.exit_statuses": "retry_on",
    "dependencies": "after",
    "begin_at": "begin",
    "held": "hold",
}


def named(error: GpuschedError, names: Mapping[str, str]) -> str:
    """The error's text, with the name that a field has for its reader in the field's place.

    Args:
        error: the scheduler's.
        names: by field of the request; those that are missing keep the field's.
    """
    message = str(error).removeprefix(f"{error.field}: ")
    return f"{names.get(error.field, error.field)}: {message}" if error.field else message


def in_parameters(error: GpuschedError) -> GpuschedError:
    """The same error in terms of `acquire` and `submit`; for programs, `field` stays the contract's."""
    if error.field not in PARAMETERS:
        return error
    text = named(error, PARAMETERS)
    return type(error)(text, reason=error.reason, field=error.field, retry_after=error.retry_after)
