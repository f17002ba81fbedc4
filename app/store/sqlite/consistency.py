"""Units of a consistency check: what it saw, what that leaves in doubt, what it found wrong, and what follows.

What a check sees is kept in tables of the store, so that no table of Airtable's has to fit into memory. Nothing is
said about a run that is on its way, or was when the reading began: the next check sees it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.fields import RUN_ID, load_fold
from app.model import ErrorKind, Resolution
from app.policy.delivery import SET_ASIDE_MESSAGES
from app.store.protocol import CheckOutcome, Delivered, Doubt
from app.store.sqlite.troubles import HAS_DEAD, THERE_AGAIN, UNSETTLED
from app.store.views import CheckFinding, CheckSummary, HowFar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

    from app.store.protocol import CheckScope, SeenRecord

#: Findings that a report shows; all of them are in `errors`.
MOST_DETAILS: Final = 1_000

# See ------------------------------------------------------------------------------------------------------------

FORGET: Final = ("DELETE FROM check_seen", "DELETE FROM check_doubts", "DELETE FROM check_findings")
# What the record of an adopted run held before is not ours: only what a message of ours named is compared, be it
# pruned by now. What a dead message names was never delivered, unless a later one delivered it with its present value.
SELECT_DELIVERED = """
SELECT run_id, airtable_record_id, fields, CASE origin WHEN 'adopted' THEN (
    SELECT json_group_array(DISTINCT named.value) FROM (
        SELECT m.fields FROM outbox AS m WHERE m.run_id = runs.run_id AND m.delivered_at IS NOT NULL
        UNION ALL
        SELECT p.fields FROM pruned_messages AS p WHERE p.run_id = runs.run_id
    ) AS ours, json_each(ours.fields) AS named) END AS named,
    CASE WHEN EXISTS (
        SELECT 1 FROM outbox AS m WHERE m.run_id = runs.run_id AND m.delivered_at IS NULL AND m.state = 'dead'
    ) THEN (SELECT json_group_array(field) FROM (
        SELECT named.value AS field FROM outbox AS m, json_each(m.fields) AS named WHERE m.run_id = runs.run_id
        GROUP BY field HAVING max(m.dead_at) >= coalesce(max(m.delivered_at), ''))
    ) ELSE '[]' END AS dead
FROM runs WHERE airtable_record_id IN (SELECT value FROM json_each(?))
"""
NOTE_RECORD = """
INSERT INTO check_seen (record_id, run_id, client_id, drifted, cause) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET run_id = excluded.run_id, client_id = excluded.client_id, drifted = excluded.drifted,
    cause = excluded.cause
"""
NOTE_ASKED = "UPDATE check_doubts SET asked = 1 WHERE record_id = ?"


def begin(connection: sqlite3.Connection) -> None:
    for statement in FORGET:
        connection.execute(statement)


def delivered(connection: sqlite3.Connection, record_ids: Sequence[str]) -> dict[str, Delivered]:
    """What the records of runs of ours should hold, by record id."""
    found = {}
    for row in connection.execute(SELECT_DELIVERED, (json.dumps(record_ids),)):
        values = load_fold(row["fields"])
        if row["named"] is not None:
            values = {RUN_ID: row["run_id"], **{name: values.get(name) for name in json.loads(row["named"])}}
        dead = frozenset(json.loads(row["dead"]))
        arrived = {name: value for name, value in values.items() if name not in dead}
        found[row["airtable_record_id"]] = Delivered(row["run_id"], arrived)
    return found


def note(connection: sqlite3.Connection, records: Sequence[SeenRecord], asked: Sequence[Doubt]) -> None:
    connection.executemany(
        NOTE_RECORD,
        [
            (one.record_id, one.run_id, one.client_id, json.dumps(one.drifted) if one.drifted else None, one.cause)
            for one in records
        ],
    )
    connection.executemany(NOTE_ASKED, [(doubt.record_id,) for doubt in asked])


# Doubt ----------------------------------------------------------------------------------------------------------

# Nothing is on its way, and nothing has come to an end since. What was set aside does not hide the rest of its run.
QUIET = """
(r.due_at IS NULL AND r.call_id IS NULL AND r.changed_at < :quiet_before
    AND NOT EXISTS (SELECT 1 FROM outbox AS m WHERE m.run_id = r.run_id AND m.delivered_at >= :quiet_before)
    AND NOT EXISTS (SELECT 1 FROM outbox AS m WHERE m.run_id = r.run_id AND m.delivered_at IS NULL
        AND (m.state <> 'dead' OR m.dead_at >= :quiet_before)))
"""
SEEN = "EXISTS (SELECT 1 FROM check_seen AS own WHERE own.record_id = r.airtable_record_id)"
ASKED = "EXISTS (SELECT 1 FROM check_doubts AS d WHERE d.record_id = r.airtable_record_id AND d.asked = 1)"
OWNED = "EXISTS (SELECT 1 FROM runs AS owner WHERE owner.airtable_record_id = s.record_id)"
# A listing is a window over times, and may be stale: what it leaves open is asked for by run id and record id. That is
# a run whose record was not listed (and should have been, or another record has its run id), and what was wrong before.
GATHER_DOUBTS = f"""
INSERT OR IGNORE INTO check_doubts (record_id, run_id)
SELECT r.airtable_record_id, r.run_id FROM runs AS r
WHERE r.created_at >= :since AND r.airtable_record_id IS NOT NULL AND NOT {SEEN} AND {QUIET}
UNION ALL
SELECT r.airtable_record_id, r.run_id FROM check_seen AS s JOIN runs AS r ON r.run_id = s.run_id
WHERE r.airtable_record_id <> s.record_id AND NOT {SEEN} AND {QUIET}
UNION ALL
SELECT r.airtable_record_id, r.run_id FROM errors AS e JOIN runs AS r ON r.run_id = e.run_id
WHERE e.state = 'open' AND r.airtable_record_id IS NOT NULL
    AND (e.kind IN ('record_deleted', 'duplicate_record') OR (e.kind = 'drift' AND NOT {SEEN}))
UNION ALL
SELECT e.found_record_id, e.run_id FROM errors AS e
WHERE e.state = 'open' AND e.kind = 'unknown_record'
    AND NOT EXISTS (SELECT 1 FROM check_seen AS s WHERE s.record_id = e.found_record_id)
"""
SELECT_DOUBTS = "SELECT record_id, run_id FROM check_doubts WHERE asked = 0 ORDER BY record_id LIMIT ?"


def gather_doubts(connection: sqlite3.Connection, scope: CheckScope) -> None:
    connection.execute(GATHER_DOUBTS, _times(scope))


def doubts(connection: sqlite3.Connection, limit: int) -> list[Doubt]:
    return [Doubt(row["record_id"], row["run_id"]) for row in connection.execute(SELECT_DOUBTS, (limit,))]


def _times(scope: CheckScope) -> dict[str, str]:
    return {"since": iso(scope.since), "quiet_before": iso(scope.quiet_before)}


# Find -----------------------------------------------------------------------------------------------------------

MESSAGES: Final = {
    "drifted": "Fields of its record were changed in Airtable: 'check --repair drift' delivers ours again",
    "deleted": SET_ASIDE_MESSAGES[ErrorKind.RECORD_DELETED],
    "twice": "Airtable holds several records with this Run ID: keep ours, and delete or rename the others",
    "unknown": "Airtable holds a record that no kickoff of this service created",
}
MOST_CAUSE: Final = 500
FIND_DRIFTED = f"""
INSERT INTO check_findings (kind, record_id, run_id, client_id, message, cause, drifted)
SELECT 'drift', s.record_id, r.run_id, r.client_id, :drifted, s.cause, s.drifted
FROM check_seen AS s JOIN runs AS r ON r.airtable_record_id = s.record_id
WHERE s.drifted IS NOT NULL AND {QUIET}
"""
# A record that is another run's own, renamed, has drifted: that says it all.
FIND_TWICE = f"""
INSERT INTO check_findings (kind, record_id, run_id, client_id, message, cause)
SELECT 'duplicate_record', r.airtable_record_id, r.run_id, r.client_id, :twice, substr(
    'ours ' || iif({SEEN}, 'is ' || r.airtable_record_id, 'is gone (' || r.airtable_record_id || ')')
        || ', and there is ' || group_concat(s.record_id, ', '), 1, {MOST_CAUSE})
FROM check_seen AS s JOIN runs AS r ON r.run_id = s.run_id
WHERE s.record_id <> r.airtable_record_id AND NOT {OWNED} AND {QUIET}
GROUP BY r.run_id HAVING {SEEN} OR count(*) > 1
"""
FIND_DELETED = f"""
INSERT INTO check_findings (kind, record_id, run_id, client_id, message, cause)
SELECT 'record_deleted', r.airtable_record_id, r.run_id, r.client_id, :deleted, coalesce((
    SELECT substr('the record id no longer matches: ' || r.airtable_record_id || ' is gone, and the run is '
        || group_concat(s.record_id, ', ') || ' there', 1, {MOST_CAUSE})
    FROM check_seen AS s WHERE s.run_id = r.run_id AND NOT {OWNED}),
    'the record is missing in Airtable: ' || r.airtable_record_id || ' is gone')
FROM check_doubts AS asked JOIN runs AS r ON r.airtable_record_id = asked.record_id
WHERE asked.asked = 1 AND NOT {SEEN} AND {QUIET}
"""
# A run that is missing here is looked for, and adopted if there is one such record: its error is open already.
FIND_UNKNOWN = f"""
INSERT INTO check_findings (kind, record_id, run_id, client_id, message, cause)
SELECT 'unknown_record', s.record_id, s.run_id, s.client_id, :unknown,
    'record ' || s.record_id || coalesce(' has Run ID ' || s.run_id, ' has no Run ID')
FROM check_seen AS s
WHERE NOT {OWNED} AND NOT EXISTS (SELECT 1 FROM runs WHERE run_id = s.run_id)
    AND NOT EXISTS (SELECT 1 FROM errors WHERE kind = 'missing_record' AND state = 'open' AND run_id = s.run_id)
"""
# One open error for a trouble of a run, whoever met it first; a record that is no run's is known by its own id.
RECOGNISE = """
UPDATE check_findings SET error_id = CASE kind
    WHEN 'unknown_record' THEN (SELECT id FROM errors AS e
        WHERE e.kind = 'unknown_record' AND e.state = 'open' AND e.found_record_id = check_findings.record_id)
    ELSE (SELECT id FROM errors AS e
        WHERE e.run_id = check_findings.run_id AND e.kind = check_findings.kind AND e.state = 'open') END
WHERE error_id IS NULL
"""
COUNT_AGAIN = """
UPDATE errors SET count = count + 1, last_at = :at, cause = f.cause, note = nullif(note, :there_again)
FROM check_findings AS f WHERE errors.id = f.error_id
"""
OPEN_NEW = """
INSERT INTO errors (kind, run_id, client_id, message, cause, first_at, last_at, found_record_id)
SELECT kind, run_id, client_id, message, cause, :at, :at, record_id FROM check_findings WHERE error_id IS NULL
"""
# Only what this check is sure of: it saw the record, or asked for it by name, and the run was not on its way. What a
# deletion or a duplicate set aside has to be replayed first, and so has a repair.
RESOLVE_GONE = f"""
UPDATE errors SET state = 'resolved', resolved_at = :at, resolution = '{Resolution.GONE}'
WHERE state = 'open' AND kind IN ('unknown_record', 'drift', 'record_deleted', 'duplicate_record')
    AND id NOT IN (SELECT error_id FROM check_findings)
    AND CASE kind
        WHEN 'unknown_record' THEN
            EXISTS (SELECT 1 FROM runs WHERE airtable_record_id = errors.found_record_id)
            OR EXISTS (SELECT 1 FROM check_seen AS s JOIN runs AS r ON r.run_id = s.run_id
                WHERE s.record_id = errors.found_record_id)
            OR (EXISTS (SELECT 1 FROM check_doubts AS d WHERE d.record_id = errors.found_record_id AND d.asked = 1)
                AND NOT EXISTS (SELECT 1 FROM check_seen AS s WHERE s.record_id = errors.found_record_id))
        WHEN 'drift' THEN
            :whole AND EXISTS (
                SELECT 1 FROM runs AS r WHERE r.run_id = errors.run_id AND ({SEEN} OR {ASKED}) AND {QUIET}
                AND NOT EXISTS (SELECT 1 FROM outbox AS m WHERE m.run_id = r.run_id AND m.delivered_at IS NULL
                    AND m.state = 'dead' AND m.source = 'repair'))
        ELSE EXISTS (SELECT 1 FROM runs AS r WHERE r.run_id = errors.run_id AND {ASKED} AND {QUIET}) AND NOT {UNSETTLED}
    END
"""
# A deleted record that is there again, while what died meanwhile waits for a person.
NOTE_THERE_AGAIN = f"""
UPDATE errors SET note = :there_again
WHERE state = 'open' AND kind = 'record_deleted' AND id NOT IN (SELECT error_id FROM check_findings) AND {HAS_DEAD}
    AND EXISTS (SELECT 1 FROM runs AS r WHERE r.run_id = errors.run_id AND {ASKED} AND {SEEN} AND {QUIET})
"""
COUNT_KINDS = "SELECT kind, count(*) AS n FROM check_findings GROUP BY kind ORDER BY kind"
SELECT_DETAILS = f"""
SELECT e.id AS error_id, f.kind, f.run_id, f.record_id, f.cause, e.first_at, e.count = 1 AS is_new
FROM check_findings AS f JOIN errors AS e ON e.id = f.error_id
ORDER BY e.id LIMIT {MOST_DETAILS}
"""


def finish(connection: sqlite3.Connection, scope: CheckScope, *, repair: bool, at: datetime) -> CheckOutcome:
    """Open an error for each finding that has none, resolve those that are no longer seen, and repair if asked."""
    known = {**_times(scope), **MESSAGES}
    for find in (FIND_DRIFTED, FIND_TWICE, FIND_DELETED, FIND_UNKNOWN):
        connection.execute(find, known)
    now = {"at": iso(at)}
    connection.execute(RECOGNISE)
    connection.execute(COUNT_AGAIN, {**now, "there_again": THERE_AGAIN})
    opened = connection.execute(OPEN_NEW, now).rowcount
    connection.execute(RECOGNISE)
    resolved = connection.execute(RESOLVE_GONE, {**now, **_times(scope), "whole": scope.whole}).rowcount
    connection.execute(NOTE_THERE_AGAIN, {**_times(scope), "there_again": THERE_AGAIN})
    return CheckOutcome(
        found={row["kind"]: row["n"] for row in connection.execute(COUNT_KINDS)},
        findings=[_finding(row) for row in connection.execute(SELECT_DETAILS)],
        opened=opened,
        resolved=resolved,
        repaired=_repair(connection, at) if repair else 0,
    )


def _finding(row: sqlite3.Row) -> CheckFinding:
    values = {one.name: row[one.name] for one in fields(CheckFinding)}
    return CheckFinding(**{**values, "is_new": bool(row["is_new"])})


# Repair ---------------------------------------------------------------------------------------------------------

# An ordinary update that changes nothing here and names the drifted fields: their present values are delivered.
QUEUE_REPAIRS = """
INSERT INTO outbox (run_id, kind, source, fields, change, accepted_at)
SELECT run_id, 'update', 'repair', drifted, '{}', :at FROM check_findings WHERE kind = 'drift' ORDER BY record_id
"""
WAKE_REPAIRED = """
UPDATE runs SET sync = CASE sync WHEN 'failed' THEN 'failed' ELSE 'pending' END, due_at = :at
WHERE run_id IN (SELECT run_id FROM check_findings WHERE kind = 'drift')
"""


def _repair(connection: sqlite3.Connection, at: datetime) -> int:
    repaired = connection.execute(QUEUE_REPAIRS, {"at": iso(at)}).rowcount
    connection.execute(WAKE_REPAIRED, {"at": iso(at)})
    return repaired


# Report ---------------------------------------------------------------------------------------------------------

SUMMARY: Final = tuple(one.name for one in fields(CheckSummary))
INSERT_CHECK = f"INSERT INTO checks ({', '.join(SUMMARY)}) VALUES ({', '.join(f':{name}' for name in SUMMARY)})"
SELECT_LAST = f"SELECT {', '.join(SUMMARY)} FROM checks ORDER BY id DESC LIMIT 1"
# A store that was never checked is due one interval after it was first used. The last check is the last that was kept,
# whatever the clock said at an earlier one.
SELECT_LAST_AT = """
SELECT coalesce((SELECT finished_at FROM checks ORDER BY id DESC LIMIT 1), (SELECT bound_at FROM destination))
"""
COUNT_SEEN = """
SELECT (SELECT count(*) FROM check_seen) AS seen, count(*) AS expected FROM runs
WHERE created_at >= ? AND airtable_record_id IS NOT NULL
"""


def _as_row(summary: CheckSummary) -> dict[str, str | int | None]:
    row = asdict(summary)
    return {
        **row,
        "found": json.dumps(dict(summary.found)),
        "columns_left_out": json.dumps(list(summary.columns_left_out)),
    }


def keep_summary(connection: sqlite3.Connection, summary: CheckSummary) -> None:
    connection.execute(INSERT_CHECK, _as_row(summary))


def last_summary(connection: sqlite3.Connection) -> CheckSummary | None:
    row = connection.execute(SELECT_LAST).fetchone()
    if row is None:
        return None
    parsed = {name: json.loads(row[name]) for name in ("found", "columns_left_out")}
    return CheckSummary(**{**dict(row), **parsed})


def last_check_at(connection: sqlite3.Connection) -> str | None:
    at: str | None = connection.execute(SELECT_LAST_AT).fetchone()[0]
    return at


def progress(connection: sqlite3.Connection, since: datetime) -> HowFar:
    row = connection.execute(COUNT_SEEN, (iso(since),)).fetchone()
    return HowFar(row["seen"], row["expected"])
