"""Listing records: what a caller may ask for, which records answer it, and page after page of them.

It reads the store and changes nothing in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from app.sandbox import airtable_errors as errors
from app.sandbox.airtable_cells import formula_value
from app.sandbox.airtable_schema import TEXT_TYPES, FieldType
from app.sandbox.airtable_store import show_record
from app.sandbox.formulas import FormulaError, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from app.model import Json
    from app.sandbox.airtable_schema import Column, Ids, TableSchema
    from app.sandbox.airtable_store import Record, TableStore
    from app.sandbox.formula_values import Value
    from app.sandbox.formulas import Formula
    from app.sandbox.messages import WireRequest

MAX_PAGE = 100
#: Listings that nobody goes on with are forgotten, oldest first.
_MAX_ITERATORS = 1000


class Sort(BaseModel):
    model_config = ConfigDict(frozen=True)

    field: str
    direction: Literal["asc", "desc"] = "asc"


class ListQuery(BaseModel):
    """One page asked for. `view`, time zones and the like have no effect here, and are ignored."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel)

    page_size: int = Field(MAX_PAGE, ge=1, le=MAX_PAGE)
    max_records: int | None = Field(None, ge=1)
    offset: str | None = None
    fields: tuple[str, ...] = ()
    sort: tuple[Sort, ...] = ()
    filter_by_formula: str | None = None
    return_fields_by_field_id: bool = False
    cell_format: Literal["json"] = "json"

    @classmethod
    def from_url(cls, request: WireRequest) -> Self:
        """Read the query of a `GET`: arrays as `fields[]=…` and `sort[0][field]=…`. Raises `Refusal`."""
        given: dict[str, Json] = {name: value for name, value in request.query if "[" not in name}
        sorts: dict[int, dict[str, Json]] = {}
        fields: list[Json] = []
        for name, value in request.query:
            if found := re.fullmatch(r"sort\[(\d{1,3})\]\[(\w+)\]", name):
                sorts.setdefault(int(found[1]), {})[found[2]] = value
            elif re.fullmatch(r"fields\[\d{0,3}\]", name):
                fields.append(value)
        given |= {"fields": fields, "sort": [sorts[place] for place in sorted(sorts)]}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise errors.invalid_request() from error

    @classmethod
    def from_body(cls, request: WireRequest) -> Self:
        """Read the JSON of a `POST …/listRecords`. Raises `Refusal`."""
        try:
            request.json()
        except ValueError as error:
            raise errors.bad_json() from error
        try:
            return cls.model_validate_json(request.body, strict=True)
        except ValidationError as error:
            raise errors.invalid_request() from error


@dataclass(frozen=True, slots=True)
class _Iterator:
    """A listing under way: the records it is to give, as they were found when it began."""

    ids: tuple[str, ...]
    began_at: float


class Lister:
    """Answers list queries, and remembers the listings that have more pages."""

    def __init__(self, store: TableStore, ids: Ids) -> None:
        self._store = store
        self._ids = ids
        self._iterators: dict[str, _Iterator] = {}

    def expire_all(self) -> None:
        """Forget all listings under way: their next page is refused."""
        self._iterators.clear()

    def page(self, query: ListQuery, *, now: datetime, at: float, lifetime: float | None) -> Json:
        """Give one page. `at` is monotonic, and a listing is good for `lifetime` seconds. Raises `Refusal`."""
        schema = self._store.schema
        only = {_column(schema, name).id for name in query.fields} or None
        name, iterator, start = self._resume(query, now=now, at=at, lifetime=lifetime)
        end = start + query.page_size
        records = [self._store.records[found] for found in iterator.ids[start:end] if found in self._store.records]
        by_id = query.return_fields_by_field_id
        answer: dict[str, Json] = {"records": [show_record(schema, each, by_id=by_id, only=only) for each in records]}
        if end < len(iterator.ids):
            self._iterators.setdefault(name, iterator)
            while len(self._iterators) > _MAX_ITERATORS:
                del self._iterators[next(iter(self._iterators))]
            answer["offset"] = f"{name}/{iterator.ids[end]}"
        return answer

    def _resume(
        self, query: ListQuery, *, now: datetime, at: float, lifetime: float | None
    ) -> tuple[str, _Iterator, int]:
        if query.offset is None:
            found = [record.id for record in self._sorted(self._matching(query, now), query.sort)]
            return self._ids.new("itr"), _Iterator(tuple(found[: query.max_records]), at), 0
        name, _, next_id = query.offset.partition("/")
        iterator = self._iterators.get(name)
        if iterator is None or next_id not in iterator.ids:
            raise errors.iterator_gone()
        if lifetime is not None and at - iterator.began_at >= lifetime:
            del self._iterators[name]
            raise errors.iterator_gone()
        return name, iterator, iterator.ids.index(next_id)

    def _matching(self, query: ListQuery, now: datetime) -> Sequence[Record]:
        records = self._store.records
        if not query.filter_by_formula:
            return tuple(records.values())
        try:
            formula = parse(query.filter_by_formula)
        except FormulaError as error:
            raise errors.invalid_formula(f"Invalid formula. Please check your formula text. ({error})") from error
        columns = {name: column for name in formula.fields if (column := self._store.schema.find(name)) is not None}
        if missing := formula.fields - columns.keys():
            raise errors.invalid_formula(f"Unknown field names: {', '.join(sorted(missing)).lower()}")
        candidates = self._candidates(formula, columns)
        return [record for record in candidates if formula.matches(_Row(record, columns, now))]

    def _candidates(self, formula: Formula, columns: Mapping[str, Column]) -> Sequence[Record]:
        """The records worth a look: by the index, if the formula asks for certain texts of one column."""
        records = self._store.records
        wanted = formula.wanted_texts()
        if wanted is None or columns[wanted[0]].type not in TEXT_TYPES | {FieldType.SINGLE_SELECT}:
            return tuple(records.values())
        found = [each for text in wanted[1] for each in self._store.find(columns[wanted[0]].id, text)]
        return sorted((records[each] for each in found), key=lambda record: record.number)

    def _sorted(self, records: Sequence[Record], sort: Sequence[Sort]) -> Sequence[Record]:
        for by in reversed(sort):
            column = _column(self._store.schema, by.field)
            records = sorted(records, key=_sort_key(column), reverse=by.direction == "desc")
        return records


@dataclass(frozen=True, slots=True)
class _Row:
    """A record as a formula sees it."""

    record: Record
    columns: Mapping[str, Column]
    now: datetime

    @property
    def record_id(self) -> str:
        return self.record.id

    @property
    def created_time(self) -> datetime:
        return self.record.created_time

    def cell(self, name: str) -> Value:
        column = self.columns[name]
        return formula_value(column, self.record.cells.get(column.id))


def _column(schema: TableSchema, name: str) -> Column:
    column = schema.find(name)
    if column is None:
        raise errors.unknown_field(name)
    return column


def _sort_key(column: Column) -> Callable[[Record], tuple[bool, float, str]]:
    """Order blanks first, numbers by size, selects by their options' order, texts and times as text."""
    ranks = {choice.name: float(place) for place, choice in enumerate(column.choices)}

    def key(record: Record) -> tuple[bool, float, str]:
        cell = record.cells.get(column.id)
        if isinstance(cell, str):
            return True, ranks.get(cell, 0.0), cell
        return (False, 0.0, "") if cell is None else (True, float(cell), "")

    return key
