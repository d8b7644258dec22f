"""`acquire` against a real server, with this process as the owner."""

import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from gpusched.client import (
    Client,
    GpuschedError,
    GpuschedWarning,
    InvalidRequest,
    JobCancelled,
    JobState,
    LeaseLost,
    LimitReached,
    NoticeKind,
    NotSatisfiable,
    ReasonCode,
    ServerUnavailable,
    WaitTimeout,
    acquire,
    notebook,
    sync,
)
from gpusched.client.session import FINISH_SECONDS
from gpusched.client.views import AllocatedGpu
from support.simulation import set_gpu
from support.waiting import wait_until

VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "GPUSCHED_JOB_ID", "GPUSCHED_GPUS")


@pytest.fixture
def one_gpu(here_with_one):
    with Client() as client:
        yield client


def another(*args, **kwargs):
    """A second request of this thread that does not share the first one's lease."""
    return acquire(*args, nested="new", **kwargs)


# -- the ordinary course -----------------------------------------------------------------------------------


def test_grant_and_release(client):
    before = datetime.now(UTC)
    with acquire(2, name="ordinary") as lease:
        assert [type(gpu) for gpu in lease.gpus] == [AllocatedGpu] * 2
        assert len({gpu.uuid for gpu in lease.gpus}) == 2
        job = client.job(lease.job_id)
        assert (job.state, job.name, job.lease_id) == (JobState.RUNNING, "ordinary", lease.id)
        assert job.holder_pid == os.getpid()
        assert job.gpus == lease.gpus
        assert before - timedelta(seconds=1) < lease.granted_at < datetime.now(UTC) + timedelta(seconds=1)
        assert client.status().gpus_allocated == 2
        lease.check()
        assert not lease.lost
        assert not lease.nested
        assert lease.notices == ()
    job = client.job(lease.job_id)
    assert job.state is JobState.COMPLETED
    assert job.outcome.exit_status == 0
    assert client.status().gpus_allocated == 0
    assert lease.released
    with pytest.raises(GpuschedError, match="given back") as caught:
        lease.check()
    assert caught.value.reason == "RELEASED"


def test_variables_are_set_and_put_back(here, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    before = dict(os.environ)
    with acquire(3) as lease:
        assert {name: os.environ[name] for name in VARIABLES} == {name: lease.env[name] for name in VARIABLES}
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(str(gpu.index) for gpu in lease.gpus)
        assert os.environ["GPUSCHED_GPUS"] == ",".join(gpu.uuid for gpu in lease.gpus)
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        seen = subprocess.run(["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], capture_output=True, text=True, check=True)
        assert seen.stdout.strip() == lease.env["CUDA_VISIBLE_DEVICES"]
    assert dict(os.environ) == before


def test_variables_can_be_left_alone(here):
    before = dict(os.environ)
    with acquire(environ=False) as lease:
        assert dict(os.environ) == before
        assert lease.env["CUDA_VISIBLE_DEVICES"] == str(lease.gpus[0].index)


def test_an_exception_passes_through_and_history_has_its_type_alone(client):
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), acquire() as lease:
        raise ZeroDivisionError("a secret")
    assert dict(os.environ) == before
    job = client.job(lease.job_id)
    assert (job.state, job.outcome.exit_status) == (JobState.FAILED, 1)
    assert "ZeroDivisionError" in job.outcome.message
    assert "secret" not in str(job)


@pytest.mark.parametrize(
    ("code", "status", "state"),
    [(3, 3, JobState.FAILED), (-1, 255, JobState.FAILED), (256, 0, JobState.COMPLETED), ("why", 1, JobState.FAILED)],
)
def test_an_exit_in_the_block_has_its_status(client, code, status, state):
    with pytest.raises(SystemExit), acquire() as lease:
        sys.exit(code)
    job = client.job(lease.job_id)
    assert (job.outcome.exit_status, job.state) == (status, state)


def test_release_before_the_end(client):
    with acquire() as lease:
        lease.release()
        assert client.job(lease.job_id).state is JobState.COMPLETED
        assert "GPUSCHED_JOB_ID" not in os.environ
        lease.release()
        with pytest.raises(GpuschedError, match="given back"):
            lease.check()


def test_memory_and_model_are_asked_for(client):
    with acquire(gpu_memory="70G", gpu_model="simulated") as lease:
        job = client.job(lease.job_id)
        assert (job.gpu_memory_bytes, job.gpu_model) == (70 * 2**30, "simulated")


@pytest.mark.slow
def test_many_in_a_row_leave_nothing_behind(here):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    def children():  # zombies included; earlier tests of this process may have left some
        return {child.pid for child in psutil.Process().children()}

    def no_reader_left():
        return not [thread for thread in threading.enumerate() if thread.name == "gpusched-lease"]

    with acquire():
        pass
    wait_until(no_reader_left)
    descriptors_before, children_before = descriptors(), children()
    for _ in range(3):
        with acquire() as lease:
            assert lease._session.helper_pid in children()
    wait_until(no_reader_left)
    assert descriptors() <= descriptors_before
    assert children() <= children_before


# -- waiting -----------------------------------------------------------------------------------------------


def test_updates_until_the_grant(one_gpu):
    first = acquire(name="first")
    holder = first.start()
    updates = []
    ticket = another(name="second")
    for update in ticket:
        updates.append(update)
        if len(updates) == 1:
            assert (update.position, update.total, update.job_id) == (1, 1, ticket.job_id)
            assert update.reason.code is ReasonCode.RESOURCES
            assert update.reason.blockers[0].job_name == "first"
            assert update.reason.blockers[0].job_id == holder.job_id
            assert update.submitted_at is not None
            assert not ticket.granted
            with pytest.raises(GpuschedError, match="not granted yet"):
                _ = ticket.lease
            first.close()
    assert updates
    assert ticket.granted
    assert ticket.lease.gpus == holder.gpus
    with ticket as lease:
        assert lease is ticket.lease
    assert one_gpu.job(lease.job_id).state is JobState.COMPLETED
    with pytest.raises(GpuschedError, match="make a new one"):
        ticket.start()


@pytest.mark.slow
def test_on_update_is_called_in_this_thread(one_gpu):
    first, seen = acquire(), []

    def on_update(update):
        seen.append((update.position, threading.current_thread()))
        first.close()

    first.start()
    with another(on_update=on_update):
        pass
    assert seen[0] == (1, threading.current_thread())


def test_the_wait_is_shown_by_default(one_gpu, capfd):
    first = acquire()
    first.start()
    closing = threading.Thread(target=lambda: (wait_until(lambda: one_gpu.status().jobs_queued), first.close()))
    closing.start()
    with another() as lease:
        pass
    closing.join()
    shown = capfd.readouterr().err
    assert f"gpusched: job {lease.job_id} is number 1 of 1 in the queue: " in shown


def test_an_answer_at_the_very_moment_of_the_timeout_counts():
    class Late(Future):
        """Done, where it had just been found not to be."""

        def result(self, timeout=None):
            if not self.done():
                self.set_result({"kind": "released"})
                raise TimeoutError
            return super().result(timeout)

    for tick, limit in ((lambda: None, None), (None, 1.0)):
        assert sync._result(Late(), tick, limit) == {"kind": "released"}
    with pytest.raises(TimeoutError):
        sync._result(Future(), None, 0.01)


def test_a_line_that_fails_at_the_grant_leaves_no_lease(one_gpu, monkeypatch):
    class Line(notebook.StatusLine):
        def close(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(sync, "default_status_line", Line)
    ticket = acquire()
    with pytest.raises(KeyboardInterrupt), ticket:
        pytest.fail("the block was entered")
    assert ticket.lease.released
    assert "GPUSCHED_JOB_ID" not in os.environ
    wait_until(lambda: one_gpu.job(ticket.job_id).state.ended)


def test_closing_a_waiting_ticket_leaves_the_queue(one_gpu):
    with acquire():
        ticket = another()
        assert next(iter(ticket)).position == 1
        ticket.close()
        ticket.close()
        wait_until(lambda: one_gpu.status().jobs_queued == 0)
        assert one_gpu.job(ticket.job_id).state.ended


def test_closing_a_ticket_that_another_thread_waits_for(one_gpu):
    with acquire():
        ticket = another()
        closing = threading.Thread(target=lambda: (wait_until(lambda: one_gpu.status().jobs_queued), ticket.close()))
        closing.start()
        with pytest.raises(GpuschedError, match="closed"):
            ticket.start()
        closing.join()


def test_a_dropped_ticket_leaves_the_queue(one_gpu):
    with acquire():
        with pytest.warns(ResourceWarning, match="without close"):
            for _ in another():
                break
            import gc

            gc.collect()
        wait_until(lambda: one_gpu.status().jobs_queued == 0)


@pytest.mark.slow
def test_a_ticket_that_nobody_waits_for_takes_no_gpus(one_gpu):
    first = acquire()
    first.start()
    idle, busy = another(name="idle"), another(name="busy")
    next(iter(idle))
    next(iter(busy))
    first.close()
    # It is granted to the idle one, who does not confirm it within a second; then to the other.
    with busy as lease:
        assert one_gpu.job(idle.job_id).state is JobState.QUEUED
        assert one_gpu.job(lease.job_id).state is JobState.RUNNING
        reasons = (update.reason.code for update in idle)
        assert next(code for code in reasons if code is ReasonCode.RESOURCES)
    with idle as lease:
        assert one_gpu.job(lease.job_id).state is JobState.RUNNING


def test_an_interrupted_wait_leaves_the_queue(one_gpu):
    def interrupt(update):
        raise KeyboardInterrupt

    with acquire() as lease:
        with pytest.raises(KeyboardInterrupt):
            another(on_update=interrupt).start()
        wait_until(lambda: one_gpu.status().jobs_queued == 0)
        assert os.environ["GPUSCHED_JOB_ID"] == lease.job_id


def test_no_longer_than_max_wait(one_gpu):
    with acquire():
        began = time.monotonic()
        with pytest.raises(WaitTimeout) as caught:
            another(max_wait=0.3).start()
        assert 0.2 < time.monotonic() - began < 5
        assert caught.value.reason == "MAX_WAIT"


def test_immediate(one_gpu):
    with acquire(), pytest.raises(LimitReached) as caught:
        another(immediate=True).start()
    assert caught.value.reason == "NO_GPU_FREE"


def test_cancelled_while_waiting(one_gpu):
    with acquire():
        ticket = another()
        next(iter(ticket))
        one_gpu.cancel(ticket.job_id, "for the test")
        with pytest.raises(JobCancelled, match="for the test"):
            ticket.start()


def test_what_can_never_be_is_refused(client):
    with pytest.raises(NotSatisfiable, match="8"):
        acquire(9).start()
    with pytest.raises(NotSatisfiable):
        acquire(gpu_model="no such model").start()
    with pytest.raises(NotSatisfiable):
        acquire(gpu_memory="1000G").start()
    assert client.status().jobs_queued == 0


def test_the_servers_own_checks_name_the_field(here):
    with pytest.raises(InvalidRequest) as caught:
        acquire(immediate=True, max_wait=5).start()
    assert caught.value.field == "max_wait"


def test_refusals_are_in_the_words_of_the_call(here):
    """The contract's names of fields are for programs."""
    for options, error, field, said in (
        ({"gpus": 9}, NotSatisfiable, "resources.gpus", "gpus: asks for 9 GPUs"),
        ({"shared": True}, InvalidRequest, "resources.gpu_memory_bytes", "gpu_memory: "),
        ({"gpu_ids": "99"}, NotSatisfiable, "resources.gpu_ids", "gpu_ids: there is no GPU '99'"),
    ):
        with pytest.raises(error) as caught:
            acquire(**options).start()
        assert caught.value.field == field and str(caught.value).startswith(said)
        assert caught.value.reason


# -- losing it ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cancelled_lease_is_noticed_then_lost(one_gpu):
    noticed, lost = threading.Event(), []
    seen = []

    def on_notice(notice):
        seen.append(notice)
        noticed.set()

    with (
        pytest.raises(LeaseLost, match="for the test"),
        acquire(on_notice=on_notice, on_lost=lost.append) as lease,
    ):
        one_gpu.cancel(lease.job_id, "for the test")
        assert noticed.wait(5)
        assert seen[0].kind is NoticeKind.CANCEL
        assert seen[0].deadline is not None
        assert "for the test" in seen[0].message
        assert lease.notices == tuple(seen)
        lease.check()
        assert not lease.lost
        assert lease.wait_lost(10)
        assert lease.lost
        with pytest.raises(LeaseLost):
            lease.check()
    wait_until(lambda: lost)
    assert type(lost[0]) is LeaseLost
    assert "GPUSCHED_JOB_ID" not in os.environ
    assert one_gpu.job(lease.job_id).state is JobState.CANCELLED


def test_a_block_that_ends_in_time_loses_nothing(one_gpu):
    with acquire(on_notice=lambda notice: None) as lease:
        one_gpu.cancel(lease.job_id)
        wait_until(lambda: lease.notices)
    assert not lease.lost
    assert one_gpu.job(lease.job_id).state is JobState.CANCELLED


@pytest.mark.slow
def test_an_exception_in_a_lost_block_gets_a_note(one_gpu):
    with pytest.raises(ZeroDivisionError) as caught, acquire(on_lost=lambda error: None) as lease:
        one_gpu.cancel(lease.job_id)
        assert lease.wait_lost(10)
        raise ZeroDivisionError
    assert "the lease was lost meanwhile" in caught.value.__notes__[0]


def test_a_dead_helper_is_a_lost_lease(client):
    with pytest.raises(LeaseLost, match="helper process") as caught, acquire(on_lost=lambda error: None) as lease:
        os.kill(lease._session.helper_pid, 9)
        assert lease.wait_lost(5)
        wait_until(lambda: client.job(lease.job_id).state is JobState.LOST)
    assert caught.value.reason == "HELPER_GONE"


def test_a_dead_helper_while_waiting(one_gpu):
    with acquire():
        ticket = another()
        next(iter(ticket))
        os.kill(ticket._session.helper_pid, 9)
        with pytest.raises(GpuschedError, match="helper process"):
            ticket.start()
        wait_until(lambda: one_gpu.status().jobs_queued == 0)


def test_the_time_limit(client):
    with pytest.raises(LeaseLost, match="time limit") as caught, acquire(time_limit=0.3) as lease:
        assert lease.expires_at is not None
        while True:
            lease.check()
            time.sleep(0.01)
    assert caught.value.reason == "TIME_LIMIT"
    assert client.job(lease.job_id).state is JobState.TIMED_OUT


@pytest.mark.slow
def test_a_server_that_is_gone_ends_nothing(server_factory, use_server, caplog):
    """But a wait whose time is over."""
    server = server_factory("1")
    use_server(server)
    with pytest.warns(GpuschedWarning, match="is away and could not be told"), acquire() as lease:
        ticket = another(max_wait=1)
        next(iter(ticket))
        server.kill()
        with pytest.raises(WaitTimeout):
            ticket.start()
        assert [notice.kind for notice in lease.notices] == [NoticeKind.AWAY]
        lease.check()
    assert not lease.lost
    assert "stay yours" in caplog.text
    assert "GPUSCHED_JOB_ID" not in os.environ


def test_other_notices_arrive(client):
    with acquire(on_notice=lambda notice: None) as lease:
        set_gpu(client.address, lease.gpus[0].index, fault="Xid 79: GPU has fallen off the bus")
        wait_until(lambda: lease.notices)
        assert lease.notices[0].kind is NoticeKind.GPU_UNHEALTHY
        assert "Xid 79" in lease.notices[0].message


def test_notices_are_logged_where_nobody_asks(client, caplog):
    with acquire() as lease:
        set_gpu(client.address, lease.gpus[0].index, fault="Xid 79")
        wait_until(lambda: "Xid 79" in caplog.text)


def test_a_callback_that_fails_is_logged(client, caplog):
    def on_notice(notice):
        raise ZeroDivisionError

    with acquire(on_notice=on_notice) as lease:
        set_gpu(client.address, lease.gpus[0].index, fault="Xid 79")
        wait_until(lambda: "ZeroDivisionError" in caplog.text)
        lease.check()


def test_sys_exit_in_a_callback_ends_no_other_thread(client, caplog):
    lost = []

    def on_notice(notice):
        sys.exit(3)

    with pytest.raises(LeaseLost), acquire(on_notice=on_notice, on_lost=lost.append) as lease:
        set_gpu(client.address, lease.gpus[0].index, fault="Xid 79")
        wait_until(lambda: "called sys.exit()" in caplog.text)
        os.kill(lease._session.helper_pid, 9)
        assert lease.wait_lost(5)
        wait_until(lambda: lost)


@pytest.mark.parametrize("end", [lambda lease: lease.release(), lambda lease: lease._ticket.close()])
def test_a_callback_may_end_the_lease(client, end):
    ended = threading.Event()

    def on_notice(notice):
        end(lease)
        ended.set()

    with acquire(on_notice=on_notice) as lease:
        set_gpu(client.address, lease.gpus[0].index, fault="Xid 79")
        assert ended.wait(FINISH_SECONDS / 2)
        assert client.job(lease.job_id).state is JobState.COMPLETED


def test_callbacks_come_in_order_in_a_thread_of_their_own(client):
    seen = []

    def on_notice(notice):
        seen.append((notice, threading.current_thread()))

    def callers():
        return [thread for thread in threading.enumerate() if thread.name == "gpusched-callbacks"]

    with acquire(on_notice=on_notice) as lease:
        assert not callers()  # none before it is wanted
        for fault in ("Xid 79", "", "Xid 48"):
            set_gpu(client.address, lease.gpus[0].index, fault=fault)
        wait_until(lambda: len(seen) >= 2)
    assert tuple(notice for notice, _ in seen) == lease.notices
    assert {thread.name for _, thread in seen} == {"gpusched-callbacks"}
    wait_until(lambda: not callers())


# -- this process and its neighbours -----------------------------------------------------------------------


def test_threads_have_leases_of_their_own(client):
    results, together = [], threading.Barrier(3)

    def work():
        with acquire(environ=False) as lease:
            together.wait(20)
            results.append(lease.gpus[0].uuid)
            together.wait(20)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(results)) == 3


def test_cuda_that_was_initialised_before_is_warned_of(here, monkeypatch):
    cuda = types.SimpleNamespace(is_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    with pytest.warns(GpuschedWarning, match="PyTorch has initialised CUDA") as caught, acquire():
        pass
    assert [each.filename for each in caught if each.category is GpuschedWarning] == [__file__]


def test_a_lease_is_not_for_sending(here):
    with acquire() as lease, pytest.raises(TypeError, match=r"lease\.env"):
        pickle.dumps(lease)


def test_proxy_variables_do_not_matter(here, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with acquire() as lease, Client() as client:
        assert client.job(lease.job_id).state is JobState.RUNNING


def test_a_file_of_the_users_shadows_nothing(here, tmp_path, monkeypatch):
    for name in ("grpc.py", "queue.py", "gpusched.py"):
        (tmp_path / name).write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    with acquire():
        pass


def test_children_that_are_not_waited_for(here):
    # A program may reap all children, or have the kernel do it.
    import signal

    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with acquire():
            pass
    finally:
        signal.signal(signal.SIGCHLD, old)


@pytest.mark.slow
def test_a_scheduler_that_cannot_save_is_waited_for(server_factory, use_server, capfd):
    """It is there, and says what is wrong; the place is asked for again until it can be kept."""
    server = server_factory("1")
    use_server(server)
    connection = sqlite3.connect(server.state_dir / "state.db", check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServerUnavailable) as caught:
        acquire(immediate=True).start()
    assert caught.value.reason == "STORE"
    with pytest.raises(WaitTimeout, match="no GPUs within max_wait: state file"):
        acquire(max_wait=0.5).start()
    mended = threading.Timer(1.0, connection.rollback)
    mended.start()
    with acquire(1) as lease:
        assert len(lease.gpus) == 1
    mended.join()
    connection.close()
    assert "can take no job now: state file" in capfd.readouterr().err
