"""SetPolicy: every field, what is refused, who may, and what a restart keeps."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2

from gpusched.v1 import admin_pb2, policy_pb2, scheduler_pb2
from rpc.calls import PATIENCE, Client, admin_token, refusal, seconds
from rpc.servers import running
from support.server import Server

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CONFIGURED = ("--policy", "sjf", "--half-life", "3d", "--share", "alice=2", "--user-gpus", "6")


@pytest.fixture(scope="module")
def box() -> Iterator[Server]:
    with running("4", *CONFIGURED) as server:
        yield server


def set_policy(client: Client, *mask: str, **fields: Any) -> Any:
    """The call; `mask` empty: the fields that are set."""
    policy = policy_pb2.Policy(**fields)
    paths = field_mask_pb2.FieldMask(paths=mask) if mask else None
    return client.admin.SetPolicy(admin_pb2.SetPolicyRequest(policy=policy, update_mask=paths), timeout=PATIENCE)


def reset(client: Client) -> Any:
    return client.admin.SetPolicy(admin_pb2.SetPolicyRequest(reset=True), timeout=PATIENCE)


@pytest.fixture
async def operator(operator: Client) -> Any:
    """As elsewhere, and the policy is that of the configuration again at the end."""
    yield operator
    await reset(operator)


async def test_status_tells_the_configured_policy(client: Client) -> None:
    status = await client.status()
    policy = status.policy_settings
    assert (status.policy, policy.order, status.policy_changed) == ("sjf", "sjf", False)
    assert (policy.half_life.seconds, policy.user_gpus) == (3 * 86400, 6)
    assert [(share.path, share.shares) for share in policy.shares] == [("alice", 2.0)]
    assert (policy.backfill, policy.depth, policy.freeze_bypasses) == ("easy", 1, 50)
    assert (policy.freeze_wait.seconds, policy.aging.seconds, policy.starvation.seconds) == (21600, 86400, 86400)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("order", "fair_share"),
        ("backfill", "conservative"),
        ("candidates", "sjbf"),
        ("depth", 3),
        ("freeze_bypasses", 7),
        ("freeze_wait", seconds(1.5)),
        ("aging", seconds(3600)),
        ("starvation", seconds(7200)),
        ("half_life", seconds(90.5)),
        ("shares", [policy_pb2.Share(path="physics/bob", shares=0.5), policy_pb2.Share(path="carol", shares=3)]),
        ("preemption", True),
        ("preempt_after", seconds(5)),
        ("preempt_grace", seconds(6)),
        ("preempt_most", 9),
        ("user_gpus", 2),
        ("user_jobs", 4),
        ("quotas", [policy_pb2.Quota(name="carol", gpus=3, jobs=2)]),
        ("borrow", True),
    ],
)
async def test_each_field_alone(operator: Client, field: str, value: Any) -> None:
    """What is named changes, at once and for all to see; what is not stays. With a mask or without."""
    expected = (await operator.status()).policy_settings
    expected.ClearField(field)  # type: ignore[arg-type]
    expected.MergeFrom(policy_pb2.Policy(**{field: value}))
    for mask in ((), (field,)):
        assert (await set_policy(operator, *mask, **{field: value})).policy == expected
        status = await operator.status()
        assert (status.policy_settings, status.policy_changed) == (expected, True)
        assert status.policy == expected.order
        await reset(operator)
        assert not (await operator.status()).policy_changed


async def test_a_field_of_the_mask_that_is_not_set_is_none(operator: Client) -> None:
    names = ("aging", "starvation", "freeze_wait", "shares", "quotas", "user_gpus", "freeze_bypasses")
    policy = (await set_policy(operator, *names)).policy
    assert [policy.aging.seconds, policy.starvation.seconds, policy.freeze_wait.seconds] == [0, 0, 0]
    assert (list(policy.shares), list(policy.quotas), policy.user_gpus, policy.freeze_bypasses) == ([], [], 0, 0)
    assert policy.order == "sjf"


async def test_an_alias_is_its_order(operator: Client) -> None:
    assert (await set_policy(operator, order="fcfs")).policy.order == "fifo"


@pytest.mark.parametrize(
    ("mask", "fields", "field", "said"),
    [
        ((), {"order": "lottery"}, "order", "there is no policy 'lottery'; there are: fifo, priority, sjf, fair_share"),
        (("order",), {}, "order", "there is no policy ''"),
        ((), {"backfill": "some"}, "backfill", "'some' is none of none, easy, conservative"),
        ((), {"candidates": "all"}, "candidates", "'all' is none of queue, sjbf"),
        (("depth",), {}, "depth", "0 is not from 1 to 64"),
        ((), {"depth": 65}, "depth", "65 is not from 1 to 64"),
        ((), {"freeze_bypasses": -1}, "freeze_bypasses", "-1 is below 0"),
        (("half_life",), {}, "half_life", "0 s is not allowed; it must be 1 s or more"),
        ((), {"half_life": seconds(0)}, "half_life", "0 s is not allowed; it must be 1 s or more"),
        ((), {"half_life": seconds(4e8)}, "half_life", "4e+08 is not allowed"),
        ((), {"aging": seconds(-1)}, "aging", "-1 is not allowed; it must be from 0"),
        ((), {"preempt_grace": seconds(-1)}, "preempt_grace", "-1 is not allowed"),
        ((), {"preempt_most": -1}, "preempt_most", "-1 is below 0"),
        ((), {"user_gpus": -1}, "user_gpus", "-1 is below 0"),
        ((), {"user_jobs": -5}, "user_jobs", "-5 is below 0"),
        ((), {"shares": [policy_pb2.Share(path="a", shares=math.nan)]}, "shares", "a=nan; shares must be above 0"),
        ((), {"shares": [policy_pb2.Share(path="a", shares=math.inf)]}, "shares", "a=inf; allowed is 1e-06 to 1e+09"),
        ((), {"shares": [policy_pb2.Share(path="a", shares=-2)]}, "shares", "a=-2; shares must be above 0"),
        ((), {"shares": [policy_pb2.Share(path="a")]}, "shares", "a=0; shares must be above 0"),
        ((), {"shares": [policy_pb2.Share(path="a", shares=1)] * 2}, "shares", "a is named twice"),
        ((), {"shares": [policy_pb2.Share(path="a/", shares=1)]}, "shares", "'a/' has an empty name"),
        ((), {"shares": [policy_pb2.Share(shares=1)]}, "shares", "a name must have 1 to"),
        ((), {"shares": [policy_pb2.Share(path="a\x1b[2J", shares=1)]}, "shares", "printable characters"),
        ((), {"shares": [policy_pb2.Share(path=str(n), shares=1) for n in range(1001)]}, "shares", "too many"),
        ((), {"quotas": [policy_pb2.Quota(gpus=1)]}, "quotas", "a name must have 1 to"),
        ((), {"quotas": [policy_pb2.Quota(name="a", gpus=-1)]}, "quotas", "'a' with -1 GPUs"),
        ((), {"quotas": [policy_pb2.Quota(name="a"), policy_pb2.Quota(name="a")]}, "quotas", "a is named twice"),
    ],
)
async def test_what_is_refused_names_the_field_and_changes_nothing(
    operator: Client, mask: tuple[str, ...], fields: dict[str, Any], field: str, said: str
) -> None:
    before = (await operator.status()).policy_settings
    # A good field beside the bad one is not taken either.
    found = await refusal(set_policy(operator, *(mask and (*mask, "user_jobs")), **{"user_jobs": 3} | fields))
    assert (found.code, found.fields) == (INVALID, (f"policy.{field}",))
    assert found.message.startswith(f"policy.{field}: ") and said in found.message
    assert (await operator.status()).policy_settings == before


async def test_masks_and_resets_that_make_no_sense(operator: Client) -> None:
    found = await refusal(set_policy(operator, "colour", order="fifo"))
    assert (found.code, found.fields) == (INVALID, ("update_mask",))
    assert "'colour' is no field of a policy; allowed are order, backfill, candidates, depth" in found.message
    found = await refusal(set_policy(operator, "policy.order", order="fifo"))
    assert found.fields == ("update_mask",)
    found = await refusal(set_policy(operator))
    assert found.fields == ("update_mask",) and "nothing is to be changed" in found.message
    request = admin_pb2.SetPolicyRequest(reset=True, policy=policy_pb2.Policy(order="fifo"))
    found = await refusal(operator.admin.SetPolicy(request, timeout=PATIENCE))
    assert (found.code, found.fields) == (INVALID, ("reset",))
    assert not (await operator.status()).policy_changed


async def test_it_is_for_administrators(client: Client) -> None:
    found = await refusal(set_policy(client, order="fifo"))
    assert found.code == grpc.StatusCode.PERMISSION_DENIED and "set the policy is for administrators" in found.message
    assert (await client.status()).policy == "sjf"


async def test_a_quota_below_what_runs_takes_nothing_away(operator: Client) -> None:
    held = await operator.holder(3)
    owner = (await operator.job(held.job_id)).user
    answer = await set_policy(operator, user_gpus=2)
    assert list(answer.notes) == [
        f"{owner} has 3 GPUs, 2 are allowed: nothing is taken away, and nothing new starts until that fits"
    ]
    assert (await operator.job(held.job_id)).lease_id


async def test_a_new_policy_orders_who_waits_already(operator: Client) -> None:
    """From the shortest first to the first first, and back."""
    holder = await operator.holder(4)
    long = await operator.waiter(4, estimate=seconds(3600))
    short = await operator.waiter(4, estimate=seconds(60))

    async def order() -> list[str]:
        answer = await operator.scheduler.ListJobs(scheduler_pb2.ListJobsRequest(), timeout=PATIENCE)
        return [job.id for job in answer.jobs if job.position]

    assert await order() == [short.job_id, long.job_id]
    await set_policy(operator, order="fifo")
    assert await order() == [long.job_id, short.job_id]
    assert (await long.queued_as(lambda told: told.position == 1)).total == 2
    await set_policy(operator, order="sjf")
    assert await order() == [short.job_id, long.job_id]
    holder.cancel()
    await short.granted()


@pytest.mark.slow
async def test_the_live_policy_outlives_the_server_and_a_reset_forgets_it(connect: Callable[..., Client]) -> None:
    with Server("2", args=("--policy", "sjf", "--aging", "5h")) as server:
        client = connect(server.address, await admin_token(server.address))
        live = (await set_policy(client, order="fair_share", half_life=seconds(5), preemption=True)).policy
        assert '"order\\":\\"fair_share' in server.log and "set policy user=" in server.log
        # The configuration changes meanwhile: what an administrator said while it ran goes before it.
        server.command[server.command.index("5h")] = "6h"
        server.restart()
        client = connect(server.address, await admin_token(server.address))
        status = await client.status()
        assert (status.policy_settings, status.policy_changed) == (live, True)
        policy = (await reset(client)).policy
        assert (policy.order, policy.aging.seconds, policy.preemption) == ("sjf", 6 * 3600, False)
        server.restart()
        client = connect(server.address)
        status = await client.status()
        assert (status.policy_settings, status.policy_changed) == (policy, False)


async def test_many_changes_at_once(operator: Client) -> None:
    """Each is whole: the answer is a policy that somebody asked for."""
    wanted = [("fifo", 1), ("sjf", 2), ("priority", 3), ("fair_share", 4)] * 5
    answers = await asyncio.gather(*(set_policy(operator, order=order, depth=depth) for order, depth in wanted))
    assert {(answer.policy.order, answer.policy.depth) for answer in answers} <= set(wanted)
