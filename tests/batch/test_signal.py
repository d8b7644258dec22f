"""The signal that a batch job wants before its time limit."""

from __future__ import annotations

import re
from typing import Any

from batch.box import Box, seconds, state_of
from gpusched.v1 import job_pb2, scheduler_pb2

LOOP = "while :; do sleep 0.05; done"


def usr1(before: float) -> Any:
    return scheduler_pb2.SubmitRequest(
        preempt_signal=job_pb2.PreemptSignal(name="USR1", before=seconds(before))
    ).preempt_signal


def test_it_comes_before_the_time_limit(shared: Box) -> None:
    text = f"trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; {LOOP}"
    job_id = shared.submit(text, time_limit=5.0, preempt_signal=usr1(2.0))
    job = shared.ended(job_id)
    assert state_of(job) == "TIMED_OUT"
    lines = [line for line in shared.log(job_id).decode().splitlines() if line in ("usr1", "term")]
    assert lines == ["usr1", "term"]
    said = rb"^gpusched: notice: sent the command SIGUSR1; its time limit ends in [12]s$"
    assert re.search(said, shared.log(job_id), re.MULTILINE)


def test_who_ends_of_it_has_ended_by_itself(shared: Box) -> None:
    """Also where the limit is nearer than that: at once, but not while the command is still starting."""
    job_id = shared.submit(f"sleep 0.5; trap 'exit 0' USR1; {LOOP}", time_limit=30.0, preempt_signal=usr1(60.0))
    job = shared.ended(job_id)
    assert (state_of(job), job.outcome.exit_status) == ("COMPLETED", 0)


def test_submit_says_when_it_can_never_come(shared: Box) -> None:
    never = "--signal has no effect without --time or --preemptible"
    for words, said in (
        ((), True),
        (("--time", "1h"), False),
        (("--preemptible",), False),
        (("-q",), False),
    ):
        done = shared.cli("submit", "--signal", "USR1@60s", *words, "--", "true")
        assert done.returncode == 0, done.stderr
        assert (never in done.stderr) == said, (words, done.stderr)
        shared.ended(done.stdout.strip())
