"""Writing records: create, update, upsert and delete as Airtable does them.

Each request is checked whole and then committed whole: one bad record fails it, and nothing is written. It knows
bodies, but not how they came.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.sandbox import airtable_errors as errors
from app.sandbox.airtable_cells import CellReader
from app.sandbox.airtable_schema import MERGE_TYPES
from app.sandbox.airtable_store import Change, Record, show_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from app.model import Json
    from app.sandbox.airtable_cells import Cell
    from app.sandbox.airtable_schema import Column, Ids
    from app.sandbox.airtable_store import TableStore

MAX_RECORDS = 10
MAX_MERGE_FIELDS = 3


@dataclass(frozen=True, slots=True)
class _Entry:
    """One element of `records`, read: the cells it gives, and the record it names, if it names one."""

    record_id: str | None
    cells: Mapping[str, Cell | None]


class Writer:
    """Plans and commits the writes of one table. Every method raises `Refusal` and then has changed nothing."""

    def __init__(self, store: TableStore, ids: Ids) -> None:
        self._store = store
        self._ids = ids

    def create(self, body: dict[str, Json], now: datetime, limit: int | None) -> Json:
        """Create the one record of `fields`, or those of `records`; `limit` bounds the records of the base."""
        reader = self._reader(body)
        if "records" not in body:
            records = [self._new(reader.read(body.get("fields")), now)]
        else:
            records = [self._new(entry.cells, now, ahead=place) for place, entry in enumerate(_entries(body, reader))]
        self._check_room(len(records), limit)
        self._commit(records, reader)
        shown = self._show(records, body)
        return {"records": shown} if "records" in body else shown[0]

    def update_one(self, record_id: str, body: dict[str, Json], *, replace_all: bool) -> Json:
        """Update the record that the URL names."""
        if record_id not in self._store.records:
            raise errors.record_not_found(record_id)
        reader = self._reader(body)
        changed = self._changed(record_id, reader.read(body.get("fields")), replace_all=replace_all)
        self._commit([changed], reader)
        return self._show([changed], body)[0]

    def update_many(self, body: dict[str, Json], *, replace_all: bool) -> Json:
        """Update the records that the body names, all of them."""
        reader = self._reader(body)
        entries = _entries(body, reader)
        for entry in entries:
            if entry.record_id is None:
                raise errors.invalid_records()
        records = [self._changed(entry.record_id or "", entry.cells, replace_all=replace_all) for entry in entries]
        _check_distinct(records)
        self._commit(records, reader)
        return {"records": self._show(records, body)}

    def upsert(self, body: dict[str, Json], now: datetime, limit: int | None, *, replace_all: bool) -> Json:
        """Update what the ids name or the merge fields match, and create what they do not match."""
        reader = self._reader(body)
        merge = self._merge_columns(body)
        entries = _entries(body, reader)
        _check_distinct_keys(entries, merge)
        records: list[Record] = []
        created: list[Json] = []
        updated: list[Json] = []
        for entry in entries:
            record_id = entry.record_id or self._match(entry.cells, merge)
            if record_id is None:
                record = self._new(entry.cells, now, ahead=len(created))
                created.append(record.id)
            else:
                record = self._changed(record_id, entry.cells, replace_all=replace_all)
                updated.append(record.id)
            records.append(record)
        _check_distinct(records)
        self._check_room(len(created), limit)
        self._commit(records, reader)
        return {"records": self._show(records, body), "createdRecords": created, "updatedRecords": updated}

    def delete_one(self, record_id: str) -> Json:
        """Delete the record that the URL names."""
        if record_id not in self._store.records:
            raise errors.record_not_found(record_id)
        self._store.commit(Change(drop=(record_id,)))
        return {"id": record_id, "deleted": True}

    def delete_many(self, record_ids: Sequence[str]) -> Json:
        """Delete the records of a list, all of them."""
        if not 1 <= len(record_ids) <= MAX_RECORDS:
            raise errors.invalid_records()
        for record_id in record_ids:
            if record_id not in self._store.records:
                raise errors.row_does_not_exist(record_id)
        self._store.commit(Change(drop=tuple(record_ids)))
        return {"records": [{"id": record_id, "deleted": True} for record_id in record_ids]}

    def _reader(self, body: dict[str, Json]) -> CellReader:
        return CellReader(self._store.schema, self._ids, typecast=_flag(body, "typecast"))

    def _new(self, cells: Mapping[str, Cell | None], now: datetime, *, ahead: int = 0) -> Record:
        """A record still to be committed, after `ahead` others of the same request."""
        there = {field_id: cell for field_id, cell in cells.items() if cell is not None}
        return Record(self._ids.new("rec"), self._store.next_number + ahead, now.replace(microsecond=0), there)

    def _changed(self, record_id: str, cells: Mapping[str, Cell | None], *, replace_all: bool) -> Record:
        record = self._store.records.get(record_id)
        if record is None:
            raise errors.row_does_not_exist(record_id)
        merged = {**({} if replace_all else record.cells), **cells}
        return replace(record, cells={key: cell for key, cell in merged.items() if cell is not None})

    def _merge_columns(self, body: dict[str, Json]) -> list[Column]:
        """The columns to merge on, as `performUpsert` names them."""
        match body.get("performUpsert"):
            case {"fieldsToMergeOn": [*names]} if 1 <= len(names) <= MAX_MERGE_FIELDS:
                pass
            case _:
                raise errors.invalid_request(f"fieldsToMergeOn must name 1 to {MAX_MERGE_FIELDS} fields")
        columns: list[Column] = []
        for name in names:
            column = self._store.schema.find(name) if isinstance(name, str) else None
            if column is None:
                raise errors.unknown_field(str(name))
            if column.type not in MERGE_TYPES or column in columns:
                raise errors.invalid_request(f'"{name}" cannot be merged on')
            columns.append(column)
        return columns

    def _match(self, cells: Mapping[str, Cell | None], merge: Sequence[Column]) -> str | None:
        """The record that has these cells in the merge fields, or None."""
        found: set[str] | None = None
        for column in merge:
            cell = cells.get(column.id)
            if cell is None:
                raise errors.invalid_request(f'a record has no value for "{column.name}", which is merged on')
            holders = self._store.find(column.id, cell)
            found = set(holders) if found is None else found.intersection(holders)
        if found is not None and len(found) > 1:
            raise errors.invalid_request("more than one record matches the fields to merge on")
        return next(iter(found), None) if found else None

    def _check_room(self, more: int, limit: int | None) -> None:
        if limit is not None and len(self._store.records) + more > limit:
            raise errors.base_is_full(limit)

    def _commit(self, records: Sequence[Record], reader: CellReader) -> None:
        grown = reader.schema if reader.schema is not self._store.schema else None
        self._store.commit(Change(put=tuple(records), schema=grown))

    def _show(self, records: Sequence[Record], body: dict[str, Json]) -> list[Json]:
        by_id = _flag(body, "returnFieldsByFieldId")
        return [show_record(self._store.schema, record, by_id=by_id) for record in records]


def _flag(body: dict[str, Json], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise errors.invalid_request()
    return value is True


def _entries(body: dict[str, Json], reader: CellReader) -> list[_Entry]:
    """Read `records`: 1 to 10 objects, each with `fields` and perhaps an `id`."""
    given = body.get("records")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_RECORDS:
        raise errors.invalid_records()
    entries: list[_Entry] = []
    for each in given:
        if not isinstance(each, dict) or "fields" not in each:
            raise errors.invalid_records()
        record_id = each.get("id")
        if record_id is not None and not isinstance(record_id, str):
            raise errors.invalid_records()
        entries.append(_Entry(record_id, reader.read(each["fields"])))
    return entries


def _check_distinct(records: Sequence[Record]) -> None:
    if len({record.id for record in records}) < len(records):
        raise errors.invalid_request("a record is named more than once")


def _check_distinct_keys(entries: Sequence[_Entry], merge: Sequence[Column]) -> None:
    keys = [tuple(entry.cells.get(column.id) for column in merge) for entry in entries if entry.record_id is None]
    if len(set(keys)) < len(keys):
        raise errors.invalid_request("two records have the same values in the fields to merge on")
