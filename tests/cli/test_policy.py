"""`gpusched policy`, against a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cli.commands import good, gpusched
from gpusched.client.cli.output import Output
from gpusched.client.cli.policy import table
from gpusched.client.transport import open_channel
from gpusched.v1 import admin_pb2, admin_pb2_grpc, policy_pb2, scheduler_pb2, scheduler_pb2_grpc
from support.server import Server


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    with Server("4", args=("--policy", "sjf", "--share", "alice=2", "--quota", "alice=3:2")) as server:
        yield server


@pytest.fixture
def box(started: Server) -> Iterator[Server]:
    """A server with the policy that it was started with, before and after."""
    yield started
    good(started, "policy", "--reset", "--quiet")


def policy(server: Server) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(good(server, "policy", "--json"))
    return shown["policy"] | {"changed": shown["changed"]}


def row(text: str, option: str) -> str:
    """The value in a table's line."""
    found = re.search(rf"^{option} +(.*?)(?:  |$)", text, re.MULTILINE)
    assert found, text
    return found[1]


def test_it_shows_everything(box: Server) -> None:
    text = good(box, "policy")
    assert text.splitlines()[0].split() == ["OPTION", "VALUE", "MEANING"]
    values = {option: row(text, option) for option in ("policy", "--backfill", "--half-life", "--share", "--quota")}
    assert values == {
        "policy": "sjf",
        "--backfill": "easy",
        "--half-life": "7d",
        "--share": "alice=2",
        "--quota": "alice=3:2",
    }
    assert policy(box)["freeze_bypasses"] == 50


@pytest.mark.slow
def test_only_what_is_named_changes(box: Server) -> None:
    before = policy(box)
    words = ("fair_share", "--backfill", "conservative", "--half-life", "3d", "--share", "bob=0.5", "--quota", "bob=1")
    text = good(box, "policy", *words)
    assert (row(text, "policy"), row(text, "--half-life")) == ("fair_share", "3d")
    after = policy(box)
    assert after == before | {
        "order": "fair_share",
        "backfill": "conservative",
        "half_life": "259200s",
        "shares": [{"path": "alice", "shares": 2.0}, {"path": "bob", "shares": 0.5}],
        "quotas": [{"name": "alice", "gpus": 3, "jobs": 2}, {"name": "bob", "gpus": 1, "jobs": 0}],
        "changed": True,
    }
    good(box, "policy", "--share", "alice=none", "--quota", "alice=none", "--preemption", "on", "--aging", "0s", "-q")
    again = policy(box)
    assert again == after | {
        "shares": [{"path": "bob", "shares": 0.5}],
        "quotas": [{"name": "bob", "gpus": 1, "jobs": 0}],
        "preemption": True,
        "aging": "0s",
    }
    assert re.search(
        r"^Policy +fair_share, conservative backfill \(set by an administrator\)$", good(box, "status"), re.M
    )
    shown = gpusched(box, "policy")
    assert shown.stderr == "set by an administrator; `gpusched policy --reset` goes back to the configuration\n"
    assert row(good(box, "policy", "--reset"), "policy") == "sjf"
    assert policy(box) == before
    assert re.search(r"^Policy +sjf, easy backfill$", good(box, "status"), re.M)


def test_json_of_a_change(box: Server) -> None:
    answer = json.loads(good(box, "policy", "--user-gpus", "2", "--json"))
    assert (answer["policy"]["user_gpus"], answer["notes"]) == (2, [])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["lottery"], 1, "gpusched: policy: there is no policy 'lottery'; there are: fifo, priority, sjf, fair_share"),
        (["--half-life", "0"], 2, "--half-life: '0' will not do: give a duration such as"),
        (["--share", "a=nan"], 1, "gpusched: --share: a=nan; shares must be above 0"),
        (["--share", "a=-1"], 1, "gpusched: --share: a=-1; shares must be above 0"),
        (["--reservation-depth", "0"], 1, "gpusched: --reservation-depth: 0 is not from 1 to 64"),
        (["--backfill", "some"], 1, "gpusched: --backfill: 'some' is none of none, easy, conservative"),
        (["--half-life", "soon"], 2, "--half-life: 'soon' will not do: give a duration such as"),
        (["--share", "a"], 2, "--share: 'a' will not do: give PATH=N"),
        (["--share", "a=much"], 2, "--share: 'a=much' will not do: give PATH=N"),
        (["--quota", "a=1:2:3"], 2, "--quota: 'a=1:2:3' will not do: give NAME=GPUS"),
        (["--borrow", "maybe"], 2, "--borrow: 'maybe' will not do: give on or off"),
        (["--user-gpus", "-1"], 2, "--user-gpus: '-1' will not do: give a whole number from 0"),
        (["fifo", "--reset"], 2, "--reset goes alone"),
    ],
)
def test_what_is_refused_names_the_option(started: Server, words: list[str], status: int, said: str) -> None:
    done = gpusched(started, "policy", *words)
    assert (done.returncode, done.stdout) == (status, "") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with open_channel(started.address) as channel:
        request = scheduler_pb2.GetStatusRequest()
        assert not scheduler_pb2_grpc.SchedulerStub(channel).GetStatus(request, timeout=30).policy_changed


def test_no_client_sets_a_half_life_below_a_second(started: Server) -> None:
    """As the server's own option has it."""
    request = admin_pb2.SetPolicyRequest()
    request.policy.half_life.FromMilliseconds(999)
    metadata = [("authorization", f"Bearer {good(started, 'token').strip()}")]
    with open_channel(started.address) as channel, pytest.raises(grpc.RpcError) as caught:
        admin_pb2_grpc.AdminStub(channel).SetPolicy(request, metadata=metadata, timeout=30)
    assert caught.value.details() == "policy.half_life: 0.999 s is not allowed; it must be 1 s or more"  # type: ignore[attr-defined]


def test_durations_below_a_second_are_not_never() -> None:
    settings = policy_pb2.Policy()
    settings.preempt_grace.FromMilliseconds(400)
    settings.aging.FromSeconds(90)
    lines = "\n".join(table(settings, Output()))
    assert [row(lines, option) for option in ("--preempt-grace", "--aging", "--starvation")] == ["0.4s", "1m30s", "0s"]
