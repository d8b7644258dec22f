"""Supervisors that do one quick run after the other: nothing of one shows in the next, and nothing is less safe."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from batch.box import PATH, SOON, Box, is_dead, state_of
from batch.test_supervisors import patched
from gsrun.running import FOREST
from support.waiting import wait_until

NewBox = Callable[..., Box]

PROMPT = 10.0
"""Seconds; a run of which nobody tells is found missing after 30."""

#: A machine that is busy with other things is slow: "quick" is longer than in earnest, and nobody is dismissed early.
PATIENT = """
from gpusched.scheduler.runner import again, supervisor
supervisor.QUICK_SECONDS = 2.0
supervisor.FIRST_SAMPLE_SECONDS = 5.0
again.IDLE_SECONDS = 60.0
"""


@pytest.fixture
def box(new_box: NewBox, tmp_path: Path) -> Box:
    """One GPU, so that one run follows the other."""
    return new_box("1", env=patched(tmp_path, PATIENT))


def supervisor_of(box: Box, script: str = "", **fields: object) -> int:
    """The process id of what supervised a run, once it has ended and its supervisor is gone or ready."""
    job = box.submit(f"echo parent $PPID; {script}", **fields)
    box.ended(job)
    pid = parent(box, job)
    settle(pid)
    return pid


def parent(box: Box, job: str) -> int:
    return int(box.said(job, "parent").split()[1])


def settle(pid: int) -> None:
    wait_until(lambda: is_dead(pid) or is_ready(pid), SOON, "an end of the supervisor, or its offer")


def is_ready(pid: int) -> bool:
    try:
        return psutil.Process(pid).name() == "gpusched-ready"
    except psutil.NoSuchProcess:
        return False


def complaints(box: Box) -> list[str]:
    """What agent and supervisors had to say."""
    return [line for line in (box.server.state_dir / "agent.log").read_text().splitlines() if "gpusched: " in line]


def test_quick_runs_share_a_supervisor(box: Box) -> None:
    first = supervisor_of(box)
    assert is_ready(first)
    assert [supervisor_of(box, "exit 3") for _ in range(5)] == [first] * 5
    assert complaints(box) == []


SEEN = """
pwd; umask; ulimit -a; ls /proc/self/fd; grep -E '^(Sig|Shd|Cap|NoNew|Groups|Cpus_allowed)' /proc/self/status
cat /proc/self/oom_score_adj /proc/self/cgroup; nice; tr '\\0' '\\n' </proc/self/environ | grep -v -E '^GPUSCHED_|^_='
"""
MESS = "cd /tmp; umask 0; export MESS=1; trap '' TERM HUP USR1; ulimit -S -n 77; ulimit -S -c 0; exec 7>/dev/null"


def test_nothing_of_a_run_shows_in_the_next(box: Box, tmp_path: Path) -> None:
    """What the second finds is what it would have found as the first."""
    secret = {"PATH": PATH, "SECRET": "of the first"}
    log = tmp_path / "log"
    first = supervisor_of(box, MESS, environment=secret, working_directory=str(tmp_path), output_path=str(log))
    seen = box.submit(f"echo parent $PPID; {SEEN}")
    box.ended(seen)
    assert parent(box, seen) == first
    assert str(tmp_path) not in str(psutil.Process(first).open_files())
    psutil.Process(first).kill()
    wait_until(lambda: is_dead(first), SOON)
    fresh = box.submit(f"echo parent $PPID; {SEEN}")
    box.ended(fresh)
    assert parent(box, fresh) != first
    found = [box.log(job).partition(b"\n")[2] for job in (seen, fresh)]
    assert found[0] == found[1]
    assert b"SECRET" not in found[0]
    assert len(found[0].splitlines()) > 20


@pytest.mark.slow
def test_usage_is_that_of_one_run(box: Box) -> None:
    burn = f"{sys.executable} -c 'import time\nwhile time.process_time() < 0.5: pass'"
    first = supervisor_of(box, burn)
    job = box.submit("echo parent $PPID")
    cpu = box.ended(job).usage.cpu.ToNanoseconds() / 1e9
    assert parent(box, job) == first
    assert 0.0 < cpu < 0.3


CHANGES = {
    "": "",
    "nice": "os.setpriority(os.PRIO_PROCESS, parent, 5)",
    "limit": "resource.prlimit(parent, resource.RLIMIT_STACK, (2**20, resource.prlimit(parent, 3)[1]))",
    "files": "resource.prlimit(parent, resource.RLIMIT_NOFILE, (99, resource.prlimit(parent, 7)[1]))",
    "cpus": "os.sched_setaffinity(parent, {min(os.sched_getaffinity(parent))})",
    "oom": "open(f'/proc/{parent}/oom_score_adj', 'w').write('777')",
    "policy": "os.sched_setscheduler(parent, os.SCHED_BATCH, os.sched_param(0))",
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_supervisor_that_was_changed_does_no_other_run(box: Box, change: str) -> None:
    if change == "cpus" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU only")
    script = f"import os, resource; parent = os.getppid(); print('parent', parent, flush=True); {CHANGES[change]}"
    before = box.submit(sys.executable, "-c", script)
    job = box.ended(before)
    assert state_of(job) == "COMPLETED", box.log(before)
    pid = parent(box, before)
    settle(pid)
    assert is_dead(pid) == bool(change)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["kill -9 $$", "kill -HUP $PPID; sleep 0.01", "setsid sleep 1000 & :", "(sleep 0.05; exit) &"]
)
def test_a_supervisor_with_an_unusual_run_does_no_other(box: Box, script: str) -> None:
    assert is_dead(supervisor_of(box, script))
    assert state_of(box.ended(box.submit("true"))) == "COMPLETED"


@pytest.mark.slow
def test_a_daemon_is_dead_before_the_next_run(box: Box) -> None:
    first = supervisor_of(box)
    leaves = box.submit("setsid sh -c 'trap \"\" TERM; echo daemon $$; while :; do sleep 1; done' & echo parent $PPID")
    follows = box.submit("echo parent $PPID; ps -eo pid= -o comm= | tr -s ' '")
    box.ended(follows)
    (daemon,) = [int(line.split()[1]) for line in box.log(leaves).splitlines() if line.startswith(b"daemon")]
    assert f"parent {first}" in box.log(leaves).decode()
    assert parent(box, follows) != first
    assert str(daemon) not in [line.split()[0] for line in box.log(follows).decode().splitlines()[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("attached", [False, True])
def test_a_supervisor_killed_in_its_second_run_leaves_nothing(box: Box, attached: bool) -> None:
    first = supervisor_of(box)
    job = box.submit("sh", "-c", f"echo parent $PPID; exec {sys.executable} {FOREST} 10")
    box.said(job, "ready")
    assert parent(box, job) == first
    if attached:
        wait_until(lambda: box.attached(job), SOON)
    tree = psutil.Process(first).children(recursive=True)
    assert len(tree) > 10
    after = box.submit("for pid in " + " ".join(str(each.pid) for each in tree) + "; do kill -0 $pid; done")
    began = time.monotonic()
    os.kill(first, signal.SIGKILL)
    ended = box.ended(job)
    assert time.monotonic() - began < PROMPT, "the agent told of another run, or of none"
    assert state_of(ended) == "LOST"
    assert ended.outcome.message.startswith("its supervisor ")  # was killed, or went away: whoever is told first
    box.ended(after)
    assert box.log(after).count(b"No such process") == len(tree), "the GPU was free while something lived"


@pytest.mark.slow
def test_an_agent_killed_in_a_second_run_harms_it_not(box: Box, tmp_path: Path) -> None:
    first = supervisor_of(box)
    go_on = tmp_path / "go on"
    job = box.submit(f"echo parent $PPID; until [ -e '{go_on}' ]; do sleep 0.02; done; exit 4")
    assert parent(box, job) == first
    agent = psutil.Process(first).parent()
    assert agent is not None
    agent.kill()
    agent.wait()
    wait_until(lambda: box.attached(job), SOON)
    go_on.touch()
    assert box.ended(job).outcome.exit_status == 4


def test_a_ready_supervisor_that_is_killed_is_no_loss(box: Box) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        ready = supervisor_of(box)
        os.kill(ready, number)
        wait_until(lambda ready=ready: is_dead(ready), SOON)
        job = box.submit("echo parent $PPID")
        assert state_of(box.ended(job)) == "COMPLETED"
        assert parent(box, job) != ready
    assert complaints(box) == []


def test_a_run_too_large_for_a_message_has_a_supervisor_of_its_own(box: Box) -> None:
    first = supervisor_of(box)
    large = {"PATH": PATH, **{f"V{i}": "x" * 1000 for i in range(100)}}
    second = supervisor_of(box, "echo $V99 | wc -c", environment=large)
    assert second != first
    assert is_ready(first)


def test_a_supervisor_does_so_many_runs_and_no_more(new_box: NewBox, tmp_path: Path) -> None:
    box = new_box("1", env=patched(tmp_path, f"{PATIENT}\nagain.MOST_RUNS = 3\n"))
    pids = [supervisor_of(box) for _ in range(4)]
    assert pids[:3] == pids[:1] * 3
    assert is_dead(pids[0])
    assert pids[3] != pids[0]


@pytest.mark.slow
def test_ready_supervisors_end_soon_where_nothing_comes(new_box: NewBox, tmp_path: Path) -> None:
    box = new_box("1", env=patched(tmp_path, f"{PATIENT}\nagain.IDLE_SECONDS = 1.0\n"))
    began = time.monotonic()
    ready = supervisor_of(box)
    wait_until(lambda: is_dead(ready), SOON)
    assert time.monotonic() - began > 1.0
    assert complaints(box) == []


def test_ready_supervisors_end_with_their_server(box: Box) -> None:
    ready = supervisor_of(box)
    agent = psutil.Process(ready).ppid()
    box.server.kill()
    wait_until(lambda: is_dead(ready) and is_dead(agent), SOON)
