"""GPUs that exist only here: for demos, tests and machines without any. Everything but the hardware is real."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gpusched.scheduler.core.model import DeviceInfo, DeviceReading, Holder, NodeInfo, Owner, ProcessReading
from gpusched.scheduler.inventory import proc, topologies
from gpusched.scheduler.inventory.hosts import SIMULATED_CPUS, SIMULATED_MEMORY_BYTES
from gpusched.scheduler.inventory.mig import device_labels
from gpusched.scheduler.inventory.specs import SimulatedKind, parse_spec

__all__ = ["LINGERING_MEMORY_BYTES", "SimulatedInventory", "parse_spec"]

LINGERING_MEMORY_BYTES = 1024**3

_IDLE_CELSIUS, _BUSY_CELSIUS = 32, 72
_IDLE_WATTS, _BUSY_WATTS = 70.0, 650.0


@dataclass(slots=True)
class _Gpu:
    """One simulated GPU and what it was told to pretend."""

    info: DeviceInfo
    utilization: int = 0
    processes: tuple[ProcessReading, ...] = ()
    fault: str = ""
    linger_seconds: float = 0.0
    hang: bool = False
    real_pids: set[int] = field(default_factory=set)  # of those processes, the ones that this machine really has
    lingering: list[tuple[float, ProcessReading]] = field(default_factory=list)  # until when, who


class SimulatedInventory:
    """Simulated GPUs. Implements `ports.Inventory`; calls return at once."""

    def __init__(self, spec: str, node_name: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Make the GPUs.

        Args:
            spec: how many and of what kind, as `specs.parse_spec` takes it.
            node_name: name of the first node, which counts as this machine; others get -2, -3… behind it.
            monotonic: a clock in seconds, by which processes stop lingering.

        Raises ValueError for a spec of no allowed form.
        """
        self._monotonic = monotonic
        self._nodes = tuple(
            _node(node_name if number == 1 else f"{node_name}-{number}", kinds, local=number == 1)
            for number, kinds in enumerate(parse_spec(spec), start=1)
        )
        self._gpus = {info.uuid: _Gpu(info) for node in self._nodes for info in node.devices}

    @property
    def mode(self) -> str:
        """Always `simulated`."""
        return "simulated"

    @property
    def blocking(self) -> bool:
        """Always False."""
        return False

    def discover(self) -> tuple[NodeInfo, ...]:
        """All nodes with their GPUs."""
        return self._nodes

    def read(self, uuid: str) -> DeviceReading:
        """What the GPU pretends. Raises TimeoutError while it pretends to hang, KeyError for an unknown GPU."""
        gpu = self._gpus[uuid]
        processes = self.processes(uuid)
        busy = gpu.utilization / 100
        return DeviceReading(
            uuid=uuid,
            memory_used_bytes=sum(process.memory_bytes for process in processes),
            utilization_percent=gpu.utilization,
            temperature_celsius=round(_IDLE_CELSIUS + busy * (_BUSY_CELSIUS - _IDLE_CELSIUS)),
            power_watts=_IDLE_WATTS + busy * (_BUSY_WATTS - _IDLE_WATTS),
            processes=processes,
            fault=gpu.fault,
        )

    def processes(self, uuid: str) -> tuple[ProcessReading, ...]:
        """Processes set by `set_gpu`, and those that linger. Raises TimeoutError and KeyError as `read`."""
        gpu = self._gpus[uuid]
        if gpu.hang:
            raise TimeoutError(f"GPU {gpu.info.index} does not answer (simulated)")
        if gpu.lingering:
            now = self._monotonic()
            gpu.lingering = [(until, process) for until, process in gpu.lingering if until > now]
        gpu.processes = tuple(p for p in gpu.processes if p.pid not in gpu.real_pids or _still_runs(p))
        # A process that was set as well is the same one, and counts once.
        return tuple({process.pid: process for process in (*(p for _, p in gpu.lingering), *gpu.processes)}.values())

    def released(self, uuid: str, owner: Owner, holder: Holder | None) -> None:
        """A lease ended: where the GPU is set to, the holder's process stays on it for a while."""
        gpu = self._gpus[uuid]
        if gpu.linger_seconds <= 0 or holder is None:
            return
        process = ProcessReading(
            pid=holder.pid,
            start_ticks=holder.start_ticks,
            uid=owner.uid,
            user=owner.name,
            command="python",
            memory_bytes=LINGERING_MEMORY_BYTES,
            ancestors=((holder.pid, holder.start_ticks),),
        )
        gpu.lingering.append((self._monotonic() + gpu.linger_seconds, process))

    def set_gpu(
        self,
        uuid: str,
        *,
        utilization: int | None = None,
        processes: tuple[ProcessReading, ...] | None = None,
        fault: str | None = None,
        linger_seconds: float | None = None,
        hang: bool | None = None,
    ) -> None:
        """Make a GPU pretend; what is None stays as it was.

        Args:
            uuid: which GPU.
            utilization: percent busy, 0 to 100.
            processes: what sits on it, in place of those set before. A pid of this machine without a start time
                gets that process's real start, owner and ancestors, and is gone from the GPU when it ends.
            fault: why it is broken, empty for well.
            linger_seconds: how long a holder's process stays after each later release, 0 for not at all.
            hang: whether readings fail as if the GPU did not answer.

        Raises:
            KeyError: no such GPU.
            ValueError: a number is out of range; nothing is changed then.
        """
        gpu = self._gpus[uuid]
        if utilization is not None and not 0 <= utilization <= 100:
            raise ValueError(f"utilization is a percentage from 0 to 100, not {utilization}")
        if linger_seconds is not None and not 0 <= linger_seconds < float("inf"):
            raise ValueError(f"linger is a number of seconds from 0 up, not {linger_seconds}")
        if utilization is not None:
            gpu.utilization = utilization
        if processes is not None:
            gpu.processes = tuple(map(_as_it_is, processes))
            gpu.real_pids = {new.pid for new, old in zip(gpu.processes, processes, strict=True) if new is not old}
        if fault is not None:
            gpu.fault = fault
        if linger_seconds is not None:
            gpu.linger_seconds = linger_seconds
        if hang is not None:
            gpu.hang = hang

    def clear_fault(self, uuid: str) -> None:
        """Make a GPU well again. Raises KeyError for an unknown GPU."""
        self._gpus[uuid].fault = ""

    def close(self) -> None:
        """Nothing to let go of."""


def _as_it_is(process: ProcessReading) -> ProcessReading:
    """A process with what is true of its pid on this machine, or as it is where there is no such pid."""
    if process.start_ticks:
        return process
    real = proc.describe(process.pid)
    if not real.start_ticks:
        return process
    return replace(
        real,
        user=process.user if process.user != "?" else real.user,
        command=process.command if process.command != "?" else real.command,
        memory_bytes=process.memory_bytes,
    )


def _still_runs(process: ProcessReading) -> bool:
    stat = proc.read_stat(process.pid)
    return stat is not None and stat.start_ticks == process.start_ticks


def _node(name: str, kinds: tuple[SimulatedKind, ...], *, local: bool) -> NodeInfo:
    devices = tuple(
        DeviceInfo(
            uuid=f"{'MIG' if kind.mig else 'GPU'}-sim-{name}-{index}",
            index=index,
            node=name,
            model=kind.model,
            memory_bytes=kind.memory_bytes,
            simulated=True,
            numa=topologies.numa_node(kind.part),
            parent=kind.parent,
            labels=device_labels(topologies.numa_node(kind.part), kind.mig),
        )
        for index, kind in enumerate(kinds)
    )
    links = topologies.links([kind.part for kind in kinds], [bool(kind.mig) for kind in kinds])
    count = len(devices)
    return NodeInfo(
        name,
        devices,
        local=local,
        links=links,
        cpus=count * SIMULATED_CPUS,
        memory_bytes=count * SIMULATED_MEMORY_BYTES,
    )
