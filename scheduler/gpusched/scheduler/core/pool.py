"""What a request may have: which devices would do, which it gets, and what if others came back or went."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from gpusched.scheduler.core import placement, sharing
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.model import DeviceInfo, NodeInfo, Request
from gpusched.scheduler.core.sharing import HOST, Grant, Host, Room, Rules
from gpusched.scheduler.core.stock import Device, DeviceState, Node, Stock

__all__ = ["Device", "DeviceState", "Grant", "Node", "Pool", "Room", "Rules"]

#: So many answers to "which devices could serve?" are remembered; the questions are the callers' to choose.
_MAX_REMEMBERED = 4096


class Pool(Stock):
    """All devices of all nodes, and what may be asked of them.

    What is free is told as positions of wholly free devices by node. As soon as anybody has asked for a share of a
    device, or something of a host, it is a `Room`, which has the rest as well.

    Args:
        nodes: what the inventory found, at start.
        rules: of shares.
    """

    def __init__(self, nodes: Iterable[NodeInfo], rules: Rules = Rules()) -> None:  # noqa: B008 - immutable
        super().__init__(nodes, rules)
        self._eligible: dict[Request, frozenset[str]] = {}
        self._same: dict[frozenset[str], frozenset[str]] = {}  # one object for equal sets: there are few
        self._layout = placement.Layout(node.info for node in self.nodes.values())
        #: Whether the GPUs of a node are whole ones, so that CUDA numbers them as we do.
        self.numbered = {
            name: all(device.info.parent < 0 for device in node.devices) for name, node in self.nodes.items()
        }
        #: Requests that were found to be well-formed and possible, by identity: many jobs share one.
        self.checked: dict[int, Request] = {}
        #: Whether anybody has asked for more than whole devices yet.
        self.counting = False
        self._hosts = frozenset(HOST + name for name in self.nodes)
        self._infos: dict[str, DeviceInfo] = {uuid: device.info for uuid, device in self.devices.items()}
        self._places = {uuid: (node.info.name, position) for uuid, (node, position) in self._place.items()}

    # -- what would do ---------------------------------------------------------------------------------

    def eligible(self, request: Request) -> frozenset[str]:
        """Uuids of all devices that could ever serve in a grant of the request, busy or not.

        Where something of a host is asked for, the hosts that could serve are named as well, by HOST and the name of
        the node: those who compete for one of them wait for each other.
        """
        found = self._eligible.get(request)
        if found is None:
            self.counting = self.counting or request.counted
            found = self._find_eligible(request)
            found = self._same.setdefault(found, found)
            if len(self._eligible) >= _MAX_REMEMBERED:
                self._eligible.clear()
            self._eligible[request] = found
        return found

    def usable(self, request: Request) -> int:
        """How many devices could ever serve."""
        return len(self.eligible(request) - self._hosts)

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
        rules = self.rules
        found: list[str] = []
        for name, node in self.nodes.items():
            if request.node not in ("", name) or name in request.exclude:
                continue
            if request.nodes and name not in request.nodes:
                continue
            if not Host(node.info.cpus, node.info.memory_bytes).holds(request.cpus, request.host_bytes):
                continue
            labels = [label for label in request.labels if node.info.labels.get(label[0]) != label[1]]
            if not request.gpus:
                found += [HOST + name] if not labels else []
                continue
            here = [
                info.uuid
                for info in node.info.devices
                if (rules.capacity(info) if request.shared else info.memory_bytes) >= request.memory_bytes
                and request.model in info.model.lower()
                and (not request.gpu_ids or info.uuid in only)
                and info.uuid not in never
                and all(label in info.labels for label in labels)
            ]
            found += here
            if here and (request.cpus or request.host_bytes):
                found.append(HOST + name)
        return frozenset(found)

    def serviceable(self, request: Request) -> int:
        """How many eligible devices are free now or will be without anybody mending anything."""
        return self.count_serviceable(self.eligible(request))

    def count_serviceable(self, uuids: frozenset[str]) -> int:
        """How many of some devices are free now or will be without anybody mending anything."""
        hosts = len(uuids & self._hosts) if self.counting else 0
        return len(uuids) - hosts - len(uuids & self._out_of_service)

    def free(self, request: Request) -> int:
        """How many eligible devices may be handed out now, or have room for one more share."""
        devices = [self.devices[uuid] for uuid in self.eligible(request) if uuid in self.devices]
        return sum(1 for device in devices if self.is_available(device) or self.has_room(device, request))

    def has_room(self, device: Device, request: Request) -> bool:
        """True if a device that is shared may be given to one more request."""
        if not request.shared or not self.may_share(device):
            return False
        shares = tuple(device.shares.values())
        return self.rules.admits(device.info, shares, request.memory_bytes, request.sharer)

    # -- choosing ---------------------------------------------------------------------------------------

    def place(
        self,
        request: Request,
        free: Mapping[str, list[int]] | None = None,
        eligible: frozenset[str] | None = None,
    ) -> tuple[str, ...] | None:
        """Devices for a request, node by node in the order of their indices, or None if it cannot have all of them.

        Args:
            request: what is asked for.
            free: what is free: node name to the ascending positions in `Node.devices`, or a `Room`; None for what is
                free now.
            eligible: the devices that could ever serve, where the caller knows them.

        Returns:
            A `Grant` if the request asks for more than whole devices.
        """
        if free is None and request.whole_gpus > self.free_total:
            return None
        if eligible is None:
            eligible = self.eligible(request)
        if request.counted:
            room = self._room_now() if free is None else self._as_room(free)
            return sharing.place(self._layout, self._infos, room, request, eligible, self.rules)
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

    def everything(self, uuids: frozenset[str]) -> bool:
        """True if these are all devices there are, and each is in service."""
        return not self._out_of_service and len(uuids) == len(self.devices)

    def count_of(self, devices: Iterable[str], uuids: frozenset[str]) -> int:
        """How many of some leased devices are among others, and will be of use when the lease ends."""
        return sum([uuid in uuids and uuid not in self._out_of_service for uuid in devices])

    def count_soon(self, uuids: frozenset[str]) -> int:
        """How many of some devices nobody holds and nobody has to mend: free, or about to be, as a whole."""
        if len(uuids) == len(self.devices) and not self._out_of_service:
            kept = sum([not self.devices[u].held for u in self._kept]) if self._kept else 0
            return len(uuids) - self._held - kept
        devices, no = self.devices, self._out_of_service | self._kept | self.divided
        return sum([u in devices and devices[u].holder is None and u not in no for u in uuids])

    def free_soon(self) -> dict[str, list[int]]:
        """Positions of such devices by node, ascending."""
        free = {
            name: [
                p
                for p, each in enumerate(node.devices)
                if each.holder is None and not each.shares and each.kept is None and self.in_service(each)
            ]
            for name, node in self.nodes.items()
        }
        if not self.counting and not self.grants:
            return free
        shares = {
            uuid: tuple(device.shares.values())
            for uuid in sorted(self.divided)
            if (device := self.devices[uuid]).kept is None and self.in_service(device)
        }
        return Room.of(free, shares, self._hosts_left())

    def free_now(self, without: frozenset[str]) -> dict[str, list[int]]:
        """Positions of the devices that may be handed out now, by node, less some."""
        return self.available_but(without)

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

    def fits(self, devices: Sequence[str], free: Mapping[str, list[int]] | None = None) -> bool:
        """Whether exactly this grant could be had, of what is free now or of something else."""
        room = self._room_now() if free is None else free
        return sharing.fits(room, devices, self._places, self._infos, self.rules)

    def meet(self, one: dict[str, list[int]], other: dict[str, list[int]]) -> dict[str, list[int]]:
        """What is free in both."""
        return sharing.meet(self._as_room(one), self._as_room(other), self._places)

    def available_to(self, job: JobId) -> dict[str, list[int]]:
        """Positions of the devices that a job could be given now, by node: what is kept for it included."""
        mine = [uuid for uuid in self._kept if self.devices[uuid].kept == job and self._is_ready(self.devices[uuid])]
        return self.joined(self._available, mine)

    def available_but(self, uuids: Collection[str]) -> dict[str, list[int]]:
        """Positions of the devices that may be handed out now and are none of these, by node."""
        free = {
            name: [position for position in node.available if node.devices[position].uuid not in uuids]
            for name, node in self.nodes.items()
        }
        if not self.counting:
            return free
        now = self._room_now()
        shares = {uuid: shares for uuid, shares in now.shares.items() if uuid not in uuids}
        return Room.of(free, shares, {name: host for name, host in now.hosts.items() if HOST + name not in uuids})

    def joined(self, free: Mapping[str, list[int]], devices: Iterable[str]) -> dict[str, list[int]]:
        """Free positions with these devices added, whatever state they are in."""
        out = free.copy() if isinstance(free, Room) else dict(free)
        for uuid in devices:
            node, position = self._place[uuid]
            out[node.info.name] = sorted({*out[node.info.name], position})
        return out

    def with_(self, free: Mapping[str, list[int]], devices: Sequence[str]) -> dict[str, list[int]]:
        """Free positions when these devices have come back; those that somebody must mend do not count."""
        if isinstance(free, Room) or isinstance(devices, Grant):
            held = {uuid: tuple(self.devices[uuid].shares.values()) for uuid in devices if uuid in self.divided}
            return sharing.with_(self._as_room(free), devices, self._places, held, self._out_of_service)
        out = dict(free)
        for uuid in devices:
            found = self._place.get(uuid)
            if found is not None and uuid not in self._out_of_service:
                name = found[0].info.name
                out[name] = sorted({*out[name], found[1]})
        return out

    def without(self, free: Mapping[str, list[int]], devices: Sequence[str]) -> dict[str, list[int]]:
        """Free positions when somebody has these devices."""
        if isinstance(free, Room) or isinstance(devices, Grant):
            return sharing.without(self._as_room(free), devices, self._places)
        out = dict(free)
        for uuid in devices:
            found = self._place.get(uuid)
            if found is not None:
                name = found[0].info.name
                out[name] = [position for position in out[name] if position != found[1]]
        return out

    def _room_now(self) -> Room:
        """All that may be handed out now."""
        shares = {
            uuid: tuple(self.devices[uuid].shares.values())
            for uuid in sorted(self.divided)
            if self.may_share(self.devices[uuid])
        }
        return Room.of(self._available, shares, self._hosts_left())

    def _as_room(self, free: Mapping[str, list[int]]) -> Room:
        """What is free, where so far nobody had a part of anything."""
        if isinstance(free, Room):
            return free
        hosts = {name: Host(node.info.cpus, node.info.memory_bytes) for name, node in self.nodes.items()}
        return Room.of(free, {}, hosts)

    def _hosts_left(self) -> dict[str, Host]:
        return {name: node.left for name, node in self.nodes.items() if node.drained is None}
