"""gsruns that share a GPU, and one that wants none."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator

import pytest

from gsrun.running import GSRUN, QUICK, Gsrun
from support.server import Server

Make = Callable[..., Gsrun]
SHARE = ("--shared", "--gpu-memory")


@pytest.fixture
def one(compiled: dict[str, str]) -> Iterator[Make]:
    """Starts gsruns on one GPU of 80 GiB."""
    started: list[Gsrun] = []
    with Server("1xH100:80GB", env=compiled) as server:
        server.env |= compiled

        def start(*words: str) -> Gsrun:
            started.append(Gsrun(server, *words))
            return started[-1]

        yield start
        for run in started:
            run.close()


@pytest.mark.slow
def test_two_run_on_one_gpu_and_a_third_waits(one: Make) -> None:
    show = "echo up $CUDA_VISIBLE_DEVICES $GPUSCHED_GPU_MEMORY; exec sleep 100"
    first = one(*SHARE, "40G", "sh", "-c", show)
    second = one(*SHARE, "30G", "sh", "-c", show)
    assert first.wait_for_out(r"up 0 (\d+)")[1] == str(40 << 30)
    second.wait_for_out("up 0")
    third = one(*SHARE, "20G", "sh", "-c", "echo up $CUDA_VISIBLE_DEVICES")
    third.wait_for_err(r"needs 20 GiB of a GPU, at most 7\.6 GiB left; GPU 0 shared by \w+ \(job \d+, [34]0 GiB\)")
    whole = one("sh", "-c", "echo whole")
    whole.wait_for_err("2nd of 2 in the queue")
    second.signal(signal.SIGTERM)
    assert third.wait(QUICK) == 0 and third.out == "up 0\n"
    assert first.out and "whole" not in whole.out
    first.signal(signal.SIGTERM)
    assert whole.wait(QUICK) == 0 and whole.out == "whole\n"


def test_cores_without_a_gpu(one: Make) -> None:
    run = one("-n", "0", "--cpus", "2", "--mem", "1G", "sh", "-c", 'echo "[$CUDA_VISIBLE_DEVICES] $GPUSCHED_CPUS"')
    assert run.wait(QUICK) == 0 and run.out == "[] 2\n"
    run = one("-v", "-n", "0", "--cpus", "2", "true")
    assert run.wait(QUICK) == 0 and re.search(r"^gsrun: got 2 cores \(job \d+\) after 0s$", run.err, re.MULTILINE)
    run = one("--dry-run", "-n", "0", "--cpus", "1")
    assert run.wait(QUICK) == 0 and run.out == "would start now, with 1 core\n"
    run = one("sh", "-c", f"{' '.join(GSRUN)} -n 0 --cpus 1 --dry-run; {' '.join(GSRUN)} -v -n 0 --cpus 1 true")
    assert run.wait(QUICK) == 0 and re.search(r"^would start now, on none of the GPUs of job \d+, ", run.out)
    assert re.search(r"^gsrun: inside job \d+: using none of its GPUs$", run.err, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*SHARE[:1], "true"), "--gpu-memory: say how much of each GPU's memory a job takes that shares it"),
        (("-n", "0", "true"), "-n 0 asks for nothing"),
        (("--cpus", "0", "true"), "--cpus"),
        (("--cpus", "9", "true"), "--cpus: asks for 9 cores; node "),
        (("--mem", "1", "true"), "--mem"),
        ((*SHARE, "79G", "true"), "--gpu-memory: no GPU on node"),
    ],
)
def test_what_makes_no_sense(one: Make, words: tuple[str, ...], said: str) -> None:
    run = one(*words)
    assert run.wait(QUICK) == 2
    assert said in run.err
