"""How the GPUs of this machine are connected, as NVML and the kernel tell it; read once, at the start.

Whatever cannot be found out counts as nothing: a wrong or missing topology makes choices less good, never wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

SYS: Final = Path("/sys")

_NVLINK = 100
_SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH, which an old nvidia-ml-py does not name
# By nvmlGpuTopologyLevel_t: one board, one PCIe switch, several, one host bridge, one CPU, different ones.
_PCIE: Final = {0: 60, 10: 50, 20: 40, 30: 30, 40: 20, 50: 10}


def read_links(nvml: Any, gpus: Sequence[tuple[Any, str]]) -> tuple[tuple[int, ...], ...]:
    """`NodeInfo.links`.

    Args:
        nvml: a module like `pynvml`.
        gpus: handle and PCI bus id of each, by index.

    Returns:
        Scores, a row for each GPU; empty if nothing is known.
    """
    numbers = range(len(gpus))
    direct, switched = _nvlinks(nvml, gpus)
    scores = [[0] * len(gpus) for _ in numbers]
    for one in numbers:
        for other in range(one):
            if (links := min(switched[one], switched[other])) > 0:
                score = _NVLINK * links  # a switch joins all alike, wherever they are on the PCIe bus
            else:
                # Each end counts the links; one that could not be asked must not hide them.
                links = max(direct[one].get(other, 0), direct[other].get(one, 0))
                score = _NVLINK * links + _pcie(nvml, gpus[one][0], gpus[other][0])
            scores[one][other] = scores[other][one] = score
    return tuple(map(tuple, scores)) if any(map(any, scores)) else ()


def numa_node(bus_id: str, sys_root: Path = SYS) -> int:
    """The NUMA node that a PCI device is nearest to, -1 if the kernel does not know."""
    domain, _, rest = bus_id.lower().partition(":")
    try:
        text = (sys_root / "bus/pci/devices" / f"{domain[-4:]}:{rest}" / "numa_node").read_text()
        return max(-1, int(text))
    except (OSError, ValueError):
        return -1


def _pcie(nvml: Any, one: Any, other: Any) -> int:
    try:
        return _PCIE.get(int(nvml.nvmlDeviceGetTopologyCommonAncestor(one, other)), 0)
    except (nvml.NVMLError, AttributeError):
        return 0


def _nvlinks(nvml: Any, gpus: Sequence[tuple[Any, str]]) -> tuple[list[dict[int, int]], list[int]]:
    """For each GPU, its NVLinks to each other one, and its number of those that lead to a switch."""
    by_bus = {_plain(bus_id): number for number, (_, bus_id) in enumerate(gpus)}
    direct: list[dict[int, int]] = [{} for _ in gpus]
    switched = [0] * len(gpus)
    for number, (handle, _) in enumerate(gpus):
        for link in range(int(getattr(nvml, "NVML_NVLINK_MAX_LINKS", 18))):
            try:
                if int(nvml.nvmlDeviceGetNvLinkState(handle, link)) == 0:
                    continue
            except (nvml.NVMLError, AttributeError):
                break  # no NVLinks, or no more
            other = by_bus.get(_plain(_remote(nvml, handle, link)))
            if _leads_to_switch(nvml, handle, link):
                switched[number] += 1
            elif other is not None and other != number:
                direct[number][other] = direct[number].get(other, 0) + 1
    return direct, switched


def _remote(nvml: Any, handle: Any, link: int) -> str:
    try:
        bus_id = nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId
    except (nvml.NVMLError, AttributeError):
        return ""
    return bus_id.decode("ascii", "replace") if isinstance(bus_id, bytes) else str(bus_id)


def _leads_to_switch(nvml: Any, handle: Any, link: int) -> bool:
    try:
        return int(nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link)) == _SWITCH
    except (nvml.NVMLError, AttributeError):
        return False


def _plain(bus_id: str) -> str:
    """A bus id in one spelling: the domain is written with 4 or 8 digits."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]}:{rest}"
