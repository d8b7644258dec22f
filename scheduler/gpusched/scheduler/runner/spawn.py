"""Starting a command with nothing of the server's left in it, and a file for its output."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Mapping
from pathlib import Path

NOT_FOUND = 127
"""Exit status for a command that is not there, as shells have it."""
CANNOT_EXECUTE = 126
"""Exit status for a command that is there and cannot be run, as shells have it."""
OWN_FAILURE = 125
"""Exit status for everything else that keeps a command from starting, as timeout(1) and env(1) have it."""

_SHELL = "/bin/sh"
_ALL_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_OUTPUT_REASONS = {errno.ENXIO: "nobody reads from that pipe", errno.EEXIST: "its directory is not a directory"}
_NOBODYS_FAULT = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class CannotRun(Exception):
    """The command cannot be started; `code` is the exit status that stands for it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Output:
    """The file that gets the command's stdout and stderr, and our own lines about it."""

    def __init__(self, path: str) -> None:
        """Open the file for appending; it and its directories are made if need be, for its owner alone.

        Raises:
            CannotRun: it cannot be written.
        """
        self._path = path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC
        try:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not blocking, or a named pipe without a reader would keep us for ever.
            self.fd = os.open(path, flags | os.O_NONBLOCK, 0o600)
            os.set_blocking(self.fd, True)
        except (OSError, ValueError) as error:
            code = error.errno if isinstance(error, OSError) else 0
            why = _OUTPUT_REASONS.get(code or 0) or _reason(error)
            raise CannotRun(f"cannot write the output file {path!r}: {why}", OWN_FAILURE) from None

    def say(self, text: str) -> None:
        """Add a line of our own, on a line of its own; a full disk is no reason to do otherwise."""
        try:
            os.write(self.fd, f"{self._separator()}gpusched: {text}\n".encode("utf-8", "replace"))
        except OSError:
            pass

    def _separator(self) -> str:
        """A newline if the command's last line has no end."""
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            return ""
        reader = -1
        try:
            reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if not os.path.sameopenfile(reader, self.fd) or not (size := os.fstat(reader).st_size):
                return ""
            return "" if os.pread(reader, 1, size - 1) == b"\n" else "\n"
        except OSError:
            return ""
        finally:
            if reader >= 0:
                os.close(reader)


def enter(directory: str) -> None:
    """Make a directory our working directory. Raises CannotRun."""
    try:
        os.chdir(directory)
    except (OSError, ValueError) as error:
        message = f"cannot enter the working directory {directory!r}: {_reason(error)}"
        raise CannotRun(message, OWN_FAILURE) from None


def start(command: tuple[str, ...], environment: Mapping[str, str], output: int) -> int:
    """Start a command in a session of its own, in our working directory, with our stdin and umask, and return its pid.

    It has default signal dispositions, no blocked signals, and whatever descriptors are not close-on-exec.

    Args:
        command: words; the first is looked for in the environment's `PATH`.
        environment: all of it.
        output: descriptor that becomes its stdout and stderr.

    Raises:
        CannotRun: if it cannot be executed.
    """
    if not command or not command[0]:
        raise CannotRun("cannot run: the command is empty", NOT_FOUND)
    path = _locate(command[0], environment)
    try:
        try:
            return _spawn(path, command, environment, output)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without `#!`: shells and execvp give it to sh.
            return _spawn(_SHELL, (_SHELL, path, *command[1:]), environment, output)
    except OSError as error:
        raise _cannot(command[0], path, error) from None
    except ValueError as error:  # a NUL in a word, "=" in a variable's name, half a character
        raise CannotRun(f"cannot run {command[0]!r}: {error}", OWN_FAILURE) from None


def _spawn(path: str, words: tuple[str, ...], environment: Mapping[str, str], output: int) -> int:
    # With a vfork inside, quicker than subprocess, and exec's own error comes back.
    return os.posix_spawn(
        path,
        words,
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)],
        setsid=True,
        setsigmask=(),
        setsigdef=_ALL_SIGNALS,
    )


def _locate(name: str, environment: Mapping[str, str]) -> str:
    """The file that execvp would run. Raises CannotRun."""
    if "/" in name:
        return name
    beside: str | None = None
    for directory in environment.get("PATH", os.defpath).split(os.pathsep):
        candidate = f"{directory}/{name}" if directory else f"./{name}"
        try:
            if not stat.S_ISREG(os.stat(candidate).st_mode):  # noqa: PTH116 - a Path a directory is slow
                continue
        except (OSError, ValueError):
            continue
        if os.access(candidate, os.X_OK):
            return candidate
        beside = beside or candidate
    if beside is not None:
        message = f"cannot run {name!r}: permission denied ({beside} is not executable)"
        raise CannotRun(message, CANNOT_EXECUTE)
    raise CannotRun(f"cannot run {name!r}: no such file or directory", NOT_FOUND)


def _cannot(name: str, path: str, error: OSError) -> CannotRun:
    """What an error of exec means."""
    if error.errno in _NOBODYS_FAULT:
        return CannotRun(f"cannot run {name!r}: {_reason(error)} (this machine is short of resources)", OWN_FAILURE)
    if error.errno == errno.ENOENT and Path(path).exists():
        return CannotRun(f"cannot run {name!r}: the interpreter that it names was not found", NOT_FOUND)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CannotRun(f"cannot run {name!r}: {_reason(error)}", NOT_FOUND)
    why = _reason(error)
    if error.errno == errno.EACCES:
        found = Path(path)
        if found.is_dir():
            why = "is a directory"
        elif found.is_file() and not os.access(path, os.X_OK):
            why += " (it is not executable)"
    return CannotRun(f"cannot run {name!r}: {why}", CANNOT_EXECUTE)


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]
