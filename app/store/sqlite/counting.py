"""The units behind the metrics and `/stats`: at a million messages they cost what they cost in an empty store.

What ends is counted by the schema's triggers, what was accepted are the ids given out; the rest is their difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from app.clock import iso, parse_iso
from app.model import ErrorKind
from app.policy.budget import forecast, month_of
from app.store.sqlite.consistency import last_summary
from app.store.sqlite.files import bytes_of
from app.store.views import CallCounts, Counts, CreationStats, Stats

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime

# Runs and batches are never deleted, so that the last id is their number.
COUNT_RUNS = "SELECT coalesce(max(id), 0) FROM runs"
COUNT_BATCHES = "SELECT coalesce(max(id), 0) FROM batches"
COUNT_ACTIVE_BATCHES = "SELECT state, count(*) AS n FROM batches WHERE state <> 'measured' GROUP BY state"
COUNT_MESSAGES = """
SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0) - delivered - dead AS pending, dead
FROM outbox_counts
"""
SELECT_OLDEST = """
SELECT min(accepted_at) FROM (
    SELECT * FROM (SELECT accepted_at FROM outbox WHERE state = 'pending' ORDER BY id LIMIT 1)
    UNION ALL
    SELECT * FROM (SELECT accepted_at FROM outbox WHERE state = 'sending' ORDER BY id LIMIT 1))
"""
COUNT_CREATES = """
SELECT coalesce(sum(created), 0) AS created, coalesce(sum(delivered), 0) AS delivered,
    coalesce(sum(failed), 0) AS failed
FROM creations_by_day
"""
COUNT_REPEATED = "SELECT coalesce(sum(count), 0) FROM repeated_kickoffs"
SELECT_CREATIONS = "SELECT * FROM creation_stats LIMIT 14"
COUNT_HELD = "SELECT count(*) FROM held_updates WHERE state = 'held'"
COUNT_OPEN = f"""
SELECT kind, count(*) AS n FROM errors
WHERE kind IN ({", ".join(f"'{kind}'" for kind in ErrorKind)}) AND state = 'open' GROUP BY kind
"""
COUNT_CALLS = """
SELECT outcome, sum(calls) AS n FROM airtable_calls_by_day WHERE day >= ? AND calls > 0 GROUP BY outcome
"""
SELECT_FILE = "SELECT file FROM pragma_database_list WHERE name = 'main'"
SELECT_BUDGET = "SELECT monthly_calls, state, updates_wait_until FROM call_budget"


def stats(connection: sqlite3.Connection, at: datetime) -> Stats:
    messages = connection.execute(COUNT_MESSAGES).fetchone()
    creates = connection.execute(COUNT_CREATES).fetchone()
    ended = creates["delivered"] + creates["failed"]
    oldest: str | None = connection.execute(SELECT_OLDEST).fetchone()[0]
    return Stats(
        runs=connection.execute(COUNT_RUNS).fetchone()[0],
        pending=messages["pending"],
        dead=messages["dead"],
        held=connection.execute(COUNT_HELD).fetchone()[0],
        oldest_pending_at=oldest,
        oldest_pending_seconds=_age(oldest, at),
        creation_success_rate=round(creates["delivered"] / ended, 4) if ended else None,
        creations=[
            CreationStats(row["day"], row["created"], row["already_existed"], row["failed"], row["success_rate"])
            for row in connection.execute(SELECT_CREATIONS)
        ],
        open_errors={row["kind"]: row["n"] for row in connection.execute(COUNT_OPEN)},
        calls_this_month=calls_this_month(connection, at),
        last_check=last_summary(connection),
    )


def counts(connection: sqlite3.Connection, at: datetime) -> Counts:
    messages = connection.execute(COUNT_MESSAGES).fetchone()
    creates = connection.execute(COUNT_CREATES).fetchone()
    batches = {row["state"]: row["n"] for row in connection.execute(COUNT_ACTIVE_BATCHES)}
    batches["measured"] = connection.execute(COUNT_BATCHES).fetchone()[0] - sum(batches.values())
    return Counts(
        runs=connection.execute(COUNT_RUNS).fetchone()[0],
        created=creates["created"],
        already_existed=connection.execute(COUNT_REPEATED).fetchone()[0],
        creations_delivered=creates["delivered"],
        creations_failed=creates["failed"],
        pending=messages["pending"],
        dead=messages["dead"],
        oldest_pending_seconds=_age(connection.execute(SELECT_OLDEST).fetchone()[0], at),
        held=connection.execute(COUNT_HELD).fetchone()[0],
        open_errors={row["kind"]: row["n"] for row in connection.execute(COUNT_OPEN)},
        batches=batches,
        calls_this_month=calls_this_month(connection, at),
        last_check=last_summary(connection),
        file_bytes=bytes_of(Path(connection.execute(SELECT_FILE).fetchone()[0])),
    )


def calls_this_month(connection: sqlite3.Connection, at: datetime) -> CallCounts:
    """Requests since the first of the month, what they come to at its end, and the budget as it was last kept to."""
    by_outcome = {row["outcome"]: row["n"] for row in connection.execute(COUNT_CALLS, (iso(month_of(at))[:10],))}
    used = sum(by_outcome.values())
    budget = connection.execute(SELECT_BUDGET).fetchone()
    return CallCounts(
        total=used,
        by_outcome=by_outcome,
        forecast=forecast(used, at),
        budget=budget["monthly_calls"],
        state=budget["state"],
        updates_wait_until=budget["updates_wait_until"],
    )


def _age(accepted_at: str | None, at: datetime) -> float | None:
    return (at - parse_iso(accepted_at)).total_seconds() if accepted_at else None
