"""Structured logs on stderr: one event a line, as text for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import IO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

_FIELDS = "gpusched_fields"
_LEVEL_NAMES = {"WARNING": "WARN", "CRITICAL": "FATAL"}
# A text that is written as it is: one plain word of ASCII.
_BARE = re.compile(r"[!#-+\--<>-\[\]-~]+")
# In a text that is written between quotes.
_NOT_BARE = re.compile(r'[\s"=,]')
# Categories of characters that could end a line, move a terminal's cursor, or show text in another order.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def setup(level: str = "info", format: str = "text", stream: IO[str] | None = None) -> None:
    """Send all logging of this process to one stream, instead of wherever it went.

    Args:
        level: the least level to be written, one of `LEVELS`.
        format: one of `FORMATS`.
        stream: where to write, stderr unless given.

    Raises:
        ValueError: an unknown level or format.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r}; allowed are {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise ValueError(f"log format {format!r}; allowed are {', '.join(FORMATS)}")
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # A full disk or a closed stderr must not make logging write tracebacks about itself.
    logging.raiseExceptions = False


class _Handler(logging.StreamHandler[IO[str]]):
    """Writes lines, several in one go where they are gathered."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self.held: list[str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.put(self.format(record))
        except Exception:
            self.handleError(record)

    def put(self, line: str) -> None:
        """Write a line, or keep it until the lines are written together."""
        assert self.lock is not None
        with self.lock:  # other threads log, too
            if self.held is not None:
                self.held.append(line)
            else:
                self._write(line + "\n")

    def write_held(self) -> None:
        """Write what was kept, and keep nothing more."""
        self.acquire()
        try:
            held, self.held = self.held, None
            if held:
                self._write("\n".join(held) + "\n")
        finally:
            self.release()

    def _write(self, text: str) -> None:
        # A full disk or a closed stream loses lines, and nothing else.
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            pass


@contextmanager
def gathered() -> Iterator[None]:
    """Write the lines of this block together at its end: a burst's cost one system call. Not for blocks that wait."""
    handlers = logging.root.handlers
    handler = handlers[0] if len(handlers) == 1 else None
    if not isinstance(handler, _Handler) or handler.held is not None:
        yield
        return
    handler.held = []
    try:
        yield
    finally:
        handler.write_held()


def log_event(
    logger: logging.Logger,
    event: str,
    /,
    *,
    level: int = logging.INFO,
    error: BaseException | None = None,
    **fields: object,
) -> None:
    """Log one event by name with its facts: `log_event(log, "grant", job=17, gpus=(0, 1))`.

    Args:
        logger: whose log.
        event: short fixed name, never a user's text.
        level: a level of `logging`.
        error: an exception whose traceback belongs to the event.
        fields: the facts, of any type; those that are None are left out. Users' text is safe here.
    """
    if not logger.isEnabledFor(level):
        return
    handlers = logging.root.handlers
    if error is None and len(handlers) == 1 and type(handlers[0]) is _Handler and not logger.handlers:
        # Nobody else listens: without a LogRecord, which costs more than all the rest.
        handler = handlers[0]
        formatter = handler.formatter
        if isinstance(formatter, _LINES):
            handler.put(formatter.line(time.time(), _level_name(level), logger.name, event, fields))
            return
    present = {name: value for name, value in fields.items() if value is not None}
    logger.log(level, "%s", event, extra={_FIELDS: present}, exc_info=error)


class TextFormatter(logging.Formatter):
    """`2026-11-22T10:00:00.123Z INFO  grant job=17 user=alice gpus=0,1`, a traceback indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever control characters the message or the fields contain."""
        line = self.line(record.created, record.levelname, record.name, record.getMessage(), _fields(record))
        trace = _traceback(record)
        return line + "".join(f"\n    {escape(row)}" for row in trace.splitlines())

    def line(self, at: float, level: str, logger: str, event: str, fields: Mapping[str, object]) -> str:
        """The line of an event (`at` in seconds since the epoch), without a line's end."""
        parts = [_timestamp(at), _head(level, event)]
        for name, value in fields.items():
            if value is not None:
                parts += (_prefix(name), _text(value))
        return "".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with `time`, `level`, `event`, `logger` and the event's fields.

    A field that would take the name of one of those four is written as `field_NAME`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII."""
        fields = _fields(record)
        if trace := _traceback(record):
            fields = {**fields, "traceback": trace}
        return self.line(record.created, record.levelname, record.name, record.getMessage(), fields)

    def line(self, at: float, level: str, logger: str, event: str, fields: Mapping[str, object]) -> str:
        """The line of an event (`at` in seconds since the epoch), without a line's end."""
        entry: dict[str, object] = {"time": _timestamp(at), "level": level.lower(), "event": event, "logger": logger}
        for name, value in fields.items():
            if value is not None:
                entry[f"field_{name}" if name in entry else name] = value
        try:
            return json.dumps(entry, default=_plain, allow_nan=False)
        except (TypeError, ValueError):  # keys that JSON has no form for, NaN, an object within itself
            return json.dumps({name: value if isinstance(value, str) else repr(value) for name, value in entry.items()})


_LINES = (TextFormatter, JsonFormatter)


def escape(text: str) -> str:
    """The text with every control, formatting and unassigned character written out, such as `\\n` or `\\x1b`."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


@lru_cache(maxsize=256)
def _head(level: str, event: str) -> str:
    """What stands between the time and the fields; levels and events are few."""
    return f" {_LEVEL_NAMES.get(level, level):<5} {escape(event)}"


@lru_cache(maxsize=256)
def _prefix(name: str) -> str:
    """What stands before a field's value; names are few."""
    return f" {escape(name)}="


_level_name = lru_cache(maxsize=64)(logging.getLevelName)


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) in _UNSAFE_CATEGORIES:
        code = ord(character)
        if character in "\n\r\t":
            return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character


def _text(value: object) -> str:
    """A field's value for the text format: bare where it is one plain word, else in double quotes."""
    if type(value) is str:
        if _BARE.fullmatch(value):
            return value
        if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value and value:
            return f'"{value}"'  # words of a sentence: blanks, and what else is not bare
    elif type(value) is int:
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return ",".join(_text(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return ",".join(sorted(_text(item) for item in value))
    text = str(value)
    bare = bool(text) and _NOT_BARE.search(text) is None
    text = escape(text)
    return text if bare else '"' + text.replace('"', '\\"') + '"'


def _plain(value: object) -> object:
    """What JSON writes for a value that it has no form for."""
    if isinstance(value, (set, frozenset)):
        return sorted(str(item) for item in value)
    return str(value)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, _FIELDS, None)
    return fields if isinstance(fields, Mapping) else {}


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        return logging.Formatter().formatException(record.exc_info)
    return ""


def _timestamp(seconds: float) -> str:
    # Whole milliseconds first: rounding the fraction alone could say .1000.
    return _millisecond(int(seconds * 1000))


#: Lines of a burst have one time.
@lru_cache(maxsize=2)
def _millisecond(milliseconds: int) -> str:
    whole, rest = divmod(milliseconds, 1000)
    return f"{_second(whole)}.{rest:03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
