"""Mistakes on the command line: one line that names the field and what is allowed, status 2, nothing sent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpusched.client.cli.main import COMMANDS, run
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


def test_help_is_light() -> None:
    code = (
        "import sys; from gpusched.client.cli.main import run; run(['--help']); run(['jobs', '--help']); "
        "sys.exit(','.join(m for m in ('grpc', 'google.protobuf', 'asyncio', 'prompt_toolkit') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "--watch" in done.stdout
