"""Structured logs: the shape of a line, and that nobody's text can forge another."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler import logs
from gpusched.scheduler.logs import JsonFormatter, TextFormatter, escape, log_event

Written = Callable[..., tuple[logging.Logger, io.StringIO]]
VALUES = st.one_of(
    st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text(), max_size=3).map(tuple)
)
NASTY = 'a\nb\r\x1b[2J\x9b\x7f\u2028\u2029\u202e\0\ud800 "=,\\'


@pytest.fixture
def written() -> Iterator[Written]:
    """Sets up logging in a format and gives a logger and what it wrote; puts all back afterwards."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions

    def start(format: str, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
        stream = io.StringIO()
        logs.setup(level, format, stream)
        return logging.getLogger("gpusched.test"), stream

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising
    logging.captureWarnings(False)


def record(message: str, fields: dict[str, object], created: float = 0.0) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "test", "created": created})
    made.gpusched_fields = fields
    return made


def test_text_line(written: Written) -> None:
    log, stream = written("text")
    log_event(log, "grant", job=17, user="alice", gpus=(0, 1), name=None, waited=1.5, batch=False)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO  grant job=17 user=alice gpus=0,1 waited=1\.5 batch=false\n",
        stream.getvalue(),
    )


def test_json_line(written: Written) -> None:
    log, stream = written("json")
    log_event(log, "grant", level=logging.WARNING, job=17, gpus=(0, 1), name=None)
    entry = json.loads(stream.getvalue())
    assert entry.pop("time").endswith("Z")
    assert entry == {"level": "warning", "event": "grant", "logger": "gpusched.test", "job": 17, "gpus": [0, 1]}


def test_time_is_utc_with_whole_milliseconds() -> None:
    assert TextFormatter().format(record("x", {}, 1795341600.1239)).startswith("2026-11-22T10:00:00.123Z ")
    assert TextFormatter().format(record("x", {}, 1795341600.9999)).startswith("2026-11-22T10:00:00.999Z ")


def test_level_is_a_threshold(written: Written) -> None:
    log, stream = written("text", "warning")
    log_event(log, "quiet")
    log_event(log, "loud", level=logging.WARNING)
    assert "quiet" not in stream.getvalue()
    assert " WARN  loud" in stream.getvalue()


@pytest.mark.parametrize(("value", "shown"), [("", '""'), ("a b", '"a b"'), ("a=b", '"a=b"'), ('a"b', '"a\\"b"')])
def test_values_that_are_not_one_word_are_quoted(value: str, shown: str) -> None:
    assert TextFormatter().format(record("x", {"name": value})).endswith(f"x name={shown}")


def test_control_characters_cannot_forge_a_line() -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record(NASTY, {"name": NASTY, "list": [NASTY]}))
        assert line.isprintable(), repr(line)


@given(st.text(), st.text())
def test_any_text_stays_on_one_printable_line(message: str, value: str) -> None:
    text = TextFormatter().format(record(message, {"name": value}))
    assert not any(logs._escaped(character) != character for character in text if character != "\\")
    parsed = json.loads(JsonFormatter().format(record(message, {"name": value})))
    assert (parsed["event"], parsed["name"]) == (message, value)


@given(st.text(), st.text())
def test_escaping_keeps_texts_apart(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


def test_a_field_cannot_replace_the_event(written: Written) -> None:
    log, stream = written("json")
    log_event(log, "grant", event="forged", time="never")
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["field_event"], entry["field_time"]) == ("grant", "forged", "never")


@pytest.mark.parametrize("value", [float("nan"), {(1, 2): 3}, {1, 2}, object(), b"\xff", {"a": {1, 2}}])
def test_any_value_gives_one_line(value: object) -> None:
    assert "\n" not in TextFormatter().format(record("x", {"value": value}))
    line = JsonFormatter().format(record("x", {"value": value}))
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_an_object_within_itself_gives_one_line() -> None:
    inside: list[object] = []
    inside.append({"a": inside})
    json.loads(JsonFormatter().format(record("x", {"value": inside})))
    assert "\n" not in TextFormatter().format(record("x", {"value": {"a": inside}}))


def test_traceback_is_indented_and_escaped(written: Written) -> None:
    log, stream = written("text")
    try:
        raise ValueError("first\n2026-11-22T10:00:00.000Z INFO  forged\x1b[0m")
    except ValueError as error:
        log_event(log, "failed", level=logging.ERROR, error=error, job=1)
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith(" ERROR failed job=1")
    assert rest and all(line.startswith("    ") for line in rest)
    assert "\x1b" not in stream.getvalue()


def test_setup_replaces_what_was_there(written: Written) -> None:
    _, first = written("text")
    log, second = written("text")
    log_event(log, "once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


@pytest.mark.parametrize("format", logs.FORMATS)
@given(fields=st.dictionaries(st.text(min_size=1), VALUES, max_size=4), name=st.text())
def test_the_short_way_writes_what_the_long_way_does(format: str, fields: dict[str, object], name: str) -> None:
    fields = {key: value for key, value in fields.items() if key not in ("level", "error")}
    root, log = logging.getLogger(), logging.getLogger("gpusched.test")
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    lines = []
    try:
        for others in ([], [logging.NullHandler()]):  # with another handler, it goes the long way
            stream = io.StringIO()
            logs.setup("info", format, stream)
            root.handlers += others
            log_event(log, "grant", **{**fields, "name": name})
            lines.append(re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "TIME", stream.getvalue(), count=1))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions = raising
        logging.captureWarnings(False)
    assert lines[0] == lines[1]


def test_lines_that_are_gathered_come_in_order_and_in_one_piece(written: Written) -> None:
    log, stream = written("text")
    writes: list[str] = []
    stream.write = lambda text: writes.append(text) or len(text)  # type: ignore[method-assign,func-returns-value]
    log_event(log, "one")
    with logs.gathered():
        log_event(log, "two")
        log.warning("three")
        with logs.gathered():
            log_event(log, "four")
        assert len(writes) == 1
    log_event(log, "five")
    assert [len(text.splitlines()) for text in writes] == [1, 3, 1]
    assert [line.split()[2] for text in writes for line in text.splitlines()] == ["one", "two", "three", "four", "five"]


def test_lines_that_are_gathered_are_written_after_a_failure_too(written: Written) -> None:
    log, stream = written("text")
    with pytest.raises(KeyError), logs.gathered():
        log_event(log, "before")
        raise KeyError
    assert "before" in stream.getvalue()


def test_a_broken_stream_does_not_matter(written: Written, capfd: pytest.CaptureFixture[str]) -> None:
    log, stream = written("text")
    stream.close()
    log_event(log, "lost")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("level", "format"), [("loud", "text"), ("info", "xml")])
def test_unknown_settings_name_what_is_allowed(level: str, format: str) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        logs.setup(level, format, io.StringIO())
