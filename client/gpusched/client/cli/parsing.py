"""Arguments: one parser for all commands' habits, and the options that several share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from gpusched.client.cli.output import Mode
from gpusched.client.cli.text import clean
from gpusched.client.usage import UsageError

T = TypeVar("T")

USAGE_STATUS = 2
_NEGATIVE = re.compile(r"-\.?[0-9]")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal, up to a point; told so, for argparse would import shutil to find out."""

    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size().columns
        except (OSError, ValueError):
            columns = 80
        super().__init__(prog, max_help_position=30, width=max(min(columns, 100) - 2, 20))


class Parser(argparse.ArgumentParser):
    """argparse with this command's way to say what is wrong, and no guessing of shortened options."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            add_help=False,
            formatter_class=_Formatter,
        )
        self.add_argument("-h", "--help", action="help", help="show this help")
        self.set_defaults(fail=self.error)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but what follows an option and begins as a negative number (`-1s`) is its value."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self._joined(words), namespace)

    def _joined(self, words: list[str]) -> list[str]:
        # argparse takes only whole negative numbers for values, and would say that the option lacks one.
        ends_at_word = any(action.nargs == argparse.REMAINDER for action in self._actions)
        joined: list[str] = []
        rest = iter(words)
        for word in rest:
            action = self._option_string_actions.get(word)
            if word == "--" or (ends_at_word and not word.startswith("-")):
                return [*joined, word, *rest]  # a command, whose words are its own
            value = next(rest, None) if action is not None and action.nargs is None else None
            if value is not None and _NEGATIVE.match(value):
                joined.append(f"{word}={value}" if word.startswith("--") else word + value)
            else:
                joined += [word] if value is None else [word, value]
        return joined

    def error(self, message: str) -> NoReturn:
        """Say it in one line and end with status 2."""
        words = self.prog.split(" ")
        place = f"{words[-1]}: " if len(words) > 1 else ""
        sys.stderr.write(f"gpusched: {place}{clean(message)} (see: {self.prog} --help)\n")
        raise SystemExit(USAGE_STATUS)


def add_address(parser: argparse.ArgumentParser) -> None:
    """`--url`, which may stand before or after the command."""
    parser.add_argument(
        "--url",
        metavar="HOST:PORT",
        default=argparse.SUPPRESS,
        help="the scheduler's address (default: $GPUSCHED_URL, else port $GPUSCHED_PORT of this machine, else 9123)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--quiet`, for a command that does something."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print what came of it as one JSON document")
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing when it worked")


def add_listing(parser: argparse.ArgumentParser, ids: str = "") -> None:
    """`--json`, `--watch` and, where `ids` says what they are, `--quiet`, for a command that shows something."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print JSON; with --watch one document a line")
    if ids:
        group.add_argument("-q", "--quiet", action="store_true", help=f"print {ids} alone, one a line")
    parser.add_argument(
        "-w", "--watch", action="store_true", help="go on showing it as it changes, until it ends or ^C is typed"
    )


def mode_of(args: argparse.Namespace) -> Mode:
    """What the arguments ask for; ends the program if that is `--quiet` with `--watch`."""
    if getattr(args, "json", False):
        return Mode.JSON
    if not getattr(args, "quiet", False):
        return Mode.TABLE
    if getattr(args, "watch", False):
        args.fail("--quiet cannot be had with --watch")
    return Mode.QUIET


def checked(field: str, parse: Callable[[str, str], T]) -> Callable[[str], T]:
    """An argparse type out of a function of text and field name that raises UsageError."""

    def convert(text: str) -> T:
        try:
            return parse(text, field)
        except UsageError as error:
            # argparse names the field itself.
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{error.field}: ")) from None

    return convert


def whole_number(least: int, most: int) -> Callable[[str, str], int]:
    """A parser of whole numbers within bounds."""

    def parse(text: str, field: str) -> int:
        digits = text[1:] if text[:1] in ("-", "+") else text
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 18 or not least <= int(text) <= most:
            raise UsageError(field, text, f"give a whole number from {least} to {most}")
        return int(text)

    return parse


def job_id(text: str, field: str) -> str:
    """A job's id as it may be sent; the server knows which there are."""
    if not text.strip() or not text.isprintable() or len(text) > 64:
        raise UsageError(field, text, "give a job's id as `gpusched jobs` shows it")
    return text.strip()


def short_text(text: str, field: str) -> str:
    """A reason for people: one line, at most 500 characters."""
    if not text.isprintable() or len(text) > 500:
        raise UsageError(field, text, "give one line of at most 500 characters, without control characters")
    return text
