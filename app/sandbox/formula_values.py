"""The values of Airtable's formula language, and what its operators and functions make of them.

It knows nothing of formulas as text, nor of rows. Where Airtable's manual is silent, these readings are used:
a blank equals `""`, `0` and `FALSE()`; text never equals a number; ordering values of two kinds is an error;
FIND and SEARCH take upper and lower case as they are.
"""

from __future__ import annotations

import calendar
import math
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Value: TypeAlias = bool | int | float | str | datetime | None


class NoValueError(Exception):
    """The formula has no value for this row: Airtable shows `#ERROR!`."""


def parse_datetime(text: str) -> datetime | None:
    """Read an ISO 8601 date or date and time; without an offset it is UTC. None if it is neither."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        return None


def format_datetime(moment: datetime) -> str:
    """Write a moment as Airtable does: UTC, milliseconds, `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def truth(value: Value) -> bool:
    return value is not None and value is not False and value not in ("", 0)


def _equal(left: Value, right: Value) -> bool:
    if left is None or right is None:
        other = right if left is None else left
        return other is None or (not isinstance(other, datetime) and not other)
    if isinstance(left, (bool, int, float)) and isinstance(right, (bool, int, float)):
        return left == right
    return type(left) is type(right) and left == right


def _less(left: Value, right: Value) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left < right
    if isinstance(left, datetime) and isinstance(right, datetime):
        return left < right
    return _number(left) < _number(right)


def _number(value: Value) -> float:
    match value:
        case None:
            return 0.0
        case bool() | int() | float():
            return float(value)
    raise NoValueError


def _whole(value: Value) -> int:
    number = _number(value)
    if not math.isfinite(number):
        raise NoValueError
    return int(number)


def _text(value: Value) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(int(value))
        case datetime():
            return format_datetime(value)
        case float() if value.is_integer():
            return str(int(value))
    return str(value)


def _moment(value: Value) -> datetime:
    """Take a datetime, or a text that reads as one: Airtable's date functions accept both."""
    moment = parse_datetime(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise NoValueError
    return moment


def _divide(left: Value, right: Value) -> float:
    if _number(right) == 0:
        raise NoValueError
    return _number(left) / _number(right)


OPERATORS: dict[str, Callable[[Value, Value], Value]] = {
    "=": _equal,
    "!=": lambda left, right: not _equal(left, right),
    "<": _less,
    ">": lambda left, right: _less(right, left),
    "<=": lambda left, right: _less(left, right) or _equal(left, right),
    ">=": lambda left, right: _less(right, left) or _equal(left, right),
    "&": lambda left, right: _text(left) + _text(right),
    "+": lambda left, right: _number(left) + _number(right),
    "-": lambda left, right: _number(left) - _number(right),
    "*": lambda left, right: _number(left) * _number(right),
    "/": _divide,
}


def _find(arguments: list[Value]) -> int:
    """Count from 1; 0 is «not found». Both FIND and SEARCH take upper and lower case as they are."""
    needle, hay, *start = arguments
    first = _whole(start[0]) if start else 0
    return _text(hay).find(_text(needle), max(first - 1, 0)) + 1


_SECONDS = {"millisecond": 0.001, "second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_UNITS = _SECONDS.keys() | _MONTHS.keys()
_FLOORS = ("year", "month", "day", "hour", "minute", "second")


def _unit(value: Value) -> str:
    unit = _text(value).lower().removesuffix("s")
    if unit not in _UNITS:
        raise NoValueError
    return unit


def _add_to_date(arguments: list[Value]) -> datetime:
    moment, count, unit = _moment(arguments[0]), _number(arguments[1]), _unit(arguments[2])
    try:
        if unit in _SECONDS:
            return moment + timedelta(seconds=count * _SECONDS[unit])
        years, month = divmod(moment.month - 1 + _whole(count) * _MONTHS[unit], 12)
        year = moment.year + years
        day = min(moment.day, calendar.monthrange(year, month + 1)[1])
        return moment.replace(year=year, month=month + 1, day=day)
    except (OverflowError, ValueError) as error:
        raise NoValueError from error


def _dates(arguments: list[Value]) -> tuple[datetime, datetime] | None:
    """Take the two dates of a comparison, cut down to the unit that may follow; None if one is blank."""
    if None in arguments[:2]:
        return None
    moments = _moment(arguments[0]), _moment(arguments[1])
    if len(arguments) == 2:  # noqa: PLR2004 - the unit is the third
        return moments
    unit = _unit(arguments[2])
    if unit not in _FLOORS:
        raise NoValueError
    kept = _FLOORS[: _FLOORS.index(unit) + 1]
    left, right = (
        datetime(
            moment.year,
            moment.month if "month" in kept else 1,
            moment.day if "day" in kept else 1,
            moment.hour if "hour" in kept else 0,
            moment.minute if "minute" in kept else 0,
            moment.second if "second" in kept else 0,
            tzinfo=UTC,
        )
        for moment in moments
    )
    return left, right


def _is_after(arguments: list[Value]) -> bool:
    dates = _dates(arguments)
    return dates is not None and dates[0] > dates[1]


def _is_same(arguments: list[Value]) -> bool:
    dates = _dates(arguments)
    return dates is not None and dates[0] == dates[1]


_ANY = sys.maxsize
#: How many arguments each function takes, at least and at most. What is not here is unknown.
ARITIES: dict[str, tuple[int, int]] = {
    "AND": (1, _ANY),
    "BLANK": (0, 0),
    "CONCATENATE": (1, _ANY),
    "CREATED_TIME": (0, 0),
    "DATEADD": (3, 3),
    "DATETIME_PARSE": (1, 1),
    "FALSE": (0, 0),
    "FIND": (2, 3),
    "IF": (2, 3),
    "IS_AFTER": (2, 3),
    "IS_BEFORE": (2, 3),
    "IS_SAME": (2, 3),
    "LEN": (1, 1),
    "LOWER": (1, 1),
    "NOT": (1, 1),
    "NOW": (0, 0),
    "OR": (1, _ANY),
    "RECORD_ID": (0, 0),
    "SEARCH": (2, 3),
    "TODAY": (0, 0),
    "TRIM": (1, 1),
    "TRUE": (0, 0),
    "UPPER": (1, 1),
    "XOR": (1, _ANY),
}

#: The functions of values alone; those that ask the row or skip arguments are the evaluator's.
FUNCTIONS: dict[str, Callable[[list[Value]], Value]] = {
    "BLANK": lambda _: None,
    "CONCATENATE": lambda values: "".join(map(_text, values)),
    "DATEADD": _add_to_date,
    "DATETIME_PARSE": lambda values: _moment(values[0]),
    "FALSE": lambda _: False,
    "FIND": _find,
    "IS_AFTER": _is_after,
    "IS_BEFORE": lambda values: _is_after([values[1], values[0], *values[2:]]),
    "IS_SAME": _is_same,
    "LEN": lambda values: len(_text(values[0])),
    "LOWER": lambda values: _text(values[0]).lower(),
    "NOT": lambda values: not truth(values[0]),
    "SEARCH": lambda values: _find(values) or None,
    "TRIM": lambda values: _text(values[0]).strip(),
    "TRUE": lambda _: True,
    "UPPER": lambda values: _text(values[0]).upper(),
    "XOR": lambda values: sum(map(truth, values)) % 2 == 1,
}
