import os
import socket

import pytest

from gpusched.client import serveruser
from gpusched.client.errors import ServerUnavailable
from gpusched.client.serveruser import ServerRefused, check_server_user, listener_uid
from gpusched.client.usage import UsageError

OWN = os.getuid()


@pytest.fixture
def listener():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(serveruser, "_named", set())
    monkeypatch.delenv("GPUSCHED_SERVER_USER", raising=False)


def owned_by(monkeypatch, uid):
    monkeypatch.setattr(serveruser, "listener_uid", lambda address: uid)


def test_the_owner_of_a_real_socket(listener):
    assert listener_uid(listener) == OWN


def test_no_listener_and_no_loopback(listener):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound, not listening
        assert listener_uid(f"127.0.0.1:{sock.getsockname()[1]}") is None
    assert listener_uid("192.0.2.1:80") is None


def test_a_wildcard_listener_counts():
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            sock = socket.socket(family)
        except OSError:
            continue
        with sock:
            sock.bind((host, 0))
            sock.listen()
            assert listener_uid(f"127.0.0.1:{sock.getsockname()[1]}") == OWN


def test_the_exact_address_wins(monkeypatch, tmp_path):
    header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: {}:1F90 00000000:0000 {} 00000000:00000000 00:00000000 00000000  {}        0 1 1 0 100 0 0 10 0\n"
    tcp = tmp_path / "tcp"
    tcp.write_text(
        header + row.format("0100007F", "01", 5) + row.format("0100007F", "0A", 1001) + row.format("00000000", "0A", 7)
    )
    monkeypatch.setattr(serveruser, "Path", lambda name: tcp if name.endswith("/tcp") else tmp_path / "none")
    assert listener_uid("127.0.0.1:8080") == 1001
    assert listener_uid("127.0.0.2:8080") == 7
    assert listener_uid("127.0.0.1:8081") is None


@pytest.mark.parametrize("uid", [0, OWN, None])
def test_silently_taken(monkeypatch, uid):
    owned_by(monkeypatch, uid)
    check_server_user("127.0.0.1:1", pytest.fail)


def test_a_stranger_is_named_once(monkeypatch):
    owned_by(monkeypatch, 987654)
    said = []
    for _ in range(3):
        check_server_user("127.0.0.1:1", said.append)
    assert len(said) == 1
    assert "uid 987654" in said[0]


def test_listed_users_are_exactly_those(monkeypatch):
    monkeypatch.setenv("GPUSCHED_SERVER_USER", "987654, root")
    owned_by(monkeypatch, 987654)
    check_server_user("127.0.0.1:1", pytest.fail)
    owned_by(monkeypatch, 987655)
    with pytest.raises(
        ServerRefused, match=r"belongs to uid 987655, and GPUSCHED_SERVER_USER allows only 987654, root"
    ):
        check_server_user("127.0.0.1:1", pytest.fail)
    owned_by(monkeypatch, None)
    with pytest.raises(
        ServerUnavailable, match=r"^no scheduler answers at 127.0.0.1:1 .*; start one with: gpusched serve"
    ):
        check_server_user("127.0.0.1:1", pytest.fail)
    monkeypatch.setenv("GPUSCHED_SERVER_USER", "987654")
    owned_by(monkeypatch, 0)
    with pytest.raises(ServerRefused):
        check_server_user("127.0.0.1:1", pytest.fail)


def test_an_unknown_name_is_a_usage_error(monkeypatch):
    monkeypatch.setenv("GPUSCHED_SERVER_USER", "nobody-of-this-name")
    with pytest.raises(UsageError, match=r"^GPUSCHED_SERVER_USER: 'nobody-of-this-name' will not do"):
        check_server_user("127.0.0.1:1", pytest.fail)


def test_another_machine_passes(monkeypatch):
    monkeypatch.setenv("GPUSCHED_SERVER_USER", "987654")
    check_server_user("192.0.2.1:1", pytest.fail)
