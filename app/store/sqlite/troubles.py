"""The errors of a run: one row for one trouble while it is open, counted up when it is met again, closed by its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app.model import ErrorKind, Resolution
from app.policy.similar import client_of

if TYPE_CHECKING:
    import sqlite3

#: Of an open deletion whose record was seen again, until it is met again: what died meanwhile waits for a person.
THERE_AGAIN: Final = "its record is there again: 'outbox retry --kind record_deleted' sends what was set aside"

# Met ------------------------------------------------------------------------------------------------------------

# Two refusals with two causes are two troubles; a record is gone, or there twice, only once.
SELECT_OPEN = f"""
SELECT id FROM errors
WHERE run_id = :run_id AND kind = :kind AND state = 'open' AND (kind <> '{ErrorKind.REJECTED}' OR cause IS :cause)
"""
COUNT_AGAIN = """
UPDATE errors SET count = count + 1, last_at = :at, message = :message, cause = :cause,
    note = nullif(note, :there_again)
WHERE id = :id
"""
INSERT = """
INSERT INTO errors (kind, run_id, client_id, message, cause, first_at, last_at)
VALUES (:kind, :run_id, coalesce((SELECT client_id FROM runs WHERE run_id = :run_id), :client_id), :message, :cause,
    :at, :at)
"""


def meet(connection: sqlite3.Connection, kind: ErrorKind, run_id: str, message: str, cause: str, at: str) -> int:
    """The open error of this trouble, made or counted up."""
    met = {
        "kind": kind,
        "run_id": run_id,
        "message": message,
        "cause": cause,
        "at": at,
        "there_again": THERE_AGAIN,
    }
    known = connection.execute(SELECT_OPEN, met).fetchone()
    if known is None:
        return int(connection.execute(INSERT, {**met, "client_id": client_of(run_id)}).lastrowid or 0)
    error_id: int = known["id"]
    connection.execute(COUNT_AGAIN, {**met, "id": error_id})
    return error_id


# Over -----------------------------------------------------------------------------------------------------------

# What an error set aside was accepted before it was last met: as long as any of that is not delivered, it goes on.
UNSETTLED = """
EXISTS (SELECT 1 FROM outbox AS m WHERE m.run_id = errors.run_id AND m.delivered_at IS NULL
    AND iif(m.state = 'dead', m.error_id = errors.id, m.accepted_at <= errors.last_at))
"""
# A delivery shows that the record is there and took the values; only a create, that there is one such record.
RESOLVE_DELIVERED = f"""
UPDATE errors SET state = 'resolved', resolved_at = :at,
    resolution = CASE
        WHEN kind = '{ErrorKind.DRIFT}' THEN '{Resolution.REPAIRED}'
        WHEN kind = '{ErrorKind.DUPLICATE_RECORD}' OR found_record_id IS NOT NULL THEN '{Resolution.GONE}'
        ELSE '{Resolution.REPLAYED}' END,
    note = coalesce(note, iif(kind = '{ErrorKind.DUPLICATE_RECORD}', 'the create found one: ' || :record_id, NULL))
WHERE run_id = :run_id AND state = 'open' AND NOT {UNSETTLED} AND CASE kind
    WHEN '{ErrorKind.REJECTED}' THEN 1
    WHEN '{ErrorKind.RECORD_DELETED}' THEN 1
    WHEN '{ErrorKind.DUPLICATE_RECORD}' THEN :created
    WHEN '{ErrorKind.DRIFT}' THEN EXISTS (
        SELECT 1 FROM outbox WHERE run_id = :run_id AND delivered_at = :at AND source = 'repair')
    ELSE 0 END
"""
HAS_DEAD = """
EXISTS (SELECT 1 FROM outbox AS m WHERE m.run_id = errors.run_id AND m.delivered_at IS NULL AND m.state = 'dead'
    AND m.error_id = errors.id)
"""
NOTE_THERE_AGAIN = f"""
UPDATE errors SET note = :there_again
WHERE run_id = :run_id AND kind = '{ErrorKind.RECORD_DELETED}' AND state = 'open' AND {HAS_DEAD}
"""
RESOLVE_SEEN = f"""
UPDATE errors SET state = 'resolved', resolved_at = :at, resolution = :resolution, note = coalesce(:note, note)
WHERE run_id = :run_id AND kind = :kind AND state = 'open'
    AND (kind <> '{ErrorKind.RECORD_DELETED}' OR NOT {UNSETTLED})
"""


def resolve_delivered(
    connection: sqlite3.Connection, run_id: str, record_id: str | None, *, created: bool, at: str
) -> None:
    """Close what a delivery of this run has put an end to; a deletion whose dead messages wait may be retried."""
    known = {"run_id": run_id, "record_id": record_id, "created": created, "at": at}
    connection.execute(RESOLVE_DELIVERED, known)
    connection.execute(NOTE_THERE_AGAIN, {"run_id": run_id, "there_again": THERE_AGAIN})


def resolve_seen(
    connection: sqlite3.Connection, kind: ErrorKind, run_id: str, resolution: Resolution, note: str | None, at: str
) -> None:
    """Close an error of this run whose end was seen in Airtable; a deletion once what it set aside is delivered too."""
    known = {"run_id": run_id, "kind": kind, "resolution": resolution, "note": note, "at": at}
    connection.execute(RESOLVE_SEEN, known)
