"""Variables of a lease in `os.environ`, put back exactly; and whether CUDA has read them already."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, MutableMapping, Sequence

from gpusched.client import procs

UVM_DEVICE = "/dev/nvidia-uvm"
"""What every process with CUDA initialised has open (NVML alone does not open it)."""

JOB_ID = "GPUSCHED_JOB_ID"
OF_A_LEASE = (
    *(JOB_ID, "GPUSCHED_LEASE_ID", "GPUSCHED_GPUS", "GPUSCHED_NODE", "GPUSCHED_URL"),
    *("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
)
"""Variables that a lease sets."""

LISTS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "GPUSCHED_GPUS")
"""Variables with one comma-separated entry for each GPU of the lease, in its order."""


class Layers:
    """Layers of variables over an environment; the newest wins, and what was there before comes back at the end.

    Leases of several threads may overlap in any order, and each variable is still right after the last one's end.
    """

    def __init__(self, target: MutableMapping[str, str]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._layers: list[Mapping[str, str]] = []
        self._before: dict[str, str | None] = {}

    def push(self, values: Mapping[str, str]) -> None:
        """Set the variables."""
        with self._lock:
            for name, value in values.items():
                self._before.setdefault(name, self._target.get(name))
                self._target[name] = value
            self._layers.append(values)

    def pop(self, values: Mapping[str, str]) -> None:
        """Take away what `push` of this very mapping set; nothing if that was done already."""
        with self._lock:
            kept = [layer for layer in self._layers if layer is not values]
            if len(kept) == len(self._layers):
                return
            shown = {name: self._shown(name) for name in self._before}
            self._layers = kept
            for name, old in shown.items():
                # With layers left, only what this one had decided: others may have been changed on purpose.
                if not kept or self._shown(name) != old:
                    self._put(name, self._shown(name))
            if not kept:
                self._before.clear()

    def _shown(self, name: str) -> str | None:
        for layer in reversed(self._layers):
            if name in layer:
                return layer[name]
        return self._before[name]

    def _put(self, name: str, value: str | None) -> None:
        if value is None:
            self._target.pop(name, None)
        else:
            self._target[name] = value


process_environment = Layers(os.environ)


def narrowed(variables: Mapping[str, str], positions: Sequence[int]) -> dict[str, str]:
    """The variables for some of a lease's GPUs, named by their positions in it."""
    narrow = dict(variables)
    for name in LISTS:
        if name in narrow:
            entries = narrow[name].split(",")
            narrow[name] = ",".join(entries[position] for position in positions if position < len(entries))
    return narrow


def cuda_user() -> str:
    """Who in this process has initialised CUDA, which reads CUDA_VISIBLE_DEVICES then and never again; empty: nobody.

    Neither imports nor initialises anything.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    initialised = getattr(cuda, "is_initialized", None)
    if callable(initialised) and initialised():
        return "PyTorch has initialised CUDA"
    return "CUDA is initialised" if procs.has_open(os.getpid(), UVM_DEVICE) else ""
