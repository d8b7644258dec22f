"""The commands against a real scheduler with simulated GPUs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from cli.commands import CLI, good, gpusched
from cli.holders import Holder
from gpusched.client.cli import session as session_module
from gpusched.client.cli.main import run
from support.server import Server, clean_environment, free_port
from support.waiting import wait_until


def parsed(server: Server, *argv: str) -> Any:
    return json.loads(good(server, *argv, "--json"))


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.slow
def test_every_command_gives_json(server: Server) -> None:
    with (
        Holder(server.address, 7, name="模型\N{ROCKET}", command=["python", "train.py"]) as first,
        Holder(server.address, 2, name="next") as second,
    ):
        first.granted()
        second.queued()
        status = parsed(server, "status")
        assert [status[name] for name in ("gpus_total", "gpus_free", "jobs_running", "jobs_queued")] == [8, 1, 1, 1]
        assert status["service"] == "gpusched"
        listed = parsed(server, "jobs")
        assert [job["id"] for job in listed["jobs"]] == [first.id, second.id]
        assert listed["jobs"][0]["name"] == "模型🚀"
        assert listed["total_size"] == 2
        job = parsed(server, "job", second.id)
        assert (job["state"], job["position"]) == ("JOB_STATE_QUEUED", 1)
        assert job["reason"]["code"] == "REASON_CODE_RESOURCES"
        assert len(job["history"]) >= 1
        assert parsed(server, "explain", second.id)["lines"]
        gpus = parsed(server, "gpus")["gpus"]
        assert [gpu["state"] for gpu in gpus] == ["GPU_STATE_ALLOCATED"] * 7 + ["GPU_STATE_FREE"]
        (node,) = parsed(server, "nodes")["nodes"]
        assert (node["gpus_total"], node["gpus_free"], node["local"]) == (8, 1, True)
        assert parsed(server, "version")["address"] == server.address
        assert parsed(server, "priority", second.id, "-5")["priority"] == -5
        assert parsed(server, "pause", "--reason", "tea") == {"paused": True, "pause_reason": "tea"}
        assert parsed(server, "resume") == {"paused": False, "pause_reason": ""}
        (drained,) = parsed(server, "drain", "7", "--reason", "fan")["gpus"]
        assert (drained["index"], drained["state"], drained["drained"]) == (7, "GPU_STATE_DRAINED", True)
        assert parsed(server, "undrain", drained["uuid"])["gpus"][0]["drained"] is False
        assert parsed(server, "sim", "gpu", "7", "--util", "55")["index"] == 7
        assert [job["state"] for job in parsed(server, "cancel", second.id)["jobs"]] == ["JOB_STATE_CANCELLED"]


@pytest.mark.slow
def test_tables(server: Server) -> None:
    limit = Duration(seconds=7200)
    with (
        Holder(server.address, 3, name="first", time_limit=limit) as first,
        Holder(server.address, 8, name="second") as second,
        Holder(server.address, 1) as third,
    ):
        first.granted()
        third.queued()
        header, *lines = table(good(server, "jobs"))
        assert header == ["JOB", "STATE", "USER", "NAME", "GPUS", "POSITION", "TIME", "LIMIT", "REASON"]
        user = lines[0][2]
        assert [line[:5] for line in lines] == [
            [first.id, "RUNNING", user, "first", "0-2"],
            [second.id, "QUEUED", user, "second", "asks"],
            [third.id, "QUEUED", user, "-", "asks"],
        ]
        assert lines[0][7] == "2h"
        assert " ".join(lines[1][9:]) == "needs 8, 5 free"
        assert " ".join(lines[2][9:]) == f"behind job {second.id}"
        assert good(server, "jobs", "--mine", "--quiet").split() == [first.id, second.id, third.id]
        assert good(server, "list", "--state", "running", "-q").split() == [first.id]
        limited = gpusched(server, "jobs", "--limit", "2", "-q", "--user", user)
        assert limited.stdout.split() == [first.id, second.id]
        assert limited.stderr == "2 of 3 jobs shown; --limit 0 shows all\n"
        gpus = table(good(server, "gpus"))
        assert [line[1] for line in gpus[1:]] == ["ALLOCATED"] * 3 + ["FREE"] * 5
        assert gpus[1][-2:] == [first.id, user]
        assert "5 of 8 free, 3 held (simulated)" in good(server, "status")
        account = good(server, "job", first.id)
        assert "GPU 2 on" in account and "Time limit  2h" in account and "History" in account
        assert f"Waits behind job {second.id}" in good(server, "explain", third.id)
        nodes = table(good(server, "nodes"))[1]
        assert nodes[1:4] == ["8", "3", "5"] and "up" in nodes


def test_a_wrong_simulation_is_said_before_a_busy_state_directory(server: Server) -> None:
    done = gpusched(server, "serve", "--simulate", "x", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gpusched: cannot simulate 'x': ") and "Allowed: 8" in done.stderr
    done = gpusched(server, "serve", "--simulate", "8", "--port", "0")
    assert done.returncode == 1
    assert str(server.state_dir) in done.stderr


def test_ended_jobs_are_shown_on_demand(own: Server) -> None:
    server = own
    with Holder(server.address, name="done") as holder:
        holder.release(exit_status=3)
    assert gpusched(server, "jobs").stderr == "no jobs: nothing runs and nothing waits\n"
    (line,) = table(good(server, "jobs", "--all"))[1:]
    assert line[:2] == [holder.id, "FAILED"]
    assert line[-2:] == ["exit", "3"]
    assert good(server, "jobs", "--state", "failed,lost", "-q").split() == [holder.id]
    assert "exit status 3" in good(server, "job", holder.id)


@pytest.mark.slow
def test_two_nodes_are_told_apart(server_factory: Callable[..., Server]) -> None:
    server = server_factory("2x2")
    nodes = good(server, "nodes", "--quiet").split()
    assert len(nodes) == 2
    with Holder(server.address, 3) as holder:
        holder.granted()
        assert table(good(server, "gpus"))[1][0] == f"{nodes[0]}:0"
        gpus = good(server, "jobs").splitlines()[1]
        assert f"{nodes[0]}:0-1 {nodes[1]}:0" in gpus
        assert len(table(good(server, "gpus", "--node", nodes[1]))) == 3
        told = good(server, "drain", nodes[1])
        assert f"GPU 0 is drained; job {holder.id}" in told and "GPU 1 is drained\n" in told
        assert "GPU 1 stays drained with its node" in good(server, "undrain", f"{nodes[1]}:1")
        assert "GPU 1 is back in service (free)" in good(server, "undrain", nodes[1], "--node")
    done = gpusched(server, "drain", "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr and nodes[0] in done.stderr


def test_a_running_job_is_told_to_end(server: Server) -> None:
    with Holder(server.address) as holder:
        holder.granted()
        assert "is told to end" in good(server, "cancel", holder.id, "--reason", "your turn is over")
        assert "your turn is over" in holder.notice().message


@pytest.mark.slow
def test_refusals(server: Server) -> None:
    for argv in (
        ["job", "9999"],
        ["explain", "9999"],
        ["cancel", "9999"],
        ["priority", "9999", "1"],
        ["job", "9999", "-w"],
    ):
        done = gpusched(server, *argv)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("gpusched: ") and "9999" in done.stderr
    done = gpusched(server, "job", "abc")
    assert done.returncode == 1 and "abc" in done.stderr
    with Holder(server.address) as holder:
        holder.release()
    done = gpusched(server, "cancel", holder.id)
    assert done.returncode == 1
    assert done.stderr == f"gpusched: job {holder.id} has ended already (completed)\n"
    assert gpusched(server, "gpus", "--node", "nowhere").returncode == 1
    assert gpusched(server, "sim", "gpu", "88", "--util", "5").returncode == 1


@pytest.mark.slow
def test_simulation(server: Server) -> None:
    good(server, "sim", "gpu", "3", "--process", "4242:alice:python:11.2G", "--util", "50")
    wait_until(lambda: "FOREIGN" in good(server, "gpus"), what="the process is seen")
    shown = good(server, "gpus")
    assert "  GPU 3: pid 4242 python (alice) holds 11.2 GiB, not under a lease\n" in shown
    assert "11.2/80 GiB   50%" in shown
    good(server, "sim", "gpu", "3", "--no-processes", "--fault", "Xid 79: GPU has fallen off the bus")
    wait_until(lambda: "UNHEALTHY" in good(server, "gpus"), what="the fault is seen")
    assert "  GPU 3: Xid 79: GPU has fallen off the bus\n" in good(server, "gpus")
    assert "1 out of use" in good(server, "status")


def test_token_is_good_for_an_administrators_call(server: Server) -> None:
    import gpusched.v1.admin_pb2 as pb
    import gpusched.v1.admin_pb2_grpc as rpc
    from gpusched.client.transport import open_channel

    (token,) = good(server, "token").splitlines()
    with open_channel(server.address) as channel:
        request = pb.PauseSchedulingRequest(reason="by token")
        rpc.AdminStub(channel).PauseScheduling(request, metadata=[("authorization", f"Bearer {token}")], timeout=10)
    assert "paused: by token" in good(server, "status")


# -- no server, another's server ---------------------------------------------------------------------------


@pytest.mark.slow
def test_reading_starts_no_server() -> None:
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as state:
        environment = clean_environment(GPUSCHED_URL=address, GPUSCHED_STATE_DIR=state)
        for words in ("status", "jobs", "jobs --watch", "job 1", "gpus", "explain 1", "cancel 1", "pause"):
            done = subprocess.run([*CLI, *words.split()], env=environment, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout) == (69, "")
            assert done.stderr == (
                f"gpusched: no scheduler answers at {address} (GPUSCHED_URL); "
                "start one with: gpusched serve --detach (gsrun starts one by itself)\n"
            )
        assert os.listdir(state) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5)


def test_a_silent_server_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session_module, "CALL_SECONDS", 0.5)
    monkeypatch.setattr("gpusched.client.cli.watch.CALL_SECONDS", 0.5)
    server.pause()
    try:
        for argv in (["status"], ["jobs", "--watch"]):
            assert run([*argv, "--url", server.address]) == 69
            assert "did not answer" in capsys.readouterr().err
    finally:
        server.resume()


# -- the scheduler's own program ---------------------------------------------------------------------------


@pytest.mark.slow
def test_serve_and_stop_become_the_schedulers_program(tmp_path: Path) -> None:
    port = str(free_port())
    environment = clean_environment(GPUSCHED_STATE_DIR=str(tmp_path), GPUSCHED_URL=f"127.0.0.1:{port}")
    serving = subprocess.Popen(
        [*CLI, "serve", "--simulate", "2", "--port", port], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert serving.stderr is not None
        wait_until(lambda: "serving on" in serving.stderr.readline(), timeout=30)  # type: ignore[union-attr]
        shown = subprocess.run([*CLI, "status", "--json"], env=environment, capture_output=True, text=True, check=True)
        assert json.loads(shown.stdout)["pid"] == str(serving.pid)
        meant = environment | {"GPUSCHED_URL": "", "GPUSCHED_PORT": str(free_port())}
        for words, env, named_by in (
            (["stop"], meant, "GPUSCHED_PORT"),
            (["--url", "127.0.0.1:1", "stop"], environment, "--url"),
            (["stop", "--url=gpubox:9123"], environment, "--url"),
        ):
            refused = subprocess.run([*CLI, *words], env=env, capture_output=True, text=True, timeout=60)
            assert refused.returncode == 1 and serving.poll() is None
            assert f"gpusched: {named_by} names a scheduler at " in refused.stderr
            assert f"serves on 127.0.0.1:{port} (pid {serving.pid}): nothing was stopped" in refused.stderr
        stopped = subprocess.run([*CLI, "stop"], env=environment, capture_output=True, text=True, timeout=60)
        assert stopped.returncode == 0, stopped
        serving.communicate(timeout=20)
    finally:
        serving.kill()
        serving.wait()
    helped = subprocess.run([*CLI, "serve", "--help"], env=environment, capture_output=True, text=True)
    assert helped.returncode == 0 and "usage: gpusched serve" in helped.stdout


def test_a_closed_standard_output_is_no_bug(server: Server) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f"{sys.executable} -m gpusched.client.cli jobs --json {closed}"
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env=server.env, check=False)
        assert (done.returncode, done.stderr) == (0, "")
