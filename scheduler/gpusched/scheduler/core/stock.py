"""The GPUs and their hosts: which exist, in what condition they are, and who has them. Only the engine changes them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, assert_never

from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.model import Condition, DeviceInfo, NodeInfo
from gpusched.scheduler.core.sharing import HOST, Grant, Host, Rules, Share


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
    """A GPU as the engine knows it."""

    info: DeviceInfo
    condition: Condition = Condition.CLEAN
    message: str = ""
    drained: str | None = None  # the reason, None if in service
    holder: JobId | None = None  # who has all of it
    #: Who has parts of it, in the order in which they came; none while somebody has all of it.
    shares: dict[JobId, Share] = field(default_factory=dict)
    #: Of those, who takes more than that, and how much, in bytes.
    over: dict[JobId, int] = field(default_factory=dict)
    kept: JobId | None = None  # who waits for it and alone may have it next
    previous: JobId | None = None  # who had it last
    #: The holders that were told of a foreign process on it.
    warned: set[JobId] = field(default_factory=set)

    @property
    def uuid(self) -> str:
        return self.info.uuid

    @property
    def held(self) -> bool:
        """Whether anybody has any of it."""
        return self.holder is not None or bool(self.shares)

    @property
    def holders(self) -> tuple[JobId, ...]:
        """Everybody who has any of it."""
        return tuple(self.shares) if self.holder is None else (self.holder,)


@dataclass(slots=True, eq=False)
class Node:
    info: NodeInfo
    devices: list[Device] = field(default_factory=list)  # by index
    drained: str | None = None
    #: Positions in `devices` of those that may be handed out now as a whole, ascending.
    available: list[int] = field(default_factory=list)
    #: Cores and bytes of memory that jobs have of it; more than there are only if it has shrunk since.
    taken: Host = Host(0, 0)  # noqa: RUF009 - immutable

    @property
    def left(self) -> Host:
        """What its host still has to give."""
        return Host(self.info.cpus, self.info.memory_bytes).less(*self.taken)


#: Positions of devices, node by node.
Places: TypeAlias = list[tuple[Node, list[int]]]


class Stock:
    """All devices of all nodes.

    Args:
        nodes: what the inventory found, at start.
        rules: of shares.
    """

    def __init__(self, nodes: Iterable[NodeInfo], rules: Rules = Rules()) -> None:  # noqa: B008 - immutable
        self.rules = rules
        self.nodes: dict[str, Node] = {}
        self.devices: dict[str, Device] = {}
        self._place: dict[str, tuple[Node, int]] = {}
        #: Of each device, its position in its node.
        self._position: dict[str, int] = {}
        #: Where the whole devices are that jobs took.
        self._taken: dict[JobId, Places] = {}
        self._out_of_service: set[str] = set()  # drained, or not well or empty
        #: True if no device is drained, foreign, dirty or unhealthy.
        self.all_in_service = True
        #: How many devices may be handed out now as a whole.
        self.free_total = 0
        self._held = 0
        self._kept: set[str] = set()  # devices that are kept for a job
        #: Devices that jobs share.
        self.divided: set[str] = set()
        #: What jobs have that have more or less than whole devices.
        self.grants: dict[JobId, Grant] = {}
        #: Shared devices, and hosts (HOST before the node's name), given out before a restart by other rules.
        self.oversold: set[str] = set()
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
                self._position[device.uuid] = position
            node.available = list(range(len(node.devices)))
            self.free_total += len(node.devices)
        self._available = {name: node.available for name, node in self.nodes.items()}  # the very lists

    # -- what is there ---------------------------------------------------------------------------------

    def node_of(self, device: Device) -> Node:
        return self._place[device.uuid][0]

    def state(self, device: Device) -> DeviceState:
        """The state shown to people: the strongest reason that keeps it from being handed out."""
        if device.held:
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
        """True if it may be handed out now as a whole, to anybody."""
        return device.kept is None and self._is_ready(device)

    def _is_ready(self, device: Device) -> bool:
        return not device.held and device.condition is Condition.CLEAN and self.drain_reason(device) is None

    def may_share(self, device: Device) -> bool:
        """True if jobs share it and more of it may be handed out now, as far as there is more."""
        if not device.shares or device.kept is not None or device.condition is not Condition.CLEAN:
            return False
        return self.drain_reason(device) is None

    def left_of(self, device: Device) -> int:
        """Bytes of a device that further shares may take."""
        return self.rules.left(device.info, device.shares.values())

    def in_service(self, device: Device) -> bool:
        """True if it is free or will be without anybody mending anything."""
        return device.condition in (Condition.CLEAN, Condition.CHECKING) and self.drain_reason(device) is None

    # -- changing ---------------------------------------------------------------------------------------

    def take(self, uuids: Sequence[str], job: JobId) -> None:
        """Give devices to a job, or as much of them and their hosts as a grant says. They must be available."""
        if isinstance(uuids, Grant):
            self._take_grant(uuids, job)
            if uuids.memory:
                return
        places = self._taken[job] = self._by_node(uuids)
        for node, positions in places:
            available, devices, count = node.available, node.devices, len(positions)
            if available[:count] == positions:
                # What is handed out is mostly the first that is free.
                del available[:count]
            else:
                for position in positions:
                    at = bisect_left(available, position)
                    if at == len(available) or available[at] != position:
                        device = devices[position]
                        raise AssertionError(f"device {device.uuid} is {self.state(device).name}, not free for {job}")
                    del available[at]
            for device in map(devices.__getitem__, positions):
                device.holder = job
            self.free_total -= count
            self._held += count

    def _by_node(self, uuids: Sequence[str]) -> Places:
        """Positions of some devices, node by node."""
        if len(self.nodes) == 1:
            (node,) = self.nodes.values()
            return [(node, list(map(self._position.__getitem__, uuids)))]
        places = self._place
        found: dict[str, tuple[Node, list[int]]] = {}
        for uuid in uuids:
            node, position = places[uuid]
            found.setdefault(node.info.name, (node, []))[1].append(position)
        return list(found.values())

    def give_back(self, uuids: Sequence[str], condition: Condition, job: JobId = JobId(0)) -> None:  # noqa: B008
        """End a job's hold. `condition` is CLEAN where nothing can have run, else CHECKING."""
        taken = self._taken.pop(job, None)
        if job in self.grants and self._end_grant(job, condition):
            return
        self._held -= len(uuids)
        # All devices are in service and nobody's; then the list of those that are free is put in order but once.
        simple = condition is Condition.CLEAN and not self._out_of_service and not self._kept
        for node, positions in taken or self._by_node(uuids):
            for device in map(node.devices.__getitem__, positions):
                device.previous, device.holder = device.holder, None
                if device.warned:
                    device.warned.clear()
                if device.condition is not condition and device.condition is not Condition.UNHEALTHY:
                    device.condition, device.message = condition, ""
                if not simple:
                    self._refresh(device)
            if simple:
                node.available += positions
                node.available.sort()
                self.free_total += len(positions)

    def claim(self, uuids: Iterable[str], job: JobId) -> None:
        """Give devices, or a grant, to a job that had them before a restart, whatever their condition."""
        if isinstance(uuids, Grant):
            self._take_grant(uuids, job, again=True)
            if uuids.memory:
                return
        for uuid in uuids:
            device = self.devices[uuid]
            if device.held:
                raise AssertionError(f"device {uuid} is leased to jobs {device.holders} and {job}")
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

    def untake(self, uuids: Iterable[str], job: JobId) -> None:
        """Undo a job's take that was only tried."""
        self._taken.pop(job, None)
        if job in self.grants and self._end_grant(job, None):
            return
        for uuid in uuids:
            device = self.devices[uuid]
            device.holder = None
            self._held -= 1
            self._refresh(device)

    def _take_grant(self, grant: Grant, job: JobId, *, again: bool = False) -> None:
        """What a grant has beside whole devices; `again` after a restart, whatever has become of them."""
        self.grants[job] = grant
        for name in grant.nodes:
            node = self.nodes.get(name)
            if node is not None:
                if not again and not node.left.holds(grant.cpus, grant.host_bytes):
                    raise AssertionError(f"node {name} has {node.left}, too little for job {job}")
                node.taken = node.taken.less(-grant.cpus, -grant.host_bytes)
                if min(node.left) < 0:
                    self.oversold.add(HOST + name)
        if not grant.memory:
            return
        share = Share(grant.sharer, grant.memory)
        for uuid in grant:
            device = self.devices[uuid]
            shares = tuple(device.shares.values())
            fits = self.may_share(device) or self.is_available(device)
            if device.holder is not None or not (
                again or (fits and self.rules.admits(device.info, shares, *share[::-1]))
            ):
                raise AssertionError(f"device {uuid} is {self.state(device).name}, with {shares}, for job {job}")
            if not self.rules.admits(device.info, shares, share.memory, share.sharer):
                self.oversold.add(uuid)
            self._held += not device.shares
            device.shares[job] = share
            self.divided.add(uuid)
            self._refresh(device)

    def _end_grant(self, job: JobId, condition: Condition | None) -> bool:
        """Give back what a grant has beside whole devices. Returns whether it has no whole ones.

        Args:
            condition: that the devices are in now, None for as before.
        """
        grant = self.grants.pop(job)
        for name in grant.nodes:
            node = self.nodes.get(name)
            if node is not None:
                node.taken = node.taken.less(grant.cpus, grant.host_bytes)
                if min(node.left) >= 0:
                    self.oversold.discard(HOST + name)
        if not grant.memory:
            return len(grant) == 0
        for uuid in grant:
            device = self.devices[uuid]
            del device.shares[job]
            device.over.pop(job, None)
            device.warned.discard(job)
            if not device.shares:
                self._held -= 1
                self.divided.discard(uuid)
                self.oversold.discard(uuid)
            if condition is not None:
                device.previous = job
                if device.condition is not Condition.UNHEALTHY:
                    device.condition, device.message = condition, ""
            self._refresh(device)
        return True

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
            self.all_in_service = not self._out_of_service
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
