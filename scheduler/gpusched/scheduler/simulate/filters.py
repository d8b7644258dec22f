"""Rows of a log by the value of a column: `vc=vcvGl`, `submit_wall>=2017-10-01`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from gpusched.scheduler.simulate.workload import SimulationError

_FORM = re.compile(r"([^=<>!]+?)\s*(>=|<=|!=|==|=|<|>)\s*(.*)", re.DOTALL)
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]*)?")
_OPERATORS: dict[str, Callable[[str | float, str | float], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A column, how it is compared, and with what: as numbers if both are, else as texts.

    Attributes:
        option: where it came from, for messages.
    """

    column: str
    operator: str
    value: str
    option: str = "--filter"

    def matches(self, text: str) -> bool:
        """Whether a row with this in the column stays."""
        text = text.strip()
        compare = _OPERATORS[self.operator]
        mine, given = _as_number(text), _as_number(self.value)
        if mine is not None and given is not None:
            return compare(mine, given)
        return compare(text, self.value)


def parse_filter(text: str, option: str = "--filter") -> Filter:
    """Raises SimulationError."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise SimulationError(
            f"{option}: {text[:60]!r} is not understood; give COLUMN=VALUE (or !=, <, <=, >, >= in place of =)"
        )
    return Filter(found[1].strip(), found[2], found[3].strip(), option)


def _as_number(text: str) -> float | None:
    # Not all that float() takes: names such as 6214e9 or nan are none.
    return float(text) if _DECIMAL.fullmatch(text) else None
