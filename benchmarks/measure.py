"""What a benchmark gives: rows of figures, each with its spread and beside its floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """A middle, and how far most of it lies from there.

    Attributes:
        middle: the median.
        low, high: the 10th and the 90th percentile.
        count: of what: samples of a time, rounds of a ratio.
    """

    middle: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError if there are no values."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(median(values), percentile(values, 0.1), percentile(values, 0.9), len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share (0 to 1) of the values lies, between two of them in proportion."""
    ordered = sorted(values)
    where = share * (len(ordered) - 1)
    below = int(where)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (where - below)


@dataclass(frozen=True, slots=True)
class Target:
    """What is aimed at.

    Attributes:
        limit: in the row's unit, or a ratio.
        of_ratio: the limit is on the ratio to the floor, not on the figure itself.
        at_most: else at least.
    """

    limit: float
    of_ratio: bool = True
    at_most: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        unit: of the figure and its floor, such as "ms".
        ours: the figure.
        floor_name: what it stands beside, empty for nothing.
        floor: the same, measured in turn with it.
        ratio: figure over floor, round by round.
        target: None for a figure that is only for comparison.
        note: one sentence.
    """

    name: str
    unit: str
    ours: Spread
    floor_name: str = ""
    floor: Spread | None = None
    ratio: Spread | None = None
    target: Target | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median is within the target, None if there is none."""
        if self.target is None:
            return None
        measured = self.ratio if self.target.of_ratio else self.ours
        if measured is None:
            return None
        if self.target.at_most:
            return measured.middle <= self.target.limit
        return measured.middle >= self.target.limit

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True, slots=True)
class Rounds:
    """Samples of two things measured in turn, round by round, so that a busy moment of the machine meets both.

    A list for each round.
    """

    ours: list[list[float]]
    floor: list[list[float]]

    @classmethod
    def empty(cls) -> Rounds:
        return cls([], [])

    def row(self, name: str, unit: str, floor_name: str, target: Target | None = None, note: str = "") -> Row:
        """All samples, and the ratio of the medians of each round."""
        ratios = [median(ours) / median(floor) for ours, floor in zip(self.ours, self.floor, strict=True)]
        return Row(
            name,
            unit,
            Spread.of([sample for samples in self.ours for sample in samples]),
            floor_name,
            Spread.of([sample for samples in self.floor for sample in samples]),
            Spread.of(ratios),
            target,
            note,
        )


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything is done.

    Attributes:
        rounds: times that figure and floor take turns.
        samples: of a short thing in a round.
        kills: holders killed in all.
        starts: processes started in a round.
        seconds: length of a round that counts how often something happens.
        waiters: in the long queue.
        handoffs: of a lease, in a round.
    """

    rounds: int
    samples: int
    kills: int
    starts: int
    seconds: float
    waiters: int
    handoffs: int


FULL = Effort(rounds=15, samples=40, kills=60, starts=4, seconds=1.5, waiters=10_000, handoffs=20)
QUICK = Effort(rounds=4, samples=20, kills=8, starts=2, seconds=0.7, waiters=1_000, handoffs=8)
