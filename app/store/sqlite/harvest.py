"""Units of the harvest loop: claim the batch whose step is due, apply what the step brought, recover after a stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.clock import iso
from app.model import BatchState
from app.policy.harvest import Batch, LookFailed, StartLost, after, first_look, longest_wait
from app.store.protocol import BatchStep
from app.store.sqlite.batches import BATCH_BY_ID, SELECT_BATCH, batch_of, move_batch
from app.store.sqlite.webhooks import OTHER_HAS_RUN, release_held

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

    from app.policy.harvest import BatchEvent, HarvestRules
    from app.store.sqlite.intake import When

# A queued batch is due only while the plan's places are not all taken. That a batch is not measured is said wherever a
# state is, though the state says it too: the index of those that are not serves a statement that says so.
DUE = """
due_at IS NOT NULL AND (state <> 'queued' OR :most > (
    SELECT count(*) FROM batches AS b
    WHERE b.state <> 'measured' AND b.state IN ('starting', 'unknown', 'running')))
"""
SELECT_NEXT_DUE = f"SELECT min(due_at) FROM batches WHERE {DUE}"
CLAIM_DUE = f"{SELECT_BATCH} WHERE {DUE} AND due_at <= :at ORDER BY due_at LIMIT 1"
MARK_STARTING = """
UPDATE batches SET state = 'starting', attempts = attempts + 1, attempted_at = ?, due_at = NULL WHERE id = ?
"""
MARK_CLAIMED = "UPDATE batches SET due_at = NULL WHERE id = ?"
SELECT_INPUT = "SELECT input FROM batches WHERE id = ?"
SELECT_TAKEN = "SELECT apify_run_id FROM batches WHERE apify_run_id IS NOT NULL AND id <> ? AND started_at >= ?"


def next_batch_due(connection: sqlite3.Connection, rules: HarvestRules) -> str | None:
    due: str | None = connection.execute(SELECT_NEXT_DUE, {"most": rules.max_concurrent_runs}).fetchone()[0]
    return due


def claim_batch(connection: sqlite3.Connection, at: datetime, rules: HarvestRules) -> BatchStep | None:
    """The batch that is due longest, and no longer due: its next step is the caller's.

    A start is marked before it is sent, so that a crash in between is known for what it is.
    """
    due = {"most": rules.max_concurrent_runs, "at": iso(at)}
    row = connection.execute(CLAIM_DUE, due).fetchone()
    if row is None and _recover_far(connection, at, rules):
        row = connection.execute(CLAIM_DUE, due).fetchone()
    if row is None:
        return None
    was = BatchState(row["state"])
    if was is BatchState.QUEUED:
        connection.execute(MARK_STARTING, (iso(at), row["id"]))
    else:
        connection.execute(MARK_CLAIMED, (row["id"],))
    batch = batch_of(connection.execute(BATCH_BY_ID, (row["id"],)).fetchone())
    run_input = connection.execute(SELECT_INPUT, (batch.id,)).fetchone()["input"]
    return BatchStep(batch, was, run_input or "null")


def taken_apify_runs(connection: sqlite3.Connection, batch_id: int, since: datetime) -> frozenset[str]:
    """The Apify runs that other batches are, of those that started since then."""
    rows = connection.execute(SELECT_TAKEN, (batch_id, iso(since)))
    return frozenset(row["apify_run_id"] for row in rows)


def apply_event(
    connection: sqlite3.Connection,
    batch_id: int,
    event: BatchEvent,
    *,
    now: datetime,
    when: When,
    rules: HarvestRules,
    known: Sequence[str],
) -> Batch:
    """Move the batch on from where it is by now (a webhook may have been faster), and its run with it."""
    before = batch_of(connection.execute(BATCH_BY_ID, (batch_id,)).fetchone())
    moved = after(before, event, at=now, rules=rules)
    if moved.apify_run_id != before.apify_run_id and _is_taken(connection, moved):
        # Two batches with one input were lost, and the other was faster: this one's run is still to be found.
        cause = f"Apify run {moved.apify_run_id} is another batch by now"
        lost = LookFailed(cause) if before.state is BatchState.UNKNOWN else StartLost(cause)
        moved = after(before, lost, at=now, rules=rules)
    move_batch(connection, before, moved, known, when)
    if moved.apify_run_id != before.apify_run_id:
        release_held(connection, moved, moved.run_id, now=now, when=when, rules=rules, known=known)
    return moved


def _is_taken(connection: sqlite3.Connection, batch: Batch) -> bool:
    return connection.execute(OTHER_HAS_RUN, (batch.apify_run_id, batch.id)).fetchone() is not None


RECOVER_STARTS = """
UPDATE batches SET state = 'unknown', cause = 'the service stopped before the start was answered', due_at = ?
WHERE state <> 'measured' AND state = 'starting'
"""
RECOVER_BATCHES = """
UPDATE batches SET due_at = ?
WHERE due_at IS NULL AND state <> 'measured'
    AND state IN ('queued', 'unknown', 'running', 'succeeded', 'timed_out', 'aborted', 'failed')
    AND (state <> 'failed' OR apify_run_id IS NOT NULL)
"""
# A due time that is further ahead than any wait of ours was given by a clock that has been set back since.
RECOVER_FAR_BATCHES = "UPDATE batches SET due_at = ? WHERE due_at > ?"


def recover_batches(connection: sqlite3.Connection, at: datetime, rules: HarvestRules) -> int:
    """After a stop: a start that was under way is unknown, and every step that was under way is due again."""
    _recover_far(connection, at, rules)
    lost = connection.execute(RECOVER_STARTS, (iso(at + first_look(rules)),)).rowcount
    return lost + connection.execute(RECOVER_BATCHES, (iso(at),)).rowcount


def _recover_far(connection: sqlite3.Connection, at: datetime, rules: HarvestRules) -> int:
    return connection.execute(RECOVER_FAR_BATCHES, (iso(at), iso(at + longest_wait(rules)))).rowcount
