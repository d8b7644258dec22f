"""The GPUs: which exist, which may be handed out, and which ones a request gets."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from gpusched.scheduler.core import placement
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
    kept: JobId | None = None  # who waits for it and alone may have it next
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


class Pool:
    """All devices of all nodes.

    Args:
        nodes: what the inventory found, at start.
    """

    def __init__(self, nodes: Iterable[NodeInfo]) -> None:
        self.nodes: dict[str, Node] = {}
        self.devices: dict[str, Device] = {}
        self._place: dict[str, tuple[Node, int]] = {}
        self._eligible: dict[tuple[object, ...], frozenset[str]] = {}  # by all of a request but number and shape
        self._same: dict[frozenset[str], frozenset[str]] = {}  # one object for equal sets: there are few
        self._out_of_service: set[str] = set()  # drained, or not well or empty
        #: How many devices may be handed out now.
        self.free_total = 0
        self._held = 0
        self._kept: set[str] = set()  # devices that are kept for a job
        #: Counts the times that a device went out of service or came back.
        self.capacity_changes = 0
        for info in nodes:
            node = Node(info, [Device(device) for device in info.devices])
            self.nodes[info.name] = node
            for position, device in enumerate(node.devices):
                if device.uuid in self.devices:
                    raise ValueError(f"two devices have the uuid {device.uuid}")
                self.devices[device.uuid] = device
                self._place[device.uuid] = (node, position)
            node.available = list(range(len(node.devices)))
            self.free_total += len(node.devices)
        self._layout = placement.Layout(node.info for node in self.nodes.values())
        self._available = {name: node.available for name, node in self.nodes.items()}  # the very lists

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
        """True if it may be handed out now, to anybody."""
        return device.kept is None and self._is_ready(device)

    def _is_ready(self, device: Device) -> bool:
        return device.holder is None and device.condition is Condition.CLEAN and self.drain_reason(device) is None

    def eligible(self, request: Request) -> frozenset[str]:
        """Uuids of all devices that could ever serve in a grant of the request, busy or not."""
        constraint = (
            *(request.memory_bytes, request.model, request.node),
            *(request.nodes, request.gpu_ids, request.exclude, request.labels),
        )
        found = self._eligible.get(constraint)
        if found is None:
            found = self._find_eligible(request)
            found = self._same.setdefault(found, found)
            if len(self._eligible) >= _MAX_REMEMBERED:
                self._eligible.clear()
            self._eligible[constraint] = found
        return found

    def named(self, name: str) -> Device | None:
        """What a uuid, "node:index", or an index on the scheduler's own node means; None if there is no such device."""
        device = self.devices.get(name)
        if device is not None:
            return device
        node_name, colon, index = name.rpartition(":")
        if not (index.isascii() and index.isdigit() and len(index) <= 6):
            return None
        if colon:
            node = self.nodes.get(node_name)
        else:
            node = next((node for node in self.nodes.values() if node.info.local), None)
        return next((each for each in node.devices if each.info.index == int(index)), None) if node else None

    def _find_eligible(self, request: Request) -> frozenset[str]:
        only = {device.uuid for name in request.gpu_ids if (device := self.named(name))}
        # A node may be called like a GPU's index; then both are meant.
        never = {device.uuid for name in request.exclude if (device := self.named(name))}
        found = []
        for name, node in self.nodes.items():
            if request.node not in ("", name) or name in request.exclude:
                continue
            if request.nodes and name not in request.nodes:
                continue
            labels = [label for label in request.labels if node.info.labels.get(label[0]) != label[1]]
            found += [
                info.uuid
                for info in node.info.devices
                if info.memory_bytes >= request.memory_bytes
                and request.model in info.model.lower()
                and (not request.gpu_ids or info.uuid in only)
                and info.uuid not in never
                and all(label in info.labels for label in labels)
            ]
        return frozenset(found)

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

    def place(self, request: Request, free: Mapping[str, list[int]] | None = None) -> tuple[str, ...] | None:
        """Devices for a request, node by node in the order of their indices, or None if it cannot have all of them.

        Args:
            request: what is asked for.
            free: what is free: node name to the ascending positions in `Node.devices`; None for what is free now.
        """
        eligible = self.eligible(request)
        any_will_do = len(eligible) == len(self.devices)
        return placement.place(
            self._layout, self._available if free is None else free, request, None if any_will_do else eligible
        )

    def place_on_idle(self, request: Request, *, in_service: bool = False) -> tuple[str, ...] | None:
        """What it would get if nobody held anything; with `in_service`, of what nobody has to mend first."""
        free = {
            name: [p for p, device in enumerate(node.devices) if not in_service or self.in_service(device)]
            for name, node in self.nodes.items()
        }
        return self.place(request, free)

    # -- what if -----------------------------------------------------------------------------------------

    @property
    def all_in_service(self) -> bool:
        """True if no device is drained, foreign, dirty or unhealthy."""
        return not self._out_of_service

    def everything(self, uuids: frozenset[str]) -> bool:
        """True if these are all devices there are, and each is in service."""
        return not self._out_of_service and len(uuids) == len(self.devices)

    def count_of(self, devices: Iterable[str], uuids: frozenset[str]) -> int:
        """How many of some leased devices are among others, and will be of use when the lease ends."""
        return sum([uuid in uuids and uuid not in self._out_of_service for uuid in devices])

    def count_soon(self, uuids: frozenset[str]) -> int:
        """How many of some devices nobody holds and nobody has to mend: free, or about to be."""
        if len(uuids) == len(self.devices) and not self._out_of_service:
            return len(uuids) - self._held - sum(self.devices[u].holder is None for u in self._kept)
        devices, no = self.devices, self._out_of_service | self._kept
        return sum([devices[u].holder is None and u not in no for u in uuids])

    def free_soon(self) -> dict[str, list[int]]:
        """Positions of such devices by node, ascending."""
        return {
            name: [
                p
                for p, each in enumerate(node.devices)
                if each.holder is None and each.kept is None and self.in_service(each)
            ]
            for name, node in self.nodes.items()
        }

    def places_of(self, devices: Iterable[str]) -> list[tuple[str, int]]:
        """Node and position of some devices; those that are gone or that somebody must mend are left out."""
        found = []
        for uuid in devices:
            place = self._place.get(uuid)
            if place is not None and uuid not in self._out_of_service:
                found.append((place[0].info.name, place[1]))
        return found

    def at(self, places: Iterable[tuple[str, int]]) -> tuple[str, ...] | None:
        """The devices at some places if all of them may be handed out now, else None."""
        devices = [self.nodes[name].devices[position] for name, position in places]
        return tuple(device.uuid for device in devices) if all(map(self.is_available, devices)) else None

    def available_to(self, job: JobId) -> dict[str, list[int]]:
        """Positions of the devices that a job could be given now, by node: what is kept for it included."""
        mine = [uuid for uuid in self._kept if self.devices[uuid].kept == job and self._is_ready(self.devices[uuid])]
        return self.joined(self._available, mine)

    def available_but(self, uuids: Collection[str]) -> dict[str, list[int]]:
        """Positions of the devices that may be handed out now and are none of these, by node."""
        return {
            name: [position for position in node.available if node.devices[position].uuid not in uuids]
            for name, node in self.nodes.items()
        }

    def joined(self, free: Mapping[str, list[int]], devices: Iterable[str]) -> dict[str, list[int]]:
        """Free positions with these devices added, whatever state they are in."""
        out = dict(free)
        for uuid in devices:
            node, position = self._place[uuid]
            out[node.info.name] = sorted({*out[node.info.name], position})
        return out

    def with_(self, free: Mapping[str, list[int]], devices: Iterable[str]) -> dict[str, list[int]]:
        """Free positions when these devices have come back; those that somebody must mend do not count."""
        out = dict(free)
        for uuid in devices:
            found = self._place.get(uuid)
            if found is not None and uuid not in self._out_of_service:
                name = found[0].info.name
                out[name] = sorted({*out[name], found[1]})
        return out

    def without(self, free: Mapping[str, list[int]], devices: Iterable[str]) -> dict[str, list[int]]:
        """Free positions when somebody has these devices."""
        out = dict(free)
        for uuid in devices:
            found = self._place.get(uuid)
            if found is not None:
                name = found[0].info.name
                out[name] = [position for position in out[name] if position != found[1]]
        return out

    # -- changing ---------------------------------------------------------------------------------------

    def take(self, uuids: Iterable[str], job: JobId) -> None:
        """Give devices to a job. They must be available."""
        places = self._place
        for uuid in uuids:
            node, position = places[uuid]
            device = node.devices[position]
            available = node.available
            # What is handed out is mostly the first that is free.
            at = 0 if available and available[0] == position else bisect_left(available, position)
            if at == len(available) or available[at] != position:
                raise AssertionError(f"device {uuid} is {self.state(device).name}, not free for job {job}")
            del available[at]
            self.free_total -= 1
            self._held += 1
            device.holder = job

    def give_back(self, uuids: Iterable[str], condition: Condition) -> None:
        """End a hold. `condition` is CLEAN where nothing can have run, else CHECKING."""
        for uuid in uuids:
            node, position = self._place[uuid]
            device = node.devices[position]
            device.previous, device.holder = device.holder, None
            self._held -= 1
            if device.condition is not Condition.UNHEALTHY:
                device.condition, device.message = condition, ""
            usable = device.drained is None and device.kept is None
            if condition is Condition.CLEAN and not self._out_of_service and usable:
                insort(node.available, position)
                self.free_total += 1
            else:
                self._refresh(device)

    def claim(self, uuids: Iterable[str], job: JobId) -> None:
        """Give devices to a job that had them before a restart, whatever their condition."""
        for uuid in uuids:
            device = self.devices[uuid]
            if device.holder is not None:
                raise AssertionError(f"device {uuid} is leased to jobs {device.holder} and {job}")
            self._held += 1
            device.holder = job
            self._refresh(device)

    def keep(self, uuids: Iterable[str], job: JobId | None) -> None:
        """Have devices go to a job and to nobody else, now or when they come back; None: to anybody again."""
        for uuid in uuids:
            device = self.devices[uuid]
            device.kept = job
            if job is None:
                self._kept.discard(uuid)
            else:
                self._kept.add(uuid)
            self._refresh(device)

    def untake(self, uuids: Iterable[str]) -> None:
        """Undo a take that was only tried."""
        for uuid in uuids:
            device = self.devices[uuid]
            device.holder = None
            self._held -= 1
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
        if self.in_service(device) == (device.uuid in self._out_of_service):
            self._out_of_service ^= {device.uuid}
            self.capacity_changes += 1
        node, position = self._place[device.uuid]
        available = self.is_available(device)
        listed = position in node.available
        if available and not listed:
            insort(node.available, position)
            self.free_total += 1
        elif listed and not available:
            node.available.remove(position)
            self.free_total -= 1
