"""The Airtable emulator: one base with one table, answering as Airtable's Web API does.

It routes requests, checks tokens and limits, and offers what a person does by hand in Airtable's own pages. It rests on
Airtable's API reference and on what its users report in public. It must not know the service that is tested against it.
"""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app.sandbox import airtable_errors as errors
from app.sandbox.airtable_cells import CellReader
from app.sandbox.airtable_errors import ErrorForms, Refusal
from app.sandbox.airtable_limits import Calls, Limits, RateLimit
from app.sandbox.airtable_list import Lister, ListQuery
from app.sandbox.airtable_schema import Choice, FieldType, Ids, TableSchema
from app.sandbox.airtable_store import Change, Journal, Record, TableStore, show_record
from app.sandbox.airtable_writes import Writer
from app.sandbox.messages import WireResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from app.model import Json
    from app.sandbox.messages import WireRequest

READ, WRITE, SCHEMA = "data.records:read", "data.records:write", "schema.bases:read"
ALL_SCOPES = (READ, WRITE, SCHEMA)


@dataclass(frozen=True, slots=True)
class PlainRecord:
    """One record as a test or a person looks at it: cells by column name, empty ones left out."""

    id: str
    fields: Mapping[str, Json]
    created_time: datetime


class AirtableSandbox:
    """A backend for `WireServer`: one table of one base, whose only token is `token`.

    `limits`, `forms`, `scopes` and `calls` may be changed at any time. `now` dates records, `clock` (monotonic seconds)
    times the rate limit. With a `journal`, every write is on its way to that file before it is answered, and a sandbox
    made anew on the same file has the same schema, ids and records. Raises `ValueError` if the journal is broken.
    """

    def __init__(
        self,
        schema: TableSchema,
        *,
        token: str,
        ids: Ids | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
        forms: ErrorForms | None = None,
        journal: Path | None = None,
    ) -> None:
        self.limits = limits if limits is not None else Limits()
        self.forms = forms if forms is not None else ErrorForms()
        self.scopes: tuple[str, ...] = ALL_SCOPES
        self.calls = Calls()
        self._token = token
        self._ids = ids if ids is not None else Ids(random.SystemRandom())
        self._now = now
        self._clock = clock
        self._rate = RateLimit()
        self._store = TableStore(schema, Journal(journal) if journal is not None else None)
        for record_id in self._store.used_ids:
            self._ids.take(record_id)
        self._writer = Writer(self._store, self._ids)
        self._lister = Lister(self._store, self._ids)

    def __call__(self, request: WireRequest, /) -> WireResponse:
        try:
            return WireResponse.json(200, self._answer(request))
        except Refusal as refusal:
            return refusal.response(self.forms)

    # --- by hand: what a person does in Airtable's own pages, without an API call ---

    @property
    def schema(self) -> TableSchema:
        return self._store.schema

    def records(self) -> list[PlainRecord]:
        """All records, in the order of their creation."""
        return [self._plain(record) for record in self._store.records.values()]

    def insert(self, fields: Mapping[str, Json]) -> PlainRecord:
        """Add a record by hand. Raises `Refusal` if a value does not fit its column."""
        cells = self._read(fields)
        record = Record(
            self._ids.new("rec"),
            self._store.next_number,
            self._now().replace(microsecond=0),
            {key: cell for key, cell in cells.items() if cell is not None},
        )
        self._store.commit(Change(put=(record,)))
        return self._plain(record)

    def edit(self, record_id: str, fields: Mapping[str, Json]) -> PlainRecord:
        """Change cells by hand; None empties one. Raises `KeyError` for an unknown record."""
        record = self._store.records[record_id]
        merged = {**record.cells, **self._read(fields)}
        edited = replace(record, cells={key: cell for key, cell in merged.items() if cell is not None})
        self._store.commit(Change(put=(edited,)))
        return self._plain(edited)

    def delete(self, record_id: str) -> None:
        """Delete a record by hand. Raises `KeyError` if it is not there."""
        self._store.commit(Change(drop=(self._store.records[record_id].id,)))

    def remove_column(self, name: str) -> None:
        """Delete a column and all of its cells. Raises `KeyError`."""
        schema = self.schema
        self._store.commit(Change(schema=schema.without_column(schema.named(name).id)))

    def rename_column(self, name: str, new_name: str) -> None:
        """Rename a column, which keeps its id and cells. Raises `KeyError`."""
        schema = self.schema
        self._store.commit(Change(schema=schema.with_column(replace(schema.named(name), name=new_name))))

    def change_type(self, name: str, kind: FieldType) -> None:
        """Give a column another type, which empties its cells (Airtable converts those it can). Raises `KeyError`."""
        column = replace(self.schema.named(name), type=kind)
        emptied = tuple(
            replace(record, cells={key: cell for key, cell in record.cells.items() if key != column.id})
            for record in self._store.records.values()
        )
        self._store.commit(Change(put=emptied, schema=self.schema.with_column(column)))

    def remove_option(self, name: str, option: str) -> None:
        """Delete an option of a select, which empties the cells that hold it. Raises `KeyError`."""
        column = self.schema.named(name)
        if not column.has_option(option):
            raise KeyError(option)
        kept = tuple(choice for choice in column.choices if choice.name != option)
        self._store.commit(Change(schema=self.schema.with_column(replace(column, choices=kept))))

    def add_option(self, name: str, option: str) -> None:
        """Add an option to a select. Raises `KeyError`."""
        column = self.schema.named(name)
        choices = (*column.choices, Choice(self._ids.new("sel"), option))
        self._store.commit(Change(schema=self.schema.with_column(replace(column, choices=choices))))

    def expire_listings(self) -> None:
        """Refuse the next page of every listing under way, as Airtable does when one takes too long."""
        self._lister.expire_all()

    def exhaust_rate(self) -> None:
        """Refuse calls for the time of the penalty, as if somebody else had used up the base's rate."""
        self._rate.refuse_until(self._clock() + self.limits.penalty_seconds)

    def _read(self, fields: Mapping[str, Json]) -> Mapping[str, str | int | float | bool | None]:
        return CellReader(self.schema, self._ids, typecast=False).read(dict(fields))

    def _plain(self, record: Record) -> PlainRecord:
        names = {column.id: column.name for column in self.schema.columns}
        cells: dict[str, Json] = {names[key]: cell for key, cell in record.cells.items()}
        return PlainRecord(record.id, cells, record.created_time)

    # --- over the wire ---

    def _answer(self, request: WireRequest) -> Json:
        self._check_size_of_url(request)
        if request.bearer != self._token:
            raise errors.unauthenticated()
        match request.segments:
            case ("v0", "meta", *rest):
                return self._answer_meta(request, rest)
            case ("v0", base_id, table, *rest) if len(rest) <= 1:
                self._check_base(base_id)
                if table not in (self.schema.table_id, self.schema.table_name):
                    raise errors.forbidden()
                self._check_scope(READ if _only_reads(request) else WRITE)
                self._take_rate()
                self.calls.take(self._now(), self.limits)
                return self._answer_record(request, rest[0]) if rest else self._answer_table(request)
        raise errors.not_found()

    def _answer_meta(self, request: WireRequest, rest: list[str]) -> Json:
        """The meta API, which goes on when the month's calls are used up."""
        if request.method != "GET":
            raise errors.not_found()
        self.calls.meta += 1
        match rest:
            case ["whoami"]:
                return {"id": "usr" + self.schema.base_id[3:], "scopes": list(self.scopes)}
            case ["bases"]:
                self._check_scope(SCHEMA)
                schema = self.schema
                return {"bases": [{"id": schema.base_id, "name": schema.base_name, "permissionLevel": "create"}]}
            case ["bases", base_id, "tables"]:
                self._check_base(base_id)
                self._check_scope(SCHEMA)
                self._take_rate()
                return {"tables": [self.schema.to_json()]}
        raise errors.not_found()

    def _answer_table(self, request: WireRequest) -> Json:
        """Answer `/v0/{base}/{table}`."""
        match request.method:
            case "GET":
                return self._list(ListQuery.from_url(request))
            case "POST":
                return self._writer.create(self._body(request), self._now(), self.limits.records)
            case "PATCH" | "PUT":
                return self._update(self._body(request), replace_all=request.method == "PUT")
            case "DELETE":
                ids = tuple(value for name, value in request.query if re.fullmatch(r"records\[\d{0,3}\]", name))
                return self._writer.delete_many(ids)
        raise errors.not_found()

    def _answer_record(self, request: WireRequest, record_id: str) -> Json:
        """Answer `/v0/{base}/{table}/{record}`, and `…/listRecords`, which has the same shape."""
        match request.method:
            case "GET":
                return self._get(request, record_id)
            case "POST" if record_id == "listRecords":
                return self._list(ListQuery.from_body(request))
            case "PATCH" | "PUT":
                body = self._body(request)
                return self._writer.update_one(record_id, body, replace_all=request.method == "PUT")
            case "DELETE":
                return self._writer.delete_one(record_id)
        raise errors.not_found()

    def _update(self, body: dict[str, Json], *, replace_all: bool) -> Json:
        if body.get("performUpsert") is None:
            return self._writer.update_many(body, replace_all=replace_all)
        return self._writer.upsert(body, self._now(), self.limits.records, replace_all=replace_all)

    def _list(self, query: ListQuery) -> Json:
        return self._lister.page(query, now=self._now(), at=self._clock(), lifetime=self.limits.iterator_seconds)

    def _get(self, request: WireRequest, record_id: str) -> Json:
        record = self._store.records.get(record_id)
        if record is None:
            raise errors.record_not_found(record_id)
        return show_record(self.schema, record, by_id=request.param("returnFieldsByFieldId") in ("1", "true"))

    def _body(self, request: WireRequest) -> dict[str, Json]:
        if self.limits.body_bytes is not None and len(request.body) > self.limits.body_bytes:
            raise errors.too_large()
        try:
            body = request.json()
        except ValueError as error:
            raise errors.bad_json() from error
        if not isinstance(body, dict):
            raise errors.invalid_request()
        return body

    def _check_size_of_url(self, request: WireRequest) -> None:
        limit = self.limits.url_characters
        url = f"http://{request.headers.get('Host', '')}{request.target}"
        if limit is not None and len(url) > limit:
            raise errors.url_too_long(limit)

    def _check_base(self, base_id: str) -> None:
        if not re.fullmatch(r"app[A-Za-z0-9]{14}", base_id):
            raise errors.not_found()
        if base_id != self.schema.base_id:
            raise errors.forbidden()

    def _check_scope(self, scope: str) -> None:
        if scope not in self.scopes:
            raise errors.forbidden()

    def _take_rate(self) -> None:
        try:
            self._rate.take(self._clock(), self.limits)
        except Refusal:
            self.calls.rate_limited += 1
            raise


def _only_reads(request: WireRequest) -> bool:
    return request.method == "GET" or (request.method == "POST" and request.segments[-1] == "listRecords")
