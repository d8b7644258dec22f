"""The pieces of gsrun by themselves: options, the live line, messages, process trees."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from gpusched.client.gsrun import tree, wire
from gpusched.client.gsrun.asking import first_request, resources
from gpusched.client.gsrun.line import compose, counted, cut, elapsed, harmless, ordinal, width
from gpusched.client.gsrun.options import Misuse, parse
from gpusched.client.gsrun.words import got, outlook, place
from gpusched.client.usage import UsageError
from gpusched.v1 import job_pb2, resources_pb2, scheduler_pb2
from support.waiting import wait_until

# -- options ---------------------------------------------------------------------------------------------------


def test_options_stop_at_the_command() -> None:
    options = parse(["-n", "2", "python", "-n", "3", "--time", "x"])
    assert (options.gpus, options.command) == (2, ["python", "-n", "3", "--time", "x"])


@pytest.mark.parametrize(
    "words", [["-n3"], ["-n", "3"], ["--gpus", "3"], ["--gpus=3"], ["-vn3"], ["-v", "-n", "3", "--"]]
)
def test_forms_of_an_option(words: list[str]) -> None:
    options = parse([*words, "cmd"])
    assert (options.gpus, options.command) == (3, ["cmd"])


def test_double_dash() -> None:
    assert parse(["--", "-weird", "--", "x"]).command == ["-weird", "--", "x"]


def test_all_values() -> None:
    text = "--time=1h30m --max-wait 90 --gpu-memory 40G --gpu-model H100 --priority=-5 --name=n"
    text += " --immediate --dry-run --leave-children --url localhost:99 -v c"
    options = parse(text.split())
    assert (options.time_limit, options.max_wait, options.gpu_memory_bytes) == (5400, 90, 40 << 30)
    assert (options.gpu_model, options.priority, options.name, options.url) == ("H100", -5, "n", "127.0.0.1:99")
    assert options.immediate and options.dry_run and options.leave_children and options.verbose


def test_what_a_job_says_of_itself() -> None:
    options = parse(["--estimate", "1h30m", "--preemptible", "--signal", "SIGUSR1@2m", "c"])
    request = first_request(options, "here", "id", 1)
    assert (request.estimate.seconds, request.preemptible) == (5400, True)
    assert (request.preempt_signal.name, request.preempt_signal.before.seconds) == ("USR1", 120)
    plain = first_request(parse(["c"]), "here", "id", 1)
    assert not (plain.HasField("estimate") or plain.preemptible or plain.HasField("preempt_signal"))
    for words in ("--estimate 0 c", "--estimate soon c", "--signal @5 c", "--signal USR1@0 c", "--signal INT@100d c"):
        with pytest.raises(UsageError, match=rf"^{words.split()[0]}: "):
            parse(words.split())
    with pytest.raises(Misuse, match="--preemptible takes no value"):
        parse(["--preemptible=yes", "c"])


def test_which_gpus() -> None:
    words = "--gpu-id 0,3 --gpu-id GPU-1 --exclude=2 --constraint disk=nvme --constraint mig=3g.20gb --node a,b"
    options = parse([*words.split(), "--gpus-per-node", "2", "--spread", "c"])
    assert options.where == {
        "gpu_ids": ("0", "3", "GPU-1"),
        "exclude": ("2",),
        "labels": (("disk", "nvme"), ("mig", "3g.20gb")),
        "nodes": ("a", "b"),
        "gpus_per_node": 2,
        "placement": "spread",
    }
    assert options.gpus == 3, "those named, if nothing else is said"
    assert parse(["-n1", "--gpu-id", "0,3", "c"]).gpus == 1
    assert parse(["--pack", "c"]).where == {"placement": "pack"} and parse(["c"]).where == {}
    message = resources(options, "here")
    assert (message.gpus, message.node, dict(message.labels)) == (3, "here", {"disk": "nvme", "mig": "3g.20gb"})
    assert (list(message.nodes), list(message.gpu_ids), list(message.exclude)) == (
        ["a", "b"],
        ["0", "3", "GPU-1"],
        ["2"],
    )
    assert (message.gpus_per_node, message.placement) == (2, resources_pb2.PLACEMENT_SPREAD)


def test_name_of_the_command() -> None:
    assert parse(["/usr/bin/python3", "x"]).name == "python3"
    assert parse(["./evil\x1b[1m\nname"]).name == "evil?[1m?name"


@given(st.lists(st.text(max_size=6), max_size=4))
def test_any_words_are_parsed_or_refused(words: list[str]) -> None:
    try:
        options = parse([word.replace("-h", "").replace("--help", "") for word in words])
    except (UsageError, Misuse):
        return
    except Exception as error:
        assert type(error).__name__ == "HelpAsked"
        return
    assert options.gpus >= 1
    assert options.command or options.dry_run


# -- the line --------------------------------------------------------------------------------------------------


def test_words() -> None:
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]
    )
    assert [elapsed(seconds) for seconds in (0, 59.9, 60, 72, 3600, 7500, 90000)] == (
        ["0s", "59s", "1m 00s", "1m 12s", "1h 00m", "2h 05m", "1d 01h"]
    )
    assert [counted(1, "GPU"), counted(2, "GPU"), counted(3, "process")] == ["1 GPU", "2 GPUs", "3 processes"]


def test_time_waited_is_always_seen() -> None:
    text = "gsrun: 3rd of 7 in the queue · needs 2 GPUs, 1 free; GPU 2 held by bob (train)"
    assert compose(text, 72, 200) == f"{text} · waiting 1m 12s"
    assert compose(text, 72, 50) == "gsrun: 3rd of 7 in the queue · n… · waiting 1m 12s"
    assert len(compose(text, 72, 10)) <= 10


def test_wide_characters() -> None:
    assert width("作业") == 4
    assert cut("作业作业", 5) == "作业…"


@given(st.text(max_size=200), st.integers(0, 120))
def test_line_never_wraps_nor_drives_the_terminal(text: str, columns: int) -> None:
    line = compose(harmless(text), 5.0, columns)
    assert width(line) <= columns
    assert line.isprintable() or not line


# -- messages --------------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_with_descriptors() -> None:
    one, other = (wire.Peer(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    read, write = os.pipe()
    one.send(wire.SAY, "a\0b · c", 7)
    one.send(wire.ASK, 3, fds=(write,))
    messages, fds = other.receive()
    assert messages == [(wire.SAY, ["a b · c", "7"]), (wire.ASK, ["3"])]
    os.write(fds[0], b"x")
    assert os.read(read, 1) == b"x"
    for fd in (read, write, *fds):
        os.close(fd)
    one.sock.close()
    assert other.receive() == ([], [])
    assert other.closed
    other.sock.close()


def test_last_words_arrive_although_the_other_end_left_something_unread() -> None:
    """Linux tells of that with an error of its own, ahead of what waits (a ^C crossed the end that it caused)."""
    one, other = (wire.Peer(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    one.send(wire.STARTED, 17, "4", "GPU 0")
    other.send(wire.SIGNAL, 2, "terminal", "")
    one.send(wire.DONE, 130, 2)
    one.sock.close()
    assert other.receive() == ([(wire.STARTED, ["17", "4", "GPU 0"]), (wire.DONE, ["130", "2"])], [])
    assert other.closed
    other.sock.close()


def test_slow_reader_gets_the_newest_place_and_all_else() -> None:
    """The front may be stopped for a day: the holder neither blocks nor hoards."""
    one, other = (wire.Peer(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    for number in range(20_000):
        one.send(wire.WAIT, f"place {number}")
    one.send(wire.DONE, 0, 0)
    assert one.wants_to_write
    seen: list[tuple[str, list[str]]] = []
    while not seen or seen[-1][0] != wire.DONE:
        messages, _ = other.receive()
        seen += messages
        one.flush()
    assert seen[-2] == (wire.WAIT, ["place 19999"])
    assert len(seen) < 5000
    one.sock.close()
    other.sock.close()


# -- trees -----------------------------------------------------------------------------------------------------


def test_look_up() -> None:
    me = tree.look_up(os.getpid())
    assert me is not None
    assert (me.pid, me.parent, me.dead) == (os.getpid(), os.getppid(), False)
    assert me.start_ticks > 0
    assert tree.look_up(2**22 + 1) is None


def test_strange_process_name() -> None:
    """A name may hold spaces, parentheses and newlines; the fields after it must still be found."""
    rename = "import sys, ctypes; ctypes.CDLL(None).prctl(15, b') S 1 ( x\\n', 0, 0, 0)"
    code = f"{rename}; print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    found = tree.look_up(process.pid)
    assert found is not None
    assert (found.parent, found.name) == (os.getpid(), ") S 1 ( x\n")
    process.communicate(b"")


@pytest.mark.parametrize("listed", [True, False])
def test_descendants(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's lists of children, and by a scan of all processes where it has none."""
    shell = subprocess.Popen(["sh", "-c", "sh -c 'sleep 100 & sleep 100' & wait"])
    if not listed:
        monkeypatch.setattr(tree, "children_of", tree.children_by_scan)
    try:

        def look() -> list[tree.Process] | None:
            all_ = tree.descendants(shell.pid)
            return all_ if sorted(process.name for process in all_) == ["sh", "sleep", "sleep"] else None

        found = wait_until(look, what="a shell and two sleeps")
        spared = tree.descendants(shell.pid, excluded={found[0].identity})
        assert spared == []
        assert tree.is_ancestor(shell.pid, tree.look_up(shell.pid).start_ticks, found[-1].pid)  # type: ignore[union-attr]
        assert not tree.is_ancestor(shell.pid, 1, found[-1].pid)
        assert not tree.is_ancestor(found[-1].pid, found[-1].start_ticks, shell.pid)
    finally:
        tree.signal_all(tree.descendants(shell.pid), signal.SIGKILL)
        shell.kill()
        shell.wait()


def test_signal_does_not_hit_a_later_process() -> None:
    sleeper = subprocess.Popen(["sleep", "100"])
    now = tree.look_up(sleeper.pid)
    assert now is not None
    now.start_ticks -= 1  # as if the id had belonged to another before
    assert tree.send_signal(now, signal.SIGKILL)
    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()


BOMB = """
import os, sys
from gpusched.client.gsrun import linux, tree
linux.become_subreaper()
if os.fork() == 0:
    # Each process of the bomb forks as fast as it can and ends: the tree never holds still.
    for _ in range(4):
        os.fork()
    os.setsid() if os.getpgrp() != os.getpid() else None
    while True:
        if os.fork():
            os._exit(0)
print("up", flush=True)
sys.stdin.readline()
tree.kill_all()
print(len(tree.descendants(os.getpid())), flush=True)
"""


def test_kill_all_catches_what_forks_all_the_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", BOMB], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate("\n", timeout=30)
    assert out.split() == ["up", "0"]


def test_a_waiter_reads_when_it_starts() -> None:
    """The forecast, but of this very minute, and the promise where it is another minute."""
    noon = Timestamp(seconds=int(time.time()) + 600)
    later = Timestamp(seconds=noon.seconds + 3600)
    queued, one = scheduler_pb2.Queued(position=1, total=2), parse(["c"])
    assert place(queued, one) == "gsrun: 1st of 2 in the queue · 1 GPU"
    queued.forecast.FromSeconds(int(time.time()) + 30)
    assert place(queued, one) == "gsrun: 1st of 2 in the queue · 1 GPU"
    queued.forecast.CopyFrom(noon)
    at, by = (time.strftime("%H:%M", time.localtime(moment.seconds)) for moment in (noon, later))
    assert place(queued, one).endswith(f"1 GPU · expected at {at}")
    queued.promise.CopyFrom(noon)
    assert place(queued, one).endswith(f"1 GPU · expected at {at}"), "the same time is said once"
    queued.promise.CopyFrom(later)
    assert place(queued, one).endswith(f"expected at {at} · {by} at the latest")
    dry_run = scheduler_pb2.DryRun(position=3, promise=later)
    assert outlook(dry_run, one) == f"would wait, 3rd in the queue:  ({by} at the latest)"


def test_a_wait_for_no_gpu_names_what_it_is_for() -> None:
    cores, memory = parse(["-n0", "--cpus", "1", "--mem", "2G", "c"]), parse(["-n0", "--mem", "1536M", "c"])
    queued = scheduler_pb2.Queued(position=1, total=2)
    assert place(queued, cores) == "gsrun: 1st of 2 in the queue · 1 core, 2 GiB of memory"
    assert place(queued, memory) == "gsrun: 1st of 2 in the queue · 1.5 GiB of memory"
    now = scheduler_pb2.DryRun(starts_now=True)
    assert outlook(now, cores) == "would start now, with 1 core, 2 GiB of memory"
    assert got([], cores) == "1 core, 2 GiB of memory"
    assert got([job_pb2.AllocatedGpu(index=3)], parse(["c"])) == "GPU 3"


def test_a_dry_run_that_would_not_wait() -> None:
    dry_run = scheduler_pb2.DryRun(position=3, reason=job_pb2.Reason(message="needs 2 GPUs, 0 free"))
    said = "would fail at once, as --immediate asks (status 75): needs 2 GPUs, 0 free"
    assert outlook(dry_run, parse(["--dry-run", "--immediate", "c"])) == said
    dry_run = scheduler_pb2.DryRun(starts_now=True, gpus=[job_pb2.AllocatedGpu(index=3)])
    assert outlook(dry_run, parse(["--dry-run", "--immediate", "c"])) == "would start now, on GPU 3"
