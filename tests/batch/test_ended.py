"""What can be said and done about jobs that have ended, before or after a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from batch.box import SOON, Box, Gate, refusal, state_of
from batch.test_supervisors import patched
from gpusched.client.admin import fetch_token
from gpusched.client.transport import open_channel
from gpusched.v1 import admin_pb2, admin_pb2_grpc, job_pb2, scheduler_pb2
from support.waiting import wait_until

NewBox = Callable[..., Box]


def set_state(box: Box, job_id: str, state: str) -> Any:
    status = box.stub.GetStatus(scheduler_pb2.GetStatusRequest(), timeout=SOON)
    metadata = [("authorization", f"Bearer {fetch_token(status.admin_socket)}")]
    number: Any = job_pb2.JobState.Value(f"JOB_STATE_{state}")
    with open_channel(box.server.address) as channel:
        call = admin_pb2.SetJobStateRequest(job_id=job_id, state=number, reason="stuck")
        return admin_pb2_grpc.AdminStub(channel).SetJobState(call, timeout=SOON, metadata=metadata).job


@pytest.mark.slow
def test_steering_a_job_that_ended_before_the_restart(new_box: NewBox) -> None:
    box = new_box("1")
    done = box.submit("true")
    box.ended(done)
    box.server.restart()
    for call, field in (
        (lambda: box.update(done, priority=-1), "job.id"),
        (lambda: set_state(box, done, "FAILED"), "job_id"),
        (lambda: box.cancel(done), "job_id"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        said = f"{field}: job {done} has ended already (completed)"
        assert refusal(caught.value) == ("FAILED_PRECONDITION", "JOB_ENDED", field, said)
    with pytest.raises(grpc.RpcError) as caught:
        box.update("77", priority=-1)
    assert refusal(caught.value)[0] == "NOT_FOUND"


def test_a_run_that_is_ended_by_hand_is_among_the_attempts(new_box: NewBox, gate: Gate) -> None:
    box = new_box("1")
    job_id = box.submit(f"echo pid $$; {gate.words}")
    box.said(job_id, "pid")
    wait_until(lambda: box.attached(job_id), SOON)
    set_state(box, job_id, "QUEUED")
    wait_until(lambda: box.job(job_id).attempt == 2, SOON)
    set_state(box, job_id, "COMPLETED")
    job = box.ended(job_id)
    assert state_of(job) == "COMPLETED"
    by_hand = "moved by hand by root: stuck"
    assert [(state, said.replace(job.user, "root")) for state, said in box.attempts(job_id)] == [
        ("CANCELLED", by_hand),
        ("COMPLETED", by_hand),
    ]


@pytest.mark.slow
def test_the_number_of_jobs_heeds_the_node(new_box: NewBox) -> None:
    box = new_box("2x2")
    for _ in range(3):
        box.ended(box.submit("true"))
    box.submit("true", held=True)
    nodes = box.stub.ListNodes(scheduler_pb2.ListNodesRequest(), timeout=SOON).nodes
    for restarted in (False, True):
        if restarted:
            box.server.restart()
        for node in nodes:
            wanted = scheduler_pb2.JobFilter(node=node.name, include_ended=True)
            call = scheduler_pb2.ListJobsRequest(filter=wanted, page_size=2)
            page = box.stub.ListJobs(call, timeout=SOON, wait_for_ready=True)
            assert (page.total_size, len(page.jobs)) == ((4, 2) if node.local else (0, 0))


CALLS_NOBODY = """
from gpusched.scheduler.runner import supervisor
from gpusched.scheduler.runner.link import Link
supervisor.QUICK_SECONDS = 10.0
def refuse(self):
    raise AssertionError("no connection of its own is needed")
Link._open = refuse
"""


@pytest.mark.slow
def test_a_quick_job_costs_no_connection(new_box: NewBox, tmp_path: Path) -> None:
    """Its supervisor has the agent tell how it ended."""
    box = new_box("2", env=patched(tmp_path, CALLS_NOBODY))
    jobs = [box.submit(f"echo out; exit {number % 3}") for number in range(6)]
    ends = [box.ended(each) for each in jobs]
    assert [job.outcome.exit_status for job in ends] == [0, 1, 2, 0, 1, 2]
    assert all(job.usage.wall.ToNanoseconds() > 0 for job in ends)
    missing = box.ended(box.submit("no-such-command", "x"))
    assert (missing.outcome.exit_status, state_of(missing)) == (127, "FAILED")
    assert "no such file" in missing.outcome.message


@pytest.mark.slow
def test_a_report_that_the_server_does_not_take_in_time_is_told_once(new_box: NewBox, gate: Gate) -> None:
    box = new_box("1")
    job_id = box.submit(f"echo pid $$; {gate.words}; exit 7", requeue=True)
    box.said(job_id, "pid")
    wait_until(lambda: box.attached(job_id), SOON)
    box.server.pause()
    gate.open()
    time.sleep(3.0)  # longer than a supervisor waits for its agent's answer
    box.server.resume()
    assert state_of(box.ended(job_id)) == "FAILED"
    assert box.attempts(job_id) == [("FAILED", "exit 7")]
