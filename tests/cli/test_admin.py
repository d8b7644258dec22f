"""Fetching an administrator's token, from sockets that behave and ones that do not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpusched.client.admin import fetch_token
from gpusched.client.errors import PermissionDenied


@pytest.fixture
def giver(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """Makes a socket that gives some bytes to one who connects; its path."""
    sockets: list[socket.socket] = []

    def give(answer: bytes) -> str:
        path = tmp_path / f"{len(sockets)}.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        sockets.append(listener)

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # nobody came before the test was over
            with connection:
                try:
                    connection.sendall(answer)
                except OSError:
                    pass  # who connected has gone

        threading.Thread(target=serve, daemon=True).start()
        return str(path)

    yield give
    for listener in sockets:
        listener.close()


def test_a_line_is_the_token(giver: Callable[[bytes], str]) -> None:
    assert fetch_token(giver(b"dG9rZW4\n")) == "dG9rZW4"
    assert fetch_token(giver(b"dG9rZW4"), server_uid=os.getuid()) == "dG9rZW4"


@pytest.mark.parametrize("answer", [b"", b"\n", b"a\x1bb\n", b"two\nlines\n", b"\xff\xfe\n", b"x" * 10_000])
def test_what_is_no_token_is_none(answer: bytes, giver: Callable[[bytes], str]) -> None:
    with pytest.raises(PermissionDenied, match="only the user who runs the scheduler, and root, may do that"):
        fetch_token(giver(answer))


def test_no_socket_is_no_administrator(tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.write_text("x")
    for path in (str(tmp_path / "none.sock"), str(plain), "/" + "long/" * 40):
        with pytest.raises(PermissionDenied, match="only the user who runs the scheduler"):
            fetch_token(path)
    with pytest.raises(PermissionDenied, match="has no administrator's socket"):
        fetch_token("")


def test_a_silent_socket_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "silent.sock"))
        listener.listen()
        with pytest.raises(PermissionDenied, match="timed out"):
            fetch_token(str(tmp_path / "silent.sock"), timeout=0.05)


def test_a_server_cannot_have_anothers_token_sent_to_it(giver: Callable[[bytes], str]) -> None:
    with pytest.raises(PermissionDenied, match=f"port belongs to uid 54321.*to uid {os.getuid()}: no token is sent"):
        fetch_token(giver(b"secret\n"), server_uid=54321)
