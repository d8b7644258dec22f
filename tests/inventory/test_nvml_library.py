"""The real nvidia-ml-py over a stand-in for the driver's C library: structures, versions and error codes for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the stand-in for libnvidia-ml with")

PROGRAM = """
import dataclasses, json
from gpusched.scheduler.inventory.nvml import NvmlInventory
inventory = NvmlInventory(node_name="box")
(node,) = inventory.discover()
readings = [dataclasses.asdict(inventory.read(gpu.uuid)) for gpu in node.devices]
print(json.dumps({"node": dataclasses.asdict(node), "readings": readings}), flush=True)
inventory.close()
"""


@pytest.fixture(scope="module")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER is not None
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return folder


def _ask(folder: Path, **extra: str) -> Any:
    """What the inventory says in a process that finds the stand-in as the driver's library."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(sys.path),
        **extra,
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer, farewell = done.stdout.splitlines()
    assert farewell == "shut down"
    return json.loads(answer)


def test_through_the_c_interface(library_folder: Path) -> None:
    answer = _ask(library_folder, FAKE_NVML_PID=str(os.getpid()))
    assert answer["node"]["driver_version"] == "555.42.06"
    first, second = answer["node"]["devices"]
    assert (first["uuid"], first["index"], first["model"]) == ("GPU-fake-0", 0, "NVIDIA Fake")
    assert first["memory_bytes"] == 24 * 1024**3
    assert second["uuid"] == "GPU-fake-1"
    busy, idle = answer["readings"]
    assert busy["memory_used_bytes"] == 3 * 1024**3
    assert (busy["utilization_percent"], busy["temperature_celsius"], busy["power_watts"]) == (41, 55, 123.456)
    me, stranger = busy["processes"]
    assert (me["pid"], me["memory_bytes"], me["uid"]) == (os.getpid(), 3 * 1024**3, os.getuid())
    assert me["ancestors"][0][0] == os.getpid()
    assert (stranger["memory_bytes"], stranger["user"]) == (0, "?")
    assert (busy["fault"], idle["fault"], idle["processes"]) == ("", "", [])


def test_faults_through_the_c_interface(library_folder: Path) -> None:
    first, second = _ask(library_folder, FAKE_NVML_XID="48", FAKE_NVML_LOST="1")["readings"]
    assert first["fault"] == "Xid 48: uncorrectable memory error (double-bit ECC)"
    assert second["fault"].startswith("the GPU is lost")
    assert second["memory_used_bytes"] == -1


def test_a_programs_xid_through_the_c_interface(library_folder: Path) -> None:
    assert _ask(library_folder, FAKE_NVML_XID="31")["readings"][0]["fault"] == ""
