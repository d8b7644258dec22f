"""Batch jobs in the core: gates, retries, dependencies, limits, moves by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.support import Box, make_spec
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.batch import MAX_LOSSES, After, BatchSpec, Dependency, RetryPolicy
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.errors import DomainError, Exhausted, Invalid, NotFound, NotSatisfiable, Unavailable
from gpusched.scheduler.core.explain import Code
from gpusched.scheduler.core.jobs import JobId, JobSpec, Kind
from gpusched.scheduler.core.states import Outcome, State

NewBox = Callable[..., Box]


def batch_spec(gpus: int = 1, *, command: tuple[str, ...] = ("true",), **more: Any) -> JobSpec:
    """A batch job's spec; what BatchSpec has goes there, the rest to the JobSpec."""
    names = set(BatchSpec.__dataclass_fields__)
    batch = BatchSpec(**{name: more.pop(name) for name in list(more) if name in names})
    return make_spec(gpus, auto_confirm=False, command=command, kind=Kind.BATCH, batch=batch, **more)


def submit(b: Box, gpus: int = 1, **more: Any) -> JobId:
    effects = b.do(ev.Submit(batch_spec(gpus, **more)))
    b.settle()
    return next(effect.job for effect in effects if isinstance(effect, do.Accepted))


def run(b: Box, job: JobId) -> None:
    """Its supervisor comes and confirms."""
    b.happen(ev.Attach(job))
    b.confirm(job)


def refused(b: Box, error: type[DomainError], field: str, **more: Any) -> str:
    with pytest.raises(error) as caught:
        b.do(ev.Submit(batch_spec(**more)))
    assert caught.value.field == field
    return caught.value.message


def test_a_grant_starts_a_run_and_tells_no_stream(box: NewBox) -> None:
    b = box("1")
    job = submit(b)
    (start,) = b.claim(do.StartRun)
    assert (start.job, start.attempt, start.lease.devices) == (job, 1, ("a0",))
    assert b.claim(do.Granted) == []
    run(b, job)
    b.release(job)
    assert b.state(job) is State.COMPLETED
    assert [attempt.state for attempt in b.job(job).attempts] == [State.COMPLETED]


def test_a_supervisor_that_does_not_come_loses_the_run(box: NewBox) -> None:
    b = box("1", start_within=7)
    job = submit(b)
    b.wait(6.9)
    assert b.state(job) is State.RUNNING
    b.wait(0.1)
    assert b.state(job) is State.LOST
    assert b.free == ["a0"]


def test_a_run_that_could_not_be_started_is_lost_at_once_and_an_old_word_means_nothing(box: NewBox) -> None:
    b = box("1")
    job = submit(b)
    b.happen(ev.NotStarted(job, b.epoch(job) - 1, "no agent"))
    assert b.state(job) is State.RUNNING
    b.happen(ev.NotStarted(job, b.epoch(job), "no agent"))
    assert (b.state(job), b.outcome(job).message) == (State.LOST, "no agent")


def test_a_supervisor_that_drops_before_it_confirms_is_waited_for(box: NewBox) -> None:
    """It may have died before its agent had a share in its stream: then the command is not dead yet."""
    b = box("1", start_within=7)
    killed = submit(b)
    b.happen(ev.Attach(killed))
    b.happen(ev.Leave(killed, b.job(killed).attachment))
    assert (b.state(killed), b.free) == (State.RUNNING, [])
    b.happen(ev.NotStarted(killed, b.epoch(killed), "its supervisor was killed by SIGKILL"))
    assert (b.state(killed), b.outcome(killed).message) == (State.LOST, "its supervisor was killed by SIGKILL")
    silent = submit(b)
    b.happen(ev.Attach(silent))
    b.happen(ev.Leave(silent, b.job(silent).attachment))
    b.wait(6.9)
    assert b.state(silent) is State.RUNNING
    b.wait(0.1)
    assert b.state(silent) is State.LOST
    returns = submit(b)
    b.happen(ev.Attach(returns))
    b.happen(ev.Leave(returns, b.job(returns).attachment))
    run(b, returns)
    b.wait(100)
    b.happen(ev.Leave(returns, b.job(returns).attachment))
    assert b.state(returns) is State.LOST, "one that had confirmed is gone with its stream"


@pytest.mark.parametrize("how", ["not started", "too late", "gone"])
def test_a_cancelled_run_that_ends_without_a_word_is_cancelled(box: NewBox, how: str) -> None:
    b = box("1", start_within=7)
    job = submit(b, requeue=True, retry=RetryPolicy(5, 0.0))
    if how == "gone":
        run(b, job)
    b.cancel(job)
    b.told(job)
    match how:
        case "not started":
            b.happen(ev.NotStarted(job, b.epoch(job), "no agent"))
        case "too late":
            b.wait(7)
        case _:
            b.happen(ev.Leave(job, b.job(job).attachment))
    assert b.state(job) is State.CANCELLED
    assert b.outcome(job).message.startswith("cancelled by")
    assert [attempt.state for attempt in b.job(job).attempts] == [State.CANCELLED]


def test_failures_are_tried_again_after_a_growing_pause(box: NewBox) -> None:
    b = box("1")
    job = submit(b, retry=RetryPolicy(2, 10.0))
    for pause in (10.0, 20.0):
        run(b, job)
        b.release(job, 3)
        assert b.state(job) is State.QUEUED
        assert b.why(job).code is Code.BACKOFF
        assert b.why(job).until == b.now + pause
        b.wait(pause - 0.1)
        assert b.state(job) is State.QUEUED
        b.wait(0.1)
        assert b.state(job) is State.RUNNING
    run(b, job)
    b.release(job, 3)
    assert b.state(job) is State.FAILED
    assert [(each.number, each.outcome.exit_status) for each in b.job(job).attempts] == [(1, 3), (2, 3), (3, 3)]


def test_only_the_named_exit_statuses_are_tried_again(box: NewBox) -> None:
    b = box("1")
    job = submit(b, retry=RetryPolicy(5, 0.0, frozenset({75})))
    run(b, job)
    b.release(job, 75)
    assert b.state(job) is State.RUNNING
    run(b, job)
    b.release(job, 1)
    assert b.state(job) is State.FAILED


def test_the_pause_has_a_ceiling() -> None:
    policy = RetryPolicy(100, 10.0)
    assert policy.pause_after(1, Outcome(1)) == 10.0
    assert policy.pause_after(60, Outcome(1)) == 3600.0
    assert policy.pause_after(101, Outcome(1)) is None


def test_a_lost_run_is_queued_again_at_its_place_if_so_wished_and_does_not_count(box: NewBox) -> None:
    b = box("1")
    job = submit(b, requeue=True, retry=RetryPolicy(0))
    later = submit(b)
    for number in range(1, MAX_LOSSES):
        b.claim(do.StartRun)
        b.happen(ev.NotStarted(job, b.epoch(job), "its supervisor was killed by SIGKILL"))
        assert b.running == [job], "it comes before the later one"
        assert b.job(job).attempt == number + 1
    assert b.job(job).failures == 0
    b.happen(ev.NotStarted(job, b.epoch(job), "its supervisor was killed by SIGKILL"))
    assert b.state(job) is State.LOST, "something about it kills its supervisor"
    assert b.running == [later]


def test_the_end_of_an_old_runs_stream_means_nothing_to_the_new_one(box: NewBox) -> None:
    b = box("1")
    job = submit(b, retry=RetryPolicy(1, 0.0))
    run(b, job)
    old = b.job(job).attachment
    b.release(job, 1)
    assert b.job(job).attempt == 2
    b.happen(ev.Leave(job, old))
    assert b.state(job) is State.RUNNING


def test_a_waiting_batch_job_needs_no_stream(box: NewBox) -> None:
    b = box("1")
    submit(b)
    job = submit(b)
    b.happen(ev.Leave(job, b.job(job).attachment))
    assert b.state(job) is State.QUEUED


@pytest.mark.parametrize(
    ("after", "exit_status", "starts"),
    [
        (After.OK, 0, True),
        (After.OK, 1, False),
        (After.ANY, 1, True),
        (After.FAILED, 1, True),
        (After.FAILED, 0, False),
    ],
)
def test_a_job_follows_another_one(box: NewBox, after: After, exit_status: int, starts: bool) -> None:
    b = box("2")
    first = submit(b)
    job = submit(b, dependencies=(Dependency(first, after),))
    assert (b.why(job).code, b.why(job).message) == (Code.DEPENDENCY, f"waits for the end of job {first}")
    run(b, first)
    b.release(first, exit_status)
    assert b.state(job) is (State.RUNNING if starts else State.CANCELLED)
    if not starts:
        assert f"job {first}, which it was to follow" in b.outcome(job).message


def test_a_chain_that_cannot_be_satisfied_ends_as_a_whole(box: NewBox) -> None:
    b = box("1")
    first = submit(b)
    chain = [submit(b, dependencies=(Dependency(first),))]
    for _ in range(20):
        chain.append(submit(b, dependencies=(Dependency(chain[-1]),)))
    b.cancel(first)
    b.told(first)
    b.release(first, 1)
    assert {b.state(job) for job in chain} == {State.CANCELLED} or b.state(chain[-1]) is State.CANCELLED


def test_a_job_that_waits_for_others_lets_later_ones_by(box: NewBox) -> None:
    b = box("1")
    first = submit(b, held=True)
    follower = submit(b, dependencies=(Dependency(first),))
    later = submit(b)
    assert b.running == [later]
    assert b.waiting == [first, follower]


def test_dependencies_on_what_is_known(box: NewBox) -> None:
    b = box("1")
    assert "there is no job 77" in refused(b, NotFound, "dependencies", dependencies=(Dependency(77),))
    done = submit(b)
    run(b, done)
    b.release(done, 0)
    assert "never be failed" in refused(
        b, NotSatisfiable, "dependencies", dependencies=(Dependency(done, After.FAILED),)
    )
    assert b.state(submit(b, dependencies=(Dependency(done),))) is State.RUNNING
    with pytest.raises(NotSatisfiable):
        b.do(ev.Submit(batch_spec(dependencies=(Dependency(500),)), ended=((500, State.FAILED),)))
    b.do(ev.Submit(batch_spec(dependencies=(Dependency(500),)), ended=((500, State.COMPLETED),)))


def test_begin_time_and_hold(box: NewBox) -> None:
    b = box("1")
    job = submit(b, begin_at=1100.0)
    assert (b.why(job).code, b.why(job).until) == (Code.BEGIN_TIME, 1100.0)
    b.happen(ev.Update(job, held=True))
    b.wait(200)
    assert b.why(job).code is Code.HELD
    b.happen(ev.Update(job, held=False))
    assert b.state(job) is State.RUNNING
    with pytest.raises(NotSatisfiable):
        b.do(ev.Update(job, held=True))


def test_requeue_ends_the_run_and_starts_another(box: NewBox) -> None:
    b = box("1")
    job = submit(b)
    run(b, job)
    b.happen(ev.Requeue(job, "queued again by bob"))
    assert [kind for kind, _ in b.told(job)] == [NoticeKind.CANCEL]
    b.release(job, 143)
    assert (b.state(job), b.job(job).attempt) == (State.RUNNING, 2)
    assert b.job(job).cancelling is None
    waits = submit(b)
    with pytest.raises(NotSatisfiable):
        b.do(ev.Requeue(waits, "x"))


def test_a_cancel_overrides_retries_and_requeue(box: NewBox) -> None:
    b = box("1")
    job = submit(b, retry=RetryPolicy(9), requeue=True)
    run(b, job)
    b.cancel(job)
    b.told(job)
    b.release(job, 143)
    assert b.state(job) is State.CANCELLED


def test_a_time_limit_that_was_reached_is_not_tried_again(box: NewBox) -> None:
    b = box("1")
    job = submit(b, retry=RetryPolicy(9), time_limit=60.0)
    run(b, job)
    b.release(job, None, timed_out=True)
    assert b.state(job) is State.TIMED_OUT


def test_limits_name_themselves(box: NewBox) -> None:
    b = box("2", max_queue=1, max_running=1, max_limit=100.0, default_limit=50.0)
    assert "max-time-limit" in refused(b, Exhausted, "time_limit", time_limit=101.0)
    first = submit(b)
    assert b.job(first).time_limit == 50.0
    job = submit(b)
    assert (b.state(job), b.why(job).code) == (State.QUEUED, Code.LIMIT)
    assert "max-running" in b.why(job).message
    with pytest.raises(Exhausted, match="max-queue"):
        b.do(ev.Submit(batch_spec()))
    run(b, first)
    b.release(first)
    assert b.running == [job]


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("command", {"command": ()}),
        ("command", {"command": ("",)}),
        ("command", {"command": ("a\0b",)}),
        ("environment", {"environment": (("A=B", "c"),)}),
        ("environment", {"environment": (("", "c"),)}),
        ("environment", {"environment": (("A", "x" * 300_000),)}),
        ("working_directory", {"working_directory": "relative"}),
        ("output_path", {"output_path": "relative.log"}),
        ("retry.max_retries", {"retry": RetryPolicy(-1)}),
        ("retry.max_retries", {"retry": RetryPolicy(101)}),
        ("retry.backoff", {"retry": RetryPolicy(1, float("nan"))}),
        ("retry.exit_statuses", {"retry": RetryPolicy(1, 1.0, frozenset({0}))}),
        ("grace", {"grace": -1.0}),
        ("dependencies", {"dependencies": (Dependency(1), Dependency(1))}),
    ],
)
def test_what_a_batch_job_may_not_be(box: NewBox, field: str, more: dict[str, Any]) -> None:
    refused(box("1"), Invalid, field, **more)


def test_moves_by_hand_follow_the_table(box: NewBox) -> None:
    b = box("1")
    job = submit(b)
    waits = submit(b)
    for state in (State.COMPLETED, State.RUNNING, State.LOST):
        with pytest.raises(NotSatisfiable, match="CANCELLED, FAILED"):
            b.do(ev.Force(waits, state, "why"))
    b.happen(ev.Force(job, State.QUEUED, "stuck"))
    assert (b.running, b.job(job).attempt) == ([job], 2)
    b.happen(ev.Force(job, State.COMPLETED, "it did its work"))
    assert (b.state(job), b.outcome(job).message) == (State.COMPLETED, "it did its work")
    runs = [(each.number, each.state, each.outcome.message, each.devices) for each in b.job(job).attempts]
    assert runs == [(1, State.CANCELLED, "stuck", ("a0",)), (2, State.COMPLETED, "it did its work", ("a0",))]
    b.happen(ev.Force(waits, State.FAILED, "broken"))
    assert b.state(waits) is State.FAILED
    assert [each.state for each in b.job(waits).attempts] == [State.FAILED], "it ran by then"
    with pytest.raises(NotSatisfiable, match="no other state"):
        b.do(ev.Force(waits, State.QUEUED, "again"))


def test_while_state_cannot_be_saved_nothing_starts_and_nothing_is_taken_on(box: NewBox) -> None:
    b = box("1")
    job = submit(b, held=True)
    b.happen(ev.Halt("the disk is full"))
    b.happen(ev.Update(job, held=False))
    assert (b.state(job), b.why(job).code) == (State.QUEUED, Code.STORE)
    with pytest.raises(Unavailable, match="the disk is full"):
        b.do(ev.Submit(batch_spec()))
    b.happen(ev.Halt(None))
    assert b.running == [job]


def test_a_retried_submit_is_known_even_after_the_job_has_ended(box: NewBox) -> None:
    b = box("1")
    job = submit(b, request_id="r")
    run(b, job)
    b.release(job)
    assert b.engine.job_by_request(b.job(job).spec.owner.uid, "r") is b.job(job)


def test_positions_are_of_those_in_line(box: NewBox) -> None:
    """Who waits for his owner's word, a time or another job is not ahead of anybody, until his turn may come."""
    b = box("1")
    running = submit(b)
    run(b, running)
    held, later, after, next_one, last = (
        submit(b, held=True),
        submit(b, begin_at=b.now + 100),
        submit(b, dependencies=(Dependency(running, After.ANY),)),
        b.submit(1),
        b.submit(1),
    )

    def positions() -> list[int]:
        return [b.engine.queue.position(b.job(each)) for each in (held, later, after, next_one, last)]

    assert positions() == [0, 0, 0, 1, 2] and b.engine.queue.in_line == 2
    assert [job.id for job in b.engine.queue] == [held, later, after, next_one, last], (
        "their places in the order are kept"
    )
    b.do(ev.Update(held, held=False))
    assert positions() == [1, 0, 0, 2, 3]
    b.do(ev.Update(held, held=True))
    b.wait(100)
    assert positions() == [0, 1, 0, 2, 3]
