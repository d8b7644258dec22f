"""What a job says of itself for policies to go by: how long it takes, and whether and how it may be preempted."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import duration_pb2

from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2
from rpc.calls import PATIENCE, Client, Refusal, refusal, seconds
from rpc.test_policy import INVALID

ONE = resources_pb2.ResourceRequest(gpus=1)


def submitted(client: Client, **fields: Any) -> Any:
    request = scheduler_pb2.SubmitRequest(resources=ONE, command=["true"], held=True, **fields)
    return client.scheduler.Submit(request, timeout=PATIENCE)


async def refused(client: Client, how: str, **fields: Any) -> Refusal:
    if how == "submit":
        return await refusal(submitted(client, **fields))
    return await client.acquire(1, dry_run=how == "dry run", **fields).end()


async def test_it_is_told_as_it_was_asked(client: Client) -> None:
    signal = job_pb2.PreemptSignal(name="SIGUSR1", before=seconds(90))
    asked: dict[str, Any] = {"estimate": seconds(1.5), "preemptible": True, "preempt_signal": signal}
    holder = await client.holder(1, **asked)
    submitted_job = (await submitted(client, **asked)).job
    for job in (await client.job(holder.job_id), submitted_job):
        assert (job.estimate, job.preemptible) == (seconds(1.5), True)
        assert job.preempt_signal == job_pb2.PreemptSignal(name="USR1", before=seconds(90))
    await client.cancel_job(submitted_job.id)
    plain = await client.job((await client.holder(1)).job_id)
    assert not (plain.HasField("estimate") or plain.preemptible or plain.HasField("preempt_signal"))


async def test_a_signal_comes_a_minute_before_unless_said(client: Client) -> None:
    holder = await client.holder(1, preempt_signal=job_pb2.PreemptSignal(name="TERM"))
    assert (await client.job(holder.job_id)).preempt_signal.before == seconds(60)


@pytest.mark.parametrize("how", ["acquire", "dry run", "submit"])
@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"estimate": seconds(0)}, "estimate", "0 s is out of range; allowed is more than 0 s up to ten years"),
        ({"estimate": seconds(-5)}, "estimate", "-5 s is out of range"),
        ({"estimate": seconds(4e8)}, "estimate", "4e+08 s is out of range"),
        ({"estimate": duration_pb2.Duration(seconds=1, nanos=-1)}, "estimate", "is no duration"),
        ({"preempt_signal": job_pb2.PreemptSignal(name="KILL")}, "preempt_signal.name", "'KILL' is none of HUP, INT"),
        ({"preempt_signal": job_pb2.PreemptSignal()}, "preempt_signal.name", "'' is none of"),
        (
            {"preempt_signal": job_pb2.PreemptSignal(name="USR1", before=seconds(0))},
            "preempt_signal.before",
            "0 s is out of range; allowed is more than 0 s up to 86400 s",
        ),
        ({"preempt_signal": job_pb2.PreemptSignal(name="INT", before=seconds(86401))}, "preempt_signal.before", "out"),
    ],
)
async def test_what_is_refused_names_the_field(
    client: Client, how: str, fields: dict[str, Any], field: str, said: str
) -> None:
    found = await refused(client, how, **fields)
    assert (found.code, found.fields) == (INVALID, (field,))
    assert found.message.startswith(f"{field}: ") and said in found.message


async def test_a_year_is_allowed(client: Client) -> None:
    holder = await client.holder(1, estimate=seconds(365 * 86400))
    assert (await client.job(holder.job_id)).estimate.seconds == 365 * 86400
