"""gsrun inside a lease uses that lease, and never queues behind itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

from gpusched.v1 import scheduler_pb2, scheduler_pb2_grpc
from gsrun.conftest import GPUS
from gsrun.running import GSRUN, Gsrun
from support.server import Server

Start = Callable[..., Gsrun]
Stub = scheduler_pb2_grpc.SchedulerStub
ALL = ("-n", str(GPUS))
INNER = " ".join(GSRUN)
SHOW = "sh -c 'echo $CUDA_VISIBLE_DEVICES $GPUSCHED_GPUS $GPUSCHED_JOB_ID'"


def test_inner_gets_a_part_at_once(gsrun: Start) -> None:
    run = gsrun(*ALL, "sh", "-c", f"{SHOW}; {INNER} -n 2 {SHOW}; {INNER} {SHOW}; {INNER} -n 2 {INNER} {SHOW}")
    assert run.wait() == 0
    outer, two, one, inner_of_two = (line.split() for line in run.out.splitlines())
    assert (outer[0], two[0], one[0], inner_of_two[0]) == ("0,1,2,3", "0,1", "0", "0")
    assert outer[1].split(",")[:2] == two[1].split(",")
    assert len({outer[2], two[2], one[2], inner_of_two[2]}) == 1
    assert run.err == ""


def test_the_command_talks_to_the_scheduler_of_its_lease(idle: Server) -> None:
    """Also if that was named by `--url` alone."""
    env = {name: value for name, value in idle.env.items() if name != "GPUSCHED_URL"}
    show = 'echo $GPUSCHED_URL; "$@" status --json'
    command = ["sh", "-c", show, "sh", sys.executable, "-m", "gpusched.client.cli"]
    url = f"grpc://localhost:{idle.port}"
    done = subprocess.run([*GSRUN, "--url", url, *command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    address, _, document = done.stdout.partition("\n")
    assert address == idle.address
    assert json.loads(document)["address"] == idle.address


def test_inner_is_the_command_itself(gsrun: Start) -> None:
    """No second pair of processes, no second lease; its status and signals are its own."""
    run = gsrun("sh", "-c", f"echo $$; exec {INNER} sh -c 'echo $$; exit 5'")
    assert run.wait() == 5
    first, second = run.out.split()
    assert first == second


def test_inner_asks_for_too_many(gsrun: Start) -> None:
    run = gsrun("-n", "2", "sh", "-c", f"{INNER} -n 3 true; echo $?")
    assert run.wait() == 0
    assert run.out == "2\n"
    assert "-n: 3 will not do: this runs inside job" in run.err
    assert "which has 2 GPUs" in run.err


def test_new_lease_on_demand(gsrun: Start) -> None:
    run = gsrun("-n", "2", "sh", "-c", f"echo $GPUSCHED_JOB_ID; GPUSCHED_NESTED=new {INNER} -n 2 {SHOW}")
    assert run.wait() == 0
    outer, inner = run.out.splitlines()
    assert inner.split()[0] == "2,3"
    assert inner.split()[2] != outer


def test_options_without_effect_are_named(gsrun: Start) -> None:
    run = gsrun("sh", "-c", f"{INNER} --time 1h --name x --url 127.0.0.1:1 true")
    assert run.wait() == 0
    assert "this has no effect: --time, --name, --url" in run.err


def test_environment_that_outlived_its_lease(gsrun: Start, idle: Server) -> None:
    """A tmux started under a lease keeps its variables: they must not be believed."""
    run = gsrun("-n", "2", "env")
    assert run.wait() == 0
    stale = dict(line.split("=", 1) for line in run.out.splitlines() if line.startswith(("GPUSCHED_", "CUDA_")))
    done = subprocess.run(
        [*GSRUN, "-n", "3", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES $GPUSCHED_JOB_ID"],
        capture_output=True,
        text=True,
        env=os.environ | idle.env | stale,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "0,1,2"
    assert done.stdout.split()[1] != stale["GPUSCHED_JOB_ID"]


def test_environment_of_a_living_lease_elsewhere(gsrun: Start, idle: Server, stub: Stub) -> None:
    """Not below the holder (a notebook's helper process, a daemon), but the scheduler says that the lease lives."""
    run = gsrun("-n", "2", "sh", "-c", "env; echo up; exec sleep 100")
    run.wait_for_out("up")
    inherited = dict(line.split("=", 1) for line in run.out.splitlines() if line.startswith(("GPUSCHED_", "CUDA_")))
    env = os.environ | idle.env | inherited
    done = subprocess.run([*GSRUN, "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert stub.GetStatus(scheduler_pb2.GetStatusRequest()).jobs_running == 1
    run.signal(signal.SIGTERM)
    run.wait()
