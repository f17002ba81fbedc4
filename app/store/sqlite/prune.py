"""Units of pruning: each removes one bite of what is past its days, so that no other writer waits long for any.

What keeps the order stays: runs, their creates, errors, held updates, batches, and every webhook but its body.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.store.protocol import Bite, PruneCursor

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime

#: Rows that one bite removes at most: each costs some 20 µs of the writer's time.
BITE: Final = 200
#: Creates, which stay, that one bite passes over at most: each costs 1 µs, and all of them are passed once a pruning.
WALK: Final = 2_000

SELECT_DELIVERED = """
SELECT id, kind, delivered_at FROM outbox
WHERE (delivered_at, id) > (:after, :after_id) AND delivered_at < :before AND delivered_at IS NOT NULL
ORDER BY delivered_at, id LIMIT :walk
"""
DELETE_MESSAGES = "DELETE FROM outbox WHERE id IN (SELECT value FROM json_each(?))"
DELETE_CALLS = """
DELETE FROM airtable_calls WHERE id IN (
    SELECT id FROM airtable_calls WHERE started_at < ? AND outcome <> 'in_flight' ORDER BY started_at LIMIT ?)
"""
EMPTY_WEBHOOKS = """
UPDATE webhook_events SET body = NULL WHERE id IN (
    SELECT id FROM webhook_events WHERE received_at < ? AND body IS NOT NULL AND outcome <> 'held'
    ORDER BY received_at LIMIT ?)
"""
DELETE_KEYS = """
DELETE FROM idempotency_keys WHERE (scope, key) IN (
    SELECT scope, key FROM idempotency_keys WHERE accepted_at < ? ORDER BY accepted_at LIMIT ?)
"""
SELECT_FREE = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"


def prune_messages(connection: sqlite3.Connection, before: datetime, cursor: PruneCursor) -> Bite:
    """Remove updates that were delivered before then, from `cursor` on."""
    chosen = {"after": cursor.delivered_at, "after_id": cursor.message_id, "before": iso(before), "walk": WALK}
    updates: list[int] = []
    walked = 0
    for row in connection.execute(SELECT_DELIVERED, chosen):
        walked += 1
        cursor = PruneCursor(row["delivered_at"], row["id"])
        if row["kind"] == "update":
            updates.append(row["id"])
        if len(updates) == BITE:
            break
    connection.execute(DELETE_MESSAGES, (json.dumps(updates),))
    is_last = walked < WALK and len(updates) < BITE
    return Bite(len(updates), None if is_last else cursor)


def prune_calls(connection: sqlite3.Connection, before: datetime) -> int:
    return connection.execute(DELETE_CALLS, (iso(before), BITE)).rowcount


def prune_webhook_bodies(connection: sqlite3.Connection, before: datetime) -> int:
    return connection.execute(EMPTY_WEBHOOKS, (iso(before), BITE)).rowcount


def prune_idempotency_keys(connection: sqlite3.Connection, before: datetime) -> int:
    return connection.execute(DELETE_KEYS, (iso(before), BITE)).rowcount


def free_bytes(connection: sqlite3.Connection) -> int:
    """What pruning left free inside the file: later rows fill it before the file grows again."""
    free: int = connection.execute(SELECT_FREE).fetchone()[0]
    return free
