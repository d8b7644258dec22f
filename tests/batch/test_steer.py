"""Steering batch jobs: cancel, requeue, hold, priority, limits, and states moved by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import grpc
import pytest

from batch.box import SOON, Box, Gate, refusal, request, retry, seconds, state_of
from cli.holders import Holder
from support.waiting import wait_until

NewBox = Callable[..., Box]


@pytest.fixture(scope="module")
def small() -> Iterator[Box]:
    """One GPU, and limits: three may wait, a job takes a minute unless it says more, and two hours at most."""
    from support.server import Server

    limits = ("--max-queue", "3", "--default-time-limit", "1m", "--max-time-limit", "2h")
    with Server("1", args=limits) as server:
        box = Box(server)
        yield box
        box.close()


def refused(box: Box, *command: str, **fields: object) -> tuple[str, str, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        box.submit(*command, **fields)  # type: ignore[arg-type]
    return refusal(caught.value)


# -- cancel -----------------------------------------------------------------------------------------------


def test_cancel_of_what_waits_and_what_runs(shared: Box) -> None:
    waits, deaf = (
        shared.submit("true", held=True),
        shared.submit("trap '' TERM; echo on; sleep 100", grace=seconds(0.5)),
    )
    polite = shared.submit("trap 'echo asked; exit 3' TERM; echo on; while :; do sleep 0.05; done", requeue=True)
    for each in (deaf, polite):
        shared.said(each, "on")
    done = shared.cli("cancel", waits, deaf, polite, "999999", "--reason", "wrong data")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"job {waits} is cancelled",
        *(f"job {each} is told to end; its GPUs are taken back if it does not" for each in (deaf, polite)),
    ]
    assert "there is no job 999999" in done.stderr
    for each in (waits, deaf, polite):
        job = shared.ended(each)
        assert (state_of(job), job.outcome.message) == ("CANCELLED", f"cancelled by {job.user}: wrong data")
    assert shared.job(polite).outcome.exit_status == 3
    assert b"asked" in shared.log(polite) and b"the job was cancelled: cancelled by" in shared.log(polite)
    done = shared.cli("cancel", waits)
    assert (done.returncode, "has ended already (cancelled)" in done.stderr) == (1, True)


def test_cancel_overrides_retries_and_requeue(shared: Box) -> None:
    job_id = shared.submit("exit 1", retry=retry(5, 100), requeue=True)
    wait_until(lambda: shared.reason(job_id) == "BACKOFF", SOON)
    assert "tried again after a pause" in shared.job(job_id).reason.message
    assert shared.cancel(job_id).attempt == 1
    assert state_of(shared.ended(job_id)) == "CANCELLED"


def test_cancel_by_name_and_all(small: Box) -> None:
    job_ids = [small.submit("sleep 100", name=name, grace=seconds(0)) for name in ("sweep-1", "SWEEP-2", "other")]
    done = small.cli("cancel", "--name", "sweep")
    assert done.returncode == 0 and "other" not in done.stdout
    assert [state_of(small.ended(each)) for each in job_ids[:2]] == ["CANCELLED"] * 2
    assert small.state(job_ids[2]) in ("QUEUED", "RUNNING")
    for wrong in (["--name", ""], ["--all", "--name", "x"], []):
        assert small.quick("cancel", *wrong).returncode == 2
    assert small.state(job_ids[2]) in ("QUEUED", "RUNNING"), "an empty name is no wish for all"
    assert small.cli("cancel", "--all").returncode == 0
    assert state_of(small.ended(job_ids[2])) == "CANCELLED"
    assert small.quick("cancel", "--all").stdout == b"no job of yours matches\n"


# -- requeue, hold, priority ----------------------------------------------------------------------------------


def test_requeue_of_a_run_and_of_what_has_ended(shared: Box, gate: Gate) -> None:
    job_id = shared.submit(f"echo run $GPUSCHED_ATTEMPT; test $GPUSCHED_ATTEMPT = 2 || {gate.words}", name="again")
    shared.said(job_id, "run 1")
    assert shared.good("requeue", job_id) == f"job {job_id} is told to end, and is queued again\n"
    job = shared.ended(job_id)
    assert (state_of(job), job.attempt, job.held) == ("COMPLETED", 2, False)
    assert "queued again by" in shared.history(job_id)
    words = shared.good("requeue", job_id)
    assert words.startswith(f"job {job_id} had ended; the same work is queued as job ")
    gate.open()
    again = shared.ended(words.split()[-1])
    assert (state_of(again), again.name, list(again.command)) == ("COMPLETED", "again", list(job.command))
    assert state_of(shared.job(job_id)) == "COMPLETED", "an ended job stays as it is"


def test_what_cannot_be_queued_again(shared: Box) -> None:
    waits = shared.submit("true", held=True)
    done = shared.quick("requeue", waits)
    assert done.returncode == 1 and b"cannot be queued again: it is queued" in done.stderr
    shared.cancel(waits)
    with Holder(shared.server.address) as holder:
        holder.granted()
        done = shared.quick("requeue", holder.id)
        assert done.returncode == 1 and b"cannot be queued again: it is no batch job" in done.stderr
    wait_until(lambda: shared.state(holder.id) == "LOST", SOON)
    done = shared.quick("requeue", holder.id)
    assert done.returncode == 1 and b"is no batch job; its client runs it" in done.stderr
    assert shared.quick("requeue", "999999").returncode == 1


def test_hold_and_unhold(small: Box, gate: Gate) -> None:
    runs = small.submit(gate.words)
    first, second = small.submit("true"), small.submit("true")
    assert small.good("hold", first, first) == f"job {first} is held\n"
    done = small.cli("hold", runs, "999999")
    assert done.returncode == 1
    assert f"held: job {runs} runs; only a job that waits can be held" in done.stderr and "999999" in done.stderr
    gate.open()
    assert state_of(small.ended(second)) == "COMPLETED", "it passes the held one"
    assert (small.state(first), small.reason(first)) == ("QUEUED", "HELD")
    assert json.loads(small.good("unhold", "--json", first))["jobs"][0]["held"] is False
    assert state_of(small.ended(first)) == "COMPLETED"
    assert small.quick("hold", first).returncode == 1
    history = small.history(first)
    assert "\nheld by" in history and "no longer held by" in history


def test_priority_decides_who_is_next(small: Box, gate: Gate) -> None:
    small.submit(gate.words)
    waiting = [small.submit("true") for _ in range(3)]
    assert small.good("priority", waiting[2], "5") == f"job {waiting[2]} has priority 5, now at place 1\n"
    assert [small.job(each).position for each in waiting] == [2, 3, 1]
    gate.open()
    started = [small.ended(each).started_at.ToNanoseconds() for each in waiting]
    assert started[2] < started[0] < started[1]


# -- limits -----------------------------------------------------------------------------------------------------


def test_limits_of_queue_and_time_name_themselves(small: Box, gate: Gate) -> None:
    runs = small.submit(gate.words)
    small.in_state(runs, "RUNNING")
    assert small.job(runs).time_limit == seconds(60), "the default"
    waiting = [small.submit("true") for _ in range(3)]
    assert refused(small, "true")[:2] == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    done = small.cli("submit", "--", "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the queue is full: 3 jobs wait, and max-queue allows 3" in done.stderr
    gate.open()
    for each in (runs, *waiting):
        assert state_of(small.ended(each)) == "COMPLETED"
    code, reason, field, text = refused(small, "true", time_limit=7201)
    assert (code, reason, field) == ("RESOURCE_EXHAUSTED", "TIME_LIMIT_TOO_LONG", "time_limit")
    assert "more than max-time-limit allows, 7200 s" in text
    assert small.ended(small.submit("true", time_limit=7200)).time_limit == seconds(7200)


def test_limit_of_running_jobs(new_box: NewBox, gate: Gate) -> None:
    box = new_box("8", args=("--max-running", "2", "--max-time-limit", "1h"))
    job_ids = [box.submit(gate.words) for _ in range(4)]
    wait_until(lambda: [box.state(each) for each in job_ids] == ["RUNNING"] * 2 + ["QUEUED"] * 2, SOON)
    for each in job_ids[2:]:
        assert box.reason(each) == "LIMIT"
        assert box.job(each).reason.message == "2 jobs run, which is the most that may (max-running)"
    assert box.job(job_ids[0]).time_limit == seconds(3600), "who names none gets the longest"
    gate.open()
    assert [state_of(box.ended(each)) for each in job_ids] == ["COMPLETED"] * 4


# -- by hand ----------------------------------------------------------------------------------------------------


def test_states_moved_by_hand(shared: Box, gate: Gate) -> None:
    waits = shared.submit("true", held=True)
    runs = [shared.submit(f"echo on; {gate.words}") for _ in range(3)]
    for each in runs:
        shared.said(each, "on")
    assert shared.good("set-state", waits, "failed", "--reason", "its input is gone") == f"job {waits} is failed\n"
    shared.good("set-state", runs[0], "completed", "--reason", "done by hand")
    shared.good("set-state", runs[1], "lost", "--reason", "stuck")
    shared.good("set-state", runs[2], "queued", "--reason", "once more")
    user = shared.job(waits).user
    for number, state, why in ((waits, "FAILED", "its input is gone"), (runs[0], "COMPLETED", "done by hand")):
        job = shared.job(number)
        assert (state_of(job), job.outcome.message) == (state, f"moved by hand by {user}: {why}")
        assert job.history[-1].message == f"moved by hand by {user}: {why}"
    assert shared.state(runs[1]) == "LOST"
    # Whose lease was taken, its command is ended.
    for each in runs:
        wait_until(lambda each=each: b"killing the command" in shared.log(each, attempt=1), SOON)
    gate.open()
    job = shared.ended(runs[2])
    assert (state_of(job), job.attempt) == ("COMPLETED", 2)
    for illegal, words in (
        ((waits, "running"), "is FAILED; it can be moved to no other state"),
        ((runs[0], "queued"), "is COMPLETED; it can be moved to no other state"),
    ):
        done = shared.quick("set-state", *illegal, "--reason", "x")
        assert done.returncode == 1 and words in done.stderr.decode()
    another = shared.submit("true", held=True)
    done = shared.quick("set-state", another, "running", "--reason", "x")
    assert done.returncode == 1 and b"it can be moved to CANCELLED, FAILED" in done.stderr
    for argv in ((another, "failed"), (another, "gone", "--reason", "x")):
        assert shared.quick("set-state", *argv).returncode == 2
    done = shared.quick("set-state", another, "failed", "--reason", " ")
    assert done.returncode == 1 and b"reason: is empty; say why" in done.stderr
    assert shared.state(another) == "QUEUED"
    shared.cancel(another)


def test_the_request_is_checked_before_all_else(small: Box) -> None:
    """Nothing of a refused submit is left."""
    before = len(json.loads(small.good("jobs", "--all", "--json"))["jobs"])
    with pytest.raises(grpc.RpcError):
        small.stub.Submit(request("true", gpus=2), timeout=SOON)
    assert len(json.loads(small.good("jobs", "--all", "--json"))["jobs"]) == before
