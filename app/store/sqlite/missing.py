"""Units of missing records: which to look for, and what a look means: adopted, still missing, or found twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.clock import iso
from app.fields import CLIENT_ID, dump
from app.model import Resolution
from app.policy.missing import look_pause
from app.policy.similar import client_of, job_of
from app.store.sqlite.delivery import SELECT_OWNER
from app.store.sqlite.intake import apply_held

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

    from app.store.protocol import Adoption
    from app.store.sqlite.intake import When

SELECT_DUE_LOOKS = "SELECT run_id FROM errors WHERE look_due_at <= ? ORDER BY look_due_at, id LIMIT ?"
SELECT_NEXT_LOOK = "SELECT min(look_due_at) FROM errors WHERE look_due_at IS NOT NULL"


def due_looks(connection: sqlite3.Connection, at: datetime, limit: int) -> list[str]:
    return [row["run_id"] for row in connection.execute(SELECT_DUE_LOOKS, (iso(at), limit))]


def next_look_due(connection: sqlite3.Connection) -> str | None:
    due: str | None = connection.execute(SELECT_NEXT_LOOK).fetchone()[0]
    return due


SELECT_OPEN_LOOK = """
SELECT id, looks FROM errors WHERE kind = 'missing_record' AND state = 'open' AND run_id = ? AND look_due_at IS NOT NULL
"""
LOOK_LATER = "UPDATE errors SET looks = looks + 1, look_due_at = ? WHERE id = ?"
INSERT_ADOPTED = """
INSERT INTO runs (run_id, job_id, client_id, origin, airtable_record_id, sync, created_at, changed_at, fields, status)
VALUES (:run_id, :job_id, :client_id, 'adopted', :record_id, 'synced', :at, :at, :fields,
    json_extract(:fields, '$.status'))
"""
RESOLVE_FOUND_TWICE = """
UPDATE errors SET state = 'resolved', resolved_at = ?, resolution = 'adopted', note = ?
WHERE kind = 'duplicate_record' AND state = 'open' AND run_id = ?
"""


def settle_look(
    connection: sqlite3.Connection, run_id: str, found: Sequence[Adoption], *, now: datetime, when: When
) -> bool:
    """Adopt the run if exactly one free record carries its id; else look again later. Whether it was adopted."""
    error = connection.execute(SELECT_OPEN_LOOK, (run_id,)).fetchone()
    if error is None:  # the kickoff came meanwhile, or a person resolved it
        return False
    if len(found) == 1 and (owner := connection.execute(SELECT_OWNER, (found[0].record_id,)).fetchone()) is None:
        _adopt(connection, run_id, found[0], when)
        return True
    if len(found) == 1 and owner is not None:
        _found_twice(connection, run_id, f"record {found[0].record_id} is that of run {owner['run_id']} here", when)
    elif found:
        _found_twice(connection, run_id, f"records {', '.join(sorted(one.record_id for one in found))}", when)
    connection.execute(LOOK_LATER, (iso(now + look_pause(error["looks"])), error["id"]))
    return False


def _adopt(connection: sqlite3.Connection, run_id: str, found: Adoption, when: When) -> None:
    client_id = found.values.get(CLIENT_ID)
    if not isinstance(client_id, str) or not run_id.endswith(f"-{client_id}"):
        client_id = client_of(run_id) or ""
    job_id = run_id.removesuffix(f"-{client_id}") if client_id else job_of(run_id)
    adopted = {
        "run_id": run_id,
        "job_id": job_id,
        "client_id": client_id,
        "record_id": found.record_id,
        "at": when.at,
        "fields": dump(found.values),
    }
    connection.execute(INSERT_ADOPTED, adopted)
    note = f"found in Airtable as {found.record_id}"
    apply_held(connection, run_id, when, Resolution.ADOPTED, note)
    connection.execute(RESOLVE_FOUND_TWICE, (when.at, note, run_id))


SELECT_FOUND_TWICE = "SELECT id FROM errors WHERE kind = 'duplicate_record' AND state = 'open' AND run_id = ?"
COUNT_FOUND_TWICE = "UPDATE errors SET count = count + 1, last_at = ?, cause = ? WHERE id = ?"
INSERT_FOUND_TWICE = """
INSERT INTO errors (kind, run_id, client_id, message, cause, first_at, last_at)
VALUES ('duplicate_record', ?, ?, ?, ?, ?, ?)
"""


def _found_twice(connection: sqlite3.Connection, run_id: str, cause: str, when: When) -> None:
    known = connection.execute(SELECT_FOUND_TWICE, (run_id,)).fetchone()
    if known is not None:
        connection.execute(COUNT_FOUND_TWICE, (when.at, cause, known["id"]))
        return
    message = f"Airtable has no single record for run {run_id}: leave one with this Run ID, and it is adopted"
    connection.execute(INSERT_FOUND_TWICE, (run_id, client_of(run_id), message, cause, when.at, when.at))
