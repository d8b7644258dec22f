import sys
from datetime import timedelta

import pytest

from gpusched.client import UsageError, aio
from gpusched.client.options import default_name, own_command
from gpusched.client.sync import acquire


def options(*args, **kwargs):
    return acquire(*args, **kwargs)._options


def test_everything_as_people_write_it():
    asked = options(
        2, gpu_memory="40G", gpu_model="H100", priority=-3, name="n", time_limit="2h",
        max_wait=timedelta(minutes=1), immediate=True, url="localhost:7",
    )  # fmt: skip
    assert (asked.gpus, asked.gpu_memory_bytes, asked.gpu_model, asked.priority) == (2, 40 * 2**30, "H100", -3)
    assert (asked.name, asked.time_limit, asked.max_wait, asked.immediate) == ("n", 7200.0, 60.0, True)
    assert asked.address == "127.0.0.1:7"


def test_what_a_job_says_of_itself():
    asked = options(estimate="1h30m", preemptible=True, signal="SIGusr1@2m")
    assert (asked.estimate, asked.preemptible, asked.signal) == (5400.0, True, ("USR1", 120.0))
    assert (options().estimate, options().preemptible, options().signal) == (None, False, None)


def test_numbers_that_are_whole_will_do():
    class Whole:
        def __index__(self):
            return 3

    assert options(Whole()).gpus == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpus", 0), ("gpus", -1), ("gpus", 1.5), ("gpus", 1.0), ("gpus", "2"), ("gpus", True), ("gpus", 10**9),
        ("nodes", ""), ("nodes", 3.5), ("gpu_ids", "0,,1"), ("gpu_ids", True),
        ("exclude", "a\nb"), ("labels", {"": "x"}), ("labels", "a=b"), ("gpus_per_node", 0), ("placement", "tight"),
        ("priority", 101), ("priority", 0.5), ("gpu_memory", "40X"), ("gpu_memory", -1),
        ("time_limit", "soon"), ("time_limit", 0), ("time_limit", -5), ("time_limit", float("nan")),
        ("estimate", "soon"), ("estimate", 0), ("estimate", -5), ("signal", "@60"), ("signal", "USR1@"), ("signal", 10),
        ("signal", "USR1@0"),
        ("max_wait", "-1m"), ("name", "a\nb"), ("name", "\x1b[31mred"), ("name", "x" * 2**20), ("name", 7),
        ("shared", 1), ("shared", "no"), ("immediate", "False"), ("immediate", None), ("preemptible", 0),
        ("on_update", 3), ("on_notice", "print"), ("on_lost", []),
        ("gpu_model", "H\0"), ("url", "nowhere"), ("nested", "maybe"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_at_once_and_named(field, value):
    with pytest.raises(UsageError) as caught:
        acquire(**{field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_who_awaits_nothing_takes_no_coroutine_function():
    async def callback(value):
        raise AssertionError

    for field in ("on_update", "on_notice", "on_lost"):
        with pytest.raises(UsageError, match=rf"^{field}: .*aio"):
            acquire(**{field: callback})
        aio.acquire(**{field: callback})
        with pytest.raises(UsageError, match=rf"^{field}: "):
            aio.acquire(**{field: 3})


def test_nested_from_the_environment(monkeypatch):
    monkeypatch.setenv("GPUSCHED_NESTED", "new")
    assert options().nested == "new"
    assert options(nested="auto").nested == "auto"
    monkeypatch.setenv("GPUSCHED_NESTED", "x")
    with pytest.raises(UsageError, match=r"^GPUSCHED_NESTED: "):
        acquire()


def test_default_names(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(sys, "argv", ["/a/b/train.py", "--secret"])
    assert default_name() == "train.py"
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert default_name() == "python"
    monkeypatch.setattr(sys, "argv", [])
    assert default_name() == "python"
    monkeypatch.setattr(sys, "argv", ["/x/" + "é\n" * 200])
    assert default_name() == "é" * 128
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/a/Deep dive.ipynb")
    assert default_name() == "Deep dive.ipynb"


def test_own_command_is_cut(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "x" * 10_000, "never"])
    words = own_command()
    assert words[0] == "python"
    assert sum(map(len, words)) <= 4000
    monkeypatch.setattr(sys, "orig_argv", ["python"] * 1000)
    assert len(own_command()) == 100
    monkeypatch.setattr(sys, "orig_argv", ["python", "\udcff"])
    own_command()[1].encode()
