"""The GPUs: which exist, which may be handed out, and which ones a request gets."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.model import Condition, DeviceInfo, NodeInfo, Request

#: So many answers to "which devices could serve?" are remembered; the questions are the callers' to choose.
_MAX_REMEMBERED = 4096


class DeviceState(Enum):
    """What a user is told about a GPU; derived, so that it cannot disagree with the facts."""

    FREE = "free"
    ALLOCATED = "allocated"
    CHECKING = "checking"
    DIRTY = "dirty"
    FOREIGN = "foreign"
    UNHEALTHY = "unhealthy"
    DRAINED = "drained"


@dataclass(slots=True, eq=False)
class Device:
    """A GPU as the engine knows it. Only the engine changes it, through the pool."""

    info: DeviceInfo
    condition: Condition = Condition.CLEAN
    message: str = ""
    drained: str | None = None  # the reason, None if in service
    holder: JobId | None = None
    previous: JobId | None = None  # who had it last
    warned: JobId | None = None  # the holder that was told of a foreign process on it

    @property
    def uuid(self) -> str:
        return self.info.uuid


@dataclass(slots=True, eq=False)
class Node:
    info: NodeInfo
    devices: list[Device] = field(default_factory=list)  # by index
    drained: str | None = None
    #: Positions in `devices` of those that may be handed out now, ascending.
    available: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Constraint:
    memory_bytes: int
    model: str
    node: str


class Pool:
    """All devices of all nodes.

    Args:
        nodes: what the inventory found, at start.
    """

    def __init__(self, nodes: Iterable[NodeInfo]) -> None:
        self.nodes: dict[str, Node] = {}
        self.devices: dict[str, Device] = {}
        self._place: dict[str, tuple[Node, int]] = {}
        self._eligible: dict[_Constraint, frozenset[str]] = {}
        self._same: dict[frozenset[str], frozenset[str]] = {}  # one object for equal sets: there are few
        self._out_of_service: set[str] = set()  # drained, or not well or empty
        for info in nodes:
            node = Node(info, [Device(device) for device in info.devices])
            self.nodes[info.name] = node
            for position, device in enumerate(node.devices):
                if device.uuid in self.devices:
                    raise ValueError(f"two devices have the uuid {device.uuid}")
                self.devices[device.uuid] = device
                self._place[device.uuid] = (node, position)
            node.available = list(range(len(node.devices)))

    # -- what is there ---------------------------------------------------------------------------------

    def node_of(self, device: Device) -> Node:
        return self._place[device.uuid][0]

    def state(self, device: Device) -> DeviceState:
        """The state shown to people: the strongest reason that keeps it from being handed out."""
        if device.holder is not None:
            return DeviceState.ALLOCATED
        if device.condition is Condition.UNHEALTHY:
            return DeviceState.UNHEALTHY
        if self.drain_reason(device) is not None:
            return DeviceState.DRAINED
        match device.condition:
            case Condition.CLEAN:
                return DeviceState.FREE
            case Condition.CHECKING:
                return DeviceState.CHECKING
            case Condition.DIRTY:
                return DeviceState.DIRTY
            case Condition.FOREIGN:
                return DeviceState.FOREIGN
            case _:
                assert_never(device.condition)

    def drain_reason(self, device: Device) -> str | None:
        """Why it is out of service, by itself or with its node; None if it is in service."""
        return device.drained if device.drained is not None else self.node_of(device).drained

    def is_available(self, device: Device) -> bool:
        """True if it may be handed out now."""
        return device.holder is None and device.condition is Condition.CLEAN and self.drain_reason(device) is None

    def eligible(self, request: Request) -> frozenset[str]:
        """Uuids of all devices that could ever serve in a grant of the request, busy or not."""
        constraint = _Constraint(request.memory_bytes, request.model, request.node)
        found = self._eligible.get(constraint)
        if found is None:
            found = frozenset(
                device.uuid
                for name, node in self.nodes.items()
                if not request.node or name == request.node
                for device in node.devices
                if device.info.memory_bytes >= request.memory_bytes and request.model in device.info.model.lower()
            )
            found = self._same.setdefault(found, found)
            if len(self._eligible) >= _MAX_REMEMBERED:
                self._eligible.clear()
            self._eligible[constraint] = found
        return found

    def serviceable(self, request: Request) -> int:
        """How many eligible devices are free now or will be without anybody mending anything."""
        return self.count_serviceable(self.eligible(request))

    def count_serviceable(self, uuids: frozenset[str]) -> int:
        """How many of some devices are free now or will be without anybody mending anything."""
        return len(uuids) - len(uuids & self._out_of_service)

    def in_service(self, device: Device) -> bool:
        """True if it is free or will be without anybody mending anything."""
        return device.condition in (Condition.CLEAN, Condition.CHECKING) and self.drain_reason(device) is None

    def free(self, request: Request) -> int:
        """How many eligible devices may be handed out now."""
        return sum(1 for uuid in self.eligible(request) if self.is_available(self.devices[uuid]))

    # -- choosing ---------------------------------------------------------------------------------------

    def place(self, request: Request) -> tuple[str, ...] | None:
        """Devices for a request, in the order of their indices, or None if it cannot have all of them now.

        Fewest nodes first; among nodes that hold it whole the one with the least left over; among equal
        ones the earliest. Lowest indices within a node.
        """
        eligible = self.eligible(request)
        # A node may be gone that a job kept from before a restart asks for.
        nodes = [node for name, node in self.nodes.items() if request.node in ("", name)]
        whole = len(eligible) == len(self.devices)
        choices: list[tuple[Node, list[int]]] = []
        for node in nodes:
            positions = node.available
            if not whole:
                positions = [p for p in positions if node.devices[p].uuid in eligible]
            if positions:
                choices.append((node, positions))
        fitting = [choice for choice in choices if len(choice[1]) >= request.gpus]
        if fitting:
            node, positions = min(fitting, key=lambda choice: len(choice[1]))
            return tuple(node.devices[p].uuid for p in positions[: request.gpus])
        if sum(len(positions) for _, positions in choices) < request.gpus:
            return None
        chosen: list[str] = []
        for node, positions in sorted(choices, key=lambda choice: -len(choice[1])):
            chosen += [node.devices[p].uuid for p in positions[: request.gpus - len(chosen)]]
        return tuple(chosen)

    # -- changing ---------------------------------------------------------------------------------------

    def take(self, uuids: Iterable[str], job: JobId) -> None:
        """Give devices to a job. They must be available."""
        for uuid in uuids:
            device = self.devices[uuid]
            if not self.is_available(device):
                raise AssertionError(f"device {uuid} is {self.state(device).name}, not free for job {job}")
            device.holder = job
            self._refresh(device)

    def give_back(self, uuids: Iterable[str], condition: Condition) -> None:
        """End a hold. `condition` is CLEAN where nothing can have run, else CHECKING."""
        for uuid in uuids:
            device = self.devices[uuid]
            device.previous, device.holder = device.holder, None
            if device.condition is not Condition.UNHEALTHY:
                device.condition, device.message = condition, ""
            self._refresh(device)

    def claim(self, uuids: Iterable[str], job: JobId) -> None:
        """Give devices to a job that had them before a restart, whatever their condition."""
        for uuid in uuids:
            device = self.devices[uuid]
            if device.holder is not None:
                raise AssertionError(f"device {uuid} is leased to jobs {device.holder} and {job}")
            device.holder = job
            self._refresh(device)

    def untake(self, uuids: Iterable[str]) -> None:
        """Undo a take that was only tried."""
        for uuid in uuids:
            device = self.devices[uuid]
            device.holder = None
            self._refresh(device)

    def observe(self, uuid: str, condition: Condition, message: str) -> bool:
        """Write down what was seen. Returns True if anything changed."""
        device = self.devices[uuid]
        if (device.condition, device.message) == (condition, message):
            return False
        device.condition, device.message = condition, message
        self._refresh(device)
        return True

    def drain(self, uuids: Iterable[str], reason: str | None) -> None:
        """Take devices out of service, or (None) put them back."""
        for uuid in uuids:
            self.devices[uuid].drained = reason
            self._refresh(self.devices[uuid])

    def drain_node(self, name: str, reason: str | None) -> None:
        """Take a node out of service, or (None) put it back."""
        node = self.nodes[name]
        node.drained = reason
        for device in node.devices:
            self._refresh(device)

    def _refresh(self, device: Device) -> None:
        if self.in_service(device):
            self._out_of_service.discard(device.uuid)
        else:
            self._out_of_service.add(device.uuid)
        node, position = self._place[device.uuid]
        available = self.is_available(device)
        listed = position in node.available
        if available and not listed:
            insort(node.available, position)
        elif listed and not available:
            node.available.remove(position)
