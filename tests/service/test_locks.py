"""One scheduler per state directory and per GPU, with real processes where it matters."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpusched.scheduler.locks import LOCK_NAME, StartRefused, lock_gpus, lock_state_dir, read_running
from support.waiting import wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has said a line after running `code`, and stays until it is killed."""
    script = f"import sys, time\nfrom pathlib import Path\n{code}\nprint('ready', flush=True)\ntime.sleep(60)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stdout is not None and running.stdout.readline() == "ready\n"
            yield running
        finally:
            running.kill()


HOLD_STATE = """
from gpusched.scheduler.locks import lock_state_dir
lock = lock_state_dir(Path(sys.argv[1]))
lock.announce("127.0.0.1:4711")
"""
HOLD_GPU = """
from gpusched.scheduler.locks import lock_gpus
lock = lock_gpus(sys.argv[1:])
"""


def refusal(path: Path, **arguments: str) -> str:
    with pytest.raises(StartRefused) as caught:
        lock_state_dir(path, **arguments).release()
    return str(caught.value)


def gpu() -> str:
    return f"GPU-{uuid.uuid4()}"


def test_makes_a_private_directory_and_says_who_runs(tmp_path: Path) -> None:
    path = tmp_path / "state" / "gpusched"
    assert read_running(path) is None
    with lock_state_dir(path) as lock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        running = read_running(path)
        assert running is not None and (running.pid, running.address) == (os.getpid(), "")
        lock.announce("127.0.0.1:9123")
        running = read_running(path)
        assert running is not None and running.address == "127.0.0.1:9123" and running.start_ticks > 0
    assert read_running(path) is None


def test_a_second_scheduler_is_refused_and_told_about_the_first(tmp_path: Path) -> None:
    with process(HOLD_STATE, str(tmp_path)) as other:
        message = refusal(tmp_path)
        assert f"another gpusched scheduler (pid {other.pid}, 127.0.0.1:4711) uses the state directory" in message
        assert str(tmp_path) in message


def test_kill_9_frees_the_directory_at_once(tmp_path: Path) -> None:
    with process(HOLD_STATE, str(tmp_path)) as other:
        assert read_running(tmp_path) is not None
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert read_running(tmp_path) is None  # although the file still names it
        lock_state_dir(tmp_path).release()


def test_programs_started_by_the_holder_do_not_keep_the_lock(tmp_path: Path) -> None:
    lock = lock_state_dir(tmp_path)
    with subprocess.Popen(["/bin/sleep", "60"], close_fds=False) as child:
        try:
            lock.release()
            # Popen may return an instant before the kernel closes what exec is to close.
            wait_until(lambda: read_running(tmp_path) is None)
            assert child.poll() is None
        finally:
            child.kill()


def test_looking_never_gets_in_the_way_of_a_start(tmp_path: Path) -> None:
    lock_state_dir(tmp_path).release()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            read_running(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(300):
            lock_state_dir(tmp_path).release()
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_exactly_one_of_many_starters_wins(tmp_path: Path) -> None:
    won = []

    def start() -> None:
        try:
            won.append(lock_state_dir(tmp_path / "state"))
        except StartRefused:
            pass

    starters = [threading.Thread(target=start) for _ in range(10)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(won) == 1
    won[0].release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\0" * 50])
def test_an_unreadable_record_of_a_live_holder_still_counts(tmp_path: Path, text: str) -> None:
    with process(HOLD_STATE, str(tmp_path)):
        (tmp_path / LOCK_NAME).write_text(text)
        running = read_running(tmp_path)
        assert running is not None and running.pid == 0
        assert "another gpusched scheduler uses" in refusal(tmp_path)


def test_a_shorter_record_replaces_a_longer_one(tmp_path: Path) -> None:
    with lock_state_dir(tmp_path) as lock:
        for address in ("127.0.0.1:" + "9" * 300, "127.0.0.1:1"):
            lock.announce(address)
            running = read_running(tmp_path)
            assert running is not None and running.address == address


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    message = refusal(tmp_path)
    assert f"{mode:04o}" in message and "chmod go-w" in message


@as_root
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    assert "belongs to 12345, not to root" in refusal(path)


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be used" in refusal(tmp_path / "file")
    assert "cannot be used" in refusal(tmp_path / "file" / "below")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "file")
    assert "cannot be used" in refusal(tmp_path)


MOUNTS = """\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /home rw - autofs auto.home rw
31 27 0:41 / /home/alice rw,relatime shared:9 master:1 - {kind} server:/export rw,vers=4.2
32 27 0:42 / /home/alice/local\\040disk rw - ext4 /dev/vdb rw
33 27 0:43 / /over rw - nfs4 server:/over rw
34 27 0:44 / /over rw - tmpfs tmpfs rw
broken line
"""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "ceph", "gpfs"])
def test_network_file_systems_are_refused_before_anything_is_made(kind: str) -> None:
    message = refusal(Path("/home/alice/state"), mountinfo=MOUNTS.format(kind=kind))
    assert message == (
        f"state directory /home/alice/state is on {kind}, where SQLite's WAL is unsafe; choose a local one with "
        "--state-dir or GPUSCHED_STATE_DIR"
    )
    assert not Path("/home/alice/state").exists()


@pytest.mark.parametrize("path", ["/home/alicette", "/home/alice/local disk/x", "/over/x", "/srv"])
def test_mounts_are_told_apart(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer name, a disk mounted inside, and a mount on top of another one are all local."""

    def made(*_: object, **__: object) -> None:
        raise OSError(30, "would be made")

    monkeypatch.setattr(Path, "mkdir", made)
    assert "cannot be used" in refusal(Path(path), mountinfo=MOUNTS.format(kind="nfs4"))


def test_a_link_to_a_network_file_system_is_refused(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    (tmp_path / "link").symlink_to(remote)
    mounts = MOUNTS.format(kind="nfs4") + f"40 27 0:50 / {remote} rw - nfs4 server:/x rw\n"
    assert "is on nfs4" in refusal(tmp_path / "link" / "state", mountinfo=mounts)


def test_no_mount_table_is_no_obstacle(tmp_path: Path) -> None:
    lock_state_dir(tmp_path, mountinfo="").release()


def test_lock_file_kept_by_flock_of_others_is_not_ours(tmp_path: Path) -> None:
    """Only a scheduler's own kind of lock counts, so that `flock(1)` on the file fools nobody."""
    lock_state_dir(tmp_path).release()
    with open(tmp_path / LOCK_NAME) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert read_running(tmp_path) is None


def test_a_gpu_is_managed_once_and_the_other_is_named() -> None:
    name = gpu()
    with process(HOLD_GPU, name) as other:
        for _ in range(5):  # also after its queue has seen some questions
            with pytest.raises(StartRefused) as caught:
                lock_gpus([name])
            assert f"GPU {name} is already managed by another scheduler on this machine" in str(caught.value)
            assert f"(pid {other.pid}, user " in str(caught.value)
        other.kill()
        other.wait()
        lock_gpus([name]).release()


def test_a_refusal_leaves_no_gpu_claimed() -> None:
    taken, free = sorted([gpu(), gpu()], reverse=True)  # the free one is claimed first
    with lock_gpus([taken]):
        with pytest.raises(StartRefused):
            lock_gpus([taken, free])
        lock_gpus([free]).release()


def test_other_gpus_do_not_matter() -> None:
    with lock_gpus([gpu()]), lock_gpus([gpu(), gpu()]), lock_gpus([]):
        pass


def test_a_gpu_named_twice_is_claimed_once() -> None:
    name = gpu()
    with lock_gpus([name, name]):
        pass


def test_gpus_are_free_after_release() -> None:
    name = gpu()
    for _ in range(2):
        lock_gpus([name]).release()


def test_a_name_too_long_for_a_socket_is_refused_in_words() -> None:
    with pytest.raises(StartRefused, match="cannot be claimed"):
        lock_gpus(["GPU-" + "x" * 200])
