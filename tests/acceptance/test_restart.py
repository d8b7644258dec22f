"""`kill -9` of the server in the middle of grants, over and over: no device ever has two holders, no place is lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.server import ROOT, Server

CLIENTS_PER_PROCESS = 275


def storm(tmp_path: Path, *, gpus: int, clients: int, kills: int, hold: float) -> list[dict[str, Any]]:
    """Run clients against a server that is killed again and again; what each saw."""
    processes = []
    rng = random.Random(1)
    # Waiters come back within the two seconds that the queue waits for them, or keep their rank; a long window
    # lets a slow machine bring all of them back.
    with Server(str(gpus), args=("--window", "60s", "--confirm-within", "30s")) as server:
        env = server.env | {"PYTHONPATH": f"{server.env['PYTHONPATH']}:{ROOT / 'tests'}"}
        outs = []
        for number, start in enumerate(range(0, clients, CLIENTS_PER_PROCESS)):
            out = tmp_path / f"out{number}.json"
            count = min(CLIENTS_PER_PROCESS, clients - start)
            outs.append(out)
            processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "acceptance.swarm",
                        server.address,
                        str(count),
                        str(hold),
                        str(out),
                        str(start),
                    ],
                    env=env,
                )
            )
        try:
            for _ in range(kills):
                time.sleep(rng.uniform(0.3, 1.5))  # the moment of a kill is meant to be any
                server.kill()
                server.start()
            for process in processes:
                assert process.wait(240) == 0
        finally:
            for process in processes:
                process.kill()
        assert "Traceback" not in server.log
    return [story for out in outs for story in json.loads(out.read_text())]


def check(stories: list[dict[str, Any]], clients: int) -> None:
    assert len(stories) == clients
    assert [story["trouble"] for story in stories if story["trouble"]] == []
    assert all(len(story["held"]) == 1 for story in stories), "everybody was served, once"
    held = sorted((device, since, until, epoch) for story in stories for device, epoch, since, until in story["held"])
    for (device, _, until, epoch), (following, since, _, later) in pairwise(held):
        if device == following:
            assert since >= until, f"{device} had two holders: {epoch} until {until:.3f}, {later} from {since:.3f}"
            assert later > epoch, "epochs rise"
    assert len({epoch for *_, epoch in held}) == clients
    for story in stories:
        places = story["positions"]
        assert places == sorted(places, reverse=True), f"job {story['job']} fell back in the queue: {places}"


@pytest.mark.slow
def test_a_few_restarts(tmp_path: Path) -> None:
    stories = storm(tmp_path, gpus=8, clients=40, kills=3, hold=0.5)
    check(stories, 40)
    assert sum(story["attaches"] for story in stories) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_holders_a_thousand_waiters_twenty_restarts(tmp_path: Path) -> None:
    stories = storm(tmp_path, gpus=100, clients=1100, kills=20, hold=6.0)
    check(stories, 1100)
    assert sum(story["attaches"] for story in stories) > 5000, "they were really there at each restart"
