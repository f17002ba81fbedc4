"""Units that only read: one run with all that happened to it, listings by page."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Final

from app.fields import load_fold, plain
from app.model import SyncState
from app.store.views import (
    BatchView,
    DecisionView,
    ErrorView,
    MessageView,
    NoRun,
    Page,
    RunSummary,
    RunView,
    TimelineEntry,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from app.store.views import DecisionFilter, ErrorFilter, MessageFilter, RunFilter, Slice

    T = TypeVar("T")

#: Entries of a timeline and errors that one answer shows at most, the latest.
LATEST: Final = 500
#: Characters of a timeline's detail that it shows; the message itself is in the outbox.
MOST_OF_A_DETAIL: Final = 2_000
#: Characters of a page after which it ends early; its first row is there however large.
MOST_OF_A_PAGE: Final = 1_000_000

# One run --------------------------------------------------------------------------------------------------------

#: Of two paths SQLite makes a JSON array: a text by itself would end at its first NUL.
RUN_COLUMNS = """
SELECT id, run_id, job_id, client_id, json_extract(fields, '$.client_name', '$.run_id') AS names, status, sync,
    airtable_record_id, created_at, changed_at
"""
SELECT_RUN = f"{RUN_COLUMNS}, origin, fields FROM runs WHERE run_id = ?"
SELECT_BATCHES = "SELECT * FROM batches WHERE run_id = ? ORDER BY number"
SELECT_TIMELINE = f"""
SELECT at, what, detail FROM (
    SELECT at, step, id, what, substr(detail, 1, {MOST_OF_A_DETAIL + 1}) AS detail
    FROM run_timeline WHERE run_id = ? ORDER BY at DESC, step DESC, id DESC LIMIT {LATEST}
) ORDER BY at, step, id
"""
# What waits for a run waits under its open error, whichever error held it.
HELD_COUNT = """
(SELECT count(*) FROM held_updates AS h WHERE h.run_id = errors.run_id AND h.state = 'held'
    AND (h.error_id = errors.id OR (errors.kind = 'missing_record' AND errors.state = 'open')))
"""
ERROR_COLUMNS = f"SELECT *, {HELD_COUNT} AS updates_held FROM errors"
SELECT_RUN_ERRORS = f"{ERROR_COLUMNS} WHERE run_id = ? ORDER BY id DESC LIMIT {LATEST}"


def run(connection: sqlite3.Connection, run_id: str) -> RunView | None:
    row = connection.execute(SELECT_RUN, (run_id,)).fetchone()
    return None if row is None else _run_view(connection, row)


def existing_run(connection: sqlite3.Connection, run_id: str) -> RunView:
    return _run_view(connection, connection.execute(SELECT_RUN, (run_id,)).fetchone())


def _run_view(connection: sqlite3.Connection, row: sqlite3.Row) -> RunView:
    run_id: str = row["run_id"]
    summary = _run_summary(row)
    return RunView(
        run_id=summary.run_id,
        job_id=summary.job_id,
        client_id=summary.client_id,
        client_name=summary.client_name,
        status=summary.status,
        sync=summary.sync,
        airtable_record_id=summary.airtable_record_id,
        origin=row["origin"],
        created_at=summary.created_at,
        changed_at=summary.changed_at,
        fields={name: plain(value) for name, value in load_fold(row["fields"]).items()},
        batches=[_batch(one) for one in connection.execute(SELECT_BATCHES, (run_id,))],
        errors=[_error(one) for one in connection.execute(SELECT_RUN_ERRORS, (run_id,))],
        timeline=timeline(connection, run_id),
    )


def no_run(connection: sqlite3.Connection, run_id: str) -> NoRun:
    found = [_error(one) for one in connection.execute(SELECT_RUN_ERRORS, (run_id,))]
    return NoRun(run_id, found, timeline(connection, run_id))


def timeline(connection: sqlite3.Connection, run_id: str) -> list[TimelineEntry]:
    rows = connection.execute(SELECT_TIMELINE, (run_id,))
    return [TimelineEntry(row["at"], row["what"], _shortened(row["detail"])) for row in rows]


def _shortened(detail: str | None) -> str | None:
    return detail if detail is None or len(detail) <= MOST_OF_A_DETAIL else f"{detail[:MOST_OF_A_DETAIL]}…"


def _run_summary(row: sqlite3.Row) -> RunSummary:
    return RunSummary(
        run_id=row["run_id"],
        job_id=row["job_id"],
        client_id=row["client_id"],
        client_name=json.loads(row["names"])[0],
        status=row["status"],
        sync=row["sync"],
        airtable_record_id=row["airtable_record_id"],
        created_at=row["created_at"],
        changed_at=row["changed_at"],
    )


def _batch(row: sqlite3.Row) -> BatchView:
    return BatchView(**{name: row[name] for name in BatchView.__slots__})


def _error(row: sqlite3.Row) -> ErrorView:
    values = {name: row[name] for name in ErrorView.__slots__}
    values["similar_runs"] = json.loads(row["similar_runs"])
    return ErrorView(**values)


# Listings -------------------------------------------------------------------------------------------------------

SELECT_RUNS = f"{RUN_COLUMNS} FROM runs"
SELECT_MESSAGES = """
SELECT outbox.*, (SELECT waits_for FROM pending_sync WHERE message_id = outbox.id) AS waits_for FROM outbox
"""


def runs(connection: sqlite3.Connection, chosen: RunFilter, part: Slice) -> Page[RunSummary]:
    terms = {
        "runs.client_id = ?": chosen.client_id,
        "runs.job_id = ?": chosen.job_id,
        "runs.status = ?": chosen.status,
        # Nearly all are synced: that is no way to find those of a status (+ keeps its index out).
        ("+runs.sync = ?" if chosen.sync == SyncState.SYNCED and chosen.status else "runs.sync = ?"): chosen.sync,
    }
    return _page(connection, SELECT_RUNS, "runs.id", terms, part, _run_summary)


def errors(connection: sqlite3.Connection, chosen: ErrorFilter, part: Slice) -> Page[ErrorView]:
    terms = {
        "errors.kind = ?": chosen.kind,
        "errors.state = ?": chosen.state,
        "errors.run_id = ?": chosen.run_id,
        "errors.client_id = ?": chosen.client_id,
    }
    return _page(connection, ERROR_COLUMNS, "errors.id", terms, part, _error)


def decisions(connection: sqlite3.Connection, chosen: DecisionFilter, part: Slice) -> Page[DecisionView]:
    terms = {
        "decisions.action = ?": chosen.action,
        "decisions.message_id = ?": chosen.message_id,
        "decisions.error_id = ?": chosen.error_id,
    }
    return _page(connection, "SELECT * FROM decisions", "decisions.id", terms, part, _decision)


def _decision(row: sqlite3.Row) -> DecisionView:
    return DecisionView(**{name: row[name] for name in DecisionView.__slots__})


#: The time that `since` is about: of the delivery, of the death, else of the acceptance.
_SINCE: Final[Mapping[str | None, str]] = {
    "delivered": "outbox.delivered_at >= ?",
    "dead": "outbox.dead_at >= ?",
}


def messages(connection: sqlite3.Connection, chosen: MessageFilter, part: Slice) -> Page[MessageView]:
    undelivered = chosen.undelivered or chosen.state not in {None, "delivered"}
    # This lets the index over what is not delivered serve.
    always = ("outbox.delivered_at IS NULL",) if undelivered else ()
    terms = {
        "outbox.state = ?": chosen.state,
        "outbox.run_id = ?": chosen.run_id,
        "outbox.kind = ?": chosen.kind,
        _SINCE.get(chosen.state, "outbox.accepted_at >= ?"): chosen.since,
    }
    return _page(connection, SELECT_MESSAGES, "outbox.id", terms, part, _message, always)


def _page(
    connection: sqlite3.Connection,
    select: str,
    key: str,
    terms: Mapping[str, str | int | None],
    part: Slice,
    view: Callable[[sqlite3.Row], T],
    always: tuple[str, ...] = (),
) -> Page[T]:
    """One page, newest first by `key`. The terms are ours; the values of those that have one are parameters."""
    chosen: dict[str, str | int] = {term: value for term, value in terms.items() if value is not None}
    if part.before is not None:
        chosen[f"{key} < ?"] = part.before
    where = " WHERE " + " AND ".join([*always, *chosen]) if always or chosen else ""
    query = f"{select}{where} ORDER BY {key} DESC LIMIT ?"
    shown: list[sqlite3.Row] = []
    characters = 0
    with contextlib.closing(connection.execute(query, (*chosen.values(), part.limit + 1))) as rows:
        for row in rows:
            characters += sum(len(value) for value in row if isinstance(value, str))
            if shown and (len(shown) == part.limit or characters > MOST_OF_A_PAGE):
                return Page([view(one) for one in shown], str(shown[-1]["id"]))
            shown.append(row)
    return Page([view(row) for row in shown], None)


SELECT_MESSAGE = f"{SELECT_MESSAGES} WHERE outbox.id = ?"
SELECT_ERROR = f"{ERROR_COLUMNS} WHERE id = ?"


def message(connection: sqlite3.Connection, message_id: int) -> MessageView | None:
    row = connection.execute(SELECT_MESSAGE, (message_id,)).fetchone()
    return None if row is None else _message(row)


def error(connection: sqlite3.Connection, error_id: int) -> ErrorView | None:
    row = connection.execute(SELECT_ERROR, (error_id,)).fetchone()
    return None if row is None else _error(row)


def _message(row: sqlite3.Row) -> MessageView:
    values = {name: row[name] for name in MessageView.__slots__}
    values["fields"] = json.loads(row["fields"])
    values["change"] = json.loads(row["change"])
    return MessageView(**values)
