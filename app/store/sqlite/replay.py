"""Units of a person's decisions: dead messages sent again, errors resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.clock import iso
from app.errors import Conflict, NotFound
from app.model import Action, ErrorKind, Resolution

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

# Retry ----------------------------------------------------------------------------------------------------------

SELECT_MESSAGE = """
SELECT m.id, m.run_id, m.state, e.kind AS error FROM outbox AS m LEFT JOIN errors AS e ON e.id = m.error_id
WHERE m.id = ?
"""
SELECT_DEAD = """
SELECT m.id, m.run_id, m.state, e.kind AS error FROM outbox AS m JOIN errors AS e ON e.id = m.error_id
WHERE m.state = 'dead' AND m.delivered_at IS NULL
    AND (:kind IS NULL OR e.kind = :kind) AND (:run_id IS NULL OR m.run_id = :run_id)
    AND (:since IS NULL OR m.dead_at >= :since)
ORDER BY m.id
"""
REVIVE = "UPDATE outbox SET state = 'pending', dead_at = NULL, error_id = NULL, attempts = 0 WHERE id = ?"
# The record of a run may be there again under another id: it is asked for before anything is sent.
LOOK_FOR_RECORD = """
INSERT INTO record_looks (run_id, due_at)
SELECT run_id, :at FROM runs WHERE run_id = :run_id AND airtable_record_id IS NOT NULL
ON CONFLICT DO NOTHING
"""
LOOK_FOR_RECORDS = """
INSERT INTO record_looks (run_id, due_at)
SELECT e.run_id, :at FROM errors AS e JOIN runs AS r ON r.run_id = e.run_id
WHERE e.kind = 'record_deleted' AND e.state = 'open' AND r.airtable_record_id IS NOT NULL
    AND (:kind IS NULL OR :kind = e.kind)
    AND (:run_id IS NULL OR :run_id = e.run_id) AND (:since IS NULL OR e.last_at >= :since)
ON CONFLICT DO NOTHING
"""
WAKE_RUN = """
UPDATE runs SET
    failures = 0,
    due_at = CASE
        WHEN EXISTS (
            SELECT 1 FROM outbox AS c WHERE c.run_id = runs.run_id AND c.kind = 'create' AND c.state = 'dead') THEN NULL
        WHEN EXISTS (SELECT 1 FROM record_looks AS l WHERE l.run_id = runs.run_id) THEN due_at
        ELSE coalesce(due_at, :at) END,
    sync = CASE WHEN EXISTS (SELECT 1 FROM outbox AS m
        WHERE m.run_id = runs.run_id AND m.delivered_at IS NULL AND m.state = 'dead') THEN 'failed' ELSE 'pending' END
WHERE run_id = :run_id
    AND EXISTS (SELECT 1 FROM outbox WHERE run_id = :run_id AND delivered_at IS NULL AND state = 'pending')
"""


def retry(connection: sqlite3.Connection, message_id: int, at: datetime, who: str | None) -> None:
    """Send a dead message again, as `who` decided.

    Raises:
        NotFound: there is no such message.
        Conflict: it is not dead.
    """
    message = connection.execute(SELECT_MESSAGE, (message_id,)).fetchone()
    if message is None:
        raise NotFound(f"there is no message {message_id}")
    if message["state"] != "dead":
        raise Conflict(f"message {message_id} is {message['state']}: only dead messages can be retried")
    _revive(connection, [message], at, who)


def retry_all(
    connection: sqlite3.Connection,
    *,
    kind: str | None,
    run_id: str | None,
    since: datetime | None,
    at: datetime,
    who: str | None,
) -> int:
    """Send dead messages again: of one kind of error, of one run, set aside since then. How many there were.

    A run whose record a check found deleted has none, and its record is looked for all the same.
    """
    chosen = {"kind": kind, "run_id": run_id, "since": since and iso(since)}
    dead = connection.execute(SELECT_DEAD, chosen).fetchall()
    connection.execute(LOOK_FOR_RECORDS, {**chosen, "at": iso(at)})
    _revive(connection, dead, at, who)
    return len(dead)


def _revive(connection: sqlite3.Connection, messages: Sequence[sqlite3.Row], at: datetime, who: str | None) -> None:
    """Their errors stay open until the delivery: what is refused again counts up the error that it had."""
    connection.executemany(REVIVE, [(message["id"],) for message in messages])
    for run_id in {message["run_id"] for message in messages if message["error"] == ErrorKind.RECORD_DELETED}:
        connection.execute(LOOK_FOR_RECORD, {"run_id": run_id, "at": iso(at)})
    for run_id in {message["run_id"] for message in messages}:
        wake_run(connection, run_id, iso(at))
    for message in messages:
        decide(connection, Action.RETRY, at, who, run_id=message["run_id"], message_id=message["id"])


def wake_run(connection: sqlite3.Connection, run_id: str, at: str) -> None:
    """What waits for this run is due now, unless its create is dead or its record has to be found first."""
    connection.execute(WAKE_RUN, {"run_id": run_id, "at": at})


# Resolve --------------------------------------------------------------------------------------------------------

SELECT_ERROR = "SELECT run_id, state FROM errors WHERE id = ?"
RESOLVE = (
    "UPDATE errors SET state = 'resolved', resolved_at = ?, resolution = ?, note = ?, look_due_at = NULL WHERE id = ?"
)
# All that waits for its run, as the error says: an earlier error of the run, closed by hand, may have held some of it.
DISCARD_UPDATES = """
UPDATE held_updates SET state = 'discarded', settled_at = :at
WHERE state = 'held' AND run_id = (SELECT run_id FROM errors WHERE id = :error_id AND kind = 'missing_record')
"""
# Several records of a missing run are an error as long as the run is looked for.
CLOSE_DUPLICATE = f"""
UPDATE errors SET state = 'resolved', resolved_at = :at, resolution = '{Resolution.BY_HAND}',
    note = 'closed with error ' || :error_id || ': the run is not looked for any more'
WHERE kind = '{ErrorKind.DUPLICATE_RECORD}' AND state = 'open'
    AND run_id = (SELECT run_id FROM errors WHERE id = :error_id AND kind = '{ErrorKind.MISSING_RECORD}')
"""
DISCARD_WEBHOOKS = """
UPDATE webhook_events SET outcome = 'ignored', detail = 'discarded with its error'
WHERE error_id = ? AND outcome = 'held'
"""


def resolve_error(
    connection: sqlite3.Connection, error_id: int, *, note: str | None, discard: bool, at: datetime, who: str | None
) -> None:
    """Close an error by hand, as `who` decided. What it holds stays held, unless it is to be discarded.

    Raises:
        NotFound: there is no such error.
        Conflict: it is resolved already.
    """
    error = connection.execute(SELECT_ERROR, (error_id,)).fetchone()
    if error is None:
        raise NotFound(f"there is no error {error_id}")
    if error["state"] != "open":
        raise Conflict(f"error {error_id} is resolved already")
    connection.execute(RESOLVE, (iso(at), Resolution.BY_HAND, note, error_id))
    connection.execute(CLOSE_DUPLICATE, {"at": iso(at), "error_id": error_id})
    if discard:
        connection.execute(DISCARD_UPDATES, {"at": iso(at), "error_id": error_id})
        connection.execute(DISCARD_WEBHOOKS, (error_id,))
    decide(connection, Action.RESOLVE, at, who, run_id=error["run_id"], error_id=error_id, note=note)


# Decisions ------------------------------------------------------------------------------------------------------

INSERT_DECISION = """
INSERT INTO decisions (at, action, who, run_id, message_id, error_id, note) VALUES (?, ?, ?, ?, ?, ?, ?)
"""


def decide(
    connection: sqlite3.Connection,
    action: Action,
    at: datetime,
    who: str | None,
    *,
    run_id: str | None = None,
    message_id: int | None = None,
    error_id: int | None = None,
    note: str | None = None,
) -> None:
    """Write down who decided what."""
    connection.execute(INSERT_DECISION, (iso(at), action, who, run_id, message_id, error_id, note))
