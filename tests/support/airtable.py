"""Asks the Airtable sandbox directly, without a socket, with clocks that stand still until they are moved."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from app.sandbox.airtable import AirtableSandbox
from app.sandbox.airtable_limits import NO_LIMITS, Limits
from app.sandbox.airtable_schema import Ids, TableSchema, schema_from_columns
from app.sandbox.messages import WireRequest, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.model import Json

TOKEN = "pat.secret"
NOW = datetime(2025, 10, 7, 7, 31, 12, 345_000, tzinfo=UTC)
SAMPLE = Path(__file__).parents[1] / "samples" / "client-run-results-columns.json"


def sample_schema(ids: Ids) -> TableSchema:
    sample = parse_json(SAMPLE.read_bytes())
    assert isinstance(sample, dict)
    assert isinstance(sample["columns"], dict)
    columns: dict[str, Json] = {**sample["columns"], "Checked": "checkbox"}
    return schema_from_columns(str(sample["table"]), columns, ids)


@dataclass
class Answer:
    status: int
    body: Json

    @property
    def error(self) -> tuple[str, str]:
        """Type and message of an error of the usual form."""
        assert isinstance(self.body, dict)
        error = self.body["error"]
        assert isinstance(error, dict)
        return str(error["type"]), str(error.get("message"))

    @property
    def records(self) -> list[Json]:
        assert self.status == 200, self.body
        assert isinstance(self.body, dict)
        records = self.body["records"]
        assert isinstance(records, list)
        return records

    @property
    def run_ids(self) -> list[Json]:
        return [at(record, "fields", "Run ID") for record in self.records]

    def at(self, *path: str | int) -> Json:
        return at(self.body, *path)


def at(value: Json, *path: str | int) -> Json:
    """Walk down a JSON value; None where there is nothing."""
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step]
        else:
            return None
    return value


class Client:
    """Asks a sandbox, with clocks that stand still until they are moved."""

    def __init__(self, limits: Limits = NO_LIMITS, journal: Path | None = None, seed: int = 1) -> None:
        self.clock = 1000.0
        self.now = NOW
        ids = Ids(random.Random(seed))  # noqa: S311 - the same ids in every run
        self.sandbox = AirtableSandbox(
            sample_schema(ids),
            token=TOKEN,
            ids=ids,
            now=lambda: self.now,
            clock=lambda: self.clock,
            limits=limits,
            journal=journal,
        )

    def call(
        self,
        method: str,
        rest: str = "",
        body: Json = None,
        *,
        query: list[tuple[str, str]] | None = None,
        token: str | None = TOKEN,
        raw: bytes | None = None,
        base: str | None = None,
        table: str | None = None,
    ) -> Answer:
        schema = self.sandbox.schema
        path = f"/v0/{base or schema.base_id}/{quote(table or schema.table_name, safe='')}{rest}"
        if rest.startswith("/v"):
            path = rest
        query = query or []
        request = WireRequest(
            method,
            path,
            tuple(query),
            {"Authorization": f"Bearer {token}"} if token else {},
            raw if raw is not None else (json.dumps(body).encode() if body is not None else b""),
            path + (f"?{urlencode(query)}" if query else ""),
        )
        response = self.sandbox(request)
        return Answer(response.status, parse_json(response.body))

    def create(self, *runs: Mapping[str, Json], typecast: bool = False) -> Answer:
        return self.call("POST", body={"records": [{"fields": dict(run)} for run in runs], "typecast": typecast})

    def upsert(self, *runs: Mapping[str, Json], on: list[Json] | None = None, method: str = "PATCH") -> Answer:
        return self.call(
            method,
            body={
                "records": [dict(run) if "fields" in run else {"fields": dict(run)} for run in runs],
                "performUpsert": {"fieldsToMergeOn": ["Run ID"] if on is None else on},
            },
        )

    def listing(self, *query: tuple[str, str]) -> Answer:
        return self.call("GET", query=list(query))

    def cells(self) -> list[dict[str, Json]]:
        return [dict(record.fields) for record in self.sandbox.records()]
