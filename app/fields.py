"""The registry: the fields a run has, their types and Airtable columns, and how a change folds into their values.

Callers name fields, never columns. Values are checked here, at the edge, so that a slip is a 422 at once and not a
dead message at night. Knows neither HTTP nor SQL.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from app.clock import iso, parse_iso
from app.errors import MOST_FLAWS, Flaw, Invalid, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.model import Json

Number: TypeAlias = int | Decimal
Value: TypeAlias = str | int | Decimal | None
Fold: TypeAlias = Mapping[str, Value]

#: Characters of one Airtable long text cell (Airtable's documented limit).
MAX_TEXT: Final = 100_000
#: Integers beyond this lose digits in a JavaScript number, which is what Airtable keeps.
MAX_INTEGER: Final = 2**53 - 1
#: Decimals beyond this have no cents left in a double.
MAX_DECIMAL: Final = 10**15

#: Fields that a kickoff, or one part of an update, may name.
MOST_NAMES: Final = 200

RUN_ID: Final = "run_id"
CLIENT_ID: Final = "client_id"
CLIENT_NAME: Final = "client_name"
#: Fields that name the run: every registry has them, and no update touches them.
IDENTITY: Final = (RUN_ID, CLIENT_ID)
REQUIRED: Final = (RUN_ID, CLIENT_ID, CLIENT_NAME)


class FieldType(StrEnum):
    TEXT = "text"
    LOG = "log"
    INTEGER = "integer"
    DECIMAL = "decimal"
    DATETIME = "datetime"
    SELECT = "select"


NUMERIC: Final = (FieldType.INTEGER, FieldType.DECIMAL)


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    column: str
    type: FieldType
    options: tuple[str, ...] = ()

    def check(self, value: Json) -> Value:
        """`value` as this field keeps it.

        Raises:
            ValueError: it is of the wrong type or out of range; the text says what the field takes.
        """
        if value is None:
            return None
        match self.type:
            case FieldType.TEXT | FieldType.LOG:
                return _check_text(value)
            case FieldType.INTEGER:
                return _check_integer(value)
            case FieldType.DECIMAL:
                return _check_decimal(value)
            case FieldType.DATETIME:
                return _check_datetime(value)
            case FieldType.SELECT:
                return _check_option(value, self.options)


def _check_text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError("takes a text")
    if len(value) > MAX_TEXT:
        raise ValueError(f"takes at most {MAX_TEXT:,} characters, this has {len(value):,}")
    if not is_unicode(value):
        raise ValueError("takes Unicode text, this has half of a surrogate pair")
    return value


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8 (a lone surrogate cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(text: str) -> str:
    """`text` without what no database keeps: half of a surrogate pair."""
    return text.encode(errors="replace").decode()


def _check_integer(value: Json) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("takes an integer")
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"takes an integer, {value!r} has a fraction")
        value = int(value)
    if abs(value) > MAX_INTEGER:
        raise ValueError(f"takes integers between -{MAX_INTEGER:,} and {MAX_INTEGER:,}")
    return value


def _is_fraction(cell: Json) -> bool:
    return isinstance(cell, float) and not cell.is_integer()


def _check_decimal(value: Json) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("takes a number")
    if not abs(value) <= MAX_DECIMAL:  # NaN too; isfinite() would choke on an integer too large for a float
        raise ValueError(f"takes numbers between -{MAX_DECIMAL:,} and {MAX_DECIMAL:,}")
    # The shortest text that means this float: 0.1 stays 0.1, so that sums of costs come out as a person adds them.
    return Decimal(repr(value))


def _check_datetime(value: Json) -> str:
    if isinstance(value, str):
        try:
            return iso(parse_iso(value))
        except ValueError:
            pass
    raise ValueError("takes an ISO 8601 time with an offset, like '2026-05-16T09:20:00Z'")


def _check_option(value: Json, options: Sequence[str]) -> str:
    if isinstance(value, str) and value in options:
        return value
    hint = did_you_mean(value, options) if isinstance(value, str) else ""
    raise ValueError(f"takes one of {', '.join(map(repr, options))}{hint}")


@dataclass(frozen=True, slots=True)
class Change:
    """What an update asks for, checked: values to set, numbers to add, lines to append. Keys are field names."""

    set: Fold = field(default_factory=dict)
    add: Mapping[str, Number] = field(default_factory=dict)
    append: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """The fields that it touches, each once."""
        return tuple(dict.fromkeys([*self.set, *self.add, *self.append]))

    def to_json(self) -> str:
        """A canonical JSON text: equal changes give equal texts."""
        parts = {"set": dict(self.set), "add": dict(self.add), "append": dict(self.append)}
        return dump({name: part for name, part in parts.items() if part})

    @staticmethod
    def from_json(text: str) -> Change:
        stored = _decode(text)
        append = {name: tuple(lines) for name, lines in stored.get("append", {}).items()}
        return Change(stored.get("set", {}), stored.get("add", {}), append)


def fold(current: Fold, change: Change) -> dict[str, Value]:
    """The values after `change`: the same changes in the same order always give the same values."""
    values = dict(current)
    values.update(change.set)
    for name, number in change.add.items():
        before = values.get(name)
        values[name] = number + before if isinstance(before, int | Decimal) else number
    for name, lines in change.append.items():
        before = values.get(name)
        kept = [before] if isinstance(before, str) else []  # an empty text is one empty line
        values[name] = "\n".join([*kept, *lines])[-MAX_TEXT:] if kept or lines else None
    return values


def check_sums(values: Fold, change: Change) -> None:
    """Refuse `change` where a sum that it makes in `values`, the fold after it, outgrows what its field takes.

    Raises:
        Invalid: a sum is out of range; each is named.
    """
    flaws = []
    for name in change.add:
        total = values[name]
        most = MAX_INTEGER if isinstance(total, int) else MAX_DECIMAL
        if isinstance(total, int | Decimal) and not -most <= total <= most:
            kind = "integers" if isinstance(total, int) else "numbers"
            detail = f"{name!r} takes {kind} between -{most:,} and {most:,}: the sum would be {total:,}"
            flaws.append(Flaw(_pointer("add", name), detail))
    if flaws:
        raise Invalid.because(flaws)


def dump(values: Mapping[str, object] | Sequence[object]) -> str:
    """A canonical JSON text; a `Decimal` becomes the JSON number that it is."""
    return _ENCODER.encode(values).decode()


def load_fold(text: str) -> dict[str, Value]:
    values: dict[str, Value] = _decode(text)
    return values


def load_names(text: str) -> tuple[str, ...]:
    """The fields that a message names."""
    return tuple(_decode(text))


def plain(value: Value) -> str | int | float | None:
    """A value as JSON writes it."""
    return float(value) if isinstance(value, Decimal) else value


def _as_json_writes_it(number: Decimal) -> msgspec.Raw:
    """As Python's json writes a float: digests of requests are taken from such texts, and kept for a month."""
    written = float(number)
    if not math.isfinite(written):
        raise ValueError(f"JSON has no such number: {number}")
    return msgspec.Raw(repr(written).encode())


def _decode(text: str) -> Any:
    """What stands in the store, of the shape that the schema and its reader know of."""
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError:  # a hand wrote half of a surrogate pair, which SQLite and json let pass
        return _LENIENT_DECODER.decode(text)


# Of msgspec: all that is accepted comes through here, several times, and json takes four times as long.
_ENCODER: Final = msgspec.json.Encoder(decimal_format=_as_json_writes_it, order="sorted")
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)
_LENIENT_DECODER: Final = json.JSONDecoder(parse_float=Decimal)


class Registry(Mapping[str, Field]):
    """The fields of a run by name, in the order of the configuration."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = {one.name: one for one in fields}
        self._names_by_column = {one.column: one.name for one in fields}

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def name_of(self, column: str) -> str | None:
        """The field that is kept in `column`."""
        return self._names_by_column.get(column)

    def check_new(self, values: Mapping[str, Json]) -> Change:
        """The fields of a kickoff, as a change of an empty run; a log takes its first line or lines.

        Raises:
            Invalid: a name is unknown, a value is of the wrong type, or there are too many; the flaws are named.
        """
        _check_count(fields=values)
        flaws = _Flaws()
        setting: dict[str, Value] = {}
        append: dict[str, tuple[str, ...]] = {}
        for name, value in values.items():
            if name in IDENTITY:
                flaws.add("fields", name, f"{name!r} follows from the kickoff itself and cannot be given as a field")
            elif (known := self._known("fields", name, flaws)) is None:
                continue
            elif known.type is FieldType.LOG and value is not None:
                _collect(append, known, value, "fields", flaws)
            else:
                _set(setting, known, value, "fields", flaws)
        flaws.raise_if_any()
        return Change(set=setting, append=append)

    def check_change(self, *, set_: Mapping[str, Json], add: Mapping[str, Json], append: Mapping[str, Json]) -> Change:
        """An update's parts, checked against the registry.

        Raises:
            Invalid: it is empty, names a field twice, an unknown field, one that this part cannot change, or a
                value of the wrong type, or too many; the flaws are named.
        """
        _check_count(set=set_, add=add, append=append)
        flaws = _Flaws()
        setting: dict[str, Value] = {}
        adding: dict[str, Number] = {}
        appending: dict[str, tuple[str, ...]] = {}
        for known, value in self._changeable("set", set_, flaws):
            if known.type is FieldType.LOG:
                flaws.add("set", known.name, f"{known.name!r} is a log and only grows: give its lines under 'append'")
            else:
                _set(setting, known, value, "set", flaws)
        for known, value in self._changeable("add", add, flaws):
            if known.type not in NUMERIC:
                flaws.add(
                    "add", known.name, f"{known.name!r} is a {known.type} and cannot be added to: use 'set' or 'append'"
                )
            elif known.name in set_:
                flaws.add("add", known.name, f"{known.name!r} is named under both 'set' and 'add'")
            else:
                _add(adding, known, value, "add", flaws)
        for known, value in self._changeable("append", append, flaws):
            if known.type is not FieldType.LOG:
                flaws.add(
                    "append",
                    known.name,
                    f"{known.name!r} is a {known.type}, and only logs can be appended to: use 'set'",
                )
            else:
                _collect(appending, known, value, "append", flaws)
        if not (set_ or add or append):
            flaws.add_whole("the update changes nothing: give 'set', 'add' or 'append'")
        flaws.raise_if_any()
        return Change(setting, adding, appending)

    def read_cells(self, cells: Mapping[str, Json]) -> dict[str, Value]:
        """The values of a record's cells; a cell that the registry does not know, or of another type, is left out.

        A fraction that a person wrote into a column of integers is kept, so that what is added is added to it.
        """
        values: dict[str, Value] = {}
        for column, cell in cells.items():
            name = self._names_by_column.get(column)
            if name is None or cell is None:
                continue
            field = self._fields[name]
            check = _check_decimal if field.type is FieldType.INTEGER and _is_fraction(cell) else field.check
            try:
                values[name] = check(cell)
            except ValueError:
                continue
        return values

    def _known(self, part: str, name: str, flaws: _Flaws) -> Field | None:
        known = self._fields.get(name)
        if known is None:
            hint = "" if flaws.full else did_you_mean(name, self._fields)
            flaws.add(part, name, f"{shown(name)} is not a known field{hint}")
        return known

    def _changeable(self, part: str, values: Mapping[str, Json], flaws: _Flaws) -> Iterator[tuple[Field, Json]]:
        """The fields that an update may change, each with its value; the others are flaws."""
        for name, value in values.items():
            if name in IDENTITY:
                flaws.add(part, name, f"{name!r} names the run and never changes")
            elif (known := self._known(part, name, flaws)) is not None:
                yield known, value


def _check_count(**parts: Mapping[str, Json]) -> None:
    """Refuse a part that names more fields than anybody has, before any of them is looked at."""
    flaws = [
        Flaw(f"/{part}", f"{part!r} names {len(values):,} fields: it takes at most {MOST_NAMES}")
        for part, values in parts.items()
        if len(values) > MOST_NAMES
    ]
    if flaws:
        raise Invalid.because(flaws)


class _Flaws:
    """Collects what is wrong, so that a caller hears of everything at once."""

    def __init__(self) -> None:
        self._found: list[Flaw] = []

    @property
    def full(self) -> bool:
        """Whether a further flaw is counted and no longer told."""
        return len(self._found) >= MOST_FLAWS

    def add(self, part: str, name: str, detail: str) -> None:
        self._found.append(Flaw(_pointer(part, name), detail))

    def add_whole(self, detail: str) -> None:
        """A flaw of the body as a whole."""
        self._found.append(Flaw("", detail))

    def raise_if_any(self) -> None:
        if self._found:
            raise Invalid.because(self._found)


def _set(into: dict[str, Value], known: Field, value: Json, part: str, flaws: _Flaws) -> None:
    try:
        into[known.name] = known.check(value)
    except ValueError as error:
        flaws.add(part, known.name, f"{known.name!r} {error}")


def _add(into: dict[str, Number], known: Field, value: Json, part: str, flaws: _Flaws) -> None:
    try:
        number = known.check(value)
    except ValueError as error:
        flaws.add(part, known.name, f"{known.name!r} {error}")
        return
    if isinstance(number, int | Decimal):
        into[known.name] = number
    else:
        flaws.add(part, known.name, f"{known.name!r} takes a number to add")


def _collect(into: dict[str, tuple[str, ...]], known: Field, value: Json, part: str, flaws: _Flaws) -> None:
    lines = value if isinstance(value, list) else [value]
    try:
        into[known.name] = tuple(_check_text(line) for line in lines)
    except ValueError as error:
        flaws.add(part, known.name, f"{known.name!r} {error}, or a list of them, one a line")


#: Characters of a pointer's last step at most: it points into the caller's own body, so it is not escaped otherwise.
_MOST_POINTED: Final = 200


def _pointer(part: str, name: str) -> str:
    return f"/{part}/" + pointed(name)


def pointed(name: str) -> str:
    """A member's name as one step of a JSON pointer."""
    return name[:_MOST_POINTED].replace("~", "~0").replace("/", "~1")


def shown(word: str, limit: int = 60) -> str:
    """A caller's word for an error text: quoted, escaped and cut to `limit` characters."""
    return repr(word if len(word) <= limit else word[: limit - 1] + "\u2026")
