"""How jobs and GPUs read in a table."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

import gpusched.v1.job_pb2 as job_pb
import gpusched.v1.resources_pb2 as resources_pb
import gpusched.v1.scheduler_pb2 as pb
from gpusched.client.cli import gpus, job, jobs, show
from gpusched.client.cli.output import Output


def cells(job: Any, now: float = 1000.0, with_node: bool = False) -> list[str]:
    return [cell.text for cell in jobs.row(job, now, with_node).cells]


def gpu(index: int, node: str = "n1", **fields: Any) -> resources_pb.Gpu:
    return resources_pb.Gpu(uuid=f"GPU-{node}-{index}", index=index, node=node, **fields)


def test_a_running_job_shows_its_gpus_and_run_time() -> None:
    job = job_pb.Job(
        id="7", state=job_pb.JOB_STATE_RUNNING, user="alice", name="train",
        submitted_at=Timestamp(seconds=100), started_at=Timestamp(seconds=910), time_limit=Duration(seconds=7200),
        gpus=[job_pb.AllocatedGpu(index=i, node="n1") for i in (0, 1, 2, 5)],
    )  # fmt: skip
    assert cells(job) == ["7", "RUNNING", "alice", "train", "0-2,5", "-", "1m30s", "2h", "-"]
    assert cells(job, with_node=True)[4] == "n1:0-2,5"


def test_a_running_job_that_is_to_end_says_why_and_by_when() -> None:
    by = Timestamp(seconds=1000)
    job = job_pb.Job(id="7", state=job_pb.JOB_STATE_RUNNING, ending="preempted for job 9 (bob)", ending_at=by)
    assert cells(job)[-1] == f"ends by {show.clock(by)}: preempted for job 9 (bob)"
    assert fact(job, "Asked to end") == f"by {show.clock(by)}: preempted for job 9 (bob)"


def test_a_waiting_job_shows_what_it_asks_and_why_it_waits() -> None:
    reason = job_pb.Reason(
        code=job_pb.REASON_CODE_RESOURCES, message="needs 4 GPUs, 1 free; …", gpus_needed=4, gpus_free=1
    )
    job = job_pb.Job(
        id="8", state=job_pb.JOB_STATE_QUEUED, user="bob", position=2, reason=reason,
        submitted_at=Timestamp(seconds=955), resources=resources_pb.ResourceRequest(gpus=4),
    )  # fmt: skip
    assert cells(job) == ["8", "QUEUED", "bob", "-", "asks 4", "2", "45s", "-", "needs 4, 1 free"]


def test_an_ended_job_shows_how_long_it_ran_and_how_it_ended() -> None:
    job = job_pb.Job(
        id="9", state=job_pb.JOB_STATE_FAILED, started_at=Timestamp(seconds=10), ended_at=Timestamp(seconds=70),
        outcome=job_pb.Outcome(exit_status=3), resources=resources_pb.ResourceRequest(gpus=1),
    )  # fmt: skip
    assert cells(job)[6:] == ["1m", "-", "exit 3"]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (job_pb.Reason(code=job_pb.REASON_CODE_PRIORITY, ahead_job_id="5", message="long"), "behind job 5"),
        (
            job_pb.Reason(
                code=job_pb.REASON_CODE_RESOURCES,
                message="needs 10 GiB of a GPU, at most 6 GiB left; GPU 0 is shared by ann (job 3, 74 GiB)",
                gpus_needed=1,
            ),
            "needs 10 GiB of a GPU, at most 6 GiB left",
        ),
        (
            job_pb.Reason(code=job_pb.REASON_CODE_PAUSED, message="scheduling is paused: tea"),
            "paused: tea",
        ),
        (job_pb.Reason(code=job_pb.REASON_CODE_READY, message="x"), "starts next"),
        (job_pb.Reason(code=99, message="a reason of a newer server"), "a reason of a newer server"),  # type: ignore[arg-type]
    ],
)
def test_reasons_in_short(reason: Any, words: str) -> None:
    assert show.waiting(reason) == words


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (job_pb.Outcome(exit_status=0), ""),
        (job_pb.Outcome(exit_status=0, message="done"), "done"),
        (job_pb.Outcome(signal=9), "killed by SIGKILL"),
        (job_pb.Outcome(signal=63), "killed by signal 63"),
        (job_pb.Outcome(message="its holder went away"), "its holder went away"),
    ],
)
def test_outcomes_in_short(outcome: Any, words: str) -> None:
    assert show.ended(outcome) == words


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0-1"), ([7, 0, 2, 1], "0-2,7"), ([0, 2, 4], "0,2,4")],
)
def test_indices(numbers: list[int], text: str) -> None:
    assert show.indices(numbers) == text


def test_a_state_of_a_newer_server_has_a_number() -> None:
    assert show.job_state(42) == "STATE_42"


def test_a_gpu_shows_its_readings_and_unknown_ones_as_such() -> None:
    known = gpu(
        3, model="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, memory_used_bytes=int(11.2 * 2**30),
        power_watts=69.6, state=resources_pb.GPU_STATE_ALLOCATED, utilization_percent=97, temperature_celsius=61,
        job_id="7", user="alice",
    )  # fmt: skip
    assert [cell.text for cell in gpus.row(known, False).cells] == [
        "3", "ALLOCATED", "H100 80GB HBM3", "11.2/80 GiB", "97%", "61°C", "70 W", "7", "alice",
    ]  # fmt: skip
    silent = gpu(0, state=resources_pb.GPU_STATE_FREE, utilization_percent=-1, temperature_celsius=-1, power_watts=-1)
    assert [cell.text for cell in gpus.row(silent, True).cells][4:] == ["?", "?", "?", "-", "-"]
    assert gpus.row(silent, True).cells[0].text == "n1:0"


@pytest.mark.parametrize(
    ("state", "message", "drained", "note"),
    [
        ("FREE", "", False, ""),
        ("FOREIGN", "GPU 3: pid 1 python (bob) holds 1 GiB", False, "GPU 3: pid 1 python (bob) holds 1 GiB"),
        ("DRAINED", "drained: new fan", True, "GPU 3: drained: new fan"),
        ("ALLOCATED", "", False, ""),
        ("ALLOCATED", "", True, "GPU 3: drained: no new job after this one"),
        ("ALLOCATED", "GPU 3: pid 9 x (eve) holds 1 GiB, not under this lease", False,
         "GPU 3: pid 9 x (eve) holds 1 GiB, not under this lease"),
    ],
)  # fmt: skip
def test_what_is_the_matter_stands_beneath(state: str, message: str, drained: bool, note: str) -> None:
    number = resources_pb.GpuState.Value(f"GPU_STATE_{state}")
    assert gpus.row(gpu(3, state=number, message=message, drained=drained), False).note == note


def test_a_job_without_gpus_shows_that_it_has_none() -> None:
    asks = resources_pb.ResourceRequest(cpus=4, memory_bytes=2 << 30)
    for state in (job_pb.JOB_STATE_QUEUED, job_pb.JOB_STATE_RUNNING, job_pb.JOB_STATE_COMPLETED):
        assert cells(job_pb.Job(id="7", state=state, resources=asks))[4] == "none"
    value = job_pb.Job(id="7", state=job_pb.JOB_STATE_RUNNING, resources=asks)
    assert fact(value, "Asks for") == "4 cores, 2 GiB of host memory"
    view = job.JobView(Output())
    view.take(pb.WatchJobsResponse(jobs=[value]))
    assert view.news()[0].endswith("job 7 RUNNING: with 4 cores, 2 GiB of host memory")


def run(number: int, begin: int, end: int = 0) -> job_pb.Attempt:
    ended = Timestamp(seconds=end) if end else None
    return job_pb.Attempt(number=number, started_at=Timestamp(seconds=begin), ended_at=ended)


@pytest.mark.parametrize(
    ("number", "runs", "said"),
    [
        (0, [], ", after a wait of 30s"),
        (1, [run(1, 130)], ", after a wait of 30s"),
        (2, [run(1, 103, 123), run(2, 130)], ", after a wait of 7s since the run before"),
        (2, [run(1, 103, 130), run(2, 130)], ", at once after the run before"),
        (2, [], ""),  # of a watch, which tells no runs
    ],
)
def test_a_later_run_has_not_waited_while_the_first_one_ran(number: int, runs: list[Any], said: str) -> None:
    for state in (job_pb.JOB_STATE_RUNNING, job_pb.JOB_STATE_FAILED):
        value = job_pb.Job(
            id="7", state=state, attempt=number, attempts=runs,
            submitted_at=Timestamp(seconds=100), started_at=Timestamp(seconds=130),
        )  # fmt: skip
        assert fact(value, "Started") == show.clock(value.started_at) + said


def test_a_wait_for_the_next_run_begins_with_the_end_of_the_last() -> None:
    now = int(time.time())
    value = job_pb.Job(id="7", state=job_pb.JOB_STATE_QUEUED, position=1, submitted_at=Timestamp(seconds=now - 7200))
    assert fact(value, "State") == "QUEUED, place 1 in the queue, waiting for 2h"
    value.attempt = 1
    assert fact(value, "State") == "QUEUED, place 1 in the queue"
    value.attempts.append(run(1, now - 7000, now - 3600))
    assert fact(value, "State") == "QUEUED, place 1 in the queue, waiting for 1h"


def fact(value: Any, name: str) -> str:
    """What `gpusched job` says under a name."""
    line = next(line for line in job.account(value, Output()) if line.startswith(name))
    return line.removeprefix(name).strip()
