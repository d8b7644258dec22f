"""Which inventory a server gets."""

from __future__ import annotations

import socket

import pytest

from gpusched.scheduler.inventory.choose import choose
from gpusched.scheduler.ports import InventoryError


@pytest.mark.parametrize(
    ("mode", "simulate", "chosen"),
    [
        ("auto", "", "real"),
        ("auto", "2x8", "simulated"),
        ("real", "", "real"),
        ("simulated", "", "simulated"),
        ("simulated", "4", "simulated"),
    ],
)
def test_modes(mode: str, simulate: str, chosen: str) -> None:
    assert choose(mode, simulate).mode == chosen


def test_simulated_without_a_spec_is_eight_gpus_on_this_host() -> None:
    (node,) = choose("simulated").discover()
    assert (len(node.devices), node.name) == (8, socket.gethostname())
    assert [node.name for node in choose(simulate="2x1", node_name="box").discover()] == ["box", "box-2"]


def test_clear_errors() -> None:
    with pytest.raises(InventoryError, match="unknown mode of inventory 'fake': allowed are auto, real, simulated"):
        choose("fake")
    with pytest.raises(InventoryError, match="leave out one of the two"):
        choose("real", "8")
    with pytest.raises(InventoryError, match=r"cannot simulate 'lots'.*Allowed: 8"):
        choose(simulate="lots")
