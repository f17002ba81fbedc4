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

#: Rows that one bite looks at, at most. Each costs some 20 µs of the writer's time.
BITE: Final = 200

# Delivered messages stand in the order of their delivery. Creates among them stay, and are passed over once a pruning.
SELECT_DELIVERED = """
SELECT id, kind, delivered_at FROM outbox
WHERE delivered_at >= :after AND delivered_at < :before AND delivered_at IS NOT NULL
    AND (delivered_at > :after OR id > :after_id)
ORDER BY delivered_at, id LIMIT :bite
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
    walked = {"after": cursor.delivered_at, "after_id": cursor.message_id, "before": iso(before), "bite": BITE}
    rows = connection.execute(SELECT_DELIVERED, walked).fetchall()
    updates = [row["id"] for row in rows if row["kind"] == "update"]
    if updates:
        connection.execute(DELETE_MESSAGES, (json.dumps(updates),))
    end = PruneCursor(rows[-1]["delivered_at"], rows[-1]["id"]) if len(rows) == BITE else None
    return Bite(len(updates), end)


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
