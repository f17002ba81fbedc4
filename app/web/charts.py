"""Plots as SVG, drawn on the server: pure functions from steps of time to markup.

Colours and sizes of text are classes of the style sheet, so that light, dark and narrow screens read them alike; what
a colour says, a shape says too. Each plot has a title and a description; a table beside it tells the same in numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from app.clock import parse_iso

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.store.views import ActivityStep

WIDTH: Final = 520
HEIGHT: Final = 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 510, 26, 186
_DEPTH: Final = _BOTTOM - _TOP
_LABELS: Final = 4
#: Seconds of a unit of time, and its name: the largest that leaves a number to read.
_UNITS: Final = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_A_DAY: Final = 86_400
#: Seconds between two times on the axis.
_ROUND: Final = (600, 1800, 3600, 2 * 3600, 6 * 3600, _A_DAY, 7 * _A_DAY)
_MOST_TIMES: Final = 7


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where a value and a step stand on the drawing."""

    steps: int
    top: float

    def x(self, step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * step / self.steps

    def y(self, value: float) -> float:
        return _BOTTOM - _DEPTH * value / self.top


def flow_chart(steps: Sequence[ActivityStep], title: str) -> Markup:
    """Messages a step: accepted as a stepped line, delivered as bars, set aside as crosses."""
    most = max((max(one.accepted, one.delivered, one.dead) for one in steps), default=0)
    ticks = nice_ticks(most, whole=True)
    frame = _Frame(len(steps), ticks[-1])
    width = (_RIGHT - _LEFT) / len(steps)
    bars = "".join(
        f'<rect class="delivered" x="{frame.x(n) + width * 0.15:.1f}" y="{frame.y(one.delivered):.1f}" '
        f'width="{width * 0.7:.1f}" height="{_BOTTOM - frame.y(one.delivered):.1f}"/>'
        for n, one in enumerate(steps)
        if one.delivered
    )
    line = "".join(
        f"{'M' if n == 0 else 'L'}{frame.x(n):.1f} {frame.y(one.accepted):.1f}H{frame.x(n + 1):.1f}"
        for n, one in enumerate(steps)
    )
    crosses = "".join(_cross(frame.x(n + 0.5), frame.y(one.dead)) for n, one in enumerate(steps) if one.dead)
    accepted, delivered, dead = (sum(getattr(one, name) for one in steps) for name in ("accepted", "delivered", "dead"))
    told = f"{accepted:,} messages accepted, {delivered:,} delivered, {dead:,} set aside."
    inside = f'{bars}<path class="accepted" d="{line}"/>{crosses}'
    return _drawn(steps, title, told, inside, frame, [(tick, f"{tick:,.0f}") for tick in ticks], "messages")


def delay_chart(steps: Sequence[ActivityStep], title: str) -> Markup:
    """Time from acceptance to Airtable a step: the median as joined dots, the slowest as open diamonds."""
    slowest = max((one.slowest_delay_seconds or 0.0 for one in steps), default=0.0)
    size, unit = next((one for one in _UNITS if slowest >= 2 * one[0]), _UNITS[-1])
    ticks = nice_ticks(slowest / size)
    frame = _Frame(len(steps), ticks[-1])
    line, dots, diamonds, joined = "", "", "", False
    for n, one in enumerate(steps):
        if one.median_delay_seconds is None or one.slowest_delay_seconds is None:
            joined = False
            continue
        x, y = frame.x(n + 0.5), frame.y(one.median_delay_seconds / size)
        line += f"{'L' if joined else 'M'}{x:.1f} {y:.1f}"
        dots += f'<circle class="median" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        diamonds += _diamond(x, frame.y(one.slowest_delay_seconds / size))
        joined = True
    timed = [one.median_delay_seconds for one in steps if one.median_delay_seconds is not None]
    told = (
        f"Step medians from {said_seconds(min(timed))} to {said_seconds(max(timed))}; slowest {said_seconds(slowest)}."
        if timed
        else "Nothing was delivered."
    )
    inside = f'<path class="median" d="{line}"/>{diamonds}{dots}'
    return _drawn(steps, title, told, inside, frame, [(tick, f"{tick:,g}") for tick in ticks], unit)


def said_seconds(seconds: float) -> str:
    """A span of time for people: `40 ms`, `1.5 s`, `3 min`, `5 h`, `2 days`."""
    for size, unit, digits in ((2 * _A_DAY, "days", 0), (2 * 3600, "h", 0), (120, "min", 0), (10, "s", 0), (1, "s", 1)):
        if seconds >= size:
            per = {"days": _A_DAY, "h": 3600, "min": 60, "s": 1}[unit]
            return f"{seconds / per:.{digits}f} {unit}"
    return f"{seconds * 1000:.0f} ms"


def nice_ticks(most: float, *, whole: bool = False) -> list[float]:
    """Values from 0 to at least `most` in even steps of 1, 2 or 5 (times a power of ten)."""
    most = max(most, 1.0) if whole else most or 1.0
    rough = most / _LABELS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough - 1e-12)
    if whole:
        step = max(1.0, step)
    return [round(step * n, 6) for n in range(max(1, math.ceil(most / step - 1e-9)) + 1)]


def _drawn(
    steps: Sequence[ActivityStep],
    title: str,
    told: str,
    inside: str,
    frame: _Frame,
    ticks: Sequence[tuple[float, str]],
    unit: str,
) -> Markup:
    grid = "".join(
        f'<path class="grid" d="M{_LEFT} {frame.y(value):.1f}H{_RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{frame.y(value) + 4:.1f}" text-anchor="end">{label}</text>'
        for value, label in ticks
    )
    times = "".join(
        f'<path class="grid" d="M{frame.x(n):.1f} {_BOTTOM}v4"/>'
        f'<text x="{frame.x(n):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{label}</text>'
        for n, label in _time_labels(steps)
    )
    # Numbers, class names and words of ours only: nothing that a caller wrote comes in here.
    return Markup(  # noqa: S704
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{Markup.escape(title)}. {told}">'
        f'<text class="unit" x="{_LEFT - 6}" y="14" text-anchor="start">{unit}</text>{grid}{times}'
        f'<text x="{_RIGHT}" y="{HEIGHT - 2}" text-anchor="end">time (UTC)</text>{inside}</svg>'
    )


def _time_labels(steps: Sequence[ActivityStep]) -> list[tuple[int, str]]:
    """The steps that begin at round times, as many as are easy to read; by their day where the plot has many days."""
    starts = [parse_iso(one.start).timestamp() for one in steps]
    span = starts[-1] - starts[0]
    every = next((one for one in _ROUND if span / one <= _MOST_TIMES), _ROUND[-1])
    form = "%d %b" if every >= _A_DAY else "%H:%M"
    return [(n, f"{parse_iso(steps[n].start):{form}}") for n, at in enumerate(starts) if at % every == 0]


def _cross(x: float, y: float) -> str:
    return f'<path class="dead" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'


def _diamond(x: float, y: float) -> str:
    return f'<path class="slowest" d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z"/>'
