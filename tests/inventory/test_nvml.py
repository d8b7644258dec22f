"""The NVML inventory against a stand-in for the driver library."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pynvml
import pytest

from gpusched.scheduler.inventory.nvml import DEFAULT_IGNORED, NvmlInventory
from gpusched.scheduler.ports import Inventory, InventoryError
from inventory.fake_nvml import GIB, NOT_SUPPORTED, FakeGpu, FakeNvml, error, process

LOST = pynvml.NVML_ERROR_GPU_IS_LOST
GONE_PID = 2**22 + 7  # above the kernel's highest pid


def _one(gpu: FakeGpu, **options: object) -> tuple[NvmlInventory, FakeNvml]:
    fake = FakeNvml(gpu)
    inventory = NvmlInventory(nvml=fake, **options)  # type: ignore[arg-type]
    inventory.discover()
    return inventory, fake


def _gpu(**values: object) -> FakeGpu:
    return FakeGpu("GPU-a", "00000000:3B:00.0", **values)  # type: ignore[arg-type]


def test_it_is_an_inventory() -> None:
    inventory: Inventory = NvmlInventory(nvml=FakeNvml())
    assert inventory.mode == "real"
    assert inventory.blocking


def test_gpus_are_numbered_in_pci_order_whatever_order_the_driver_has() -> None:
    fake = FakeNvml(
        FakeGpu("GPU-c", "00000001:02:00.0"),
        FakeGpu("GPU-b", "0000:C1:00.0"),  # an older driver's short form
        FakeGpu("GPU-a", "00000000:3B:00.0", name="NVIDIA A100-SXM4-40GB", total=40 * GIB),
    )
    (node,) = NvmlInventory(nvml=fake, node_name="box").discover()
    assert [(gpu.index, gpu.uuid) for gpu in node.devices] == [(0, "GPU-a"), (1, "GPU-b"), (2, "GPU-c")]
    first = node.devices[0]
    assert (first.model, first.memory_bytes, first.node, first.simulated) == (
        "NVIDIA A100-SXM4-40GB",
        40 * GIB,
        "box",
        False,
    )
    assert (node.name, node.local, node.driver_version) == ("box", True, "580.95.05")


def test_node_is_named_after_the_host() -> None:
    (node,) = NvmlInventory(nvml=FakeNvml(_gpu())).discover()
    assert node.name == socket.gethostname()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver library"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "driver is not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "reboot"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
    ],
)
def test_without_a_driver_the_error_says_so_and_names_the_simulation(code: int, words: str) -> None:
    with pytest.raises(InventoryError) as caught:
        NvmlInventory(nvml=FakeNvml(init_error=error(code))).discover()
    assert str(caught.value).startswith("no NVIDIA driver/GPU found (")
    assert words in str(caught.value)
    assert "--simulate 8" in str(caught.value)


def test_a_driver_without_gpus_is_an_error() -> None:
    with pytest.raises(InventoryError, match=r"names no GPU.*--simulate 8"):
        NvmlInventory(nvml=FakeNvml()).discover()


def test_a_gpu_that_cannot_be_opened_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    lost = FakeGpu("GPU-x", "00000000:01:00.0", opening=error(LOST))
    (node,) = NvmlInventory(nvml=FakeNvml(lost, _gpu())).discover()
    assert [gpu.uuid for gpu in node.devices] == ["GPU-a"]
    assert "GPU 0 of the driver" in caplog.text
    with pytest.raises(InventoryError, match="the GPU is lost"):
        NvmlInventory(nvml=FakeNvml(lost)).discover()


def test_the_real_library_on_a_machine_without_driver() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        pass
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(InventoryError, match=r"no NVIDIA driver/GPU found \(.*--simulate 8"):
        NvmlInventory().discover()


def test_importing_the_inventory_does_not_load_the_driver_library() -> None:
    code = "import sys, gpusched.scheduler.inventory.choose; sys.exit('pynvml' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0


def test_a_reading() -> None:
    inventory, _ = _one(_gpu(used=11 * GIB, utilization=97, temperature=61, milliwatts=412_250))
    reading = inventory.read("GPU-a")
    assert reading.memory_used_bytes == 11 * GIB, "without what the driver keeps for itself"
    assert (reading.utilization_percent, reading.temperature_celsius, reading.power_watts) == (97, 61, 412.25)
    assert (reading.processes, reading.fault) == ((), "")


def test_readings_that_a_gpu_does_not_support_are_not_faults() -> None:
    unsupported = error(NOT_SUPPORTED)
    inventory, fake = _one(
        _gpu(
            used=unsupported,
            utilization=unsupported,
            temperature=error(pynvml.NVML_ERROR_NO_PERMISSION),
            milliwatts=unsupported,
            compute=unsupported,
            graphics=unsupported,
            mps=unsupported,
            events_supported=False,
        )
    )
    reading = inventory.read("GPU-a")
    assert reading.fault == ""
    assert (reading.memory_used_bytes, reading.utilization_percent) == (-1, -1)
    assert (reading.temperature_celsius, reading.power_watts) == (-1, -1.0)
    assert inventory.processes("GPU-a") == ()
    assert all(events.freed for events in fake.event_sets)


def test_memory_by_the_older_function_where_the_newer_is_missing() -> None:
    fake = FakeNvml(_gpu(used=GIB))
    fake.missing.add("nvmlDeviceGetMemoryInfo_v2")
    inventory = NvmlInventory(nvml=fake)
    inventory.discover()
    assert inventory.read("GPU-a").memory_used_bytes == GIB + 600 * 1024**2


@pytest.mark.parametrize("list_name", ["compute", "graphics", "mps"])
def test_processes_of_every_list_are_seen(list_name: str) -> None:
    inventory, _ = _one(_gpu(**{list_name: [process(os.getpid(), 3 * GIB)]}))
    (seen,) = inventory.processes("GPU-a")
    assert (seen.pid, seen.memory_bytes, seen.uid) == (os.getpid(), 3 * GIB, os.getuid())
    assert seen.ancestors[0] == (seen.pid, seen.start_ticks)
    assert inventory.read("GPU-a").processes == (seen,)


def test_a_process_in_several_lists_counts_once() -> None:
    me = os.getpid()
    inventory, _ = _one(_gpu(compute=[process(me, None)], graphics=[process(me, 2 * GIB)], mps=[process(me, GIB)]))
    (seen,) = inventory.processes("GPU-a")
    assert seen.memory_bytes == 2 * GIB


def test_unknown_memory_is_zero() -> None:
    inventory, _ = _one(_gpu(compute=[process(os.getpid(), None)]))
    assert inventory.processes("GPU-a")[0].memory_bytes == 0


def test_a_pid_of_another_namespace_is_still_reported() -> None:
    inventory, _ = _one(_gpu(compute=[process(GONE_PID, GIB)]))
    (seen,) = inventory.processes("GPU-a")
    assert (seen.pid, seen.user, seen.command, seen.uid, seen.ancestors) == (GONE_PID, "?", "?", -1, ())
    assert seen.memory_bytes == GIB


def _fake_proc(root: Path, pid: int, command: str, cmdline: str = "") -> None:
    folder = root / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} ({command}) S 0 " + " ".join(["0"] * 17) + " 1000 0 0")
    (folder / "status").write_text(f"Name:\t{command}\nUid:\t0\t0\t0\t0\n")
    (folder / "cmdline").write_text(cmdline.replace(" ", "\0"))


def test_ignored_processes_are_left_out(tmp_path: Path) -> None:
    _fake_proc(tmp_path, 10, "Xorg")
    _fake_proc(tmp_path, 11, "nvidia-cuda-mps", "/usr/bin/nvidia-cuda-mps-server -f")  # name cut by the kernel
    _fake_proc(tmp_path, 12, "python")
    _fake_proc(tmp_path, 13, "Xorgish")
    _fake_proc(tmp_path, 14, "watcher-7")
    gpu = _gpu(compute=[process(pid, GIB) for pid in (10, 11, 12, 13, 14)])
    inventory, _ = _one(gpu, proc_root=tmp_path)
    assert [seen.pid for seen in inventory.processes("GPU-a")] == [12, 13, 14]
    inventory, _ = _one(gpu, proc_root=tmp_path, ignore=DEFAULT_IGNORED | {"watcher-*"})
    assert [seen.pid for seen in inventory.read("GPU-a").processes] == [12, 13]
    inventory, _ = _one(gpu, proc_root=tmp_path, ignore=frozenset())
    assert len(inventory.processes("GPU-a")) == 5


def test_process_lists_of_older_drivers() -> None:
    fake = FakeNvml(_gpu(compute=[process(GONE_PID, GIB)]))
    fake.missing.update({"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v3"})
    fake.missing.add("nvmlDeviceGetMPSComputeRunningProcesses_v2")
    inventory = NvmlInventory(nvml=fake)
    inventory.discover()
    assert [seen.pid for seen in inventory.processes("GPU-a")] == [GONE_PID]


def test_a_driver_that_cannot_list_processes_at_all_is_a_fault_and_not_an_empty_gpu() -> None:
    fake = FakeNvml(_gpu(compute=[process(GONE_PID, GIB)]))
    fake.missing.update(
        {"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"},
    )
    inventory = NvmlInventory(nvml=fake)
    inventory.discover()
    with pytest.raises(OSError, match="too old"):
        inventory.processes("GPU-a")
    assert "too old" in inventory.read("GPU-a").fault


def test_no_permission_to_list_processes_is_a_fault_and_not_an_empty_gpu() -> None:
    inventory, _ = _one(_gpu(compute=error(pynvml.NVML_ERROR_NO_PERMISSION)))
    with pytest.raises(OSError, match="cannot tell what runs on GPU 0: this user has no permission"):
        inventory.processes("GPU-a")
    assert "no permission" in inventory.read("GPU-a").fault


def test_a_list_that_grows_while_it_is_read_is_read_again() -> None:
    answers = [error(pynvml.NVML_ERROR_INSUFFICIENT_SIZE), [process(GONE_PID, GIB)]]

    def grow() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    inventory, _ = _one(_gpu(compute=grow))
    assert [seen.pid for seen in inventory.processes("GPU-a")] == [GONE_PID]
    inventory, _ = _one(_gpu(compute=error(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)))
    with pytest.raises(OSError):
        inventory.processes("GPU-a")


def test_a_lost_gpu_is_a_reading_with_a_fault_and_few_calls() -> None:
    inventory, fake = _one(_gpu())
    fake.gpus[0].broken = error(LOST)
    fake.calls.clear()
    reading = inventory.read("GPU-a")
    assert reading.fault == "the GPU is lost: it has fallen off the bus or no longer answers the driver"
    assert (reading.memory_used_bytes, reading.utilization_percent) == (-1, -1)
    assert set(fake.calls) == {"nvmlDeviceGetMemoryInfo"}
    with pytest.raises(OSError, match="GPU 0: the GPU is lost"):
        inventory.processes("GPU-a")


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_any_error_where_a_healthy_gpu_answers_is_a_fault(code: int) -> None:
    inventory, _ = _one(_gpu(compute=error(code)))
    assert inventory.read("GPU-a").fault


def test_errors_in_readings_for_show_are_faults_only_if_they_mean_a_sick_gpu() -> None:
    inventory, _ = _one(_gpu(utilization=error(pynvml.NVML_ERROR_UNKNOWN)))
    assert inventory.read("GPU-a").fault == ""
    inventory, _ = _one(_gpu(temperature=error(pynvml.NVML_ERROR_RESET_REQUIRED)))
    assert "must be reset" in inventory.read("GPU-a").fault


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ecc": 0, "pages_pending": 0, "remapped": (3, 1, 1, 0)}, ""),
        ({"ecc": 2}, "2 uncorrectable memory errors (ECC)"),
        ({"ecc": 1}, "1 uncorrectable memory error (ECC)"),
        ({"pages_pending": 1}, "wait to be retired"),
        ({"remapped": (3, 1, 0, 1)}, "could not be remapped"),
    ],
)
def test_failing_memory(values: dict[str, object], words: str) -> None:
    inventory, _ = _one(_gpu(**values))
    fault = inventory.read("GPU-a").fault
    assert words in fault
    assert bool(fault) == bool(words)


def test_an_accepted_memory_error_is_a_fault_again_when_there_are_more_of_them() -> None:
    inventory, fake = _one(_gpu(ecc=2))
    assert inventory.read("GPU-a").fault
    inventory.clear_fault("GPU-a")
    assert inventory.read("GPU-a").fault == ""
    fake.gpus[0].ecc = error(pynvml.NVML_ERROR_UNKNOWN)  # a count that is missed once changes nothing
    inventory.read("GPU-a")
    fake.gpus[0].ecc = 2
    assert inventory.read("GPU-a").fault == ""
    fake.gpus[0].ecc = 3
    assert inventory.read("GPU-a").fault
    inventory.clear_fault("GPU-a")
    fake.gpus[0].ecc = 0  # reset
    assert inventory.read("GPU-a").fault == ""
    fake.gpus[0].ecc = 1
    assert inventory.read("GPU-a").fault


def test_xids_of_programs_are_no_fault_and_those_of_hardware_stay_until_cleared() -> None:
    other = FakeGpu("GPU-b", "00000000:5E:00.0")
    fake = FakeNvml(_gpu(), other)
    inventory = NvmlInventory(nvml=fake)
    inventory.discover()
    fake.gpus[0].xids += [13, 31, 43, 45, 63, 94, 999]
    assert inventory.read("GPU-a").fault == ""
    assert fake.gpus[0].xids == [], "all that waited were looked at"
    fake.gpus[0].xids += [31, 79, 48]
    assert inventory.read("GPU-a").fault == "Xid 79: GPU has fallen off the bus"
    assert inventory.read("GPU-a").fault == "Xid 79: GPU has fallen off the bus"
    assert inventory.read("GPU-b").fault == ""
    inventory.clear_fault("GPU-a")
    assert inventory.read("GPU-a").fault == ""


def test_several_faults_are_all_named() -> None:
    inventory, fake = _one(_gpu(ecc=4))
    fake.gpus[0].xids.append(48)
    fault = inventory.read("GPU-a").fault
    assert "Xid 48" in fault
    assert "4 uncorrectable" in fault


def test_a_flood_of_events_does_not_hold_up_a_reading() -> None:
    inventory, fake = _one(_gpu())
    fake.gpus[0].xids += [31] * 1000
    inventory.read("GPU-a")
    assert len(fake.gpus[0].xids) > 800


def test_an_unknown_gpu() -> None:
    inventory, _ = _one(_gpu())
    for ask in (inventory.read, inventory.processes, inventory.clear_fault):
        with pytest.raises(KeyError):
            ask("GPU-zzz")


def test_close_lets_go_once() -> None:
    inventory, fake = _one(_gpu())
    inventory.close()
    inventory.close()
    assert fake.shut_down == 1
    assert all(events.freed for events in fake.event_sets)
    unused = FakeNvml(_gpu())
    NvmlInventory(nvml=unused).close()
    assert unused.shut_down == 0


def test_a_hung_gpu_holds_up_neither_its_neighbour_nor_close() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hang() -> list[object]:
        inside.set()
        assert go_on.wait(30)
        return []

    fake = FakeNvml(_gpu(compute=hang), FakeGpu("GPU-b", "00000000:5E:00.0"))
    inventory = NvmlInventory(nvml=fake)
    inventory.discover()
    stuck = threading.Thread(target=inventory.processes, args=("GPU-a",))
    stuck.start()
    try:
        assert inside.wait(10)
        assert inventory.read("GPU-b").fault == ""
        inventory.close()
        assert stuck.is_alive(), "close came back although the call still hangs"
        assert fake.shut_down == 0, "shutting down would wait for the hung call"
    finally:
        go_on.set()
        stuck.join(10)
