"""`gpusched simulate` as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from cli.commands import CLI
from cli.commands import gpusched as ask
from cli.holders import Holder
from support.server import Server, clean_environment

LOG = """\
job_id,submit_s,run_s,gpus,req_s,user,vc
1,0,100,2,100,ann,a
2,10,50,4,50,bob,a
3,10,20,1,20,ann,a
4,20,100,1,100,bob,a
5,30,60,1,60,cem,a
9,30,60,64,60,cem,b
"""
BOX = ("--gpus", "4", "--vc", "a", "--policy", "fifo")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


def simulate(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "simulate", *map(str, words)],
        env=clean_environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def good(*words: str | Path, stdin: str = "") -> str:
    done = simulate(*words, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused(status: int, *words: str | Path) -> str:
    done = simulate(*words)
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("gpusched: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("gpusched: ").rstrip("\n")


def parsed(*words: str | Path) -> Any:
    return json.loads(good(*words, "--json"))


def test_figures(log: Path) -> None:
    lines = good(log, *BOX, "--backfill", "none").splitlines()
    assert lines[0] == f"{log}: 5 jobs of 3 users on 4 GPUs; estimates: the users' limits"
    assert lines[1] == "  1 left out by filters"
    figures = dict(line.split("  ", 1) for line in lines[3:])
    shown = {name: figures[name].strip() for name in figures}
    # Starts 0, 100, 150, 150, 150.
    assert shown["wait, mean"] == "96.00 s (1m36s)"
    assert shown["wait, median"] == "120.00 s (2m00s)"
    assert shown["wait, longest"] == "140.00 s (2m20s)"
    assert shown["wait, all together"] == "480.00 s (8m00s)"
    assert shown["makespan"] == "250 s (4m10s)"
    assert shown["GPUs in use"] == "58.00 % of the makespan"
    assert shown["policy"] == "fifo, no backfill; events together"


def test_starts(log: Path, tmp_path: Path) -> None:
    good(log, *BOX, "--backfill", "easy", "--starts", tmp_path / "starts.csv")
    assert (tmp_path / "starts.csv").read_text() == "job_id,start_s\n1,0\n2,100\n3,10\n4,150\n5,30\n"


def test_json(log: Path) -> None:
    it = parsed(log, *BOX, "--backfill", "none,easy", "--estimate", "exact")
    assert (it["jobs"], it["users"], it["gpus"], it["nodes"], it["estimate"]) == (5, 3, 4, 1, "exact")
    assert it["left_out"] == {"too_large": 0, "incomplete": 0, "filtered": 1}
    strict, easy = it["runs"]
    assert (strict["policy"], strict["backfill"], strict["events"]) == ("fifo", "none", "together")
    assert (strict["wait_mean"], strict["wait_p90"], strict["wait_total"], strict["makespan"]) == (96.0, 140, 480, 250)
    assert (easy["backfill"], easy["events"], easy["wait_total"]) == ("easy", "one-by-one", 90 + 130)
    slow = [1, 140 / 50, 160 / 20, 230 / 100, 180 / 60]
    assert strict["slowdown_mean"] == pytest.approx(sum(slow) / 5)
    ann, bob, cem = (slow[0] + slow[2]) / 2, (slow[1] + slow[3]) / 2, slow[4]
    assert strict["fairness"] == pytest.approx((ann + bob + cem) ** 2 / 3 / (ann**2 + bob**2 + cem**2))


def test_several_policies_are_a_table(log: Path) -> None:
    lines = good(log, *BOX[:4], "--policy", "all", "--backfill", "none,easy", "--candidates", "all").splitlines()
    rows = [line.split("  ") for line in lines[4:]]
    assert lines[3].split()[:4] == ["POLICY", "BACKFILL", "WAIT", "MEAN"]
    # Candidates make a difference only where there is backfill.
    assert len(rows) == 4 * 3
    assert {row[0].strip() for row in rows} == {"fifo", "priority", "sjf", "fair_share"}


def test_all_may_stand_beside_names(log: Path) -> None:
    lines = good(log, *BOX[:4], "--policy", "sjf,all,fcfs", "--backfill", "easy").splitlines()
    assert [line.split()[0] for line in lines[4:]] == ["sjf", "fifo", "priority", "fair_share"]


def test_candidates_are_of_easy_alone(log: Path) -> None:
    lines = good(log, *BOX, "--backfill", "all", "--candidates", "all").splitlines()
    rows = [re.split("  +", line)[1] for line in lines[4:]]
    assert rows == ["no", "easy", "easy sjbf", "conservative"]
    alone = good(log, *BOX, "--backfill", "conservative", "--candidates", "sjbf")
    assert "fifo, conservative backfill; events together" in alone


def test_swf_from_the_standard_input_on_the_machine_that_it_names() -> None:
    swf = "; MaxProcs: 4\n" + "".join(
        f"{number} {submit} -1 {run} {procs} -1 -1 {procs} {run} -1 1 1 1 1 1 1 -1 -1\n"
        for number, submit, run, procs in ((1, 0, 100, 2), (2, 10, 50, 4))
    )
    assert "2 jobs of 1 user on 4 GPUs" in good("-", "--policy", "fcfs", stdin=swf)


def test_nodes_matter(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("job_id,submit_s,run_s,gpus\n1,0,10,1\n")
    it = parsed(path, "--nodes", "2x8,4x4")
    assert (it["nodes"], it["gpus"], it["estimate"]) == (6, 32, "exact")
    assert "1 job on 32 GPUs in 6 nodes (consolidate); estimates: exact run times" in good(path, "--nodes", "2x8,4x4")


@pytest.mark.slow
def test_bad_logs(log: Path, tmp_path: Path) -> None:
    assert refused(1, log, "--gpus", "4") == (
        f"{log}:7: job 9 needs 64 GPUs, and there are 4 (jobs like that: 1); --skip-too-large leaves them out"
    )
    assert "1 left out, larger than the machine" in good(log, "--gpus", "4", "--skip-too-large")
    assert refused(1, log) == f"{log} does not say how large its machine is: give --gpus N or --nodes NxM"
    assert refused(1, tmp_path / "none", "--gpus", "4").endswith("No such file or directory")
    log.write_text(LOG.replace("4,20,", "4,5,"))
    assert refused(1, log, *BOX).startswith(f"{log}:5: job 4 is submitted at 5, before the one above it (10)")
    log.write_text("job_id,submit_s,run_s,gpus\n1,0,1,1\n")
    assert "has no requested times; with --estimate exact" in refused(1, log, "--gpus", "1", "--estimate", "limit")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--policy", "lottery"),
            ": --policy: there is no policy 'lottery'; there are: fifo, priority, sjf, fair_share",
        ),
        (("--policy", "all,lottery"), ": --policy: there is no policy 'lottery'"),
        (("--backfill", "greedy"), ": --backfill: 'greedy' is none of none, easy, conservative"),
        (("--candidates", "x"), ": --candidates: 'x' is none of queue, sjbf"),
        (("--estimate", "guess"), "argument --estimate: invalid choice: 'guess'"),
        (("--gpus", "0"), "--gpus: 0 GPUs; allowed are 1 to 100,000"),
        (("--gpus", "many"), "--gpus: 'many' is no number of GPUs"),
        (("--nodes", "8"), "--nodes: '8' is not understood; give NODESxGPUS such as 20x8 or 2x8,4x4"),
        (("--half-life", "0"), ": --half-life: 0 is not allowed"),
        (("--half-life", "nan"), ": --half-life: nan is not allowed"),
        (("--freeze-bypasses", "-1"), ": --freeze-bypasses: -1 is below 0"),
        (("--depth", "0"), ": --depth: 0 is not from 1"),
        (("--filter", "vc"), "--filter: 'vc' is not understood"),
        (("--plot", "a.pdf"), "must end with .svg or .png"),
        (("--policy", "fifo,sjf", "--starts", "a.csv"), "--starts: is for one policy, not for several"),
        (("--starts", "-", "--json"), "--starts: - is the standard output, where --json prints; name a file"),
        (("--polcy", "fifo"), "unrecognized arguments: --polcy"),
        (("--called", "history", "--polcy", "fifo"), "unrecognized arguments: --polcy"),
        (("--json", "b.csv"), "/log.csv' is one, and 'b.csv' is one more"),
        # What the client makes of a LOG beside --from-history.
        (("--called", "history", "b.csv"), "a LOG ('b.csv') and --from-history exclude each other"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str, log: Path) -> None:
    text = refused(2, log, *words)
    assert text.startswith("simulate: ") and said in text


@pytest.mark.slow
def test_a_log_must_be_named() -> None:
    assert "name a LOG" in refused(2)
    for words, said in (((), "`gpusched simulate`"), (("a.csv",), "a LOG ('a.csv') and --from-history exclude")):
        text = subprocess.run(
            [sys.executable, "-m", "gpusched.scheduler", "simulate", *words, "--from-history"],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (text.returncode, text.stdout) == (2, "") and said in text.stderr


def test_help() -> None:
    text = good("--help")
    for option in ("--policy", "--backfill", "--candidates", "--estimate", "--nodes", "--from-history", "--starts"):
        assert option in text


@pytest.mark.slow
def test_a_picture(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    good(log, *BOX, "--plot", tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--starts", "--plot"])
def test_what_cannot_be_written_is_said_and_costs_nothing_else(option: str, log: Path, tmp_path: Path) -> None:
    if option == "--plot":
        pytest.importorskip("matplotlib")
    path = tmp_path / "none" / "a.svg"
    done = simulate(log, *BOX, option, path)
    assert (done.returncode, done.stderr) == (1, f"gpusched: cannot write {path}: No such file or directory\n")
    assert "wait, mean" in done.stdout


def run_into(out: IO[str] | int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command whose standard output goes there."""
    options: dict[str, Any] = {"stdout": out, "stderr": subprocess.PIPE, "text": True, "timeout": 60, "check": False}
    return subprocess.run(command, env=clean_environment(), **options)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--json",), ("--help",), ("--starts", "-")])
def test_a_full_standard_output_is_said(words: tuple[str, ...], log: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_into(full, *CLI, "simulate", log, *BOX, *words)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last) == (1, "gpusched: cannot write to the standard output: No space left on device")
    assert len(done.stderr.splitlines()) == 1 or words == ("--starts", "-")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "status", "said"),
    [(False, 141, ""), (True, 1, "gpusched: cannot write to the standard output: it is closed\n")],
)
def test_a_standard_output_that_is_gone(closed: bool, status: int, said: str, log: Path) -> None:
    """Other files are written all the same."""
    starts = log.with_name("starts.csv")
    reader, writer = os.pipe()
    os.close(reader)
    shell = ("bash", "-c", f'exec "$@" {">&-" if closed else ""}', "-")
    command = (sys.executable, "-m", "gpusched.scheduler", "simulate", log, *BOX, "--starts", starts)
    done = run_into(writer, *shell, *command)
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, said)
    assert starts.read_text().startswith("job_id,start_s\n1,0\n")


def test_starts_on_the_standard_output(log: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*CLI, "simulate", log, *BOX, "--backfill", "easy", "--starts", "-"],
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "job_id,start_s\n1,0\n2,100\n3,10\n4,150\n5,30\n")
    assert "wait, mean" in done.stderr
    assert not (tmp_path / "-").exists()


def test_no_output_takes_the_place_of_the_log(log: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(log)
    for option, path in (("--starts", log), ("--starts", tmp_path / "." / "link.png"), ("--plot", link)):
        if option == "--starts" or plot_is_possible():
            said = refused(2, log, *BOX, option, path)
            assert said.startswith(f"simulate: {option}: '{path}' is the LOG itself, which would be lost; name another")
    with log.open() as stdin:
        done = subprocess.run(
            [*CLI, "simulate", "-", *BOX, "--starts", log],
            env=clean_environment(),
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2 and "is the LOG itself" in done.stderr
    assert log.read_text() == LOG


def test_nor_that_of_another_output(log: Path, tmp_path: Path) -> None:
    if plot_is_possible():
        path = tmp_path / "a.svg"
        assert "is the file of --starts" in refused(2, log, *BOX, "--starts", path, "--plot", path)
        assert not path.exists()


def plot_is_possible() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


@pytest.mark.slow
def test_from_history(server: Server) -> None:
    """Its own jobs, on a machine of its own size, asked for over gRPC."""
    for number in range(3):
        with Holder(server.address, 2 + number, name="past") as holder:
            holder.release(exit_status=0)
    with Holder(server.address, 8) as running, Holder(server.address, 8) as gave_up:
        running.granted()
        gave_up.queued()
        ask(server, "cancel", gave_up.id)
        done = ask(server, "simulate", "--from-history", "--backfill", "none,easy", "--policy", "fifo", "--json")
        more = ask(server, "--url", server.address, "simulate", "--from-history", "--nodes", "2x4")
        small = ask(server, "simulate", "--from-history", "--gpus=3", "--skip-too-large")
    assert (done.returncode, done.stderr) == (0, "left out: 1 job that ended without a run\n"), done
    it = json.loads(done.stdout)
    assert (it["jobs"], it["users"], it["gpus"], it["estimate"]) == (3, 1, 8, "exact")
    assert [each["backfill"] for each in it["runs"]] == ["none", "easy"]
    assert it["runs"][0]["wait_total"] == 0
    # A machine that one thinks of buying.
    assert f"history of {server.address}: 3 jobs of 1 user on 8 GPUs in 2 nodes (pack)" in more.stdout, more
    assert "1 left out, larger than the machine" in small.stdout, small


@pytest.mark.slow
def test_from_history_has_the_schedulers_policy_and_no_jobs_that_a_log_cannot_tell(
    server_factory: Callable[..., Server],
) -> None:
    server = server_factory("4", args=("--policy", "sjf", "--freeze-bypasses", "7", "--aging", "2h"))
    for asked in (("-n", "0", "--cpus", "1"), ("--shared", "--gpu-memory", "1G"), ("--time", "1h", "--estimate", "5m")):
        job = ask(server, "submit", "--quiet", *asked, "--", "true").stdout.strip()
        ask(server, "wait", job)
    done = ask(server, "simulate", "--from-history", "--json")
    assert (done.returncode, done.stderr) == (0, "left out: 1 job without GPUs, 1 job with a share of a GPU\n"), done
    (row,) = json.loads(done.stdout)["runs"]
    assert (row["policy"], row["backfill"], row["candidates"]) == ("sjf", "easy", "queue")
    knobs = {"depth": 1, "freeze_bypasses": 7, "freeze_wait": 21600, "aging": 7200, "starvation": 86400}
    assert row["knobs"] == {**knobs, "half_life": 7 * 86400}
    # What the user says counts for more.
    mine = ("--policy", "fifo", "--freeze-bypasses", "0", "--starvation=60")
    done = ask(server, "simulate", "--from-history", "--json", *mine)
    (row,) = json.loads(done.stdout)["runs"]
    assert row["policy"] == "fifo"
    assert row["knobs"] == {**knobs, "freeze_bypasses": 0, "starvation": 60, "half_life": 7 * 86400}


def test_names_without_limits_are_something_to_go_by(log: Path) -> None:
    log.write_text("job_id,submit_s,run_s,gpus,name\n1,0,1,1,train\n")
    assert parsed(log, "--gpus", "1")["estimate"] == "exact"
    assert parsed(log, "--gpus", "1", "--estimate", "limit")["estimate"] == "limit"
    said = good(log, "--gpus", "1", "--estimate", "limit").splitlines()[0]
    assert said.endswith("; estimates: the users' limits, their estimates and similar runs")


@pytest.mark.parametrize("words", [("a.csv",), ("--policy", "fifo", "--json", "-")])
def test_a_log_beside_the_history_is_refused_before_a_scheduler_is_asked(words: tuple[str, ...]) -> None:
    # None answers there: asking it would give 69.
    said = refused(2, "--url", "127.0.0.1:1", "--from-history", *words)
    assert f"a LOG ('{words[-1]}') and --from-history exclude each other" in said


def test_from_history_without_a_scheduler() -> None:
    done = subprocess.run(
        [*CLI, "simulate", "--from-history"],
        env=clean_environment(GPUSCHED_URL="127.0.0.1:1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (69, "")
    assert "no scheduler answers at 127.0.0.1:1" in done.stderr
