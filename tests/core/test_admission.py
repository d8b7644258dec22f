"""What may be asked for: each refusal names the field and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.support import GIB, Box, make_nodes, make_spec
from gpusched.scheduler.core import admission
from gpusched.scheduler.core.errors import DomainError, Invalid, NotSatisfiable
from gpusched.scheduler.core.model import NodeInfo, Request
from gpusched.scheduler.core.pool import Pool

NewBox = Callable[..., Box]

POOL = Pool(make_nodes("4xH100:80", "2xA100:40"))


def refusal(pool: Pool = POOL, **asked: Any) -> DomainError:
    with pytest.raises(DomainError) as caught:
        admission.check(make_spec(**asked), pool)
    error = caught.value
    assert error.message.startswith(f"{error.field}: "), "the field comes first"
    assert len(error.message) < 400 and error.message.isprintable(), "whatever was asked, the answer can be printed"
    assert str(error) == error.message
    return error


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"gpus": 0}, "resources.gpus", "0 is not allowed; ask for at least 1"),
        ({"gpus": -3}, "resources.gpus", "-3 is not allowed; ask for at least 1"),
        ({"memory": -1}, "resources.gpu_memory_bytes", "must not be negative"),
        ({"model": "h100\n"}, "resources.gpu_model", "at most 128 printable characters"),
        ({"model": "x" * 129}, "resources.gpu_model", "at most 128 printable characters"),
        ({"node": "\x1b[31mred"}, "resources.node", "at most 128 printable characters"),
        ({"node": "x" * 2**20}, "resources.node", "at most 128 printable characters"),
        ({"name": "two\nlines"}, "name", "has control characters or line breaks"),
        ({"name": "\x1b]0;title\x07"}, "name", "has control characters"),
        ({"name": "right\u202eleft"}, "name", "has control characters"),
        ({"name": "half \ud800"}, "name", "has control characters"),
        ({"name": "x" * 129}, "name", "has 129 characters; at most 128 are allowed"),
        ({"name": "x" * 2**20}, "name", "has 1048576 characters; at most 128 are allowed"),
        ({"priority": 101}, "priority", "101 is out of range; allowed are -100 to 100"),
        ({"priority": -101}, "priority", "-101 is out of range; allowed are -100 to 100"),
        ({"command": ("x" * 2**20,)}, "command", "at most 4096 words and 65536 characters"),
        ({"command": ("x",) * 4097}, "command", "at most 4096 words and 65536 characters"),
        ({"time_limit": 0}, "time_limit", "0 s is out of range; allowed is more than 0 s up to ten years"),
        ({"time_limit": -5.0}, "time_limit", "-5 s is out of range"),
        ({"time_limit": math.nan}, "time_limit", "nan s is out of range"),
        ({"time_limit": math.inf}, "time_limit", "inf s is out of range"),
        ({"time_limit": 1e10}, "time_limit", "up to ten years"),
        ({"max_wait": -1}, "max_wait", "-1 s is out of range; allowed is from 0 s up to ten years"),
        ({"max_wait": math.nan}, "max_wait", "nan s is out of range"),
        ({"max_wait": -math.inf}, "max_wait", "-inf s is out of range"),
        ({"request_id": "x" * 129}, "request_id", "at most 128 printable characters"),
        ({"request_id": "a\tb"}, "request_id", "at most 128 printable characters"),
    ],
)
def test_values_that_are_never_allowed(asked: dict[str, Any], field: str, said: str) -> None:
    error = refusal(**asked)
    assert isinstance(error, Invalid)
    assert (error.field, error.reason) == (field, "INVALID_REQUEST")
    assert said in error.message


@pytest.mark.parametrize(
    ("asked", "field", "reason", "said"),
    [
        ({"gpus": 7}, "resources.gpus", "NOT_SATISFIABLE", "asks for 7 GPUs, but there are only 6"),
        ({"gpus": 10**12}, "resources.gpus", "NOT_SATISFIABLE", "asks for 1000000000000 GPUs, but there are only 6"),
        ({"gpus": 3, "node": "b"}, "resources.gpus", "NOT_SATISFIABLE", "there are only 2 on node b"),
        ({"gpus": 5, "model": "h100"}, "resources.gpus", "NOT_SATISFIABLE", "there are only 4 that will do"),
        ({"gpus": 5, "memory": 60}, "resources.gpus", "NOT_SATISFIABLE", "there are only 4 that will do"),
        (
            {"model": "b200"},
            "resources.gpu_model",
            "UNKNOWN_MODEL",
            "no GPU is a 'b200'; there are: NVIDIA A100, NVIDIA H100",
        ),
        (
            {"model": "h100", "node": "b"},
            "resources.gpu_model",
            "UNKNOWN_MODEL",
            "no GPU on node b is a 'h100'; there are: NVIDIA A100",
        ),
        ({"node": "c"}, "resources.node", "UNKNOWN_NODE", "there is no node 'c'; there is a, b"),
        (
            {"memory": 81},
            "resources.gpu_memory_bytes",
            "NOT_SATISFIABLE",
            "no GPU has 81 GiB; the largest has 80 GiB",
        ),
        (
            {"memory": 60, "model": "a100"},
            "resources.gpu_memory_bytes",
            "NOT_SATISFIABLE",
            "no GPU has 60 GiB; the largest has 40 GiB",
        ),
        (
            {"memory": 60, "node": "b"},
            "resources.gpu_memory_bytes",
            "NOT_SATISFIABLE",
            "no GPU on node b has 60 GiB; the largest has 40 GiB",
        ),
        (
            {"memory": 60, "node": "b", "model": "h100"},
            "resources.gpu_model",
            "UNKNOWN_MODEL",
            "no GPU on node b is a 'h100'",
        ),
    ],
)
def test_more_than_there_is(asked: dict[str, Any], field: str, reason: str, said: str) -> None:
    error = refusal(**asked)
    assert isinstance(error, NotSatisfiable)
    assert (error.field, error.reason) == (field, reason)
    assert said in error.message


def test_one_gpu_is_told_in_the_singular() -> None:
    error = refusal(Pool(make_nodes("1")), gpus=2)
    assert error.message == "resources.gpus: asks for 2 GPUs, but there is only 1"


@pytest.mark.parametrize("asked", [{}, {"memory": 10}, {"model": "h100"}, {"memory": 10, "model": "h100"}])
def test_a_node_without_gpus(asked: dict[str, Any]) -> None:
    pool = Pool((*make_nodes("2"), NodeInfo("empty", ())))
    error = refusal(pool, node="empty", **asked)
    assert isinstance(error, NotSatisfiable) and error.field == "resources.gpus"
    assert "asks for 1 GPU, but there are only 0" in error.message and "on node empty" in error.message


def test_a_long_list_of_nodes_is_cut() -> None:
    pool = Pool(NodeInfo(f"node{number:03}", ()) for number in range(200))
    assert "node019" in refusal(pool, node="x").message and "node020" not in refusal(pool, node="x").message


@pytest.mark.parametrize(
    "asked",
    [
        {"gpus": 6},
        {"gpus": 2, "memory": 40, "model": "a100", "node": "b"},
        {"memory": 80},
        {"model": "nvidia h"},
        {"name": "naïve ✓ name", "priority": 100},
        {"name": "x" * 128, "priority": -100},
        {"time_limit": 1e-3, "max_wait": 0},
        {"time_limit": 315360000.0, "max_wait": 315360000.0},
        {"command": ("x" * 65536,)},
        {"command": ("python", "train.py", "--note=two\nlines")},
        {"request_id": "x" * 128},
    ],
)
def test_what_is_allowed(asked: dict[str, Any]) -> None:
    admission.check(make_spec(**asked), POOL)


@settings(max_examples=200, deadline=None)
@given(
    gpus=st.integers(),
    memory=st.integers(-10, 200),
    model=st.text(max_size=8) | st.sampled_from(["h100", "a100", ""]),
    node=st.text(max_size=3) | st.sampled_from(["a", "b", ""]),
    name=st.text(max_size=200),
    priority=st.integers(),
    seconds=st.none() | st.floats(),
)
def test_anything_else_is_refused_in_words_or_can_be_had(
    gpus: int, memory: int, model: str, node: str, name: str, priority: int, seconds: float | None
) -> None:
    more: dict[str, Any] = {"memory": memory, "model": model, "node": node, "name": name, "priority": priority}
    try:
        admission.check(make_spec(gpus, time_limit=seconds, max_wait=seconds, **more), POOL)
    except DomainError as error:
        assert error.message.startswith(error.field) and error.message.isprintable()
    else:
        assert POOL.place(Request(gpus, memory * GIB, model, node)) is not None, "an idle machine can give it"


def test_what_was_asked_is_not_remembered_for_ever() -> None:
    """Any number of different questions, refused ones included, must not fill the memory."""
    pool = Pool(make_nodes("1"))
    for size in range(10_000):
        pool.eligible(Request(1, memory_bytes=size))
    assert len(pool._eligible) <= 4096
    assert pool.eligible(Request(1, memory_bytes=1)) == {"a0"}
