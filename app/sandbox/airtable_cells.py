"""What a cell may hold, by the type of its column: reading what a request gives, and showing what is there.

An empty cell is no cell at all. It knows columns, but neither records nor HTTP.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from app.sandbox import airtable_errors as errors
from app.sandbox.airtable_schema import NUMBER_TYPES, TEXT_TYPES, Choice, Column, FieldType, Ids, TableSchema
from app.sandbox.formula_values import Value, format_datetime, parse_datetime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.model import Json

Cell: TypeAlias = str | int | float | bool

#: What a long text holds; the limit is not documented for a single line, and taken to be the same.
MAX_TEXT = 100_000
#: Numbers are IEEE 754 doubles: beyond this, not every integer is one.
_MAX_EXACT = 2**53


class CellReader:
    """Reads the `fields` objects of one request against a schema.

    With `typecast` it parses strings and lets `schema` grow by the select options that are new; without it, what does
    not fit is refused.
    """

    def __init__(self, schema: TableSchema, ids: Ids, *, typecast: bool) -> None:
        self.schema = schema
        self._ids = ids
        self._typecast = typecast

    def read(self, given: Json) -> Mapping[str, Cell | None]:
        """Read one `fields` object into cells by field id; None empties a cell. Raises `Refusal`."""
        if not isinstance(given, dict):
            raise errors.invalid_request()
        cells: dict[str, Cell | None] = {}
        for name, value in given.items():
            column = self.schema.find(name)
            if column is None:
                raise errors.unknown_field(name)
            cells[column.id] = self._cell(column, value)
        return cells

    def _cell(self, column: Column, value: Json) -> Cell | None:
        if column.type is FieldType.FORMULA:
            raise errors.computed_field(column.name)
        if value is None:
            return None
        if column.type is FieldType.SINGLE_SELECT:
            return self._option(column, value)
        cell = self._plain(column.type, value)
        if cell is None:
            raise errors.invalid_value(column.name)
        return cell if cell is not False and cell != "" else None

    def _plain(self, kind: FieldType, value: Json) -> Cell | None:
        """Read a value that needs nothing but its type; None if it does not fit."""
        if kind in TEXT_TYPES:
            return self._text(value)
        if kind in NUMBER_TYPES:
            return self._number(value)
        if kind is FieldType.DATE_TIME:
            moment = parse_datetime(value) if isinstance(value, str) else None
            return None if moment is None else format_datetime(moment)
        return value if isinstance(value, bool) else None

    def _text(self, value: Json) -> str | None:
        if self._typecast and isinstance(value, (int, float)):
            value = str(value)
        if not isinstance(value, str) or len(value) > MAX_TEXT or not _is_unicode(value):
            return None
        return value

    def _number(self, value: Json) -> int | float | None:
        if self._typecast and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        try:
            exact = value if abs(value) <= _MAX_EXACT else float(value)
        except OverflowError:
            return None
        return exact if math.isfinite(exact) else None

    def _option(self, column: Column, value: Json) -> str | None:
        if self._typecast and value == "":
            return None
        if not isinstance(value, str):
            raise errors.invalid_value(column.name)
        if not column.has_option(value):
            if not self._typecast or not _is_unicode(value):
                raise errors.unknown_option(value)
            grown = replace(column, choices=(*column.choices, Choice(self._ids.new("sel"), value)))
            self.schema = self.schema.with_column(grown)
        return value


def _is_unicode(text: str) -> bool:
    """JSON can carry half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def formula_value(column: Column, cell: Cell | None) -> Value:
    """Turn a cell into what a formula sees of it."""
    if column.type is FieldType.DATE_TIME and isinstance(cell, str):
        return parse_datetime(cell)
    return cell
