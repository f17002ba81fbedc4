"""What a record in Airtable says against what was delivered of its run: a pure comparison, value by value.

Knows neither who reads the records nor where findings are kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from app.clock import iso, parse_iso
from app.fields import NUMERIC, FieldType, readable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from app.fields import Field, Fold, Registry, Value
    from app.model import Json
    from app.policy.asking import ListAnswer

#: Characters of one value, and of a whole cause, that an error shows at most.
MOST_SHOWN: Final = 60
MOST_CAUSE: Final = 500
#: Equal characters that are shown before those that differ.
_BEFORE_DIFFERENCE: Final = 20

#: Airtable's answer to the next page of a listing that took too long: it has to start again.
_EXPIRED: Final = "LIST_RECORDS_ITERATOR_NOT_AVAILABLE"


def is_expired(answer: ListAnswer) -> bool:
    """Whether a listing has to start again from its first page."""
    return getattr(answer, "cause", "").startswith(_EXPIRED)


@dataclass(frozen=True, slots=True)
class Difference:
    """A field whose cell is not what was delivered; both as they are shown."""

    field: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"{self.field}: {self.ours} here, {self.theirs} in Airtable"


def differences(delivered: Fold, cells: Mapping[str, Json], registry: Registry) -> tuple[Difference, ...]:
    """Where a record's cells (by column) are not what was delivered (by field); fields we no longer know are left."""
    found = []
    for name, value in delivered.items():
        field = registry.get(name)
        if field is None:
            continue
        ours, theirs = kept(field, value), kept(field, cells.get(field.column))
        if type(ours) is not type(theirs) or ours != theirs:
            found.append(Difference(name, *_shown(ours, theirs)))
    return tuple(found)


def kept(field: Field, value: Value | Json) -> Json:
    """A value as Airtable keeps it: numbers are floats, an empty text is no cell, a time is UTC with milliseconds."""
    cell: Json = float(value) if isinstance(value, Decimal) else value
    if cell is None or cell == "":
        return None
    if field.type in NUMERIC and isinstance(cell, int | float) and not isinstance(cell, bool):
        return _as_float(cell)
    if field.type is FieldType.DATETIME and isinstance(cell, str):
        return _as_time(cell)
    return cell


def _as_float(number: float) -> float | str:
    try:
        return float(number)
    except OverflowError:  # no double: it cannot have been ours
        return str(number)


def _as_time(text: str) -> str:
    try:
        return iso(parse_iso(text))
    except ValueError:
        return text


def _shown(ours: Json, theirs: Json) -> tuple[str, str]:
    """Both values from a little before the place where they part, so that two long logs do not look the same."""
    start = 0
    if isinstance(ours, str) and isinstance(theirs, str):
        alike = next(
            (place for place, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        start = max(0, alike - _BEFORE_DIFFERENCE) if max(len(ours), len(theirs)) > MOST_SHOWN else 0
    return _show(ours, start), _show(theirs, start)


def _show(value: Json, start: int) -> str:
    match value:
        case None:
            return "empty"
        case float() if value.is_integer():
            return str(int(value))
        case str():
            text = value[start:]
            before = "…" if start else ""
        case _:
            text, before = json.dumps(value), ""
    after = "…" if len(text) > MOST_SHOWN else ""
    part = text[:MOST_SHOWN]
    return readable(f"{before}{part!r}{after}" if isinstance(value, str) else f"{part}{after}")


def cause_of(found: Sequence[Difference]) -> str:
    """All differences of a record in one line, as many as there is room for."""
    parts: list[str] = []
    for number, difference in enumerate(found):
        part = str(difference)
        if parts and sum(map(len, parts)) + len(part) > MOST_CAUSE:
            return "; ".join([*parts, f"and {len(found) - number} fields more"])
        parts.append(part)
    return "; ".join(parts)
