"""A lease inside a lease, and a lease kept because its GPU is not empty."""

import os
import subprocess
import sys
import time
import warnings

import pytest

from gpusched.client import Client, GpuschedWarning, JobState, LeaseLost, NotSatisfiable, acquire, ticket
from support.scripts import Script
from support.simulation import set_gpu
from support.waiting import wait_until


@pytest.fixture(autouse=True)
def said_again(monkeypatch):
    monkeypatch.setattr(ticket, "_said", set())


# -- nested --------------------------------------------------------------------------------------------------


def test_a_block_in_a_block_shares(client, capfd):
    with acquire(3) as outer:
        with acquire(2) as inner:
            assert inner.nested
            assert inner.job_id == outer.job_id
            assert inner.gpus == outer.gpus[:2]
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
            with acquire(1) as innermost:
                assert innermost.gpus == outer.gpus[:1]
            inner.check()
            assert client.status().gpus_allocated == 3
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
        assert client.job(outer.job_id).state is JobState.RUNNING
        with acquire(1):
            pass
    said = capfd.readouterr().err
    assert f"inside job {outer.job_id}: using its GPUs 0, 1" in said
    assert said.count("using its GPU 0 ") == 1
    assert client.job(outer.job_id).state is JobState.COMPLETED


def test_a_lease_inside_that_was_never_closed_ends_with_the_outer_one(client):
    before = dict(os.environ)
    with acquire(2):
        forgotten = acquire(1).start()
        further = acquire(1).start()
    assert dict(os.environ) == before
    assert forgotten.released
    assert further.released
    forgotten.release()
    with acquire(2) as lease:
        assert not lease.nested


def test_more_than_the_outer_one_has_never_waits_for_itself(client):
    with acquire(1) as outer:
        with pytest.raises(NotSatisfiable, match=rf"inside job {outer.job_id}, which holds GPU 0, and asks for 2 GPUs"):
            acquire(2).start()
        with pytest.raises(NotSatisfiable, match="of model H100"):
            acquire(gpu_model="H100").start()
        assert client.status().jobs_queued == 0


def test_others_on_request(client, monkeypatch):
    with acquire() as outer:
        with acquire(nested="new") as inner:
            assert not inner.nested
            assert inner.gpus != outer.gpus
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        monkeypatch.setenv("GPUSCHED_NESTED", "new")
        with acquire() as inner:
            assert inner.gpus != outer.gpus
    assert client.status().gpus_allocated == 0


# A nested lease has what it asks for, or says what it has not.


def test_a_share_of_a_gpu_has_only_its_part(client):
    with acquire(shared=True, gpu_memory="10G"):
        with acquire(gpu_memory="10G") as inner:
            assert inner.gpus[0].share_bytes == 10 * 2**30
        with pytest.raises(NotSatisfiable, match="at most 10 GiB of each"):
            acquire(gpu_memory="20G").start()


def test_a_node_that_is_another_will_not_do(client):
    with acquire() as outer:
        with acquire(nodes=["elsewhere", outer.gpus[0].node]) as inner:
            assert inner.gpus == outer.gpus
        with pytest.raises(NotSatisfiable, match="1 GPU on elsewhere"):
            acquire(nodes="elsewhere").start()


def test_what_means_nothing_inside_a_lease_is_named(client, capfd):
    with acquire(2) as outer:
        with acquire(
            labels={"a": "b"}, shared=True, gpu_memory="1G", cpus=1, mem="1G", gpus_per_node=1, placement="spread",
            priority=-1, max_wait=5, estimate=7, preemptible=True, signal="USR1", name="inner",
        ):  # fmt: skip
            pass
        with acquire(immediate=True):
            pass
        with acquire():
            pass
    said = capfd.readouterr().err.splitlines()
    line = f"gpusched: inside job {outer.job_id}: using its GPU 0 (nested='new' asks for others)"
    idle = "labels, shared, cpus, mem, gpus_per_node, placement, priority, max_wait, estimate, preemptible, signal"
    assert said == [f"{line}; this has no effect here: {idle}", f"{line}; this has no effect here: immediate", line]


def test_no_gpus_of_an_outer_lease(client, capfd):
    with acquire() as outer:
        with acquire(0, cpus=1) as inner:
            assert inner.gpus == ()
            assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
            assert repr(inner) == f"<Lease of job {outer.job_id}: no GPU (held)>"
        with acquire(0, cpus=1, nested="new") as none, pytest.raises(NotSatisfiable, match="which holds no GPU, and"):
            acquire(1).start()
        assert none.gpus == ()
    assert f"inside job {outer.job_id}: using none of its GPUs (" in capfd.readouterr().err


def over(lease):
    try:
        lease.check()
    except LeaseLost as error:
        assert error.reason == "TIME_LIMIT"
        return str(error)
    return ""


def test_a_nested_time_limit_ends_what_is_nested(client):
    with acquire(time_limit="1h") as outer:
        with acquire(time_limit=0.2) as inner, acquire() as innermost, acquire(time_limit="2h") as longer:
            assert inner.expires_at < outer.expires_at
            assert longer.expires_at == innermost.expires_at == inner.expires_at
            assert "the job itself goes on" in wait_until(lambda: over(inner))
            assert over(innermost)
            assert over(longer)
            outer.check()
        with acquire(time_limit="2h") as inner:
            assert inner.expires_at == outer.expires_at
            inner.check()
    assert client.job(outer.job_id).state is JobState.COMPLETED


def test_a_nested_time_limit_is_not_the_jobs(client):
    with pytest.raises(LeaseLost), acquire() as outer, acquire(time_limit=0.05) as inner:
        assert inner.expires_at is not None
        assert outer.expires_at is None
        while True:
            inner.check()
    assert client.job(outer.job_id).state is JobState.FAILED


def test_a_lease_of_another_process_is_waited_for(client):
    code = """
        import threading, time
        from gpusched.client import acquire
        with acquire() as lease:
            assert lease.nested
            began = time.monotonic()
            assert not lease.wait_lost(0.3)
            print(time.monotonic() - began >= 0.3)
            waiting = threading.Thread(target=lambda: print(lease.wait_lost()), daemon=True)
            waiting.start()
            waiting.join(0.3)
            print(waiting.is_alive())
            lease.release()
            waiting.join(10)
            print(waiting.is_alive())
    """
    with acquire(), Script(code, dict(os.environ)) as script:
        assert [script.line() for _ in range(4)] == ["True", "True", "False", "False"]


NESTED = """
    from gpusched.client import acquire, GpuschedError
    import os
    try:
        with acquire({gpus}) as lease:
            print(lease.nested, lease.job_id, os.environ["CUDA_VISIBLE_DEVICES"], [gpu.index for gpu in lease.gpus])
    except GpuschedError as error:
        print(type(error).__name__, error)
"""


def run_inside(gpus=1):
    """What a subprocess with our environment says that acquires as well."""
    code = NESTED.format(gpus=gpus)
    with Script(code, dict(os.environ)) as script:
        line = script.line()
        script.wait()
        return line, script.errors


@pytest.mark.slow
def test_a_subprocess_shares(client):
    with acquire(2) as outer:
        line, errors = run_inside()
        assert line == f"True {outer.job_id} 0 [0]"
        assert f"inside job {outer.job_id}" in errors
        line, _ = run_inside(3)
        assert line.startswith(f"NotSatisfiable this runs inside job {outer.job_id}, which holds GPUs 0, 1")
        assert client.job(outer.job_id).state is JobState.RUNNING
        with acquire(1):
            assert run_inside(2)[0].startswith("NotSatisfiable")


@pytest.mark.slow
def test_a_subprocess_shares_while_the_scheduler_is_away(own):
    with pytest.warns(GpuschedWarning, match="away"), acquire(2) as outer:
        own.kill()
        assert run_inside()[0] == f"True {outer.job_id} 0 [-1]"


def test_a_forked_child_shares(client):
    code = """
        import os
        from gpusched.client import acquire
        with acquire() as outer:
            if os.fork() == 0:
                with acquire() as inner:
                    print(inner.nested, inner.job_id == outer.job_id)
                os._exit(0)
            os.wait()
            outer.check()
        print("done")
    """
    with Script(code, dict(os.environ)) as script:
        assert script.line() == "True True"
        assert script.line() == "done"


def test_variables_that_outlived_their_lease_mean_nothing(client):
    with acquire() as lease:
        left_over = dict(os.environ)
    with Script(NESTED.format(gpus=1), left_over) as script:
        nested, job_id, *_ = script.line().split()
    assert nested == "False"
    assert job_id != lease.job_id


def test_a_job_that_we_do_not_run_under_means_nothing(client):
    # As in a tmux session that was begun under a lease of another process tree.
    with Script(
        "from gpusched.client import acquire\nwith acquire() as lease: print(lease.job_id); input()", dict(os.environ)
    ) as script:
        foreign = script.line()
        os.environ["GPUSCHED_JOB_ID"] = foreign
        try:
            with acquire() as lease:
                assert not lease.nested
                assert lease.job_id != foreign
            assert os.environ["GPUSCHED_JOB_ID"] == foreign
        finally:
            del os.environ["GPUSCHED_JOB_ID"]
        script.say()


# -- kept ----------------------------------------------------------------------------------------------------


def sit_on(client, lease, *, processes=None, position=0):
    size = 5 * 2**28  # 1.25 GiB
    set_gpu(
        client.address, lease.gpus[position].index, processes=[(os.getpid(), size)] if processes is None else processes
    )


def test_a_gpu_that_is_not_empty_keeps_its_lease(client, capfd):
    kept = "GPU 1 still holds 1.2 GiB of this process .*the lease is kept"
    with pytest.warns(GpuschedWarning, match=kept) as caught, acquire(2) as first:
        sit_on(client, first, position=1)
    assert [each.filename for each in caught if each.category is GpuschedWarning] == [__file__]
    assert "GPUSCHED_JOB_ID" not in os.environ
    assert client.job(first.job_id).state is JobState.RUNNING
    # The same again, whole or in part.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GpuschedWarning)
        with acquire(2) as second:
            assert (second.job_id, second.gpus, second.nested) == (first.job_id, first.gpus, False)
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
            second.check()
        with acquire(1) as third:
            assert third.gpus == first.gpus[:1]
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
            sit_on(client, first, processes=[], position=1)
    assert "goes on" in capfd.readouterr().err
    assert client.job(first.job_id).state is JobState.COMPLETED
    with acquire() as fresh:
        assert fresh.job_id != first.job_id


def test_a_kept_lease_says_when_its_limit_ends(client, capfd):
    with pytest.warns(GpuschedWarning), acquire(time_limit="10m") as first:
        sit_on(client, first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GpuschedWarning)
        with acquire(time_limit="5h") as second:
            assert (second.job_id, second.expires_at) == (first.job_id, first.expires_at)
        with acquire(time_limit=0.05) as third:
            assert third.expires_at < first.expires_at
            wait_until(lambda: over(third))
            sit_on(client, first, processes=[])
    said = capfd.readouterr().err
    ends = f"; its time limit ends at {first.expires_at.astimezone():%H:%M:%S}"
    assert f"job {first.job_id} goes on: its GPU 0 still holds this process's data{ends}\n" in said


def test_a_kept_lease_whose_time_is_over_is_not_used_again(client):
    with pytest.warns(GpuschedWarning), acquire(time_limit=0.3) as first:
        sit_on(client, first)
    wait_until(lambda: time.monotonic() > first._session.deadline)
    with acquire() as second:
        assert second.job_id != first.job_id
        assert second.gpus != first.gpus
        second.check()
    sit_on(client, first, processes=[])
    with acquire():
        assert client.job(first.job_id).state.ended


def test_a_kept_lease_is_given_back_at_the_next_chance(client):
    with pytest.warns(GpuschedWarning), acquire() as first:
        sit_on(client, first)
    sit_on(client, first, processes=[])
    with acquire() as second:
        assert second.job_id != first.job_id
        assert client.job(first.job_id).state is JobState.COMPLETED


def test_more_than_was_kept_is_asked_for_anew(client):
    with pytest.warns(GpuschedWarning), acquire() as first:
        sit_on(client, first)
    with acquire(2) as second:
        assert first.gpus[0] not in second.gpus
        assert client.job(first.job_id).state is JobState.RUNNING
    sit_on(client, first, processes=[])
    with acquire():
        assert client.job(first.job_id).state is JobState.COMPLETED


def test_a_kept_lease_ends_with_the_process(client):
    code = """
        import os, sys, warnings
        from gpusched.client import acquire
        warnings.simplefilter("ignore")
        with acquire() as lease:
            print(lease.job_id, os.getpid())
            sys.stdin.readline()
        print("after")
        sys.stdin.readline()
    """
    for end in ("exit", "kill"):
        with Script(code, dict(os.environ)) as script:
            job_id, pid = script.line().split()
            set_gpu(client.address, 0, processes=[(int(pid), 2**30)])
            script.say()
            assert script.line() == "after"
            assert client.job(job_id).state is JobState.RUNNING
            if end == "exit":
                script.say()
                assert script.wait() == 0
            else:
                script.signal(9)
            wait_until(lambda: client.job(job_id).state.ended)  # noqa: B023
            set_gpu(client.address, 0, processes=[])


def test_other_peoples_processes_keep_nothing(client):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with warnings.catch_warnings(), acquire() as lease:
            warnings.simplefilter("error")
            # Not ours: one that runs beside us, and one that is gone.
            sit_on(client, lease, processes=[(os.getppid(), 2**30), (2**22 + 5, 2**30)])
        assert client.job(lease.job_id).state is JobState.COMPLETED
        with pytest.warns(GpuschedWarning, match=f"of process {child.pid}"), acquire() as lease:
            # A child of ours is.
            sit_on(client, lease, processes=[(child.pid, 2**30)])
        child.communicate(b"\n")
    with acquire() as fresh:
        assert client.job(lease.job_id).state.ended
        assert fresh.job_id != lease.job_id


def test_kept_also_where_warnings_are_errors(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(GpuschedWarning), acquire() as first:
            sit_on(client, first)
    with acquire() as second:
        assert second.job_id == first.job_id
        sit_on(client, first, processes=[])
    assert client.job(first.job_id).state is JobState.COMPLETED


def test_an_exception_keeps_as_well(client):
    with pytest.warns(GpuschedWarning), pytest.raises(ZeroDivisionError), acquire() as lease:
        sit_on(client, lease)
        raise ZeroDivisionError
    assert client.job(lease.job_id).state is JobState.RUNNING
    sit_on(client, lease, processes=[])
    with Client() as other, acquire():
        assert other.job(lease.job_id).state.ended
