"""The examples run as they say."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpusched.client import Client
from support.scripts import Script
from support.server import ROOT
from support.waiting import wait_until

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_example(path, server, tmp_path):
    with Client(server.address) as client:
        last = max((int(job.id) for job in client.jobs(include_ended=True)), default=0)
    ran = subprocess.run(
        [sys.executable, path], env=server.env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
    assert "Traceback" not in ran.stderr
    with Client(server.address) as client:
        assert client.status().gpus_allocated == 0
        ours = [job for job in client.jobs(include_ended=True) if int(job.id) > last]
        assert all(job.outcome.exit_status == 0 for job in ours)


def test_the_training_loop_saves_and_goes_on(server, tmp_path):
    checkpoint = tmp_path / "c.json"
    program = (ROOT / "examples" / "training_loop.py").read_text()
    arguments = f"import sys; sys.argv = ['x', {str(checkpoint)!r}, '100000']\n"
    with Script(arguments + program, server.env) as script, Client(server.address) as client:
        assert "from step 0 " in script.line()
        wait_until(lambda: client.jobs())
        client.cancel(client.jobs()[0].id, "somebody else needs it")
        assert "told to end: " in script.line()
        assert "saved at step" in script.line()
        assert script.wait() == 0
    with Script(arguments + program, server.env) as script:
        line = script.line()
        assert "from step" in line
        assert "from step 0 " not in line
    assert Path(checkpoint).exists()
