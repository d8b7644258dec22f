"""Who a process is, from /proc: against real processes, and against made-up ones where the kernel makes none."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gpusched.scheduler.inventory import proc


def test_names_may_hold_parentheses_and_spaces() -> None:
    fields = " ".join(str(number) for number in range(5, 53))
    stat = proc.parse_stat(f"4242 (a) b (c 7 S) S 17 {fields}")
    assert (stat.pid, stat.command, stat.ppid, stat.start_ticks) == (4242, "a) b (c 7 S", 17, 22)


@pytest.mark.parametrize("text", ["", "12 python S 1", "12 (python) S 1", "x (python) " + "1 " * 30, ") 1 ("])
def test_what_is_no_stat_line(text: str) -> None:
    with pytest.raises(ValueError):
        proc.parse_stat(text)


def test_myself() -> None:
    seen = proc.describe(os.getpid(), 5)
    assert (seen.pid, seen.uid, seen.memory_bytes) == (os.getpid(), os.getuid(), 5)
    assert seen.user == pwd.getpwuid(os.getuid()).pw_name
    assert seen.command == psutil.Process().name()
    hertz = os.sysconf("SC_CLK_TCK")
    assert psutil.boot_time() + seen.start_ticks / hertz == pytest.approx(psutil.Process().create_time(), abs=2)


def test_ancestors_are_those_that_psutil_sees() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            chain = proc.ancestors(child.pid)
            assert [pid for pid, _ in chain[:2]] == [child.pid, os.getpid()]
            parents = [parent.pid for parent in psutil.Process(child.pid).parents()]
            assert [pid for pid, _ in chain[1:]] == [pid for pid in parents if pid > 0]
            starts = [start for _, start in chain]
            assert starts == sorted(starts, reverse=True)
        finally:
            child.kill()


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait(30)
    seen = proc.describe(child.pid, 7)
    assert (seen.user, seen.command, seen.ancestors, seen.memory_bytes) == ("?", "?", (), 7)
    assert proc.ancestors(child.pid) == ()


def test_a_zombie_is_still_somebody() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert proc.describe(child.pid).ancestors[1][0] == os.getpid()
    finally:
        child.wait(30)


def _made_up(root: Path, pid: int, ppid: int, start: int, command: str = "sh", cmdline: bytes = b"") -> None:
    folder = root / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"{pid} ({command}) S {ppid} " + " ".join(["0"] * 17) + f" {start} 0 0")
    (folder / "cmdline").write_bytes(cmdline)


def test_the_chain_ends_at_the_top_of_the_namespace(tmp_path: Path) -> None:
    _made_up(tmp_path, 1, 0, 10)
    _made_up(tmp_path, 20, 1, 30)
    _made_up(tmp_path, 40, 20, 50)
    assert proc.ancestors(40, tmp_path) == ((40, 50), (20, 30), (1, 10))


def test_a_stranger_under_a_dead_parents_pid_is_no_ancestor(tmp_path: Path) -> None:
    _made_up(tmp_path, 1, 0, 10)
    _made_up(tmp_path, 20, 1, 9000)
    _made_up(tmp_path, 40, 20, 50)
    assert proc.ancestors(40, tmp_path) == ((40, 50),)


def test_a_circle_ends(tmp_path: Path) -> None:
    _made_up(tmp_path, 20, 40, 50)
    _made_up(tmp_path, 40, 20, 50)
    assert proc.ancestors(40, tmp_path)[:2] == ((40, 50), (20, 50))


def test_a_broken_walk_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _made_up(tmp_path, 1, 0, 10)
    _made_up(tmp_path, 40, 20, 50)  # its parent, 20, died during the walk…
    real, reads = proc.read_stat, []

    def read_stat(pid: int, root: Path) -> proc.Stat | None:
        reads.append(pid)
        if pid == 20:
            _made_up(tmp_path, 40, 1, 50)  # …and pid 1 takes the child
        return real(pid, root)

    monkeypatch.setattr(proc, "read_stat", read_stat)
    assert proc.ancestors(40, tmp_path) == ((40, 50), (1, 10))
    assert reads == [40, 20, 40, 1]


@pytest.mark.parametrize(
    ("command", "cmdline", "shown"),
    [
        ("nvidia-cuda-mps", b"/usr/bin/nvidia-cuda-mps-server\0-f\0", "nvidia-cuda-mps-server"),
        ("nvidia-cuda-mps", b"", "nvidia-cuda-mps"),
        ("pt_data_worker_", b"python\0train.py\0", "pt_data_worker_"),
        ("python", b"/opt/python3.11\0", "python"),
        ("a\x1b[2Jb\nc", b"", "a?[2Jb?c"),
        ("", b"", "?"),
    ],
)
def test_names(tmp_path: Path, command: str, cmdline: bytes, shown: str) -> None:
    _made_up(tmp_path, 40, 0, 50, command, cmdline)
    assert proc.describe(40, root=tmp_path).command == shown


def test_an_unknown_owner(tmp_path: Path) -> None:
    _made_up(tmp_path, 40, 0, 50)
    assert (proc.describe(40, root=tmp_path).uid, proc.describe(40, root=tmp_path).user) == (-1, "?")
    (tmp_path / "40" / "status").write_text("Name:\tsh\nUid:\t3999999999\t0\t0\t0\n")
    assert proc.describe(40, root=tmp_path).user == "3999999999"
