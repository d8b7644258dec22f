"""What a pass costs, counted in operations, so that a slow machine does not matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from core.support import Box, make_spec
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.model import Request
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.queue import JobQueue

NewBox = Callable[..., Box]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the pool and the queue are asked, by method."""
    found: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **more: Any) -> Any:
            found[name] += 1
            return real(*args, **more)

        monkeypatch.setattr(owner, name, counted)

    for name in ("place", "count_serviceable", "eligible"):
        count(Pool, name)
    for name in ("job", "add", "remove"):
        count(JobQueue, name)
    return found


def crowd(b: Box, number: int, shapes: list[dict[str, Any]]) -> Engine:
    """Many jobs that wait; the invariants are left out, they walk the whole queue."""
    for n in range(number):
        b.engine.handle(ev.Submit(make_spec(**shapes[n % len(shapes)])), b.now)
    return b.engine


def test_a_pass_over_ten_thousand_that_cannot_start_looks_at_one_of_each_shape(
    box: NewBox, counts: Counter[str]
) -> None:
    b = box("4", "4", "4", "4", "4")
    for node in "abcde":
        b.submit(4, node=node)
    engine = crowd(b, 10_000, [{"gpus": 1 + n % 4, "node": node} for n, node in enumerate("abcde")])
    engine.pass_wanted = True  # more than these submits has happened
    counts.clear()
    engine.handle(ev.Pass(), b.now)
    assert counts["place"] == 5
    assert counts["count_serviceable"] == 0 and counts["eligible"] <= 10 and counts["job"] <= 10
    assert counts["add"] == counts["remove"] == 0
    counts.clear()
    engine.handle(ev.Pass(), b.now)
    assert counts["place"] == counts["eligible"] == 0, "one to which nothing is new looks at nobody"
    engine.pass_wanted = True
    engine.handle(ev.Pass(), b.now)
    assert counts["place"] == 5, "and the next costs as much again"


def test_blocked_shapes_are_not_even_placed(box: NewBox, counts: Counter[str]) -> None:
    b = box("8")
    b.submit(8)
    engine = crowd(b, 10_000, [{"gpus": 1 + n % 8} for n in range(8)])
    counts.clear()
    engine.handle(ev.Pass(), b.now)
    assert counts["place"] == 1


def test_a_pass_that_starts_some_costs_that_many_more(box: NewBox, counts: Counter[str]) -> None:
    b = box("8")
    engine = crowd(b, 5_000, [{"gpus": 1}])
    counts.clear()
    engine.handle(ev.Pass(), b.now)
    assert len(engine.running) == 8
    assert counts["place"] == 9 and counts["remove"] == 8


def test_a_dry_run_on_a_long_queue_costs_no_more_than_a_pass(box: NewBox, counts: Counter[str]) -> None:
    b = box("8")
    b.submit(8)
    engine = crowd(b, 10_000, [{"gpus": 1}, {"gpus": 2}])
    engine.handle(ev.Pass(), b.now)
    counts.clear()
    engine.dry_run(make_spec(3), b.now)
    assert counts["place"] <= 3 and counts["job"] <= 6 and counts["add"] == counts["remove"] == 1


def test_ten_thousand_different_shapes_cost_one_look_each(box: NewBox, counts: Counter[str]) -> None:
    """More than the pool remembers answers for; the classes remember their own."""
    b = box("8")
    b.submit(8)
    engine = crowd(b, 10_000, [{"memory": n / 2**30} for n in range(10_000)])
    engine.handle(ev.Pass(), b.now)
    assert len(engine.queue.classes) == 10_000
    assert len({id(found.eligible) for found in engine.queue.classes.values()}) == 1, "one set for all of them"
    counts.clear()
    engine.pass_wanted = True
    engine.handle(ev.Pass(), b.now)
    assert counts["place"] == 1 and counts["eligible"] == 0


def test_sweeping_out_stale_deadlines_costs_a_few_looks_for_each_added(
    box: NewBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all of very many still mean something."""
    b = box("1")
    b.submit(1)
    looks = 0
    real = Engine._is_alive

    def counted(*args: Any) -> bool:
        nonlocal looks
        looks += 1
        return real(*args)

    monkeypatch.setattr(Engine, "_is_alive", counted)
    crowd(b, 10_000, [{"max_wait": 86400.0}])
    assert looks < 3 * 10_000


def test_the_shapes_known_are_those_that_wait(box: NewBox) -> None:
    b = box("1")
    b.submit(1)
    jobs = [b.submit(1, memory=size) for size in range(50)]
    assert len(b.engine.queue.classes) == 50
    for job in jobs[1:]:
        b.cancel(job)
    assert [found.request for found in b.engine.queue.classes.values()] == [Request(1)]
