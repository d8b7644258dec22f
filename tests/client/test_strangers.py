"""What answers may be nobody, silent, a web server, or another service; and a scheduler may have to be started."""

import asyncio
import http.server
import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from gpusched.client import Client, GpuschedError, ServerMismatch, ServerUnavailable, acquire, aio, connect
from gpusched.client.autostart import AutostartFailed
from gpusched.client.errors import PermissionDenied
from gpusched.v1 import scheduler_pb2, scheduler_pb2_grpc
from support.scripts import Script
from support.server import clean_environment, free_port


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("GPUSCHED_AUTOSTART", "0")
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def silent_listener(monkeypatch):
    monkeypatch.setenv("GPUSCHED_AUTOSTART", "0")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(50)
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def web_server(monkeypatch):
    monkeypatch.setenv("GPUSCHED_AUTOSTART", "0")

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def other_service(monkeypatch):
    """A gRPC server; without arguments one that knows none of our calls."""
    monkeypatch.setenv("GPUSCHED_AUTOSTART", "0")
    servers = []

    def start(servicer=None):
        server = grpc.server(ThreadPoolExecutor(4))
        if servicer is not None:
            scheduler_pb2_grpc.add_SchedulerServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


async def via_aio(address):
    async with aio.acquire(url=address):
        pass


WAYS = {
    "client": lambda address: connect(address),
    "acquire": lambda address: acquire(url=address).start(),
    "aio client": lambda address: asyncio.run(aio.connect(address)),
    "aio acquire": lambda address: asyncio.run(via_aio(address)),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@every_way
def test_nobody(way, address):
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=f"no scheduler answers at {address}.*gpusched serve"):
        way(address)
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_silence(silent_listener):
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        failures = [pool.submit(WAYS[way], silent_listener) for way in ("client", "acquire")]
    for failure in failures:
        with pytest.raises(ServerUnavailable, match=f"no scheduler answers at {silent_listener}: "):
            failure.result()
    assert time.monotonic() - began < 12


@pytest.mark.slow
@every_way
def test_a_web_server(way, web_server):
    with pytest.raises(GpuschedError) as caught:
        way(web_server)
    assert isinstance(caught.value, (ServerMismatch, ServerUnavailable))
    assert web_server in str(caught.value) or "not gpusched" in str(caught.value)


@every_way
def test_another_grpc_service(way, other_service):
    with pytest.raises(ServerMismatch, match="another version of gpusched, or not gpusched at all"):
        way(other_service())


def test_another_service_of_the_same_name(other_service):
    class Impostor(scheduler_pb2_grpc.SchedulerServicer):
        def GetStatus(self, request, context):
            return scheduler_pb2.GetStatusResponse(service="somethingelse")

    with pytest.raises(ServerMismatch, match="'somethingelse', not gpusched"):
        acquire(url=other_service(Impostor())).start()


def test_a_server_without_acquire(other_service):
    class Old(scheduler_pb2_grpc.SchedulerServicer):
        def GetStatus(self, request, context):
            return scheduler_pb2.GetStatusResponse(service="gpusched")

    with pytest.raises(ServerMismatch, match="another version"):
        acquire(url=other_service(Old())).start()


def test_a_stream_that_just_ends(other_service):
    class Forgetful(scheduler_pb2_grpc.SchedulerServicer):
        def GetStatus(self, request, context):
            return scheduler_pb2.GetStatusResponse(service="gpusched")

        def Acquire(self, request, context):
            yield scheduler_pb2.AcquireResponse(accepted=scheduler_pb2.Accepted(job_id="1"))
            yield scheduler_pb2.AcquireResponse()  # an event of a later version

    with pytest.raises(GpuschedError, match="ended"):
        acquire(url=other_service(Forgetful())).start()


def test_an_address_that_has_no_name(monkeypatch):
    with pytest.raises(ServerUnavailable), Client("no-such-host.invalid:9", timeout=5) as client:
        client.status()


def test_a_server_of_the_wrong_user(here, monkeypatch):
    monkeypatch.setenv("GPUSCHED_SERVER_USER", "987654")
    with pytest.raises(PermissionDenied, match="GPUSCHED_SERVER_USER allows only 987654"):
        Client()
    with pytest.raises(PermissionDenied, match="GPUSCHED_SERVER_USER allows only 987654"):
        acquire().start()
    monkeypatch.setenv("GPUSCHED_SERVER_USER", "nobody-of-this-name")
    with pytest.raises(GpuschedError, match="GPUSCHED_SERVER_USER: 'nobody-of-this-name'"):
        acquire().start()


# -- starting one --------------------------------------------------------------------------------------------

RACER = """
    import sys
    from gpusched.client import acquire
    sys.stdin.readline()
    with acquire(on_update=lambda update: None) as lease:
        print("held", lease.job_id)
        sys.stdin.readline()
"""


@pytest.fixture
def autostart(tmp_path):
    """An environment in which a simulated scheduler may be started; it is stopped at the end."""
    port = free_port()
    env = clean_environment(GPUSCHED_PORT=str(port), GPUSCHED_STATE_DIR=str(tmp_path / "state"), GPUSCHED_SIMULATE="16")
    yield env
    stop = [os.sys.executable, "-m", "gpusched.scheduler", "stop", "--state-dir", str(tmp_path / "state")]
    subprocess.run(stop, env=env, check=False, capture_output=True, timeout=30)
    assert os.system(f"test -z \"$(ss -Hltn 'sport = :{port}' 2>/dev/null)\"") == 0


@pytest.mark.slow
def test_ten_racing_clients_start_one_scheduler(autostart):
    scripts = [Script(RACER, autostart) for _ in range(10)]
    try:
        for script in scripts:
            script.say()
        jobs = {script.line(60) for script in scripts}
        assert len(jobs) == 10  # all of one scheduler: its job numbers differ
        for script in scripts:
            script.say()
        assert [script.wait() for script in scripts] == [0] * 10
        said = [script.errors for script in scripts if "no scheduler was running" in script.errors]
        assert len(said) == 1
        assert f"started one on 127.0.0.1:{autostart['GPUSCHED_PORT']}" in said[0]
    finally:
        for script in scripts:
            script.__exit__(None, None, None)


def test_a_scheduler_that_cannot_be_started(autostart):
    code = """
        from gpusched.client import acquire, ServerUnavailable
        try:
            acquire().start()
        except ServerUnavailable as error:
            print(str(error).replace("\\n", " "))
    """
    env = {name: value for name, value in autostart.items() if name != "GPUSCHED_SIMULATE"}
    with Script(code, env | {"GPUSCHED_SIMULATE": "nonsense"}) as script:
        line = script.line()
        assert "could not be started" in line
        assert "nonsense" in line
        assert "Traceback" not in line
        assert issubclass(AutostartFailed, ServerUnavailable)
