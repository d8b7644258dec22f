"""The GPUs of this machine, through NVIDIA's management library (NVML) by way of nvidia-ml-py.

Calls go straight to the driver and may hang with it, so nothing here holds a lock across one.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from gpusched.scheduler.core.model import DeviceInfo, DeviceReading, Holder, NodeInfo, Owner, ProcessReading
from gpusched.scheduler.inventory import faults, mig, proc, topology
from gpusched.scheduler.inventory.health import Board, Look, in_words
from gpusched.scheduler.inventory.hosts import this_host
from gpusched.scheduler.ports import InventoryError

_log = logging.getLogger(__name__)

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

_LIST_ATTEMPTS = 3
# Newer form first; the second is for drivers older than 510.
_COMPUTE = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
_GRAPHICS = ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2")
_MPS = ("nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2")


@dataclass(slots=True)
class _Gpu:
    """One device as the driver knows it: a whole GPU, or a MIG instance of one. `board` is what instances share."""

    info: DeviceInfo
    handle: Any
    board: Board


class NvmlInventory:
    """Real GPUs. Implements `ports.Inventory`; calls block, so make them off the event loop."""

    def __init__(
        self,
        ignore: frozenset[str] = DEFAULT_IGNORED,
        node_name: str = "",
        *,
        nvml: Any = None,
        proc_root: Path = proc.PROC,
        sys_root: Path = topology.SYS,
    ) -> None:
        """Prepare; the driver is not touched before `discover`.

        Args:
            ignore: names of processes that do not count as users of a GPU, exact or with `*` and `?`.
            node_name: name of this machine; empty for its host name.
            nvml: a module like `pynvml`; None for the real one.
            proc_root: where the proc file system is.
            sys_root: where sysfs is.
        """
        self._ignore = ignore
        self._node_name = node_name or socket.gethostname()
        self._nvml = nvml
        self._proc_root = proc_root
        self._sys_root = sys_root
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
                found, links = self._find(nvml)
                driver = _text(nvml.nvmlSystemGetDriverVersion())
            except nvml.NVMLError as error:
                raise _none_found(in_words(error)) from None
        self._gpus = {gpu.info.uuid: gpu for gpu in found}
        devices = tuple(gpu.info for gpu in found)
        cpus, memory = this_host()
        return (
            NodeInfo(
                self._node_name,
                devices,
                local=True,
                driver_version=driver,
                links=links,
                cpus=cpus,
                memory_bytes=memory,
            ),
        )

    def read(self, uuid: str) -> DeviceReading:
        """Everything about one GPU. What the driver will not tell is -1; a sick GPU has `fault` set.

        Raises KeyError for a GPU that `discover` did not find.
        """
        gpu = self._gpus[uuid]
        nvml, board = self._nvml, gpu.board
        look = Look(nvml)
        with self._calling():
            memory_used = look.required(lambda: int(self._memory(gpu.handle).used), -1)
            processes: tuple[ProcessReading, ...] = ()
            if not look.faults:
                processes = look.required(lambda: self._processes(gpu.handle), ())
            if look.faults:
                # Each further question to a GPU in this state may take seconds.
                board.poll_xids(look)
                return DeviceReading(uuid, memory_used_bytes=memory_used, fault="; ".join(look.faults))
            utilization = look.optional(lambda: int(nvml.nvmlDeviceGetUtilizationRates(gpu.handle).gpu))
            temperature = look.optional(
                lambda: int(nvml.nvmlDeviceGetTemperature(board.handle, nvml.NVML_TEMPERATURE_GPU))
            )
            milliwatts = look.optional(lambda: int(nvml.nvmlDeviceGetPowerUsage(board.handle)))
            board.poll_xids(look)
            board.check_memory(look)
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
                raise OSError(f"cannot tell what runs on GPU {gpu.info.index}: {in_words(error)}") from None

    def released(self, uuid: str, owner: Owner, holder: Holder | None) -> None:
        """Nothing to do: hardware notices by itself."""

    def clear_fault(self, uuid: str) -> None:
        """Forget an Xid and accept the memory errors counted so far; a fault that persists is found again.

        Raises KeyError for a GPU that `discover` did not find.
        """
        self._gpus[uuid].board.clear()

    def close(self) -> None:
        """Let go of the driver library; returns at once, even while a call hangs in the driver."""
        if not self._initialised:
            return
        self._initialised = False
        if self._calls:
            return  # shutting down would wait for the hung call; the kernel tidies up when we exit
        nvml = self._nvml
        for gpu in self._gpus.values():
            gpu.board.close()
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
                raise _none_found(in_words(error)) from None
            self._initialised = True
        return self._nvml

    def _find(self, nvml: Any) -> tuple[list[_Gpu], tuple[tuple[int, ...], ...]]:
        """All devices in order, and how they are connected. Raises InventoryError if there is none, and NVMLError."""
        found: list[tuple[tuple[int, ...], str, Any, str]] = []
        skipped: list[str] = []
        for number in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                bus_id = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
                found.append((_bus_order(bus_id), _text(nvml.nvmlDeviceGetUUID(handle)), handle, bus_id))
            except nvml.NVMLError as error:
                # Without its uuid it cannot be offered; the other GPUs are not to suffer for it.
                skipped.append(f"GPU {number} of the driver: {in_words(error)}")
                _log.warning("left out: %s", skipped[-1])
        found.sort(key=lambda one: one[0])
        gpus: list[_Gpu] = []
        for parent, (_, uuid, handle, bus_id) in enumerate(found):
            devices = self._open(nvml, len(gpus), parent, uuid, handle, bus_id)
            if not devices:
                skipped.append(f"GPU {parent}: MIG is on, and it has no instances")
                _log.warning("left out: %s", skipped[-1])
            gpus += devices
        if not gpus:
            raise _none_found("; ".join(skipped) or "the NVIDIA driver is there, but names no GPU")
        if any(gpu.info.parent >= 0 for gpu in gpus):
            return gpus, ()  # nothing connects MIG instances
        return gpus, topology.read_links(nvml, [(handle, bus_id) for _, _, handle, bus_id in found])

    def _open(self, nvml: Any, index: int, parent: int, uuid: str, handle: Any, bus_id: str) -> list[_Gpu]:
        """The devices that a GPU is, numbered from `index` on: itself, or its MIG instances."""
        try:
            model = _text(nvml.nvmlDeviceGetName(handle))
        except nvml.NVMLError:
            model = "NVIDIA GPU"
        board, numa = Board(nvml, handle), topology.numa_node(bus_id, self._sys_root)
        instances = mig.instances(nvml, handle, model)
        if instances is not None:
            return [
                _Gpu(
                    DeviceInfo(
                        uuid=instance.uuid,
                        index=index + number,
                        node=self._node_name,
                        model=instance.model,
                        memory_bytes=instance.memory_bytes,
                        numa=numa,
                        parent=parent,
                        labels=mig.device_labels(numa, instance.profile),
                    ),
                    instance.handle,
                    board,
                )
                for number, instance in enumerate(instances)
            ]
        try:
            memory = int(self._memory(handle).total)
        except nvml.NVMLError:
            memory = 0  # shared with the host, or already sick: the first reading says so
        labels = mig.device_labels(numa, "")
        info = DeviceInfo(uuid, index, self._node_name, model, memory, numa=numa, labels=labels)
        return [_Gpu(info, handle, board)]

    # Reading one GPU

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
        f"no NVIDIA driver/GPU found ({why}). To try it out without any: `gpusched serve --detach --simulate 8`."
    )


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _bus_order(bus_id: str) -> tuple[int, ...]:
    """Sort key of "00000000:3B:00.0": domain, bus, device, function; the domain is written with 4 or 8 digits."""
    try:
        return tuple(int(part, 16) for part in bus_id.replace(".", ":").split(":"))
    except ValueError:
        return ()
