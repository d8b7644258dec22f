"""What jobs ask for and what machines have: plain immutable values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class Owner:
    """The user a job belongs to, as the kernel told."""

    uid: int
    name: str


class Placement(Enum):
    """How to choose among nodes."""

    PACK = "pack"  # as few nodes as can be, and of those that hold it the fullest
    SPREAD = "spread"  # over the emptiest nodes, one GPU on each as far as they go round
    CONSOLIDATE = "consolidate"  # one node, or wholly free ones and a rest; waits rather than be scattered


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks for, all or nothing. Equal requests are interchangeable to the planner.

    All conditions hold together. Several names of one thing are kept sorted, so that equal requests compare equal.

    Attributes:
        gpus: how many, at least 1; 0 where only something of a host is asked for.
        memory_bytes: least total memory of each GPU, 0 for any; of shared ones, how much of it the job takes.
        model: text that each GPU's model contains, lower case, empty for any.
        node: the only node that will do, empty for any.
        nodes: names of the nodes that will do, empty for any.
        gpu_ids: the GPUs that will do: a uuid, "node:index", or an index on the scheduler's own node; empty for any.
        exclude: nodes by name, and GPUs as in `gpu_ids`, that will not do.
        labels: (key, value) pairs, each of which the GPU's node or the GPU itself must have.
        per_node: exactly so many on each node that is used, 0 for any number; `gpus` is a multiple of it.
        placement: how to choose among nodes.
        shared: others may be on the same GPUs, as far as their memory goes.
        cpus: cores on each node that is used, 0 for none in particular.
        host_bytes: memory of the host on each node that is used, 0 for none in particular.
        sharer: uid of the job's owner where `shared`, put there by the engine; -1 elsewhere.
        spelled_model: the model as it was written, for messages alone; empty where nobody knows.
    """

    gpus: int
    memory_bytes: int = 0
    model: str = ""
    node: str = ""
    nodes: tuple[str, ...] = ()
    gpu_ids: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    per_node: int = 0
    placement: Placement = Placement.PACK
    shared: bool = False
    cpus: int = 0
    host_bytes: int = 0
    sharer: int = -1
    spelled_model: str = field(default="", compare=False)
    #: Whether more than whole GPUs is asked for: shares of them, or something of their hosts.
    counted: bool = field(init=False, repr=False, compare=False)
    #: How many GPUs must be wholly free at the least.
    whole_gpus: int = field(init=False, repr=False, compare=False)
    #: Whether enough free GPUs may still be too few, for how they lie on the nodes.
    shaped: bool = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "counted", self.shared or self.cpus > 0 or self.host_bytes > 0)
        put(self, "whole_gpus", 0 if self.shared else self.gpus)
        put(self, "shaped", self.per_node > 0 or self.counted or self.placement is Placement.CONSOLIDATE)
        # A request is looked up at every step of its job's way; the fields that tell most requests apart come first.
        where = (self.memory_bytes, self.model, self.node, self.nodes, self.gpu_ids, self.exclude, self.labels)
        how = (self.per_node, self.placement.value, self.shared, self.cpus, self.host_bytes, self.sharer)
        put(self, "_hash", hash((self.gpus, where, how)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Holder:
    """The process at the client end of a lease: pid and start time in clock ticks since boot."""

    pid: int
    start_ticks: int = 0


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A schedulable GPU, as found once.

    Attributes:
        uuid: NVML's stable name.
        index: number on its node in PCI bus order.
        node: name of its node.
        model: product name.
        memory_bytes: total memory.
        simulated: True if it exists only in simulation.
        numa: the NUMA node that it is nearest to, -1 if unknown.
        parent: for a MIG instance the number of its GPU in PCI bus order, -1 for a whole GPU.
        labels: (key, value) pairs of its own, besides those of its node.
    """

    uuid: str
    index: int
    node: str
    model: str
    memory_bytes: int
    simulated: bool = False
    numa: int = -1
    parent: int = -1
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A machine and its GPUs, in index order. `local` is the one that the scheduler runs on.

    Attributes:
        labels: what requests may ask for, by key.
        links: how well each two GPUs are connected, a row for each, by index: 100 for each NVLink, and on top (where
            no NVSwitch makes that irrelevant) 60 for one board, 50 for one PCIe switch, 40 for several, 30 for one
            host bridge, 20 for one CPU, 10 for different ones. Empty: unknown, all alike.
        cpus: cores that jobs may be given, 0 if none are counted.
        memory_bytes: memory of the host that jobs may be given, 0 if none is counted.
    """

    name: str
    devices: tuple[DeviceInfo, ...]
    local: bool = True
    driver_version: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    links: tuple[tuple[int, ...], ...] = ()
    cpus: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """A process seen on a GPU.

    Attributes:
        pid: process id on the node.
        start_ticks: its start time in clock ticks since boot, 0 if unknown.
        uid: its owner, -1 if unknown.
        user: the owner's name, "?" if unknown.
        command: short command name, no arguments.
        memory_bytes: memory it holds on this GPU, 0 if unknown.
        ancestors: (pid, start_ticks) of itself, its parent and so on up to pid 1; empty if unknown.
    """

    pid: int
    start_ticks: int = 0
    uid: int = -1
    user: str = "?"
    command: str = "?"
    memory_bytes: int = 0
    ancestors: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One look at a GPU. Numbers are -1 where the device does not tell.

    Attributes:
        memory_used_bytes: memory in use by anything.
        utilization_percent: share of time busy, 0 to 100.
        temperature_celsius: of the chip.
        power_watts: drawn now.
        processes: what sits on it, less the ignored ones (display servers, MPS, monitors).
        fault: why the GPU must not be handed out, in words; empty when it is well.
    """

    uuid: str
    memory_used_bytes: int = -1
    utilization_percent: int = -1
    temperature_celsius: int = -1
    power_watts: float = -1.0
    processes: tuple[ProcessReading, ...] = ()
    fault: str = ""


class Condition(Enum):
    """What the last look said about a GPU that no lease holds (or that one does, for faults)."""

    CLEAN = "clean"
    CHECKING = "checking"  # released, not looked at yet
    DIRTY = "dirty"  # the old holder's process still sits on it
    FOREIGN = "foreign"  # a process under no lease sits on it
    UNHEALTHY = "unhealthy"
