"""What every section of `make bench` shares: what was asked for, ratios with their intervals, goals, and tables.

Machines are shared and noisy, so no figure stands alone: contestants take turns in shuffled rounds, and what is judged
is the ratio of two of them in the same round.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

#: Resamples of a bootstrap: more would not move the second digit of an interval.
_RESAMPLES: Final = 2_000
_CONFIDENCE: Final = 0.95


class Form(StrEnum):
    #: A look at whether it works.
    QUICK = "quick"
    #: Fewer rounds and smaller stores: a quarter of an hour, with wide intervals.
    SHORT = "short"
    FULL = "full"


PickedT = TypeVar("PickedT")


@dataclass(frozen=True, slots=True)
class Options:
    """Where files may be made (on the disk that is measured), and how much is measured."""

    folder: Path
    form: Form

    def pick(self, *, quick: PickedT, short: PickedT, full: PickedT) -> PickedT:
        return {Form.QUICK: quick, Form.SHORT: short, Form.FULL: full}[self.form]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under `columns`; the first column is a name, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", _row(self.columns), _row(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_row(row) for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


Section: TypeAlias = Callable[[Options], Coroutine[None, None, Sequence[Table]]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median, and the interval that holds it with 95 % confidence."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def estimate(values: Sequence[float]) -> Estimate:
    """The median of `values`, with a bootstrap interval."""
    chance = random.Random(1)  # noqa: S311 - the same interval for the same values
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    edge = int(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return Estimate(statistics.median(values), medians[edge], medians[-1 - edge])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """How many times theirs ours is, round by round: both were measured in the same rounds, in the same order.

    A round in which the other got nothing done says nothing.
    """
    return estimate([one / other for one, other in zip(ours, theirs, strict=True) if other])


def spread(values: Sequence[float]) -> str:
    """The median and the middle half of the rounds."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio that was asked for. `at_most` turns it round. `info` is a ratio that nobody asked for."""

    what: str
    seen: Estimate
    wanted: float | None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """Met or missed by the median; near where the interval holds the goal."""
        if self.wanted is None:
            return ""
        met = self.seen.middle <= self.wanted if self.at_most else self.seen.middle >= self.wanted
        near = self.seen.low <= self.wanted <= self.seen.high
        return ("met" if met else "missed") + (", within the interval" if near else "")

    def row(self) -> list[str]:
        sign = "at most" if self.at_most else "at least"
        return [self.what, str(self.seen), "" if self.wanted is None else f"{sign} {self.wanted:g}", self.verdict]


def goals_table(title: str, goals: Sequence[Goal], note: str = "") -> Table:
    columns = ("ratio", "median (95 % interval)", "goal", "")
    return Table(title, columns, [goal.row() for goal in goals], note)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
