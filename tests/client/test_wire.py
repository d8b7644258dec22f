import socket
import threading
from datetime import UTC, datetime, timedelta

from gpusched.client import errors, views, wire
from gpusched.client.serveruser import ServerRefused

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def there_and_back(value):
    message = wire.decode(wire.encode("k", value=value))
    assert message["kind"] == "k"
    return wire.load(type(value), message["value"])


def test_views_survive():
    gpu = views.AllocatedGpu("GPU-1", 3, "n", "H100", 80 * 2**30)
    update = views.QueueUpdate(
        job_id="7",
        position=1,
        total=2,
        reason=views.Reason(
            views.ReasonCode.RESOURCES,
            "because\nthe ünïcode says so",
            2,
            1,
            (views.Blocker("GPU-1", 3, "n", views.GpuState.ALLOCATED, "5", "alice", "x", AT),),
            "6",
        ),
        submitted_at=AT,
    )
    grant = views.Grant("7", "l", 2**40, (gpu, gpu), {"CUDA_VISIBLE_DEVICES": "3"}, AT, None)
    notice = views.Notice(views.NoticeKind.CANCEL, "go", AT, "7")
    for value in (gpu, update, grant, notice):
        assert there_and_back(value) == value


def test_a_whole_job_survives():
    job = views.Job(
        id="1", kind=views.JobKind.INTERACTIVE, state=views.JobState.RUNNING, name="n", user="u", uid=1,
        gpus_requested=1, gpu_memory_bytes=0, gpu_model="", priority=0, time_limit=timedelta(1.5),
        command=("a", "b"), submitted_at=AT, started_at=None, ended_at=None, position=0, reason=None, gpus=(),
        lease_id="", outcome=views.Outcome(0, 0, ""), holder_pid=4, node="",
        history=(views.JobEvent(AT, views.JobState.QUEUED, "m"),),
    )  # fmt: skip
    assert there_and_back(job) == job


def test_errors_survive():
    error = wire.load_error(wire.dump_error(errors.NotSatisfiable("m", reason="R", field="f")))
    assert (type(error), str(error), error.reason, error.field) == (errors.NotSatisfiable, "m", "R", "f")
    # One that the other end does not know by name comes as what it is a kind of.
    assert type(wire.load_error(wire.dump_error(ServerRefused("m")))) is errors.PermissionDenied


def test_lines_in_any_pieces():
    ours, theirs = socket.socketpair()
    lines = b"".join(wire.encode("k", text="x\n" * number) for number in range(20))

    def send():
        with theirs:
            for at in range(0, len(lines), 7):
                theirs.sendall(lines[at : at + 7])
            theirs.sendall(b'{"kind": "half')

    threading.Thread(target=send).start()
    with ours:
        assert [message["text"].count("\n") for message in wire.messages(ours)] == list(range(20))
