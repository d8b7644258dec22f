"""What submit() takes: one or several, and values that cannot be meant, named as the caller knows them."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from gpusched.client import UsageError, acquire, submit, units
from gpusched.client.submission import Submission
from gpusched.scheduler.core import admission


def request(**options):
    return Submission(**{"command": ["true"], **options}).request()


JOB = types.SimpleNamespace(id="12")


@pytest.mark.parametrize(
    ("after", "jobs"),
    [
        ("12", ["12"]),
        ("12:any", ["12"]),
        (12, ["12"]),
        (JOB, ["12"]),
        ([JOB, "17:failed", 3], ["12", "17", "3"]),
        ((each for each in ("4", "5")), ["4", "5"]),
        ((), []),
        (None, []),
    ],
)
def test_what_it_follows(after, jobs):
    assert [each.job_id for each in request(after=after).dependencies] == jobs


def test_one_exit_status_or_several():
    assert list(request(retry_on=17).retry.exit_statuses) == [17]
    assert list(request(retry_on={17}).retry.exit_statuses) == [17]
    assert list(request(retry_on=None).retry.exit_statuses) == []
    assert list(request(command=("ls", Path("/x"))).command) == ["ls", "/x"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command", ["true", 3]),
        ("command", [b"true"]),
        ("command", b"true"),
        ("command", {"true": "1"}),
        ("command", 5),
        ("command", []),
        ("command", iter(())),
        ("after", 1.5),
        ("after", True),
        ("after", b"12"),
        ("after", {"12": "ok"}),
        ("after", [None]),
        ("after", ["1", True]),
        ("after", object()),
        ("after", types.SimpleNamespace(id=None)),
        ("retry_on", "17"),
        ("retry_on", 1.5),
        ("retry_on", 0),
        ("retry_on", [256]),
        ("retry_on", [True]),
        ("retry_on", b"1"),
        ("retries", -1),
        ("retries", 101),
        ("retries", None),
        ("priority", 101),
        ("gpus", -1),
        ("gpu_ids", 1.5),
        ("gpu_ids", [1.5]),
        ("nodes", 1.5),
        ("exclude", [None]),
        ("labels", ["a=b"]),
        ("environment", "A=1"),
        ("environment", 5),
        ("environment", [("A", "1")]),
        ("workdir", 5),
        ("workdir", b"/"),
        ("output", 5),
        ("requeue", "yes"),
        ("hold", "no"),
        ("preemptible", "no"),
        ("begin", 5),
        ("signal", "USR9@3s"),
    ],
)
def test_what_cannot_be_meant_is_said_at_once(field, value):
    with pytest.raises(UsageError, match=f"^{field}: ") as caught:
        submit(**{"command": ["true"], field: value, "url": "127.0.0.1:1"})
    assert caught.value.field == field


def test_bounds_and_signals_are_the_schedulers():
    for retries in (0, admission.MAX_RETRIES):
        assert request(retries=retries).retry.max_retries == retries
    with pytest.raises(UsageError):
        request(retries=admission.MAX_RETRIES + 1)
    assert units.SIGNALS == admission.SIGNALS


def test_a_job_follows_the_one_that_is_named_and_no_other(here):
    with submit(["true"], hold=True) as held:
        for after in (held, held.id, f"{held.id}:any", [held]):
            with submit(["true"], after=after) as job:
                assert job.status().dependencies == (held.id,)
                job.cancel()
        held.cancel()


def test_a_signal_that_there_is_not_is_refused_inside_a_lease_too(here):
    with acquire():
        with pytest.raises(UsageError, match=r"^signal: 'USR9@3s' .*USR1"):
            acquire(signal="USR9@3s")
        assert acquire(signal="USR1@3s")


# -- where it runs --------------------------------------------------------------------------------------------


SUBMIT = """
from gpusched.client import UsageError, submit
try:
    submit(["true"])
except UsageError as error:
    print(error.field)
print(submit(["true"], workdir="/", output="/dev/null").id)
"""


def in_a_vanished_directory(tmp_path, env, *command):
    folder = tmp_path / "gone"
    folder.mkdir()
    leave = f"import os, sys\nos.chdir({str(folder)!r})\nos.rmdir({str(folder)!r})\nos.execv(sys.argv[1], sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", leave, *command], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("module", "words", "field"),
    [
        ("gpusched.client.cli", ["submit", "--", "true"], "--workdir"),
        ("gpusched.client.cli", ["submit", "--workdir", "sub", "--", "true"], "--workdir"),
        ("gpusched.client.cli", ["submit", "--workdir", "/", "-o", "out", "--", "true"], "--output"),
        ("gpusched.client.gsrun", ["--detach", "true"], "workdir"),
    ],
)
def test_a_present_directory_that_is_gone(here, tmp_path, module, words, field):
    ran = in_a_vanished_directory(tmp_path, here.env, sys.executable, "-P", "-m", module, *words)
    assert ran.returncode == 2, ran.stderr
    assert f"{field}: " in ran.stderr
    assert "the present directory is gone; change to one that is there" in ran.stderr


def test_a_program_whose_directory_is_gone(here, tmp_path):
    ran = in_a_vanished_directory(tmp_path, here.env, sys.executable, "-P", "-c", SUBMIT)
    assert ran.returncode == 0, ran.stderr
    field, job_id = ran.stdout.split()
    assert field == "workdir"
    assert int(job_id)


def test_a_lease_needs_no_directory(here, tmp_path):
    code = "from gpusched.client import acquire\nwith acquire() as lease: print(len(lease))"
    ran = in_a_vanished_directory(tmp_path, here.env, sys.executable, "-P", "-c", code)
    assert (ran.returncode, ran.stdout) == (0, "1\n"), ran.stderr
