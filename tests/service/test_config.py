"""Settings: where they come from, which place counts, and what is said about those that will not do."""

from __future__ import annotations

import os
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler import config
from gpusched.scheduler.config import Config, ConfigError, load, options_markdown
from gpusched.scheduler.core.policy import PolicySettings, Quota
from gpusched.scheduler.options import OPTIONS, parse_duration


@pytest.fixture(autouse=True)
def no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "_SYSTEM_FILE", tmp_path / "etc.toml")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return file


def problems(argv: list[str], environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(argv, environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all(problem.isprintable() and len(problem) < 500 for problem in caught.value.problems)
    return list(caught.value.problems)


def test_nothing_needs_to_be_said(home: dict[str, str]) -> None:
    assert load(["serve"], home) == Config(command="serve", state_dir=Path(home["HOME"], ".local/state/gpusched"))


def test_flags_count_more_than_variables_and_those_more_than_the_file(home: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path, 'port = 1\ngrace = "1s"\nlog_level = "debug"')
    environ = home | {"GPUSCHED_PORT": "2", "GPUSCHED_GRACE": "2s", "GPUSCHED_CONFIG": str(file)}
    found = load(["serve", "--port", "3"], environ)
    assert (found.port, found.grace, found.log_level, found.config_file) == (3, 2.0, "debug", file)


def test_every_option_everywhere(home: dict[str, str], tmp_path: Path) -> None:
    """Each setting arrives from each place that it may be given in."""
    texts = {
        "port": ("4711", 4711),
        "simulate": ("2x8", "2x8"),
        "gpu_mode": ("simulated", "simulated"),
        "labels": ("disk=nvme", (("disk", "nvme"),)),
        "cpus": ("24", 24),
        "memory": ("1.5T", 3 * 2**39),
        "share_between_users": ("on", True),
        "state_dir": ("/srv/state", Path("/srv/state")),
        "grace": ("2m", 120.0),
        "confirm_within": ("500ms", 0.5),
        "set_aside_after": ("1h30m", 5400.0),
        "sample_interval": ("2", 2.0),
        "ignore_processes": ("dcgm", ("dcgm",)),
        "max_queue": ("10", 10),
        "max_running": ("3", 3),
        "default_time_limit": ("2h", 7200.0),
        "max_time_limit": ("3d", 259200.0),
        "policy.order": ("FCFS", "fifo"),
        "policy.backfill": ("conservative", "conservative"),
        "policy.candidates": ("sjbf", "sjbf"),
        "policy.depth": ("3", 3),
        "policy.freeze_bypasses": ("7", 7),
        "policy.freeze_wait": ("2h", 7200.0),
        "policy.aging": ("0s", 0.0),
        "policy.starvation": ("12h", 43200.0),
        "policy.half_life": ("3d", 259200.0),
        "policy.shares": ("physics/bob=0.5", (("physics/bob", 0.5),)),
        "policy.preemption": ("on", True),
        "policy.preempt_after": ("5m", 300.0),
        "policy.preempt_grace": ("20s", 20.0),
        "policy.preempt_most": ("2", 2),
        "policy.user_gpus": ("4", 4),
        "policy.user_jobs": ("8", 8),
        "policy.quotas": ("physics/=8:20", (Quota("physics/", 8, 20),)),
        "policy.borrow": ("on", True),
        "window": ("1m", 60.0),
        "keep": ("30d", 2592000.0),
        "log_level": ("ERROR", "error"),
        "log_format": ("json", "json"),
    }
    options = [option for option in OPTIONS if option.key]
    assert {option.field for option in options} == set(texts)
    flags = [word for option in options for word in (option.flag, texts[option.field][0])]
    variables = {option.variable: texts[option.field][0] for option in options}
    lines = [
        f'{option.key} = ["{texts[option.field][0]}"]'
        if option.repeatable
        else f'{option.key} = "{texts[option.field][0]}"'
        for option in options
    ]
    file = write(tmp_path, "\n".join(lines))
    for argv, environ in ((flags, {}), ([], variables), (["--config", str(file)], {})):
        found = load(["serve", *argv], home | environ)
        got = {name: attrgetter(name)(found) for name in texts}
        assert got == {name: value for name, (_, value) in texts.items()}


def test_typed_values_of_the_file(home: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path, 'port = 0\nsimulate = 8\ngrace = 2.5\nignore_processes = ["a b", "c", "c"]')
    found = load(["serve", "--config", str(file)], home)
    assert (found.port, found.simulate, found.grace, found.ignore_processes) == (0, "8", 2.5, ("a b", "c"))


def test_lists(home: dict[str, str]) -> None:
    assert load(["serve"], home | {"GPUSCHED_IGNORE_PROCESSES": "a, b,,"}).ignore_processes == ("a", "b")
    assert load(["serve", "--ignore-process", "a", "--ignore-process", "b"], home).ignore_processes == ("a", "b")


def test_shares_and_quotas_of_the_file(home: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path, 'borrow = true\n[shares]\nalice = 2\n"physics/bob" = 0.5\n[quotas]\nalice = 4\nbob = "0:3"')
    policy = load(["serve", "--config", str(file)], home).policy
    assert policy.shares == (("alice", 2.0), ("physics/bob", 0.5)) and policy.borrow
    assert policy.quotas == (Quota("alice", 4), Quota("bob", 0, 3))
    environ = home | {"GPUSCHED_SHARES": "alice=2, bob=1", "GPUSCHED_QUOTAS": "alice=4,alice=4"}
    policy = load(["serve"], environ).policy
    assert policy.shares == (("alice", 2.0), ("bob", 1.0)) and policy.quotas == (Quota("alice", 4),)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=nan"], "--share: a=nan; shares must be above 0"),
        (["a=-1"], "--share: a=-1; shares must be above 0"),
        (["a=0"], "--share: a=0; shares must be above 0"),
        (["a=inf"], "--share: a=inf; allowed is 1e-06 to 1e+09"),
        (["x//a=1"], "--share: 'x//a' has an empty name"),
        (["a=1", "x/a=1"], "--share: user a is named twice"),
    ],
)
def test_shares_that_make_no_policy_name_their_place(words: list[str], said: str, home: dict[str, str]) -> None:
    assert problems(["serve", *(part for word in words for part in ("--share", word))], home) == [said]


def test_each_share_that_is_wrong_is_named(home: dict[str, str]) -> None:
    words = ["--share", "p/a=nan", "--share", "b=-1", "--share", "c=1", "--quota", "p/=3"]
    text = "shares must be above 0"
    assert problems(["serve", *words], home) == [f"--share: p/a=nan; {text}", f"--share: b=-1; {text}"]


def test_detach_and_stop(home: dict[str, str]) -> None:
    assert load(["serve", "--detach"], home).detach
    found = load(["stop", "--timeout", "5", "--state-dir", "/x"], home | {"GPUSCHED_GRACE": "wrong"})
    assert (found.command, found.timeout, found.state_dir) == ("stop", 5.0, Path("/x"))


@pytest.mark.parametrize(
    ("words", "environ", "address", "named_by"),
    [
        ([], {}, "", ""),
        ([], {"GPUSCHED_PORT": "0"}, "", ""),
        ([], {"GPUSCHED_PORT": "19772"}, "127.0.0.1:19772", "GPUSCHED_PORT"),
        ([], {"GPUSCHED_PORT": "1", "GPUSCHED_URL": "grpc://LOCALHOST:2/"}, "127.0.0.1:2", "GPUSCHED_URL"),
        (["--url", "[::1]:3"], {"GPUSCHED_PORT": "1", "GPUSCHED_URL": "box:2"}, "[::1]:3", "--url"),
    ],
)
def test_which_scheduler_is_to_stop(
    words: list[str], environ: dict[str, str], address: str, named_by: str, home: dict[str, str]
) -> None:
    found = load(["stop", *words], home | environ)
    assert (found.address, found.named_by) == (address, named_by)


def test_a_scheduler_that_cannot_be_meant(home: dict[str, str]) -> None:
    assert problems(["stop"], home | {"GPUSCHED_PORT": "wrong"})[0].startswith('GPUSCHED_PORT: "wrong" is not allowed')
    said = ['GPUSCHED_URL: "box" is not allowed: give host:port, such as 127.0.0.1:9123']
    assert problems(["stop"], home | {"GPUSCHED_PORT": "1", "GPUSCHED_URL": "box"}) == said
    assert load(["serve"], home | {"GPUSCHED_URL": "box"}).address == "", "of no meaning here"


@pytest.mark.parametrize("flag", ["--freeze-wait", "--aging", "--half-life", "--grace"])
def test_a_duration_below_nothing(flag: str, home: dict[str, str]) -> None:
    """argparse would take `-1s` for a flag."""
    (said,) = problems(["serve", flag, "-1s", "--port", "0"], home)
    assert said.startswith(f'{flag}: "-1s" is not allowed: give a duration such as 500ms, 30s or 1h30m, from ')
    assert problems(["serve", flag, "--port", "0"], home) == [f"{flag}: expected one argument"]


def test_empty_variables_are_not_set(home: dict[str, str]) -> None:
    assert load(["serve"], home | {"GPUSCHED_PORT": "", "GPUSCHED_CONFIG": " "}).port == 9123


def test_the_usual_files(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "etc.toml").write_text("port = 1")
    assert load(["serve"], home).port == 1
    own = tmp_path / "home" / ".config" / "gpusched" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("port = 2")
    assert load(["serve"], home).port == 2
    xdg = tmp_path / "xdg" / "gpusched" / "config.toml"
    xdg.parent.mkdir(parents=True)
    xdg.write_text("port = 3")
    assert load(["serve"], home | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}).port == 3
    assert load(["serve"], home | {"XDG_CONFIG_HOME": "relative/is/ignored"}).port == 2


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"XDG_STATE_HOME": "/xdg"}, "/xdg/gpusched"),
        ({"XDG_STATE_HOME": "relative"}, "/home/alice/.local/state/gpusched"),
        ({"STATE_DIRECTORY": "/var/lib/gpusched"}, "/var/lib/gpusched"),
        ({"STATE_DIRECTORY": "/var/lib/other:/var/lib/gpusched"}, "/var/lib/gpusched"),
        ({"STATE_DIRECTORY": "/var/lib/other"}, "/home/alice/.local/state/gpusched"),
        ({"STATE_DIRECTORY": "/var/lib/gpusched", "GPUSCHED_STATE_DIR": "/mine"}, "/mine"),
    ],
)
def test_state_directory(environ: dict[str, str], directory: str) -> None:
    assert load(["serve"], {"HOME": "/home/alice", **environ}).state_dir == Path(directory)


def test_paths_become_absolute(home: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/alice")
    assert load(["serve", "--state-dir", "here"], home).state_dir == tmp_path / "here"
    assert load(["serve", "--state-dir", "~/there"], home).state_dir == Path("/home/alice/there")
    file = write(tmp_path, 'state_dir = "here"')
    assert "absolute or beginning with ~" in problems(["serve", "--config", str(file)], home)[0]


def test_no_home_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    assert "--state-dir" in problems(["serve"], {})[0]
    assert load(["serve", "--state-dir", "/x"], {}).state_dir == Path("/x")


@pytest.mark.parametrize(
    ("argv", "environ", "file", "mode", "simulate"),
    [
        (["--simulate", "8"], {}, "", "simulated", "8"),
        (["--simulate", "8", "--gpus", "auto"], {}, "", "simulated", "8"),
        (["--gpus", "real"], {}, "", "real", ""),
        (["--gpus", "real"], {}, 'simulate = "8"', "real", ""),
        (["--gpus", "real"], {"GPUSCHED_SIMULATE": "8"}, "", "real", ""),
        (["--simulate", "8"], {}, 'gpu_mode = "real"', "simulated", "8"),
        ([], {}, 'gpu_mode = "simulated"\nsimulate = "2"', "simulated", "2"),
    ],
)
def test_mode_follows_what_counts_more(
    argv: list[str], environ: dict[str, str], file: str, mode: str, simulate: str, home: dict[str, str], tmp_path: Path
) -> None:
    found = load(["serve", "--config", str(write(tmp_path, file)), *argv], home | environ)
    assert (found.gpu_mode, found.simulate) == (mode, simulate)


def test_modes_that_contradict_each_other(home: dict[str, str]) -> None:
    said = problems(["serve", "--gpus", "real", "--simulate", "8"], home)
    assert said == ["--gpus is real, but --simulate asks for simulated GPUs: give one of the two"]
    said = problems(["serve"], home | {"GPUSCHED_GPU_MODE": "simulated"})
    assert said == ["GPUSCHED_GPU_MODE is simulated, but what? Add --simulate SPEC, such as --simulate 8"]


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--port", "-1", "a whole number from 0 to 65535"),
        ("--port", "65536", "a whole number from 0 to 65535"),
        ("--port", "1.5", "a whole number"),
        ("--port", "٩", "a whole number"),
        ("--port", "9" * 5000, "a whole number"),
        ("--gpus", "some", "one of auto, real, simulated"),
        ("--log-level", "loud", "one of debug, info, warning, error"),
        ("--log-format", "xml", "one of text, json"),
        ("--grace", "30 s", "a duration such as"),
        ("--grace", "1e3", "a duration such as"),
        ("--grace", "25h", "from 0s to 24h"),
        ("--grace", "inf", "a duration such as"),
        ("--confirm-within", "0s", "from 100ms to 10m"),
        ("--sample-interval", "99ms", "from 100ms to 1h"),
        ("--simulate", "", "what to simulate"),
        ("--simulate", "8\x1b[2J", "what to simulate"),
        ("--state-dir", "a\0b", "a path"),
        ("--state-dir", "~no-such-user-here/x", "a path"),
        ("--ignore-process", "\n", "command names"),
        ("--policy", "lottery", "one of fifo, priority, sjf, fair_share, fcfs"),
        ("--backfill", "some", "one of none, easy, conservative"),
        ("--candidates", "all", "one of queue, sjbf"),
        ("--reservation-depth", "0", "from 1 to 64"),
        ("--half-life", "0s", "from 1s to 3650d"),
        ("--aging", "3651d", "from 0s to 3650d"),
        ("--share", "alice", "shares such as alice=2"),
        ("--share", "alice=many", "shares such as alice=2"),
        ("--share", "=2", "shares such as alice=2"),
        ("--quota", "alice=4:", "GPUs, or GPUs and jobs"),
        ("--quota", "alice=-4", "GPUs, or GPUs and jobs"),
        ("--quota", "alice=1:2:3", "GPUs, or GPUs and jobs"),
        ("--preemption", "yes", "on or off"),
        ("--user-gpus", "1000001", "from 0 to 1000000"),
    ],
)
def test_bad_values_name_the_flag_the_value_and_what_is_allowed(
    flag: str, value: str, allowed: str, home: dict[str, str]
) -> None:
    (said,) = problems(["serve", flag, value], home)
    assert said.startswith(f"{flag}: ") and "is not allowed: give " in said and allowed in said


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("port = true", "port"),
        ("port = 1.0", "port"),
        ("port = [1]", "port"),
        ("simulate = false", "simulate"),
        ("grace = nan", "grace"),
        ("grace = -1", "grace"),
        ("grace = 1979-05-27", "grace"),
        ("log_level = 3", "log_level"),
        ("ignore_processes = [1]", "ignore_processes"),
        ("ignore_processes = 1", "ignore_processes"),
        ("state_dir = 1", "state_dir"),
        ('preemption = "yes"', "preemption"),
        ("shares = 3", "shares"),
        ("shares = [true]", "shares"),
        ("[shares]\nalice = true", "shares"),
        ("[quotas]\nalice = 1.5", "quotas"),
        ("[port]\nnumber = 1", "port"),
    ],
)
def test_wrong_types_name_file_key_and_value(line: str, key: str, home: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path, line)
    (said,) = problems(["serve", "--config", str(file)], home)
    assert said.startswith(f"{file}: {key}: ") and "is not allowed: give " in said


def test_unknown_keys_flags_and_commands_are_guessed(home: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path, "prot = 1\n[serve]\nport = 2")
    said = problems(["serve", "--config", str(file)], home)
    assert said[0] == f'{file}: key "prot" is not known; did you mean port?'
    assert said[1].startswith(f'{file}: key "serve" is not known; ')
    assert problems(["serve", "--prot=1"], home) == ['"--prot=1" is not known; did you mean --port?']
    assert problems(["serv"], home) == ['command "serv" is not known; did you mean serve?']
    assert problems(["serve", "8"], home) == ['"8" was not expected: gpusched serve takes flags only']
    assert problems([], home) == ['command "" is not known; known are serve, stop']


def test_abbreviations_are_not_guessed(home: dict[str, str]) -> None:
    assert problems(["serve", "--por", "1"], home)[0].endswith("did you mean --port?")


def test_a_flag_without_its_value(home: dict[str, str]) -> None:
    assert problems(["serve", "--port"], home) == ["--port: expected one argument"]


def test_everything_wrong_is_said_at_once(home: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path, 'colour = "red"\nlog_level = "loud"')
    said = problems(["serve", "--port", "x", "--config", str(file)], home | {"GPUSCHED_GRACE": "y"})
    assert [line.split(":")[0] for line in said] == [str(file), "--port", "GPUSCHED_GRACE", str(file)]


def test_files_that_cannot_be_read(home: dict[str, str], tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert problems(["serve", "--config", str(missing)], home) == [
        f"{missing}: cannot be read: No such file or directory"
    ]
    assert problems(["serve"], home | {"GPUSCHED_CONFIG": str(missing)})[0].startswith(f"{missing}: cannot")
    assert "cannot be read: File name too long" in problems(["serve", "--config", f"/{'x' * 400}"], home)[0]
    assert "is not TOML" in problems(["serve", "--config", str(write(tmp_path, "port = "))], home)[0]
    assert "cannot be read: Is a directory" in problems(["serve", "--config", str(tmp_path)], home)[0]
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "not in UTF-8" in problems(["serve", "--config", str(binary)], home)[0]


def test_help_has_every_option(home: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "stop"):
        with pytest.raises(SystemExit) as ended:
            load([command, "--help"], home)
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert all(option.flag in said for option in OPTIONS if command in option.commands)


def test_one_table_for_everything() -> None:
    """Options, settings and documentation cannot drift apart."""
    settings = {field.name for field in fields(Config)} - {"policy"}
    assert {option.field for option in OPTIONS} | {"command"} == settings - {"named_by"} | {
        f"policy.{field.name}" for field in fields(PolicySettings)
    }
    for names in zip(*((option.flag, option.variable, option.key) for option in OPTIONS), strict=True):
        assert len([name for name in names if name]) == len({name for name in names if name})
    table = options_markdown()
    assert table.count("\n") == len(OPTIONS) + 2
    assert all(line.count(" | ") == 4 for line in table.splitlines()[2:])
    for option in OPTIONS:
        assert f"`{option.flag}" in table and option.variable in table


def test_written_defaults_are_the_real_ones(home: dict[str, str]) -> None:
    found = load(["serve"], home)
    for option in OPTIONS:
        if option.default and "`" not in option.default:
            assert option.kind.parse(option.default) == attrgetter(option.field)(found), option.flag


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("1h30m", 5400.0),
        ("2d", 172800.0),
        (" 30s ", 30.0),
        ("1m500ms", 60.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@given(st.text(max_size=60))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        assert parse_duration(text) >= 0
    except ValueError:
        pass


@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_arguments_give_settings_or_a_config_error(words: list[str]) -> None:
    try:
        load(["serve", *words], {"HOME": os.sep})
    except ConfigError as error:
        assert error.problems
    except SystemExit as ended:
        assert ended.code == 0  # --help
