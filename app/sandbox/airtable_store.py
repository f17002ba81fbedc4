"""Where the sandbox keeps a table: its schema and records in memory, and every committed change in a journal.

A change is in the journal before anyone can see it, so that what was answered survives a kill of the process. It knows
nothing of HTTP, nor of what may be written.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic reads the types of what is in the journal
from dataclasses import dataclass, replace
from datetime import datetime  # noqa: TC003 - as above
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from app.sandbox.airtable_cells import Cell  # noqa: TC001 - as above
from app.sandbox.airtable_schema import FieldType, TableSchema
from app.sandbox.formula_values import format_datetime

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from app.model import Json


@dataclass(frozen=True, slots=True)
class Record:
    """One row, the `number`th to be created. `cells` are by field id; what is empty is not there."""

    id: str
    number: int
    created_time: datetime
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes true at once: records written whole, records gone, perhaps another schema."""

    put: tuple[Record, ...] = ()
    drop: tuple[str, ...] = ()
    schema: TableSchema | None = None


_CHANGES = TypeAdapter(Change)


class Journal:
    """Changes as JSON lines in a file. A last line that a kill cut short was never answered, and is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def replay(self) -> Iterator[Change]:
        """Read what was committed. Raises `ValueError` if a line in the middle is broken."""
        if not self._path.exists():
            return
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    yield _CHANGES.validate_json(line)
                except ValidationError as error:
                    raise ValueError(f"line {number} of {self._path} is no change of a table") from error
                whole += len(line)
        with self._path.open("r+b") as file:
            file.truncate(whole)

    def append(self, change: Change) -> None:
        with self._path.open("ab") as file:
            file.write(_CHANGES.dump_json(change) + b"\n")


class TableStore:
    """The table as it is now. `commit` is the only way to change it.

    A journal that holds something wins over the schema given here, ids included.
    """

    def __init__(self, schema: TableSchema, journal: Journal | None = None) -> None:
        self.schema = schema
        self.used_ids: set[str] = set()
        self.next_number = 1
        self._records: dict[str, Record] = {}
        self._indexes: dict[str, dict[Cell, dict[str, None]]] = {}
        self._journal = journal
        if journal is not None:
            is_new = True
            for change in journal.replay():
                self._apply(change)
                is_new = False
            if is_new:
                journal.append(Change(schema=schema))

    @property
    def records(self) -> Mapping[str, Record]:
        """All records by id, in the order of their creation."""
        return self._records

    def find(self, field_id: str, cell: Cell) -> list[str]:
        """The ids of the records that have exactly this in a field, without looking at all of them."""
        index = self._indexes.get(field_id)
        if index is None:
            index = self._indexes[field_id] = {}
            for record in self._records.values():
                if field_id in record.cells:
                    index.setdefault(record.cells[field_id], {})[record.id] = None
        return list(index.get(cell, ()))

    def commit(self, change: Change) -> None:
        """Write a change to the journal, then make it true."""
        if self._journal is not None:
            self._journal.append(change)
        self._apply(change)

    def _apply(self, change: Change) -> None:
        if change.schema is not None:
            self.schema = change.schema
            self._fit_cells()
        for record_id in change.drop:
            if (gone := self._records.pop(record_id, None)) is not None:
                self._unindex(gone)
        for record in change.put:
            if (old := self._records.get(record.id)) is not None:
                self._unindex(old)
            self._records[record.id] = record
            self.used_ids.add(record.id)
            self.next_number = max(self.next_number, record.number + 1)
            for field_id, index in self._indexes.items():
                if field_id in record.cells:
                    index.setdefault(record.cells[field_id], {})[record.id] = None

    def _unindex(self, record: Record) -> None:
        for field_id, index in self._indexes.items():
            if field_id in record.cells:
                holders = index[record.cells[field_id]]
                del holders[record.id]
                if not holders:
                    del index[record.cells[field_id]]

    def _fit_cells(self) -> None:
        """Empty the cells whose column or select option the schema no longer has, as Airtable does."""
        columns = {column.id: column for column in self.schema.columns}
        self._indexes.clear()
        for record in self._records.values():
            kept = {
                field_id: cell
                for field_id, cell in record.cells.items()
                if (column := columns.get(field_id)) is not None
                and (column.type is not FieldType.SINGLE_SELECT or column.has_option(str(cell)))
            }
            if len(kept) != len(record.cells):
                self._records[record.id] = replace(record, cells=kept)


def show_record(schema: TableSchema, record: Record, *, by_id: bool, only: Collection[str] | None = None) -> Json:
    """Show a record as the API does, in the order of the columns; `only` the cells of these field ids, if given."""
    cells: dict[str, Json] = {
        (column.id if by_id else column.name): record.cells[column.id]
        for column in schema.columns
        if column.id in record.cells and (only is None or column.id in only)
    }
    return {"id": record.id, "createdTime": format_datetime(record.created_time), "fields": cells}
