"""What `--simulate` takes: how many GPUs, of what kind, on how many nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gpusched.scheduler.inventory import topologies
from gpusched.scheduler.inventory.topologies import Part

MAX_GPUS = 4096
MAX_NODES = 256
DEFAULT_MODEL = "Simulated GPU"
DEFAULT_MEMORY_BYTES = 80 * 1024**3

_ALLOWED = (
    "Allowed: 8 (GPUs), 2x8 (nodes x GPUs), 4xH100:80GB (GPUs of a model, with memory), 8:24GB, "
    "2x4xA100:40GB (nodes x GPUs of a model), 4xH100:80GB,2xA100:40GB (several kinds on one node), "
    f"8xV100@dgx1 (connected like one of {topologies.ALLOWED})"
)
_GROUP = re.compile(
    r"(?P<first>[0-9]{1,9})"
    r"(?:[xX](?P<second>[0-9]{1,9}))?"
    r"(?:[xX](?P<model>[A-Za-z][A-Za-z0-9 ._-]{0,63}))?"
    r"(?::(?P<size>[0-9]{1,6}(?:\.[0-9]{1,3})?)(?P<unit>[MGT])(?:i?B)?)?"
    r"(?:@(?P<topology>[a-z0-9][a-z0-9.+-]{0,200}))?",
    re.IGNORECASE,
)
_PROFILE = re.compile(r"mig-(?P<profile>(?P<slices>[1-7])g\.(?P<size>[0-9]{1,4})gb)")
_MIG_SLICES = 7
_UNITS = {"M": 1024**2, "G": 1024**3, "T": 1024**4}
_MAX_MEMORY = 16 * 1024**4


_ALONE = Part()


@dataclass(frozen=True, slots=True)
class SimulatedKind:
    """The make of one simulated GPU.

    Attributes:
        part: how it is connected.
        mig: the profile of a MIG instance ("3g.20gb"), empty for a whole GPU.
        parent: the number of the instance's GPU, -1 for a whole GPU.
    """

    model: str = DEFAULT_MODEL
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    part: Part = _ALONE
    mig: str = ""
    parent: int = -1


def parse_spec(spec: str) -> tuple[tuple[SimulatedKind, ...], ...]:
    """Read a simulation's description.

    Args:
        spec: such as "8", "2x8", "4xH100:80GB" or "4xH100:80GB,2xA100:40GB". Two numbers joined by `x` are nodes
            and GPUs on each; a number and a name are GPUs of a model. Sizes are in powers of 1024. Behind an `@` is
            how the GPUs of a part are connected, or the MIG instances that each is divided into.

    Returns:
        For each node its GPUs, in index order.

    Raises:
        ValueError: the text is of no allowed form, or asks for too many; the message says which forms there are.
    """
    groups = [group.strip() for group in spec.split(",")]
    nodes = 1
    kinds: list[SimulatedKind] = []
    boards = 0
    for number, group in enumerate(groups):
        match = _GROUP.fullmatch(group)
        if match is None:
            raise _wrong(spec, "it is of no known form")
        count = int(match["first"])
        if match["second"] is not None:
            if len(groups) > 1:
                raise _wrong(spec, "several kinds of GPU go on one node only, so a part cannot name nodes")
            nodes, count = count, int(match["second"])
        if count < 1 or nodes < 1:
            raise _wrong(spec, "the least is 1 GPU on 1 node")
        if nodes > MAX_NODES:
            raise _wrong(spec, f"at most {MAX_NODES} nodes are simulated, not {nodes}", number_as_model=match)
        if nodes * (count + len(kinds)) > MAX_GPUS:
            total = nodes * (count + len(kinds))
            raise _wrong(spec, f"at most {MAX_GPUS} GPUs are simulated, not {total}", number_as_model=match)
        kinds += _kinds(spec, match, number + 1, count, boards)
        boards += count
        if nodes * len(kinds) > MAX_GPUS:
            raise _wrong(spec, f"at most {MAX_GPUS} GPUs are simulated, not {nodes * len(kinds)}")
        if len(kinds) > topologies.MAX_GPUS and any(kind.part.topology for kind in kinds):
            raise _wrong(spec, f"at most {topologies.MAX_GPUS} GPUs of a node can be given a topology")
    return (tuple(kinds),) * nodes


def _kinds(spec: str, match: re.Match[str], group: int, count: int, boards: int) -> list[SimulatedKind]:
    """The devices of one part of a spec; `boards` GPUs come before them."""
    kind = SimulatedKind(match["model"] or DEFAULT_MODEL, _memory(spec, match))
    topology = (match["topology"] or "").lower()
    if not topology:
        return [kind] * count
    if topology.startswith("mig-"):
        instances = _instances(spec, kind, topology)
        return [replace(each, parent=boards + number) for number in range(count) for each in instances]
    if wrong := topologies.check(topology, count):
        raise _wrong(spec, wrong)
    return [replace(kind, part=Part(topology, group, place, count)) for place in range(count)]


def _instances(spec: str, kind: SimulatedKind, text: str) -> list[SimulatedKind]:
    """What `mig-3g.20gb+mig-2g.10gb` makes of one GPU."""
    profiles = [_PROFILE.fullmatch(word) for word in text.split("+")]
    slices, gigabytes = 0, 0
    instances = []
    for profile in profiles:
        if profile is None:
            raise _wrong(spec, "a GPU is divided as in mig-3g.20gb+mig-2g.10gb")
        slices, gigabytes = slices + int(profile["slices"]), gigabytes + int(profile["size"])
        name, size = profile["profile"], int(profile["size"]) * _UNITS["G"]
        instances.append(SimulatedKind(f"{kind.model} MIG {name}", size, mig=name))
    if slices > _MIG_SLICES or gigabytes * _UNITS["G"] > kind.memory_bytes:
        raise _wrong(spec, f"its instances are more than a GPU has ({_MIG_SLICES} slices and its memory)")
    return instances


def _memory(spec: str, match: re.Match[str]) -> int:
    if match["size"] is None:
        return DEFAULT_MEMORY_BYTES
    memory = int(float(match["size"]) * _UNITS[match["unit"].upper()])
    if not 0 < memory <= _MAX_MEMORY:
        raise _wrong(spec, "a GPU's memory is more than 0 and at most 16 TB")
    return memory


def _wrong(spec: str, why: str, number_as_model: re.Match[str] | None = None) -> ValueError:
    hint = ""
    if number_as_model and number_as_model["second"]:
        hint = f" For GPUs of a model named by a number, put letters first: {number_as_model['first']}xRTX"
        hint += f"{number_as_model['second']}."
    shown = spec if len(spec) <= 60 else spec[:57] + "..."
    return ValueError(f"cannot simulate {shown!r}: {why}.{hint} {_ALLOWED}.")
