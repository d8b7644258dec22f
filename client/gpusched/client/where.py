"""Which GPUs of which nodes will do: from words and Python values to the request. Light, for gsrun's start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gpusched.client.usage import UsageError

if TYPE_CHECKING:
    from gpusched.v1 import resources_pb2

MAX_CHARACTERS = 128
PLACEMENTS = ("pack", "spread")

NODES_ALLOWED = "give names of nodes, such as node1,node2 (`gpusched nodes` shows them)"
GPUS_ALLOWED = "give GPUs by index, node:index or uuid, such as 0,3 (`gpusched gpus` shows them)"
EXCLUDE_ALLOWED = "give nodes by name, or GPUs by index, node:index or uuid"
LABELS_ALLOWED = "give KEY=VALUE, such as disk=nvme (`gpusched nodes` shows the labels)"


class Where(NamedTuple):
    """Conditions of a request beyond number, memory and model; empty ones hold always.

    Attributes:
        nodes: names of nodes that will do.
        gpu_ids: GPUs that will do, by index, node:index or uuid.
        exclude: nodes and GPUs that will not.
        labels: (key, value) pairs of the node or the GPU.
        gpus_per_node: exactly so many on each node that is used, 0 for any number.
        placement: `pack`, `spread`, or empty for the scheduler's default.
        shared: the memory asked for is all that is had of each GPU.
        cpus: cores on each node that is used, 0 for none in particular.
        mem: bytes of the host's memory on each node that is used, 0 for none in particular.
    """

    nodes: tuple[str, ...] = ()
    gpu_ids: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    gpus_per_node: int = 0
    placement: str = ""
    shared: bool = False
    cpus: int = 0
    mem: int = 0

    @property
    def of_host(self) -> bool:
        """Whether anything of a host is asked for, so that no GPU need be."""
        return self.cpus > 0 or self.mem > 0

    def put(self, message: resources_pb2.ResourceRequest) -> None:
        """Write it into a request."""
        message.nodes.extend(self.nodes)
        message.gpu_ids.extend(self.gpu_ids)
        message.exclude.extend(self.exclude)
        message.labels.update(self.labels)
        message.gpus_per_node = self.gpus_per_node
        message.shared = self.shared
        message.cpus = self.cpus
        message.memory_bytes = self.mem
        if self.placement:
            from gpusched.v1 import resources_pb2

            placement: Any = resources_pb2.Placement.Value(f"PLACEMENT_{self.placement.upper()}")
            message.placement = placement

    def allows(self, uuid: str, index: int, node: str) -> bool:
        """Whether a GPU that one has already would do, as far as its names tell; an empty node is not known."""
        names = {uuid, f"{node}:{index}", str(index)}
        wanted = not self.gpu_ids or not names.isdisjoint(self.gpu_ids)
        near = not self.nodes or not node or node in self.nodes
        return wanted and near and (names | {node}).isdisjoint(self.exclude)


ANYWHERE = Where()


def checked_where(
    *,
    nodes: str | Iterable[str] | None = None,
    gpu_ids: str | int | Iterable[str | int] | None = None,
    exclude: str | int | Iterable[str | int] | None = None,
    labels: Mapping[str, str] | None = None,
    gpus_per_node: int | None = None,
    placement: str | None = None,
    shared: bool = False,
    cpus: int | None = None,
    mem: str | int | None = None,
) -> Where:
    """Parameters of `acquire` and `submit`, checked; raises UsageError, which names the parameter."""
    if gpus_per_node is not None and (
        isinstance(gpus_per_node, bool) or not isinstance(gpus_per_node, int) or not 1 <= gpus_per_node < 2**31
    ):
        raise UsageError("gpus_per_node", gpus_per_node, "give a whole number, 1 or more")
    if cpus is not None and (isinstance(cpus, bool) or not isinstance(cpus, int) or not 0 <= cpus < 2**31):
        raise UsageError("cpus", cpus, "give a whole number, 0 or more")
    if placement is not None and placement not in PLACEMENTS:
        raise UsageError("placement", placement, f"give {' or '.join(PLACEMENTS)}")
    if not isinstance(shared, bool):
        raise UsageError("shared", shared, "give True or False")
    if labels is not None and not isinstance(labels, Mapping):
        raise UsageError("labels", labels, "give a mapping, such as {'disk': 'nvme'}")
    return Where(
        names("nodes", nodes, NODES_ALLOWED),
        names("gpu_ids", gpu_ids, GPUS_ALLOWED),
        names("exclude", exclude, EXCLUDE_ALLOWED),
        tuple(label("labels", f"{key}={value}") for key, value in (labels or {}).items()),
        gpus_per_node or 0,
        placement or "",
        shared,
        cpus or 0,
        0 if mem is None else _size(mem),
    )


def names(field: str, given: str | int | Iterable[str | int] | None, allowed: str) -> tuple[str, ...]:
    """Names from `a,b`, a number, or several of these; raises UsageError."""
    if given is None:
        return ()
    if isinstance(given, bool) or not isinstance(given, (str, int, Iterable)):
        raise UsageError(field, given, allowed)
    listed = [given] if isinstance(given, (str, int)) else list(given)
    found: dict[str, None] = {}
    for each in listed:
        if isinstance(each, bool) or not isinstance(each, (str, int)):
            raise UsageError(field, each, allowed)
        for word in str(each).split(","):
            name = word.strip()
            if not name or not _is_plain(name):
                raise UsageError(field, each, allowed)
            found[name] = None
    return tuple(found)


def label(field: str, text: str) -> tuple[str, str]:
    """Key and value of `KEY=VALUE`; raises UsageError."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals or not value or not _is_plain(key) or not _is_plain(value):
        raise UsageError(field, text, LABELS_ALLOWED)
    return key, value


def _size(mem: str | int) -> int:
    from gpusched.client.units import parse_size

    return parse_size(mem, "mem")


def _is_plain(text: str) -> bool:
    return len(text) <= MAX_CHARACTERS and text.isprintable()
