"""gsrun inside a lease runs on those GPUs of the lease that it asks for, or says that there are none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsrun.running import GSRUN, Gsrun
from support.server import Server

Start = Callable[..., Gsrun]
INNER = " ".join(GSRUN)
SHOW = "sh -c 'echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES $GPUSCHED_GPUS'"
NODE = os.uname().nodename


def uuids(*indices: int) -> str:
    return ",".join(f"GPU-sim-{NODE}-{index}" for index in indices)


@pytest.fixture(scope="module")
def mixed(compiled: dict[str, str]) -> Iterator[Server]:
    """One A100 with 40 GiB and two H100 with 80 GiB."""
    with Server("1xA100:40GB,2xH100:80GB", env=compiled) as server:
        server.env |= compiled
        yield server


@pytest.fixture
def of_mixed(mixed: Server) -> Iterator[Start]:
    """`of_mixed(words)` runs an inner gsrun with these words, in a lease of all three."""
    started: list[Gsrun] = []

    def run(inner: str, before: str = "") -> Gsrun:
        started.append(Gsrun(mixed, "-n", "3", "sh", "-c", f"{before} {INNER} {inner}; echo status $?"))
        assert started[-1].wait() == 0
        return started[-1]

    yield run
    for each in started:
        each.close()


@pytest.mark.parametrize(
    ("words", "indices"),
    [
        ("--gpu-id 1", (1,)),
        (f"--gpu-id {NODE}:2", (2,)),
        (f"--gpu-id {uuids(1)}", (1,)),
        ("--gpu-id 2,0", (0, 2)),
        ("-n 1 --gpu-id 2,1", (1,)),
        ("--exclude 0", (1,)),
        (f"-n 2 --exclude {NODE}:1", (0, 2)),
        (f"--node {NODE} -n 3", (0, 1, 2)),
        ("--gpu-memory 50G", (1,)),
        ("-n 2 --gpu-memory 50G", (1, 2)),
        ("--gpu-memory 30G --gpu-model h100", (1,)),
        ("--gpu-model H100 --exclude 1", (2,)),
    ],
)
def test_chosen(of_mixed: Start, words: str, indices: tuple[int, ...]) -> None:
    run = of_mixed(f"{words} {SHOW}")
    numbers = ",".join(map(str, indices))
    assert run.out == f"{numbers} {numbers} {uuids(*indices)}\nstatus 0\n"
    assert run.err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--gpu-id 7", "--gpu-id: '7' will not do"),
        (f"--gpu-id {uuids(9)}", "--gpu-id: "),
        ("-n 2 --exclude 0,1", "--exclude: '0,1' will not do"),
        (f"--exclude {NODE}", "--exclude: "),
        ("--node elsewhere", "--node: 'elsewhere' will not do"),
        ("--gpu-memory 900G", "--gpu-memory: '900 GiB' will not do"),
        ("--gpu-model nope", "--gpu-model: 'nope' will not do"),
        ("-n 3 --gpu-memory 50G", "of which 2 will do"),
        ("--dry-run --gpu-model nope", "--gpu-model: 'nope' will not do"),
    ],
)
def test_refused(of_mixed: Start, words: str, said: str) -> None:
    """As a number that is too high is, with what there is."""
    run = of_mixed(f"{words} -q sh -c 'echo ran'")
    assert run.out == "status 2\n"
    assert said in run.err
    assert f"which has GPUs {NODE}:0" in run.err
    assert "and would wait for itself; ask for what is there, or set GPUSCHED_NESTED=new" in run.err
    if "memory" in words or "model" in words:
        assert f"{NODE}:0 (A100, 40 GiB), {NODE}:1 (H100, 80 GiB)" in run.err


def test_a_choice_within_a_choice(of_mixed: Start) -> None:
    run = of_mixed(f"--gpu-id 1,2 {INNER} --exclude 1 {SHOW}")
    assert run.out == f"2 2 {uuids(2)}\nstatus 0\n"


def test_what_was_heeded_is_not_said_to_have_no_effect(of_mixed: Start) -> None:
    run = of_mixed(f"--gpu-id 1 --gpu-memory 50G --name x --pack --constraint a=b {SHOW}")
    assert run.err.count("gsrun:") == 1
    assert run.err.endswith("this has no effect: --name, --constraint, --pack\n")


def test_names_need_no_scheduler(of_mixed: Start) -> None:
    run = of_mixed(f"--gpu-id 2 {SHOW}", "GPUSCHED_URL=127.0.0.1:1")
    assert (run.out, run.err) == (f"2 2 {uuids(2)}\nstatus 0\n", "")


def test_a_scheduler_that_does_not_answer_refuses_nothing(of_mixed: Start) -> None:
    run = of_mixed(f"--gpu-memory 900G --gpu-model nope --exclude 0 {SHOW}", "GPUSCHED_URL=127.0.0.1:1")
    assert run.out == f"1 1 {uuids(1)}\nstatus 0\n"
    unknown = "(no scheduler answers that knows these GPUs, so it could not be checked)"
    assert f"--gpu-memory {unknown}, --gpu-model {unknown}\n" in run.err


def test_variables_that_tell_no_index(of_mixed: Start) -> None:
    """Somebody has put others in their place: the scheduler knows the numbers."""
    run = of_mixed(f"--gpu-id 2 {SHOW}", "CUDA_VISIBLE_DEVICES=0")
    assert run.out == f"{uuids(2)} 2 {uuids(2)}\nstatus 0\n"


def test_a_part_of_a_gpu(mixed: Server, tmp_path: Path) -> None:
    """What the lease has of it counts, not what it has in all."""
    text = f"{INNER} --gpu-memory 8G echo ran; {INNER} --gpu-memory 20G echo ran too; echo status $?"
    run = Gsrun(mixed, "--shared", "--gpu-memory", "10G", "sh", "-c", text)
    assert run.wait() == 0
    assert run.out == "ran\nstatus 2\n"
    assert "--gpu-memory: '20 GiB' will not do" in run.err and "(10 GiB)" in run.err
