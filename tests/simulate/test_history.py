"""A scheduler's history as a log that the simulator reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpusched.v1.job_pb2 as pb
from gpusched.client.cli.simulate import LeftOut, history_csv
from gpusched.scheduler.simulate.readers import read_log
from gpusched.scheduler.simulate.workload import LoggedJob


def ended(number: int, *, ran: bool = True, resources: dict[str, Any] | None = None, **fields: Any) -> pb.Job:
    job = pb.Job(id=str(number), user="ann", resources=resources or {"gpus": 2}, **fields)
    job.submitted_at.FromSeconds(1000 + number)
    if ran:
        job.started_at.FromSeconds(1010 + number)
    job.ended_at.FromSeconds(1070 + number)
    return job


def test_what_a_log_cannot_tell_is_left_out_and_counted(tmp_path: Path) -> None:
    kept = ended(1)
    others = [ended(2, ran=False), ended(3, resources={"cpus": 1}), ended(4, resources={"cpus": 2})]
    text, left_out = history_csv([*others, ended(5, resources={"gpus": 1, "shared": True}), kept])
    assert left_out == LeftOut(never_ran=1, without_gpus=2, shared=1)
    assert left_out.note() == (
        "left out: 1 job that ended without a run, 2 jobs without GPUs, 1 job with a share of a GPU"
    )
    assert LeftOut().note() == ""
    path = tmp_path / "log.csv"
    path.write_text(text)
    assert read_log(str(path)).jobs == [LoggedJob(2, 1, 1001, 60, 2, None, "ann")]


def test_what_is_known_of_run_times_goes_along(tmp_path: Path) -> None:
    jobs = [ended(1, name="eval"), ended(2, command=["/bin/train", "--big"]), ended(3, name="x", command=["y"])]
    jobs += [ended(4, command=["/" + "long/" * 40 + "a\nb"])]
    jobs[0].time_limit.FromSeconds(600)
    jobs[0].estimate.FromSeconds(300)
    # Less than a log can tell, and yet more than nothing.
    jobs[1].time_limit.FromNanoseconds(1000)
    jobs[1].estimate.FromNanoseconds(1000)
    path = tmp_path / "log.csv"
    path.write_text(history_csv(jobs)[0])
    read = read_log(str(path)).jobs
    assert [(job.name, job.requested, job.estimate) for job in read[:3]] == [
        ("eval", 600, 300),
        ("/bin/train", 0.001, 0.001),
        ("x", None, None),
    ]
    assert len(read[3].name) == 128 and read[3].name.endswith("/a?b")
