"""Which inventory a server uses."""

from __future__ import annotations

import socket
from typing import Final

from gpusched.scheduler.inventory.nvml import DEFAULT_IGNORED, NvmlInventory
from gpusched.scheduler.inventory.simulated import SimulatedInventory
from gpusched.scheduler.ports import Inventory, InventoryError

MODES: Final = ("auto", "real", "simulated")
DEFAULT_SPEC: Final = "8"


def choose(
    mode: str = "auto",
    simulate: str = "",
    node_name: str = "",
    ignore: frozenset[str] = DEFAULT_IGNORED,
) -> Inventory:
    """The inventory that the settings ask for. Real hardware is never replaced by a simulation unasked.

    Args:
        mode: `auto` (real, unless `simulate` is given), `real` or `simulated`.
        simulate: what to simulate, as `specs.parse_spec` takes it; empty for 8 GPUs in mode `simulated`.
        node_name: name of this machine; empty for its host name.
        ignore: names of processes that do not count as users of a real GPU; this replaces the built-in list.

    Returns:
        An inventory on which `discover` is still to be called.

    Raises:
        InventoryError: an unknown mode, a spec of no allowed form, or settings that contradict each other.
    """
    if mode not in MODES:
        raise InventoryError(f"unknown mode of inventory {mode[:60]!r}: allowed are {', '.join(MODES)}")
    if mode == "real" and simulate:
        raise InventoryError(
            f"the mode is real, but --simulate {simulate[:60]} asks for simulated GPUs: leave out one of the two"
        )
    if mode == "simulated" or simulate:
        try:
            return SimulatedInventory(simulate or DEFAULT_SPEC, node_name or socket.gethostname())
        except ValueError as error:
            raise InventoryError(str(error)) from None
    return NvmlInventory(ignore, node_name)
