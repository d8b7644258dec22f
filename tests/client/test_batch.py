"""submit() and what it returns, sync and async, against a real server."""

import asyncio
import threading

import pytest

from gpusched.client import (
    InvalidRequest,
    JobFailed,
    JobState,
    NotSatisfiable,
    ReasonCode,
    SubmittedJob,
    UsageError,
    aio,
    submit,
)
from gpusched.client.submission import begin_time


def test_a_job_that_completes(here):
    with submit(["sh", "-c", "echo $CUDA_VISIBLE_DEVICES; echo err >&2"], gpus=2, name="two") as job:
        done = job.result(timeout=30)
        assert (done.state, done.name, done.outcome.exit_status) == (JobState.COMPLETED, "two", 0)
        assert b"".join(job.logs()) == b"0,1\nerr\n"
        assert job.status().history


def test_a_job_that_fails_says_how(here):
    with submit(["sh", "-c", "exit 3"]) as job:
        with pytest.raises(JobFailed, match="exit 3") as caught:
            job.result(timeout=30)
        assert caught.value.job.outcome.exit_status == 3
        assert job.wait().state is JobState.FAILED


def test_environment_and_workdir(here, tmp_path, monkeypatch):
    monkeypatch.setenv("GREETING", "hi")
    with submit(["sh", "-c", "echo $GREETING $GPUSCHED_JOB_ID; pwd"], workdir=tmp_path) as job:
        job.result(timeout=30)
        assert b"".join(job.logs()).decode().split() == ["hi", job.id, str(tmp_path)]
    with submit(["/bin/sh", "-c", "echo .$GREETING."], environment={}) as job:
        job.result(timeout=30)
        assert b"".join(job.logs()) == b"..\n"


def test_its_view_has_what_was_asked_for(here, tmp_path):
    with submit(["true"], hold=True) as first:
        asked = {"workdir": tmp_path, "output": tmp_path / "out-%j", "after": [first.id]}
        with submit(["sh", "-c", "echo out"], **asked) as second:
            held, waiting = first.status(), second.status()
            assert (held.held, held.attempt, held.reason.code) == (True, 0, ReasonCode.HELD)
            assert (waiting.dependencies, waiting.reason.code) == ((first.id,), ReasonCode.DEPENDENCY)
            assert waiting.working_directory == str(tmp_path)
            second.cancel()
        first.cancel()
    with submit(["sh", "-c", "echo out"], output=tmp_path / "out-%j-%a") as job:
        done = job.result(timeout=30)
        assert (done.attempt, done.output_path) == (1, str(tmp_path / "out-%j-%a"))
        assert (tmp_path / f"out-{job.id}-1").read_text() == "out\n"


def test_cancel_and_timeout(here):
    with submit(["sleep", "60"]) as job:
        with pytest.raises(TimeoutError):
            job.wait(timeout=0.3)
        job.cancel("enough")
        ended = job.wait(timeout=30)
        assert ended.state is JobState.CANCELLED
        assert "enough" in ended.outcome.message


@pytest.mark.slow
def test_following_and_waiting_outlast_a_restart(own, tmp_path):
    gate = tmp_path / "gate"
    loop = f"echo before; while [ ! -e {gate} ]; do sleep 0.05; done; echo after; exit 4"
    with submit(["sh", "-c", loop]) as job, SubmittedJob(type(job._client)(), job.id) as other:
        seen = []
        first = threading.Event()

        def follow():
            for piece in other.logs(follow=True):
                seen.append(piece)
                first.set()

        reader = threading.Thread(target=follow)
        reader.start()
        assert first.wait(20)
        own.restart()
        gate.touch()
        assert job.wait(timeout=60).outcome.exit_status == 4
        reader.join(60)
        assert b"".join(seen) == b"before\nafter\n"


def test_what_makes_no_sense_is_said_before_anything_is_asked(here):
    for options, field in (
        ({"gpus": 1.5}, "gpus"),
        ({"gpus": True}, "gpus"),
        ({"time_limit": "soon"}, "time_limit"),
        ({"estimate": "soon"}, "estimate"),
        ({"signal": "@60"}, "signal"),
        ({"after": ["x"]}, "after"),
        ({"after": ["3:later"]}, "after"),
        ({"begin": "tomorrowish"}, "begin"),
        ({"gpu_memory": "40X"}, "gpu_memory"),
    ):
        with pytest.raises(UsageError) as caught:
            submit(["true"], **options)
        assert caught.value.field == field
    with pytest.raises(UsageError):
        submit("true --with-a-shell")


async def test_refusals_are_in_the_words_of_the_call(here):
    with pytest.raises(NotSatisfiable, match=r"^gpus: asks for 99 GPUs") as caught:
        submit(["true"], gpus=99)
    assert (caught.value.field, caught.value.reason) == ("resources.gpus", "NOT_SATISFIABLE")
    with pytest.raises(InvalidRequest, match=r"^begin: lies "):
        submit(["true"], begin="2020-01-01T00:00")
    with pytest.raises(NotSatisfiable, match=r"^gpu_model: "):
        await aio.submit(["true"], gpu_model="TPU")


def test_begin_times():
    now = 1_800_000_000.0
    assert begin_time("now", now) == now
    assert begin_time("now+2h", now) == now + 7200
    assert 0 < begin_time("00:00", now) - now <= 86400
    assert begin_time("2030-01-01T00:00:00+00:00", now) == 1893456000.0


async def test_the_same_for_asyncio(here):
    async with await aio.submit(["sh", "-c", "echo out; sleep 0.2; exit 5"]) as job:
        pieces = [piece async for piece in job.logs(follow=True)]
        assert b"".join(pieces) == b"out\n"
        with pytest.raises(JobFailed, match="exit 5"):
            await job.result()
        assert (await job.status()).state is JobState.FAILED
    async with await aio.submit(["sleep", "60"]) as job:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await job.wait()
        await job.cancel()
        assert (await job.wait()).state is JobState.CANCELLED
