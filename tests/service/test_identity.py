"""Who calls, one test per rule, on real sockets: whatever is not surely somebody's is nobody's."""

from __future__ import annotations

import os
import pwd
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import grpc.aio
import pytest

from gpusched.scheduler.identity import (
    Caller,
    PeerIdentifier,
    UnknownCaller,
    process_start_ticks,
    process_uid,
    user_name,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def peer_of(client: socket.socket) -> str:
    """What grpc would call this client."""
    host, port = client.getsockname()[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


@contextmanager
def pair(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected client and the server's end of it."""
    with socket.create_connection(listener.getsockname()[:2], timeout=5) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(5)
            yield client, server


@contextmanager
def client_of_user(uid: int, listener: socket.socket, *, close: bool = False) -> Iterator[tuple[str, socket.socket]]:
    """A client in a process of another user; it keeps its socket, or closes it at once and stays alive."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(uid)
            os.setuid(uid)
            client = socket.create_connection(listener.getsockname()[:2], timeout=5)
            if close:
                client.close()
            time.sleep(60)
        finally:
            os._exit(0)
    try:
        server, address = listener.accept()
        with server:
            server.settimeout(5)
            yield f"ipv4:{address[0]}:{address[1]}", server
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def refusal(identifier: PeerIdentifier, peer: str) -> str:
    with pytest.raises(UnknownCaller) as caught:
        identifier.identify(peer)
    return str(caught.value)


def test_own_user_is_found(listener: socket.socket) -> None:
    with pair(listener) as (client, _):
        caller = PeerIdentifier(port_of(listener)).identify(peer_of(client))
    assert caller == Caller(os.geteuid(), pwd.getpwuid(os.geteuid()).pw_name)


@as_root
def test_another_user_is_found_and_not_the_servers_own(listener: socket.socket) -> None:
    with client_of_user(12345, listener) as (peer, _):
        assert PeerIdentifier(port_of(listener)).identify(peer) == Caller(12345, user_name(12345))


@as_root
def test_closing_client_of_another_user_is_refused(listener: socket.socket) -> None:
    """The trap: once its owner has closed it, the socket is reported without an owner, by many kernels as root's."""
    identifier = PeerIdentifier(port_of(listener))
    with client_of_user(12345, listener, close=True) as (peer, server):
        assert server.recv(1) == b""  # the FIN is here; our own end stays open
        assert "closing" in refusal(identifier, peer)


@pytest.mark.parametrize("state", range(13))
@pytest.mark.parametrize("inode", [0, 4711])
def test_only_an_established_socket_with_an_inode_tells_who_calls(
    state: int, inode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever uid this or another kernel reports for the rest, root's included."""
    monkeypatch.setattr(PeerIdentifier, "_query", lambda *_: (state, 0, inode))
    identifier = PeerIdentifier(9123)
    if state == 1 and inode:
        assert identifier.identify("ipv4:127.0.0.1:80") == Caller(0, "root")
    else:
        assert "closing" in refusal(identifier, "ipv4:127.0.0.1:80")


def test_orphan_in_fin_wait_is_refused(listener: socket.socket) -> None:
    with pair(listener) as (client, server):
        peer = peer_of(client)
        client.close()
        assert server.recv(1) == b""
        assert "closing" in refusal(PeerIdentifier(port_of(listener)), peer)


def test_orphan_in_time_wait_is_refused(listener: socket.socket) -> None:
    with pair(listener) as (client, server):
        peer = peer_of(client)
        client.close()
        assert server.recv(1) == b""
        server.close()  # its FIN moves the client's end on to TIME_WAIT
        refusal(PeerIdentifier(port_of(listener)), peer)


def test_half_closed_client_is_refused(listener: socket.socket) -> None:
    with pair(listener) as (client, server):
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        assert "closing" in refusal(PeerIdentifier(port_of(listener)), peer_of(client))


def test_client_closed_by_the_server_is_refused(listener: socket.socket) -> None:
    with pair(listener) as (client, server):
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""  # CLOSE_WAIT
        assert "closing" in refusal(PeerIdentifier(port_of(listener)), peer_of(client))


def test_reset_connection_is_refused(listener: socket.socket) -> None:
    with pair(listener) as (client, server):
        peer = peer_of(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        assert "not known" in refusal(PeerIdentifier(port_of(listener)), peer)


def test_client_still_connecting_is_refused() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())  # fills the backlog, so that the next one's SYN is dropped
        second.setblocking(False)
        with suppress(BlockingIOError):
            second.connect(full.getsockname())
        assert second.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x02", "not in SYN_SENT"
        refusal(PeerIdentifier(port_of(full)), peer_of(second))


def test_listener_on_the_clients_port_is_refused(listener: socket.socket) -> None:
    """The kernel falls back to a listener when no connection matches."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        refusal(PeerIdentifier(port_of(listener)), peer_of(other))


def test_connection_to_another_port_is_refused(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pair(listener) as (client, _):
        refusal(PeerIdentifier(port_of(other)), peer_of(client))


def test_unknown_connection_is_refused(listener: socket.socket) -> None:
    with pair(listener) as (client, _):
        peer = peer_of(client)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        peer = peer_of(unused)
        refusal(PeerIdentifier(port_of(listener)), peer)


def test_servers_own_end_is_not_asked_for(listener: socket.socket) -> None:
    """Direction matters: of the two sockets of a loopback connection only the client's tells who calls."""
    with pair(listener) as (client, _):
        identifier = PeerIdentifier(peer_port := client.getsockname()[1])
        assert peer_port != port_of(listener)
        assert identifier.identify(f"ipv4:127.0.0.1:{port_of(listener)}")  # the reversed 4-tuple is the accepted end
        assert PeerIdentifier(port_of(listener)).identify(peer_of(client))


@as_root
def test_nobody_is_refused(listener: socket.socket) -> None:
    with client_of_user(65534, listener) as (peer, _):
        assert "65534" in refusal(PeerIdentifier(port_of(listener)), peer)


def test_ipv6_loopback_is_found() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no ::1 here")
    listener.settimeout(5)
    with listener, pair(listener) as (client, _):
        identifier = PeerIdentifier(port_of(listener))
        assert identifier.identify(peer_of(client)).uid == os.geteuid()
        assert identifier.identify(f"ipv6:[::1]:{client.getsockname()[1]}").uid == os.geteuid()


@pytest.mark.parametrize("peer_form", ["ipv6:%5B::ffff:127.0.0.1%5D:{port}", "ipv6:[::ffff:127.0.0.1]:{port}"])
def test_mapped_ipv4_of_a_dual_stack_listener_is_found(peer_form: str) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no dual-stack sockets here")
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        socket.create_connection(("127.0.0.1", port_of(listener)), timeout=5) as client,
    ):
        peer = peer_form.format(port=client.getsockname()[1])
        assert PeerIdentifier(port_of(listener)).identify(peer).uid == os.geteuid()


def test_client_with_an_ipv6_socket_on_a_mapped_address_is_found(listener: socket.socket) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no dual-stack sockets here")
    with socket.socket(socket.AF_INET6) as client:
        client.connect(("::ffff:127.0.0.1", port_of(listener)))
        peer = f"ipv4:127.0.0.1:{client.getsockname()[1]}"
        assert PeerIdentifier(port_of(listener)).identify(peer).uid == os.geteuid()


def test_another_loopback_address_is_found(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname(), timeout=5, source_address=("127.0.0.9", 0)) as client:
        assert PeerIdentifier(port_of(listener)).identify(peer_of(client)).uid == os.geteuid()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_what_grpc_calls_its_peers_is_understood(host: str) -> None:
    """Pins the form of `context.peer()`, which is no documented interface."""
    callers: list[Caller] = []

    async def who(_request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        callers.append(PeerIdentifier(port).identify(context.peer()))
        return b""

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(who)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Who", {"Am": handler}),))
    try:
        port = server.add_insecure_port(f"{host}:0")
    except RuntimeError:
        pytest.skip(f"no {host} here")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
            await channel.unary_unary("/test.Who/Am")(b"", timeout=10)
    finally:
        await server.stop(0)
    assert callers == [Caller(os.geteuid(), user_name(os.geteuid()))]


@pytest.mark.parametrize(
    "peer",
    [
        "",
        "unix:",
        "unix:/run/gpusched.sock",
        "unix-abstract:gpusched",
        "ipv4:",
        "ipv4:127.0.0.1",
        "ipv4:127.0.0.1:",
        "ipv4:127.0.0.1:0",
        "ipv4:127.0.0.1:65536",
        "ipv4:127.0.0.1:-1",
        "ipv4:127.0.0.1:80 ",
        "ipv4:127.0.0.1:80\n",
        "ipv4:127.0.0.1:٨٠",
        "ipv4:127.1:80",
        "ipv4:[127.0.0.1]:80",
        "ipv4:localhost:80",
        "ipv6:::1:80",
        "ipv6:[::1]",
        "ipv6:[::1%25lo]:80",
        "ipv6:[::g]:80",
        "ipv6:%5B::1%5D:99999",
        "\0",
        "x" * 100_000,
    ],
)
def test_garbage_is_refused(peer: str) -> None:
    assert len(refusal(PeerIdentifier(9), peer)) < 200


@pytest.mark.parametrize(
    "peer",
    ["ipv4:10.0.0.1:80", "ipv4:0.0.0.0:80", "ipv6:[fe80::1]:80", "ipv6:[::ffff:10.0.0.1]:80", "ipv6:[::]:80"],
)
def test_other_machines_are_refused(peer: str) -> None:
    assert "another machine" in refusal(PeerIdentifier(9), peer)


def test_goes_on_after_its_netlink_socket_broke(listener: socket.socket) -> None:
    with pair(listener) as (client, _):
        identifier = PeerIdentifier(port_of(listener))
        identifier.identify(peer_of(client))
        assert identifier._socket is not None
        identifier._socket.close()
        assert identifier.identify(peer_of(client)).uid == os.geteuid()


def test_answer_about_another_socket_is_refused(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the kernel's look-up finds instead, only the connection asked about tells who calls."""
    with pair(listener) as (one, _), pair(listener) as (other, _):
        identifier = PeerIdentifier(port_of(listener))
        ask = identifier._exchange
        kept: list[bytes] = []

        def remember(body: bytes) -> bytes | None:
            kept.append(ask(body) or b"")
            return kept[0]

        monkeypatch.setattr(identifier, "_exchange", remember)
        assert identifier.identify(peer_of(one))
        assert "not known" in refusal(identifier, peer_of(other))


def test_late_answer_to_an_older_question_is_passed_over(listener: socket.socket) -> None:
    with pair(listener) as (client, _):
        identifier = PeerIdentifier(port_of(listener))
        identifier.identify(peer_of(client))
        assert identifier._socket is not None
        # A question of sequence 7 about nothing, whose answer (an error) nobody has read.
        body = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + b"\0" * 40 + b"\xff" * 8
        identifier._socket.sendto(struct.pack("=IHHII", 16 + len(body), 20, 1, 7, 0) + body, (0, 0))
        assert identifier.identify(peer_of(client)).uid == os.geteuid()


def test_a_kernel_that_cannot_be_asked_vouches_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise PermissionError(1, "no netlink in this sandbox")

    monkeypatch.setattr(PeerIdentifier, "_exchange", refuse)
    assert "no netlink" in refusal(PeerIdentifier(9), "ipv4:127.0.0.1:80")


def test_one_query_is_quick_enough_for_the_event_loop(listener: socket.socket) -> None:
    with pair(listener) as (client, _):
        identifier, peer = PeerIdentifier(port_of(listener)), peer_of(client)
        best = float("inf")
        for _attempt in range(50):
            start = time.perf_counter()
            identifier.identify(peer)
            best = min(best, time.perf_counter() - start)
    assert best < 0.001  # some 10 µs; the bound only catches another kind of look-up


def test_users_without_a_name_are_called_by_their_number() -> None:
    assert user_name(0) == "root"
    assert user_name(3_999_999_999) == "3999999999"


def test_process_uid_and_start() -> None:
    assert process_uid(os.getpid()) == os.getuid()
    assert process_start_ticks(os.getpid()) == process_start_ticks(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = process_start_ticks(child.pid)
        assert started is not None and started >= (process_start_ticks(os.getpid()) or 0)
        child.communicate()
    assert process_uid(child.pid) is None
    assert process_start_ticks(child.pid) is None


def test_process_start_survives_a_nasty_command_name() -> None:
    script = "import sys; open('/proc/self/comm', 'w').write(') S 1 2 (x'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        started = process_start_ticks(child.pid)
        assert started is not None and abs(started - (process_start_ticks(os.getpid()) or 0)) < 10_000_000
        assert started >= (process_start_ticks(os.getpid()) or 0)
        child.communicate()


@as_root
def test_process_uid_of_another_user() -> None:
    with subprocess.Popen(["/bin/sleep", "60"], user=12345) as child:
        assert process_uid(child.pid) == 12345
        child.kill()


def test_no_process() -> None:
    assert process_uid(2**22 + 1) is None
    assert process_start_ticks(-1) is None
