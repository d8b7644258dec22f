"""Mistakes on the command line: one line that names the field and what is allowed, status 2, nothing sent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpusched.client.cli import submit
from gpusched.client.cli.main import COMMANDS, run
from gpusched.client.cli.parsing import Parser
from support.server import clean_environment, free_port


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["jbos"], "no command is called 'jbos'; is 'jobs' meant?"),
        (["x" * 5000], "no command is called 'xxx"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--url"], "argument --url: expected one argument"),
        (["--url", "127.0.0.1:1"], "a command is missing"),
        (["jobs", "--url", "here"], "url: 'here' will not do: give host:port"),
        (["jobs", "--state", "sleeping"], "argument -s/--state: 'sleeping' will not do: give one of queued, running"),
        (["jobs", "--limit", "-1"], "'-1' will not do: give a whole number from 0"),
        (["jobs", "--limit", "1e3"], "'1e3' will not do"),
        (["jobs", "--mine", "--user", "bob"], "not allowed with argument"),
        (["jobs", "--watch", "--quiet"], "--quiet cannot be had with --watch"),
        (["jobs", "--watch", "--limit", "3"], "--limit cannot be had with --watch"),
        (["jobs", "--json", "--quiet"], "not allowed with argument"),
        (["jobs", "--js"], "unrecognized arguments: --js"),
        (["job"], "required: ID"),
        (["job", ""], "'' will not do: give a job's id"),
        (["job", "7\n8"], "will not do: give a job's id"),
        (["priority", "7", "1.5"], "argument N: '1.5' will not do: give a whole number from -100 to 100"),
        (["priority", "7", "101"], "'101' will not do"),
        (["priority", "7", "9" * 400], "will not do: give a whole number"),
        (["cancel"], "give ids, --all or --name"),
        (["cancel", "7", "--reason", "a\x1b[2Jb"], "argument --reason: 'a\\x1b[2Jb' will not do: give one line"),
        (["drain", "3", "--reason", "x" * 501], "at most 500 characters"),
        (["sim", "cpu", "3"], "invalid choice: 'cpu'"),
        (["sim", "gpu", "3"], "nothing to set; give at least one of --util"),
        (["sim", "gpu", "3", "--util", "101"], "'101' will not do: give a whole number from 0 to 100"),
        (["sim", "gpu", "3", "--process", "1:bob:python"], "give pid:user:command:memory, such as"),
        (["sim", "gpu", "3", "--process", "0:bob:python:1G"], "'0' will not do"),
        (["sim", "gpu", "3", "--process", "1:bob:python:lots"], "'lots' will not do: give a size"),
        (["sim", "gpu", "3", "--linger", "soon"], "'soon' will not do: give a duration"),
        (["sim", "gpu", "3", "--fault", "x", "--no-fault"], "not allowed with argument"),
    ],
)
def test_mistakes(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gpusched: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert len(captured.err) < 600


@pytest.mark.parametrize("variable", ["GPUSCHED_URL", "GPUSCHED_PORT"])
def test_bad_environment_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "nowhere")
    assert run(["status"]) == 2
    assert variable in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out or f", {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not command.raw])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"usage: gpusched {COMMANDS[name].name}" in capsys.readouterr().out


def test_the_address_may_stand_before_or_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    for argv in (["--url", address, "status"], [f"--url={address}", "status"], ["status", "--url", address]):
        assert run(argv) == 69
        err = capsys.readouterr().err
        assert err == (
            f"gpusched: no scheduler answers at {address}; "
            "start one with: gpusched serve --detach (gsrun starts one by itself)\n"
        )


def test_no_word_of_gsrun_where_it_would_start_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value, host in (("GPUSCHED_AUTOSTART", "0", "127.0.0.1"), ("UNRELATED", "", "[::1]")):
        monkeypatch.setenv(variable, value)
        address = f"{host}:{free_port()}"
        assert run(["status", "--url", address]) == 69
        said = f"gpusched: no scheduler answers at {address}; start one with: gpusched serve --detach\n"
        assert capsys.readouterr().err == said
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["policy", "--freeze-wait", "-1s"], "--freeze-wait: '-1s' will not do: it must not be below 0; give a dur"),
        (["policy", "fair_share", "--aging", "-1h"], "--aging: '-1h' will not do: it must not be below 0"),
        (["policy", "--half-life", "-1d"], "--half-life: '-1d' will not do: it must not be below 0"),
        (["policy", "--half-life", "500ms"], "--half-life: '500ms' will not do: give a duration such as"),
        (["policy", "--half-life", "0.000001"], "(at most 10 years), 1s or more"),
        (["submit", "--time", "-1:30", "x"], "--time: '-1:30' will not do: it must not be below 0"),
        (["submit", "--time", "soon", "x"], "--time: 'soon' will not do: give a duration"),
        (["submit", "--gpu-memory", "lots", "x"], "--gpu-memory: 'lots' will not do: give a size"),
        (["submit", "--node", "", "x"], "--node: '' will not do"),
        (["submit", "--signal", "USR1@2d", "x"], "--signal: 'USR1@2d' will not do: give a signal"),
        (["jobs", "-l", "-1s"], "argument -l/--limit: '-1s' will not do: give a whole number"),
        (["policy", "--aging", "--reset"], "argument --aging: expected one argument"),
        (["policy", "--aging"], "argument --aging: expected one argument"),
    ],
)
def test_values_below_nothing_and_what_was_typed(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2
    assert said in capsys.readouterr().err


def test_a_commands_own_words_are_left_alone() -> None:
    parser = Parser("gpusched submit", "")
    submit.configure(parser)
    for before in ([], ["--"], ["--time", "1h"], ["--shared"]):
        words = ["python", "--time", "-1", "-n", "-1s", "--", "-2"]
        assert parser.parse_args([*before, *words]).command[-7:] == words


def test_where_a_server_serves_is_not_the_address_of_clients(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--url", "127.0.0.1:1", "serve"]) == 2
    assert "serve takes no --url; it serves on --port" in capsys.readouterr().err


def test_help_is_light() -> None:
    code = (
        "import sys; from gpusched.client.cli.main import run; run(['--help']); run(['jobs', '--help']); "
        "sys.exit(','.join(m for m in ('grpc', 'google.protobuf', 'asyncio', 'prompt_toolkit') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "--watch" in done.stdout
