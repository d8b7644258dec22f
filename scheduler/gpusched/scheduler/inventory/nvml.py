"""The GPUs of this machine, through NVIDIA's management library (NVML) by way of nvidia-ml-py.

Calls go straight to the driver and may hang with it, so nothing here holds a lock across one; each GPU
has its own event set, so that a sick GPU does not stand in the way of asking its neighbours.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeVar

from gpusched.scheduler.core.model import DeviceInfo, DeviceReading, Holder, NodeInfo, Owner, ProcessReading
from gpusched.scheduler.inventory import faults, proc
from gpusched.scheduler.ports import InventoryError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

DEFAULT_IGNORED: Final = frozenset(
    {
        # display servers and desktops
        *("X", "Xorg", "Xwayland", "Xvnc*", "gnome-shell", "gnome-remote-desktop*", "gdm*", "lightdm*", "sddm*"),
        *("kwin_x11", "kwin_wayland", "plasmashell", "mutter*", "cinnamon", "xfwm4", "sway", "weston", "Hyprland"),
        # NVIDIA's own daemons; the clients of MPS are seen under their own names
        *("nvidia-cuda-mps-server", "nvidia-cuda-mps-control", "nvidia-persistenced", "nvidia-powerd"),
        *("nvidia-settings", "nv-fabricmanager", "nv-hostengine", "nvsm*", "dcgm-exporter", "dcgmi"),
        # monitors
        *("nvidia-smi", "nvtop", "nvitop", "gpustat", "btop"),
    }
)

_MAX_EVENTS_A_READING = 64
_LIST_ATTEMPTS = 3
# Newer form first; the second is for drivers older than 510.
_COMPUTE = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
_GRAPHICS = ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2")
_MPS = ("nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2")


@dataclass(slots=True)
class _Gpu:
    """One GPU as the driver knows it, and what was found out about it so far."""

    info: DeviceInfo
    handle: Any
    events: Any = None
    xid_fault: str = ""
    ecc_errors: int = 0
    ecc_accepted: int = 0


@dataclass(slots=True)
class _Look:
    """The faults met during one reading, in the order met."""

    faults: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        if fault and fault not in self.faults:
            self.faults.append(fault)


class NvmlInventory:
    """Real GPUs. Implements `ports.Inventory`; calls block, so make them off the event loop."""

    def __init__(
        self,
        ignore: frozenset[str] = DEFAULT_IGNORED,
        node_name: str = "",
        *,
        nvml: Any = None,
        proc_root: Path = proc.PROC,
    ) -> None:
        """Prepare; the driver is not touched before `discover`.

        Args:
            ignore: names of processes that do not count as users of a GPU, exact or with `*` and `?`.
            node_name: name of this machine; empty for its host name.
            nvml: a module like `pynvml`; None for the real one.
            proc_root: where the proc file system is.
        """
        self._ignore = ignore
        self._node_name = node_name or socket.gethostname()
        self._nvml = nvml
        self._proc_root = proc_root
        self._gpus: dict[str, _Gpu] = {}
        self._initialised = False
        self._calls: set[object] = set()  # those now in the driver; sets change atomically, so no lock

    @property
    def mode(self) -> str:
        """Always `real`."""
        return "real"

    @property
    def blocking(self) -> bool:
        """Always True: the driver may take its time, or never answer."""
        return True

    def discover(self) -> tuple[NodeInfo, ...]:
        """This machine and its GPUs, numbered in PCI bus order.

        Raises InventoryError where there is no driver or no GPU that answers.
        """
        with self._calling():
            nvml = self._start()
            try:
                found = self._find(nvml)
                driver = _text(nvml.nvmlSystemGetDriverVersion())
            except nvml.NVMLError as error:
                raise _none_found(_in_words(error)) from None
        self._gpus = {gpu.info.uuid: gpu for gpu in found}
        return (NodeInfo(self._node_name, tuple(gpu.info for gpu in found), local=True, driver_version=driver),)

    def read(self, uuid: str) -> DeviceReading:
        """Everything about one GPU. What the driver will not tell is -1; a sick GPU has `fault` set.

        Raises KeyError for a GPU that `discover` did not find.
        """
        gpu = self._gpus[uuid]
        nvml, look = self._nvml, _Look()
        with self._calling():
            memory_used = self._required(look, lambda: int(self._memory(gpu.handle).used), -1)
            processes: tuple[ProcessReading, ...] = ()
            if not look.faults:
                processes = self._required(look, lambda: self._processes(gpu.handle), ())
            if look.faults:
                # Each further question to a GPU in this state may take seconds.
                self._poll_xids(gpu, look)
                return DeviceReading(uuid, memory_used_bytes=memory_used, fault="; ".join(look.faults))
            utilization = self._optional(look, lambda: int(nvml.nvmlDeviceGetUtilizationRates(gpu.handle).gpu))
            temperature = self._optional(
                look, lambda: int(nvml.nvmlDeviceGetTemperature(gpu.handle, nvml.NVML_TEMPERATURE_GPU))
            )
            milliwatts = self._optional(look, lambda: int(nvml.nvmlDeviceGetPowerUsage(gpu.handle)))
            self._poll_xids(gpu, look)
            self._check_memory_health(gpu, look)
        return DeviceReading(
            uuid=uuid,
            memory_used_bytes=memory_used,
            utilization_percent=utilization,
            temperature_celsius=temperature,
            power_watts=milliwatts / 1000 if milliwatts >= 0 else -1.0,
            processes=processes,
            fault="; ".join(look.faults),
        )

    def processes(self, uuid: str) -> tuple[ProcessReading, ...]:
        """What sits on one GPU, less the ignored. Raises OSError where the driver cannot tell, KeyError as `read`."""
        gpu = self._gpus[uuid]
        with self._calling():
            try:
                return self._processes(gpu.handle)
            except self._nvml.NVMLError as error:
                raise OSError(f"cannot tell what runs on GPU {gpu.info.index}: {_in_words(error)}") from None

    def released(self, uuid: str, owner: Owner, holder: Holder | None) -> None:
        """Nothing to do: hardware notices by itself."""

    def clear_fault(self, uuid: str) -> None:
        """Forget an Xid and accept the memory errors counted so far; a fault that persists is found again.

        Raises KeyError for a GPU that `discover` did not find.
        """
        gpu = self._gpus[uuid]
        gpu.xid_fault = ""
        gpu.ecc_accepted = gpu.ecc_errors

    def close(self) -> None:
        """Let go of the driver library; returns at once, even while a call hangs in the driver."""
        if not self._initialised:
            return
        self._initialised = False
        if self._calls:
            return  # shutting down would wait for the hung call; the kernel tidies up when we exit
        nvml = self._nvml
        for gpu in self._gpus.values():
            if gpu.events is not None:
                with contextlib.suppress(nvml.NVMLError):
                    nvml.nvmlEventSetFree(gpu.events)
                gpu.events = None
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()

    # Finding the GPUs

    def _start(self) -> Any:
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError as error:
                raise _none_found(f"the Python package nvidia-ml-py is not installed: {error}") from None
        if not self._initialised:
            try:
                self._nvml.nvmlInit()
            except self._nvml.NVMLError as error:
                raise _none_found(_in_words(error)) from None
            self._initialised = True
        return self._nvml

    def _find(self, nvml: Any) -> list[_Gpu]:
        found: list[tuple[tuple[int, ...], str, Any]] = []
        skipped: list[str] = []
        for number in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                bus_id = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
                found.append((_bus_order(bus_id), _text(nvml.nvmlDeviceGetUUID(handle)), handle))
            except nvml.NVMLError as error:
                # Without its uuid it cannot be offered; the other GPUs are not to suffer for it.
                skipped.append(f"GPU {number} of the driver: {_in_words(error)}")
                _log.warning("left out: %s", skipped[-1])
        if not found:
            raise _none_found("; ".join(skipped) or "the NVIDIA driver is there, but names no GPU")
        found.sort(key=lambda one: one[0])
        return [self._open(nvml, index, uuid, handle) for index, (_, uuid, handle) in enumerate(found)]

    def _open(self, nvml: Any, index: int, uuid: str, handle: Any) -> _Gpu:
        try:
            model = _text(nvml.nvmlDeviceGetName(handle))
        except nvml.NVMLError:
            model = "NVIDIA GPU"
        try:
            memory = int(self._memory(handle).total)
        except nvml.NVMLError:
            memory = 0  # shared with the host, or already sick: the first reading says so
        info = DeviceInfo(uuid=uuid, index=index, node=self._node_name, model=model, memory_bytes=memory)
        return _Gpu(info, handle, events=self._watch_xids(nvml, handle))

    def _watch_xids(self, nvml: Any, handle: Any) -> Any:
        """An event set of this GPU alone, or None where there are no events to be had."""
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        try:
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlEventSetFree(events)
            return None
        return events

    # Reading one GPU

    def _required(self, look: _Look, ask: Callable[[], _T], otherwise: _T) -> _T:
        """An answer that a healthy GPU gives; failing that, a fault (unless this kind of GPU never tells)."""
        try:
            return ask()
        except self._nvml.NVMLError as error:
            if error.value != faults.NOT_SUPPORTED:
                look.add(_in_words(error))
            return otherwise

    def _optional(self, look: _Look, ask: Callable[[], int]) -> int:
        """An answer for show, -1 where there is none."""
        try:
            return ask()
        except self._nvml.NVMLError as error:
            if error.value in faults.SICK:
                look.add(_in_words(error))
            return -1

    def _memory(self, handle: Any) -> Any:
        try:
            # The second form leaves out what the driver keeps for itself.
            return self._nvml.nvmlDeviceGetMemoryInfo(handle, version=self._nvml.nvmlMemory_v2)
        except self._nvml.NVMLError as error:
            if error.value in faults.SICK:
                raise
            return self._nvml.nvmlDeviceGetMemoryInfo(handle)

    def _processes(self, handle: Any) -> tuple[ProcessReading, ...]:
        """Everybody on the GPU, by pid, less the ignored. Raises NVMLError."""
        memory: dict[int, int] = {}
        for names, required in ((_COMPUTE, True), (_GRAPHICS, False), (_MPS, False)):
            try:
                listed = self._list(names, handle)
            except self._nvml.NVMLError as error:
                if error.value in faults.SICK or (required and error.value != faults.NOT_SUPPORTED):
                    raise
                continue
            for entry in listed:
                # A process in two lists is told with the same memory in both.
                memory[int(entry.pid)] = max(memory.get(int(entry.pid), 0), int(entry.usedGpuMemory or 0))
        readings = (proc.describe(pid, used, self._proc_root) for pid, used in sorted(memory.items()))
        return tuple(reading for reading in readings if not self._ignored(reading.command))

    def _list(self, names: tuple[str, ...], handle: Any) -> list[Any]:
        """One of the driver's process lists, by the newest function that the driver has."""
        nvml = self._nvml
        names = tuple(name for name in names if hasattr(nvml, name))  # an old nvidia-ml-py has no second form
        for attempt in range(_LIST_ATTEMPTS):
            for name in names:
                try:
                    return list(getattr(nvml, name)(handle))
                except nvml.NVMLError as error:
                    if error.value == faults.FUNCTION_NOT_FOUND and name != names[-1]:
                        continue
                    # Processes came in between the question how many there are and the answer.
                    if error.value == faults.INSUFFICIENT_SIZE and attempt + 1 < _LIST_ATTEMPTS:
                        break
                    raise
        return []

    def _ignored(self, command: str) -> bool:
        return any(fnmatchcase(command, pattern) for pattern in self._ignore)

    def _poll_xids(self, gpu: _Gpu, look: _Look) -> None:
        nvml = self._nvml
        for _ in range(_MAX_EVENTS_A_READING if gpu.events is not None else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(gpu.events, 0)
            except nvml.NVMLError as error:
                if error.value in faults.SICK:
                    look.add(_in_words(error))
                break  # nothing more to tell
            if int(event.eventType) == nvml.nvmlEventTypeXidCriticalError:
                gpu.xid_fault = gpu.xid_fault or faults.xid_fault(int(event.eventData))
        look.add(gpu.xid_fault)

    def _check_memory_health(self, gpu: _Gpu, look: _Look) -> None:
        nvml = self._nvml
        errors = self._optional(
            look,
            lambda: int(
                nvml.nvmlDeviceGetTotalEccErrors(
                    gpu.handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                )
            ),
        )
        if errors >= 0:
            gpu.ecc_errors = errors
            gpu.ecc_accepted = min(gpu.ecc_accepted, errors)  # a reset starts the count afresh
        look.add(faults.ecc_fault(gpu.ecc_errors, gpu.ecc_accepted))
        pending = self._optional(look, lambda: int(nvml.nvmlDeviceGetRetiredPagesPendingStatus(gpu.handle)))
        remap_failed = self._optional(look, lambda: int(nvml.nvmlDeviceGetRemappedRows(gpu.handle)[3]))
        look.add(faults.retirement_fault(pages_pending=pending > 0, remap_failed=remap_failed > 0))

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        call = object()
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)


def _none_found(why: str) -> InventoryError:
    return InventoryError(
        f"no NVIDIA driver/GPU found ({why}). Give --simulate 8 to run with 8 simulated GPUs instead."
    )


def _in_words(error: Any) -> str:
    return faults.error_in_words(int(error.value), str(error))


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _bus_order(bus_id: str) -> tuple[int, ...]:
    """Sort key of "00000000:3B:00.0": domain, bus, device, function; the domain is written with 4 or 8 digits."""
    try:
        return tuple(int(part, 16) for part in bus_id.replace(".", ":").split(":"))
    except ValueError:
        return ()
