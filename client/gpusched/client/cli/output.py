"""The one way out: tables for people, JSON for programs, bare ids for `--quiet`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

from gpusched.client.cli.text import clean, cut, pad, width, wrap

if TYPE_CHECKING:
    from google.protobuf.message import Message

GAP = "  "

_PIECE = 16384

_SGR = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36", "magenta": "35"}


class Mode(Enum):
    """What the reader asked for."""

    TABLE = "table"
    JSON = "json"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Column:
    """How one column of a table looks.

    Attributes:
        header: shown above it.
        short: header used where room is scarce; empty: the same.
        right: align to the right.
        least: columns that it keeps when it is cut for room; 0: it is never cut.
        drop: where cutting is not enough, columns with the highest number go first; 0: it stays.
    """

    header: str
    short: str = ""
    right: bool = False
    least: int = 0
    drop: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of one field, uncleaned, and its colour on a terminal ("" for none)."""

    text: str
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `note` is shown beneath it where it is not empty."""

    cells: Sequence[Cell]
    note: str = ""
    note_colour: str = ""


@dataclass(frozen=True, slots=True)
class _Layout:
    shown: tuple[int, ...]
    headers: tuple[str, ...]
    widths: tuple[int, ...]


class Table:
    """Aligned columns without borders, made to fit a width.

    Args:
        columns: what each cell of a row is.
        width: columns of the terminal; None where nothing is to be cut.
        colour: whether cells are coloured.
    """

    def __init__(self, columns: Sequence[Column], width: int | None, colour: bool) -> None:
        self._columns = columns
        self._width = width
        self._colour = colour
        self._layout: _Layout | None = None

    def lines(self, rows: Sequence[Row]) -> list[str]:
        """Header and rows, each a line that fits."""
        self._layout = self._fit(rows)
        header = [Cell(text, "bold") for text in self._layout.headers]
        lines = [self._line(header, range(len(header)))]
        for row in rows:
            lines += self.more(row)
        return lines

    def more(self, row: Row) -> list[str]:
        """One more row under columns as wide as in the last call of `lines`, and its note."""
        if self._layout is None:
            self._layout = self._fit([row])
        lines = [self._line(row.cells, self._layout.shown)]
        if row.note:
            lines += [paint(part, row.note_colour, self._colour) for part in wrap(clean(row.note), self._width, GAP)]
        return lines

    def _line(self, cells: Sequence[Cell], which: Iterable[int]) -> str:
        assert self._layout is not None
        parts: list[str] = []
        for place, (number, columns) in enumerate(zip(which, self._layout.widths, strict=True)):
            column = self._columns[self._layout.shown[place]]
            cell = cells[number]
            text = clean(cell.text)
            if self._width is not None:
                text = cut(text, columns)
            filled = pad(text, columns, right=column.right)
            if place == len(self._layout.shown) - 1 and not column.right:
                filled = filled.rstrip(" ")
            parts.append(paint(filled, cell.colour, self._colour))
        return GAP.join(parts).rstrip(" ")

    def _fit(self, rows: Sequence[Row]) -> _Layout:
        """Widths for these rows: natural, or with short headers, cut cells and, last, fewer columns."""
        natural = [max([0, *(width(clean(row.cells[n].text)) for row in rows)]) for n in range(len(self._columns))]
        shown = list(range(len(self._columns)))
        while True:
            for short in (False, True):
                headers = [self._header(n, short) for n in shown]
                widths = [max(natural[n], width(header)) for n, header in zip(shown, headers, strict=True)]
                if self._width is None or self._excess(widths) <= 0:
                    return _Layout(tuple(shown), tuple(headers), tuple(widths))
            self._squeeze(shown, headers, widths)
            droppable = [n for n in shown if self._columns[n].drop]
            if self._excess(widths) <= 0 or not droppable:
                self._force(widths)
                return _Layout(tuple(shown), tuple(headers), tuple(widths))
            shown.remove(max(droppable, key=lambda n: self._columns[n].drop))

    def _header(self, number: int, short: bool) -> str:
        column = self._columns[number]
        return column.short or column.header if short else column.header

    def _excess(self, widths: Sequence[int]) -> int:
        assert self._width is not None
        return sum(widths) + len(GAP) * (len(widths) - 1) - self._width

    def _squeeze(self, shown: Sequence[int], headers: Sequence[str], widths: list[int]) -> None:
        """Take columns from the widest cell that may be cut, one by one, while the line is too long."""
        least = [
            max(self._columns[n].least, width(header)) if self._columns[n].least else wide
            for n, header, wide in zip(shown, headers, widths, strict=True)
        ]
        while self._excess(widths) > 0:
            place = max(range(len(widths)), key=lambda p: (widths[p] > least[p], widths[p]))
            if widths[place] <= least[place]:
                return
            widths[place] -= 1

    def _force(self, widths: list[int]) -> None:
        """A terminal too narrow for anything: cut at its edge, from the last column on."""
        for place in reversed(range(len(widths))):
            widths[place] -= min(max(self._excess(widths), 0), widths[place])


def paint(text: str, colour: str, enabled: bool) -> str:
    """Text in a colour of this module ("" for none), if colours are on."""
    return f"\x1b[{_SGR[colour]}m{text}\x1b[0m" if enabled and colour and text else text


class Output:
    """Where a command writes to.

    Attributes:
        mode: table, JSON or quiet.
        terminal: standard output is a terminal.
        colour: and colours are wanted there (`NO_COLOR` unset or empty, `TERM` not `dumb`).
    """

    def __init__(self, mode: Mode = Mode.TABLE, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.mode = mode
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self.terminal = self._stdout.isatty()
        self.colour = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal; `COLUMNS` and `LINES` come first, 80 by 24 where nothing tells."""
        try:
            size = os.get_terminal_size(self._stdout.fileno())
            columns, lines = size.columns, size.lines
        except (OSError, ValueError):
            columns, lines = 0, 0
        return _number("COLUMNS") or columns or 80, _number("LINES") or lines or 24

    @property
    def width(self) -> int | None:
        """Columns to fit into; None on a pipe or in a file, where nothing is cut."""
        return self.size()[0] if self.terminal else None

    def table(self, columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
        """The lines of a table for this output."""
        return Table(columns, self.width, self.colour).lines(rows)

    def facts(self, pairs: Sequence[tuple[str, Cell]], *, bold: bool = True) -> list[str]:
        """The lines of a block of labelled facts; long ones go on under their beginning."""
        column = max(width(label) for label, _ in pairs) + len(GAP)
        lines = []
        for label, cell in pairs:
            room = None if self.width is None else max(self.width - column, 8)
            first, *rest = wrap(clean(cell.text), room)
            head = paint(pad(label, column), "bold" if bold else "", self.colour)
            lines.append((head + paint(first, cell.colour, self.colour)).rstrip(" "))
            lines += [" " * column + paint(part, cell.colour, self.colour) for part in rest]
        return lines

    def paragraph(self, text: str, colour: str = "") -> list[str]:
        """Lines of one sentence, wrapped to the terminal."""
        first, *rest = wrap(clean(text), self.width)
        return [paint(part, colour, self.colour) for part in [first, *rest]]

    def lines(self, lines: Iterable[str]) -> None:
        """Write finished lines to standard output."""
        self.raw("".join(f"{line}\n" for line in lines))

    def ids(self, ids: Iterable[str]) -> None:
        """What `--quiet` leaves of a list: one id a line."""
        self.lines(map(clean, ids))

    def raw(self, text: str) -> None:
        """Write to standard output as it is: the terminal's own control sequences."""
        # In pieces: with PYTHONUNBUFFERED Python drops what a pipe does not take of one write, and says nothing.
        for at in range(0, len(text), _PIECE):
            self._stdout.write(text[at : at + _PIECE])
        self._stdout.flush()

    def say(self, text: str) -> None:
        """What an action did, one sentence: on standard output, unless the reader wants JSON or quiet."""
        if self.mode is Mode.TABLE:
            self.lines([clean(text)])

    def note(self, text: str) -> None:
        """A word beside the answer, on standard error."""
        self._stdout.flush()
        self._stderr.write(f"{clean(text)}\n")
        self._stderr.flush()

    def error(self, text: str) -> None:
        """What is wrong, on standard error."""
        self.note(f"gpusched: {text}")

    def json(self, document: object, *, line: bool = False) -> None:
        """One JSON document; on one line if `line`."""
        import json

        # ASCII only: no byte of it can steer a terminal.
        text = json.dumps(document, separators=(",", ":")) if line else json.dumps(document, indent=2)
        self.lines([text])


def document(message: Message) -> dict[str, Any]:
    """A message as JSON values: names and order of the contract, every field but unset messages and optionals."""
    from google.protobuf.json_format import MessageToDict

    options: dict[str, Any] = {"preserving_proto_field_name": True}
    try:
        values = MessageToDict(message, always_print_fields_with_no_presence=True, **options)
    except TypeError:  # protobuf 4 calls it otherwise
        options["including_default_value_fields"] = True
        values = MessageToDict(message, **options)
    ordered: dict[str, Any] = _in_order(values, message.DESCRIPTOR)
    return ordered


def _in_order(values: Any, descriptor: Any) -> Any:
    """The same JSON values with their fields in the contract's order, not first those that are set."""
    if isinstance(values, list):
        return [_in_order(value, descriptor) for value in values]
    if not isinstance(values, dict) or descriptor is None or descriptor.GetOptions().map_entry:
        return values  # a scalar, a time (a string in JSON), or a map
    return {f.name: _in_order(values[f.name], f.message_type) for f in descriptor.fields if f.name in values}


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdigit() else 0
