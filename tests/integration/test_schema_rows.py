"""The schema alone keeps every row that must stay, and lets none in that makes no sense: with `sqlite3` only."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.support.shell import AT, LATER, Shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = "251007-Guy"
OTHER = "251007-Ann"
RUN_VALUES = "INSERT INTO runs (run_id, job_id, client_id, origin, created_at, changed_at, fields)"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Two synced runs, a missing one with a held update, two batches and a held webhook."""
    opened = Shell(tmp_path / "by-hand.db")
    for run_id in (RUN, OTHER):
        opened.kick_off(run_id)
        opened.deliver_create(run_id)
    missing = opened.add_error("missing_record", "251007-Nobody")
    opened.add_error("unmatched_webhook", None, cause="Apify run a1")
    opened.add_held("251007-Nobody", missing)
    opened.add_held("251007-Nobody", missing)
    opened.add_batch(RUN, 1, token="t1", apify_run_id="a1")
    opened.add_batch(RUN, 2, token="t2", apify_run_id="a2")
    opened.add_event(dispatch_id="d1")
    opened.add_event(dispatch_id="d2")
    yield opened
    opened.connection.close()


def refuses(shell: Shell, why: str, sql: str) -> None:
    """The statement fails for that reason, and leaves every row as it was."""
    before = shell.dump()
    with pytest.raises(sqlite3.DatabaseError, match=why):
        shell.do(sql)
    assert shell.dump() == before


# Rows stay ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("runs", "runs are kept"),
        ("outbox", "creates are kept"),
        ("errors", "errors are kept"),
        ("held_updates", "a held update is kept"),
        ("batches", "batches are kept"),
        ("webhook_events", "a held webhook is kept"),
    ],
)
def test_rows_that_must_stay_are_not_deleted(shell: Shell, table: str, why: str) -> None:
    refuses(shell, why, f"DELETE FROM {table}")
    refuses(shell, why, f"DELETE FROM {table} WHERE rowid = 1")


@pytest.mark.parametrize("table", ["runs", "outbox", "errors", "held_updates", "batches", "webhook_events"])
@pytest.mark.parametrize("column", ["id", "rowid"])
def test_no_row_is_moved_onto_another(shell: Shell, table: str, column: str) -> None:
    refuses(shell, "keeps?", f"UPDATE OR REPLACE {table} SET {column} = 2 WHERE id = 1")
    refuses(shell, "keeps?", f"UPDATE {table} SET {column} = 77 WHERE id = 1")


@pytest.mark.parametrize(
    ("columns", "values", "why"),
    [
        ("runs (id, run_id, job_id, client_id, origin, created_at, changed_at, fields)",
         f"1, 'new', 'j', 'c', 'kickoff', '{AT}', '{AT}', '{{}}'", "this run exists already"),
        ("runs (run_id, job_id, client_id, origin, created_at, changed_at, fields)",
         f"'{RUN}', 'j', 'c', 'kickoff', '{AT}', '{AT}', '{{}}'", "this run exists already"),
        ("runs (run_id, job_id, client_id, origin, airtable_record_id, created_at, changed_at, fields)",
         f"'new', 'j', 'c', 'adopted', 'rec{RUN}', '{AT}', '{AT}', '{{}}'", "this run exists already"),
        ("errors (id, kind, message, first_at, last_at)", f"1, 'drift', 'm', '{AT}', '{AT}'", "open already"),
        ("errors (kind, run_id, message, first_at, last_at)",
         f"'missing_record', '251007-Nobody', 'm', '{AT}', '{AT}'", "open already"),
        ("errors (kind, cause, message, first_at, last_at)",
         f"'unmatched_webhook', 'Apify run a1', 'm', '{AT}', '{AT}'", "open already"),
        ("held_updates (id, run_id, error_id, change, accepted_at)", f"1, 'x', 1, '{{}}', '{AT}'", "row of its own"),
        ("batches (id, run_id, number, created_at)", f"1, '{RUN}', 9, '{AT}'", "this batch exists already"),
        ("batches (run_id, number, created_at)", f"'{RUN}', 1, '{AT}'", "this batch exists already"),
        ("batches (run_id, number, token, created_at)", f"'{RUN}', 9, 't1', '{AT}'", "this batch exists already"),
        ("batches (run_id, number, apify_run_id, created_at)", f"'{RUN}', 9, 'a1', '{AT}'", "this batch exists"),
        ("webhook_events (id, event, outcome, received_at)", f"1, 'TEST', 'ignored', '{AT}'", "came already"),
        ("webhook_events (dispatch_id, event, outcome, received_at)", f"'d1', 'TEST', 'ignored', '{AT}'", "came"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("force", ["", "OR REPLACE", "OR IGNORE"])
def test_no_row_is_put_in_the_place_of_another(shell: Shell, columns: str, values: str, why: str, force: str) -> None:
    refuses(shell, why, f"INSERT {force} INTO {columns} VALUES ({values})")


@pytest.mark.parametrize(
    "sql",
    [
        f"UPDATE OR REPLACE runs SET airtable_record_id = 'rec{RUN}' WHERE run_id = '{OTHER}'",
        "UPDATE OR REPLACE batches SET apify_run_id = 'a1' WHERE number = 2",
        "UPDATE OR REPLACE batches SET token = 't1' WHERE number = 2",
        "UPDATE OR REPLACE batches SET number = 1 WHERE number = 2",
        "UPDATE OR REPLACE webhook_events SET dispatch_id = 'd1' WHERE dispatch_id = 'd2'",
        f"UPDATE OR REPLACE runs SET run_id = '{RUN}' WHERE run_id = '{OTHER}'",
    ],
)
def test_an_update_does_not_replace_the_row_in_its_way(shell: Shell, sql: str) -> None:
    refuses(shell, "keeps its|is another batch", sql)


def test_an_error_that_is_open_is_not_opened_twice_by_reopening(shell: Shell) -> None:
    shell.do(f"UPDATE errors SET state = 'resolved', resolved_at = '{LATER}', resolution = 'by_hand' WHERE id = 1")
    shell.add_error("missing_record", "251007-Nobody")
    reopen = "UPDATE OR REPLACE errors SET state = 'open', resolved_at = NULL, resolution = NULL WHERE id = 1"
    refuses(shell, "stays resolved", reopen)


@pytest.mark.parametrize("column", ["run_id", "job_id", "client_id"])
def test_a_run_is_not_renamed(shell: Shell, column: str) -> None:
    refuses(shell, "a run keeps its name", f"UPDATE runs SET {column} = 'another' WHERE id = 1")


def test_what_is_settled_may_be_removed(shell: Shell) -> None:
    shell.do(f"UPDATE held_updates SET state = 'discarded', settled_at = '{LATER}' WHERE id = 1")
    assert shell.do("DELETE FROM held_updates WHERE state = 'discarded'") == 1
    shell.do("UPDATE webhook_events SET outcome = 'queued' WHERE id = 1")
    assert shell.do("DELETE FROM webhook_events WHERE outcome = 'queued'") == 1


# Held updates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["held", "applied"])
def test_a_discarded_update_is_not_held_again(shell: Shell, state: str) -> None:
    shell.do(f"UPDATE held_updates SET state = 'discarded', settled_at = '{LATER}'")
    settled, message = ("NULL", "NULL") if state == "held" else (f"'{LATER}'", "1")
    again = f"UPDATE held_updates SET state = '{state}', settled_at = {settled}, message_id = {message}"
    refuses(shell, "applied or discarded once", again)


@pytest.mark.parametrize(
    "flaw", ["state = 'discarded'", "state = 'applied'", "settled_at = created_at", "message_id = 1"]
)
def test_a_held_update_is_bound_to_its_columns(shell: Shell, flaw: str) -> None:
    refuses(shell, "CHECK", f"UPDATE held_updates SET {flaw.replace('created_at', 'accepted_at')}")


@pytest.mark.parametrize("flaw", ["run_id = 'x'", "change = '{\"set\":{}}'", f"accepted_at = '{LATER}'"])
def test_a_held_update_keeps_what_was_accepted(shell: Shell, flaw: str) -> None:
    refuses(shell, "keeps what was accepted", f"UPDATE held_updates SET {flaw}")


# CHECKs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flaw",
    [
        "UPDATE runs SET origin = 'webhook'",
        "UPDATE runs SET sync = 'maybe'",
        "UPDATE runs SET share = 3",
        "UPDATE runs SET failures = -1",
        "UPDATE runs SET status_by = 'nobody'",
        "UPDATE runs SET call_id = 1, due_at = NULL",
        f"{RUN_VALUES} VALUES ('n', 'n', 'n', 'adopted', '{AT}', '{AT}', '{{}}')",
        "UPDATE errors SET state = 'resolved'",
        f"UPDATE errors SET state = 'resolved', resolved_at = '{LATER}'",
        "UPDATE errors SET resolution = 'by_hand', resolved_at = first_at",
        "UPDATE errors SET count = 0",
        f"INSERT INTO errors (kind, message, first_at, last_at) VALUES ('bad luck', 'm', '{AT}', '{AT}')",
        "UPDATE batches SET state = 'measured' WHERE id = 1",
        "UPDATE batches SET state = 'succeeded' WHERE id = 1",
        "UPDATE batches SET outcome = 'succeeded' WHERE id = 1",
        "UPDATE batches SET state = 'running', apify_run_id = NULL WHERE id = 1",
        "UPDATE batches SET state = 'starting' WHERE id = 1",
        "UPDATE batches SET items = -1 WHERE id = 1",
        "UPDATE webhook_events SET deliveries = 0",
        f"INSERT INTO airtable_calls (method, records, messages, started_at, outcome) VALUES ('m', 1, 1, '{AT}', 'ok')",
        f"INSERT INTO airtable_calls (method, records, messages, started_at) VALUES ('m', -1, 1, '{AT}')",
        "INSERT INTO repeated_kickoffs (day, count) VALUES ('today', 1)",
    ],
)
def test_a_row_that_makes_no_sense_is_refused(shell: Shell, flaw: str) -> None:
    refuses(shell, r"CHECK|keeps its name and origin", flaw)


TIMES = [
    ("runs", "due_at"),
    ("runs", "created_at"),
    ("runs", "changed_at"),
    ("outbox", "accepted_at"),
    ("outbox", "delivered_at"),
    ("errors", "first_at"),
    ("errors", "last_at"),
    ("held_updates", "accepted_at"),
    ("batches", "due_at"),
    ("batches", "started_at"),
    ("batches", "finished_at"),
    ("batches", "created_at"),
    ("webhook_events", "received_at"),
]


@pytest.mark.parametrize(("table", "column"), TIMES)
@pytest.mark.parametrize(
    "time", ["2026-05-16 09:20:00", "2026-05-16T09:20:00Z", "2026-05-16T09:20:00.000+00:00", "now", ""]
)
def test_a_time_is_utc_iso_8601_with_milliseconds(shell: Shell, table: str, column: str, time: str) -> None:
    refuses(shell, "CHECK|keeps what was accepted", f"UPDATE {table} SET {column} = '{time}'")


def test_sqlites_own_idea_of_now_is_refused(shell: Shell) -> None:
    refuses(shell, "CHECK", "UPDATE runs SET due_at = datetime('now')")
    refuses(shell, "CHECK", "UPDATE runs SET due_at = CURRENT_TIMESTAMP")


@pytest.mark.parametrize(
    ("table", "column"),
    [("runs", "fields"), ("errors", "similar_runs"), ("batches", "input"), ("webhook_events", "report")],
)
def test_what_is_not_json_is_refused(shell: Shell, table: str, column: str) -> None:
    refuses(shell, r"CHECK|malformed JSON", f"UPDATE {table} SET {column} = '{{not json'")


def test_json_of_another_shape_is_refused(shell: Shell) -> None:
    refuses(shell, "CHECK", "UPDATE runs SET fields = '[]'")
    refuses(shell, "CHECK", "UPDATE errors SET similar_runs = '{}'")


@pytest.mark.parametrize(
    ("table", "column"),
    [("runs", "failures"), ("outbox", "attempts"), ("errors", "count"), ("batches", "items"), ("batches", "cost_usd")],
)
def test_a_column_holds_its_own_type_only(shell: Shell, table: str, column: str) -> None:
    refuses(shell, "cannot store TEXT value", f"UPDATE {table} SET {column} = 'many'")


def test_every_table_is_strict_and_explained(shell: Shell) -> None:
    tables = shell.connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    )
    for name, sql in tables.fetchall():
        assert "STRICT" in sql.rpartition(")")[2], name


def test_a_hand_does_not_take_the_base_or_a_version_away(shell: Shell) -> None:
    shell.do("INSERT INTO destination VALUES (1, 'appOne', ?)", AT)
    shell.do("INSERT INTO schema_migrations VALUES (1, '0001_outbox', 'sum', ?)", AT)
    for statement in (
        "DELETE FROM destination",
        "UPDATE destination SET base_id = 'appOther'",
        "DELETE FROM schema_migrations",
        "UPDATE schema_migrations SET checksum = 'another'",
        "INSERT OR REPLACE INTO schema_migrations VALUES (1, '0001_outbox', 'another', '')",
    ):
        refuses(shell, "stays|keeps|already", statement)
    shell.do("INSERT OR REPLACE INTO destination VALUES (1, 'appOther', ?)", AT)
    assert shell.one("SELECT base_id FROM destination") == "appOne"


def test_an_update_is_not_put_before_its_create(shell: Shell) -> None:
    shell.kick_off("251008-Ann")
    create = shell.kick_off("251008-Guy")
    refuses(
        shell,
        "an update comes after the create",
        "INSERT INTO outbox (id, run_id, kind, source, fields, change, accepted_at) "
        f"VALUES ({create - 5}, '251008-Guy', 'update', 'caller', '[]', '{{}}', '{AT}')",
    )
    assert shell.add_message("251008-Guy", "update") > create
