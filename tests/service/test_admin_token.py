"""Administrator's tokens: who gets one over the Unix socket, and which ones are recognised."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler.admin_token import TOKEN_LIFETIME_S, AdminTokens

ME = os.geteuid()
as_root = pytest.mark.skipif(ME != 0, reason="only root can become another user")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def serving(
    path: Path, allowed: frozenset[int] = frozenset({ME, 0}), clock: Clock | None = None
) -> AsyncIterator[AdminTokens]:
    tokens = AdminTokens(path, allowed, clock or Clock())
    await tokens.start()
    try:
        yield tokens
    finally:
        await tokens.stop()


async def ask(path: Path) -> str:
    """What the socket says, until it closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        return (await asyncio.wait_for(reader.read(), 5)).decode()
    finally:
        writer.close()


async def ask_as(uid: int, path: Path) -> str:
    """What the socket says to a process of another user; `refused` where it may not even connect."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(uid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                try:
                    client.connect(os.fspath(path))
                    os.write(write_end, client.makefile("rb").read())
                except PermissionError:
                    os.write(write_end, b"refused")
        finally:
            os._exit(0)
    os.close(write_end)

    def heard() -> str:
        with open(read_end, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        return answer.decode()

    return await asyncio.wait_for(asyncio.to_thread(heard), 10)


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


async def test_own_user_gets_a_token_that_is_recognised(tmp_path: Path) -> None:
    async with serving(tmp_path / "admin.sock") as tokens:
        answer = await ask(tokens.path)
        assert answer.endswith("\n") and answer.count("\n") == 1
        assert tokens.verify(answer.strip()) == ME


async def test_every_token_is_another(tmp_path: Path) -> None:
    async with serving(tmp_path / "admin.sock") as tokens:
        assert await ask(tokens.path) != await ask(tokens.path)


async def test_a_user_not_allowed_gets_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "admin.sock", frozenset({ME + 1})) as tokens:
        assert await ask(tokens.path) == ""


@as_root
async def test_users_are_told_apart_by_the_kernel(open_dir: Path) -> None:
    async with serving(open_dir / "admin.sock", frozenset({0, 12345})) as tokens:
        assert tokens.verify((await ask_as(12345, tokens.path)).strip()) == 12345
        assert await ask_as(12346, tokens.path) == ""


@as_root
async def test_nobody_never_gets_a_token(open_dir: Path) -> None:
    async with serving(open_dir / "admin.sock", frozenset({0, 12345, 65534})) as tokens:
        assert await ask_as(65534, tokens.path) == ""


@as_root
async def test_a_private_socket_does_not_let_others_connect(open_dir: Path) -> None:
    async with serving(open_dir / "admin.sock") as tokens:
        assert await ask_as(12345, tokens.path) == "refused"


async def test_modes_of_socket_and_directory(tmp_path: Path) -> None:
    async with serving(tmp_path / "new" / "admin.sock") as tokens:
        assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(tokens.path.parent.stat().st_mode) == 0o700
    async with serving(tmp_path / "admin.sock", frozenset({ME, 0, 12345})) as tokens:
        assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o666


async def test_token_ends_after_its_lifetime(tmp_path: Path) -> None:
    clock = Clock()
    async with serving(tmp_path / "admin.sock", clock=clock) as tokens:
        token = (await ask(tokens.path)).strip()
        clock.now += TOKEN_LIFETIME_S - 0.001
        assert tokens.verify(token) == ME
        clock.now += 0.001
        assert tokens.verify(token) is None


async def test_tokens_of_another_server_are_not_recognised(tmp_path: Path) -> None:
    async with serving(tmp_path / "one.sock") as one, serving(tmp_path / "two.sock") as two:
        assert one.verify((await ask(two.path)).strip()) is None


async def test_any_changed_byte_spoils_a_token(tmp_path: Path) -> None:
    async with serving(tmp_path / "admin.sock") as tokens:
        token = (await ask(tokens.path)).strip()
        raw = base64.urlsafe_b64decode(token)
        for place in range(len(raw)):
            changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
            assert tokens.verify(base64.urlsafe_b64encode(changed).decode()) is None
        for mangled in (token + "=", token + "\n", " " + token, token[:-1], token[4:], token.upper(), token + token):
            assert tokens.verify(mangled) is None


@given(st.text() | st.binary(min_size=60, max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_garbage_is_no_token(token: str) -> None:
    assert AdminTokens(Path("unused"), frozenset({0}), Clock()).verify(token) is None


async def test_stop_removes_the_socket_and_start_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    async with serving(path) as tokens:
        assert tokens.verify((await ask(path)).strip()) == ME
    assert not path.exists()


async def test_stop_leaves_a_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with serving(path):
        path.rename(tmp_path / "moved.sock")  # keeps the inode in use, so that the new one differs
        async with serving(path) as successor:
            pass
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(os.fspath(path))
    assert path.exists()
    await successor.stop()


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        await AdminTokens(path, frozenset({ME}), Clock()).start()
    assert path.read_text() == "precious"


async def test_a_long_path_gives_way_to_a_short_private_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_path = tmp_path / ("x" * 120) / "admin.sock"
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    async with serving(long_path) as tokens:
        assert tokens.path.parent == runtime
        assert tokens.verify((await ask(tokens.path)).strip()) == ME
    runtime.chmod(0o777)  # not private: not to be trusted
    async with serving(long_path) as tokens:
        directory = tokens.path.parent
        assert directory != runtime
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert tokens.verify((await ask(tokens.path)).strip()) == ME
    assert not directory.exists()


async def test_a_client_that_never_reads_or_leaves_at_once_does_no_harm(tmp_path: Path) -> None:
    async with serving(tmp_path / "admin.sock") as tokens:
        idle = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        for client in idle:
            client.connect(os.fspath(tokens.path))
        for client in idle[::2]:
            client.close()
        assert tokens.verify((await ask(tokens.path)).strip()) == ME
        for client in idle:
            client.close()
