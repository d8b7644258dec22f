"""The one list of settings: the command line, the variables, the file's keys and the documentation follow it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpusched.scheduler.core.policy import ALIASES, BACKFILLS, CANDIDATES, MAX_DEPTH, ORDERS, Quota
from gpusched.scheduler.logs import FORMATS, LEVELS

DEFAULT_PORT: Final = 9123
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_ADDRESS = re.compile(
    r"(?:(?:http|grpc)://)?([a-z0-9][a-z0-9._-]{0,253}|\[[0-9a-f:.]+\]):([0-9]{1,5})/?", re.ASCII | re.IGNORECASE
)
_LONGEST_TEXT = 4096
_LONGEST_LABEL = 128


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of value: `parse` takes text or what TOML gave, and raises ValueError for what is not `allowed`."""

    allowed: str
    parse: Callable[[object], object]


@dataclass(frozen=True, slots=True)
class Option:
    """A setting and its names; an empty name means that it cannot be given there.

    Attributes:
        field: its name in `Config`.
        flag, variable, key: on the command line, in the environment, in the file.
        placeholder: the value's name in help, empty for a switch.
        default: as people would write it.
        meaning: one line of documentation.
        kind: what values it takes.
        commands: which commands have it.
        repeatable: the flag may be given several times.
    """

    field: str
    flag: str
    variable: str
    key: str
    placeholder: str
    default: str
    meaning: str
    kind: Kind
    commands: tuple[str, ...] = ("serve",)
    repeatable: bool = False


def parse_duration(text: str) -> float:
    """Seconds from `30s`, `500ms`, `1h30m` or a bare number of seconds. Raises ValueError."""
    cleaned = text.strip()
    if len(cleaned) > 40:
        raise ValueError(text)
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", cleaned, re.ASCII):
        return float(cleaned)
    if not _DURATION.fullmatch(cleaned):
        raise ValueError(text)
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(cleaned))


def _whole_number(least: int, most: int, note: str = "") -> Kind:
    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value.strip(), re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(value)
        return value

    return Kind(f"a whole number from {least} to {most}{note}", parse)


def _duration(least: str, most: str) -> Kind:
    def parse(value: object) -> float:
        if isinstance(value, str):
            value = parse_duration(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(value)
        if not parse_duration(least) <= value <= parse_duration(most):
            raise ValueError(value)
        return float(value)

    return Kind(f"a duration such as 500ms, 30s or 1h30m, from {least} to {most}", parse)


def _choice(*allowed: str) -> Kind:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value.strip().lower() not in allowed:
            raise ValueError(value)
        return value.strip().lower()

    return Kind(f"one of {', '.join(allowed)}", parse)


def _word(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > _LONGEST_TEXT:
        raise ValueError(value)
    return value.strip()


def _simulation(value: object) -> str:
    return _word(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):  # of a variable; flags come as a list already
        value = [word for word in value.split(",") if word.strip()]
    if not isinstance(value, list):
        raise ValueError(value)
    return tuple(dict.fromkeys(_word(word) for word in value))


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for word in _words(value):
        key, equals, text = (part.strip() for part in word.partition("="))
        if (
            not key
            or not equals
            or not text
            or max(len(key), len(text)) > _LONGEST_LABEL
            or found.get(key, text) != text
        ):
            raise ValueError(word)
        found[key] = text
    return tuple(found.items())


def _switch_word(value: object) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("on", "off"):
        return value.strip().lower() == "on"
    return _switch(value)


def _pairs(value: object) -> dict[str, str]:
    """NAME=VALUE words of flags, a variable or a list, or a table of the file."""
    if isinstance(value, dict):
        value = [f"{name}={each}" for name, each in value.items()]
    found: dict[str, str] = {}
    for word in _words(value):
        name, _, text = (part.strip() for part in word.partition("="))
        if not name or not text.isascii() or len(name) > _LONGEST_LABEL or found.get(name, text) != text:
            raise ValueError(word)
        found[name] = text
    return found


def _shares(value: object) -> tuple[tuple[str, float], ...]:
    return tuple((path, float(number)) for path, number in _pairs(value).items())


def _quotas(value: object) -> tuple[Quota, ...]:
    found = []
    for name, text in _pairs(value).items():
        if not re.fullmatch(r"[0-9]{1,9}(?::[0-9]{1,9})?", text):
            raise ValueError(text)
        found.append(Quota(name, *map(int, text.split(":"))))
    return tuple(found)


def _size(value: object) -> int:
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        value = round(float(found[1]) * 1024.0 ** " KMGT".index(found[2].upper() or " "))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**60:
        raise ValueError(value)
    return value


def _path(value: object) -> Path:
    # A relative path is completed by whoever knows what it is relative to: `config.load`.
    path = Path(_word(value))
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~nobody-of-that-name
        raise ValueError(value) from error


def _address(value: object) -> str:
    found = _ADDRESS.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise ValueError(value)
    return f"{'127.0.0.1' if found[1].lower() == 'localhost' else found[1]}:{int(found[2])}"


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


_SWITCH = Kind("on or off", _switch_word)
_SHARES = Kind("shares such as alice=2 or physics/bob=1, in the file as a list or a table of them", _shares)
_QUOTAS = Kind("GPUs, or GPUs and jobs, such as alice=4 or physics/=8:20 (0 for any number)", _quotas)
_LONG = "3650d"  # policy.MAX_SECONDS
_PATH = Kind("a path, absolute or beginning with ~ where it is in the file", _path)
_BOTH = ("serve", "stop")

OPTIONS: Final[tuple[Option, ...]] = (
    Option("port", "--port", "GPUSCHED_PORT", "port", "PORT", str(DEFAULT_PORT),
           "TCP port of 127.0.0.1 to serve on; 0 takes any free one",
           _whole_number(0, 65535, " (0 takes any free port)")),
    Option("simulate", "--simulate", "GPUSCHED_SIMULATE", "simulate", "SPEC", "",
           "simulated GPUs instead of real ones: `8`, `2x8` (two nodes) or `4xH100:80GB`",
           Kind("what to simulate, such as 8, 2x8 or 4xH100:80GB", _simulation)),
    Option("gpu_mode", "--gpus", "GPUSCHED_GPU_MODE", "gpu_mode", "MODE", "auto",
           "`real` GPUs, `simulated` ones, or `auto`: simulated where `--simulate` says so, else real",
           _choice("auto", "real", "simulated")),
    Option("labels", "--label", "GPUSCHED_LABELS", "labels", "KEY=VALUE", "",
           "label of this machine, for jobs that ask for it by `--constraint`; the flag may be given several times, "
           "the variable separates by commas, the file has a list",
           Kind('labels such as disk=nvme, in the file as a list such as ["disk=nvme"]', _labels), repeatable=True),
    Option("cpus", "--cpus", "GPUSCHED_CPUS", "cpus", "N", "0",
           "cores of this machine that jobs which ask for cores may be given in all; 0 for as many as there are",
           _whole_number(0, 1_000_000, " (0 for as many as there are)")),
    Option("memory", "--mem", "GPUSCHED_MEM", "mem", "SIZE", "0",
           "memory of this machine that jobs which ask for memory may be given in all, such as `240G`; 0 for as much "
           "as there is", Kind("a size such as 240G or 1.5T, or 0 for as much as there is", _size)),
    Option("share_between_users", "--share-between-users", "GPUSCHED_SHARE_BETWEEN_USERS", "share_between_users",
           "on/off", "off", "jobs of several users may share a GPU (`gsrun --shared`)", _SWITCH),
    Option("state_dir", "--state-dir", "GPUSCHED_STATE_DIR", "state_dir", "DIR",
           "`$XDG_STATE_HOME/gpusched`, else `~/.local/state/gpusched`; systemd's `StateDirectory=gpusched` if set",
           "where state, lock and log are kept; must be on a local disk", _PATH, _BOTH),
    Option("detach", "--detach", "", "", "", "", "run in the background, and outlive the log-in",
           Kind("true or false", _switch)),
    Option("grace", "--grace", "GPUSCHED_GRACE", "grace", "TIME", "30s",
           "time that a job has from being told to end until its lease is revoked", _duration("0s", "24h")),
    Option("confirm_within", "--confirm-within", "GPUSCHED_CONFIRM_WITHIN", "confirm_within", "TIME", "5s",
           "time that a client has to confirm a grant before it goes to the next", _duration("100ms", "10m")),
    Option("set_aside_after", "--set-aside-after", "GPUSCHED_SET_ASIDE_AFTER", "set_aside_after", "TIME", "60s",
           "time that the first job waits on drained, foreign or unhealthy GPUs before others may pass it",
           _duration("0s", "24h")),
    Option("sample_interval", "--sample-interval", "GPUSCHED_SAMPLE_INTERVAL", "sample_interval", "TIME", "1s",
           "time between two looks at a GPU", _duration("100ms", "1h")),
    Option("ignore_processes", "--ignore-process", "GPUSCHED_IGNORE_PROCESSES", "ignore_processes", "NAME", "",
           "command that may sit on a GPU without making it busy, besides the built-in ones; the flag may be given "
           "several times, the variable separates by commas, the file has a list",
           Kind('command names, in the file as a list such as ["dcgm-exporter"]', _words), repeatable=True),
    Option("max_queue", "--max-queue", "GPUSCHED_MAX_QUEUE", "max_queue", "JOBS", "100000",
           "most jobs that may wait; 0 for any number", _whole_number(0, 10_000_000, " (0 for any number)")),
    Option("max_running", "--max-running", "GPUSCHED_MAX_RUNNING", "max_running", "JOBS", "0",
           "most jobs that may run at a time; 0 for any number", _whole_number(0, 1_000_000, " (0 for any number)")),
    Option("default_time_limit", "--default-time-limit", "GPUSCHED_DEFAULT_TIME_LIMIT", "default_time_limit", "TIME",
           "0s", "time limit of jobs that name none; 0s for none", _duration("0s", "365d")),
    Option("max_time_limit", "--max-time-limit", "GPUSCHED_MAX_TIME_LIMIT", "max_time_limit", "TIME", "0s",
           "longest time limit that may be asked for, and that of jobs that name none; 0s for any",
           _duration("0s", "365d")),
    Option("policy.order", "--policy", "GPUSCHED_POLICY", "policy", "NAME", "priority",
           "who is next: `fifo` (or `fcfs`), `priority`, `sjf` (the shortest first) or `fair_share`",
           _choice(*ORDERS, *ALIASES)),
    Option("policy.backfill", "--backfill", "GPUSCHED_BACKFILL", "backfill", "NAME", "easy",
           "who may go before a job that must wait: `none`, `easy` (who does not delay the first) or `conservative` "
           "(who delays nobody)", _choice(*BACKFILLS)),
    Option("policy.candidates", "--candidates", "GPUSCHED_CANDIDATES", "candidates", "NAME", "queue",
           "whom backfill tries first: `queue`, by the queue's order, or `sjbf`, the shortest limit",
           _choice(*CANDIDATES)),
    Option("policy.depth", "--reservation-depth", "GPUSCHED_RESERVATION_DEPTH", "reservation_depth", "JOBS", "1",
           "how many waiting jobs have a reservation under `easy`", _whole_number(1, MAX_DEPTH)),
    Option("policy.freeze_bypasses", "--freeze-bypasses", "GPUSCHED_FREEZE_BYPASSES", "freeze_bypasses", "TIMES", "50",
           "a job passed so often is passed only by those that end before it can start; 0 for never",
           _whole_number(0, 1_000_000, " (0 for never)")),
    Option("policy.freeze_wait", "--freeze-wait", "GPUSCHED_FREEZE_WAIT", "freeze_wait", "TIME", "6h",
           "the same for one that has waited so long; 0s for never", _duration("0s", _LONG)),
    Option("policy.aging", "--aging", "GPUSCHED_AGING", "aging", "TIME", "24h",
           "under `priority`, waiting that is worth one tier; 0s for none", _duration("0s", _LONG)),
    Option("policy.starvation", "--starvation", "GPUSCHED_STARVATION", "starvation", "TIME", "24h",
           "under `sjf`, waiting after which a job goes before all shorter ones of its tier; 0s for never",
           _duration("0s", _LONG)),
    Option("policy.half_life", "--half-life", "GPUSCHED_HALF_LIFE", "half_life", "TIME", "7d",
           "under `fair_share`, time in which past use counts half", _duration("1s", _LONG)),
    Option("policy.shares", "--share", "GPUSCHED_SHARES", "shares", "PATH=N", "",
           "under `fair_share`, shares of a user (`alice`, `physics/bob`) or an account (`physics`), 1 for all others; "
           "the flag may be given several times, the variable separates by commas, the file has a list or a table",
           _SHARES, repeatable=True),
    Option("policy.preemption", "--preemption", "GPUSCHED_PREEMPTION", "preemption", "on/off", "off",
           "a waiting job may end preemptible ones of lower tiers", _SWITCH),
    Option("policy.preempt_after", "--preempt-after", "GPUSCHED_PREEMPT_AFTER", "preempt_after", "TIME", "10m",
           "time that a job runs at least before it may be preempted", _duration("0s", _LONG)),
    Option("policy.preempt_grace", "--preempt-grace", "GPUSCHED_PREEMPT_GRACE", "preempt_grace", "TIME", "60s",
           "time from the word that a job is preempted until its lease is taken", _duration("0s", "24h")),
    Option("policy.preempt_most", "--preempt-most", "GPUSCHED_PREEMPT_MOST", "preempt_most", "TIMES", "3",
           "how often one job may be preempted; 0 for any number", _whole_number(0, 1_000_000, " (0 for any number)")),
    Option("policy.user_gpus", "--user-gpus", "GPUSCHED_USER_GPUS", "user_gpus", "GPUS", "0",
           "GPUs that each user may hold at a time; 0 for any number",
           _whole_number(0, 1_000_000, " (0 for any number)")),
    Option("policy.user_jobs", "--user-jobs", "GPUSCHED_USER_JOBS", "user_jobs", "JOBS", "0",
           "jobs that each user may have running; 0 for any number",
           _whole_number(0, 1_000_000, " (0 for any number)")),
    Option("policy.quotas", "--quota", "GPUSCHED_QUOTAS", "quotas", "NAME=GPUS[:JOBS]", "",
           "what holds for a user (`alice`) or an account (`physics/`) instead; the flag may be given several times, "
           "the variable separates by commas, the file has a list or a table", _QUOTAS, repeatable=True),
    Option("policy.borrow", "--borrow", "GPUSCHED_BORROW", "borrow", "on/off", "off",
           "a user may have more than these GPUs while nobody else waits for them", _SWITCH),
    Option("window", "--window", "GPUSCHED_WINDOW", "window", "TIME", "30s",
           "time that holders and waiters have to come back after a restart", _duration("1s", "24h")),
    Option("keep", "--keep", "GPUSCHED_KEEP", "keep", "TIME", "90d",
           "how long ended jobs and their logs are kept", _duration("1h", "36500d")),
    Option("log_level", "--log-level", "GPUSCHED_LOG_LEVEL", "log_level", "LEVEL", "info",
           f"least level that is logged: {', '.join(LEVELS)}", _choice(*LEVELS)),
    Option("log_format", "--log-format", "GPUSCHED_LOG_FORMAT", "log_format", "FORMAT", "text",
           "`text` for people, `json` for machines", _choice(*FORMATS)),
    Option("address", "--url", "GPUSCHED_URL", "", "HOST:PORT", "",
           "where the scheduler serves that `stop` is to stop, else port `GPUSCHED_PORT`; one of this state directory "
           "that serves elsewhere goes on", Kind("host:port, such as 127.0.0.1:9123", _address), ("stop",)),
    Option("timeout", "--timeout", "", "", "TIME", "30s",
           "how long `stop` waits for the scheduler's end", _duration("0s", "24h"), ("stop",)),
    Option("config_file", "--config", "GPUSCHED_CONFIG", "", "FILE",
           "`$XDG_CONFIG_HOME/gpusched/config.toml`, else `/etc/gpusched/config.toml`",
           "TOML file with these keys, no other ones; the first that exists", _PATH, _BOTH),
)  # fmt: skip
