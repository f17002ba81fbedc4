"""Units of the sync loop: claim runs, settle what became of them, recover after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from app.clock import iso, parse_iso
from app.errors import StoreError
from app.fields import load_fold, load_names
from app.model import RECORDS_PER_CALL, CallOutcome, ErrorKind, MessageKind
from app.policy.delivery import Claim, ClaimedRun, SetAside, Waiting, fields_to_send
from app.store.sqlite.troubles import meet, resolve_delivered

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime, timedelta

    from app.policy.budget import Allowance
    from app.policy.delivery import RunSettlement, Settlement

# Claim ----------------------------------------------------------------------------------------------------------

#: Messages of one run that one claim takes: more of them follow at once, and no claim stalls the writer.
MESSAGES_PER_RUN: Final = 1_000
#: Groups of runs that are due without a message, which one claim lays to rest before it gives up for this time.
_MOST_LOOKS: Final = 50

# Runs of one lane go in one request: creates apart from updates, and those under suspicion in smaller groups.
LANES: Final = "(1, 10), (1, 5), (1, 2), (1, 1), (0, 10), (0, 5), (0, 2), (0, 1)"
SELECT_LANE = f"""
WITH lane (creating, share) AS (VALUES {LANES})
SELECT creating, share, (
    SELECT min(due_at) FROM runs
    WHERE (airtable_record_id IS NULL) = lane.creating AND share = lane.share AND due_at IS NOT NULL AND call_id IS NULL
) AS due_at
FROM lane WHERE due_at IS NOT NULL AND creating >= :only_creates ORDER BY due_at LIMIT 1
"""
# A call that leaves anyway takes along runs that only linger for company; one that failed keeps to its pause.
SELECT_DUE = """
SELECT run_id, airtable_record_id, share, failures, fields FROM (
    SELECT * FROM runs
    WHERE (airtable_record_id IS NULL) = :creating AND share = :share AND due_at <= :company_until
        AND due_at IS NOT NULL AND call_id IS NULL
    ORDER BY due_at LIMIT :share)
WHERE due_at <= :at OR failures = 0
"""
MAY_SEND = """
SELECT 1 FROM outbox AS m WHERE m.run_id = :run_id AND m.delivered_at IS NULL AND m.state = 'pending'
    AND NOT EXISTS (SELECT 1 FROM outbox AS c WHERE c.run_id = :run_id AND c.kind = 'create' AND c.state = 'dead')
LIMIT 1
"""
INSERT_CALL = "INSERT INTO airtable_calls (method, records, messages, started_at) VALUES (?, 0, 0, ?)"
COUNT_IN_CALL = "UPDATE airtable_calls SET records = ?, messages = ? WHERE id = ?"
CLAIM_RUN = "UPDATE runs SET call_id = ? WHERE run_id = ?"
# In the order of ids: the schema lets an update of a run without a record ride only with its create, which is older.
CLAIM_MESSAGES = """
UPDATE outbox SET state = 'sending', call_id = :call_id, attempts = attempts + 1
WHERE id IN (SELECT id FROM outbox WHERE run_id = :run_id AND delivered_at IS NULL AND state = 'pending'
             ORDER BY id LIMIT :limit)
RETURNING id, fields, attempts
"""


def next_due(connection: sqlite3.Connection, *, only_creates: bool) -> str | None:
    """When the first run is due that nobody carries."""
    lane = connection.execute(SELECT_LANE, {"only_creates": only_creates}).fetchone()
    return None if lane is None else lane["due_at"]


def claim(connection: sqlite3.Connection, at: datetime, *, company_until: datetime, only_creates: bool) -> Claim | None:
    """Take the runs that are due longest, and all that waits for each: marked as sending, under a new call.

    `None` where nothing is due, or nothing but what a hand made due: the rest of that has its turn at the next claim.
    """
    for _ in range(_MOST_LOOKS):
        lane = connection.execute(SELECT_LANE, {"only_creates": only_creates}).fetchone()
        if lane is None or lane["due_at"] > iso(at):
            return None
        due = {**dict(lane), "at": iso(at), "company_until": iso(company_until)}
        rows = [row for row in connection.execute(SELECT_DUE, due).fetchall() if _something_waits(connection, row, at)]
        if rows:
            return _claim_runs(connection, rows, at, creating=bool(lane["creating"]))
    return None


def _claim_runs(connection: sqlite3.Connection, rows: list[sqlite3.Row], at: datetime, *, creating: bool) -> Claim:
    call = connection.execute(INSERT_CALL, (MessageKind.CREATE if creating else MessageKind.UPDATE, iso(at)))
    call_id = int(call.lastrowid or 0)
    runs = tuple(_claim_run(connection, row, call_id) for row in rows)
    connection.execute(COUNT_IN_CALL, (len(runs), sum(len(run.messages) for run in runs), call_id))
    return Claim(call_id, creating, runs)


def _something_waits(connection: sqlite3.Connection, row: sqlite3.Row, at: datetime) -> bool:
    """Whether the run has a message that may be sent; one that a hand made due without any goes to rest."""
    if connection.execute(MAY_SEND, {"run_id": row["run_id"]}).fetchone() is not None:
        return True
    rest = {"failures": 0, "share": RECORDS_PER_CALL, "due_at": iso(at), "run_id": row["run_id"]}
    connection.execute(REST_RUN, rest)
    return False


def _claim_run(connection: sqlite3.Connection, row: sqlite3.Row, call_id: int) -> ClaimedRun:
    run_id: str = row["run_id"]
    connection.execute(CLAIM_RUN, (call_id, run_id))
    take = {"call_id": call_id, "run_id": run_id, "limit": MESSAGES_PER_RUN}
    taken = connection.execute(CLAIM_MESSAGES, take).fetchall()
    messages = tuple(Waiting(one["id"], load_names(one["fields"]), one["attempts"]) for one in taken)
    return ClaimedRun(
        run_id=run_id,
        record_id=row["airtable_record_id"],
        share=row["share"],
        failures=row["failures"],
        messages=messages,
        values=fields_to_send(messages, load_fold(row["fields"])),
    )


# Settle ---------------------------------------------------------------------------------------------------------

FINISH_CALL = "UPDATE airtable_calls SET outcome = ?, status = ?, error = ?, finished_at = ? WHERE id = ?"
SELECT_OWNER = "SELECT run_id FROM runs WHERE airtable_record_id = ?"
SELECT_SENDING = "SELECT id FROM outbox WHERE run_id = ? AND delivered_at IS NULL AND state = 'sending'"
KNOW_RECORD = "UPDATE runs SET airtable_record_id = ? WHERE run_id = ? AND airtable_record_id IS NULL"
DELIVER = """
UPDATE outbox SET state = 'delivered', delivered_at = ? WHERE run_id = ? AND delivered_at IS NULL AND state = 'sending'
RETURNING accepted_at
"""
SET_ASIDE = "UPDATE outbox SET state = 'dead', dead_at = ?, error_id = ? WHERE id = ?"
# The kind is a literal: as a parameter it decides whether a partial index serves, and SQLite would plan anew each time.
WAIT_AGAIN = """
UPDATE outbox SET state = 'pending', attempts = attempts - :give_back
WHERE run_id = :run_id AND kind = '{}' AND delivered_at IS NULL AND state = 'sending'
    AND id NOT IN (SELECT value FROM json_each(:dead))
"""
UPDATES_WAIT_AGAIN = WAIT_AGAIN.format(MessageKind.UPDATE)
CREATE_WAITS_AGAIN = WAIT_AGAIN.format(MessageKind.CREATE)
# What waits is due again, unless the create is dead; how the run stands follows from what is left.
REST_RUN = """
UPDATE runs SET
    call_id = NULL,
    failures = :failures,
    share = :share,
    due_at = CASE WHEN EXISTS (
            SELECT 1 FROM outbox AS m WHERE m.run_id = runs.run_id AND m.delivered_at IS NULL AND m.state = 'pending')
        AND NOT EXISTS (
            SELECT 1 FROM outbox AS c WHERE c.run_id = runs.run_id AND c.kind = 'create' AND c.state = 'dead')
        THEN :due_at END,
    sync = CASE
        WHEN EXISTS (SELECT 1 FROM outbox AS m
            WHERE m.run_id = runs.run_id AND m.delivered_at IS NULL AND m.state = 'dead') THEN 'failed'
        WHEN EXISTS (SELECT 1 FROM outbox AS m WHERE m.run_id = runs.run_id AND m.delivered_at IS NULL) THEN 'pending'
        ELSE 'synced' END
WHERE run_id = :run_id
"""


def settle(connection: sqlite3.Connection, settlement: Settlement, at: datetime) -> list[list[datetime]]:
    """Write what became of a call and of each run that it carried; by record, when what was delivered was accepted."""
    now = iso(at)
    finished = (settlement.outcome, settlement.status, settlement.error, now, settlement.call_id)
    connection.execute(FINISH_CALL, finished)
    settled = [_settle_run(connection, run, now) for run in settlement.runs]
    return [accepted for accepted in settled if accepted]


def _settle_run(connection: sqlite3.Connection, run: RunSettlement, now: str) -> list[datetime]:
    accepted: list[datetime] = []
    created = False
    if run.record_id is not None:
        owner = connection.execute(SELECT_OWNER, (run.record_id,)).fetchone()
        if owner is None or owner["run_id"] == run.run_id:
            created = connection.execute(KNOW_RECORD, (run.record_id, run.run_id)).rowcount > 0
        else:
            run = _shares_record(connection, run, owner["run_id"])
    if run.delivered:
        delivered = connection.execute(DELIVER, (now, run.run_id)).fetchall()
        accepted = [parse_iso(row["accepted_at"]) for row in delivered]
        resolve_delivered(connection, run.run_id, run.record_id, created=created, at=now)
    else:
        _take_back(connection, run, now)
    rest = {"failures": run.failures, "share": run.share, "due_at": iso(run.due_at), "run_id": run.run_id}
    connection.execute(REST_RUN, rest)
    return accepted


def _shares_record(connection: sqlite3.Connection, run: RunSettlement, owner: str) -> RunSettlement:
    """A person renamed the record of `owner` in Airtable, so that the upsert of this run fell upon it."""
    sending = tuple(row["id"] for row in connection.execute(SELECT_SENDING, (run.run_id,)))
    message = f"Its record in Airtable is that of {owner}: give that one its own Run ID back, then retry"
    dead = SetAside(ErrorKind.DUPLICATE_RECORD, message, f"Airtable answered with {run.record_id}", sending)
    return replace(run, delivered=False, record_id=None, dead=dead)


def _take_back(connection: sqlite3.Connection, run: RunSettlement, now: str) -> None:
    """Set the dead aside and let the others wait; a create last, because no update may be out without it."""
    dead = run.dead.message_ids if run.dead is not None else ()
    again = {"run_id": run.run_id, "give_back": int(run.give_back), "dead": json.dumps(dead)}
    connection.execute(UPDATES_WAIT_AGAIN, again)
    if run.dead is not None:
        _set_aside(connection, run.run_id, run.dead, now)
    connection.execute(CREATE_WAITS_AGAIN, again)


def _set_aside(connection: sqlite3.Connection, run_id: str, dead: SetAside, now: str) -> None:
    error_id = meet(connection, dead.kind, run_id, dead.message, dead.cause, now)
    newest_first = sorted(dead.message_ids, reverse=True)
    connection.executemany(SET_ASIDE, [(now, error_id, message_id) for message_id in newest_first])


# Bind -----------------------------------------------------------------------------------------------------------

BIND_BASE = "INSERT INTO destination (id, base_id, bound_at) VALUES (1, ?, ?) ON CONFLICT DO NOTHING"
SELECT_BASE = "SELECT base_id FROM destination"


def bind_base(connection: sqlite3.Connection, base_id: str, at: datetime) -> None:
    """Tie the store to the base that it delivers to: the record ids in it mean nothing to another.

    Raises:
        StoreError: it is tied to another base.
    """
    connection.execute(BIND_BASE, (base_id, iso(at)))
    bound: str = connection.execute(SELECT_BASE).fetchone()["base_id"]
    if bound != base_id:
        raise StoreError(
            f"this store belongs to base {bound} and is asked to deliver to {base_id}: give [store] path another file, "
            "or set [airtable] base_id back"
        )


# Budget ---------------------------------------------------------------------------------------------------------

KEEP_BUDGET = "UPDATE call_budget SET monthly_calls = ?, state = ?, updates_wait_until = ?"


def keep_budget(connection: sqlite3.Connection, monthly_calls: int, allowance: Allowance) -> None:
    until = allowance.updates_wait_until
    connection.execute(KEEP_BUDGET, (monthly_calls, allowance.state, iso(until) if until else None))


# Ask ------------------------------------------------------------------------------------------------------------

COUNT_RECORDS = "UPDATE airtable_calls SET records = ? WHERE id = ?"


def begin_call(connection: sqlite3.Connection, method: str, at: datetime) -> int:
    """Count a request that is no delivery, before it is sent."""
    return int(connection.execute(INSERT_CALL, (method, iso(at))).lastrowid or 0)


def end_call(connection: sqlite3.Connection, settlement: Settlement, records: int, at: datetime) -> None:
    connection.execute(COUNT_RECORDS, (records, settlement.call_id))
    settle(connection, settlement, at)


# Recover --------------------------------------------------------------------------------------------------------

INTERRUPT_CALLS = """
UPDATE airtable_calls SET outcome = ?, finished_at = ?, error = 'the service stopped before the answer was kept'
WHERE outcome = 'in_flight'
"""
RECOVER_MESSAGES = """
UPDATE outbox SET state = 'pending' WHERE kind = ? AND state = 'sending' AND delivered_at IS NULL
"""
RECOVER_RUNS = "UPDATE runs SET call_id = NULL, due_at = ? WHERE call_id IS NOT NULL"
# A due time that is further ahead than any wait of ours was given by a clock that has been set back since.
RECOVER_FAR_RUNS = f"""
UPDATE runs SET due_at = :at WHERE id IN (
    WITH lane (creating, share) AS (VALUES {LANES})
    SELECT r.id FROM lane CROSS JOIN runs AS r ON (r.airtable_record_id IS NULL) = lane.creating
        AND r.share = lane.share AND r.due_at > :latest AND r.due_at IS NOT NULL AND r.call_id IS NULL)
"""
# Nothing of ours leaves a message without a due time but the death of its create and a look for its record; a person's
# hand does.
RECOVER_UNDUE_RUNS = """
UPDATE runs SET due_at = :at
WHERE due_at IS NULL AND sync <> 'synced'
    AND EXISTS (SELECT 1 FROM outbox AS m
        WHERE m.run_id = runs.run_id AND m.delivered_at IS NULL AND m.state = 'pending')
    AND NOT EXISTS (
        SELECT 1 FROM outbox AS c WHERE c.run_id = runs.run_id AND c.kind = 'create' AND c.state = 'dead')
    AND run_id NOT IN (SELECT run_id FROM record_looks)
"""


def recover(connection: sqlite3.Connection, at: datetime, longest_wait: timedelta) -> int:
    """Take back what a stopped process was carrying: upserts and record ids make it safe to send again."""
    connection.execute(INTERRUPT_CALLS, (CallOutcome.INTERRUPTED, iso(at)))
    taken_back = sum(
        connection.execute(RECOVER_MESSAGES, (kind,)).rowcount for kind in (MessageKind.UPDATE, MessageKind.CREATE)
    )
    connection.execute(RECOVER_RUNS, (iso(at),))
    recover_far(connection, at, longest_wait)
    connection.execute(RECOVER_UNDUE_RUNS, {"at": iso(at)})
    return taken_back


def recover_far(connection: sqlite3.Connection, at: datetime, longest_wait: timedelta) -> int:
    """Make due what a clock that was ahead put off for longer than anything waits; how many runs that are."""
    return connection.execute(RECOVER_FAR_RUNS, {"at": iso(at), "latest": iso(at + longest_wait)}).rowcount


# As many of the latest as can have been under way together: they are answered in any order.
LATEST_CALLS = "SELECT outcome, finished_at FROM airtable_calls ORDER BY id DESC LIMIT 64"
SELECT_LAST_LIMITED = f"SELECT max(finished_at) AS at FROM ({LATEST_CALLS}) WHERE outcome = 'rate_limited'"
SELECT_LAST_ANSWERED = f"SELECT max(finished_at) AS at FROM ({LATEST_CALLS})"


def last_rate_limited(connection: sqlite3.Connection) -> str | None:
    """When the base last said that it was asked too often: its pause outlives a restart of ours.

    By the order of the calls, and not by when they began: one may be under way for longer than a pause, or the clock
    be set in the meantime.
    """
    at: str | None = connection.execute(SELECT_LAST_LIMITED).fetchone()["at"]
    return at


def last_answered(connection: sqlite3.Connection) -> str | None:
    """When the base last answered: what it counted in that second outlives a restart of ours."""
    at: str | None = connection.execute(SELECT_LAST_ANSWERED).fetchone()["at"]
    return at
