"""Looking at batch jobs: `logs`, `wait`, `job`, `jobs`; across restarts, and where there is nothing to see."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from batch.box import SOON, Box, Gate, forget_peak, peak_memory, refusal, retry, state_of
from cli.holders import Holder
from gpusched.v1 import scheduler_pb2
from support.waiting import wait_until

NewBox = Callable[..., Box]

#: Writes numbered lines, slowly enough that a restart falls between them, until a file is there.
TICKER = """
import os, sys, time
number = 0
while not os.path.exists(sys.argv[1]):
    os.write(1 + number % 2, b"%06d\\n" % number)
    number += 1
    time.sleep(0.002)
"""


def logs(box: Box, *argv: str) -> bytes:
    """What `gpusched logs` copies to stdout, as it is."""
    done = box.quick("logs", *argv)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


# -- logs -------------------------------------------------------------------------------------------------


def test_from_the_start_the_last_lines_and_an_attempt(shared: Box) -> None:
    job_id = shared.submit(
        "for n in 1 2 3 4 5; do echo $GPUSCHED_ATTEMPT.$n; echo err >&2; done; printf end; exit 1", retry=retry(1)
    )
    shared.ended(job_id)
    whole = {number: "".join(f"{number}.{n}\nerr\n" for n in range(1, 6)).encode() + b"end" for number in (1, 2)}
    assert logs(shared, job_id) == whole[2], "the newest run, both streams in the order of their writing"
    assert logs(shared, "--attempt", "1", job_id) == whole[1]
    assert logs(shared, "-n", "3", job_id) == b"2.5\nerr\nend"
    assert logs(shared, "--tail", "1", "--attempt", "1", job_id) == b"end"
    assert shared.log(job_id, tail_lines=1000) == whole[2]
    assert shared.log(job_id, offset=4) == whole[2][4:]
    assert shared.log(job_id, offset=10**6) == b""


def test_binary_output(shared: Box) -> None:
    everything = bytes(range(256)) * 40
    script = "import os; os.write(1, bytes(range(256)) * 40)"
    job_id = shared.submit(sys.executable, "-c", script)
    shared.ended(job_id)
    assert logs(shared, job_id) == everything
    assert logs(shared, "-f", job_id) == everything


def test_much_without_a_newline_costs_the_server_no_memory(shared: Box) -> None:
    size = 20_000_000
    job_id = shared.submit(f"head -c {size} /dev/zero | tr '\\0' x")
    shared.ended(job_id)
    pid = shared.server.process.pid  # type: ignore[union-attr]
    forget_peak(pid)
    before = peak_memory(pid)
    call = shared.stub.StreamLogs(scheduler_pb2.StreamLogsRequest(job_id=job_id))
    next(call)  # and then nothing is read for a while: a terminal that was stopped
    assert len(logs(shared, job_id)) == size
    assert len(logs(shared, "-n", "1", job_id)) == 16 << 20, "no line's beginning is looked for further back than this"
    call.cancel()
    assert peak_memory(pid) - before < 12 << 20


@pytest.mark.slow
def test_follow_over_retries_and_from_before_the_start(shared: Box) -> None:
    job_id = shared.submit("echo run $GPUSCHED_ATTEMPT; test $GPUSCHED_ATTEMPT = 3", held=True, retry=retry(5, 0.3))
    second = shared.begin("logs", "-f", "--attempt", "2", job_id)
    with shared.begin("logs", "-f", job_id) as following, second:
        wait_until(lambda: _waits(shared, following.pid) and _waits(shared, second.pid), SOON)
        shared.update(job_id, held=False)
        out, err = following.communicate(timeout=SOON)
        assert (following.returncode, out) == (0, b"run 1\nrun 2\nrun 3\n")
        assert err.decode() == f"job {job_id}, attempt 2:\njob {job_id}, attempt 3:\n"
        assert second.communicate(timeout=SOON)[0] == b"run 2\nrun 3\n"


def test_follow_where_attempts_share_a_file(shared: Box, tmp_path: Path) -> None:
    path = tmp_path / "all"
    path.write_text("before\n")
    job_id = shared.submit("echo run $GPUSCHED_ATTEMPT; exit 1", output_path=str(path), retry=retry(2), held=True)
    with shared.begin("logs", "-f", job_id) as following:
        wait_until(lambda: _waits(shared, following.pid), SOON)
        shared.update(job_id, held=False)
        assert following.communicate(timeout=SOON)[0] == b"before\nrun 1\nrun 2\nrun 3\n" == path.read_bytes()


@pytest.mark.slow
def test_follow_and_wait_across_restarts(new_box: NewBox, tmp_path: Path) -> None:
    """No byte is lost or doubled; who follows from before there is anything, or waits for the end, does not mind."""
    box = new_box("4")
    stop, out, gates = tmp_path / "stop", tmp_path / "out", [Gate(tmp_path / f"gate{n}") for n in (0, 1)]
    job_id = box.submit(sys.executable, "-c", TICKER, str(stop))
    held = box.submit("echo at last", held=True)
    ends = [box.submit(f"{gate.words}; exit {7 + number}") for number, gate in enumerate(gates)]
    with contextlib.ExitStack() as stack:
        following = stack.enter_context(box.begin("logs", "-f", job_id, stdout=stack.enter_context(out.open("wb"))))
        early = stack.enter_context(box.begin("logs", "-f", held))
        waiting = [stack.enter_context(box.begin("wait", "--quiet", each)) for each in ends]
        wait_until(lambda: out.stat().st_size > 100, SOON)
        wait_until(lambda: all(_waits(box, each.pid) for each in (early, *waiting)), SOON)
        for gate, restart in zip(gates, (box.server.kill, box.server.stop), strict=True):
            before = out.stat().st_size
            restart()
            gate.open()  # its job ends while there is no server
            box.server.start()
            wait_until(lambda before=before: out.stat().st_size > before + 100, SOON, "more of it")
        stop.touch()
        assert state_of(box.ended(job_id)) == "COMPLETED"
        assert (following.communicate(timeout=SOON)[1], following.returncode) == (b"", 0)
        box.update(held, held=False)
        assert (early.communicate(timeout=SOON), early.returncode) == ((b"at last\n", b""), 0)
        for number, each in enumerate(waiting):
            assert (each.communicate(timeout=SOON), each.returncode) == ((b"", b""), 7 + number)
    for gate in gates:
        gate.close()
    written = (box.server.state_dir / "logs" / f"{job_id}.1.log").read_bytes()
    assert out.read_bytes() == written
    numbers = [int(line) for line in written.split()]
    assert numbers == list(range(len(numbers))) and len(numbers) > 50


@pytest.mark.parametrize("follow", [[], ["-f"]], ids=["", "-f"])
def test_where_there_is_nothing_to_read(shared: Box, tmp_path: Path, follow: list[str]) -> None:
    cancelled = shared.submit("true", held=True)
    shared.cancel(cancelled)
    unwritable = shared.submit("true", output_path="/proc/none/x")
    removed = shared.submit("true", output_path=str(tmp_path / "out"))
    piped = shared.submit("true", output_path="/dev/null")
    for each in (unwritable, removed, piped):
        shared.ended(each)
    (tmp_path / "out").unlink()
    with Holder(shared.server.address) as holder:
        holder.granted()
        wanted = {
            "999999": "there is no job 999999",
            "x": "job_id: 'x' is no job id",
            cancelled: "ended without having started, so it has no output: cancelled by",
            unwritable: "cannot write the output file '/proc/none/x': no such file or directory",
            removed: f"the output of job {removed}, attempt 1, is not there (any more): {tmp_path}/out",
            piped: "is not there (any more): /dev/null",
            holder.id: "is no batch job: its output went to the terminal it was started from",
        }
        for number, words in wanted.items():
            done = shared.quick("logs", *follow, number)
            assert (done.returncode, done.stdout) == (1, b""), done
            assert words in done.stderr.decode() and done.stderr.startswith(b"gpusched: "), done.stderr


def test_of_a_job_that_waits(shared: Box, gate: Gate) -> None:
    waits, runs = shared.submit("true", held=True), shared.submit(f"echo on; {gate.words}")
    shared.said(runs, "on")
    done = shared.quick("logs", waits)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"has not started yet, so it has no output yet; follow it (-f) to wait for that" in done.stderr
    done = shared.quick("logs", "--attempt", "2", runs)
    assert done.returncode == 1 and b"attempt: job" in done.stderr and b"has had 1 run" in done.stderr
    assert logs(shared, runs) == b"on\n", "what it has written so far"
    gate.open()
    shared.cancel(waits)
    shared.ended(runs)


def test_a_pipe_nobody_reads_from_stops_no_one(shared: Box, tmp_path: Path) -> None:
    """Output may go into a pipe; asking for it takes nothing out of it, and does not hang the server."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        job_id = shared.submit("echo through the pipe", output_path=str(path))
        shared.ended(job_id)
        assert [shared.log(job_id) for _ in range(8)] == [b""] * 8
        assert reader.read() == b"through the pipe\n"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"attempt": -1}, "attempt"),
        ({"tail_lines": -1}, "attempt"),
        ({"tail_lines": 1, "offset": 1}, "offset"),
        ({"attempt": 5}, "attempt"),
    ],
)
def test_log_requests_that_make_no_sense(shared: Box, fields: dict[str, int], field: str) -> None:
    job_id = shared.submit("true")
    shared.ended(job_id)
    with pytest.raises(grpc.RpcError) as caught:
        list(shared.stub.StreamLogs(scheduler_pb2.StreamLogsRequest(job_id=job_id, **fields), timeout=SOON))
    assert refusal(caught.value)[2] == field


# -- wait -------------------------------------------------------------------------------------------------


def test_wait_follows_the_exit_status(shared: Box, gate: Gate) -> None:
    good, bad = shared.submit("exit 0"), shared.submit("exit 42")
    killed, none = shared.submit("kill -9 $$"), shared.submit("/no/such/command", "x")
    cancelled, lost = shared.submit("true", held=True), shared.submit(f"echo on; {gate.words}")
    shared.cancel(cancelled)
    shared.said(lost, "on")
    os.kill(wait_until(lambda: shared.attached(lost), SOON).holder_pid, signal.SIGKILL)
    assert shared.good("wait", good) == f"job {good} completed: exit 0\n"
    expected = {bad: 42, killed: 137, none: 127, cancelled: 143, lost: 125}
    found = {job_id: shared.quick("wait", "-q", job_id) for job_id in expected}
    assert {job_id: done.returncode for job_id, done in found.items()} == expected
    assert {(done.stdout, done.stderr) for done in found.values()} == {(b"", b"")}
    done = shared.cli("wait", good, killed, bad)
    assert (done.returncode, done.stdout.splitlines()) == (
        137,
        [f"job {good} completed: exit 0", f"job {killed} failed: killed by SIGKILL", f"job {bad} failed: exit 42"],
    )
    document = json.loads(shared.quick("wait", "--json", good, bad).stdout)
    assert [(each["id"], each["state"]) for each in document["jobs"]] == [
        (good, "JOB_STATE_COMPLETED"),
        (bad, "JOB_STATE_FAILED"),
    ]


def test_wait_tells_an_unknown_id_at_once(shared: Box) -> None:
    waits = shared.submit("true", held=True)
    for number in ("999999", "x"):
        done = shared.quick("wait", waits, number)
        assert (done.returncode, done.stdout) == (1, b"") and number.encode() in done.stderr
    shared.cancel(waits)


# -- job and jobs -----------------------------------------------------------------------------------------


def test_all_about_one(shared: Box, tmp_path: Path) -> None:
    script = "a = bytearray(50 << 20); n = sum(range(3_000_000)); import sys, time; time.sleep(0.3); sys.exit(6)"
    job_id = shared.submit(sys.executable, "-c", script, gpus=2, name="whole", retry=retry(1), requeue=True)
    shared.ended(job_id)
    job = shared.job(job_id)
    usage = job.usage
    assert 0.3 <= usage.wall.ToNanoseconds() / 1e9 < 30
    assert 0.01 <= usage.cpu.ToNanoseconds() / 1e9 < 30
    assert 50 << 20 <= usage.peak_memory_bytes < 200 << 20
    assert usage.gpu_seconds == pytest.approx(2 * usage.wall.ToNanoseconds() / 1e9, rel=0.01)
    times = [job.submitted_at, job.attempts[0].started_at, job.attempts[0].ended_at, job.started_at, job.ended_at]
    assert [at.ToNanoseconds() for at in times] == sorted(at.ToNanoseconds() for at in times)
    text = shared.good("job", job_id)
    for expected in (
        *(
            "State       FAILED",
            "Attempt     2, 1 retry allowed",
            "Outcome     exit status 6",
            "of CPU",
            "MiB of memory",
        ),
        *(
            "GPU-seconds",
            "Runs in     /",
            f"Output      {shared.server.state_dir}/logs/{job_id}.2.log",
            "Had         GPU",
        ),
        *("Attempts\n  1  ", "exit 6; tried again in 0.05 s", "granted 2 GPUs", "accepted"),
    ):
        assert expected in text, text
    line = next(line for line in shared.good("list", "--all").splitlines() if line.startswith(f"{job_id} "))
    assert line.split()[1:4] == ["FAILED", job.user, "whole"] and line.endswith("exit 6")


def test_watching_a_batch_job(shared: Box, gate: Gate) -> None:
    job_id = shared.submit(f"{gate.words}; exit 2", held=True)
    with shared.begin("job", job_id, "--watch") as watching:
        assert watching.stdout is not None
        assert b"QUEUED" in watching.stdout.readline()
        shared.update(job_id, held=False)
        lines = iter(watching.stdout.readline, b"")
        assert any(b"RUNNING" in line for line in lines)
        gate.open()
        assert any(b"FAILED" in line and b"exit status 2" in line for line in lines)
        assert watching.wait(SOON) == 0


def test_many_wait_for_one(shared: Box, gate: Gate) -> None:
    """Fifty streams to one job each see its end."""
    job_id = shared.submit(gate.words)
    ends: list[Any] = []
    threads = [threading.Thread(target=lambda: ends.append(shared.ended(job_id))) for _ in range(50)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(SOON)
    assert [state_of(job) for job in ends] == ["COMPLETED"] * 50


def _waits(box: Box, pid: int) -> bool:
    """Whether a process has a connection to the server, and has done nothing for a while: it has called, and waits."""
    process = psutil.Process(pid)
    connected = any(
        each.raddr and each.raddr.port == box.server.port and each.status == "ESTABLISHED"
        for each in process.net_connections()
    )
    before = process.cpu_times()
    if connected:
        time.sleep(0.3)
    return connected and process.cpu_times() == before
