"""The unit behind the metrics: every count from an index, so that frequent scrapes cost a store of a million little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.clock import iso, parse_iso
from app.store.sqlite.consistency import last_summary
from app.store.sqlite.reading import COUNT_CALLS, COUNT_HELD, COUNT_OPEN, COUNT_RUNS, COUNT_STATES
from app.store.views import Counts

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime

COUNT_CREATES = "SELECT count(*) FROM outbox WHERE kind = 'create'"
COUNT_CREATES_ON_THEIR_WAY = """
SELECT state, count(*) AS n FROM outbox INDEXED BY outbox_by_state
WHERE delivered_at IS NULL AND kind = 'create' GROUP BY state
"""
COUNT_REPEATED = "SELECT coalesce(sum(count), 0) FROM repeated_kickoffs"
COUNT_BATCHES = "SELECT count(*) FROM batches"
COUNT_ACTIVE_BATCHES = "SELECT state, count(*) AS n FROM batches WHERE state <> 'measured' GROUP BY state"


def counts(connection: sqlite3.Connection, at: datetime) -> Counts:
    states = {row["state"]: row for row in connection.execute(COUNT_STATES)}
    waiting = [states[name] for name in ("pending", "sending") if name in states]
    oldest = min((row["oldest"] for row in waiting), default=None)
    created = connection.execute(COUNT_CREATES).fetchone()[0]
    on_their_way = {row["state"]: row["n"] for row in connection.execute(COUNT_CREATES_ON_THEIR_WAY)}
    batches = {row["state"]: row["n"] for row in connection.execute(COUNT_ACTIVE_BATCHES)}
    batches["measured"] = connection.execute(COUNT_BATCHES).fetchone()[0] - sum(batches.values())
    month = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Counts(
        runs=connection.execute(COUNT_RUNS).fetchone()[0],
        created=created,
        already_existed=connection.execute(COUNT_REPEATED).fetchone()[0],
        creations_delivered=created - sum(on_their_way.values()),
        creations_failed=on_their_way.get("dead", 0),
        pending=sum(row["n"] for row in waiting),
        dead=states["dead"]["n"] if "dead" in states else 0,
        oldest_pending_seconds=(at - parse_iso(oldest)).total_seconds() if oldest else None,
        held=connection.execute(COUNT_HELD).fetchone()[0],
        open_errors={row["kind"]: row["n"] for row in connection.execute(COUNT_OPEN)},
        batches=batches,
        calls_this_month={row["outcome"]: row["n"] for row in connection.execute(COUNT_CALLS, (iso(month),))},
        last_check=last_summary(connection),
    )
