"""One Airtable table: its base, its fields, their types and options, and how the meta API shows them.

Plain frozen values; a change of the schema makes a new one. It knows nothing of records, nor of HTTP.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from app.model import Json


class FieldType(StrEnum):
    """The types the sandbox knows, by Airtable's names."""

    SINGLE_LINE_TEXT = "singleLineText"
    MULTILINE_TEXT = "multilineText"
    NUMBER = "number"
    CURRENCY = "currency"
    DATE_TIME = "dateTime"
    SINGLE_SELECT = "singleSelect"
    CHECKBOX = "checkbox"
    FORMULA = "formula"


TEXT_TYPES = frozenset({FieldType.SINGLE_LINE_TEXT, FieldType.MULTILINE_TEXT})
NUMBER_TYPES = frozenset({FieldType.NUMBER, FieldType.CURRENCY})
#: The types that an upsert may merge on, by Airtable's manual: number, text, long text, select, date.
MERGE_TYPES = TEXT_TYPES | {FieldType.NUMBER, FieldType.SINGLE_SELECT, FieldType.DATE_TIME}


class Ids:
    """Makes ids that look like Airtable's: a prefix and 14 alphanumerics. No id is made twice."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._used: set[str] = set()

    def new(self, prefix: str) -> str:
        while True:
            made = prefix + "".join(self._random.choices(string.ascii_letters + string.digits, k=14))
            if made not in self._used:
                self._used.add(made)
                return made

    def take(self, known: str) -> None:
        """Never make this one, which is in use already or was."""
        self._used.add(known)


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of a select column."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `choices` are a select's options in their order, `precision` a number's decimals as shown."""

    id: str
    name: str
    type: FieldType
    choices: tuple[Choice, ...] = ()
    precision: int = 0

    def has_option(self, name: str) -> bool:
        return any(choice.name == name for choice in self.choices)

    def to_json(self) -> Json:
        """Show the field as the meta API does."""
        shown: dict[str, Json] = {"id": self.id, "name": self.name, "type": self.type.value}
        if options := self._options():
            shown["options"] = options
        return shown

    def _options(self) -> dict[str, Json] | None:
        choices: list[Json] = [{"id": choice.id, "name": choice.name, "color": "blueLight2"} for choice in self.choices]
        shown: dict[FieldType, dict[str, Json]] = {
            FieldType.NUMBER: {"precision": self.precision},
            FieldType.CURRENCY: {"precision": self.precision, "symbol": "$"},
            FieldType.DATE_TIME: {
                "timeZone": "utc",
                "dateFormat": {"name": "iso", "format": "YYYY-MM-DD"},
                "timeFormat": {"name": "24hour", "format": "HH:mm"},
            },
            FieldType.SINGLE_SELECT: {"choices": choices},
            FieldType.CHECKBOX: {"icon": "check", "color": "greenBright"},
            FieldType.FORMULA: {
                "isValid": True,
                "formula": "BLANK()",
                "referencedFieldIds": [],
                "result": {"type": "singleLineText"},
            },
        }
        return shown.get(self.type)


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table with its base. The first field is the primary one."""

    base_id: str
    base_name: str
    table_id: str
    table_name: str
    columns: tuple[Column, ...]

    def find(self, name_or_id: str) -> Column | None:
        """Find a field by its name, or else by its id."""
        return next(
            (column for column in self.columns if column.name == name_or_id),
            next((column for column in self.columns if column.id == name_or_id), None),
        )

    def named(self, name: str) -> Column:
        """Find a field that must be there. Raises `KeyError`."""
        column = self.find(name)
        if column is None:
            raise KeyError(name)
        return column

    def with_column(self, changed: Column) -> TableSchema:
        """Put a changed field in the place of the one with its id."""
        return replace(self, columns=tuple(changed if column.id == changed.id else column for column in self.columns))

    def without_column(self, column_id: str) -> TableSchema:
        return replace(self, columns=tuple(column for column in self.columns if column.id != column_id))

    def to_json(self) -> Json:
        """Show the table as the meta API does."""
        return {
            "id": self.table_id,
            "name": self.table_name,
            "primaryFieldId": self.columns[0].id,
            "fields": [column.to_json() for column in self.columns],
            "views": [{"id": "viw" + self.table_id[3:], "name": "Grid view", "type": "grid"}],
        }


def schema_from_columns(
    table: str,
    columns: Mapping[str, Json],
    ids: Ids,
    *,
    base_id: str | None = None,
    base_name: str = "Sandbox",
) -> TableSchema:
    """Make a schema from a table's name and its columns: a type's name each, or `{"singleSelect": [options]}`.

    Raises `ValueError` for a column of any other shape.
    """
    return TableSchema(
        base_id=base_id or ids.new("app"),
        base_name=base_name,
        table_id=ids.new("tbl"),
        table_name=table,
        columns=tuple(_column(name, described, ids) for name, described in columns.items()),
    )


def _column(name: str, described: Json, ids: Ids) -> Column:
    match described:
        case str():
            kind = FieldType(described)
            return Column(ids.new("fld"), name, kind, precision=2 if kind is FieldType.CURRENCY else 0)
        case {"singleSelect": [*options]}:
            choices = tuple(Choice(ids.new("sel"), str(option)) for option in options)
            return Column(ids.new("fld"), name, FieldType.SINGLE_SELECT, choices)
    raise ValueError(f"column {name!r}: {described!r} is no known type")
