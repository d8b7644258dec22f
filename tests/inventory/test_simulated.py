"""The simulated inventory and the specs that it is made from."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler.core.model import Holder, Owner, ProcessReading
from gpusched.scheduler.inventory.simulated import LINGERING_MEMORY_BYTES, SimulatedInventory
from gpusched.scheduler.inventory.specs import DEFAULT_MODEL, MAX_GPUS, MAX_NODES, SimulatedKind, parse_spec
from gpusched.scheduler.ports import Inventory

GIB = 1024**3
ALICE = Owner(1000, "alice")
UUID = "GPU-sim-box-1"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        ("1", [[(DEFAULT_MODEL, 80)]]),
        ("8", [[(DEFAULT_MODEL, 80)] * 8]),
        ("2x8", [[(DEFAULT_MODEL, 80)] * 8] * 2),
        ("8:24GB", [[(DEFAULT_MODEL, 24)] * 8]),
        ("2x3:24G", [[(DEFAULT_MODEL, 24)] * 3] * 2),
        ("4xH100:80GB", [[("H100", 80)] * 4]),
        ("4xH100", [[("H100", 80)] * 4]),
        ("2x4xA100:40GB", [[("A100", 40)] * 4] * 2),
        ("4xH100:80GB,2xA100:40GB", [[("H100", 80)] * 4 + [("A100", 40)] * 2]),
        (" 1xH100 , 2 ", [[("H100", 80)] + [(DEFAULT_MODEL, 80)] * 2]),
        ("1xRTX 3090 Ti:24gib", [[("RTX 3090 Ti", 24)]]),
        ("2X1xGTX1080:8GB", [[("GTX1080", 8)]] * 2),
        ("1:0.5T", [[(DEFAULT_MODEL, 512)]]),
        (f"{MAX_NODES}x{MAX_GPUS // MAX_NODES}", [[(DEFAULT_MODEL, 80)] * (MAX_GPUS // MAX_NODES)] * MAX_NODES),
    ],
)
def test_specs(spec: str, nodes: list[list[tuple[str, int]]]) -> None:
    expected = tuple(tuple(SimulatedKind(model, memory * GIB) for model, memory in node) for node in nodes)
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("", "no known form"),
        ("eight", "no known form"),
        ("-1", "no known form"),
        ("1.5", "no known form"),
        ("8:24", "no known form"),
        ("8x", "no known form"),
        ("x8", "no known form"),
        ("8,", "no known form"),
        ("1x2x3x4", "no known form"),
        ("٣", "no known form"),
        ("4xH100\n", "no known form"),
        ("4xH\x1b100", "no known form"),
        ("9" * 5000, "no known form"),
        ("0", "the least is 1 GPU"),
        ("0x8", "the least is 1 GPU"),
        ("8x0", "the least is 1 GPU"),
        ("0xH100", "the least is 1 GPU"),
        ("4097", "at most 4096 GPUs are simulated, not 4097"),
        ("4096,1", "at most 4096 GPUs are simulated, not 4097"),
        ("999999999", "at most 4096 GPUs"),
        ("257x1", "at most 256 nodes are simulated, not 257"),
        ("2x8,4", "on one node only"),
        ("8:0GB", "more than 0"),
        ("8:17TB", "at most 16 TB"),
    ],
)
def test_wrong_specs_say_what_is_wrong_and_what_is_allowed(spec: str, why: str) -> None:
    if spec.endswith("\n"):
        spec += "x"  # blanks around are taken off; inside they are not
    with pytest.raises(ValueError) as caught:
        parse_spec(spec)
    message = str(caught.value)
    assert why in message
    assert "Allowed: 8 (GPUs), 2x8 (nodes x GPUs)" in message
    assert len(message) < 600
    assert message.isprintable()


def test_a_model_that_is_a_number_is_explained() -> None:
    with pytest.raises(ValueError, match="put letters first: 4xRTX3090"):
        parse_spec("4x3090")


@given(st.text(max_size=40) | st.from_regex(r"\A[0-9x:,GBH]{0,12}\Z"))
def test_any_text_is_a_simulation_or_a_clear_error(spec: str) -> None:
    try:
        nodes = parse_spec(spec)
    except ValueError as error:
        assert str(error).startswith("cannot simulate ")
    else:
        assert 1 <= len(nodes) <= MAX_NODES
        assert 1 <= sum(len(node) for node in nodes) <= MAX_GPUS


def test_nodes_and_gpus() -> None:
    inventory: Inventory = SimulatedInventory("2x4xA100:40GB", "box")
    assert (inventory.mode, inventory.blocking) == ("simulated", False)
    first, second = inventory.discover()
    assert (first.name, first.local, second.name, second.local) == ("box", True, "box-2", False)
    assert [gpu.index for gpu in second.devices] == [0, 1, 2, 3]
    gpu = second.devices[3]
    assert (gpu.uuid, gpu.node, gpu.model, gpu.memory_bytes, gpu.simulated) == (
        "GPU-sim-box-2-3",
        "box-2",
        "A100",
        40 * GIB,
        True,
    )
    uuids = [gpu.uuid for node in (first, second) for gpu in node.devices]
    assert len(set(uuids)) == 8
    assert uuids == [gpu.uuid for node in SimulatedInventory("2x4", "box").discover() for gpu in node.devices]


def test_uuids_are_distinct_even_for_nodes_named_alike() -> None:
    nodes = SimulatedInventory("3x12", "box-2").discover()
    uuids = [gpu.uuid for node in nodes for gpu in node.devices]
    assert len(set(uuids)) == len(uuids)


def test_an_untouched_gpu_is_idle_and_well() -> None:
    reading = SimulatedInventory("2", "box").read(UUID)
    assert (reading.uuid, reading.memory_used_bytes, reading.utilization_percent) == (UUID, 0, 0)
    assert (reading.processes, reading.fault) == ((), "")
    assert reading.temperature_celsius > 0
    assert reading.power_watts > 0


def test_what_is_set_is_read_and_the_rest_stays() -> None:
    inventory = SimulatedInventory("2", "box")
    idle = inventory.read(UUID)
    # Pids that no machine has, so that nothing is known of them.
    sitting = (ProcessReading(2**30, memory_bytes=GIB), ProcessReading(2**30 + 1, memory_bytes=2 * GIB))
    inventory.set_gpu(UUID, utilization=100, processes=sitting)
    inventory.set_gpu(UUID, fault="Xid 79: GPU has fallen off the bus")
    reading = inventory.read(UUID)
    assert (reading.utilization_percent, reading.processes, reading.memory_used_bytes) == (100, sitting, 3 * GIB)
    assert reading.fault == "Xid 79: GPU has fallen off the bus"
    assert reading.temperature_celsius > idle.temperature_celsius
    assert reading.power_watts > idle.power_watts
    assert inventory.processes(UUID) == sitting
    assert inventory.read("GPU-sim-box-0").fault == "", "the other GPU is left alone"
    inventory.clear_fault(UUID)
    inventory.set_gpu(UUID, processes=())
    reading = inventory.read(UUID)
    assert (reading.fault, reading.processes, reading.utilization_percent) == ("", (), 100)


def test_a_hanging_gpu_does_not_answer() -> None:
    inventory = SimulatedInventory("2", "box")
    inventory.set_gpu(UUID, hang=True)
    for ask in (inventory.read, inventory.processes):
        with pytest.raises(TimeoutError, match="GPU 1 does not answer"):
            ask(UUID)
    assert issubclass(TimeoutError, OSError), "as the protocol promises for processes()"
    inventory.set_gpu(UUID, hang=False)
    assert inventory.read(UUID).fault == ""


def test_the_holder_lingers_for_as_long_as_was_set() -> None:
    clock = Clock()
    inventory = SimulatedInventory("2", "box", monotonic=clock)
    holder = Holder(77, 5000)
    inventory.released(UUID, ALICE, holder)
    assert inventory.processes(UUID) == (), "not unless it is set to"
    inventory.set_gpu(UUID, linger_seconds=2.5)
    inventory.released(UUID, ALICE, None)
    assert inventory.processes(UUID) == (), "nobody is known who could linger"
    inventory.released(UUID, ALICE, holder)
    (seen,) = inventory.processes(UUID)
    assert (seen.pid, seen.start_ticks, seen.uid, seen.user) == (77, 5000, 1000, "alice")
    assert seen.ancestors == ((77, 5000),)
    assert inventory.read(UUID).memory_used_bytes == LINGERING_MEMORY_BYTES
    assert inventory.processes("GPU-sim-box-0") == ()
    clock.now += 2.4
    assert inventory.processes(UUID) == (seen,)
    clock.now += 0.2
    assert inventory.processes(UUID) == ()


def test_a_lingering_process_that_is_set_as_well_counts_once() -> None:
    inventory = SimulatedInventory("2", "box", monotonic=Clock())
    inventory.set_gpu(UUID, linger_seconds=1, processes=(ProcessReading(77, 5000, memory_bytes=3 * GIB),))
    inventory.released(UUID, ALICE, Holder(77, 5000))
    assert [seen.memory_bytes for seen in inventory.processes(UUID)] == [3 * GIB]


@pytest.mark.parametrize("values", [{"utilization": 101}, {"utilization": -1}, {"linger_seconds": -0.1}])
def test_a_wrong_setting_changes_nothing(values: dict[str, int]) -> None:
    inventory = SimulatedInventory("2", "box")
    with pytest.raises(ValueError):
        inventory.set_gpu(UUID, fault="broken", **values)  # type: ignore[arg-type]
    assert inventory.read(UUID).fault == ""


def test_infinite_or_undefined_lingering_is_refused() -> None:
    inventory = SimulatedInventory("2", "box")
    for seconds in (float("inf"), float("nan")):
        with pytest.raises(ValueError):
            inventory.set_gpu(UUID, linger_seconds=seconds)


def test_an_unknown_gpu() -> None:
    inventory = SimulatedInventory("2", "box")
    with pytest.raises(KeyError):
        inventory.read("GPU-sim-box-2")
    with pytest.raises(KeyError):
        inventory.set_gpu("GPU-sim-box-2", fault="x")
    inventory.close()


def test_a_real_process_that_is_set_is_known_and_goes_when_it_ends() -> None:
    inventory = SimulatedInventory("2", "box")
    with subprocess.Popen(["sleep", "60"]) as child:
        inventory.set_gpu(UUID, processes=(ProcessReading(child.pid, memory_bytes=GIB),))
        (seen,) = inventory.processes(UUID)
        assert seen.command == "sleep"
        assert os.getpid() in [pid for pid, _ in seen.ancestors]
        child.kill()
    assert inventory.processes(UUID) == ()
