"""Tables that line up and fit, JSON that parses, and colours only where they are wanted."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpusched.v1.job_pb2 as job_pb
import gpusched.v1.scheduler_pb2 as pb
from gpusched.client.cli import gpus, jobs, nodes
from gpusched.client.cli.output import Cell, Column, Mode, Output, Row, Table, document
from gpusched.client.cli.text import width

COLUMNS = (
    Column("JOB"),
    Column("NAME", least=4),
    Column("POSITION", short="POS", right=True),
    Column("REASON", least=6, drop=1),
)


class Terminal(io.StringIO):
    """Text that claims to be shown on a terminal."""

    def isatty(self) -> bool:
        return True


def rows(*cells: tuple[str, ...]) -> list[Row]:
    return [Row([Cell(text) for text in line]) for line in cells]


def test_columns_line_up_and_nothing_is_cut_without_a_width() -> None:
    lines = Table(COLUMNS, None, False).lines(rows(("1", "模型", "12", "needs 4, 1 free"), ("1234", "a", "3", "-")))
    assert lines == [
        "JOB   NAME  POSITION  REASON",
        "1     模型        12  needs 4, 1 free",
        "1234  a            3  -",
    ]


def test_a_narrow_table_has_short_headers_then_cut_cells_then_fewer_columns() -> None:
    some = rows(("1", "a long name", "12", "needs 4, 1 free"))
    assert Table(COLUMNS, 43, False).lines(some)[0] == "JOB  NAME         POSITION  REASON"
    assert Table(COLUMNS, 38, False).lines(some) == [
        "JOB  NAME         POS  REASON",
        "1    a long name   12  needs 4, 1 free",
    ]
    assert Table(COLUMNS, 28, False).lines(some) == ["JOB  NAME      POS  REASON", "1    a long …   12  needs 4…"]
    assert Table(COLUMNS, 20, False).lines(some) == ["JOB  NAME        POS", "1    a long na…   12"]


@pytest.mark.parametrize("columns", [COLUMNS, jobs.COLUMNS, gpus.COLUMNS, nodes.COLUMNS])
@given(data=st.data(), wide=st.integers(1, 200))
def test_no_line_is_wider_than_the_terminal(columns: tuple[Column, ...], data: st.DataObject, wide: int) -> None:
    cell = st.text(max_size=40).map(Cell)
    line = st.tuples(*[cell] * len(columns)).map(lambda cells: Row(cells, note="GPU 3: something is wrong with it"))
    some = data.draw(st.lists(line, max_size=5))
    for text in Table(columns, wide, False).lines(some):
        assert width(text) <= max(wide, 4)
        assert text.isprintable()


def test_notes_stand_beneath_their_row_and_wrap() -> None:
    row = Row([Cell("3"), Cell("FOREIGN")], note="GPU 3: pid 4242 python (alice) holds 11.2 GiB")
    table = Table((Column("GPU"), Column("STATE")), 30, False)
    assert table.lines([row]) == [
        "GPU  STATE",
        "3    FOREIGN",
        "  GPU 3: pid 4242 python",
        "  (alice) holds 11.2 GiB",
    ]


def test_later_rows_keep_the_first_ones_columns() -> None:
    table = Table(COLUMNS, None, False)
    table.lines(rows(("1", "short", "1", "x")))
    (line,) = table.more(rows(("2", "a much longer name", "2", "y"))[0])
    assert line == "2    a much longer name         2  y"
    (line,) = table.more(rows(("3", "ok", "3", "z"))[0])
    assert line == "3    ok            3  z"


def test_colour_needs_a_terminal_and_no_objection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Output(stdout=Terminal()).colour
    assert not Output(stdout=io.StringIO()).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output(stdout=Terminal()).colour
    monkeypatch.setenv("NO_COLOR", "")
    assert Output(stdout=Terminal()).colour
    monkeypatch.setenv("TERM", "dumb")
    assert not Output(stdout=Terminal()).colour


def test_colours_do_not_disturb_the_columns() -> None:
    some = [Row([Cell("1", "bold"), Cell("RUNNING", "green")]), Row([Cell("22"), Cell("QUEUED", "yellow")])]
    columns = (Column("JOB"), Column("STATE"))
    plain = Table(columns, 40, False).lines(some)
    painted = Table(columns, 40, True).lines(some)
    assert painted[1] == "\x1b[1m1  \x1b[0m  \x1b[32mRUNNING\x1b[0m"
    assert [_unpainted(line).rstrip() for line in painted] == plain


def _unpainted(line: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9]+m", "", line)


def test_hostile_text_cannot_steer_the_terminal_by_any_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stdout, stderr = Terminal(), io.StringIO()
    output = Output(stdout=stdout, stderr=stderr)
    bad = "x\x1b]0;title\x07\n\x9b2J\u202e"
    output.lines(output.table(COLUMNS, rows((bad, bad, bad, bad))))
    output.lines(output.facts([("Name", Cell(bad))]))
    output.lines(output.paragraph(bad))
    output.say(bad)
    output.error(bad)
    output.json({"name": bad})
    for text in (stdout.getvalue(), stderr.getvalue()):
        assert all(line.isprintable() for line in text.split("\n"))
    assert len(stderr.getvalue().splitlines()) == 1


def test_json_has_the_contracts_names_and_its_empty_fields() -> None:
    job = job_pb.Job(id="7", state=job_pb.JOB_STATE_QUEUED, name='quote " 模型')
    values = document(job)
    assert values["id"] == "7"
    assert values["state"] == "JOB_STATE_QUEUED"
    assert values["gpus"] == [] and values["holder_pid"] == "0" and values["user"] == ""
    assert "outcome" not in values and "started_at" not in values
    stdout = io.StringIO()
    Output(Mode.JSON, stdout=stdout).json(values)
    assert json.loads(stdout.getvalue()) == values
    line = io.StringIO()
    Output(Mode.JSON, stdout=line).json(document(pb.WatchJobsResponse(jobs=[job], snapshot=True)), line=True)
    assert line.getvalue().count("\n") == 1
    assert json.loads(line.getvalue())["jobs"] == [values]


@pytest.mark.parametrize("mode", [Mode.JSON, Mode.QUIET])
def test_actions_are_silent_but_in_words(mode: Mode) -> None:
    stdout = io.StringIO()
    Output(mode, stdout=stdout).say("job 7 is cancelled")
    assert stdout.getvalue() == ""


def test_facts_continue_under_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    output = Output(stdout=Terminal())
    assert output.facts([("State", Cell("QUEUED")), ("Waits for", Cell("needs 4 GPUs, 1 free"))]) == [
        "State      QUEUED",
        "Waits for  needs 4 GPUs, 1",
        "           free",
    ]
