"""Each policy live: a real server and real gsruns, and who came first in the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from cli.commands import good
from gpusched.client import acquire
from gpusched.client.batch import submit
from gpusched.client.errors import LimitReached
from gpusched.client.transport import open_channel
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2, scheduler_pb2_grpc
from gsrun.running import QUICK, Gsrun
from rpc.servers import OTHER_UID, another_user
from support.server import Server
from support.waiting import wait_until

Start = Callable[..., Gsrun]


class Scene:
    """A server of a policy, gsruns of it, and a file that each of them writes its name into when it runs."""

    def __init__(self, server: Server, file: Path) -> None:
        self.server = server
        self._file = file
        self.runs: list[Gsrun] = []

    def holds(self, *options: str) -> Gsrun:
        """A gsrun that has its GPUs until it is told to end."""
        run = self._start(*options, "sh", "-c", "echo up; exec sleep 100")
        run.wait_for_out("up")
        return run

    def waits(self, name: str, *options: str) -> Gsrun:
        """A gsrun that waits in the queue, seen to be there."""
        run = self.asks(name, *options)
        run.wait_for_err("in the queue")
        return run

    def asks(self, name: str, *options: str) -> Gsrun:
        return self._start(*options, "sh", "-c", f"echo {name} >>{self._file}")

    def _start(self, *words: str) -> Gsrun:
        self.runs.append(Gsrun(self.server, *words))
        return self.runs[-1]

    @property
    def order(self) -> str:
        """The names of those that have run, first to last."""
        return "".join(self._file.read_text().split()) if self._file.exists() else ""

    def order_after(self, holder: Gsrun) -> str:
        """The order in which those that wait have run when the GPUs have become free."""
        holder.signal(signal.SIGTERM)
        for run in self.runs:
            assert run.wait(60) == (143 if run is holder else 0), run
        return self.order


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Its parameter: what is simulated, and arguments of the server."""
    gpus, *args = request.param
    with Server(gpus, args=tuple(args)) as server:
        found = Scene(server, tmp_path / "order")
        yield found
        for run in found.runs:
            run.close()
        assert "Traceback" not in server.log


def with_policy(*args: str, gpus: str = "1") -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [(gpus, *args)], indirect=True, ids=[" ".join(args)])


@with_policy("--policy", "fcfs")
def test_fifo_knows_no_priority(scene: Scene) -> None:
    holder = scene.holds()
    scene.waits("a", "--priority", "-5")
    scene.waits("b", "--priority", "5", "--estimate", "1s")
    scene.waits("c")
    assert scene.order_after(holder) == "abc"


@pytest.mark.slow
@with_policy()
def test_priority_is_tier_then_arrival(scene: Scene) -> None:
    holder = scene.holds()
    scene.waits("a")
    scene.waits("b", "--priority", "5")
    scene.waits("c", "--priority", "1", "--estimate", "1s")
    scene.waits("d", "--priority", "1")
    assert scene.order_after(holder) == "bcda"


@pytest.mark.slow
@with_policy("--policy", "priority", "--aging", "100ms")
def test_priority_is_worn_by_waiting(scene: Scene) -> None:
    """With a tier for every tenth of a second, who came a second before goes before five tiers."""
    holder = scene.holds()
    scene.waits("a")
    wait_until(lambda: _waited(scene.server) > 0.6, QUICK, "a wait of six tenths of a second")
    scene.waits("b", "--priority", "5")
    assert scene.order_after(holder) == "ab"


@pytest.mark.slow
@with_policy("--policy", "sjf")
def test_sjf_goes_by_the_users_estimate(scene: Scene) -> None:
    holder = scene.holds()
    scene.waits("a")
    scene.waits("b", "--time", "1h", "--estimate", "3m")
    scene.waits("c", "--time", "2m")
    scene.waits("d", "--estimate", "1m", "--time", "2h")
    # Nothing known of it but what ran before under its name and program, of which there is nothing: last.
    assert scene.order_after(holder) == "dcba"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(("ours", "first"), [("1", "theirs"), ("100", "ours")])
def test_fair_share_serves_who_had_less_of_what_is_due(tmp_path: Path, ours: str, first: str) -> None:
    """Both users have used the GPU, we longer, and ask first: they are served first, unless nearly all is due to us.

    What was used is known over a `kill -9` of the server.
    """
    args = ("--policy", "fair_share", "--share", f"root={ours}", "--window", "5s")
    with Server("1", args=args) as server, another_user(server.address) as address, open_channel(address) as channel:
        scene = Scene(server, tmp_path / "order")
        try:
            used = _acquire(channel)
            _granted(used)
            wait_until(lambda: _ran(server) > 0.3, QUICK, "a while of their use")
            used.cancel()
            holder = scene.holds()
            theirs_ended = next(job for job in _jobs(server) if job.uid == OTHER_UID)
            long = (theirs_ended.ended_at.ToNanoseconds() - theirs_ended.started_at.ToNanoseconds()) / 1e9
            wait_until(lambda: _ran(server) > 2 * long, QUICK, "a longer while of ours")
            holder.signal(signal.SIGTERM)
            assert holder.wait() == 143
            server.restart()
            holder = scene.holds()
            scene.waits("a", "--name", "ours")
            theirs = _acquire(channel, "theirs")
            opening = next(theirs)
            assert opening.HasField("accepted") and opening.HasField("queued")
            holder.signal(signal.SIGTERM)
            _granted(theirs)
            theirs.cancel()
            assert scene.runs[-1].wait(60) == 0
            began = {
                job.name: job.started_at.ToNanoseconds() for job in _jobs(server) if job.name in ("ours", "theirs")
            }
            assert min(began, key=lambda name: began[name]) == first
            assert {job.uid for job in _jobs(server)} == {0, OTHER_UID}
        finally:
            for run in scene.runs:
                run.close()


@pytest.mark.slow
@with_policy("--backfill", "none", gpus="2")
def test_without_backfill_nobody_passes(scene: Scene) -> None:
    holder = scene.holds("--time", "1h")
    scene.waits("a", "-n", "2")
    scene.waits("b", "--time", "1m")
    assert scene.order_after(holder) == "ab"


@pytest.mark.slow
@pytest.mark.parametrize(
    "scene", [("2",), ("2", "--backfill", "conservative")], indirect=True, ids=["easy", "conservative"]
)
def test_with_backfill_a_short_job_passes_and_a_long_one_does_not(scene: Scene) -> None:
    """The GPU that is free is lent until the first job's promise, no longer."""
    holder = scene.holds("--time", "1h")
    scene.waits("a", "-n", "2")
    scene.waits("b", "--time", "2h")
    short = scene.asks("c", "--time", "1m")
    assert short.wait() == 0
    assert scene.order == "c"
    assert scene.order_after(holder) == "cab"


@pytest.mark.slow
def test_what_a_job_says_of_itself_arrives_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gsrun, gsrun --detach, gpusched submit, and Python's acquire and submit; and `gpusched job` shows it."""
    words = ("--estimate", "1h30m", "--preemptible", "--signal", "sigusr1@2m")
    python: dict[str, Any] = {"estimate": "1h30m", "preemptible": True, "signal": "USR1@120"}
    with Server("1") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        scene = Scene(server, tmp_path / "order")
        try:
            scene.holds(*words)
            assert scene.asks("x", *words, "--detach") and scene.runs[-1].wait() == 0
            shown = good(server, "submit", "--json", *words, "--", "true")
            assert '"estimate": "5400s"' in shown and '"preemptible": true' in shown
            with submit(["true"], url=server.address, **python) as submitted:
                assert submitted.status().estimate == timedelta(minutes=90)
            with pytest.raises(LimitReached), acquire(immediate=True, url=server.address, **python):
                pass
            jobs = _jobs(server)
            said = {(job.estimate.seconds, job.preemptible, job.preempt_signal.name) for job in jobs}
            assert (len(jobs), said) == (5, {(5400, True, "USR1")})
            assert {job.preempt_signal.before.seconds for job in jobs} == {120}
            text = " ".join(good(server, "job", jobs[0].id).split())
            assert "Estimate 1h30m" in text and "Preemptible yes" in text
            assert "Signal USR1, 2m before it is ended" in text
        finally:
            for run in scene.runs:
                run.close()


def _acquire(channel: grpc.Channel, name: str = "") -> Any:
    """A stream that asks for the GPU."""
    resources = resources_pb2.ResourceRequest(gpus=1)
    request = scheduler_pb2.AcquireRequest(resources=resources, auto_confirm=True, name=name)
    return scheduler_pb2_grpc.SchedulerStub(channel).Acquire(request, timeout=60, wait_for_ready=True)


def _granted(stream: Any) -> None:
    """Read on to the grant."""
    assert any(event.HasField("granted") for event in stream)


def _jobs(server: Server) -> list[job_pb2.Job]:
    with open_channel(server.address) as channel:
        request = scheduler_pb2.ListJobsRequest(filter=scheduler_pb2.JobFilter(include_ended=True))
        return list(scheduler_pb2_grpc.SchedulerStub(channel).ListJobs(request, timeout=QUICK).jobs)


def _status(server: Server) -> scheduler_pb2.GetStatusResponse:
    with open_channel(server.address) as channel:
        request = scheduler_pb2.GetStatusRequest()
        return scheduler_pb2_grpc.SchedulerStub(channel).GetStatus(request, timeout=QUICK)


def _waited(server: Server) -> float:
    """Seconds that the job that waits longest has waited, by the server's clock."""
    status = _status(server)
    now = status.started_at.ToNanoseconds() + status.uptime.ToNanoseconds()
    return max((now - job.submitted_at.ToNanoseconds()) / 1e9 for job in _jobs(server) if job.position)


def _ran(server: Server) -> float:
    """Seconds that the job that runs has run, by the server's clock."""
    status = _status(server)
    now = status.started_at.ToNanoseconds() + status.uptime.ToNanoseconds()
    return max((now - job.started_at.ToNanoseconds()) / 1e9 for job in _jobs(server) if job.lease_id)
