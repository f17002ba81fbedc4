"""Short words for tests of the consistency check: what a person does by hand in Airtable, and what came of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from app.clock import iso
from app.sandbox.airtable_store import Change
from tests.support.watching import rows

if TYPE_CHECKING:
    from app.model import Json
    from tests.support.harness import Harness

JOB = "251007-070457"
#: A value for a field of each type but logs, which only grow.
EVERY_TYPE: dict[str, Json] = {
    "apify_run_ids": "run1",
    "posts_harvested": 5,
    "apify_api_costs": 0.1,
    "start_time": "2026-05-16T11:20:00+02:00",
    "status": "Running",
}


async def check(house: Harness, repair: str | None = None) -> dict[str, Json]:
    """Ask for a check; its report."""
    answer = await house.call("POST", "/check", {"repair": repair} if repair else None)
    assert answer.status == 200, answer.text
    return answer.json()


def found(report: dict[str, Json]) -> list[tuple[Json, Json]]:
    """Kind and run of each finding, in some order of their own."""
    findings = report["findings"]
    assert isinstance(findings, list)
    pairs = [(one["kind"], one["run_id"]) for one in findings if isinstance(one, dict)]
    assert report["trouble"] is None
    counts = report["found"]
    assert isinstance(counts, dict)
    assert sum(count for count in counts.values() if isinstance(count, int)) == len(pairs)
    return sorted(pairs, key=str)


def causes(report: dict[str, Json]) -> list[str]:
    findings = report["findings"]
    assert isinstance(findings, list)
    return [str(one["cause"]) for one in findings if isinstance(one, dict)]


def errors(house: Harness) -> list[tuple[str | int | float | None, ...]]:
    """Every error there is: kind, run, state, resolution."""
    return rows(house.store_path, "SELECT kind, run_id, state, resolution FROM errors ORDER BY id")


def record_id(house: Harness, run_id: str) -> str:
    """The first record of this run id."""
    return next(one.id for one in house.airtable.records() if one.fields.get("Run ID") == run_id)


def fill(house: Harness, count: int, note: str = "") -> None:
    """Runs that were delivered an hour ago, in the store and in Airtable; the service is not running."""
    at = iso(datetime.now(UTC) - timedelta(hours=1))
    runs = []
    for number in range(count):
        client_id = f"client{number}"
        run_id = f"{JOB}-{client_id}"
        cells: dict[str, Json] = {"Run ID": run_id, "Client ID": client_id, "Total Posts Harvested": number}
        values: dict[str, Json] = {"run_id": run_id, "client_id": client_id, "posts_harvested": number}
        if note:
            cells["System Notes"] = values["system_notes"] = f"{number} {note}"
        runs.append((run_id, JOB, client_id, house.airtable.insert(cells).id, at, at, json.dumps(values)))
    with closing(sqlite3.connect(house.store_path)) as connection, connection:
        connection.executemany(
            "INSERT INTO runs (run_id, job_id, client_id, origin, airtable_record_id, sync, created_at, changed_at,"
            " fields) VALUES (?, ?, ?, 'kickoff', ?, 'synced', ?, ?, ?)",
            runs,
        )
        connection.execute(
            "INSERT INTO outbox (run_id, kind, source, fields, change, accepted_at)"
            " SELECT run_id, 'create', 'kickoff', '[]', '{}', created_at FROM runs"
        )
        connection.execute("UPDATE outbox SET state = 'sending', call_id = 0")
        connection.execute("UPDATE outbox SET state = 'delivered', delivered_at = accepted_at")


def spoil(house: Harness) -> list[tuple[str, str]]:
    """One difference of each kind; what a check should find."""
    records = house.airtable.records()
    house.airtable.edit(records[10].id, {"Total Posts Harvested": 1_000})
    house.airtable.delete(records[120].id)
    house.airtable.insert({"Run ID": records[200].fields["Run ID"]})
    house.airtable.insert({"Run ID": "unknown"})
    return [
        ("drift", f"{JOB}-client10"),
        ("duplicate_record", f"{JOB}-client200"),
        ("record_deleted", f"{JOB}-client120"),
        ("unknown_record", "unknown"),
    ]


def backdate(house: Harness, *, days: int) -> None:
    """Let all records be older than they are."""
    store = house.airtable._store
    earlier = timedelta(days=days)
    aged = [replace(one, created_time=one.created_time - earlier) for one in store.records.values()]
    store.commit(Change(put=tuple(aged)))


def log_of(house: Harness) -> list[str]:
    """What was asked of Airtable, in order: `describe`, `list`, `find`, `create` or `update`."""
    return [
        "describe" if one.path.startswith("/v0/meta/") else _kind(one.method, one.query, one.body)
        for one in house.airtable_server.log
    ]


def _kind(method: str, query: tuple[tuple[str, str], ...], body: bytes) -> str:
    if method == "GET" or (method == "POST" and b"filterByFormula" in body):
        formula = dict(query).get("filterByFormula", "")
        return "list" if "CREATED_TIME" in formula or b"CREATED_TIME" in body else "find"
    return "create" if "performUpsert" in json.loads(body) else "update"
