"""A real server, real jobs: who may be preempted is told, is gone in time, and runs again when there is room."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.server import Server
from support.waiting import wait_until

# Tells of its start and of its signal; ends by itself in the second run.
WORK = """
echo run $GPUSCHED_ATTEMPT >>{log}
trap 'echo signal >>{log}; kill $!; exit 0' USR1
trap 'echo term >>{log}; exit 9' TERM
[ "$GPUSCHED_ATTEMPT" = 2 ] && exit 0
sleep 1000 & wait
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("1", args=("--preemption", "on", "--preempt-after", "0s", "--preempt-grace", "5s")) as one:
        yield one


def tool(server: Server, *words: str, module: str = "gpusched.client.cli") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env=server.env, capture_output=True, text=True, timeout=60, check=False)


def gsrun(server: Server, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gpusched.client.gsrun", *words]
    return subprocess.Popen(command, env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def job(server: Server, number: str) -> Any:
    done = tool(server, "job", number, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found.get("job", found)


def has(log: Path, *lines: str) -> bool:
    return log.exists() and log.read_text().splitlines()[-len(lines) :] == list(lines)


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["USR1@60s", ""], ids=["signal", "plain"])
def test_a_batch_job_makes_room_and_finishes_later(server: Server, tmp_path: Path, wish: str) -> None:
    log = tmp_path / "log"
    words = ("--preemptible", "--priority", "-1", *(("--signal", wish) if wish else ()))
    done = tool(server, "submit", *words, "--", "sh", "-c", WORK.format(log=log))
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    wait_until(lambda: has(log, "run 1"), what="the first run")
    urgent = tool(server, "--name", "urgent", "--", "sh", "-c", f"echo urgent >>{log}", module="gpusched.client.gsrun")
    assert urgent.returncode == 0, urgent.stderr
    assert tool(server, "wait", number).returncode == 0
    told = "signal" if wish else "term"
    assert has(log, "run 1", told, "urgent", "run 2"), log.read_text()
    found = job(server, number)
    assert found["state"] == "JOB_STATE_COMPLETED"
    assert [attempt["state"] for attempt in found["attempts"]] == ["JOB_STATE_PREEMPTED", "JOB_STATE_COMPLETED"]


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["USR1@60s", ""], ids=["signal", "plain"])
def test_gsrun_ends_with_its_code_and_nothing_is_left(server: Server, tmp_path: Path, wish: str) -> None:
    log = tmp_path / "log"
    words = ("--preemptible", "--priority", "-1", *(("--signal", wish) if wish else ()))
    low = gsrun(server, *words, "--", "sh", "-c", WORK.format(log=log))
    try:
        wait_until(lambda: has(log, "run"), what="the command")
        urgent = tool(server, "--name", "urgent", "--", "true", module="gpusched.client.gsrun")
        assert urgent.returncode == 0, urgent.stderr
        _, said = low.communicate(timeout=20)
    finally:
        low.kill()
    assert low.returncode == 76, said
    assert has(log, "run", "signal" if wish else "term")
    assert "preempted for job 2" in said and ("SIGUSR1" in said) == bool(wish)
    assert job(server, "1")["state"] == "JOB_STATE_PREEMPTED"


@pytest.mark.slow
def test_a_server_that_dies_in_the_grace(server: Server, tmp_path: Path) -> None:
    log = tmp_path / "log"
    low = gsrun(
        server, "--preemptible", "--priority", "-1", "--signal", "USR1@1s", "--", "sh", "-c", WORK.format(log=log)
    )
    urgent = None
    try:
        wait_until(lambda: has(log, "run"), what="the command")
        urgent = gsrun(server, "--name", "urgent", "--", "sh", "-c", f"echo urgent >>{log}")
        wait_until(lambda: "kind=preemption" in server.log, what="the notice")
        server.restart()
        _, said = low.communicate(timeout=40)
        assert (low.returncode, urgent.wait(timeout=40)) == (76, 0), said
    finally:
        low.kill()
        if urgent is not None:
            urgent.kill()
    assert has(log, "run", "signal", "urgent"), (log.read_text(), said)


@pytest.mark.slow
def test_who_ignores_it_is_killed_at_the_deadline(server: Server, tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = f"trap '' TERM USR1; echo run >>{log}; while :; do sleep 0.2; done"
    low = gsrun(server, "--preemptible", "--priority", "-1", "--", "sh", "-c", text)
    try:
        wait_until(lambda: has(log, "run"), what="the command")
        urgent = tool(server, "--name", "urgent", "--", "true", module="gpusched.client.gsrun")
        assert urgent.returncode == 0, urgent.stderr
        _, said = low.communicate(timeout=20)
    finally:
        low.kill()
    assert low.returncode == 76, said
