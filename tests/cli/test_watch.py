"""`--watch` against a real scheduler: on a pipe, as JSON lines, on a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from cli.commands import CLI, good
from cli.holders import Holder
from cli.terminal import Terminal
from support.server import Server


def watching(server: Server, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CLI, *argv, "--watch"], env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def next_line(process: subprocess.Popen[str], text: str) -> str:
    """The next line with this text in it; the ones before it are dropped."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"it ended before {text!r}: {process.stderr and process.stderr.read()}")


@pytest.fixture
def interrupted() -> Any:
    """Ends a watch with ^C and checks that it goes quietly."""

    def interrupt(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, "")

    return interrupt


def test_watch_jobs_sees_them_come_and_go(server: Server, interrupted: Callable[..., None]) -> None:
    with watching(server, "jobs") as process:
        next_line(process, "STATE")
        with Holder(server.address, name="comes") as holder:
            holder.granted()
            assert "RUNNING" in next_line(process, "RUNNING")
            holder.release()
        assert "comes" in next_line(process, "COMPLETED")
        interrupted(process)


def test_watch_gpus_prints_what_changed(server: Server, interrupted: Callable[..., None]) -> None:
    with watching(server, "gpus") as process:
        next_line(process, "7 ")
        good(server, "drain", "5", "--reason", "fan")
        assert next_line(process, "DRAINED").startswith("5 ")
        assert next_line(process, "fan") == "  GPU 5: drained: fan\n"
        interrupted(process)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "found"), [(["status"], "paused: tea"), (["status", "--json"], '"pause_reason":"tea"')]
)
def test_watch_status(server: Server, argv: list[str], found: str, interrupted: Callable[..., None]) -> None:
    with watching(server, *argv) as process:
        next_line(process, "8")
        good(server, "pause", "--reason", "tea")
        next_line(process, found)
        interrupted(process)


@pytest.mark.slow
def test_watch_nodes(server: Server, interrupted: Callable[..., None]) -> None:
    with watching(server, "nodes", "--json") as process:
        assert json.loads(next_line(process, "nodes"))["nodes"][0]["gpus_free"] == 8
        with Holder(server.address, 2) as holder:
            holder.granted()
            assert json.loads(next_line(process, '"gpus_free":6'))["nodes"][0]["gpus_allocated"] == 2
        interrupted(process)


def test_watch_job_ends_with_the_job(server: Server) -> None:
    with Holder(server.address, 8) as first, Holder(server.address, 1) as second:
        first.granted()
        second.queued()
        with watching(server, "job", second.id) as told, watching(server, "job", second.id, "--json") as raw:
            next_line(told, "QUEUED, place 1 in the queue")
            assert json.loads(next_line(raw, "QUEUED"))["position"] == 1
            first.release()
            second.granted()
            assert "RUNNING: on GPU" in next_line(told, "RUNNING")
            second.release(exit_status=4)
            assert "FAILED: exit status 4" in next_line(told, "FAILED")
            assert told.wait(20) == 0
            raw.communicate(timeout=20)
            assert raw.returncode == 0


@pytest.mark.slow
def test_watch_explain_ends_with_the_job(server: Server) -> None:
    with Holder(server.address, 8) as first, Holder(server.address, 1) as second:
        first.granted()
        second.queued()
        with watching(server, "explain", second.id) as process:
            next_line(process, f"Job {second.id} is number 1 of 1")
            good(server, "cancel", second.id)
            next_line(process, "does not wait: it is cancelled")
            assert process.wait(20) == 0


@pytest.mark.slow
def test_watch_on_a_terminal_outlives_the_server(own: Server) -> None:
    server = own
    with Terminal(["gpus", "--watch"], server.env) as terminal:
        lines = terminal.wait_for(lambda lines: "8 of 8 GPUs free" in lines[-1])
        assert lines[0].split()[:2] == ["GPU", "STATE"] and len(lines) == 11
        assert "\x1b[32mFREE" in terminal.written
        good(server, "drain", "2")
        lines = terminal.wait_for(lambda lines: "7 of 8 GPUs free" in lines[-1])
        assert lines[3].split()[:2] == ["2", "DRAINED"]
        server.kill()
        terminal.wait_for(lambda lines: "the scheduler is away" in lines[-1])
        server.start()
        terminal.wait_for(lambda lines: "GPUs free" in lines[-1])
        assert terminal.interrupt() == 130


def test_a_table_on_a_terminal_fits_it(server: Server) -> None:
    with Holder(server.address, 2, name="a name that goes on and on " * 4) as holder:
        holder.granted()
        with Terminal(["jobs"], server.env | {"NO_COLOR": "1"}, columns=60) as terminal:
            assert terminal.wait() == 0
            header, line = terminal.lines()
            assert header.split()[:4] == ["JOB", "STATE", "USER", "NAME"]
            assert "…" in line and len(line) <= 60
            assert "\x1b" not in terminal.written
