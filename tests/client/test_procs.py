import os
import subprocess
import sys
from pathlib import Path

from gpusched.client import procs
from support.waiting import wait_until


def test_ourselves():
    assert procs.start_ticks(os.getpid()) > 0
    assert procs.parent(os.getpid()) == os.getppid()
    chain = list(procs.ancestors(os.getpid()))
    assert chain[:2] == [os.getpid(), os.getppid()]
    assert procs.alive(os.getpid())


def test_nobody():
    assert procs.start_ticks(2**22 + 1) is None
    assert procs.parent(2**22 + 1) is None
    assert not procs.alive(2**22 + 1)
    assert not procs.has_open(2**22 + 1, "/dev/null")


def test_a_name_with_spaces_and_parentheses(tmp_path):
    program = tmp_path / "a) R (b"
    program.symlink_to(sys.executable)
    child = subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: ") R (" in Path(f"/proc/{child.pid}/stat").read_text())
        assert procs.parent(child.pid) == os.getpid()
    finally:
        child.communicate(b"\n")


def test_a_zombie_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        wait_until(lambda: not procs.alive(child.pid))
        assert procs.start_ticks(child.pid) is not None
    finally:
        child.wait()


def test_open_files(tmp_path):
    path = tmp_path / "f"
    assert not procs.has_open(os.getpid(), str(path))
    with path.open("w"):
        assert procs.has_open(os.getpid(), str(path))
