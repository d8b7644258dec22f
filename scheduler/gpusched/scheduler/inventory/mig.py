"""GPUs that are divided into MIG instances, each of which is handed out as a device of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_PROFILE = re.compile(r"\bMIG (\S+)")


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG instance as the driver names it; `memory_bytes` is 0 and `profile` empty where it does not tell."""

    handle: Any
    uuid: str
    model: str
    profile: str
    memory_bytes: int


def instances(nvml: Any, handle: Any, model: str) -> list[Instance] | None:
    """The instances of a GPU, in the driver's order.

    Args:
        nvml: a module like `pynvml`.
        handle: of the whole GPU.
        model: its product name.

    Returns:
        None if MIG is off, or the driver does not know what it is.
    """
    try:
        if int(nvml.nvmlDeviceGetMigMode(handle)[0]) != nvml.NVML_DEVICE_MIG_ENABLE:
            return None
        most = int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    except (nvml.NVMLError, AttributeError):
        return None
    found = []
    for number in range(most):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            uuid = _text(nvml.nvmlDeviceGetUUID(instance))
        except nvml.NVMLError:
            continue  # numbers without an instance are the rule
        found.append(Instance(instance, uuid, *_make(nvml, instance, model)))
    return found


def device_labels(numa: int, profile: str) -> tuple[tuple[str, str], ...]:
    """Labels that a device has by itself: its NUMA node, and the profile of a MIG instance."""
    return (*([("mig", profile)] if profile else []), *([("numa", str(numa))] if numa >= 0 else []))


def _make(nvml: Any, instance: Any, model: str) -> tuple[str, str, int]:
    """Model, profile and memory of an instance."""
    try:
        name = _text(nvml.nvmlDeviceGetName(instance))
    except nvml.NVMLError:
        name = ""
    found = _PROFILE.search(name)
    try:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(instance).total)
    except nvml.NVMLError:
        memory = 0
    return (name if found else f"{model} MIG"), (found[1] if found else ""), memory


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
