"""Batch jobs are the server's own user's alone: others see them, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from batch.box import Box, Gate
from cli.test_users import RUN_AS_OTHER, other_environment

AsOther = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def as_other(shared: Box) -> AsOther:
    """Runs commands as another user of this machine."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", f"import gpusched.client.submission\n{RUN_AS_OTHER}", *argv]
        environment = other_environment(shared.server)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, cwd="/", check=False
        )

    return call


def test_another_user(shared: Box, as_other: AsOther, gate: Gate) -> None:
    environment = {"KEY": "secret", "PATH": "/bin"}
    secret = shared.submit(f"echo secret words; {gate.words}", name="mine", environment=environment)
    shared.said(secret, "secret")
    done = as_other("submit", "--", "true")
    user = shared.job(secret).user
    assert (done.returncode, done.stdout) == (1, "")
    assert f"batch jobs run as the scheduler's own user, {user}, and are taken from {user} alone" in done.stderr
    seen = as_other("job", secret, "--json").stdout
    assert '"mine"' in seen and "secret" not in seen
    for argv in (["logs", secret], ["cancel", secret], ["requeue", secret], ["hold", secret]):
        done = as_other(*argv)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "secret" not in done.stderr and done.stderr.startswith("gpusched: ")
    for argv in (["set-state", secret, "failed", "--reason", "x"], ["doctor"]):
        done = as_other(*argv)
        assert (done.returncode, done.stdout) == (1, "")
        assert "only the user who runs the scheduler, and root, may do that" in done.stderr
    assert shared.state(secret) == "RUNNING"
    gate.open()
    shared.ended(secret)
    assert as_other("wait", secret).returncode == 0, "its end is no secret"
