"""Owners in processes of their own: killed, forked, stopped, interrupted."""

import os
import signal
import time

import pytest

from gpusched.client import Client, JobState, acquire, procs
from support.scripts import Script
from support.waiting import wait_until

FREED_SECONDS = 4.0
"""How soon the next waiter must have the GPUs of a dead owner; milliseconds in fact, but the machine may be busy."""


@pytest.fixture
def one_gpu(here_with_one):
    return here_with_one


@pytest.fixture
def client(one_gpu):
    with Client() as client:
        yield client


HOLD_WITH_FORKED_CHILDREN = """
    import os, time
    from gpusched.client import acquire
    with acquire() as lease:
        for _ in range(4):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        print("held", lease.job_id)
        time.sleep(60)
"""


def seconds_until_granted(ticket, kill):
    """How long after `kill()` the waiting ticket has its lease."""
    assert next(iter(ticket)).position == 1
    kill()
    began = time.monotonic()
    with ticket:
        return time.monotonic() - began


def test_kill_9_with_forked_children_frees_at_once(one_gpu, client):
    with Script(HOLD_WITH_FORKED_CHILDREN, one_gpu.env) as script:
        job_id = script.line().split()[1]
        took = seconds_until_granted(acquire(), lambda: script.signal(signal.SIGKILL))
        assert took < FREED_SECONDS
        assert client.job(job_id).state is JobState.LOST
        # The workers are still there, with their copies of everything.
        os.killpg(script.pid, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV])
def test_other_deaths(one_gpu, number):
    with Script(HOLD_WITH_FORKED_CHILDREN, one_gpu.env) as script:
        script.line()
        assert seconds_until_granted(acquire(), lambda: script.signal(number)) < FREED_SECONDS


def test_kill_9_while_waiting_leaves_the_queue(one_gpu, client):
    code = """
        from gpusched.client import acquire
        acquire(on_update=lambda update: print(update.position)).start()
    """
    with acquire(), Script(code, one_gpu.env) as script:
        assert script.line() == "1"
        script.signal(signal.SIGKILL)
        wait_until(lambda: client.status().jobs_queued == 0, FREED_SECONDS)


@pytest.mark.slow
def test_ctrl_c_while_waiting_and_in_the_block(one_gpu, client):
    code = """
        import time
        from gpusched.client import acquire
        try:
            with acquire(on_update=lambda update: print("waits")):
                print("held")
                time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted")
    """
    with acquire(), Script(code, one_gpu.env) as script:
        assert script.line() == "waits"
        os.killpg(script.pid, signal.SIGINT)  # as the terminal does: the whole group
        assert script.line() == "interrupted"
        assert script.wait() == 0
        wait_until(lambda: client.status().jobs_queued == 0)
    with Script(code, one_gpu.env) as script:
        assert script.line() == "held"
        os.killpg(script.pid, signal.SIGINT)
        assert script.line() == "interrupted"
        assert script.wait() == 0
    job = client.jobs(include_ended=True)[0]  # the newest
    assert (job.state, job.outcome.message.endswith("KeyboardInterrupt")) == (JobState.FAILED, True)


@pytest.mark.slow
def test_a_stopped_owner_keeps_its_lease(one_gpu, client):
    with Script(HOLD_WITH_FORKED_CHILDREN, one_gpu.env) as script:
        job_id = script.line().split()[1]
        script.signal(signal.SIGSTOP)
        time.sleep(1.5)  # longer than it would have to confirm
        assert client.job(job_id).state is JobState.RUNNING


@pytest.mark.slow
def test_a_stopped_waiter_does_not_sit_on_gpus(one_gpu, client):
    code = """
        from gpusched.client import acquire
        with acquire(on_update=lambda update: print(update.reason.code)) as lease:
            print("held", lease.job_id)
    """
    first = acquire()
    first.start()
    with Script(code, one_gpu.env) as script:
        assert script.line() == "resources"
        script.signal(signal.SIGSTOP)
        with acquire(nested="new", on_update=lambda update: first.close()) as lease:
            assert client.job(lease.job_id).state is JobState.RUNNING
            script.signal(signal.SIGCONT)
        while not (line := script.line()).startswith("held"):
            pass
        assert line.startswith("held")
        assert script.wait() == 0


def test_a_forked_child_has_no_part_in_the_lease(one_gpu, client):
    code = """
        import os, sys
        from gpusched.client import acquire, GpuschedError
        try:
            with acquire() as lease:
                if os.fork() == 0:
                    try:
                        lease.check()
                    except GpuschedError as error:
                        print("check refused", str(os.getppid()) in str(error))
                    lease.release()
                    sys.exit(7)  # leaves the block, and runs the interpreter's exit
                print("child", os.waitstatus_to_exitcode(os.wait()[1]))
                lease.check()
                print("held", lease.job_id)
                sys.stdin.readline()
        except SystemExit as stop:
            raise
    """
    with Script(code, one_gpu.env) as script:
        assert script.line() == "check refused True"
        assert script.line() == "child 7"
        job_id = script.line().split()[1]
        assert client.job(job_id).state is JobState.RUNNING
        script.say()
        assert script.wait() == 0
        assert client.job(job_id).state is JobState.COMPLETED


def test_a_release_in_a_forked_child_is_nothing_at_all(one_gpu):
    code = """
        import os
        from gpusched.client import acquire
        with acquire() as lease:
            if os.fork() == 0:
                lease.release()
                lease._ticket.close()
                print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("GPUSCHED_JOB_ID") == lease.job_id)
                lease._ticket.__exit__(None, None, None)
                print(os.environ.get("CUDA_VISIBLE_DEVICES"))
                os._exit(0)
            os.wait()
            lease.check()
        print("done")
    """
    with Script(code, one_gpu.env) as script:
        assert script.line() == "0 True"
        assert script.line() == "None"
        assert script.line() == "done"


@pytest.mark.parametrize("closed", ["(0, 1, 2)", "(0,)", "(1, 2)"])
def test_a_program_whose_streams_are_closed(one_gpu, closed, tmp_path):
    # As a daemon may run; then what is opened next gets these numbers.
    said = tmp_path / "said"
    code = f"""
        import os, sys
        sys.stdin = sys.stdout = sys.stderr = None
        for number in {closed}:
            os.close(number)
        from gpusched.client import acquire
        try:
            with acquire(environ=False) as lease:
                lease.check()
                numbers = [lease._session._socket.fileno(), lease._session._errors.fileno()]
                text = "held" if min(numbers) > 2 else str(numbers)
        except BaseException as error:
            text = repr(error)
        with open({str(said)!r}, "w") as file:
            file.write(text)
    """
    with Script(code, one_gpu.env) as script:
        script.wait()
        assert said.read_text() == "held"


NOWHERE = {
    "full": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    "closed": "sys.stderr.close()",
    "pipe": "read, write = os.pipe(); os.dup2(write, 2); os.close(read)",
    "terminal": "end, tty = os.openpty(); os.dup2(tty, 2); os.close(end)",
    "none": "sys.stderr = None",
}


@pytest.mark.parametrize("kind", NOWHERE)
def test_a_wait_that_cannot_be_shown_keeps_its_place(one_gpu, client, kind):
    code = f"""
        import os, sys
        {NOWHERE[kind]}
        from gpusched.client import acquire
        with acquire() as lease, acquire(priority=-1):
            print("held", lease.job_id)
    """
    env = one_gpu.env | {"TERM": "xterm"}
    first = acquire(name="first")
    first.start()
    with Script(code, env) as script:
        wait_until(lambda: client.status().jobs_queued)
        first.close()
        assert script.line().startswith("held ")
        assert script.wait() == 0


def test_forked_workers_of_multiprocessing(one_gpu):
    code = """
        import multiprocessing, os
        from gpusched.client import acquire

        def visible(_):
            return os.environ["CUDA_VISIBLE_DEVICES"]

        with acquire() as lease:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(set(pool.map(visible, range(8))))
            lease.check()
        print("done")
    """
    with Script(code, one_gpu.env) as script:
        assert script.line() == "{'0'}"
        assert script.line() == "done"
        assert script.wait() == 0


def test_spawned_workers(one_gpu, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(
        "import multiprocessing, os\n"
        "from gpusched.client import acquire\n"
        "def visible(_):\n"
        "    return os.environ['CUDA_VISIBLE_DEVICES']\n"
        "if __name__ == '__main__':\n"
        "    with acquire() as lease, multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        print(set(pool.map(visible, range(4))), lease.job_id)\n"
    )
    with Script(f"import runpy, sys; sys.argv = ['train.py']; runpy.run_path({str(program)!r}, run_name='__main__')",
                one_gpu.env) as script:  # fmt: skip
        assert script.line().startswith("{'0'}")
        assert script.wait() == 0


def test_a_lease_that_was_never_closed_ends_with_the_process(one_gpu, client):
    code = """
        from gpusched.client import acquire
        print(acquire().start().job_id)
    """
    with Script(code, one_gpu.env) as script:
        job_id = script.line()
        assert script.wait() == 0
    job = client.job(job_id)
    assert (job.state, job.outcome.message) == (
        JobState.COMPLETED,
        "released: the process ended; its exit status is not known",
    )


def test_an_exit_that_skips_everything(one_gpu, client):
    code = """
        import os
        from gpusched.client import acquire
        print(acquire().start().job_id)
        os._exit(3)
    """
    with Script(code, one_gpu.env) as script:
        job_id = script.line()
        assert script.wait() == 3
        wait_until(lambda: client.job(job_id).state is JobState.LOST, FREED_SECONDS)


def test_grpc_stays_out_of_the_users_process(one_gpu):
    code = """
        import sys
        import gpusched.client
        assert not {"grpc", "asyncio", "subprocess"} & set(sys.modules)
        with gpusched.client.acquire(on_update=print) as lease:
            lease.check()
        assert not [name for name in sys.modules if name.split(".")[0] in ("grpc", "google")], sys.modules
        print("light")
    """
    with Script(code, one_gpu.env) as script:
        assert script.line() == "light"
        assert script.wait() == 0


def test_the_helper_ends_with_its_owner_and_leaves_no_process(one_gpu):
    code = """
        from gpusched.client import acquire
        import time
        lease = acquire().start()
        print(lease._session.helper_pid)
        time.sleep(60)
    """
    with Script(code, one_gpu.env) as script:
        helper = int(script.line())
        assert os.getsid(helper) != os.getsid(script.pid)  # Ctrl-C and a closed terminal are not for it
        script.signal(signal.SIGKILL)
        wait_until(lambda: not procs.alive(helper), FREED_SECONDS)


def test_a_module_found_by_a_scripts_own_path(one_gpu):
    env = dict(one_gpu.env)
    roots = env.pop("PYTHONPATH")
    code = f"""
        import sys
        sys.path[:0] = {roots!r}.split(":")
        from gpusched.client import acquire
        with acquire():
            print("held")
    """
    with Script(code, env) as script:
        assert script.line() == "held"
        assert script.wait() == 0
