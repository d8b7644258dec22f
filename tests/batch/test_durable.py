"""What a submit acknowledged is kept, and jobs outlive their server: killed, stopped, with a full disk, or damaged."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from batch.box import SOON, Box, Gate, after, is_dead, refusal, request, state_of
from gpusched.client.transport import open_channel
from gpusched.v1 import scheduler_pb2_grpc
from support.server import Server
from support.waiting import wait_until

NewBox = Callable[..., Box]
CLIENTS = 8


@pytest.mark.slow
def test_no_acknowledged_submit_is_lost_when_the_server_is_killed(new_box: NewBox, tmp_path: Path) -> None:
    """A burst from eight clients, `kill -9` in its middle: what was acknowledged is there, and runs once."""
    box = new_box("8")
    ran = tmp_path / "ran"
    acknowledged: list[str] = []
    stop = threading.Event()

    def submit() -> None:
        with open_channel(box.server.address) as channel:
            stub = scheduler_pb2_grpc.SchedulerStub(channel)
            while not stop.is_set():
                try:
                    job = stub.Submit(request(f"echo $GPUSCHED_JOB_ID >>{ran}"), timeout=SOON).job
                except grpc.RpcError:
                    return  # that one was not acknowledged
                acknowledged.append(job.id)

    clients = [threading.Thread(target=submit) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    wait_until(lambda: len(acknowledged) >= 60, SOON, every=0.001)
    box.server.kill()
    stop.set()
    for client in clients:
        client.join(SOON)
    assert len(set(acknowledged)) == len(acknowledged)
    box.server.start()
    ends = {job_id: state_of(box.ended(job_id)) for job_id in acknowledged}
    assert Counter(ends.values()) == {"COMPLETED": len(acknowledged)}, [
        box.history(j) for j in ends if ends[j] == "LOST"
    ]
    times = Counter(ran.read_text().split())
    assert set(acknowledged) <= set(times)
    assert set(times.values()) == {1}, "no command runs twice"


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True], ids=["kept log", "file of before"])
def test_a_run_that_was_granted_and_never_begun_is_queued_again(
    new_box: NewBox, tmp_path: Path, elsewhere: bool
) -> None:
    """The server dies between the save of a grant and its word to the agent: nobody will ever come for that lease."""
    box = new_box("1", args=("--window", "4s"))
    output = tmp_path / "output"
    output.write_text("of an earlier run\n")
    server = box.server.process
    assert server is not None
    (agent,) = wait_until(
        lambda: [each for each in psutil.Process(server.pid).children() if each.name() == "gpusched-agent"], SOON
    )
    agent.suspend()  # the word is on its way, and nobody hears it
    job_id = box.submit("echo ran $GPUSCHED_ATTEMPT", output_path=str(output) if elsewhere else "")
    box.in_state(job_id, "RUNNING")
    box.server.kill()
    agent.kill()
    box.server.start()
    job = box.ended(job_id)
    said = b"of an earlier run\nran 2\n" if elsewhere else b"ran 2\n"
    assert (state_of(job), box.log(job_id)) == ("COMPLETED", said)
    assert "was never begun" in box.history(job_id)


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
def test_jobs_outlive_their_server(new_box: NewBox, tmp_path: Path, how: str) -> None:
    """Running ones go on and keep their GPUs, their ends are told later; waiting ones wait. An upgrade is the same."""
    box = new_box("2")
    early = box.submit("true", request_id="request 2")
    box.ended(early)
    gates = [Gate(tmp_path / f"gate{number}") for number in (0, 1)]
    ends, goes_on = (
        box.submit(f"echo pid $$; {gate.words}; echo bye; exit {5 + number}", request_id=f"request {number}")
        for number, gate in enumerate(gates)
    )
    done = box.submit("true", gpus=2, priority=-1)
    waits, follows = box.submit("true"), box.submit("true", dependencies=after(goes_on, "FAILED"))
    held = box.submit("true", held=True)
    begins = box.submit("true", priority=-2)
    for each in (ends, goes_on):
        box.said(each, "pid")
    before = {each: wait_until(lambda each=each: box.attached(each), SOON) for each in (ends, goes_on)}
    waiting = (waits, done, begins, follows, held)
    assert [box.job(each).position for each in waiting] == [1, 2, 3, 0, 0]
    getattr(box.server, how)()
    gates[0].open()
    pids = [int(written(box, each).split()[1]) for each in (ends, goes_on)]
    wait_until(lambda: is_dead(pids[0]), SOON, "the end of a command while the server is away")
    assert not is_dead(pids[1])
    box.server.start()
    job = box.ended(ends)
    assert (state_of(job), job.outcome.exit_status, job.attempt) == ("FAILED", 5, 1)
    assert job.usage.gpu_seconds > 0, "measured, though nobody was there"
    now = wait_until(lambda: box.attached(goes_on), SOON)
    assert now.holder_pid == before[goes_on].holder_pid
    assert (state_of(now), now.lease_id, now.attempt) == ("RUNNING", before[goes_on].lease_id, 1)
    assert list(now.gpus) == list(before[goes_on].gpus)
    assert state_of(box.ended(waits)) == "COMPLETED", "on the other GPU"
    assert box.state(done) == box.state(begins) == "QUEUED" and box.reason(follows) == "DEPENDENCY"
    assert box.submit("true", request_id="request 1") == goes_on, "a retried call of before"
    assert box.submit("true", request_id="request 0") == ends, "even of a job that has ended"
    assert box.submit("true", request_id="request 2") == early, "long ago"
    gates[1].open()
    job = box.ended(goes_on)
    assert (state_of(job), job.outcome.exit_status) == ("FAILED", 6)
    assert box.log(goes_on).endswith(b"bye\n")
    for each in (done, begins, follows):
        assert state_of(box.ended(each)) == "COMPLETED"
    assert (box.state(held), box.reason(held)) == ("QUEUED", "HELD")
    history = box.history(goes_on).splitlines()
    assert history[:2] == ["accepted", "granted 1 GPU"] and history[-1] == "exit 6"
    for gate in gates:
        gate.close()


def written(box: Box, job_id: str) -> str:
    """What a job has written, without asking the server."""
    return (box.server.state_dir / "logs" / f"{job_id}.1.log").read_text()


@pytest.mark.slow
def test_a_supervisor_killed_while_the_server_is_away(new_box: NewBox, gate: Gate) -> None:
    """Its command is dead; after the window its job is lost, or runs again if so wished."""
    box = new_box("2", args=("--window", "1s"))
    plain, again = (
        box.submit(f"echo pid $$; test $GPUSCHED_ATTEMPT = 2 || {gate.words}", requeue=requeue)
        for requeue in (False, True)
    )
    pids = [int(box.said(each, "pid").split()[1]) for each in (plain, again)]
    holders = [wait_until(lambda each=each: box.attached(each), SOON).holder_pid for each in (plain, again)]
    box.server.kill()
    for holder in holders:
        os.kill(holder, signal.SIGKILL)
    wait_until(lambda: all(map(is_dead, pids)), SOON, "the agent cleans up with no server")
    box.server.start()
    assert state_of(box.ended(plain)) == "LOST"
    assert "did not come back after the restart" in box.job(plain).outcome.message
    job = box.ended(again)
    assert (state_of(job), [state_of(each) for each in job.attempts]) == ("COMPLETED", ["LOST", "COMPLETED"])


# -- the disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "gpusched-test", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no room on a disk."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size >>= 1
    return filler


@pytest.mark.slow
def test_a_full_disk(small_disk: Path, tmp_path: Path, gate: Gate) -> None:
    """Nothing is taken on and nothing started; what runs goes on; and all is well again when there is room."""
    server = Server("2", state_dir=small_disk)
    server.log_path = tmp_path / "log"
    with server:
        box = Box(server)
        elsewhere = {"output_path": str(tmp_path / "%j"), "environment": {"PATH": "/usr/bin:/bin"}}
        runs = box.submit(f"echo on; {gate.words}; exit 3", **elsewhere)
        waits = box.submit("true", gpus=2, priority=-1, **elsewhere)
        box.said(runs, "on")
        command = wait_until(lambda: box.attached(runs), SOON).holder_pid
        filler = fill(small_disk)
        refusals: list[Any] = []

        def submit() -> None:
            # There is a GPU for it. Its size is to need a new page, for there may be half of one left.
            try:
                environment = {"PATH": "/usr/bin:/bin", "SIZE": "x" * 20_000}
                box.submit(f"touch {tmp_path}/ran", **elsewhere | {"environment": environment, "request_id": "same"})
            except grpc.RpcError as error:
                refusals.append(refusal(error))

        for _ in range(3):
            submit()
        full = "no space left on its disk; make room; a running server then goes on by itself"
        assert len(refusals) == 3
        for code, reason, _, text in refusals:
            assert (code, reason) == ("UNAVAILABLE", "STORE") and full in text
        done = box.cli("submit", "--output", str(tmp_path / "x"), "--", "true")
        assert (done.returncode, done.stdout) == (69, "") and full in done.stderr
        assert box.reason(waits) == "STORE"
        done = box.cli("resume")
        assert (done.returncode, done.stdout) == (69, "") and full in done.stderr, (
            "what is not kept is not told as done"
        )
        assert "Nothing is started while state cannot be saved" in box.good("explain", waits)
        assert "halted, as state cannot be saved: " in box.good("status")
        doctor = box.cli("doctor")
        assert doctor.returncode == 1 and "WRONG  store" in doctor.stdout and full in doctor.stdout
        assert box.state(runs) == "RUNNING"
        gate.open()
        wait_until(lambda: is_dead(command) or box.state(runs) != "RUNNING", SOON)
        assert box.state(waits) == "QUEUED", "nothing is started"
        filler.unlink()
        job = box.ended(runs)
        assert (state_of(job), job.outcome.exit_status) == ("FAILED", 3), "kept, and told when there was room"
        assert state_of(box.ended(waits)) == "COMPLETED"
        assert not (tmp_path / "ran").exists(), "what was refused does not run"
        submit()
        assert len(refusals) == 3
        wait_until((tmp_path / "ran").exists, SOON, "the same call is taken on now")
        assert box.cli("doctor").returncode == 0
        filler = fill(small_disk)
        with pytest.raises(grpc.RpcError):
            box.submit("true", **elsewhere | {"environment": {"SIZE": "x" * 20_000}})
        filler.unlink()
        wait_until(lambda: server.log.count("state can be saved again") == 2, SOON, "by itself, with nothing going on")
        assert "Traceback" not in server.log
        box.close()


@pytest.mark.slow
def test_an_end_that_could_not_be_saved_outlives_the_server(small_disk: Path, tmp_path: Path, gate: Gate) -> None:
    """Its supervisor tells it until it is kept: else the finished job would be lost, or run again, after a restart."""
    server = Server("1", state_dir=small_disk)
    server.log_path = tmp_path / "log"
    with server:
        box = Box(server)
        runs = box.submit(f"echo on; {gate.words}; exit 3", output_path=str(tmp_path / "%j.%a"), requeue=True)
        box.said(runs, "on")
        command = wait_until(lambda: box.attached(runs), SOON).holder_pid
        filler = fill(small_disk)
        gate.open()
        wait_until(lambda: box.state(runs) == "FAILED", SOON, "the server knows, and cannot keep it")
        # Long enough for every way to tell it: by the agent, and by a call of its own.
        time.sleep(3.0)
        assert not is_dead(command)
        server.kill()
        filler.unlink()
        server.start()
        job = box.ended(runs)
        assert (state_of(job), job.outcome.exit_status, len(job.attempts)) == ("FAILED", 3, 1)
        wait_until(lambda: is_dead(command), SOON, "now it has nothing left to do")
        box.close()


@pytest.mark.slow
def test_one_damaged_row_hides_no_other(new_box: NewBox) -> None:
    box = new_box("1")
    bad, good = box.submit("true"), box.submit("true")
    for each in (bad, good):
        box.ended(each)
    box.server.stop()
    with sqlite3.connect(box.server.state_dir / "state.db") as connection:
        connection.execute("UPDATE jobs SET data = '{bad' WHERE id = ?", (bad,))
    connection.close()
    before = len(box.server.log)
    box.server.start()
    listed = json.loads(box.quick("jobs", "--all", "--json").stdout)["jobs"]
    assert [each["id"] for each in listed] == [good]
    done = box.cli("job", bad)
    assert done.returncode == 69 and f"job {bad} is kept in a form that this version does not know" in done.stderr
    doctor = box.cli("doctor")
    assert doctor.returncode == 1 and f"job {bad} is kept in a form" in doctor.stdout
    assert "Traceback" not in box.server.log[before:]


def start_fails(box: Box) -> str:
    """What a start that is refused says."""
    with pytest.raises(RuntimeError) as caught:
        box.server.start()
    text = str(caught.value)
    assert "(status 1)" in text and "Traceback" not in text
    return text.splitlines()[-1]


@pytest.mark.slow
def test_a_damaged_state_is_not_started_on(new_box: NewBox) -> None:
    box = new_box("1")
    held = box.submit("true", held=True)
    box.server.stop()
    path = box.server.state_dir / "state.db"
    whole = path.read_bytes()
    path.write_bytes(b"nonsense" * 1000)
    assert "is not a database, or its beginning is damaged; stop the server and put the file back" in start_fails(box)
    path.write_bytes(whole)
    box.server.start()
    assert box.state(held) == "QUEUED"


def test_jobs_whose_gpus_are_gone_are_listed(new_box: NewBox) -> None:
    """A server that finds fewer GPUs than the one before it had."""
    box = new_box("2")
    both, none = box.submit("true", gpus=2), box.submit("true", gpus=2, held=True)
    box.ended(both)
    box.server.stop()
    box.server.command[box.server.command.index("--simulate") + 1] = "1"
    box.server.start()
    node = box.job(both).gpus[0].node
    for wanted in ("--all", "--all --node " + node):
        assert [line.split()[0] for line in box.good("jobs", *wanted.split()).splitlines()[1:3]] == [none, both]
    assert f"{node}:0 (1 gone)" in box.good("jobs", "--all")
    assert f"a GPU that is gone (GPU-sim-{node}-1)" in box.good("job", both)
    assert f"job {none} asks for 2 GPUs that would do, of which there are 1 here" in box.cli("doctor").stdout
