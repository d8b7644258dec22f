"""What logs may look like, and what is said of those that make no sense."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gpusched.scheduler.simulate.filters import parse_filter
from gpusched.scheduler.simulate.readers import Log, read_log
from gpusched.scheduler.simulate.workload import LoggedJob, SimulationError

SWF = """\
; Version: 2.2
; MaxProcs: 100
;
  1      0     -1    100     2   -1   -1     4    200   -1  1   7   1  -1  1 -1 -1 -1
  2     30     -1     50     3   -1   -1    -1     -1   -1  1  -1   1  -1  1 -1 -1 -1
"""
CSV = "job_id,submit_s,run_s,procs,req_s,user,more\n1,0,100,4,200,ann,x\n2,30,50.5,3,,bob,y\n"


def read(tmp_path: Path, text: str | bytes, *filters: str, **options: bool) -> Log:
    path = tmp_path / "log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_log(str(path), filters=tuple(parse_filter(each) for each in filters), **options)


def error(tmp_path: Path, text: str | bytes, *filters: str, **options: bool) -> str:
    with pytest.raises(SimulationError) as caught:
        read(tmp_path, text, *filters, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said.replace(str(tmp_path / "log"), "LOG")


def test_swf(tmp_path: Path) -> None:
    log = read(tmp_path, SWF)
    # Processors asked for; where that is not told, those that it had.
    assert log.jobs == [LoggedJob(4, 1, 0, 100, 4, 200, "7"), LoggedJob(5, 2, 30, 50, 3, None, "")]
    assert (log.gpus, log.has_requested) == (100, True)


def test_swf_without_comments(tmp_path: Path) -> None:
    log = read(tmp_path, "".join(SWF.splitlines(keepends=True)[3:]))
    assert [job.id for job in log.jobs] == [1, 2]
    assert log.gpus is None


@pytest.mark.parametrize("text", [SWF, CSV])
def test_gzip_is_told_by_its_first_bytes(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, gzip.compress(text.encode())).jobs == read(tmp_path, text).jobs


def test_csv(tmp_path: Path) -> None:
    log = read(tmp_path, CSV)
    assert log.jobs == [LoggedJob(2, 1, 0, 100, 4, 200, "ann"), LoggedJob(3, 2, 30, 50.5, 3, None, "bob")]
    assert read(tmp_path, "\ufeff" + CSV.replace("\n", "\r\n").replace("procs", "gpus")).jobs == log.jobs


def test_csv_of_the_least(tmp_path: Path) -> None:
    log = read(tmp_path, "\n\ngpus,run_s,submit_s,job_id\n1,0,7,abc\n\n")
    assert log.jobs == [LoggedJob(4, "abc", 7, 0, 1)]
    assert not log.has_requested


def test_commas_are_needed(tmp_path: Path) -> None:
    for char, called in ((";", "semicolons"), ("\t", "tabs")):
        said = f"LOG:1: columns are separated by {called}; a CSV log has commas between them"
        assert error(tmp_path, CSV.replace(",", char)) == said
        assert error(tmp_path, CSV.replace(",", f'"{char} "').replace("more", "x,y")) == said
    assert read(tmp_path, SWF.replace("  ", "\t")).jobs


def test_jobs_of_one_instant(tmp_path: Path) -> None:
    text = "job_id,submit_s,run_s,gpus\n10,0,1,1\n9,0,1,1\n8,5,1,1\n"
    assert [job.id for job in read(tmp_path, text).jobs] == [9, 10, 8]
    # One id that is no number, anywhere, and the order is the file's.
    assert [job.id for job in read(tmp_path, text.replace("8,", "8a,")).jobs] == [10, 9, "8a"]


def test_priorities(tmp_path: Path) -> None:
    text = "job_id,submit_s,run_s,gpus,priority\n1,0,1,1,-5\n2,0,1,1,\n"
    assert [job.priority for job in read(tmp_path, text).jobs] == [-5, 0]
    assert error(tmp_path, text.replace("-5", "101")) == "LOG:2: job 1: priority 101; allowed are -100 to 100"


def test_names_and_estimates(tmp_path: Path) -> None:
    text = "job_id,submit_s,run_s,gpus,name,estimate_s\n1,0,1,1, train 7B ,60\n2,0,1,1,,\n3,0,1,1,x,-1\n"
    log = read(tmp_path, text)
    assert [(job.name, job.estimate) for job in log.jobs] == [("train 7B", 60), ("", None), ("x", None)]
    assert (log.has_requested, log.has_hints, read(tmp_path, CSV).has_hints) == (False, True, False)
    assert error(tmp_path, text.replace("60", "0")) == "LOG:2: job 1: estimate_s 0; it must be more than 0, or empty"
    assert error(tmp_path, text.replace("60", "4e8")).startswith("LOG:2: estimate_s: 4e8 s is out of range")
    odd = [read(tmp_path, text.replace(" train 7B ", name)).jobs[0].name for name in ("x" * 129, "a\x1bb")]
    assert odd == ["x" * 128, "a?b"], "a name is for telling like from like, and none is refused for it"


TOO_LONG = "s is out of range; allowed are 315,360,000 s at most (ten years)"


def test_times_of_more_than_ten_years(tmp_path: Path) -> None:
    for old, new, said in (
        ("30,50.5,3,,", "30,4e8,3,,", f"LOG:3: run_s: 4e8 {TOO_LONG}"),
        ("100,4,200", "100,4,315360001", f"LOG:2: req_s: 315360001 {TOO_LONG}"),
    ):
        assert error(tmp_path, CSV.replace(old, new)) == said
        assert error(tmp_path, CSV.replace(old, new), skip_incomplete=True) == said
    assert error(tmp_path, SWF.replace(" 100 ", " 400000000 ", 1)) == f"LOG:4: run time: 400000000 {TOO_LONG}"
    assert error(tmp_path, SWF.replace(" 200 ", " 400000000 ", 1)) == f"LOG:4: requested time: 400000000 {TOO_LONG}"
    assert read(tmp_path, CSV.replace("100,4,200", "315360000,4,315360000")).jobs[0].run == 315_360_000


def test_jobs_of_one_instant_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    text = "job_id,submit_s,run_s,gpus\n10,5,1,1\n9,5,1,1\n11,5,1,1\n"
    assert [job.id for job in read(tmp_path, text).jobs] == [9, 10, 11]
    # Names have no order but that of the file.
    assert [job.id for job in read(tmp_path, text.replace("11,", "x,")).jobs] == [10, 9, "x"]


def test_times_must_not_go_back_unless_they_are_sorted(tmp_path: Path) -> None:
    text = CSV + "3,29,1,1,5,ann,z\n"
    said = "LOG:4: job 3 is submitted at 29, before the one above it (30); --sort puts them in order"
    assert error(tmp_path, text) == said
    assert [job.id for job in read(tmp_path, text, sort=True).jobs] == [1, 3, 2]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("3,40,5,1", "has 4 fields, and the header 7"),
        ("3,,5,1,,a,z", "submit_s is missing"),
        ("3,40,,1,,a,z", "run_s is missing"),
        ("3,40,-1,1,,a,z", "job 3: run time -1; it must not be negative"),
        ("3,40,5,0,,a,z", "job 3: asks for 0 GPUs or processors; it must be 1 or more"),
        ("3,40,5,-1,,a,z", "job 3: asks for -1 GPUs"),
    ],
)
def test_rows_that_are_not_complete(row: str, said: str, tmp_path: Path) -> None:
    text = f"{CSV}{row}\n"
    assert error(tmp_path, text).startswith(f"LOG:4: {said}")
    if "fields" not in said:
        assert "--skip-incomplete" in error(tmp_path, text)
        log = read(tmp_path, text, skip_incomplete=True)
        assert (len(log.jobs), log.incomplete) == (2, 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("3,4O,5,1,,a,z", "submit_s: '4O' is no number"),
        ("3,-4,5,1,,a,z", "job 3: submit time -4; it must not be negative"),
        ("3,nan,5,1,,a,z", "submit_s: 'nan' is no number"),
        ("3,1e400,5,1,,a,z", "submit_s: '1e400' is out of range"),
        ("3,4_0,5,1,,a,z", "submit_s: '4_0' is no number"),
        ("3,٤,5,1,,a,z", "submit_s: '٤' is no number"),
        ("3,40,5,1.5,,a,z", "job 3: GPUs or processors 1.5; it must be a whole number"),
        ("3,40,5,1,0,a,z", "job 3: requested time 0; it must be more than 0, or empty"),
        (",40,5,1,,a,z", "job id: must have 1 to 64 characters"),
        ("2,40,5,1,,a,z", "job 2 is there already, in line 3"),
        ('3,40,5,1,,"a,z', "is no CSV"),
    ],
)
def test_rows_that_are_wrong(row: str, said: str, tmp_path: Path) -> None:
    text = f"{CSV}{row}\n"
    assert error(tmp_path, text).startswith(f"LOG:4: {said}")
    assert error(tmp_path, text, skip_incomplete=True).startswith(f"LOG:4: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "LOG is empty"),
        (" \n\n", "LOG is empty"),
        ("; nothing\n", "LOG: there are no jobs in it"),
        (CSV.splitlines()[0], "LOG: there are no jobs in it"),
        ("hello\n", "LOG:1: neither a CSV header nor a line of 18 numbers (SWF): 'hello'"),
        ("a,b\n1,2\n", "LOG:1: no column job_id, submit_s, run_s, gpus; needed are job_id"),
        ("job_id,submit_s,run_s\n", "LOG:1: no column gpus; needed are"),
        ("job_id,submit_s,run_s,gpus,user,user\n", "LOG:1: column 'user' is there twice"),
        (SWF + "3 40 1 1\n", "LOG:6: has 4 fields; a line of the SWF has 18"),
        (SWF.replace("   100 ", "   ten ", 1), "LOG:4: run time: 'ten' is no number"),
        (SWF.replace(" 100     2 ", " 100     x "), "LOG:4: procs used: 'x' is no number"),
        (SWF.replace("  2     30 ", "  b     30 "), "LOG:5: job number: 'b' is no number"),
        (SWF.replace("  2     30 ", "  2.5   30 "), "LOG:5: job number: '2.5' is no whole number"),
        (SWF.replace(" 30 ", " -2 "), "LOG:5: job 2: submit time -2; it must not be negative"),
        (SWF.replace("   50 ", "   -1 ", 1), "LOG:5: job 2: run time -1; it must not be negative; --skip-incomplete"),
        (gzip.compress(SWF.encode())[:-12], "cannot read LOG: the gzip data is damaged or cut off"),
        (b"\x1f\x8bnonsense", "cannot read LOG: "),
    ],
)
def test_files_that_are_wrong(text: str | bytes, said: str, tmp_path: Path) -> None:
    assert error(tmp_path, text).startswith(said)


def test_what_is_not_there(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SimulationError, match=f"cannot read .*: {why}"):
            read_log(str(path))


@pytest.mark.parametrize(
    ("filter", "left"),
    [
        ("user=ann", [1]),
        ("user!=ann", [2]),
        ("run_s>60", [1]),  # as numbers: 100 and 50.5
        ("run_s<=50.50", [2]),
        ("more >= y", [2]),
        ("req_s=", [2]),
    ],
)
def test_filters(filter: str, left: list[int], tmp_path: Path) -> None:
    log = read(tmp_path, CSV, filter)
    assert [job.id for job in log.jobs] == left
    assert log.filtered == 1


def test_filters_of_swf(tmp_path: Path) -> None:
    assert [job.id for job in read(tmp_path, SWF, "user=7").jobs] == [1]


def test_names_that_look_like_numbers_are_names(tmp_path: Path) -> None:
    text = "job_id,submit_s,run_s,gpus,vc\n1,0,1,1,6214e9\n2,0,1,1,62140e8\n3,0,1,1,nan\n"
    assert [job.id for job in read(tmp_path, text, "vc=6214e9").jobs] == [1]
    assert [job.id for job in read(tmp_path, text, "vc=nan").jobs] == [3]


def test_filters_that_make_no_sense(tmp_path: Path) -> None:
    assert error(tmp_path, CSV, "vc=a") == (
        "--filter: LOG has no column 'vc'; there are job_id, submit_s, run_s, procs, req_s, user, more"
    )
    assert error(tmp_path, CSV, "user=zoe") == "LOG: there are no jobs that match"
    with pytest.raises(SimulationError, match="--filter: 'user' is not understood; give COLUMN=VALUE"):
        parse_filter("user")
