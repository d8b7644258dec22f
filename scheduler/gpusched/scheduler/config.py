"""Settings of `gpusched serve` and `gpusched stop`.

A flag counts more than its GPUSCHED_* variable, that more than the TOML file, and that more than the default.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.logs import escape
from gpusched.scheduler.options import DEFAULT_PORT, OPTIONS, Option

_SYSTEM_FILE = Path("/etc/gpusched/config.toml")
#: Fields of options that are fields of the policy begin so.
_POLICY = "policy."
#: What a server does of which nobody said anything: as its parts, but nobody may be passed for ever.
DEFAULT_POLICY = PolicySettings(freeze_bypasses=50, freeze_wait=6 * 3600.0, starvation=86400.0)
#: More names than that are not listed in an error.
_MOST_SHOWN = 20
_NEGATIVE = re.compile(r"-\.?[0-9]")
_COMMANDS = {"serve": "Run the scheduler.", "stop": "Stop the scheduler that uses a state directory."}


class ConfigError(Exception):
    """Settings that will not do. The message has a line for each problem, for people.

    Attributes:
        problems: the lines.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        """Gather problems into one error."""
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. Those of the other command have their defaults. Durations are in seconds.

    Attributes:
        command: `serve` or `stop`.
        port: TCP port of 127.0.0.1, 0 for any free one.
        simulate: what GPUs to simulate, empty for none; its syntax is the inventory's.
        gpu_mode: `auto`, `real` or `simulated`; `simulated` exactly when `simulate` is not empty.
        labels: (key, value) pairs of this machine.
        cpus: cores of each node that jobs may be given, 0 for all that it has.
        memory: bytes of each node's memory that jobs may be given, 0 for all that it has.
        share_between_users: jobs of several users may share a GPU.
        state_dir: where state is kept, absolute.
        detach: run in the background.
        log_level: one of `logs.LEVELS`.
        log_format: one of `logs.FORMATS`.
        ignore_processes: commands that do not make a GPU busy, besides those built in.
        grace: time that a job has from being told to end until its lease is revoked.
        confirm_within: time that a client has to confirm a grant.
        set_aside_after: time that a job at the head waits on unusable GPUs before others may pass it.
        sample_interval: time between two looks at a GPU.
        max_queue: most jobs that may wait, 0 for any number.
        max_running: most jobs that may run, 0 for any number.
        default_time_limit: of jobs that name none, 0 for none.
        max_time_limit: longest that may be asked for, 0 for any.
        policy: the order of the queue and who may pass whom.
        window: time that holders and waiters have to come back after a restart.
        keep: how long ended jobs and their logs are kept.
        address: `host:port` of the scheduler that `stop` is to stop, empty for whichever uses the state directory.
        named_by: the flag or variable that says so.
        timeout: how long `stop` waits for the end.
        config_file: the file that was read, None if none was.
    """

    command: str
    state_dir: Path
    port: int = DEFAULT_PORT
    simulate: str = ""
    gpu_mode: str = "auto"
    labels: tuple[tuple[str, str], ...] = ()
    cpus: int = 0
    memory: int = 0
    share_between_users: bool = False
    detach: bool = False
    log_level: str = "info"
    log_format: str = "text"
    ignore_processes: tuple[str, ...] = ()
    grace: float = 30.0
    confirm_within: float = 5.0
    set_aside_after: float = 60.0
    sample_interval: float = 1.0
    max_queue: int = 100_000
    max_running: int = 0
    default_time_limit: float = 0.0
    max_time_limit: float = 0.0
    policy: PolicySettings = DEFAULT_POLICY
    window: float = 30.0
    keep: float = 90 * 86400.0
    address: str = ""
    named_by: str = ""
    timeout: float = 30.0
    config_file: Path | None = None


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Config:
    """Read the settings of one run.

    Args:
        argv: command and flags, such as `["serve", "--port", "0"]`.
        environ: variables, those of this process unless given.

    Raises:
        ConfigError: with everything that is wrong, not only the first thing.
        SystemExit: help was asked for and printed.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    command, flags = _read_flags(argv)
    options = [option for option in OPTIONS if command in option.commands]
    given: dict[str, _Given] = {}
    for option in options:
        if flags.get(option.field) is not None:
            given[option.field] = _Given(3, option.flag, flags[option.field])
        elif option.variable and environ.get(option.variable, "").strip():
            given[option.field] = _Given(2, option.variable, environ[option.variable])
    file = _config_file(options, given, environ, problems)
    if file is not None:
        for key, value in _read_file(file, problems).items():
            owner = next((option for option in options if option.key == key), None)
            if owner is not None:
                given.setdefault(owner.field, _Given(1, f"{file}: {key}", value))
    values: dict[str, Any] = {}
    for option in options:
        if option.field in given and option.field != "config_file":
            _parse(option, given[option.field], values, problems)
    if command == "stop":
        _settle_address(given, environ, values, problems)
    _settle_mode(given, values, problems)
    _settle_policy(given, values, problems)
    if "state_dir" not in given:
        _default_state_dir(environ, values, problems)
    if problems:
        raise ConfigError(problems)
    return Config(command=command, config_file=file, **values)


def options_markdown() -> str:
    """The options as a Markdown table, for the documentation."""
    rows = ["| flag | variable | key in the file | default | meaning |", "|---|---|---|---|---|"]
    for option in OPTIONS:
        flag = f"`{option.flag}{f' {option.placeholder}' if option.placeholder else ''}`"
        default = option.default if "`" in option.default or not option.default else f"`{option.default}`"
        names = [f"`{name}`" if name else "" for name in (option.variable, option.key)]
        of = "" if "serve" in option.commands else " (`gpusched stop`)"
        rows.append(" | ".join(["| " + flag + of, *names, default, option.meaning]) + " |")
    return "\n".join(rows) + "\n"


@dataclass(frozen=True, slots=True)
class _Given:
    """A value, where it came from in words, and how much that place counts."""

    rank: int
    place: str
    value: object


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([escape(message.removeprefix("argument "))])


def _read_flags(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The command, and the flags' values by field, None for those not given."""
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command not in _COMMANDS:
        top = _Parser(prog="gpusched", description="The scheduler's own commands.", allow_abbrev=False)
        top.add_argument("command", choices=list(_COMMANDS), help="; ".join(f"{c}: {d}" for c, d in _COMMANDS.items()))
        if command in ("-h", "--help"):
            top.parse_args(["--help"])
        raise ConfigError([f"command {_shown(command)} is not known{_did_you_mean(command, _COMMANDS)}"])
    parser = _Parser(prog=f"gpusched {command}", description=_COMMANDS[command], allow_abbrev=False)
    flags = [option for option in OPTIONS if command in option.commands]
    for option in flags:
        text = option.meaning.replace("`", "").replace("%", "%%")
        text += f" (default: {option.default.replace('`', '')})" if option.default else ""
        if not option.placeholder:
            parser.add_argument(option.flag, dest=option.field, action="store_true", default=None, help=text)
        else:
            action = "append" if option.repeatable else "store"
            parser.add_argument(option.flag, dest=option.field, action=action, metavar=option.placeholder, help=text)
    found, unknown = parser.parse_known_args(_joined(rest, {option.flag for option in flags if option.placeholder}))
    if mistaken := [word for word in unknown if word.startswith("-")]:
        names = [option.flag for option in flags]
        raise ConfigError([f"{_shown(word)} is not known{_did_you_mean(word, names)}" for word in mistaken])
    if unknown:
        raise ConfigError([f"{_shown(word)} was not expected: gpusched {command} takes flags only" for word in unknown])
    return command, vars(found)


def _joined(words: Sequence[str], with_value: Collection[str]) -> list[str]:
    """The words, with `-1s` and its like made part of the flag before: argparse would take it for a flag itself."""
    joined: list[str] = []
    rest = iter(words)
    for word in rest:
        value = next(rest, None) if word in with_value else None
        if value is not None and _NEGATIVE.match(value):
            joined.append(f"{word}={value}")
        else:
            joined += [word] if value is None else [word, value]
    return joined


def _config_file(
    options: Sequence[Option], given: Mapping[str, _Given], environ: Mapping[str, str], problems: list[str]
) -> Path | None:
    """The file to read: the one named, else the first of the usual ones that exists."""
    if named := given.get("config_file"):
        values: dict[str, Any] = {}
        _parse(next(option for option in options if option.field == "config_file"), named, values, problems)
        return values.get("config_file")
    base = _xdg(environ, "XDG_CONFIG_HOME", ".config")
    usual = [*([base / "gpusched" / "config.toml"] if base else []), _SYSTEM_FILE]
    return next((file for file in usual if os.path.lexists(file)), None)


def _read_file(file: Path, problems: list[str]) -> dict[str, Any]:
    """What the file says, less keys that no option has."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{file}: cannot be read: {os.strerror(error.errno or 0)}")
        return {}
    except UnicodeDecodeError:
        problems.append(f"{file}: is not TOML: not in UTF-8")
        return {}
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{file}: is not TOML: {escape(str(error))}")
        return {}
    known = [option.key for option in OPTIONS if option.key]
    problems += [
        f"{file}: key {_shown(key)} is not known{_did_you_mean(key, known)}" for key in content if key not in known
    ]
    return {key: value for key, value in content.items() if key in known}


def _parse(option: Option, given: _Given, values: dict[str, Any], problems: list[str]) -> None:
    """Put a value where it belongs, or say what is wrong with it."""
    try:
        value = option.kind.parse(given.value)
        if isinstance(value, Path):
            value = _anchored(value, given)
        values[option.field] = value
    except ValueError:
        problems.append(f"{given.place}: {_shown(given.value)} is not allowed: give {option.kind.allowed}")


def _anchored(path: Path, given: _Given) -> Path:
    """An absolute path: a detached server works in another directory than the one it was started from."""
    if given.rank == 1 and not path.is_absolute():
        raise ValueError(path)
    return path.absolute()


def _settle_address(
    given: Mapping[str, _Given], environ: Mapping[str, str], values: dict[str, Any], problems: list[str]
) -> None:
    """Which scheduler is meant, as clients find it: by address, else by port; and who says so."""
    if "address" in values:
        values["named_by"] = given["address"].place
        return
    option = next(option for option in OPTIONS if option.field == "port")
    text = environ.get(option.variable, "")
    if text.strip() and "address" not in given:
        found: dict[str, Any] = {}
        _parse(option, _Given(2, option.variable, text), found, problems)
        if port := found.get("port"):
            values |= {"address": f"127.0.0.1:{port}", "named_by": option.variable}


def _settle_mode(given: Mapping[str, _Given], values: dict[str, Any], problems: list[str]) -> None:
    """Make mode and simulation agree; of two that do not, the one from the higher place counts."""
    if "simulate" in values and values.get("gpu_mode") == "real":
        mode, simulate = given["gpu_mode"], given["simulate"]
        if mode.rank == simulate.rank:
            problems.append(f"{mode.place} is real, but {simulate.place} asks for simulated GPUs: give one of the two")
        elif mode.rank > simulate.rank:
            del values["simulate"]
    elif values.get("gpu_mode") == "simulated" and "simulate" not in given:
        problems.append(f"{given['gpu_mode'].place} is simulated, but what? Add --simulate SPEC, such as --simulate 8")
    if "simulate" in values:
        values["gpu_mode"] = "simulated"


def _settle_policy(given: Mapping[str, _Given], values: dict[str, Any], problems: list[str]) -> None:
    """Make one policy of its parts, and say what is wrong with them together."""
    parts = {field.removeprefix(_POLICY): values.pop(field) for field in list(values) if field.startswith(_POLICY)}
    # Of several shares the policy itself would name the first that is wrong.
    for path, number in (shares := parts.get("shares", ())):
        if math.isnan(number) or number <= 0:
            place = given[f"{_POLICY}shares"].place
            problems.append(f"{place}: {escape(path)}={number:g}; shares must be above 0")
            # On with one that will do, for the names are still to be looked at.
            parts["shares"] = shares = tuple((each, 1.0 if each == path else old) for each, old in shares)
    try:
        values["policy"] = replace(DEFAULT_POLICY, **parts)
    except Invalid as error:
        problems.append(f"{given[error.field].place}: {escape(error.message.removeprefix(f'{error.field}: '))}")


def _default_state_dir(environ: Mapping[str, str], values: dict[str, Any], problems: list[str]) -> None:
    """Where state goes if nobody said: systemd's directory for this service, else the user's."""
    # Only a directory of our name: gsrun may be part of somebody else's service, and start a server.
    for directory in environ.get("STATE_DIRECTORY", "").split(":"):
        if directory.startswith("/") and Path(directory).name == "gpusched":
            values["state_dir"] = Path(directory)
            return
    base = _xdg(environ, "XDG_STATE_HOME", ".local/state")
    if base is None:
        problems.append("no state directory: you have no home directory; give one with --state-dir DIR")
    else:
        values["state_dir"] = base / "gpusched"


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """A base directory by the XDG rules, under which relative ones are ignored; None without a home."""
    path = Path(environ.get(variable, ""))
    if path.is_absolute():
        return path
    home = Path(environ.get("HOME", ""))
    if not home.is_absolute():
        try:
            home = Path.home()
        except RuntimeError:
            return None
    return home / below_home if home.is_absolute() else None


def _did_you_mean(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word.partition("=")[0][:100], list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(known)}" if len(known) <= _MOST_SHOWN else "; gpusched serve --help lists them all"


def _shown(value: object) -> str:
    """A value as people recognise it, shortened, with control characters written out."""
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return escape(text if len(text) <= 100 else text[:97] + "…")
