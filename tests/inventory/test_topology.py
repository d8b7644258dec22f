"""How GPUs are connected and divided: real ones against the stand-in for the driver, and simulated ones."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest

from gpusched.scheduler.core.model import NodeInfo
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.inventory.nvml import NvmlInventory
from gpusched.scheduler.inventory.simulated import SimulatedInventory
from gpusched.scheduler.inventory.specs import parse_spec
from inventory.fake_nvml import GIB, NOT_SUPPORTED, FakeGpu, FakeNvml, error

LOST = pynvml.NVML_ERROR_GPU_IS_LOST
UNKNOWN = pynvml.NVML_ERROR_UNKNOWN


def gpu(number: int, **values: object) -> FakeGpu:
    return FakeGpu(f"GPU-{number}", f"00000000:0{number}:00.0", **values)  # type: ignore[arg-type]


def node(*gpus: FakeGpu, **options: object) -> NodeInfo:
    (found,) = NvmlInventory(nvml=FakeNvml(*gpus), node_name="box", **options).discover()  # type: ignore[arg-type]
    return found


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "score"), [(0, 60), (10, 50), (20, 40), (30, 30), (40, 20), (50, 10)])
def test_pcie(level: int, score: int) -> None:
    assert node(gpu(1, near={"GPU-2": level}), gpu(2)).links == ((0, score), (score, 0))


def test_nvlinks_count_a_hundred_each_on_top_of_pcie() -> None:
    # The driver's order is not ours; links that are down (None) do not count; bus ids come in two spellings.
    links = node(
        gpu(3, near={"GPU-1": 50, "GPU-2": 50}, links=["0000:01:00.0"]),
        gpu(1, near={"GPU-2": 10}, links=["00000000:02:00.0", None, "0000:02:00.0", "0000:03:00.0"]),
        gpu(2, links=["0000:01:00.0", "00000000:01:00.0", "00000000:7F:00.0"]),  # and one to no GPU of ours
    ).links
    assert links == ((0, 250, 110), (250, 0, 10), (110, 10, 0))


def test_one_end_that_does_not_tell_hides_no_link() -> None:
    links = node(gpu(1, links=["0000:02:00.0"]), gpu(2, links=[error(LOST)])).links
    assert links == ((0, 100), (100, 0))


def test_a_switch_joins_all_alike_wherever_they_are() -> None:
    gpus = [
        gpu(number, links=["switch"] * 12, near={f"GPU-{other}": 50 for other in range(1, 5)}) for number in range(1, 5)
    ]
    found = node(*gpus)
    assert {score for row, one in enumerate(found.links) for column, score in enumerate(one) if row != column} == {1200}
    assert Pool([found])._layout.alike, "so a choice has nothing to look at"


@pytest.mark.parametrize("code", [UNKNOWN, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, LOST])
def test_without_an_answer_all_are_alike(code: int) -> None:
    assert node(gpu(1, near={"GPU-2": error(code)}, links=[error(code)]), gpu(2)).links == ()
    assert node(gpu(1)).links == ()


def test_an_old_python_package_without_these_functions() -> None:
    fake = FakeNvml(gpu(1, near={"GPU-2": 10}, links=["0000:02:00.0"]), gpu(2))
    names = ("nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetNvLinkState", "nvmlDeviceGetMigMode")

    class Old:
        def __getattr__(self, name: str) -> object:
            if name in names:
                raise AttributeError(name)
            return getattr(fake, name)

    (found,) = NvmlInventory(nvml=Old()).discover()
    assert len(found.devices) == 2 and found.links == ()


def test_the_numa_node_is_the_kernels_word(tmp_path: Path) -> None:
    for bus, text in {"0000:01:00.0": "1\n", "0000:02:00.0": "-1\n", "0000:03:00.0": "?"}.items():
        folder = tmp_path / "bus/pci/devices" / bus
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(text)
    found = node(*(gpu(number) for number in (1, 2, 3, 4)), sys_root=tmp_path)
    assert [device.numa for device in found.devices] == [1, -1, -1, -1]
    assert [device.labels for device in found.devices] == [(("numa", "1"),), (), (), ()]


# -- MIG --------------------------------------------------------------------------------------------------------------


def instance(number: int, profile: str, gib: int, **values: object) -> FakeGpu:
    name = f"NVIDIA A100-SXM4-40GB MIG {profile}"
    return FakeGpu(f"MIG-{number}", "", name=name, total=gib * GIB, **values)  # type: ignore[arg-type]


def divided(*instances: FakeGpu | None, **values: object) -> FakeGpu:
    return gpu(2, name="NVIDIA A100-SXM4-40GB", instances=list(instances), **values)


def test_instances_are_devices_of_their_own() -> None:
    board = divided(instance(1, "3g.20gb", 20), None, instance(2, "2g.10gb", 10))
    found = node(gpu(3, near={"GPU-1": 10}), board, gpu(1))
    assert [(device.index, device.uuid, device.parent) for device in found.devices] == [
        (0, "GPU-1", -1),
        (1, "MIG-1", 1),
        (2, "MIG-2", 1),
        (3, "GPU-3", -1),
    ]
    first = found.devices[1]
    assert (first.model, first.memory_bytes) == ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 20 * GIB)
    assert first.labels == (("mig", "3g.20gb"),)
    assert found.links == ()


def test_a_divided_gpu_without_instances_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert [device.uuid for device in node(gpu(1), divided()).devices] == ["GPU-1"]
    assert "MIG is on, and it has no instances" in caplog.text


def test_mig_that_is_off_or_unheard_of() -> None:
    for mode in ([0, 1], error(NOT_SUPPORTED)):
        assert node(gpu(1, mig_mode=mode)).devices[0].parent == -1


def test_an_instance_has_its_own_memory_and_the_health_of_its_gpu() -> None:
    unsupported = error(NOT_SUPPORTED)
    one = instance(1, "3g.20gb", 20, used=3 * GIB, utilization=unsupported, temperature=unsupported)
    two = instance(2, "3g.20gb", 20)
    board = divided(one, two, temperature=55)
    inventory = NvmlInventory(nvml=FakeNvml(board))
    inventory.discover()
    reading = inventory.read("MIG-1")
    assert (reading.memory_used_bytes, reading.utilization_percent, reading.temperature_celsius) == (3 * GIB, -1, 55)
    assert reading.fault == ""
    board.xids.append(79)
    assert "fallen off the bus" in inventory.read("MIG-2").fault
    assert "fallen off the bus" in inventory.read("MIG-1").fault, "it is one GPU"
    inventory.clear_fault("MIG-1")
    assert inventory.read("MIG-2").fault == ""
    inventory.close()


# -- simulated --------------------------------------------------------------------------------------------------------


def simulated(spec: str) -> NodeInfo:
    return SimulatedInventory(spec, "sim").discover()[0]


def test_simulated_links() -> None:
    assert simulated("8").links == ()
    assert simulated("2xH100@nvswitch").links == ((0, 1800), (1800, 0))
    cube = simulated("8xV100@dgx1")
    assert [sum(score // 100 for score in row) for row in cube.links] == [6] * 8, "a V100 has six NVLinks"
    assert (cube.links[0][3], cube.links[0][4], cube.links[0][1], cube.links[0][7]) == (220, 210, 150, 10)
    assert all(cube.links[a][b] == cube.links[b][a] for a in range(8) for b in range(8))
    assert [device.numa for device in cube.devices] == [0, 0, 0, 0, 1, 1, 1, 1]
    islands = simulated("8xA40@2numa")
    assert islands.links[0] == (0, 20, 20, 20, 10, 10, 10, 10)
    assert islands.devices[4].labels == (("numa", "1"),)
    assert simulated("4xA6000@pairs").links[1] == (420, 0, 20, 20)
    assert simulated("2xA@pairs,1xB,1xC").links[2] == (10, 10, 0, 20)
    assert len(SimulatedInventory("2x4xV@2numa", "sim").discover()[1].links) == 4


def test_simulated_instances() -> None:
    found = simulated("1xV100,2xA100:40GB@mig-3g.20gb+mig-2g.10gb")
    assert [(device.model, device.memory_bytes // GIB, device.parent) for device in found.devices] == [
        ("V100", 80, -1),
        ("A100 MIG 3g.20gb", 20, 1),
        ("A100 MIG 2g.10gb", 10, 1),
        ("A100 MIG 3g.20gb", 20, 2),
        ("A100 MIG 2g.10gb", 10, 2),
    ]
    assert found.devices[1].uuid == "MIG-sim-sim-1" and found.devices[1].labels == (("mig", "3g.20gb"),)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("8@torus", "there is no topology 'torus', only nvswitch, dgx1"),
        ("4xV100@dgx1", "a dgx1 has 8 GPUs, not 4"),
        ("2@4numa", "2 GPUs cannot be on 4 NUMA nodes"),
        ("65@nvswitch", "at most 64 GPUs can be given a topology, not 65"),
        ("40@2numa,40", "at most 64 GPUs of a node"),
        ("8@", "no known form"),
        ("1xA100:40GB@mig-9g.20gb", "divided as in mig-3g.20gb"),
        ("1xA100:40GB@mig-3g.20gb+nvswitch", "divided as in mig-3g.20gb"),
        ("1xA100:40GB@mig-4g.20gb+mig-4g.20gb", "more than a GPU has"),
        ("1xA100:40GB@mig-1g.50gb", "more than a GPU has"),
        ("1000x:80GB@mig-1g.10gb", "no known form"),
        ("1000:80GB@" + "+".join(["mig-1g.10gb"] * 7), "at most 4096 GPUs are simulated, not 7000"),
    ],
)
def test_wrong_topologies(spec: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_spec(spec)
    assert why in str(caught.value) and len(str(caught.value)) < 600
