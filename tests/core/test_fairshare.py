"""Fair share: hand-computed trees, decay, and long-run shares under saturation."""

from __future__ import annotations

import math
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.support import make_nodes
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.fairshare import LEAST_SHARES, MOST_SHARES, ShareTree, UsageBook
from gpusched.scheduler.core.jobs import JobId, JobSpec
from gpusched.scheduler.core.model import Owner, Request
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.core.states import Outcome


def test_two_accounts_by_hand() -> None:
    """S: a1 0.1, a2 0.3, b1 0.6. Used 0.1, 0.3, 0.6 of all.

    a1 is charged 0.1 + (0.4 - 0.1) * 1/4 = 0.175, so F = 2^-1.75; a2 0.3 + (0.4 - 0.3) * 3/4 = 0.375, F = 2^-1.25;
    b1 0.6, F = 2^-1.
    """
    tree = ShareTree({"a": 40, "a/a1": 1, "a/a2": 3, "b": 60, "b/b1": 1})
    factors = tree.factors({"a1": 100.0, "a2": 300.0, "b1": 600.0})
    assert {name: round(factor, 6) for name, factor in factors.items()} == {"a1": 0.297302, "a2": 0.420448, "b1": 0.5}


def test_three_levels_by_hand() -> None:
    """lab has 3 of 4 shares, in it vision 1 of 3 and nlp 2 of 3; u1 and u2 halve vision. guest has 1 of 4.

    Used: u1 8, u2 0, u3 8, guest 16, of 32. Charged: lab 0.5; vision 0.25 + (0.5 - 0.25)/3 = 1/3; u1 0.25 +
    (1/3 - 0.25)/2 = 7/24, S 1/8; u2 0 + (1/3)/2 = 1/6, S 1/8; nlp 0.25 + 0.25 * 2/3 = 5/12, u3 0.25 + (5/12 - 0.25) =
    5/12, S 1/2; guest 0.5, S 1/4.
    """
    tree = ShareTree(
        {"lab": 3, "guest": 1, "lab/vision": 1, "lab/nlp": 2, "lab/vision/u1": 1, "lab/vision/u2": 1, "lab/nlp/u3": 5}
    )
    factors = tree.factors({"u1": 8.0, "u2": 0.0, "u3": 8.0, "guest": 16.0})
    expected = {"u1": 2 ** (-7 / 3), "u2": 2 ** (-4 / 3), "u3": 2 ** (-5 / 6), "guest": 0.25}
    assert {name: round(each, 6) for name, each in factors.items()} == {n: round(f, 6) for n, f in expected.items()}
    assert tree.account("u1") == "lab/vision" and tree.account("guest") == "" and tree.account("nobody") == ""


def test_nobody_has_used_anything() -> None:
    assert ShareTree().factors({"x": 0.0, "y": 0.0}) == {"x": 1.0, "y": 1.0}


def test_the_unknown_have_one_share() -> None:
    factors = ShareTree({"x": 3}).factors({"x": 6.0, "y": 2.0})
    assert factors == pytest.approx({"x": 0.5, "y": 0.5}), "x has used three times as much, as is due to it"


def test_an_account_may_be_called_like_a_user_who_has_no_shares() -> None:
    """As a group and a login often are."""
    factors = ShareTree({"physics": 1, "physics/bob": 1}).factors({"physics": 1.0, "bob": 1.0})
    assert factors == pytest.approx({"physics": 0.5, "bob": 0.5})


NAMES = st.sampled_from(["a", "b", "c", "a/b", "b/a", "b/c", "c/c", "a/c/b"])


@given(
    st.dictionaries(NAMES, st.sampled_from([LEAST_SHARES, 1.0, MOST_SHARES]), max_size=6),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.0, 1e-9, 1.0, 1e12]), max_size=4),
)
def test_everybody_has_a_factor(shares: dict[str, float], used: dict[str, float]) -> None:
    try:
        tree = ShareTree(shares)
    except Invalid:
        return  # a user in two accounts
    for _ in range(2):
        factors = tree.factors(used)
        assert factors.keys() == used.keys() and all(0.0 <= factor <= 1.0 for factor in factors.values())


def test_a_very_deep_tree_has_numbers_too_small_to_tell() -> None:
    path, shares = "", {}
    for depth in range(60):
        shares[f"{path}big{depth}"] = MOST_SHARES
        path += f"n{depth}/"
        shares[path.rstrip("/")] = LEAST_SHARES
    assert ShareTree(shares).factors({"n59": 1.0, "big0": 1.0})["n59"] == 0.0


@pytest.mark.parametrize(
    "shares", [{"x": 1e-7}, {"x": 1e10}, {"x": 0}, {"x": -1}, {"x": math.nan}, {"x": math.inf}, {"a//x": 1}, {"": 1}]
)
def test_shares_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(Invalid, match=r"policy\.shares"):
        ShareTree(shares)


def test_a_user_in_two_accounts() -> None:
    with pytest.raises(Invalid, match="user x is named twice"):
        ShareTree({"a/x": 1, "b/x": 1})


def test_use_decays_by_half_in_a_half_life_also_while_it_grows() -> None:
    book = UsageBook(100.0)
    book.put("x", 80.0, 0.0)
    assert book.used("x", 100.0) == pytest.approx(40.0)
    book.change("x", 2, 100.0)
    # The integral of 2 * 2^(-t/100) over 100 s is 2 * 50 / ln 2.
    assert book.used("x", 200.0) == pytest.approx(20.0 + 100.0 / math.log(2), abs=1e-9)
    book.change("x", -2, 200.0)
    assert book.used("x", 300.0) == pytest.approx((20.0 + 100.0 / math.log(2)) / 2)
    book.set_half_life(50.0, 300.0)
    assert book.used("x", 350.0) == pytest.approx((20.0 + 100.0 / math.log(2)) / 4)


@pytest.mark.parametrize("weights", [{"x": 1, "y": 1}, {"x": 3, "y": 1}, {"x": 1, "y": 2, "z": 5}])
def test_saturated_users_get_their_shares(weights: dict[str, int]) -> None:
    """Everybody always has work waiting; what each gets approaches what is due."""
    policy = PolicySettings("fair_share", "none", half_life=2000.0, shares=tuple(weights.items()))
    engine = Engine(make_nodes("8"), Settings(policy=policy, check_released=False))
    now, got = 0.0, dict.fromkeys(weights, 0.0)
    running: list[tuple[float, JobId]] = []
    sizes = dict(zip(weights, [(1, 30.0), (2, 20.0), (4, 10.0)], strict=False))

    def submit(user: str) -> None:
        gpus, seconds = sizes[user]
        owner = Owner(1000 + ord(user), user)
        engine.handle(ev.Submit(JobSpec(owner, Request(gpus), time_limit=seconds, auto_confirm=True)), now)

    for user in weights:
        for _ in range(10):
            submit(user)
    while now < 20_000:
        while engine.pass_wanted:
            for effect in engine.handle(ev.Pass(), now):
                if isinstance(effect, do.Granted):
                    user = engine.jobs[effect.job].spec.owner.name
                    gpus, seconds = sizes[user]
                    heappush(running, (now + seconds, effect.job))
                    got[user] += gpus * seconds if now > 4000 else 0.0
                    submit(user)
        now, number = heappop(running)
        lease = engine.jobs[number].lease
        assert lease is not None
        engine.handle(ev.Release(number, lease.epoch, Outcome(0)), now)
        engine.take_changes()
    shares = {user: used / sum(got.values()) for user, used in got.items()}
    due = {user: weight / sum(weights.values()) for user, weight in weights.items()}
    assert shares == pytest.approx(due, abs=0.03)


def test_who_was_idle_does_not_bank_credit_for_ever() -> None:
    """One that comes back after ten half-lives is before the busy, but not for longer than the window is."""
    book = UsageBook(100.0)
    book.put("busy", 1000.0, 0.0)
    book.put("idle", 0.0, 0.0)
    tree = ShareTree()
    before = tree.factors({"busy": book.used("busy", 1000.0), "idle": 0.0})
    assert before["idle"] == 1.0 > before["busy"]
    # Two GPUs for half a half-life, and it is behind.
    book.change("idle", 2, 1000.0)
    after = tree.factors({user: book.used(user, 1050.0) for user in ("busy", "idle")})
    assert after["idle"] < after["busy"]
