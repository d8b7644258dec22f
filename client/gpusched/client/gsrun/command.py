"""The command: found before anything is queued for it, started with the lease's environment."""

# Without pathlib, gsrun starts quicker.
# ruff: noqa: PTH116, PTH118
from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from gpusched.client.gsrun import exits

_SHELL = "/bin/sh"


class CannotRun(Exception):
    """The command cannot be run; `code` is what shells exit with then."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def check(name: str, path: str | None = None) -> None:
    """See whether a command could be executed, the way execvp would look for it.

    Args:
        name: the command's first word.
        path: directories to look in; None for `PATH`.

    Raises:
        CannotRun: if it is not there, or nobody may execute it.
    """
    if not name:
        raise CannotRun("the command is empty", exits.NOT_FOUND)
    if "/" in name:
        _check_file(name)
        return
    found_file = ""
    for directory in (path if path is not None else os.environ.get("PATH", os.defpath)).split(os.pathsep):
        candidate = os.path.join(directory or ".", name)
        if _is_file(candidate):
            if os.access(candidate, os.X_OK):
                return
            found_file = found_file or candidate
    if found_file:
        raise CannotRun(f"{found_file}: permission denied (it is not executable)", exits.CANNOT_EXECUTE)
    raise CannotRun(f"{name}: command not found", exits.NOT_FOUND)


def start(
    command: Sequence[str], environment: Mapping[str, str], group: int, inherited_fds: Iterable[int]
) -> subprocess.Popen[bytes]:
    """Start the command in a process group of this session, with our stdin, stdout and stderr.

    Args:
        command: words; the first is looked for in the environment's `PATH`.
        environment: all of it.
        group: process group to put it in.
        inherited_fds: other descriptors that it is to have, such as those of `<(…)`.

    Raises:
        CannotRun: if it cannot be executed.
    """
    try:
        return _spawn(command, None, environment, group, inherited_fds)
    except OSError as error:
        if error.errno == errno.ENOEXEC and _is_text(_located(command[0], environment)):
            # A script without `#!`: shells and execvp give it to sh.
            return _spawn(
                [_SHELL, _located(command[0], environment), *command[1:]], _SHELL, environment, group, inherited_fds
            )
        code = exits.NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else exits.CANNOT_EXECUTE
        what = "its interpreter was not found" if code == exits.NOT_FOUND and _is_there(command[0]) else error.strerror
        raise CannotRun(f"{command[0]}: cannot be executed: {what}", code) from None
    except ValueError as error:
        raise CannotRun(f"{command[0]}: cannot be executed: {error}", exits.CANNOT_EXECUTE) from None


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by the command, as a shell's `exec` does. Raises CannotRun."""
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        if error.errno == errno.ENOEXEC and _is_text(_located(command[0], os.environ)):
            os.execv(_SHELL, [_SHELL, _located(command[0], os.environ), *command[1:]])
        raise CannotRun(f"{command[0]}: cannot be executed: {error.strerror}", exits.CANNOT_EXECUTE) from None


def _spawn(
    words: Sequence[str],
    executable: str | None,
    environment: Mapping[str, str],
    group: int,
    inherited_fds: Iterable[int],
) -> subprocess.Popen[bytes]:
    # No preexec_fn: it would make this a fork instead of a vfork, with gRPC's threads at work.
    return subprocess.Popen(
        list(words),
        executable=executable,
        env=environment,
        process_group=group,
        close_fds=True,
        pass_fds=tuple(inherited_fds),
        restore_signals=True,
    )


def _located(name: str, environment: Mapping[str, str]) -> str:
    if "/" in name:
        return name
    for directory in environment.get("PATH", os.defpath).split(os.pathsep):
        candidate = os.path.join(directory or ".", name)
        if _is_file(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return name


def _check_file(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        code = exits.NOT_FOUND if missing else exits.CANNOT_EXECUTE
        raise CannotRun(f"{path}: {(error.strerror or 'cannot be read').lower()}", code) from None
    if stat.S_ISDIR(mode):
        raise CannotRun(f"{path}: is a directory", exits.CANNOT_EXECUTE)
    if not os.access(path, os.X_OK):
        raise CannotRun(f"{path}: permission denied (it is not executable)", exits.CANNOT_EXECUTE)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _is_text(path: str) -> bool:
    """Whether a file could be a script; a program for another machine is not to be fed to a shell."""
    try:
        with open(path, "rb") as file:
            return b"\0" not in file.read(256)
    except OSError:
        return False


def _is_there(name: str) -> bool:
    try:
        check(name)
    except CannotRun:
        return False
    return True
