"""Autostart with a stand-in for the server, so that every way it can go wrong can be had."""

import multiprocessing
import os
import socket
import stat
import sys
import time

import pytest

from gpusched.client import autostart
from gpusched.client.autostart import AutostartFailed, ensure_server, state_dir

PYTHON = sys.executable

# Stands in for `python`: what is started listens on the port after a moment, and leaves a line in a file.
STAND_IN = """#!{python}
import os, socket, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
assert sys.argv[1:6] == ["-P", "-m", "gpusched.scheduler", "serve", "--detach"], sys.argv
with open({log!r}, "a") as log:
    log.write("started\\n")
{body}
"""
SERVES = """
sock = socket.socket()
time.sleep(0.2)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", port)); sock.listen(50)
pid = os.fork()
if pid == 0:
    os.setsid()
    while not os.path.exists({stop!r}): time.sleep(0.05)
    os._exit(0)
print(f"gpusched: serving on 127.0.0.1:{{port}} (pid {{pid}}, log /x/y.log)")
"""


@pytest.fixture
def address():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("GPUSCHED_AUTOSTART", raising=False)
    program, log, stop = tmp_path / "python", tmp_path / "starts", tmp_path / "stop"

    def install(body):
        text = STAND_IN.format(python=PYTHON, log=str(log), body=body.replace("{stop!r}", repr(str(stop)))
                               .replace("{{", "{").replace("}}", "}"))  # fmt: skip
        program.write_text(text)
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    install.starts = lambda: len(log.read_text().splitlines()) if log.exists() else 0
    yield install
    stop.touch()


def test_nothing_is_done_when_somebody_listens(stand_in, tmp_path):
    stand_in("raise SystemExit(1)")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        ensure_server(f"127.0.0.1:{sock.getsockname()[1]}", pytest.fail)
    assert stand_in.starts() == 0
    assert not (tmp_path / "state").exists()


def test_one_is_started_and_said_so(stand_in, address, tmp_path):
    stand_in(SERVES)
    said = []
    ensure_server(address, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"gpusched: no scheduler was running; started one on {address} (pid ")
    assert said[0].endswith(", log /x/y.log)")
    assert stat.S_IMODE(os.stat(tmp_path / "state").st_mode) == 0o700
    ensure_server(address, said.append)
    assert len(said) == 1
    assert stand_in.starts() == 1


def _race(address, barrier, results):
    said = []
    barrier.wait()
    ensure_server(address, said.append)
    results.put(len(said))


def test_ten_racing_clients_start_one(stand_in, address):
    stand_in(SERVES)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(10), context.Queue()
    clients = [context.Process(target=_race, args=(address, barrier, results)) for _ in range(10)]
    for client in clients:
        client.start()
    said = [results.get(timeout=30) for _ in clients]
    for client in clients:
        client.join(10)
    assert sorted(said) == [0] * 9 + [1]
    assert stand_in.starts() == 1


TAKEN = """
print("gpusched: another gpusched scheduler (pid 1) uses the state directory /x; stop it", file=sys.stderr)
sys.stderr.flush()
if {listens}:
    if os.fork() == 0:
        sys.stdout = sys.stderr = None
        os.close(1); os.close(2)
        time.sleep(0.3)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port)); sock.listen(50)
        while not os.path.exists({stop!r}): time.sleep(0.05)
        os._exit(0)
raise SystemExit(1)
"""


def test_somebody_elses_start_is_waited_for(stand_in, address):
    """It has the state directory, and does not listen yet: `gpusched serve` was typed this very moment."""
    said = []
    stand_in(TAKEN.replace("{listens}", "True"))
    ensure_server(address, said.append)
    assert said == []
    assert autostart._accepts("127.0.0.1", int(address.rpartition(":")[2]))


def test_a_scheduler_that_listens_elsewhere_is_not_waited_for_long(stand_in, address, monkeypatch):
    monkeypatch.setattr(autostart, "_TAKEN_SECONDS", 0.2)
    stand_in(TAKEN.replace("{listens}", "False"))
    with pytest.raises(AutostartFailed, match="could not be started: another gpusched scheduler"):
        ensure_server(address, lambda line: None)


def test_the_servers_own_words_are_passed_on(stand_in, address):
    stand_in("print('gpusched: no NVIDIA driver here; try --simulate 8', file=sys.stderr); raise SystemExit(3)")
    with pytest.raises(AutostartFailed, match="could not be started: no NVIDIA driver here; try --simulate 8"):
        ensure_server(address, pytest.fail)


def test_a_silent_failure_and_a_lie_are_told(stand_in, address):
    stand_in("raise SystemExit(7)")
    with pytest.raises(AutostartFailed, match="ended with status 7"):
        ensure_server(address, pytest.fail)
    stand_in("raise SystemExit(0)")
    with pytest.raises(AutostartFailed, match="nothing listens"):
        ensure_server(address, pytest.fail)


def test_a_server_that_hangs_is_given_up(stand_in, address):
    stand_in("time.sleep(30)")
    began = time.monotonic()
    with pytest.raises(AutostartFailed, match="too long"):
        ensure_server(address, pytest.fail, timeout=1.0)
    assert time.monotonic() - began < 10


def test_not_wanted(stand_in, address, monkeypatch):
    stand_in("raise SystemExit(1)")
    ensure_server("192.0.2.1:9123", pytest.fail)
    ensure_server(address.replace("127.0.0.1", "[::1]"), pytest.fail)
    monkeypatch.setenv("GPUSCHED_AUTOSTART", "0")
    ensure_server(address, pytest.fail)
    assert stand_in.starts() == 0


def test_a_state_directory_that_cannot_be(stand_in, address, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(AutostartFailed, match="Not a directory"):
        ensure_server(address, pytest.fail)


def test_state_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("GPUSCHED_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_dir() == tmp_path / "gpusched"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_dir() == tmp_path / ".local" / "state" / "gpusched"


def test_imports_stay_light():
    import subprocess

    check = (
        "import sys, gpusched.client, gpusched.client.autostart, gpusched.client.serveruser, gpusched.client.units, "
        "gpusched.client.errors; heavy = {'grpc', 'google.protobuf', 'asyncio'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", check], check=True, env=os.environ)
    assert autostart.DEFAULT_HOST == "127.0.0.1"
