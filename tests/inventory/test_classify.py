"""Whose the processes on a GPU are, and how that is said."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpusched.scheduler.core.classify import classify, descends_from, format_bytes
from gpusched.scheduler.core.model import Condition, Holder, ProcessReading
from gpusched.scheduler.inventory import proc

GIB = 1024**3
HOLDER = Holder(100, 5000)


def _process(pid: int = 4242, memory: float = 11.2, *, uid: int = 1000, chain: tuple[int, ...] = ()) -> ProcessReading:
    ancestors = tuple((one, 50 * one) for one in (pid, *chain, 1))
    return ProcessReading(pid, 50 * pid, uid, "alice", "python", int(memory * GIB), ancestors)


def test_an_empty_gpu_is_clean() -> None:
    for leased_to in (None, HOLDER):
        verdict = classify((), gpu="GPU 3", leased_to=leased_to)
        assert (verdict.condition, verdict.message) == (Condition.CLEAN, "")


def test_a_process_under_no_lease_is_foreign() -> None:
    verdict = classify((_process(),), gpu="GPU 3")
    assert verdict.condition is Condition.FOREIGN
    assert verdict.message == "GPU 3: pid 4242 python (alice) holds 11.2 GiB, not under a lease"
    assert verdict.foreign == (_process(),)


def test_a_fault_comes_before_everything() -> None:
    verdict = classify((_process(),), gpu="GPU 3", fault="Xid 79: GPU has fallen off the bus", leased_to=HOLDER)
    assert verdict.condition is Condition.UNHEALTHY
    assert verdict.message == "GPU 3: Xid 79: GPU has fallen off the bus"
    assert verdict.foreign == (_process(),)


@pytest.mark.parametrize("chain", [(100,), (300, 200, 100, 50)])
def test_the_holders_descendants_are_the_leases(chain: tuple[int, ...]) -> None:
    process = _process(chain=chain)
    verdict = classify((process,), gpu="GPU 3", leased_to=HOLDER)
    assert (verdict.condition, verdict.attributed, verdict.foreign) == (Condition.CLEAN, (process,), ())


def test_the_holder_itself_and_a_process_without_known_ancestors() -> None:
    assert descends_from(ProcessReading(100, 5000), HOLDER)
    assert descends_from(ProcessReading(100), HOLDER)
    assert not descends_from(ProcessReading(101, 5000), HOLDER)


def test_a_holders_pid_used_again_by_somebody_else_is_not_the_holder() -> None:
    process = _process(chain=(100,))
    assert not descends_from(process, Holder(100, 4999))
    assert descends_from(process, Holder(100, 0)), "an unknown start time is not compared"
    assert not descends_from(_process(chain=(100,)), Holder(101, 0))


def test_a_stranger_beside_the_lease_is_foreign() -> None:
    mine, other = _process(200, 40, chain=(100,)), _process(4242, uid=1001)
    verdict = classify((mine, other), gpu="GPU 3", leased_to=HOLDER)
    assert verdict.condition is Condition.FOREIGN
    assert (verdict.attributed, verdict.foreign) == ((mine,), (other,))
    assert "pid 4242" in verdict.message


def test_under_a_lease_the_same_users_other_process_is_foreign_too() -> None:
    verdict = classify((_process(),), gpu="GPU 3", leased_to=HOLDER, previous_uid=1000)
    assert verdict.condition is Condition.FOREIGN


def test_what_the_lease_once_had_stays_its_own() -> None:
    process = _process()
    known = frozenset({(4242, 50 * 4242)})
    verdict = classify((process,), gpu="GPU 3", leased_to=HOLDER, known_pids=known)
    assert (verdict.condition, verdict.attributed) == (Condition.CLEAN, (process,))


@pytest.mark.parametrize("known", [(4242, 50 * 4242), (4242, 0), (200, 50 * 200)])
def test_what_was_seen_under_the_last_lease_or_was_started_by_it_is_a_leftover(known: tuple[int, int]) -> None:
    process = _process(chain=(200,))
    verdict = classify((process,), gpu="GPU 3", known_pids=frozenset({known}), previous_job=17)
    assert verdict.condition is Condition.DIRTY
    assert verdict.message == "GPU 3: pid 4242 python (alice) of job 17 still holds 11.2 GiB"
    assert verdict.leftover == (process,)


def test_a_known_pid_used_again_is_not_a_leftover() -> None:
    verdict = classify((_process(),), gpu="GPU 3", known_pids=frozenset({(4242, 7)}))
    assert verdict.condition is Condition.FOREIGN


def test_a_process_of_the_last_owner_is_a_leftover() -> None:
    assert classify((_process(),), gpu="GPU 3", previous_uid=1000).condition is Condition.DIRTY
    assert classify((_process(),), gpu="GPU 3", previous_uid=1001).condition is Condition.FOREIGN
    unknown = ProcessReading(4242)
    assert classify((unknown,), gpu="GPU 3", previous_uid=1000).condition is Condition.FOREIGN


def test_leftovers_are_named_before_strangers() -> None:
    left, other = _process(4242, 1), _process(4243, 70, uid=1001)
    verdict = classify((other, left), gpu="GPU 3", previous_uid=1000, previous_job=17)
    assert verdict.condition is Condition.DIRTY
    assert verdict.message == "GPU 3: pid 4242 python (alice) of job 17 still holds 1.0 GiB"
    assert (verdict.leftover, verdict.foreign) == ((left,), (other,))


def test_of_several_the_biggest_is_named() -> None:
    processes = (_process(7, 1), _process(4242, 11.2), _process(9, 2))
    assert classify(processes, gpu="GPU 0").message == (
        "GPU 0: pid 4242 python (alice) holds 11.2 GiB, not under a lease, and 2 more"
    )
    assert classify(processes, gpu="GPU 0", previous_uid=1000).message == (
        "GPU 0: pid 4242 python (alice) of the last job still holds 11.2 GiB, and 2 more"
    )


def test_little_known_processes() -> None:
    assert classify((ProcessReading(9),), gpu="GPU 0").message == (
        "GPU 0: pid 9 (unknown user) is on it, not under a lease"
    )
    known = frozenset({(9, 0)})
    assert classify((ProcessReading(9),), gpu="GPU 0", known_pids=known, previous_job=4).message == (
        "GPU 0: pid 9 (unknown user) of job 4 is still on it"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 MiB"), (300 * 1024**2, "300 MiB"), (GIB - 1, "1.0 GiB"), (GIB, "1.0 GiB"), (80 * GIB, "80.0 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_a_real_grandchild_in_its_own_session_is_the_holders() -> None:
    """setsid leaves the ancestor chain alone; only the death of a parent cuts it."""
    script = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], start_new_session=True,"
        " stdin=sys.stdin); print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = proc.describe(int(child.stdout.readline()), GIB)
        me = proc.read_stat(os.getpid())
        assert me is not None
        assert descends_from(grandchild, Holder(me.pid, me.start_ticks))
        assert not descends_from(grandchild, Holder(me.pid, me.start_ticks + 1))
        assert child.stdin is not None
        child.stdin.close()
