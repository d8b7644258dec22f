"""Text on a terminal: what is safe to print, how wide it is, and how to cut, pad and wrap it."""

from __future__ import annotations

import unicodedata

ELLIPSIS = "…"

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def clean(text: str) -> str:
    r"""Text with all that could move the cursor, colour, reorder or hide made visible (`\n`, `\x1b`, `\u202e`).

    Printable text comes back as it is; other spaces become plain ones.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _visible(c) for c in text)


def _visible(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if unicodedata.category(character) == "Zs":
        return " "
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Columns that cleaned text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if character < "\u0300":
        return 1
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def cut(text: str, columns: int) -> str:
    """Cleaned text in at most so many columns; what is cut ends with `…`."""
    if width(text) <= columns:
        return text
    if columns <= 0:
        return ""
    kept, used = [], 0
    for character in text:
        used += _columns(character)
        if used > columns - 1:
            break
        kept.append(character)
    return "".join(kept) + ELLIPSIS


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Cleaned text filled up with spaces to so many columns, at the left of it if `right`."""
    fill = " " * (columns - width(text))
    return fill + text if right else text + fill


def wrap(text: str, columns: int | None, indent: str = "") -> list[str]:
    """Cleaned text broken at spaces into lines of at most so many columns (None: one line), each after `indent`.

    A word longer than a line is broken, so that no line ever runs over.
    """
    if columns is None:
        return [indent + text]
    room = max(columns - width(indent), 1)
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if width(joined) <= room:
            line = joined
            continue
        if line:
            lines.append(line)
        while width(word) > room:
            head = _head(word, room)
            lines.append(head)
            word = word[len(head) :]
        line = word
    if line or not lines:
        lines.append(line)
    return [indent + line for line in lines]


def _head(word: str, columns: int) -> str:
    """The longest beginning of a word that fits, one character at least."""
    used = 0
    for at, character in enumerate(word):
        used += _columns(character)
        if used > columns and at:
            return word[:at]
    return word
