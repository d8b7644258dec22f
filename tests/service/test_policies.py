"""A policy that an administrator has set, and what everybody has used, over restarts of the server."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.support import make_nodes, make_spec
from gpusched.scheduler import policies
from gpusched.scheduler.codec import job_of, record_of
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job, JobId
from gpusched.scheduler.core.policy import BACKFILLS, CANDIDATES, ORDERS, PolicySettings, Quota
from gpusched.scheduler.core.recovery import POLICY
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.usage_keeper import USAGE, UsageKeeper, restore_usage

NAMES = st.text("abcxyz", min_size=1, max_size=8)
SECONDS = st.floats(0, 1e8)
COUNTS = st.integers(0, 1000)
POLICIES = st.builds(
    PolicySettings,
    st.sampled_from(ORDERS),
    st.sampled_from(BACKFILLS),
    st.sampled_from(CANDIDATES),
    st.integers(1, 64),
    COUNTS,
    SECONDS,
    SECONDS,
    SECONDS,
    st.floats(1, 1e8),
    st.dictionaries(NAMES, st.floats(0.01, 1e6), max_size=3).map(lambda shares: tuple(shares.items())),
    st.booleans(),
    SECONDS,
    SECONDS,
    COUNTS,
    COUNTS,
    COUNTS,
    st.lists(st.builds(Quota, NAMES, COUNTS, COUNTS), max_size=3, unique_by=lambda quota: quota.name).map(tuple),
    st.booleans(),
)


@given(POLICIES)
def test_a_policy_comes_back_as_it_was(policy: PolicySettings) -> None:
    assert policies.load(policies.dump(policy), PolicySettings()) == policy


def test_every_knob_is_kept() -> None:
    assert set(json.loads(policies.dump(PolicySettings()))) == {field.name for field in fields(PolicySettings)}


def test_other_versions() -> None:
    configured = PolicySettings(order="sjf", aging=5.0)
    assert policies.load('{"order":"fifo","colour":"red"}', configured) == replace(configured, order="fifo")
    assert policies.in_force(configured, {}) is configured
    assert policies.in_force(configured, {POLICY: '{"order":"fifo"}'}).order == "fifo"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"order":"lottery"}',
        '{"half_life":0}',
        '{"half_life":"long"}',
        '{"shares":[["a"]]}',
        '{"shares":5}',
        '{"quotas":[{"name":"a","disks":1}]}',
        '{"freeze_wait":NaN}',
    ],
)
def test_a_policy_that_cannot_be_read_is_that_of_the_configuration(text: str, caplog: pytest.LogCaptureFixture) -> None:
    configured = PolicySettings(order="sjf")
    assert policies.in_force(configured, {POLICY: text}) is configured
    assert "the policy is that of the configuration" in caplog.text


class Server:
    """An engine of eight GPUs whose usage is kept, and its restarts."""

    def __init__(self, policy: PolicySettings) -> None:
        self.settings: dict[str, str] = {}
        self.records: dict[int, Any] = {}
        self.now = 0.0
        self._start(Settings(policy=policy, check_released=False))

    def _start(self, settings: Settings) -> None:
        self.engine = Engine(make_nodes("8"), settings, first_job=len(self.records) + 1, first_epoch=int(self.now) + 1)
        self.keeper = UsageKeeper(self.engine, lambda: self.now)

    def kill_and_start(self, *, away: float = 0.0, shift: float = 0.0) -> None:
        """What was not saved is gone. The clock is set forward by `shift` while the server is away."""
        settings = self.engine.settings
        self.now += away
        self._start(settings)
        jobs = [job_of(record) for record in self.records.values() if record.ended_at is None]
        self.engine.restore(jobs, dict(self.settings), self.now, shift=shift, mark="")
        restore_usage(self.engine, self.settings, self.now, shift)
        self.do(ev.Tick())

    def do(self, event: ev.Event) -> None:
        """What happens, and a save after it, as the driver does it."""
        for each in (event, ev.Pass()):
            for effect in self.engine.handle(each, self.now):
                self.keeper.on_effect(effect)
        changes = self.engine.take_changes()
        for key, value in changes.settings.items():
            if value is None:
                self.settings.pop(key, None)
            else:
                self.settings[key] = value
        for job in changes.jobs.values():
            self.records[job.id] = record_of(job)

    def start(self, user: str, gpus: int) -> JobId:
        self.do(ev.Submit(make_spec(gpus, user=user)))
        return JobId(max(self.records))

    def end(self, job: JobId) -> None:
        self.do(ev.Cancel(job, "enough"))
        self.do(ev.Leave(job, self.engine.jobs[job].attachment))

    def used(self, user: str) -> float:
        return self.engine.usage.used(user, self.now)


def test_usage_outlives_a_killed_server_to_the_second() -> None:
    """What is running, has ended, and goes on while nobody is there, decayed: as if there had been no restart."""
    policy = PolicySettings(order="fair_share", half_life=1000.0)
    killed, steady = Server(policy), Server(policy)
    for server in (killed, steady):
        first = server.start("alice", 2)
        server.now = 100.0
        server.start("bob", 1)
        server.now = 300.0
        server.end(first)
        server.now = 400.0
        server.start("alice", 4)
        server.now = 500.0
    killed.kill_and_start(away=250.0)
    steady.now += 250.0
    for user in ("alice", "bob"):
        assert killed.used(user) == pytest.approx(steady.used(user), rel=1e-9)
    assert killed.used("alice") > killed.used("bob") > 100
    for server in (killed, steady):
        server.now += 5000.0
    assert killed.used("alice") == pytest.approx(steady.used("alice"), rel=1e-9), "what runs is still charged"


def test_a_clock_that_was_set_makes_nobody_pay() -> None:
    """Half a day that was no time is no time to forget in."""
    server = Server(PolicySettings(order="fair_share", half_life=1000.0))
    job = server.start("alice", 2)
    server.now = 100.0
    server.end(job)
    before = server.used("alice")
    server.kill_and_start(away=43200.0, shift=43200.0)
    assert server.used("alice") == pytest.approx(before, rel=1e-9)


def test_usage_is_kept_under_fair_share_alone_and_from_its_first_moment_on() -> None:
    server = Server(PolicySettings())
    job = server.start("alice", 2)
    server.now = 100.0
    server.end(job)
    assert not [key for key in server.settings if key.startswith(USAGE)]
    server.do(ev.SetPolicy(PolicySettings(order="fair_share"), None))
    assert server.settings.keys() == {f"{USAGE}alice"}
    server.kill_and_start()
    assert server.used("alice") == pytest.approx(200, rel=1e-3)


@pytest.mark.parametrize("text", ["", "5", "[1]", '["a",2]', "[NaN,1]", "[-1,1]", "[1e999,1]", "{}", "null"])
def test_usage_that_cannot_be_read_is_none(text: str) -> None:
    server = Server(PolicySettings(order="fair_share"))
    server.settings[f"{USAGE}alice"] = text
    server.kill_and_start(away=5.0)
    assert server.used("alice") == 0


def running(*users: tuple[str, int]) -> list[Job]:
    server = Server(PolicySettings())
    for user, gpus in users:
        server.start(user, gpus)
    assert len(server.engine.running) == len(users)
    return list(server.engine.running.values())


def test_who_is_above_a_new_quota_is_told() -> None:
    jobs = running(("alice", 2), ("alice", 1), ("bob", 1))
    until = "nothing is taken away, and nothing new starts until that fits"
    shares = (("physics/alice", 1.0), ("physics/bob", 1.0))
    assert policies.notes(PolicySettings(), jobs) == []
    assert policies.notes(PolicySettings(user_gpus=3, user_jobs=2), jobs) == []
    assert policies.notes(PolicySettings(user_gpus=2), jobs) == [f"alice has 3 GPUs, 2 are allowed: {until}"]
    said = policies.notes(PolicySettings(user_jobs=1, user_gpus=1, quotas=(Quota("bob", 1, 1),)), jobs)
    assert said == [f"alice has 3 GPUs, 1 are allowed and 2 running jobs, 1 are allowed: {until}"]
    said = policies.notes(PolicySettings(user_gpus=1, shares=shares, quotas=(Quota("alice"),)), jobs)
    assert said == [], "a quota of one's own counts instead, and 0 is any number"
    said = policies.notes(PolicySettings(shares=shares, quotas=(Quota("physics/", 3),)), jobs)
    assert said == [f"physics/ has 4 GPUs, 3 are allowed: {until}"]


def test_who_asks_for_more_than_a_new_quota_is_told() -> None:
    server = Server(PolicySettings())
    server.start("bob", 8)
    server.start("alice", 3)
    server.start("alice", 1)
    waiting = list(server.engine.queue.firsts())
    assert [job.request.gpus for job in waiting] == [3, 1]
    text = f"job {waiting[0].id} (alice) asks for 3 GPUs, 2 are allowed"
    tight = PolicySettings(quotas=(Quota("alice", 2),))
    assert policies.notes(tight, [], waiting) == [f"{text}: it waits until that is changed"]
    assert policies.notes(replace(tight, borrow=True), [], waiting) == [f"{text}: it starts by borrowing, if at all"]
