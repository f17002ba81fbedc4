"""Units that take things in: a create, an update (or its hold), a webhook. Each runs inside one transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.errors import Conflict, IdempotencyKeyReused, Problem
from app.fields import CLIENT_ID, RUN_ID, Change, check_sums, dump, fold, load_fold
from app.model import (
    JOB_ID_FORMAT,
    Created,
    Duplicate,
    ErrorKind,
    Held,
    Idempotency,
    Kickoff,
    MessageKind,
    OpenError,
    Queued,
    Resolution,
    RunStatus,
    Source,
    SyncState,
    Update,
    run_id_of,
)
from app.policy.similar import Candidates, client_of, job_of, possible_clients, similar_runs

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from app.fields import Fold
    from app.model import BatchOrder, UpdateOutcome

#: No run has this name, so that the key of an update can never be taken for that of a kickoff.
KICKOFF_SCOPE = "POST /runs"


@dataclass(frozen=True, slots=True)
class When:
    """The time of acceptance, and when what is accepted is due to be sent (later by the linger)."""

    at: str
    due_at: str

    @staticmethod
    def of(at: datetime, linger_seconds: float) -> When:
        text = iso(at)
        return When(text, iso(at + timedelta(seconds=linger_seconds)) if linger_seconds else text)


# Create ---------------------------------------------------------------------------------------------------------

SELECT_RUN_NAMES = "SELECT job_id, client_id, origin FROM runs WHERE run_id = ?"
HAS_ORDERED = "SELECT 1 FROM batches WHERE run_id = ? AND token IS NOT NULL"
INSERT_RUN = """
INSERT INTO runs (run_id, job_id, client_id, origin, due_at, created_at, changed_at, fields, status, status_by)
VALUES (:run_id, :job_id, :client_id, 'kickoff', :due_at, :at, :at, :fields, json_extract(:fields, '$.status'),
    :status_by)
"""
INSERT_BATCH = """
INSERT INTO batches (run_id, number, token, actor_id, input, profiles, due_at, created_at)
VALUES (:run_id, (SELECT coalesce(max(number), 0) + 1 FROM batches WHERE run_id = :run_id), :token, :actor_id, :input,
    :profiles, :at, :at)
"""
COUNT_REPEAT = """
INSERT INTO repeated_kickoffs (day, count) VALUES (substr(?, 1, 10), 1)
ON CONFLICT (day) DO UPDATE SET count = count + 1
"""


def accept_create(connection: sqlite3.Connection, kickoff: Kickoff, *, now: datetime, when: When) -> Created:
    """The one place where a run comes to exist.

    Raises:
        Conflict: another job and client make the same run id.
        IdempotencyKeyReused: the key came with another kickoff before.
    """
    repeated = _same_request(connection, KICKOFF_SCOPE, kickoff.idempotency)
    if repeated is not None:
        return _already_exists(connection, repeated, when)
    job_id = kickoff.job_id or _next_free_job(connection, kickoff.client_id, now)
    run_id = run_id_of(job_id, kickoff.client_id)
    existing = connection.execute(SELECT_RUN_NAMES, (run_id,)).fetchone()
    if existing is not None:
        is_adopted = existing["origin"] == "adopted"
        if not is_adopted and (existing["job_id"], existing["client_id"]) != (job_id, kickoff.client_id):
            raise Conflict(
                f"the run id {run_id!r} belongs to job {existing['job_id']!r} of client {existing['client_id']!r}: "
                "choose another job_id"
            )
        _remember(connection, KICKOFF_SCOPE, kickoff.idempotency, run_id, when)
        if is_adopted and connection.execute(HAS_ORDERED, (run_id,)).fetchone() is None:
            _insert_batches(connection, run_id, kickoff.batches, when)  # its kickoff came after all: the work is wanted
        return _already_exists(connection, run_id, when)
    _insert_run(connection, kickoff, run_id, job_id, when)
    _insert_batches(connection, run_id, kickoff.batches, when)
    _remember(connection, KICKOFF_SCOPE, kickoff.idempotency, run_id, when)
    held = apply_held(connection, run_id, when, Resolution.CREATED_LATE, "the kickoff came after all")
    return Created(run_id, created=True, held_applied=held)


def _already_exists(connection: sqlite3.Connection, run_id: str, when: When) -> Created:
    connection.execute(COUNT_REPEAT, (when.at,))
    return Created(run_id, created=False)


def _next_free_job(connection: sqlite3.Connection, client_id: str, now: datetime) -> str:
    while True:
        job_id = now.strftime(JOB_ID_FORMAT)
        if connection.execute(SELECT_RUN_NAMES, (run_id_of(job_id, client_id),)).fetchone() is None:
            return job_id
        now += timedelta(seconds=1)


def _insert_run(connection: sqlite3.Connection, kickoff: Kickoff, run_id: str, job_id: str, when: When) -> None:
    identity = Change(set={RUN_ID: run_id, CLIENT_ID: kickoff.client_id})
    values = fold(fold({}, identity), kickoff.change)
    connection.execute(
        INSERT_RUN,
        {
            "run_id": run_id,
            "job_id": job_id,
            "client_id": kickoff.client_id,
            "due_at": when.due_at,
            "at": when.at,
            "fields": dump(values),
            "status_by": "batches" if kickoff.change.set.get("status") in {None, RunStatus.RUNNING} else "caller",
        },
    )
    asked = Change({**identity.set, **kickoff.change.set}, append=kickoff.change.append)
    insert_message(connection, run_id, MessageKind.CREATE, Source.KICKOFF, asked, when.at)


def _insert_batches(connection: sqlite3.Connection, run_id: str, batches: tuple[BatchOrder, ...], when: When) -> None:
    for order in batches:
        queued = {
            "run_id": run_id,
            "token": order.token,
            "actor_id": order.actor_id,
            "input": order.input,
            "profiles": order.profiles,
            "at": when.at,
        }
        connection.execute(INSERT_BATCH, queued)


# Update ---------------------------------------------------------------------------------------------------------

#: Updates that share their statements at most: their runs' fields stand in memory together.
PORTION: Final = 32
#: Characters that one statement takes in many rows, and one row more.
MOST_OF_A_BITE: Final = 1_000_000

SELECT_FOLDS = """
SELECT run_id, fields, status, sync, due_at FROM runs WHERE run_id IN (SELECT value FROM json_each(?))
"""
INSERT_MESSAGE = """
INSERT INTO outbox (run_id, kind, source, fields, change, accepted_at) VALUES (?, ?, ?, ?, ?, ?)
"""
# What AUTOINCREMENT goes by: an id is never given twice, even where its message was pruned.
LAST_MESSAGE = """
SELECT max(coalesce((SELECT max(id) FROM outbox), 0),
    coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'outbox'), 0))
"""
INSERT_UPDATES = "INSERT INTO outbox (id, run_id, kind, source, fields, change, accepted_at) VALUES {rows}"
ROW_OF_UPDATE = "(?, ?, 'update', 'caller', ?, ?, ?)"
# A run whose create was set aside waits for its replay: nothing of it is due until then.
UPDATE_FOLD = """
UPDATE runs SET
    fields = :fields,
    status = json_extract(:fields, '$.status'),
    changed_at = :at,
    status_by = coalesce(:status_by, status_by),
    sync = CASE sync WHEN 'failed' THEN 'failed' ELSE 'pending' END,
    due_at = CASE
        WHEN sync = 'failed' AND EXISTS (
            SELECT 1 FROM outbox AS c WHERE c.run_id = runs.run_id AND c.kind = 'create' AND c.state = 'dead') THEN NULL
        ELSE coalesce(due_at, :due_at) END
WHERE run_id = :run_id
"""
# Most updates come while their run waits already: then no column changes that an index holds.
UPDATE_WAITING = """
WITH waiting (run_id, fields, at, status_by) AS (VALUES {rows})
UPDATE runs SET
    fields = waiting.fields, changed_at = waiting.at, status_by = coalesce(waiting.status_by, runs.status_by)
FROM waiting WHERE runs.run_id = waiting.run_id
"""
ROW_OF_FOLD = "(?, ?, ?, ?)"


def accept_updates(
    connection: sqlite3.Connection, updates: Sequence[tuple[Update, When]]
) -> Sequence[UpdateOutcome | Problem]:
    """Queue each update of a run that exists, hold that of one that does not: what became of each, in their order.

    Nothing is kept of one that is refused: with `IdempotencyKeyReused` where its key came with another update of this
    run before, with `Invalid` where a sum would be out of range.

    Many take few statements: SQLite works through one while the interpreter is another thread's, and for a statement
    an update the two threads would hand it to and fro.
    """
    outcomes: list[UpdateOutcome | Problem] = []
    for start in range(0, len(updates), PORTION):
        outcomes += _Portion(connection, updates[start : start + PORTION]).accept()
    return outcomes


class _Portion:
    """Updates that are read for, and written, together."""

    def __init__(self, connection: sqlite3.Connection, updates: Sequence[tuple[Update, When]]) -> None:
        self._connection = connection
        self._updates = updates
        self._known = _known_keys(connection, (update for update, _ in updates))
        self._runs = _load_folds(connection, (update.run_id for update, _ in updates))
        self._last_id: int = connection.execute(LAST_MESSAGE).fetchone()[0]
        self._keys: list[tuple[str, str, str, str]] = []
        self._messages: list[tuple[int, str, str, str, str]] = []

    def accept(self) -> Sequence[UpdateOutcome | Problem]:
        outcomes = [self._take(update, when) for update, when in self._updates]
        if self._keys:
            self._connection.execute(INSERT_KEYS, (dump(self._keys),))
        _keep_folds(self._connection, self._runs.values())
        _execute_rows(self._connection, INSERT_UPDATES, ROW_OF_UPDATE, self._messages)
        return outcomes

    def _take(self, update: Update, when: When) -> UpdateOutcome | Problem:
        try:
            if self._came_before(update):
                return Duplicate(update.run_id)
            return self._take_new(update, when)
        except Problem as problem:
            return problem

    def _take_new(self, update: Update, when: When) -> UpdateOutcome:
        """Raises `Invalid` before anything of it is taken."""
        run = self._runs.get(update.run_id)
        if run is None:
            self._remember(update, when)
            return Held(update.run_id, _hold(self._connection, update, when))
        values = fold(run.values, update.change)
        check_sums(values, update.change)
        run.take(values, when, by_caller="status" in update.change.set)
        self._remember(update, when)
        message_id = self._last_id + len(self._messages) + 1
        named = dump(update.change.names())
        self._messages.append((message_id, update.run_id, named, update.change.to_json(), when.at))
        return Queued(update.run_id, message_id)

    def _came_before(self, update: Update) -> bool:
        if update.idempotency is None:
            return False
        known = self._known.get((update.run_id, update.idempotency.key))
        if known is not None:
            _refuse_another(known, update.idempotency)
        return known is not None

    def _remember(self, update: Update, when: When) -> None:
        if update.idempotency is not None:
            key, digest = update.idempotency.key, update.idempotency.digest
            self._known[update.run_id, key] = digest
            self._keys.append((update.run_id, key, digest, when.at))


@dataclass(slots=True)
class _Folding:
    """A run that changes are folded into, one after another, before it is written once."""

    run_id: str
    values: Fold
    status: str | None
    sync: str
    due_at: str | None
    #: When the first change is to be sent, and when the last came; empty until there was one.
    wake_at: str = ""
    changed_at: str = ""
    by_caller: bool = False

    def take(self, values: Fold, when: When, *, by_caller: bool) -> None:
        """`values` are those after the change; whether a caller set the status with it."""
        self.values = values
        self.wake_at = self.wake_at or when.due_at
        self.changed_at = when.at
        self.by_caller = self.by_caller or by_caller

    @property
    def is_waiting(self) -> bool:
        """Whether it waits to be sent already, and goes on as it is."""
        return self.status == self.values.get("status") and self.sync == SyncState.PENDING and self.due_at is not None


def _load_folds(connection: sqlite3.Connection, run_ids: Iterable[str]) -> dict[str, _Folding]:
    """Those of the runs that exist."""
    runs = connection.execute(SELECT_FOLDS, (dump(list(set(run_ids))),))
    return {
        run["run_id"]: _Folding(run["run_id"], load_fold(run["fields"]), run["status"], run["sync"], run["due_at"])
        for run in runs
    }


def _keep_folds(connection: sqlite3.Connection, runs: Iterable[_Folding]) -> None:
    """Write the runs that changed: they have something to send from now on."""
    changed = [run for run in runs if run.changed_at]
    waiting = (
        (run.run_id, dump(run.values), run.changed_at, "caller" if run.by_caller else None)
        for run in changed
        if run.is_waiting
    )
    _execute_rows(connection, UPDATE_WAITING, ROW_OF_FOLD, waiting)
    for run in changed:
        if not run.is_waiting:
            due = {
                "run_id": run.run_id,
                "fields": dump(run.values),
                "at": run.changed_at,
                "status_by": "caller" if run.by_caller else None,
                "due_at": run.wake_at,
            }
            connection.execute(UPDATE_FOLD, due)


def _execute_rows(
    connection: sqlite3.Connection, sql: str, row: str, rows: Iterable[tuple[str | int | None, ...]]
) -> None:
    """Run `sql` for all rows: once, or for a bite of them after another where they are long."""
    bite: list[str | int | None] = []
    count = length = 0
    for values in rows:
        bite += values
        count += 1
        length += sum(len(value) for value in values if isinstance(value, str))
        if length > MOST_OF_A_BITE:
            connection.execute(sql.format(rows=", ".join([row] * count)), bite)
            bite, count, length = [], 0, 0
    if count:
        connection.execute(sql.format(rows=", ".join([row] * count)), bite)


def change_run(connection: sqlite3.Connection, run_id: str, change: Change, source: Source, when: When) -> int | None:
    """Fold `change` into the run and queue its message, whose id comes back; `None` where there is no such run.

    Raises:
        Invalid: a sum would be out of range.
    """
    run = _load_folds(connection, [run_id]).get(run_id)
    if run is None:
        return None
    values = fold(run.values, change)
    check_sums(values, change)
    run.take(values, when, by_caller=source is Source.CALLER and "status" in change.set)
    _keep_folds(connection, [run])
    return insert_message(connection, run_id, MessageKind.UPDATE, source, change, when.at)


def insert_message(
    connection: sqlite3.Connection, run_id: str, kind: MessageKind, source: Source, change: Change, at: str
) -> int:
    named = dump(change.names())
    message = connection.execute(INSERT_MESSAGE, (run_id, kind, source, named, change.to_json(), at))
    return int(message.lastrowid or 0)


# Hold -----------------------------------------------------------------------------------------------------------

INSERT_HELD = "INSERT INTO held_updates (run_id, error_id, change, accepted_at) VALUES (?, ?, ?, ?)"
SELECT_HELD = "SELECT id, change FROM held_updates WHERE run_id = ? AND state = 'held' ORDER BY id"
MARK_APPLIED = "UPDATE held_updates SET state = 'applied', settled_at = ?, message_id = ? WHERE id = ?"
SELECT_MISSING = "SELECT * FROM errors WHERE kind = 'missing_record' AND state = 'open' AND run_id = ?"
COUNT_ERROR = "UPDATE errors SET count = count + 1, last_at = ? WHERE id = ?"
# Airtable is asked a second later, so that what is missing together is asked for in one call.
INSERT_MISSING = """
INSERT INTO errors (kind, run_id, client_id, message, similar_runs, first_at, last_at, look_due_at)
VALUES ('missing_record', :run_id, :client_id, :message, :similar_runs, :at, :at,
    strftime('%Y-%m-%dT%H:%M:%fZ', :at, '+1 second'))
"""
RESOLVE_MISSING = """
UPDATE errors SET state = 'resolved', resolved_at = ?, resolution = ?, note = ?, look_due_at = NULL
WHERE kind = 'missing_record' AND state = 'open' AND run_id = ?
"""
SELECT_OF_JOB = "SELECT run_id FROM runs WHERE job_id = ? ORDER BY id DESC LIMIT 50"
SELECT_OF_CLIENT = "SELECT run_id FROM runs WHERE client_id = ? ORDER BY id DESC LIMIT 5"
SELECT_LATEST = "SELECT run_id FROM runs ORDER BY id DESC LIMIT 200"


def _hold(connection: sqlite3.Connection, update: Update, when: When) -> OpenError:
    error = open_missing_record(connection, update.run_id, when.at)
    connection.execute(INSERT_HELD, (update.run_id, error.id, update.change.to_json(), when.at))
    return error


def open_missing_record(connection: sqlite3.Connection, run_id: str, at: str) -> OpenError:
    """The open `missing_record` error of this run, made or counted up."""
    known = connection.execute(SELECT_MISSING, (run_id,)).fetchone()
    if known is not None:
        connection.execute(COUNT_ERROR, (at, known["id"]))
        similar = tuple(json.loads(known["similar_runs"]))
        return OpenError(known["id"], ErrorKind.MISSING_RECORD, known["message"], similar, known["count"] + 1)
    similar = similar_runs(run_id, _candidates(connection, run_id))
    message = f"The kickoff did not create a record for run {run_id}: its updates are held until it does" + (
        f". Was {similar[0]} meant?" if similar else "."
    )
    new = {
        "run_id": run_id,
        "client_id": client_of(run_id),
        "message": message,
        "similar_runs": json.dumps(similar, ensure_ascii=False),
        "at": at,
    }
    error = connection.execute(INSERT_MISSING, new)
    return OpenError(int(error.lastrowid or 0), ErrorKind.MISSING_RECORD, message, similar, 1)


def _candidates(connection: sqlite3.Connection, run_id: str) -> Candidates:
    of_client: list[str] = []
    for client_id in possible_clients(run_id):
        of_client += [row["run_id"] for row in connection.execute(SELECT_OF_CLIENT, (client_id,))]
    return Candidates(
        of_job=[row["run_id"] for row in connection.execute(SELECT_OF_JOB, (job_of(run_id),))],
        of_client=of_client,
        latest=[row["run_id"] for row in connection.execute(SELECT_LATEST)],
    )


def apply_held(connection: sqlite3.Connection, run_id: str, when: When, resolution: Resolution, note: str) -> int:
    """Let the updates that waited for this run become its messages, in their order; how many there were."""
    held = connection.execute(SELECT_HELD, (run_id,)).fetchall()
    if held:
        # One write of the run, however many waited: they stand in the way of every other writer.
        run = _load_folds(connection, [run_id])[run_id]
        for row in held:
            change = Change.from_json(row["change"])
            run.take(fold(run.values, change), when, by_caller="status" in change.set)
            message_id = insert_message(connection, run_id, MessageKind.UPDATE, Source.CALLER, change, when.at)
            connection.execute(MARK_APPLIED, (when.at, message_id, row["id"]))
        _keep_folds(connection, [run])
    connection.execute(RESOLVE_MISSING, (when.at, resolution, note, run_id))
    return len(held)


# Idempotency ----------------------------------------------------------------------------------------------------

SELECT_KEY = "SELECT digest, run_id FROM idempotency_keys WHERE scope = ? AND key = ?"
INSERT_KEY = "INSERT INTO idempotency_keys (scope, key, digest, run_id, accepted_at) VALUES (?, ?, ?, ?, ?)"
SELECT_KEYS = """
SELECT known.scope, known.key, known.digest FROM json_each(?) AS asked
CROSS JOIN idempotency_keys AS known
    ON known.scope = json_extract(asked.value, '$[0]') AND known.key = json_extract(asked.value, '$[1]')
"""
INSERT_KEYS = """
INSERT INTO idempotency_keys (scope, key, digest, run_id, accepted_at)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
    json_extract(value, '$[0]'), json_extract(value, '$[3]')
FROM json_each(?)
"""


def _same_request(connection: sqlite3.Connection, scope: str, idempotency: Idempotency | None) -> str | None:
    """The run that this very request was accepted for before."""
    if idempotency is None:
        return None
    known = connection.execute(SELECT_KEY, (scope, idempotency.key)).fetchone()
    if known is None:
        return None
    _refuse_another(known["digest"], idempotency)
    run_id: str = known["run_id"]
    return run_id


def _remember(
    connection: sqlite3.Connection, scope: str, idempotency: Idempotency | None, run_id: str, when: When
) -> None:
    if idempotency is not None:
        connection.execute(INSERT_KEY, (scope, idempotency.key, idempotency.digest, run_id, when.at))


def _known_keys(connection: sqlite3.Connection, updates: Iterable[Update]) -> dict[tuple[str, str], str]:
    """The digests of what came before with the key of one of `updates`, by run id and key."""
    asked = [(update.run_id, update.idempotency.key) for update in updates if update.idempotency is not None]
    if not asked:
        return {}
    return {(scope, key): digest for scope, key, digest in connection.execute(SELECT_KEYS, (dump(asked),))}


def _refuse_another(digest: str, idempotency: Idempotency) -> None:
    if digest != idempotency.digest:
        raise IdempotencyKeyReused(
            "this Idempotency-Key came with another request before: send each new request with a key of its own"
        )
