"""What gsrun refuses, before it queues or by the scheduler's word: each a clear line and a documented code."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gsrun.conftest import GPUS
from gsrun.running import GSRUN, Gsrun
from support.server import Server, free_port


def refused(server: Server, *words: str, **env: str) -> tuple[int, str]:
    """Exit code and stderr; nothing else may have been said, and no traceback."""
    done = subprocess.run([*GSRUN, *words], capture_output=True, text=True, env=server.env | env, timeout=20)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("gsrun: ")
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-n", "0", "true"], "-n 0 asks for nothing; give a number of GPUs, or --cpus or --mem beside it"),
        (["-n", "-1", "true"], "-n: '-1' will not do"),
        (["-n", "1.5", "true"], "-n: '1.5' will not do"),
        (["-n", "1e3", "true"], "-n: '1e3' will not do"),
        (["-n", "9" * 30, "true"], "will not do"),
        (["--gpus=²", "true"], "will not do"),
        (["--time", "soon", "true"], "--time: 'soon' will not do: give a duration such as"),
        (["--time", "0", "true"], "more than 0"),
        (["--time", "-5m", "true"], "--time: '-5m' will not do"),
        (["--max-wait", "nan", "true"], "--max-wait: 'nan' will not do"),
        (["--gpu-memory", "40", "true"], "is the unit missing?"),
        (["--gpu-memory", "-40G", "true"], "--gpu-memory: '-40G' will not do"),
        (["--priority", "101", "true"], "--priority: '101' will not do: give a whole number from -100 to 100"),
        (["--name", "a\nb", "true"], "--name: 'a\\nb' will not do"),
        (["--name", "\x1b[31mred", "true"], "--name: '\\x1b[31mred' will not do"),
        (["--name", "x" * 100_000, "true"], "--name: "),
        (["--gpu-model", "", "true"], "--gpu-model: '' will not do"),
        (["--gpu-id", "", "true"], "--gpu-id: '' will not do: give GPUs by index, node:index or uuid"),
        (["--gpu-id", "0,,1", "true"], "--gpu-id: '0,,1' will not do"),
        (["--exclude", "a\nb", "true"], "--exclude: 'a\\nb' will not do"),
        (["--constraint", "disk", "true"], "--constraint: 'disk' will not do: give KEY=VALUE"),
        (["--node", "x" * 200, "true"], "will not do: give names of nodes"),
        (["--gpus-per-node", "0", "true"], "--gpus-per-node: '0' will not do"),
        (["--pack", "--spread", "true"], "--pack and --spread together make no sense"),
        (["--pack=yes", "true"], "--pack takes no value"),
        (["--url", "nonsense", "true"], "--url: 'nonsense' will not do: give host:port"),
        (["--bogus", "true"], "there is no option --bogus"),
        (["--immediate=yes", "true"], "--immediate takes no value"),
        (["-n"], "--gpus needs a value"),
        (["-v", "-q", "true"], "-v and -q together make no sense"),
        ([], "say which command to run"),
        (["-n", "2", "--"], "say which command to run"),
        ([""], "the command's first word is empty"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_wrong_usage(idle: Server, words: list[str], said: str) -> None:
    code, err = refused(idle, *words)
    assert code == 2
    assert said in err
    assert len(err) < 500


def test_command_is_looked_for_before_it_queues(idle: Server, tmp_path: Path) -> None:
    """With no server at all: these fail first."""
    nobody = "127.0.0.1:1"
    assert refused(idle, "--url", nobody, "no-such-program") == (127, "gsrun: no-such-program: command not found\n")
    assert refused(idle, "--url", nobody, "./none") == (127, "gsrun: ./none: no such file or directory\n")
    assert refused(idle, "--url", nobody, "/") == (126, "gsrun: /: is a directory\n")
    plain = tmp_path / "plain"
    plain.write_text("")
    code, err = refused(idle, "--url", nobody, str(plain))
    assert (code, "permission denied" in err) == (126, True)
    code, err = refused(idle, "--url", nobody, "plain", PATH=str(tmp_path))
    assert (code, "permission denied" in err) == (126, True)


def test_program_for_another_machine(idle: Server, tmp_path: Path) -> None:
    text = tmp_path / "binary"
    text.write_bytes(b"\x7fELF\0 nothing sensible")
    text.chmod(0o755)
    code, err = refused(idle, str(text))
    assert code == 126
    assert "cannot be executed" in err


def test_more_gpus_than_there_are(idle: Server) -> None:
    code, err = refused(idle, "-n", str(GPUS + 1), "true")
    assert code == 2
    assert err.startswith(f"gsrun: -n: asks for {GPUS + 1} GPUs, but there are only {GPUS}")


def test_unknown_model(idle: Server) -> None:
    code, err = refused(idle, "--gpu-model", "Z9000", "true")
    assert code == 2
    assert "gsrun: --gpu-model: " in err
    assert "z9000" in err.lower()


def test_gpus_of_another_node(idle: Server) -> None:
    code, _ = refused(idle, "true", GPUSCHED_NODE="elsewhere")
    assert code == 2


@pytest.mark.slow
def test_second_node_is_never_handed_to_a_local_command() -> None:
    with Server("2x1") as server:
        code, err = refused(server, "-n", "2", "true")
        assert code == 2
        done = subprocess.run(
            [*GSRUN, "sh", "-c", "echo $GPUSCHED_NODE"], capture_output=True, text=True, env=server.env, timeout=20
        )
        assert done.stdout.strip() == os.uname().nodename, done.stderr
        assert "1" in err


def test_wrong_environment(idle: Server) -> None:
    code, err = refused(idle, "true", GPUSCHED_URL="gopher://x")
    assert (code, "GPUSCHED_URL: 'gopher://x' will not do" in err) == (2, True)


def test_server_user_that_is_not_trusted(idle: Server) -> None:
    code, err = refused(idle, "true", GPUSCHED_SERVER_USER="nobody")
    assert code == 77
    assert "GPUSCHED_SERVER_USER" in err


@pytest.mark.parametrize("more", [(), ("--detach",)])
def test_nobody_listens_for_who_names_the_servers_user(idle: Server, more: tuple[str, ...]) -> None:
    """As it is said without that variable: with what to do."""
    address = f"127.0.0.1:{free_port()}"
    code, err = refused(idle, *more, "true", GPUSCHED_URL=address, GPUSCHED_SERVER_USER=str(os.getuid()))
    assert code == 69
    assert err.startswith(f"gsrun: no scheduler answers at {address}") and "; start one with" in err


def test_megabyte_of_arguments(idle: Server) -> None:
    words = ["x" * 1000] * 1000
    done = subprocess.run([*GSRUN, "sh", "-c", "echo $#", *words], capture_output=True, text=True, env=idle.env)
    assert (done.returncode, done.stdout) == (0, "999\n")


def test_arguments_that_are_no_text(idle: Server) -> None:
    done = subprocess.run([*GSRUN, "printf", "%s", b"\xff\xfe"], capture_output=True, env=idle.env)
    assert (done.returncode, done.stdout) == (0, b"\xff\xfe")


def test_help_and_version(idle: Server) -> None:
    done = subprocess.run([*GSRUN, "--help"], capture_output=True, text=True, env=idle.env)
    assert done.returncode == 0
    for option in ("--gpus", "--time", "--max-wait", "--immediate", "--leave-children", "--dry-run", "--url"):
        assert option in done.stdout
    done = subprocess.run([*GSRUN, "--version"], capture_output=True, text=True, env=idle.env)
    assert done.stdout.startswith("gsrun ")


def test_output_that_cannot_be_written(idle: Server) -> None:
    for words in ("--help", "--version", "--dry-run true"):
        command = f"{' '.join(GSRUN)} {words}"
        done = subprocess.run(
            ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}; {command} >/dev/full; echo $?"],
            capture_output=True,
            text=True,
            env=idle.env,
            check=False,
        )
        # A reader that is not quick enough to go is written to.
        assert done.stdout in ("141\n125\n", "0\n125\n")
        assert done.stderr == "gsrun: cannot write the output: No space left on device\n"


def test_names_do_not_drive_the_terminal(idle: Server) -> None:
    for words in (["\x1b[31mfoo"], ["--bo\x1b[2Jgus", "true"], ["./a\rb"]):
        _, err = refused(idle, *words)
        assert all(line.isprintable() for line in err.splitlines())


def test_why_it_could_not_start_at_once(idle: Server) -> None:
    def gpusched(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "gpusched.client.cli", *words], env=idle.env, check=True)

    gpusched("pause", "--reason", "upgrade", "-q")
    try:
        for words in (["--immediate"], ["--max-wait", "0.2s", "-q"]):
            code, err = refused(idle, *words, "true")
            assert code == 75 and "scheduling is paused: upgrade" in err
    finally:
        gpusched("resume", "-q")


def test_a_switch_that_is_none(idle: Server) -> None:
    for value, code in (("no", 69), ("off", 69), ("maybe", 2)):
        got, err = refused(idle, "true", GPUSCHED_AUTOSTART=value, GPUSCHED_URL=f"127.0.0.1:{free_port()}")
        assert got == code
        assert code == 69 or "GPUSCHED_AUTOSTART: 'maybe' will not do: give 0" in err


@pytest.mark.slow
def test_a_scheduler_that_cannot_save(tmp_path: Path) -> None:
    """It is one, and says what is wrong: gsrun waits with it."""
    with Server("1") as server:
        path = server.state_dir / "state.db"
        with sqlite3.connect(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            code, err = refused(server, "--immediate", "true")
            assert code == 75 and "can take no job now: state file" in err
            run = Gsrun(server, "echo", "ran")
            run.wait_for_err("can take no job now: .*; trying on")
            connection.rollback()
        connection.close()
        assert run.wait(30) == 0 and run.out == "ran\n"
        run.close()
