"""The rooms: what lies where, and who imports whom. The rules themselves are in `.importlinter`."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = ("scheduler", "client", "generated")
ROOMS = ("scheduler/gpusched/scheduler", "client/gpusched/client", "generated/gpusched/v1")

# What is in the core may compute, and nothing else: no clock, chance, files, sockets, threads or environment.
CORE_MAY_IMPORT = {
    *("__future__", "abc", "bisect", "collections", "collections.abc", "dataclasses", "enum", "functools", "heapq"),
    *("itertools", "math", "operator", "re", "typing"),
}


def imported(file: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file that stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            names.add(node.module or "")
    return names


def console_scripts() -> dict[str, str]:
    scripts: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return scripts


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_the_namespace_has_no_module_of_its_own(root: str) -> None:
    """An `__init__.py` there would hide the other roots' shares."""
    assert [entry.name for entry in (ROOT / root).iterdir() if entry.is_dir() and entry.name != "__pycache__"] == [
        "gpusched"
    ]
    assert not list((ROOT / root).glob("*.py"))
    assert not list((ROOT / root / "gpusched").glob("*.py*"))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_typed_packages(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()
    assert not (ROOT / room).parent.joinpath("py.typed").exists(), "py.typed belongs to the rooms, not to the namespace"
    for file in (ROOT / room).rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), f"{file.parent} is not a package"


@pytest.mark.parametrize("script", console_scripts())
def test_console_scripts_can_be_called(script: str) -> None:
    module, _, function = console_scripts()[script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_schedulers_program_forks_before_grpc() -> None:
    """`serve --detach` forks in `main`, and gRPC must not have been imported by then."""
    probe = "import sys, gpusched.scheduler.main; print('grpc' in sys.modules or 'google.protobuf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("file", sorted((ROOT / ROOMS[0] / "core").rglob("*.py")), ids=lambda file: file.name)
def test_the_core_is_pure(file: Path) -> None:
    foreign = {name for name in imported(file) if not (name + ".").startswith("gpusched.scheduler.core.")}
    assert foreign <= CORE_MAY_IMPORT, f"{file.name} imports {sorted(foreign - CORE_MAY_IMPORT)}"


def test_the_walk_over_the_core_sees_every_import(tmp_path: Path) -> None:
    """Late ones, and `from x import y` without a name of its own, included."""
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    import os.path as o, time\n    from random import random\n")
    assert imported(planted) == {"os.path", "time", "random"}
    for line in ("from gpusched.scheduler import ports", "import gpusched.scheduler.corex", "import datetime"):
        planted.write_text(line)
        with pytest.raises(AssertionError):
            test_the_core_is_pure(planted)


# A contract of `.importlinter`, the file that breaks it, and how.
VIOLATIONS = [
    ("client", "client/gpusched/client/planted.py", "import gpusched.scheduler"),
    ("client", "client/gpusched/client/cli/planted.py", "def f():\n    from gpusched.scheduler import config"),
    ("scheduler", "scheduler/gpusched/scheduler/planted.py", "from gpusched.client import errors"),
    ("scheduler", "generated/gpusched/v1/planted.py", "import gpusched.client"),
    ("generated", "generated/gpusched/v1/planted.py", "import gpusched.scheduler"),
    ("core", "scheduler/gpusched/scheduler/core/planted.py", "import time"),
    ("core", "scheduler/gpusched/scheduler/core/planted.py", "from gpusched.scheduler import ports"),
    ("ports", "scheduler/gpusched/scheduler/ports.py", "import gpusched.scheduler.logs"),
    ("inventory", "scheduler/gpusched/scheduler/inventory/planted.py", "import gpusched.scheduler.logs"),
    ("inventory", "scheduler/gpusched/scheduler/inventory/planted.py", "from gpusched.v1 import job_pb2"),
    ("store", "scheduler/gpusched/scheduler/store/planted.py", "import gpusched.scheduler.codec"),
    ("runner", "scheduler/gpusched/scheduler/runner/planted.py", "import gpusched.scheduler.driver"),
    ("simulate", "scheduler/gpusched/scheduler/simulate/planted.py", "import gpusched.scheduler.driver"),
    ("wire", "scheduler/gpusched/scheduler/planted.py", "from gpusched.v1 import job_pb2"),
    ("wire", "scheduler/gpusched/scheduler/planted.py", "import grpc.aio"),
    ("wire", "scheduler/gpusched/scheduler/inventory/planted.py", "from google.protobuf import message"),
    ("adapters", "scheduler/gpusched/scheduler/planted.py", "import gpusched.scheduler.inventory.simulated"),
    ("adapters", "scheduler/gpusched/scheduler/rpc/planted.py", "from gpusched.scheduler import inventory"),
    ("adapters", "scheduler/gpusched/scheduler/rpc/planted.py", "import gpusched.scheduler.store.sqlite"),
    ("adapters", "scheduler/gpusched/scheduler/driver.py", "import gpusched.scheduler.runner.runner"),
]


def environment(roots: Path = ROOT) -> dict[str, str]:
    return {"PYTHONPATH": ":".join(str(roots / root) for root in SOURCE_ROOTS), "PATH": "/usr/bin:/bin"}


def lint(roots: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports_command as c; c(sys.argv[1:])"
    limit = [word for contract in contracts for word in ("--contract", contract)]
    return subprocess.run(
        [sys.executable, "-c", code, "--config", str(ROOT / ".importlinter"), "--no-cache", *limit],
        capture_output=True,
        text=True,
        env=environment(roots),
        cwd=roots,
        check=False,
        timeout=60,
    )


def test_import_contracts_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len({contract for contract, _, _ in VIOLATIONS})} kept, 0 broken" in done.stdout, "a contract is untested"


@pytest.mark.slow
@pytest.mark.parametrize(("contract", "file", "line"), VIOLATIONS)
def test_import_contracts_catch_what_they_are_for(contract: str, file: str, line: str, tmp_path: Path) -> None:
    for root in SOURCE_ROOTS:
        shutil.copytree(ROOT / root, tmp_path / root, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a") as planted:
        planted.write(f"\n{line}\n")
    done = lint(tmp_path, contract)
    assert done.returncode != 0 and "0 kept, 1 broken" in done.stdout, done.stdout + done.stderr
