"""A restart: what was saved is taken over, clients are waited for, and those that stay away lose place or lease."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.support import Box
from core.test_batch import batch_spec, run, submit
from gpusched.scheduler.codec import batch_of, job_of, record_of
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.batch import Dependency, RetryPolicy, Usage
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.explain import Code
from gpusched.scheduler.core.model import Condition, Holder
from gpusched.scheduler.core.records import JobRecord
from gpusched.scheduler.core.states import EPOCH_BITS, Outcome, State
from gpusched.scheduler.store.memory import MemoryStore

NewBox = Callable[..., Box]


class Restart:
    """Saves every change of a box, and makes a new box of what was saved."""

    def __init__(self, b: Box) -> None:
        self.store = MemoryStore()
        self.store.open()
        self.box = b

    def save(self) -> None:
        self.store.commit(batch_of(self.box.engine.take_changes()))

    def again(self, after: float = 3.0, shift: float = 0.0) -> Box:
        """The server was killed and started again, the wall clock perhaps set forward."""
        self.save()
        boot = self.store.open()
        old = self.box
        new = Box(now=old.now + after + shift)
        new.nodes, new.settings = old.nodes, old.settings
        new.engine = Engine(
            old.nodes, old.settings, first_job=boot.next_job, first_epoch=(boot.starts << EPOCH_BITS) + 1
        )
        new.engine.restore([job_of(record) for record in boot.jobs], boot.settings, new.now, shift=shift)
        invariants.check(new.engine)
        new.happen(ev.Tick())
        self.box = new
        return new


def test_holders_keep_their_gpus_and_waiters_their_places(box: NewBox) -> None:
    b = box("2")
    holder = b.submit(1, token_hash=b"h")
    big = b.submit(2, token_hash=b"b")
    small = b.submit(1, token_hash=b"s")
    c = Restart(b).again()
    assert (c.gpus(holder), c.waiting) == (("a0",), [big, small])
    assert c.why(big).code is Code.REATTACH
    for job in (holder, big, small):
        c.happen(ev.Attach(job))
    assert c.waiting == [big, small]
    assert c.why(big).code is Code.RESOURCES
    c.happen(ev.Release(holder, c.epoch(holder), Outcome(0)))
    assert (c.gpus(big), c.waiting) == (("a0", "a1"), [small])


def test_nothing_is_granted_on_a_device_whose_holder_may_come_back(box: NewBox) -> None:
    b = box("1", window=30)
    holder = b.submit(1, token_hash=b"h")
    waiter = b.submit(1, token_hash=b"w")
    c = Restart(b).again()
    c.happen(ev.Attach(waiter))
    c.wait(29.9)
    assert c.running == [holder] and c.waiting == [waiter]
    c.wait(0.2)
    assert c.state(holder) is State.LOST
    assert c.running == [waiter]


def test_free_devices_wait_two_seconds_for_the_queue_and_then_pass_over_the_missing(box: NewBox) -> None:
    b = box("1")
    b.happen(ev.Pause("maintenance"))
    first, second = b.submit(1, token_hash=b"1"), b.submit(1, token_hash=b"2")
    restart = Restart(b)
    c = restart.again()
    assert c.engine.paused == "maintenance", "a pause outlives the server"
    c.happen(ev.Pause(None))
    c.happen(ev.Attach(second))
    c.wait(1.9)
    assert c.running == []
    c.wait(0.2)
    assert c.running == [second]
    assert (c.waiting, c.why(first).code) == ([first], Code.REATTACH)
    c.happen(ev.Attach(first))
    assert c.why(first).code is Code.RESOURCES


def test_the_wait_ends_early_when_all_are_back(box: NewBox) -> None:
    b = box("1")
    b.happen(ev.Pause("x"))
    first, second = b.submit(1, token_hash=b"1"), b.submit(1, token_hash=b"2")
    c = Restart(b).again()
    c.happen(ev.Pause(None))
    c.happen(ev.Attach(second))
    assert c.running == []
    c.happen(ev.Attach(first))
    assert c.running == [first]


def test_restarts_in_quick_succession_have_one_window(box: NewBox) -> None:
    """A holder that is gone for good is not waited for for ever; each part of the window that passed counts."""
    b = box("2", window=32)
    gone, back = b.submit(1, token_hash=b"g"), b.submit(1, token_hash=b"b")
    waiter = b.submit(1, token_hash=b"w")
    restart = Restart(b)
    for _ in range(3):
        c = restart.again()
        c.happen(ev.Attach(waiter))
        c.happen(ev.Attach(back))
        c.wait(9)  # two parts of 4 s
    assert c.running == [gone, back]
    c = restart.again(after=1000)  # time in which there was no server takes nothing off
    c.happen(ev.Attach(waiter))
    c.wait(7.9)
    assert c.running == [gone, back]
    c.wait(0.2)
    assert c.state(gone) is State.LOST
    assert c.running == [back, waiter], "who came back to the last one but one has a new window"
    c.wait(24)
    assert c.state(back) is State.LOST


@pytest.mark.parametrize("shift", [10_000.0, -10_000.0])
def test_what_is_due_after_a_time_is_due_after_it_though_the_clock_was_set(box: NewBox, shift: float) -> None:
    b = box("3", window=5, end_grace=30)
    limited = b.submit(1, token_hash=b"l", time_limit=100.0)
    failing = submit(b, retry=RetryPolicy(1, 60.0))
    run(b, failing)
    b.release(failing, 1)
    cancelled = b.submit(1, token_hash=b"c")
    b.happen(ev.Cancel(cancelled, "enough"))
    b.told(cancelled)
    waits = b.submit(3, token_hash=b"w", max_wait=200.0)
    b.wait(5)
    restart = Restart(b)
    restart.again(after=1, shift=shift)
    c = restart.again(after=1)  # and what was shifted once is kept
    for job in (limited, cancelled, waits):
        c.happen(ev.Attach(job))
    c.wait(22.9)  # 29.9 s of 30 since it was told
    assert c.state(cancelled) is State.RUNNING
    c.wait(0.2)
    assert c.state(cancelled) is State.CANCELLED
    assert c.why(failing).until == pytest.approx(c.now + 29.9)
    c.wait(99.8)  # 129.9 s of a limit of 100 s and a grace of 30 s
    assert [kind for kind, _ in c.told(limited)] == [NoticeKind.TIME_LIMIT]
    assert (c.state(limited), c.state(waits)) == (State.RUNNING, State.QUEUED)
    assert c.job(failing).attempt == 2
    c.wait(0.2)
    assert c.state(limited) is State.TIMED_OUT


def test_a_begin_time_is_what_the_wall_clock_says(box: NewBox) -> None:
    b = box("1")
    job = submit(b, begin_at=1100.0)
    c = Restart(b).again(after=1, shift=90)
    assert (c.why(job).code, c.why(job).until) == (Code.BEGIN_TIME, 1100.0)


def test_a_server_that_lives_shortly_takes_nothing_off_the_window(box: NewBox) -> None:
    b = box("1", window=32)
    job = b.submit(1, token_hash=b"h")
    restart = Restart(b)
    for _ in range(20):
        restart.again().wait(3.9)
    c = restart.again()
    c.wait(31.9)
    assert c.running == [job]
    c.wait(0.2)
    assert c.state(job) is State.LOST


def test_a_cancelled_holder_that_stays_away_is_cancelled(box: NewBox) -> None:
    b = box("1", window=30, end_grace=100)
    job = b.submit(1, token_hash=b"h")
    b.cancel(job)
    b.told(job)
    c = Restart(b).again()
    c.wait(31)
    assert c.state(job) is State.CANCELLED


def test_a_waiter_that_stays_away_loses_its_place_when_the_window_ends(box: NewBox) -> None:
    b = box("1", window=30)
    b.submit(1, token_hash=b"h")
    waiter = b.submit(1, token_hash=b"w")
    c = Restart(b).again()
    c.wait(31)
    assert c.state(waiter) is State.CANCELLED
    assert c.free == ["a0"]
    assert c.engine.job_by_token(b"w") is None


def test_epochs_never_go_back_even_if_grants_were_not_saved(box: NewBox) -> None:
    b = box("1")
    restart = Restart(b)
    restart.save()
    lost = b.submit(1)
    unsaved = b.epoch(lost)
    b.engine.take_changes()
    c = restart.again()
    assert c.epoch(c.submit(1)) > unsaved


def test_batch_jobs_go_on_waiting_and_running(box: NewBox) -> None:
    b = box("1", window=30)
    running = b.do(ev.Submit(batch_spec(requeue=True)))[0].job  # type: ignore[union-attr]
    b.settle()
    b.happen(ev.Attach(running, holder=Holder(7, 8)))
    b.confirm(running)
    held = b.do(ev.Submit(batch_spec(held=True)))[0].job  # type: ignore[union-attr]
    follower = b.do(ev.Submit(batch_spec(dependencies=(Dependency(running),))))[0].job  # type: ignore[union-attr]
    later = b.do(ev.Submit(batch_spec(begin_at=b.now + 100)))[0].job  # type: ignore[union-attr]
    waits = b.do(ev.Submit(batch_spec()))[0].job  # type: ignore[union-attr]
    b.settle()
    c = Restart(b).again()
    assert c.job(running).holder == Holder(7, 8)
    assert [c.why(job).code for job in (held, follower, later)] == [Code.HELD, Code.DEPENDENCY, Code.BEGIN_TIME]
    c.happen(ev.Attach(running))
    c.release(running)
    assert c.running == [follower], "it comes before the one that was submitted later"
    c.happen(ev.Attach(follower))
    c.release(follower)
    assert c.running == [waits]


def test_a_supervisor_that_stays_away_is_lost_and_its_job_queued_again_if_so_wished(box: NewBox) -> None:
    b = box("1", window=30)
    job = b.do(ev.Submit(batch_spec(requeue=True)))[0].job  # type: ignore[union-attr]
    b.settle()
    c = Restart(b).again()
    c.claim(do.StartRun)
    c.wait(31)
    assert c.job(job).attempt == 2
    assert [attempt.state for attempt in c.job(job).attempts] == [State.LOST]
    assert len(c.claim(do.StartRun)) == 1


def test_drains_outlive_the_server(box: NewBox) -> None:
    b = box("2", "2")
    b.drain("a0")
    b.drain(node="b", reason="move")
    b.drain("a1")
    b.drain("a1", reason=None)
    c = Restart(b).again()
    assert c.free == ["a1"]


def test_limits_and_waits_go_on_counting(box: NewBox) -> None:
    b = box("1", window=30)
    runs = b.submit(1, time_limit=100.0, token_hash=b"r")
    waits = b.submit(1, max_wait=50.0, token_hash=b"w")
    b.wait(40)
    b.claim(do.Notify)
    c = Restart(b).again(after=5.0)
    c.happen(ev.Attach(runs))
    c.happen(ev.Attach(waits))
    c.wait(6)
    assert c.state(waits) is State.CANCELLED
    c.wait(200)
    c.claim(do.Notify)
    assert c.state(runs) is State.TIMED_OUT


def test_a_gpu_that_is_gone_does_not_stop_the_server(box: NewBox) -> None:
    b = box("2")
    job = b.submit(2, token_hash=b"j")
    restart = Restart(b)
    restart.save()
    restart.box.nodes = Box("1").nodes
    c = restart.again()
    assert c.gpus(job) == ("a0", "a1")
    c.happen(ev.Attach(job))
    c.happen(ev.Leave(job, c.job(job).attachment))
    assert c.state(job) is State.LOST


def test_every_field_of_a_job_survives(box: NewBox) -> None:
    b = box("2")
    spec = batch_spec(
        2,
        retry=RetryPolicy(3, 0.0, frozenset({1, 2})),
        environment=(("A", "b"),),
        working_directory="/w",
        output_path="/o",
        requeue=True,
        grace=3.0,
        name="train",
        priority=4,
        time_limit=60.0,
        request_id="r",
        memory=10,
        model="h100",
        node="a",
        command=("python", "x.py"),
    )
    job = b.do(ev.Submit(spec))[0].job  # type: ignore[union-attr]
    b.settle()
    b.happen(ev.Attach(job, holder=Holder(5, 6)))
    b.confirm(job)
    b.release(job, 1, usage=Usage(1.0, 2.0, 3, 4.0, 5))
    b.happen(ev.Attach(job))
    b.cancel(job)
    b.told(job)
    before = b.job(job)
    after = job_of(record_of(before))
    for name in before.__slots__:
        # Where it stands in the queue is worked out anew.
        if name not in ("attachment", "history", "key", "expected"):
            assert getattr(after, name) == getattr(before, name), name


def test_a_record_of_an_unknown_form_is_refused_with_its_number() -> None:
    with pytest.raises(ValueError, match="job 7"):
        job_of(JobRecord(7, "queued", "batch", 0, "root", "", 0.0, None, '{"spec": 1}'))


def test_a_restart_with_dirty_devices_looks_before_it_grants(box: NewBox) -> None:
    b = box("1", window=5)
    b.submit(1, token_hash=b"h")
    waiter = b.submit(1, token_hash=b"w")
    c = Restart(b).again()
    c.looks["a0"] = (Condition.DIRTY, "GPU 0: pid 1 python (bob) still holds 1 GiB")
    c.happen(ev.Attach(waiter))
    c.wait(6)
    assert c.running == []
    c.see(Condition.CLEAN, "a0")
    assert c.running == [waiter]


def test_history_is_saved_line_by_line(box: NewBox) -> None:
    b = box("1")
    restart = Restart(b)
    job = b.submit(1)
    b.release(job, 3)
    restart.save()
    assert [line.message for line in restart.store.events(job)] == ["accepted", "granted 1 GPU", "exit 3"]
    assert restart.store.ended_jobs()[0].id == job
    assert restart.store.check() == []


def test_nothing_that_fell_due_while_the_server_was_away_is_taken_before_the_window_is_over(box: NewBox) -> None:
    """Time limit, cancel and confirmation: the holders could not be heard, and have the window to come back."""
    b = box("3", window=30, end_grace=4, confirm_within=5)
    limited = b.submit(1, time_limit=10.0, token_hash=b"l")
    cancelled = b.submit(1, token_hash=b"c")
    unconfirmed = b.submit(1, auto_confirm=False, token_hash=b"u")
    b.cancel(cancelled)
    b.told(cancelled)
    c = Restart(b).again(after=60.0)
    jobs = [limited, cancelled, unconfirmed]
    assert c.running == jobs
    c.wait(29)
    assert c.running == jobs
    for job in jobs:
        c.happen(ev.Attach(job))
    c.confirm(unconfirmed)
    c.wait(1)
    assert c.running == [unconfirmed]
    assert (c.state(limited), c.state(cancelled)) == (State.TIMED_OUT, State.CANCELLED)
    c.claim(do.Notify)


def test_what_cannot_be_is_not_taken_over(box: NewBox) -> None:
    b = box("1")
    running, ended = b.submit(1), b.submit(1)
    b.cancel(ended)
    engine = Engine(b.nodes)
    with pytest.raises(AssertionError, match="job 2 has ended"):
        engine.restore([b.job(ended)], {}, b.now)
    with pytest.raises(AssertionError, match=r"a0 is leased to jobs .*1.* and 1"):
        Engine(b.nodes).restore([b.job(running)] * 2, {}, b.now)
