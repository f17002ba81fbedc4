"""Units of a person's decisions: dead messages sent again, errors resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.clock import iso
from app.errors import Conflict, NotFound
from app.model import Action, Resolution

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

# Retry ----------------------------------------------------------------------------------------------------------

SELECT_MESSAGE = "SELECT id, run_id, state, error_id FROM outbox WHERE id = ?"
SELECT_DEAD = """
SELECT m.id, m.run_id, m.state, m.error_id FROM outbox AS m JOIN errors AS e ON e.id = m.error_id
WHERE m.state = 'dead' AND m.delivered_at IS NULL
    AND (:kind IS NULL OR e.kind = :kind) AND (:run_id IS NULL OR m.run_id = :run_id)
    AND (:since IS NULL OR m.dead_at >= :since)
ORDER BY m.id
"""
REVIVE = "UPDATE outbox SET state = 'pending', dead_at = NULL, error_id = NULL, attempts = 0 WHERE id = ?"
RESOLVE_REPLAYED = """
UPDATE errors SET state = 'resolved', resolved_at = :at, resolution = :resolution
WHERE id = :error_id AND state = 'open' AND NOT EXISTS (SELECT 1 FROM outbox WHERE state = 'dead'
    AND delivered_at IS NULL AND error_id = :error_id)
"""
WAKE_RUN = """
UPDATE runs SET
    failures = 0,
    due_at = CASE WHEN NOT EXISTS (
        SELECT 1 FROM outbox AS c WHERE c.run_id = runs.run_id AND c.kind = 'create' AND c.state = 'dead')
        THEN coalesce(due_at, :at) END,
    sync = CASE WHEN EXISTS (SELECT 1 FROM outbox AS m
        WHERE m.run_id = runs.run_id AND m.delivered_at IS NULL AND m.state = 'dead') THEN 'failed' ELSE 'pending' END
WHERE run_id = :run_id
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
    """Send dead messages again: of one kind of error, of one run, set aside since then. How many there were."""
    chosen = {"kind": kind, "run_id": run_id, "since": since and iso(since)}
    dead = connection.execute(SELECT_DEAD, chosen).fetchall()
    _revive(connection, dead, at, who)
    return len(dead)


def _revive(connection: sqlite3.Connection, messages: Sequence[sqlite3.Row], at: datetime, who: str | None) -> None:
    connection.executemany(REVIVE, [(message["id"],) for message in messages])
    for error_id in {message["error_id"] for message in messages}:
        resolved = {"error_id": error_id, "at": iso(at), "resolution": Resolution.REPLAYED}
        connection.execute(RESOLVE_REPLAYED, resolved)
    for run_id in {message["run_id"] for message in messages}:
        connection.execute(WAKE_RUN, {"run_id": run_id, "at": iso(at)})
    for message in messages:
        decide(connection, Action.RETRY, at, who, run_id=message["run_id"], message_id=message["id"])


# Resolve --------------------------------------------------------------------------------------------------------

SELECT_ERROR = "SELECT run_id, state FROM errors WHERE id = ?"
RESOLVE = (
    "UPDATE errors SET state = 'resolved', resolved_at = ?, resolution = ?, note = ?, look_due_at = NULL WHERE id = ?"
)
DISCARD_UPDATES = "UPDATE held_updates SET state = 'discarded', settled_at = ? WHERE error_id = ? AND state = 'held'"
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
    if discard:
        connection.execute(DISCARD_UPDATES, (iso(at), error_id))
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
