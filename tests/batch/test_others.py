"""Batch jobs are the server's own user's alone: others see them, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from batch.box import Box, Gate
from cli.test_users import BECOME_OTHER, other_environment

RUN_ALL = f"""
import contextlib, io, json, sys
import gpusched.client.submission
{BECOME_OTHER}
answers = []
for argv in json.loads(sys.argv[1]):
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = gpusched.client.cli.main.run(argv)
    answers.append([status, *(each.buffer.getvalue().decode() for each in (out, err))])
print(json.dumps(answers))
"""


def as_other(box: Box, *commands: list[str]) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of commands that another user of this machine gives."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        env=other_environment(box.server),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(answer) for answer in json.loads(done.stdout)]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_user(shared: Box, gate: Gate) -> None:
    environment = {"KEY": "secret", "PATH": "/bin"}
    job_id = shared.submit(f"echo secret words; {gate.words}", name="mine", environment=environment)
    shared.said(job_id, "secret")
    user = shared.job(job_id).user
    submit, look, *steer, force, doctor = as_other(
        shared,
        ["submit", "--", "true"],
        ["job", job_id, "--json"],
        *(["logs", job_id], ["cancel", job_id], ["requeue", job_id], ["hold", job_id]),
        ["set-state", job_id, "failed", "--reason", "x"],
        ["doctor"],
    )
    status, out, err = submit
    assert (status, out) == (1, "")
    assert f"batch jobs run as the scheduler's own user, {user}, and are taken from {user} alone" in err
    assert look[0] == 0 and '"mine"' in look[1] and "secret" not in look[1]
    assert len(steer) == 4
    for status, out, err in steer:
        assert (status, out) == (1, "") and "secret" not in err and err.startswith("gpusched: ")
    for status, out, err in (force, doctor):
        assert (status, out) == (1, "")
        assert "only the user who runs the scheduler, and root, may do that" in err
    assert shared.state(job_id) == "RUNNING"
    gate.open()
    assert as_other(shared, ["wait", job_id])[0][0] == 0, "its end is no secret"
