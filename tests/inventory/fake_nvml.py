"""A stand-in for the module `pynvml`: its own devices, the real module's constants and exceptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 1024**3


def error(code: int) -> Exception:
    """What pynvml raises for that code."""
    result: Exception = pynvml.NVMLError(code)
    return result


NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED


@dataclass
class FakeGpu:
    """One device. Any value may be an int meaning a good answer, or an exception to be raised instead."""

    uuid: str
    bus_id: str
    name: str = "NVIDIA H100 80GB HBM3"
    total: int = 80 * GIB
    used: Any = 0
    utilization: Any = 0
    temperature: Any = 30
    milliwatts: Any = 70_500
    compute: Any = field(default_factory=list)
    graphics: Any = field(default_factory=list)
    mps: Any = field(default_factory=list)
    ecc: Any = field(default_factory=lambda: error(NOT_SUPPORTED))
    pages_pending: Any = field(default_factory=lambda: error(NOT_SUPPORTED))
    remapped: Any = field(default_factory=lambda: error(NOT_SUPPORTED))
    xids: list[int] = field(default_factory=list)
    events_supported: bool = True
    links: list[Any] = field(default_factory=list)  # for each NVLink a bus id, "switch", None (down), or an exception
    near: dict[str, Any] = field(default_factory=dict)  # uuid of another GPU to the level of their common ancestor
    instances: list[Any] | None = None  # of a GPU with MIG on, by number; None where there is none
    mig_mode: Any = field(default_factory=lambda: error(NOT_SUPPORTED))
    opening: Exception | None = None
    broken: Exception | None = None  # what every call about this device raises

    def answer(self, value: Any) -> Any:
        for trouble in (self.broken, value):
            if isinstance(trouble, Exception):
                raise trouble
        return value() if callable(value) else value


def process(pid: int, memory: int | None = None) -> SimpleNamespace:
    """An entry of a process list; None is what pynvml makes of NVML_VALUE_NOT_AVAILABLE."""
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


class FakeNvml:
    """The part of pynvml's interface that the inventory uses; everything else is pynvml's own."""

    def __init__(self, *gpus: FakeGpu, init_error: Exception | None = None) -> None:
        self.gpus = list(gpus)
        self.init_error = init_error
        self.initialised = 0
        self.shut_down = 0
        self.event_sets: list[SimpleNamespace] = []
        self.missing: set[str] = set()  # functions that this driver does not have
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvmlDeviceGet"):
            object.__getattribute__(self, "calls").append(name)
            if name in object.__getattribute__(self, "missing"):
                return _raiser(error(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND))
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml") and callable(getattr(pynvml, name)):
            raise AssertionError(f"the fake has no {name}: never call the real driver from here")
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:
        if self.init_error:
            raise self.init_error
        self.initialised += 1

    def nvmlShutdown(self) -> None:
        self.shut_down += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        gpu = self.gpus[index]
        if gpu.opening:
            raise gpu.opening
        return gpu

    def nvmlDeviceGetPciInfo(self, handle: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(busId=handle.bus_id.encode())

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return handle.uuid

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return handle.name

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:
        return [1, 1] if handle.instances is not None else list(handle.answer(handle.mig_mode))

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeGpu) -> int:
        assert handle.instances is not None
        return len(handle.instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: FakeGpu, number: int) -> FakeGpu:
        assert handle.instances is not None
        instance = handle.instances[number]
        if instance is None:
            raise error(pynvml.NVML_ERROR_NOT_FOUND)
        assert isinstance(instance, FakeGpu)
        return instance

    def nvmlDeviceGetTopologyCommonAncestor(self, one: FakeGpu, other: FakeGpu) -> int:
        level = one.near.get(other.uuid, other.near.get(one.uuid, error(NOT_SUPPORTED)))
        return int(one.answer(level))

    def nvmlDeviceGetNvLinkState(self, handle: FakeGpu, link: int) -> int:
        if link >= len(handle.links):
            raise error(pynvml.NVML_ERROR_INVALID_ARGUMENT if handle.links else NOT_SUPPORTED)
        return int(handle.answer(handle.links[link]) is not None)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: FakeGpu, link: int) -> SimpleNamespace:
        return SimpleNamespace(busId=str(handle.links[link]).encode())

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: FakeGpu, link: int) -> int:
        return 2 if handle.links[link] == "switch" else 0

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu, version: int | None = None) -> SimpleNamespace:
        if version and "nvmlDeviceGetMemoryInfo_v2" in self.missing:
            raise error(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        # The first form counts what the driver keeps for itself as used.
        reserved = 0 if version else 600 * 1024**2
        return SimpleNamespace(total=handle.total, used=handle.answer(handle.used) + reserved)

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(gpu=handle.answer(handle.utilization))

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return int(handle.answer(handle.temperature))

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        return int(handle.answer(handle.milliwatts))

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: FakeGpu) -> list[SimpleNamespace]:
        return list(handle.answer(handle.compute))

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: FakeGpu) -> list[SimpleNamespace]:
        return list(handle.answer(handle.compute))

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: FakeGpu) -> list[SimpleNamespace]:
        return list(handle.answer(handle.graphics))

    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, handle: FakeGpu) -> list[SimpleNamespace]:
        return list(handle.answer(handle.graphics))

    def nvmlDeviceGetMPSComputeRunningProcesses_v3(self, handle: FakeGpu) -> list[SimpleNamespace]:
        return list(handle.answer(handle.mps))

    def nvmlDeviceGetMPSComputeRunningProcesses_v2(self, handle: FakeGpu) -> list[SimpleNamespace]:
        return list(handle.answer(handle.mps))

    def nvmlDeviceGetTotalEccErrors(self, handle: FakeGpu, kind: int, counter: int) -> int:
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return int(handle.answer(handle.ecc))

    def nvmlDeviceGetRetiredPagesPendingStatus(self, handle: FakeGpu) -> int:
        return int(handle.answer(handle.pages_pending))

    def nvmlDeviceGetRemappedRows(self, handle: FakeGpu) -> tuple[int, int, int, int]:
        rows: tuple[int, int, int, int] = handle.answer(handle.remapped)
        return rows

    def nvmlEventSetCreate(self) -> SimpleNamespace:
        self.event_sets.append(SimpleNamespace(gpu=None, freed=False))
        return self.event_sets[-1]

    def nvmlDeviceRegisterEvents(self, handle: FakeGpu, types: int, events: SimpleNamespace) -> None:
        assert types == pynvml.nvmlEventTypeXidCriticalError
        if not handle.events_supported:
            raise error(NOT_SUPPORTED)
        assert events.gpu is None, "one event set for each GPU"
        events.gpu = handle

    def nvmlEventSetWait_v2(self, events: SimpleNamespace, timeout: int) -> SimpleNamespace:
        assert timeout == 0, "a reading must not wait for an event"
        if events.gpu.broken:
            raise events.gpu.broken
        if not events.gpu.xids:
            raise error(pynvml.NVML_ERROR_TIMEOUT)
        return SimpleNamespace(eventType=pynvml.nvmlEventTypeXidCriticalError, eventData=events.gpu.xids.pop(0))

    def nvmlEventSetFree(self, events: SimpleNamespace) -> None:
        events.freed = True


def _raiser(trouble: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise trouble

    return call
