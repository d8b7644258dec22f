"""What history says of a lease that nobody closed, by how its program ended."""

import os
import sys
import types
from pathlib import Path

import pytest

from gpusched.client import Client, JobState, session
from support.scripts import Script
from support.waiting import wait_until

UNKNOWN = (JobState.COMPLETED, None, "released: the process ended; its exit status is not known")
OPEN = "import code, sys\nfrom gpusched.client import acquire\nprint(acquire().start().job_id)\n"

KEPT = """
import os, warnings
from gpusched.client import acquire, lease_views
from support.simulation import set_gpu
warnings.simplefilter("ignore")
try:
    with acquire() as lease:
        print(lease.job_id)
        set_gpu(lease.address, lease.gpus[0].index, processes=[(os.getpid(), 2**30)])
        {inside}
except ValueError:
    pass
{after}
"""


@pytest.fixture
def one_gpu(here_with_one):
    return here_with_one


def ended(server, code, status):
    """State, exit status and message of the job of a program that prints its id and ends with this status."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with Script(code, server.env | {"PYTHONPATH": path}) as script, Client() as client:
        job_id = script.line()
        assert script.wait() == status, script.errors
        job = wait_until(lambda: (job := client.job(job_id)).state.ended and job)
    return job.state, job.outcome.exit_status, job.outcome.message


FAILED = (JobState.FAILED, 1, "exit 1: ended by RuntimeError")


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        (f"{OPEN}raise RuntimeError('boom')", 1, FAILED),
        # Whatever is put into the place of the hook.
        (f"{OPEN}sys.excepthook = lambda *error: None\nraise RuntimeError('boom')", 1, FAILED),
        (f"{OPEN}", 0, UNKNOWN),
        (f"{OPEN}sys.exit(9)", 9, UNKNOWN),
        # These end nothing.
        (f"{OPEN}code.InteractiveConsole().push('1/0')\nassert sys.last_value", 0, UNKNOWN),
        (f"{OPEN}try:\n    1/0\nexcept ArithmeticError:\n    pass", 0, UNKNOWN),
    ],
    ids=["exception", "another hook", "end", "sys.exit", "prompt", "caught"],
)
def test_a_lease_that_nobody_closed(one_gpu, code, status, told):
    assert ended(one_gpu, code, status) == told


def test_a_module_that_was_run_by_dash_m(one_gpu, tmp_path):
    (tmp_path / "program.py").write_text(f"{OPEN}raise RuntimeError('boom')")
    command = "[sys.executable, '-u', '-m', 'program']"
    code = f"import os, sys\nos.chdir({str(tmp_path)!r})\nos.execv(sys.executable, {command})"
    assert ended(one_gpu, code, 1) == FAILED


@pytest.mark.parametrize(
    ("inside", "after", "status", "told"),
    [
        ("pass", "", 0, (JobState.COMPLETED, 0, "exit 0")),
        ("pass", "raise SystemExit(9)", 9, (JobState.COMPLETED, 0, "exit 0")),
        ("raise ValueError", "", 0, (JobState.FAILED, 1, "exit 1: ended by ValueError")),
        # Used again, and not closed.
        ("pass", "acquire().start()", 0, UNKNOWN),
        ("pass", "acquire().start(); raise RuntimeError", 1, FAILED),
    ],
)
def test_a_lease_that_was_kept_ends_as_its_block_did(one_gpu, inside, after, status, told):
    assert ended(one_gpu, KEPT.format(inside=inside, after=after), status) == told


def test_what_is_no_end_of_the_program(monkeypatch):
    def raised(run):
        try:
            run()
        except ZeroDivisionError as error:
            return error

    # As of a callback of a library's event loop: there are frames below it.
    monkeypatch.setattr(sys, "last_value", raised(lambda: 1 / 0), raising=False)
    monkeypatch.setattr(sys, "last_exc", None, raising=False)
    assert session._ended_by() is None
    monkeypatch.setattr(sys, "last_value", ZeroDivisionError("never raised"))
    assert session._ended_by() is None
    code = types.SimpleNamespace(co_name="<module>")
    outermost = types.SimpleNamespace(f_back=None, f_code=code)

    class Left(Exception):
        __traceback__ = types.SimpleNamespace(tb_frame=outermost)

    monkeypatch.setattr(sys, "last_value", left := Left())
    assert session._ended_by() is left
    code.co_name = "on_click"  # called in a thread that Python knows nothing of
    assert session._ended_by() is None
    code.co_name = "<module>"
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert session._ended_by() is None
