"""The table of legal moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.support import Box, make_spec
from gpusched.scheduler.core.errors import IllegalMove
from gpusched.scheduler.core.jobs import HISTORY_LINES, Job, JobId
from gpusched.scheduler.core.states import (
    LEGAL_MOVES,
    Finished,
    Gate,
    Lease,
    Outcome,
    Queued,
    Running,
    State,
    Status,
    moves_table,
)

NewBox = Callable[..., Box]

LEASE = Lease(1, ("a0",), 2.0)


def status(state: State) -> Status:
    match state:
        case State.QUEUED:
            return Queued(1.0)
        case State.RUNNING:
            return Running(2.0, LEASE, confirmed=True)
        case _:
            return Finished(3.0, state, Outcome(), LEASE)


def job_in(state: State) -> Job:
    job = Job(JobId(7), make_spec(1), 1.0, 0, "train", status(state))
    job.note(1.0, "accepted")
    return job


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_moves(old: State, new: State) -> None:
    job = job_in(old)
    stays = old is new and old in (State.QUEUED, State.RUNNING)
    if new in LEGAL_MOVES[old] or stays:
        job.move(status(new), 5.0, "moved")
        assert job.state is new and job.history[-1].message == "moved"
    else:
        with pytest.raises(IllegalMove) as caught:
            job.move(status(new), 5.0, "moved")
        text = str(caught.value)
        assert "job 7" in text and f"{old.name} -> {new.name}" in text
        assert "accepted" in text, "with its recent history"
        assert job.state is old and job.history[-1].message == "accepted", "nothing has changed"


def test_an_illegal_move_tells_recent_history_only() -> None:
    job = job_in(State.COMPLETED)
    for number in range(HISTORY_LINES * 2):
        job.note(float(number), f"line {number}.")
    assert len(job.history) == HISTORY_LINES
    with pytest.raises(IllegalMove) as caught:
        job.move(status(State.RUNNING), 9.0, "again")
    assert "line 99." in str(caught.value) and "line 92." in str(caught.value) and "line 91." not in str(caught.value)


def test_every_state_is_reached_from_the_first_and_final_ones_lead_nowhere() -> None:
    reached, todo = set(), [State.QUEUED]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo += LEGAL_MOVES[state]
    assert reached == set(State) == set(LEGAL_MOVES)
    assert {state for state in State if state.final} == reached - {State.QUEUED, State.RUNNING}


def test_the_table_for_the_docs_has_every_move() -> None:
    rows = moves_table().splitlines()
    assert rows[0] == "| from | to |" and len(rows) == 2 + len(State)
    assert "| `QUEUED` | `RUNNING`, `CANCELLED`, `FAILED` |" in rows
    assert "| `LOST` | final |" in rows


def test_what_a_job_knows_of_itself_in_each_state() -> None:
    for state in State:
        job = job_in(state)
        assert job.state is state
        assert job.lease == (LEASE if state is State.RUNNING else None)
        assert job.started_at == (None if state is State.QUEUED else 2.0)
        assert job.awake == (state is State.QUEUED)
    assert Job(JobId(1), make_spec(1), 0.0, 0, "", Finished(1.0, State.CANCELLED, Outcome())).started_at is None
    assert not Job(JobId(1), make_spec(1), 0.0, 0, "", Queued(0.0, Gate.HELD)).awake


def test_the_engine_reaches_every_state_that_has_a_way_there_yet(box: NewBox) -> None:
    """PREEMPTED comes with preemption."""
    b = box("1")
    seen = set()

    def note(job: JobId) -> None:
        seen.add(b.state(job))

    job = b.submit(1)
    waiting = b.submit(1)
    note(job)
    note(waiting)
    b.release(job, 0)
    b.release(waiting, 1)
    for one in (job, waiting):
        note(one)
    job = b.submit(1)
    b.leave(job)
    note(job)
    job = b.submit(1)
    b.release(job, None, timed_out=True)
    note(job)
    job = b.submit(1)
    b.cancel(job)
    b.told(job)
    b.leave(job)
    note(job)
    assert seen == set(State) - {State.PREEMPTED}
