"""Commands against a service that answers as told: what is sent, what is shown, what is refused."""

from __future__ import annotations

import io
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import gpusched.v1.job_pb2 as job_pb
import gpusched.v1.resources_pb2 as resources_pb
import gpusched.v1.scheduler_pb2 as pb
from cli.fake_service import END, FakeServer, Refusal
from cli.terminal import Terminal
from gpusched.client.cli.jobs import JobsView
from gpusched.client.cli.main import run
from gpusched.client.cli.output import Output
from support.server import clean_environment

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def cli(fake: FakeServer) -> Callable[..., int]:
    return lambda *argv: run([*argv, "--url", fake.address])


def job(number: int, state: Any = job_pb.JOB_STATE_QUEUED, **fields: Any) -> job_pb.Job:
    asked = Timestamp(seconds=1_700_000_000)
    return job_pb.Job(
        id=str(number), state=state, submitted_at=asked, resources=resources_pb.ResourceRequest(gpus=1), **fields
    )


def test_jobs_pages_through_all_of_them(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    fake.service.answers["ListJobs"] = [
        pb.ListJobsResponse(jobs=[job(n) for n in range(1, 501)], next_page_token="more", total_size=502),
        pb.ListJobsResponse(jobs=[job(501), job(502)], total_size=502),
    ]
    assert cli("jobs", "--quiet") == 0
    assert capsys.readouterr().out.split() == [str(n) for n in range(1, 503)]
    assert [request.page_token for request in fake.service.of("ListJobs")] == ["", "more"]


def test_jobs_limit_says_what_is_left_out(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    fake.service.answers["ListJobs"] = pb.ListJobsResponse(jobs=[job(1), job(2)], next_page_token="x", total_size=9)
    assert cli("jobs", "--limit", "2", "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [entry["id"] for entry in document["jobs"]] == ["1", "2"]
    assert document["total_size"] == 9
    assert captured.err == "2 of 9 jobs shown; --limit 0 shows all\n"
    assert fake.service.of("ListJobs")[0].page_size == 2


def test_jobs_filters_are_sent(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    fake.service.answers["ListJobs"] = pb.ListJobsResponse()
    assert cli("jobs", "-s", "running,Timed-Out", "--user", "bob", "--name", "tr", "--node", "n1", "--all") == 0
    (request,) = fake.service.of("ListJobs")
    assert request.filter == pb.JobFilter(
        states=[job_pb.JOB_STATE_RUNNING, job_pb.JOB_STATE_TIMED_OUT],
        user="bob",
        name="tr",
        node="n1",
        include_ended=True,
    )
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no jobs match\n")


def test_no_jobs_is_said_beside_the_output(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    fake.service.answers["ListJobs"] = pb.ListJobsResponse()
    assert cli("list") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no jobs: nothing runs and nothing waits\n")
    fake.service.answers["ListJobs"] = pb.ListJobsResponse()
    assert cli("jobs", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": [], "total_size": 0}


def test_hostile_names_are_harmless(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    bad = "x\x1b]0;owned\x07\r\n\x9b2J\u202e"
    event = job_pb.JobEvent(state=job_pb.JOB_STATE_QUEUED, message=bad)
    hostile = job(1, name=bad, user=bad, command=[bad], history=[event], reason=job_pb.Reason(message=bad))
    gpu = resources_pb.Gpu(uuid=bad, model=bad, node=bad, state=resources_pb.GPU_STATE_FOREIGN, message=bad, user=bad)
    node = resources_pb.Node(name=bad, labels={bad: bad}, driver_version=bad)
    fake.service.answers |= {
        "ListJobs": pb.ListJobsResponse(jobs=[hostile]),
        "GetJob": pb.GetJobResponse(job=hostile),
        "ExplainJob": pb.ExplainJobResponse(job=hostile, lines=[bad]),
        "ListGpus": pb.ListGpusResponse(gpus=[gpu]),
        "ListNodes": pb.ListNodesResponse(nodes=[node]),
        "GetStatus": pb.GetStatusResponse(service=bad, version=bad, user=bad, node=bad, pause_reason=bad, paused=True),
        "CancelJob": Refusal(grpc.StatusCode.NOT_FOUND, bad, "JOB_NOT_FOUND"),
    }
    for argv in (["jobs"], ["job", "1"], ["explain", "1"], ["gpus"], ["nodes"], ["status"], ["version"]):
        for more in ([], ["--json"]):
            assert cli(*argv, *more) == 0
    for argv in (["jobs", "-q"], ["gpus", "-q"], ["nodes", "-q"]):
        assert cli(*argv) == 0
    assert cli("cancel", "1") == 1
    captured = capsys.readouterr()
    for line in (captured.out + captured.err).split("\n"):
        assert line.isprintable(), line


def test_cancel_tries_all_and_fails_if_one_failed(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    answers = [
        pb.CancelJobResponse(job=job(3, job_pb.JOB_STATE_RUNNING)),
        Refusal(grpc.StatusCode.FAILED_PRECONDITION, "job 2 has ended already", "JOB_ENDED"),
        pb.CancelJobResponse(job=job(1, job_pb.JOB_STATE_CANCELLED)),
    ]
    fake.service.answers["CancelJob"] = list(answers)
    assert cli("cancel", "1", "2", "3", "1", "--reason", "tea") == 1
    captured = capsys.readouterr()
    assert captured.out == "job 1 is cancelled\njob 3 is told to end; its GPUs are taken back if it does not\n"
    assert captured.err == "gpusched: job 2 has ended already\n"
    # The last first, or it might be given the GPUs of the first.
    assert [(r.job_id, r.reason) for r in fake.service.of("CancelJob")] == [("3", "tea"), ("2", "tea"), ("1", "tea")]
    fake.service.answers["CancelJob"] = list(answers)
    assert cli("cancel", "1", "2", "3", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [entry["id"] for entry in document["jobs"]] == ["1", "3"]
    assert document["errors"] == [{"job_id": "2", "reason": "JOB_ENDED", "message": "job 2 has ended already"}]


def test_a_refused_cancel_is_tried_again_as_administrator(
    fake: FakeServer, cli: Callable[..., int], capsys: Captured, tmp_path: Path
) -> None:
    refusal = Refusal(grpc.StatusCode.PERMISSION_DENIED, "job 1 is bob's", "NOT_OWNER")
    fake.service.answers["CancelJob"] = [refusal]
    assert cli("cancel", "1") == 1
    assert capsys.readouterr().err == "gpusched: job 1 is bob's\n"
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        giver = threading.Thread(target=_give, args=(listener, b"secret\n"))
        giver.start()
        fake.service.answers["GetStatus"] = pb.GetStatusResponse(admin_socket=str(path))
        fake.service.answers["CancelJob"] = [refusal, pb.CancelJobResponse(job=job(1, job_pb.JOB_STATE_CANCELLED))]
        assert cli("cancel", "1") == 0
        giver.join(10)
    assert capsys.readouterr().out == "job 1 is cancelled\n"
    assert len(fake.service.of("CancelJob")) == 3


def _give(listener: socket.socket, token: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(token)


@pytest.mark.parametrize(
    ("refusal", "status", "words"),
    [
        (Refusal(grpc.StatusCode.NOT_FOUND, "no job 99", "JOB_NOT_FOUND"), 1, "gpusched: no job 99\n"),
        (Refusal(grpc.StatusCode.PERMISSION_DENIED, "not yours", "NOT_OWNER"), 1, "gpusched: not yours\n"),
        (
            Refusal(grpc.StatusCode.UNAVAILABLE, "the server stops", "SERVER_STOPPING"),
            69,
            "gpusched: the server stops\n",
        ),
        (Refusal(grpc.StatusCode.INVALID_ARGUMENT, "job_id: no id", "INVALID_REQUEST"), 1, "gpusched: job_id: no id\n"),
    ],
)
def test_refusals_are_the_servers_sentence(
    refusal: Refusal, status: int, words: str, fake: FakeServer, cli: Callable[..., int], capsys: Captured
) -> None:
    fake.service.answers["GetJob"] = refusal
    assert cli("job", "99") == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", words)


def test_a_server_of_another_version_is_named(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    fake.service.answers["GetStatus"] = pb.GetStatusResponse(inventory_mode="real")
    assert cli("pause") == 1
    assert "no administrator's socket" in capsys.readouterr().err
    assert cli("jobs", "--watch", "--json") == 1  # the fake has no such queue: an error of its own
    assert "an error of its own" in capsys.readouterr().err


def test_an_unwanted_servers_user_is_refused(
    fake: FakeServer, cli: Callable[..., int], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSCHED_SERVER_USER", "54321")
    assert cli("status") == 1
    assert "allows only 54321" in capsys.readouterr().err
    assert fake.service.requests == []


def test_a_bug_is_one_line(
    fake: FakeServer, cli: Callable[..., int], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("gpusched.client.cli.status.block", broken)
    assert cli("status") == 1
    err = capsys.readouterr().err
    assert err.startswith("gpusched: a bug in this command: ZeroDivisionError: oops") and err.count("\n") == 1
    monkeypatch.setenv("GPUSCHED_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli("status")


def test_a_snapshot_may_come_in_parts_and_a_new_one_replaces_it() -> None:
    view = JobsView(Output(stdout=io.StringIO()), pb.JobFilter())
    view.restart()
    view.take(pb.WatchJobsResponse(jobs=[job(1)], snapshot=True))
    view.take(pb.WatchJobsResponse(jobs=[job(2)], snapshot=True))
    assert [line.split()[0] for line in view.frame()[:3]] == ["JOB", "1", "2"]
    view.restart()
    assert [line.split()[0] for line in view.frame()[:3]] == ["JOB", "1", "2"]
    view.take(pb.WatchJobsResponse(jobs=[job(3)], snapshot=True))
    assert [line.split()[0] for line in view.frame()[:2]] == ["JOB", "3"]
    view.take(pb.WatchJobsResponse(jobs=[job(3, job_pb.JOB_STATE_LOST)]))
    assert view.frame()[0] == "nothing runs and nothing waits"


def test_what_is_no_grpc_server_is_said(capsys: Captured) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert run(["status", "--url", f"127.0.0.1:{listener.getsockname()[1]}"]) == 69
    err = capsys.readouterr().err
    assert err.startswith("gpusched: ") and err.count("\n") == 1


# -- watching on a pipe ------------------------------------------------------------------------------------


def process(fake: FakeServer, *argv: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpusched.client.cli", *argv],
        env=clean_environment(GPUSCHED_URL=fake.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_watched_jobs_are_appended_on_a_pipe(fake: FakeServer) -> None:
    changes: queue.Queue[Any] = queue.Queue()
    fake.service.answers["WatchJobs"] = changes
    changes.put(pb.WatchJobsResponse(jobs=[job(1, name="one", position=1)], snapshot=True))
    with process(fake, "jobs", "--watch") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().split()[:3] == ["JOB", "STATE", "USER"]
        assert "QUEUED" in watching.stdout.readline()
        changes.put(pb.WatchJobsResponse(jobs=[job(1, job_pb.JOB_STATE_CANCELLED, name="one")]))
        assert "CANCELLED" in watching.stdout.readline()
        changes.put(END)
        out, err = watching.communicate(timeout=20)
    assert (watching.returncode, out, err) == (0, "", "")


def test_watched_json_is_one_document_a_line(fake: FakeServer) -> None:
    changes: queue.Queue[Any] = queue.Queue()
    fake.service.answers["WatchJobs"] = changes
    changes.put(pb.WatchJobsResponse(jobs=[job(1, name="a\nb")], snapshot=True))
    changes.put(pb.WatchJobsResponse(jobs=[job(1, job_pb.JOB_STATE_RUNNING)]))
    changes.put(END)
    with process(fake, "jobs", "--watch", "--json") as watching:
        out, _ = watching.communicate(timeout=20)
    first, second = map(json.loads, out.splitlines())
    assert (first["snapshot"], first["jobs"][0]["name"]) == (True, "a\nb")
    assert (second["snapshot"], second["jobs"][0]["state"]) == (False, "JOB_STATE_RUNNING")


def test_a_watch_that_the_server_ends_on_a_pipe_fails(fake: FakeServer) -> None:
    changes: queue.Queue[Any] = queue.Queue()
    fake.service.answers["WatchGpus"] = changes
    changes.put(pb.WatchGpusResponse(gpus=[resources_pb.Gpu(uuid="GPU-1")]))
    changes.put(Refusal(grpc.StatusCode.UNAVAILABLE, "the server stops", "SERVER_STOPPING"))
    with process(fake, "gpus", "--watch") as watching:
        _, err = watching.communicate(timeout=20)
    assert (watching.returncode, err) == (69, "gpusched: the server stops\n")


@pytest.mark.slow
def test_a_gone_reader_ends_it_quietly(fake: FakeServer) -> None:
    jobs = [job(n) for n in range(20_000)]
    fake.service.answers["ListJobs"] = pb.ListJobsResponse(jobs=jobs, total_size=len(jobs))
    with process(fake, "jobs") as listing:
        assert listing.stdout is not None
        listing.stdout.readline()
        listing.stdout.close()
        assert listing.wait(30) == 141
        assert listing.stderr is not None
        assert listing.stderr.read() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said(fake: FakeServer) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpusched.client.cli", "status"],
            env=clean_environment(GPUSCHED_URL=fake.address),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "gpusched: cannot write the output: No space left on device\n"


# -- watching on a terminal --------------------------------------------------------------------------------


def test_a_terminal_is_redrawn_in_place_until_interrupted(fake: FakeServer) -> None:
    changes: queue.Queue[Any] = queue.Queue()
    fake.service.answers["WatchJobs"] = changes
    waiting = [job(n, name=f"job{n}", position=n) for n in (1, 2)]
    changes.put(pb.WatchJobsResponse(jobs=waiting, snapshot=True))
    with Terminal(["jobs", "--watch"], clean_environment(GPUSCHED_URL=fake.address)) as terminal:
        lines = terminal.wait_for(lambda lines: "0 running, 2 waiting" in lines[-1])
        assert [line.split()[:1] for line in lines[:3]] == [["JOB"], ["1"], ["2"]]
        running = job(1, job_pb.JOB_STATE_RUNNING, name="job1", started_at=Timestamp(seconds=1_700_000_100))
        changes.put(pb.WatchJobsResponse(jobs=[running, job(2, name="job2", position=1)]))
        lines = terminal.wait_for(lambda lines: "1 running, 1 waiting" in lines[-1])
        assert [line.split()[:2] for line in lines[:3]] == [["JOB", "STATE"], ["1", "RUNNING"], ["2", "QUEUED"]]
        changes.put(pb.WatchJobsResponse(jobs=[job(1, job_pb.JOB_STATE_COMPLETED)]))
        lines = terminal.wait_for(lambda lines: "0 running, 1 waiting" in lines[-1])
        assert len(lines) == 4
        assert "\x1b[32mRUNNING" in terminal.written
        assert terminal.interrupt() == 130
        assert terminal.lines() == lines or len(terminal.lines()) == 4
        assert "Traceback" not in terminal.written


@pytest.mark.slow
def test_a_terminal_waits_for_a_scheduler_that_went_away(fake: FakeServer) -> None:
    changes: queue.Queue[Any] = queue.Queue()
    fake.service.answers["WatchJobs"] = changes
    changes.put(pb.WatchJobsResponse(jobs=[job(1, name="one")], snapshot=True))
    with Terminal(["jobs", "--watch"], clean_environment(GPUSCHED_URL=fake.address)) as terminal:
        terminal.wait_for(lambda lines: "1 waiting" in lines[-1])
        changes.put(Refusal(grpc.StatusCode.UNAVAILABLE, "the server stops", "SERVER_STOPPING"))
        lines = terminal.wait_for(lambda lines: "the scheduler is away" in lines[-1])
        assert any("one" in line for line in lines)
        changes.put(pb.WatchJobsResponse(jobs=[job(2, name="two")], snapshot=True))
        lines = terminal.wait_for(lambda lines: any("two" in line for line in lines))
        assert not any("one" in line or "away" in line for line in lines)


@pytest.mark.slow
def test_a_small_window_shows_what_it_can(fake: FakeServer) -> None:
    changes: queue.Queue[Any] = queue.Queue()
    fake.service.answers["WatchJobs"] = changes
    jobs = [job(n, name="模型" * 20, position=n) for n in range(1, 51)]
    changes.put(pb.WatchJobsResponse(jobs=jobs, snapshot=True))
    environment = clean_environment(GPUSCHED_URL=fake.address)
    with Terminal(["jobs", "--watch"], environment, columns=40, rows=10) as terminal:
        lines = terminal.wait_for(lambda lines: "more lines than the window has room for" in lines[-1])
        assert len(lines) == 9
        terminal.resize(120, 70)
        lines = terminal.wait_for(lambda lines: "50 waiting" in lines[-1])
        assert lines[0].split()[0] == "JOB"
        assert len(lines) == 53


def test_topology(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    links = [resources_pb.GpuLinks(scores=row) for row in ([0, 220, 10], [220, 0, 50], [10, 50, 0])]
    nodes = [resources_pb.Node(name="a", gpus_total=3, links=links), resources_pb.Node(name="b", gpus_total=2)]
    gpus = [resources_pb.Gpu(node="a", index=n, numa_node=n // 2) for n in range(3)]
    gpus += [resources_pb.Gpu(node="b", index=n) for n in range(2)]
    fake.service.answers |= {"ListNodes": pb.ListNodesResponse(nodes=nodes), "ListGpus": pb.ListGpusResponse(gpus=gpus)}
    assert cli("gpus", "--topology") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["a:"],
        ["0", "1", "2", "NUMA"],
        ["0", "X", "NV2", "SYS", "0"],
        ["1", "NV2", "X", "PIX", "0"],
        ["2", "SYS", "PIX", "X", "1"],
    ]
    assert lines[6:8] == ["b:", "  2 GPUs, connected alike, or how is not known"]
    assert lines[-1].startswith("NVn: n NVLinks.")
    assert cli("gpus", "--topology", "--node", "b") == 0
    assert capsys.readouterr().out.startswith("b:\n")
    assert cli("gpus", "--topology", "--json") == 0
    assert json.loads(capsys.readouterr().out)["nodes"][0]["links"][0]["scores"] == [0, 220, 10]
    assert cli("gpus", "--topology", "--watch") == 2
    assert "cannot be had with --watch" in capsys.readouterr().err


def test_what_a_job_asks_of_its_gpus(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    asked = resources_pb.ResourceRequest(
        gpus=2,
        nodes=["n1"],
        gpu_ids=["0", "1"],
        exclude=["n2"],
        labels={"disk": "nvme"},
        gpus_per_node=2,
        placement=resources_pb.PLACEMENT_SPREAD,
    )
    fake.service.answers["GetJob"] = pb.GetJobResponse(job=job_pb.Job(id="1", resources=asked))
    assert cli("job", "1") == 0
    said = "2 GPUs, on n1, of 0, 1, not n2, with disk=nvme, 2 on each node, spread"
    assert said in capsys.readouterr().out
