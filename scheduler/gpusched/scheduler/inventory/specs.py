"""What `--simulate` takes: how many GPUs, of what kind, on how many nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_GPUS = 4096
MAX_NODES = 256
DEFAULT_MODEL = "Simulated GPU"
DEFAULT_MEMORY_BYTES = 80 * 1024**3

_ALLOWED = (
    "Allowed: 8 (GPUs), 2x8 (nodes x GPUs), 4xH100:80GB (GPUs of a model, with memory), 8:24GB, "
    "2x4xA100:40GB (nodes x GPUs of a model), 4xH100:80GB,2xA100:40GB (several kinds on one node)"
)
_GROUP = re.compile(
    r"(?P<first>[0-9]{1,9})"
    r"(?:[xX](?P<second>[0-9]{1,9}))?"
    r"(?:[xX](?P<model>[A-Za-z][A-Za-z0-9 ._-]{0,63}))?"
    r"(?::(?P<size>[0-9]{1,6}(?:\.[0-9]{1,3})?)(?P<unit>[MGT])(?:i?B)?)?",
    re.IGNORECASE,
)
_UNITS = {"M": 1024**2, "G": 1024**3, "T": 1024**4}
_MAX_MEMORY = 16 * 1024**4


@dataclass(frozen=True, slots=True)
class SimulatedKind:
    """The make of one simulated GPU."""

    model: str = DEFAULT_MODEL
    memory_bytes: int = DEFAULT_MEMORY_BYTES


def parse_spec(spec: str) -> tuple[tuple[SimulatedKind, ...], ...]:
    """Read a simulation's description.

    Args:
        spec: such as "8", "2x8", "4xH100:80GB" or "4xH100:80GB,2xA100:40GB". Two numbers joined by `x` are nodes
            and GPUs on each; a number and a name are GPUs of a model. Sizes are in powers of 1024.

    Returns:
        For each node its GPUs, in index order.

    Raises:
        ValueError: the text is of no allowed form, or asks for too many; the message says which forms there are.
    """
    groups = [group.strip() for group in spec.split(",")]
    nodes = 1
    kinds: list[SimulatedKind] = []
    for group in groups:
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
        kinds += [SimulatedKind(match["model"] or DEFAULT_MODEL, _memory(spec, match))] * count
    return (tuple(kinds),) * nodes


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
