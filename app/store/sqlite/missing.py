"""Units of missing records: which to look for, and what a look means.

Of a run that nobody kicked off here: adopted, still missing, or found twice. Of a run whose record was deleted: linked
to the one that a person made anew, or not.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.fields import CLIENT_ID, dump, load_fold
from app.model import ErrorKind, Resolution
from app.policy.missing import LONGEST_PAUSE, look_pause
from app.policy.similar import client_of, job_of
from app.store.protocol import LONGEST_WAIT, LostRecord
from app.store.sqlite.delivery import SELECT_OWNER
from app.store.sqlite.intake import apply_held
from app.store.sqlite.replay import REVIVE, wake_run
from app.store.sqlite.troubles import meet, resolve_seen

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

    from app.store.protocol import Adoption
    from app.store.sqlite.intake import When

#: A call that leaves anyway takes along what is due this soon after.
_COMPANY: Final = timedelta(seconds=1)

SELECT_DUE_LOOKS = """
SELECT run_id, look_due_at FROM errors WHERE look_due_at <= ? ORDER BY look_due_at, id LIMIT ?
"""
SELECT_NEXT_LOOK = """
SELECT min(due_at) FROM (
    SELECT min(look_due_at) AS due_at FROM errors WHERE look_due_at IS NOT NULL
    UNION ALL SELECT min(due_at) FROM record_looks)
"""


# A due time that is further ahead than any look of its kind was given by a clock that has been set back since.
RECOVER_FAR_LOOKS = "UPDATE errors SET look_due_at = :at WHERE look_due_at > :latest"
RECOVER_FAR_RECORD_LOOKS = "UPDATE record_looks SET due_at = :at WHERE due_at > :latest"


def recover_looks(connection: sqlite3.Connection, at: datetime) -> int:
    """Make due what a clock that was ahead put off for longer than any look waits; how many looks that are."""
    looks = {RECOVER_FAR_LOOKS: LONGEST_PAUSE, RECOVER_FAR_RECORD_LOOKS: LONGEST_WAIT}
    return sum(
        connection.execute(sql, {"at": iso(at), "latest": iso(at + longest)}).rowcount for sql, longest in looks.items()
    )


# Missing runs ---------------------------------------------------------------------------------------------------


def due_looks(connection: sqlite3.Connection, at: datetime, limit: int) -> list[str]:
    rows = connection.execute(SELECT_DUE_LOOKS, (iso(at + _COMPANY), limit)).fetchall()
    return [row["run_id"] for row in rows] if rows and rows[0]["look_due_at"] <= iso(at) else []


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
    else:
        resolve_seen(connection, ErrorKind.DUPLICATE_RECORD, run_id, Resolution.GONE, "there is none any more", when.at)
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
    resolve_seen(connection, ErrorKind.DUPLICATE_RECORD, run_id, Resolution.ADOPTED, note, when.at)


def _found_twice(connection: sqlite3.Connection, run_id: str, cause: str, when: When) -> None:
    message = f"Airtable has no single record for run {run_id}: leave one with this Run ID, and it is adopted"
    meet(connection, ErrorKind.DUPLICATE_RECORD, run_id, message, cause, when.at)


# Lost records ---------------------------------------------------------------------------------------------------

#: How soon a run that a call carries right now is looked at again.
_AFTER_THE_CALL: Final = timedelta(seconds=1)

SELECT_DUE_RECORD_LOOKS = """
SELECT l.run_id, r.airtable_record_id AS record_id FROM record_looks AS l JOIN runs AS r ON r.run_id = l.run_id
WHERE l.due_at <= ? ORDER BY l.due_at LIMIT ?
"""
SELECT_RUN = "SELECT airtable_record_id, call_id, fields FROM runs WHERE run_id = ?"
WAIT_FOR_CALL = "UPDATE record_looks SET due_at = ? WHERE run_id = ?"
FORGET_LOOK = "DELETE FROM record_looks WHERE run_id = ?"
LINK = "UPDATE runs SET airtable_record_id = :record_id, changed_at = :at WHERE run_id = :run_id"
# Also what died while the record was looked for.
SELECT_DEAD_OF_LOST = """
SELECT m.id FROM outbox AS m JOIN errors AS e ON e.id = m.error_id
WHERE m.run_id = ? AND m.delivered_at IS NULL AND m.state = 'dead' AND e.kind = 'record_deleted' ORDER BY m.id
"""
SELECT_REFUSED_FIELDS = """
SELECT DISTINCT named.value AS field FROM outbox AS m, json_each(m.fields) AS named
WHERE m.run_id = ? AND m.delivered_at IS NULL AND m.state = 'dead'
"""
INSERT_WHOLE = """
INSERT INTO outbox (run_id, kind, source, fields, change, accepted_at) VALUES (?, 'update', 'repair', ?, '{}', ?)
"""
NOTE_LINK = "UPDATE errors SET note = ? WHERE run_id = ? AND kind = 'record_deleted' AND state = 'open'"


def due_record_looks(connection: sqlite3.Connection, at: datetime, limit: int) -> list[LostRecord]:
    due = connection.execute(SELECT_DUE_RECORD_LOOKS, (iso(at), limit))
    return [LostRecord(row["run_id"], row["record_id"]) for row in due]


def settle_record_look(connection: sqlite3.Connection, run_id: str, found: Sequence[str], at: datetime) -> str | None:
    """Link the run to the only free record with its id, if its own is gone; the record that it was linked to.

    Then, or without one, what waits is sent: it is Airtable that says whether the record is there.
    """
    now = iso(at)
    run = connection.execute(SELECT_RUN, (run_id,)).fetchone()
    if run["call_id"] is not None:
        connection.execute(WAIT_FOR_CALL, (iso(at + _AFTER_THE_CALL), run_id))
        return None
    connection.execute(FORGET_LOOK, (run_id,))
    free = [one for one in found if connection.execute(SELECT_OWNER, (one,)).fetchone() is None]
    linked = None
    if run["airtable_record_id"] in found:
        resolve_seen(connection, ErrorKind.RECORD_DELETED, run_id, Resolution.GONE, "it is there again", now)
    elif len(free) == 1:
        (linked,) = free
        _link(connection, run_id, run, linked, now)
    elif free:
        message = "Its record was deleted, and several others have its Run ID: leave one of them, then retry"
        meet(connection, ErrorKind.DUPLICATE_RECORD, run_id, message, f"records {', '.join(sorted(free))}", now)
    wake_run(connection, run_id, now)
    return linked


def _link(connection: sqlite3.Connection, run_id: str, run: sqlite3.Row, record_id: str, now: str) -> None:
    """Give the run its new record, and let it hold all that the old one should: a person made it with what he knew."""
    connection.execute(LINK, {"record_id": record_id, "run_id": run_id, "at": now})
    note = f"its record is {record_id} now, in the place of {run['airtable_record_id']}"
    connection.execute(NOTE_LINK, (note, run_id))
    resolve_seen(connection, ErrorKind.DUPLICATE_RECORD, run_id, Resolution.GONE, note, now)
    connection.executemany(
        REVIVE, [(row["id"],) for row in connection.execute(SELECT_DEAD_OF_LOST, (run_id,)).fetchall()]
    )
    refused = {row["field"] for row in connection.execute(SELECT_REFUSED_FIELDS, (run_id,))}
    whole = [name for name in load_fold(run["fields"]) if name not in refused]
    connection.execute(INSERT_WHOLE, (run_id, json.dumps(whole), now))
