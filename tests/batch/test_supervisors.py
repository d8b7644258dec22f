"""Supervisors that die at the worst moment, and ones that nobody is left to hear."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from batch.box import PATH, SOON, Box, is_dead, state_of
from support.server import SOURCE_ROOTS
from support.waiting import wait_until

NewBox = Callable[..., Box]


def patched(directory: Path, text: str) -> dict[str, str]:
    """Environment of a server whose agent, and so its supervisors, run some lines first."""
    lines = ["import sys", "if 'gpusched.scheduler.runner.agent' in sys.orig_argv:"]
    lines += [f"    {line}" for line in text.splitlines()]
    (directory / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    return {"PYTHONPATH": os.pathsep.join([str(directory), *SOURCE_ROOTS])}


DIES_BEFORE_IT_SHARES = """
import os, signal
from gpusched.scheduler.runner.link import Link
def die(self):
    if self._run.job_id == "1":
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)
    share(self)
share, Link._share_connection = Link._share_connection, die
"""


@pytest.mark.slow
def test_a_lease_outlives_a_supervisor_that_dies_before_its_agent_has_a_share(new_box: NewBox, tmp_path: Path) -> None:
    """Its stream has ended, and its command lives: the GPU goes to nobody until the agent has killed it."""
    box = new_box("1", env=patched(tmp_path, DIES_BEFORE_IT_SHARES))
    first = box.submit("setsid sleep 1000 & echo pid $!; wait")
    left = int(box.said(first, "pid").split()[1])
    second = box.submit(f"kill -0 {left} && echo alive || echo dead")
    agent = psutil.Process(box.job(first).holder_pid or left)
    while agent.name() != "gpusched-agent":
        agent = agent.parent() or pytest.fail("no agent above it")
    wait_until(lambda: agent.status() == psutil.STATUS_STOPPED, SOON)
    settled = time.monotonic() + 1.0
    while time.monotonic() < settled:
        assert (box.state(first), box.state(second)) == ("RUNNING", "QUEUED")
        assert not is_dead(left)
        time.sleep(0.05)
    agent.resume()
    assert state_of(box.ended(first)) == "LOST"
    assert box.job(first).outcome.message == "its supervisor was killed by SIGKILL"
    box.ended(second)
    assert box.log(second).endswith(b"dead\n")


IMPATIENT = """
from gpusched.scheduler.runner import supervisor
supervisor.LOOK_FOR_STATE_SECONDS = supervisor.ABANDONED_SECONDS = 0.3
"""


@pytest.mark.slow
def test_a_report_does_not_wait_for_ever_for_a_state_that_is_gone(new_box: NewBox, tmp_path: Path) -> None:
    """Moved it may come back; deleted it never will, and then nothing of ours is left."""
    box = new_box("2", env=patched(tmp_path, IMPATIENT))
    waits = box.submit("echo pid $$; sleep 1000", output_path=str(tmp_path / "log"))
    pid = int(box.said(waits, "pid").split()[1])
    supervisor = psutil.Process(wait_until(lambda: box.attached(waits), SOON).holder_pid)
    agent = supervisor.parent()
    assert agent is not None
    box.server.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_dead(pid), SOON)
    with pytest.raises(psutil.TimeoutExpired):
        supervisor.wait(1.0)  # while there is the state it waits
    shutil.rmtree(box.server.state_dir)
    wait_until(lambda: is_dead(supervisor.pid) and is_dead(agent.pid), SOON, "all of ours is gone")
    box.server.state_dir.mkdir()


@pytest.mark.slow
def test_peak_gpu_memory_of_the_jobs_own_processes(new_box: NewBox) -> None:
    """As seen on all its GPUs together; what sits there and is not the job's does not count."""
    from support.simulation import set_gpu

    box = new_box("2")
    job_id = box.submit("sleep 1000 & echo pid $!; wait $!; echo on; sleep 1000", gpus=2)
    pid = int(box.said(job_id, "pid").split()[1])
    wait_until(lambda: box.attached(job_id), SOON)
    mib = 1 << 20
    for gpu, seen in (
        (0, [(pid, 300 * mib)]),
        (1, [(pid, 200 * mib), (os.getpid(), 5000 * mib)]),
        (0, [(pid, 100 * mib)]),
        (0, []),
        (1, []),
    ):
        set_gpu(box.server.address, gpu, processes=seen)
    os.kill(pid, signal.SIGKILL)
    box.said(job_id, "on")
    other = box.submit("true", environment={"PATH": PATH})
    box.cancel(job_id)
    job = box.ended(job_id)
    assert job.usage.peak_gpu_memory_bytes == 500 * mib
    assert "at most 500 MiB of GPU memory" in box.good("job", job_id)
    assert '"peak_gpu_memory_bytes": "524288000"' in box.good("job", job_id, "--json")
    assert box.ended(other).usage.peak_gpu_memory_bytes == 0, "what the next one uses is its own"
