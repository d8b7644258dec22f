"""What another user of the machine may do, and what the administrator may do to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.commands import good
from cli.holders import Holder
from support.server import Server

TESTS = Path(__file__).parents[1]
OTHER_UID = 12345

# Everything is imported first: another user may not be able to read the interpreter's own files.
BECOME_OTHER = f"""
import encodings.ascii, encodings.idna, encodings.latin_1
import importlib, json, os, pkgutil, shlex, shutil, signal, sys, threading
import google.protobuf.json_format, google.rpc.error_details_pb2, google.rpc.status_pb2, grpc
import gpusched.v1, gpusched.client.cli, gpusched.client.admin, gpusched.client.serveruser, cli.holders
for package in (gpusched.v1, gpusched.client.cli):
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "__main__":
            importlib.import_module(f"{{package.__name__}}.{{module.name}}")
os.setgroups([])
os.setresgid({OTHER_UID}, {OTHER_UID}, {OTHER_UID})
os.setresuid({OTHER_UID}, {OTHER_UID}, {OTHER_UID})
"""

RUN_AS_OTHER = BECOME_OTHER + "sys.exit(gpusched.client.cli.main.run(sys.argv[1:]))"

HOLD_AS_OTHER = (
    BECOME_OTHER
    + """
holder = cli.holders.Holder(sys.argv[1])
holder.granted()
print(holder.id, flush=True)
print(holder.notice().message, flush=True)
"""
)


def other_environment(server: Server) -> dict[str, str]:
    return {**server.env, "PYTHONPATH": os.pathsep.join([server.env["PYTHONPATH"], str(TESTS)])}


@pytest.fixture
def as_other(server: Server) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs commands as another user of this machine."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RUN_AS_OTHER, *argv]
        return subprocess.run(command, env=other_environment(server), capture_output=True, text=True, timeout=60)

    return call


@pytest.mark.slow
def test_others_see_but_do_not_touch(server: Server, as_other: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    with Holder(server.address, name="mine", command=["python", "secret.py"]) as holder:
        holder.granted()
        assert "mine" in as_other("jobs").stdout
        assert "secret" not in as_other("job", holder.id, "--json").stdout
        assert "secret.py" in good(server, "job", holder.id)
        done = as_other("cancel", holder.id)
        assert done.returncode == 1
        assert done.stderr.startswith("gpusched: ") and holder.id in done.stderr
        for argv in (["pause"], ["drain", "3"], ["token"], ["sim", "gpu", "1", "--util", "3"]):
            done = as_other(*argv)
            assert (done.returncode, done.stdout) == (1, "")
            assert "only the user who runs the scheduler, and root, may do that" in done.stderr
        assert as_other("jobs", "--mine").stderr == "no jobs match\n"


def test_an_administrator_cancels_anybodys_job(
    server: Server, as_other: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    command = [sys.executable, "-c", HOLD_AS_OTHER, server.address]
    with subprocess.Popen(command, env=other_environment(server), stdout=subprocess.PIPE, text=True) as theirs:
        assert theirs.stdout is not None
        number = theirs.stdout.readline().strip()
        assert "is told to end" in good(server, "cancel", number, "--reason", "the box goes down")
        assert "the box goes down" in theirs.stdout.readline()
        assert theirs.wait(20) == 0
