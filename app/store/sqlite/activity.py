"""The unit behind the page's plots: what was accepted, delivered and set aside, step by step, and how long it took.

Every step costs a few searches in an index, however many messages there are.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Final

from app.clock import iso, parse_iso
from app.store.views import ActivityStep

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime, timedelta

#: Deliveries of a step that are looked at for their delay, the latest.
MOST_TIMED: Final = 100

# Ids are given in the order of acceptance, so that how many were accepted is a difference of ids: pruning takes
# nothing from it, and no index over a million times is needed. MIDDLE finds the first message at or after an id.
FIRST_ID = "SELECT min(id) FROM outbox"
LAST_ID = "SELECT max(id) FROM outbox"
MIDDLE = "SELECT id, accepted_at FROM outbox WHERE id >= ? ORDER BY id LIMIT 1"
COUNT_DELIVERED = "SELECT count(*) FROM outbox WHERE delivered_at >= ? AND delivered_at < ?"
COUNT_DEAD = "SELECT count(*) FROM outbox WHERE dead_at >= ? AND dead_at < ?"
SELECT_TIMES = f"""
SELECT accepted_at, delivered_at FROM outbox WHERE delivered_at >= ? AND delivered_at < ?
ORDER BY delivered_at DESC LIMIT {MOST_TIMED}
"""


def activity(connection: sqlite3.Connection, since: datetime, step: timedelta, count: int) -> Sequence[ActivityStep]:
    """`count` steps from `since` on, each as long as `step`."""
    starts = [iso(since + step * number) for number in range(count + 1)]
    first = connection.execute(FIRST_ID).fetchone()[0] or 0
    beyond = (connection.execute(LAST_ID).fetchone()[0] or 0) + 1
    places = []
    for start in starts:
        first = _first_accepted(connection, start, first, beyond)
        places.append(first)
    return [
        _step(connection, start, end, places[number + 1] - places[number])
        for number, (start, end) in enumerate(pairwise(starts))
    ]


def _first_accepted(connection: sqlite3.Connection, at: str, low: int, high: int) -> int:
    """The least id in `low` to `high` whose message was accepted at `at` or later; `high` where there is none."""
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(MIDDLE, (middle,)).fetchone()
        if row is None or row["accepted_at"] >= at:
            high = middle
        else:
            low = row["id"] + 1
    return low


def _step(connection: sqlite3.Connection, start: str, end: str, accepted: int) -> ActivityStep:
    delays = [
        (parse_iso(row["delivered_at"]) - parse_iso(row["accepted_at"])).total_seconds()
        for row in connection.execute(SELECT_TIMES, (start, end))
    ]
    return ActivityStep(
        start=start,
        accepted=accepted,
        delivered=connection.execute(COUNT_DELIVERED, (start, end)).fetchone()[0],
        dead=connection.execute(COUNT_DEAD, (start, end)).fetchone()[0],
        median_delay_seconds=median(delays) if delays else None,
        slowest_delay_seconds=max(delays, default=None),
    )
