"""Units of webhooks: each event is kept as it was said, applied to its batch, or held until there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter

from app.model import ErrorKind, OpenError, WebhookOutcome, WebhookTaken
from app.policy.harvest import Batch, Report, reported
from app.store.protocol import WebhookEvent
from app.store.sqlite.batches import BATCH_BY_ID, SELECT_BATCH, RunChanged, batch_of, move_batch
from app.store.sqlite.intake import COUNT_ERROR, When, open_missing_record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

    from app.policy.harvest import HarvestRules

BATCH_BY_TOKEN = f"{SELECT_BATCH} WHERE token = ?"
BATCH_BY_APIFY_RUN = f"{SELECT_BATCH} WHERE apify_run_id = ?"
OTHER_HAS_RUN = "SELECT 1 FROM batches WHERE apify_run_id = ? AND id <> ?"
INSERT_OBSERVED = """
INSERT INTO batches (run_id, number, created_at)
VALUES (:run_id, (SELECT coalesce(max(number), 0) + 1 FROM batches WHERE run_id = :run_id), :at)
"""
COUNT_DELIVERY = "UPDATE webhook_events SET deliveries = deliveries + 1 WHERE dispatch_id = ? RETURNING run_id"
SELECT_SAME_EVENT = "SELECT run_id FROM webhook_events WHERE event_key = ? AND outcome <> 'duplicate'"
INSERT_EVENT = """
INSERT INTO webhook_events (dispatch_id, event, event_key, outcome, detail, run_id, batch_id, batch_token, apify_run_id,
    report, error_id, received_at, body)
VALUES (:dispatch_id, :event, :event_key, :outcome, :detail, :run_id, :batch_id, :batch_token, :apify_run_id,
    :report, :error_id, :received_at, :body)
"""
RUN_EXISTS = "SELECT 1 FROM runs WHERE run_id = ?"
_REPORT: Final = TypeAdapter(Report)


def accept_webhook(
    connection: sqlite3.Connection,
    event: WebhookEvent,
    *,
    now: datetime,
    when: When,
    rules: HarvestRules,
    known: Sequence[str],
) -> WebhookTaken:
    """Keep the event and apply it to its batch, or hold it where there is none."""
    seen = event.dispatch_id and connection.execute(COUNT_DELIVERY, (event.dispatch_id,)).fetchone()
    if seen:
        return WebhookTaken(WebhookOutcome.DUPLICATE, seen["run_id"], "this dispatch came before")
    if event.report is None:
        taken = WebhookTaken(WebhookOutcome.IGNORED, event.run_id, f"{event.event} says nothing of a run")
        _keep(connection, event, taken, None, when)
        return taken
    same = connection.execute(SELECT_SAME_EVENT, (event.event_key,)).fetchone()
    if same is not None:
        taken = WebhookTaken(WebhookOutcome.DUPLICATE, same["run_id"], "another webhook told of this event before")
        _keep(connection, event, taken, None, when)
        return taken
    batch = find_batch(connection, event, when)
    if batch is None:
        error = _open_error(connection, event, event.report, when)
        taken = WebhookTaken(WebhookOutcome.HELD, event.run_id, error.message, error)
        _keep(connection, event, taken, None, when)
        return taken
    moved = reported(batch, event.report, at=now, rules=rules)
    is_news = moved is not batch
    move_batch(connection, batch, replace(moved, last_webhook_at=when.at), known, when)
    if moved.apify_run_id != batch.apify_run_id:
        release_held(connection, moved, moved.run_id, now=now, when=when, rules=rules, known=known)
    taken = (
        WebhookTaken(WebhookOutcome.QUEUED, batch.run_id)
        if is_news
        else WebhookTaken(WebhookOutcome.IGNORED, batch.run_id, f"late: batch {batch.number} is {batch.state} already")
    )
    _keep(connection, event, taken, batch.id, when)
    return taken


def find_batch(connection: sqlite3.Connection, event: WebhookEvent, when: When) -> Batch | None:
    """The batch that the event is about: the one that is this Apify run, or the one that its URL names.

    The Apify run decides: two batches with one input may have found each other's. A batch that is another run already
    takes no event of this one. A run that others started and whose webhook names one of our runs is counted as a batch
    of that run from then on.
    """
    if event.report is None:
        return None
    row = connection.execute(BATCH_BY_APIFY_RUN, (event.report.run.id,)).fetchone()
    if row is not None:
        return batch_of(row)
    if event.batch_token is not None:
        row = connection.execute(BATCH_BY_TOKEN, (event.batch_token,)).fetchone()
        return batch_of(row) if row is not None and row["apify_run_id"] is None else None
    if event.run_id is None or connection.execute(RUN_EXISTS, (event.run_id,)).fetchone() is None:
        return None
    observed = connection.execute(INSERT_OBSERVED, {"run_id": event.run_id, "at": when.at})
    return batch_of(connection.execute(BATCH_BY_ID, (observed.lastrowid,)).fetchone())


def _keep(
    connection: sqlite3.Connection, event: WebhookEvent, taken: WebhookTaken, batch_id: int | None, when: When
) -> None:
    connection.execute(
        INSERT_EVENT,
        {
            "dispatch_id": event.dispatch_id,
            "event": event.event,
            "event_key": event.event_key,
            "outcome": taken.outcome,
            "detail": taken.detail,
            "run_id": taken.run_id or event.run_id,
            "batch_id": batch_id,
            "batch_token": event.batch_token,
            "apify_run_id": event.report.run.id if event.report else None,
            "report": _REPORT.dump_json(event.report).decode() if event.report else None,
            "error_id": taken.error.id if taken.error else None,
            "received_at": when.at,
            "body": event.body,
        },
    )


# Held webhooks --------------------------------------------------------------------------------------------------

SELECT_UNMATCHED = "SELECT * FROM errors WHERE kind = 'unmatched_webhook' AND state = 'open' AND cause = ?"
INSERT_UNMATCHED = """
INSERT INTO errors (kind, run_id, message, cause, first_at, last_at) VALUES ('unmatched_webhook', ?, ?, ?, ?, ?)
"""


def _open_error(connection: sqlite3.Connection, event: WebhookEvent, report: Report, when: When) -> OpenError:
    """A webhook that names a run which does not exist is a missing record; one that names none is unmatched."""
    if event.run_id is not None and connection.execute(RUN_EXISTS, (event.run_id,)).fetchone() is None:
        return open_missing_record(connection, event.run_id, when.at)
    cause = f"Apify run {report.run.id}"
    known = connection.execute(SELECT_UNMATCHED, (cause,)).fetchone()
    if known is not None:
        connection.execute(COUNT_ERROR, (when.at, known["id"]))
        return OpenError(known["id"], ErrorKind.UNMATCHED_WEBHOOK, known["message"], (), known["count"] + 1)
    message = f"A webhook of Apify run {report.run.id} belongs to no batch: it is held until one is that run"
    error = connection.execute(INSERT_UNMATCHED, (event.run_id, message, cause, when.at, when.at))
    return OpenError(int(error.lastrowid or 0), ErrorKind.UNMATCHED_WEBHOOK, message, (), 1)


SELECT_HELD_EVENTS = """
SELECT id, report, batch_token, apify_run_id FROM webhook_events
WHERE outcome = 'held' AND apify_run_id = :apify_run_id
UNION
SELECT id, report, batch_token, apify_run_id FROM webhook_events
WHERE outcome = 'held' AND run_id = :run_id AND batch_token IS NULL
ORDER BY id
"""
RELEASE_EVENT = "UPDATE webhook_events SET outcome = 'queued', detail = NULL, batch_id = ?, run_id = ? WHERE id = ?"
RESOLVE_UNMATCHED = """
UPDATE errors SET state = 'resolved', resolved_at = ?, resolution = 'matched', note = ?
WHERE kind = 'unmatched_webhook' AND state = 'open' AND cause = ?
"""


def release_held(
    connection: sqlite3.Connection,
    batch: Batch | None,
    run_id: str,
    *,
    now: datetime,
    when: When,
    rules: HarvestRules,
    known: Sequence[str],
) -> None:
    """Apply the events that waited for this run, or for the batch that turned out to be their Apify run.

    Each run is rolled up once, however many events waited: they stand in the way of every other writer.
    """
    changed: dict[str, RunChanged] = {}
    _release(connection, batch, run_id, changed, now=now, when=when, rules=rules)
    for run in changed.values():
        run.show(connection, known, when)


def _release(
    connection: sqlite3.Connection,
    batch: Batch | None,
    run_id: str,
    changed: dict[str, RunChanged],
    *,
    now: datetime,
    when: When,
    rules: HarvestRules,
) -> None:
    """Move the batches of the events on; `changed` gets each run that this changes."""
    apify_run_id = batch.apify_run_id if batch else None
    matched = []
    for row in connection.execute(SELECT_HELD_EVENTS, {"apify_run_id": apify_run_id, "run_id": run_id}).fetchall():
        report = _REPORT.validate_json(row["report"])
        event = WebhookEvent(
            event=report.event or "", body="", report=report, run_id=run_id, batch_token=row["batch_token"]
        )
        found = find_batch(connection, event, when)
        if found is None:
            continue
        if found.run_id not in changed:
            changed[found.run_id] = RunChanged(connection, found.run_id)
        moved = replace(reported(found, report, at=now, rules=rules), last_webhook_at=when.at)
        changed[found.run_id].move(connection, found, moved)
        if found.apify_run_id is None:
            matched.append(moved)
        connection.execute(RELEASE_EVENT, (found.id, run_id, row["id"]))
        note = f"batch {found.number} of {run_id}"
        connection.execute(RESOLVE_UNMATCHED, (when.at, note, f"Apify run {report.run.id}"))
    for one in matched:  # others may have waited for what it turned out to be
        _release(connection, one, run_id, changed, now=now, when=when, rules=rules)
