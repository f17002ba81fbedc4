"""Migrations: applied once with their record, whole or not at all, and refused without touching what is there."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from app.errors import StoreError
from app.store.sqlite.connection import connect_writing
from app.store.sqlite.migrate import Migration, migrate, migrations_directory, read_migrations
from app.store.sqlite.opening import open_reading, prepare
from tests.support.stores import open_desk

if TYPE_CHECKING:
    from pathlib import Path

AT = datetime(2026, 5, 16, 9, 20, tzinfo=UTC)
LATER = datetime(2026, 5, 17, 9, 20, tzinfo=UTC)

FIRST = Migration(1, "0001_first", "CREATE TABLE things (id INTEGER PRIMARY KEY) STRICT;\n")
SECOND = Migration(
    2, "0002_second", "CREATE TABLE others (id INTEGER PRIMARY KEY) STRICT;\nINSERT INTO others VALUES (1);\n"
)


def apply(path: Path, migrations: list[Migration], at: datetime = AT) -> list[str]:
    with contextlib.closing(connect_writing(path)) as connection:
        return migrate(connection, migrations, at)


def rows(path: Path, sql: str) -> list[tuple[str | int, ...]]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def tables(path: Path) -> set[str | int]:
    return {row[0] for row in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


# Applied --------------------------------------------------------------------------------------------------------


def test_a_migration_is_recorded_with_its_name_checksum_and_time(path: Path) -> None:
    assert apply(path, [FIRST]) == ["0001_first"]
    checksum = hashlib.sha256(FIRST.sql.encode()).hexdigest()
    assert rows(path, "SELECT * FROM schema_migrations") == [(1, "0001_first", checksum, "2026-05-16T09:20:00.000Z")]


def test_a_migration_is_applied_once(path: Path) -> None:
    apply(path, [FIRST])
    assert apply(path, [FIRST, SECOND], LATER) == ["0002_second"]
    assert apply(path, [FIRST, SECOND], LATER) == []
    assert rows(path, "SELECT version, applied_at FROM schema_migrations") == [
        (1, "2026-05-16T09:20:00.000Z"),
        (2, "2026-05-17T09:20:00.000Z"),
    ]
    assert rows(path, "SELECT count(*) FROM others") == [(1,)]


def test_the_real_migrations_make_a_store_that_is_marked_as_ours(path: Path) -> None:
    assert prepare(path, AT) == [one.name for one in read_migrations(migrations_directory())]
    assert prepare(path, LATER) == []
    assert rows(path, "PRAGMA application_id") == [(0x52756E52,)]
    assert {"runs", "outbox", "batches", "webhook_events", "held_updates", "errors", "airtable_calls"} <= tables(path)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "PRAGMA foreign_key_check") == []


# The refusals that come next compare bytes: nothing may be touched, not even the journal mode.


def test_a_changed_migration_is_refused(path: Path) -> None:
    apply(path, [FIRST])
    before = path.read_bytes()
    changed = Migration(1, FIRST.name, FIRST.sql + "-- a word more\n")
    with pytest.raises(StoreError, match="0001_first was changed after it was applied"):
        apply(path, [changed, SECOND])
    assert path.read_bytes() == before


def test_a_renamed_migration_is_refused(path: Path) -> None:
    apply(path, [FIRST])
    with pytest.raises(StoreError, match="0001_better was changed"):
        apply(path, [Migration(1, "0001_better", FIRST.sql)])


def test_a_database_of_a_newer_version_is_refused(path: Path) -> None:
    apply(path, [FIRST, SECOND])
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"0002_second, which this version does not know.*newer"):
        apply(path, [FIRST])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE wages (id INTEGER)",
        "CREATE VIEW answers AS SELECT 42",
        "CREATE TABLE schema_migrations (version TEXT)",
        "PRAGMA application_id = 7",
    ],
)
def test_a_file_of_another_program_is_refused_and_left_as_it_is(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="belongs to another program"):
        prepare(path, AT)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


async def test_a_file_of_another_program_is_not_read_either(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE wages (id INTEGER)")
    with pytest.raises(StoreError, match="belongs to another program"):
        async with open_reading(path):
            pass


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_text("Dear diary, " * 100)
    with pytest.raises(StoreError, match="cannot be used as a database"):
        prepare(path, AT)
    assert path.read_text().startswith("Dear diary")


async def test_an_older_store_is_not_read_before_it_is_migrated(path: Path) -> None:
    path.touch()
    with pytest.raises(StoreError, match="older version"):
        async with open_reading(path):
            pass


# Whole or not at all --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        "INSERT INTO nowhere VALUES (1);",
        "CREATE TABLE others (id INTEGER);",
        "SELECT now();",
        "GARBAGE;",
    ],
)
def test_a_migration_that_fails_half_way_leaves_nothing(path: Path, broken: str) -> None:
    apply(path, [FIRST])
    failing = Migration(2, SECOND.name, SECOND.sql + broken)
    with pytest.raises(StoreError, match="0002_second failed and nothing of it was kept"):
        apply(path, [FIRST, failing])
    assert "others" not in tables(path)
    assert rows(path, "SELECT version FROM schema_migrations") == [(1,)]
    assert apply(path, [FIRST, SECOND]) == ["0002_second"]


def test_a_first_migration_that_fails_leaves_an_empty_file(path: Path) -> None:
    with pytest.raises(StoreError, match="nothing of it was kept"):
        apply(path, [Migration(1, FIRST.name, FIRST.sql + "GARBAGE;")])
    assert tables(path) == set()
    assert rows(path, "PRAGMA application_id") == [(0,)]
    assert apply(path, [FIRST]) == ["0001_first"]


def test_a_migration_that_ends_inside_a_statement_is_refused_whole(path: Path) -> None:
    with pytest.raises(StoreError, match="ends inside a statement"):
        apply(path, [Migration(1, FIRST.name, FIRST.sql + "CREATE TABLE more (id INTEGER")])
    assert tables(path) == set()


# Statements -----------------------------------------------------------------------------------------------------


def test_statements_are_told_apart_whatever_semicolons_they_hold(path: Path) -> None:
    sql = """-- a comment; with a semicolon
CREATE TABLE things (id INTEGER PRIMARY KEY, word TEXT DEFAULT 'a;b') STRICT; CREATE TABLE others (id INTEGER) STRICT;
CREATE TRIGGER things_stay BEFORE DELETE ON things
BEGIN
    INSERT INTO others VALUES (old.id); -- inside; still
    SELECT RAISE (ABORT, 'no; never');
END;
INSERT INTO things (id) VALUES (1);
-- the end; really
"""
    apply(path, [Migration(1, "0001_first", sql)])
    assert rows(path, "SELECT word FROM things") == [("a;b",)]
    with (
        contextlib.closing(sqlite3.connect(path)) as connection,
        pytest.raises(sqlite3.IntegrityError, match="no; never"),
    ):
        connection.execute("DELETE FROM things")


# Files ----------------------------------------------------------------------------------------------------------


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text("SELECT 1;\n")
    return folder


def test_migrations_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    found = read_migrations(write(tmp_path, "0002_b.sql", "0001_a.sql"))
    assert [(one.version, one.name) for one in found] == [(1, "0001_a"), (2, "0002_b")]


@pytest.mark.parametrize(
    "names",
    [["0002_b.sql"], ["0001_a.sql", "0003_c.sql"], ["0001_a.sql", "0001_b.sql"], []],
    ids=["no first", "a gap", "doubled", "none"],
)
def test_a_missing_or_doubled_number_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(StoreError, match="not 1, 2, 3"):
        read_migrations(write(tmp_path, *names))


@pytest.mark.parametrize("name", ["1_a.sql", "0001-a.sql", "0001_A.sql", "later.sql"])
def test_a_misnamed_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"is not named NNNN_name\.sql"):
        read_migrations(write(tmp_path, name))


# Of a store that an earlier version wrote ------------------------------------------------------------------------

#: What a store counts as it goes, and what counting says. A message that was delivered may have been removed since.
COUNTS = {
    "SELECT delivered, dead FROM outbox_counts": """
        SELECT (SELECT seq FROM sqlite_sequence WHERE name = 'outbox') - count(*),
            count(*) FILTER (WHERE state = 'dead')
        FROM outbox WHERE state <> 'delivered'""",
    "SELECT day, created, delivered, failed FROM creations_by_day ORDER BY day": """
        SELECT substr(accepted_at, 1, 10), count(*), sum(state = 'delivered'), sum(state = 'dead')
        FROM outbox WHERE kind = 'create' GROUP BY 1 ORDER BY 1""",
    "SELECT day, outcome, calls FROM airtable_calls_by_day WHERE calls > 0 ORDER BY day, outcome": """
        SELECT substr(started_at, 1, 10), outcome, count(*) FROM airtable_calls GROUP BY 1, 2 ORDER BY 1, 2""",
}
#: Day of May, then what became of the create and of each update of the run.
OLD_RUNS = (
    (14, "delivered", ("delivered", "delivered", "dead")),
    (14, "delivered", ("pending",)),
    (14, "dead", ("dead", "pending")),
    (15, "pending", ("pending", "pending")),
    (15, "delivered", ()),
)
OLD_CALLS = ((14, "ok"), (14, "ok"), (14, "refused"), (15, "ok"), (15, "unknown"), (15, "in_flight"))


def fill_first_version(path: Path) -> None:
    """What the service wrote before it counted as it went."""
    apply(path, read_migrations(migrations_directory())[:1])
    with contextlib.closing(connect_writing(path)) as connection:
        insert_error = "INSERT INTO errors (kind, message, first_at, last_at) VALUES ('rejected', 'x', ?, ?)"
        connection.execute(insert_error, (f"{AT:%Y-%m-%d}T00:00:00.000Z",) * 2)
        for number, (day, create, updates) in enumerate(OLD_RUNS):
            at = f"2026-05-{day}T09:20:00.000Z"
            run_id = f"job-{number}"
            waits = create == "pending" or (create != "dead" and "pending" in updates)
            connection.execute(
                "INSERT INTO runs (run_id, job_id, client_id, origin, airtable_record_id, sync, due_at, created_at,"
                " changed_at, fields) VALUES (?, 'job', ?, 'kickoff', ?, 'pending', ?, ?, ?, '{}')",
                (run_id, str(number), f"rec{number}" if create == "delivered" else None, at if waits else None, at, at),
            )
            messages = []
            for kind in ("create", *["update"] * len(updates)):
                insert = (
                    "INSERT INTO outbox (run_id, kind, source, fields, change, accepted_at)"
                    """ VALUES (?, ?, 'kickoff', '["run_id"]', '{}', ?)"""
                )
                messages.append(connection.execute(insert, (run_id, kind, at)).lastrowid)
            for message, state in zip(messages, (create, *updates), strict=True):
                if state != "pending":
                    connection.execute("UPDATE outbox SET state = 'sending', call_id = 1 WHERE id = ?", (message,))
            for message, state in reversed(list(zip(messages, (create, *updates), strict=True))):
                ended = {"id": message, "at": at, "state": state}
                if state == "delivered":
                    connection.execute("UPDATE outbox SET state = :state, delivered_at = :at WHERE id = :id", ended)
                elif state == "dead":
                    end = "UPDATE outbox SET state = :state, dead_at = :at, error_id = 1 WHERE id = :id"
                    connection.execute(end, ended)
        connection.execute("DELETE FROM outbox WHERE id = 2 AND kind = 'update' AND state = 'delivered'")
        for day, outcome in OLD_CALLS:
            at = f"2026-05-{day}T09:20:00.000Z"
            connection.execute(
                "INSERT INTO airtable_calls (method, outcome, records, messages, started_at, finished_at)"
                " VALUES ('update', ?, 1, 1, ?, ?)",
                (outcome, at, None if outcome == "in_flight" else at),
            )


async def test_a_filled_store_of_the_first_version_is_counted_rightly_when_it_is_upgraded_and_after(path: Path) -> None:
    fill_first_version(path)
    assert len(apply(path, read_migrations(migrations_directory()), LATER)) > 3
    for kept, counted in COUNTS.items():
        assert rows(path, kept) == rows(path, counted)
    assert rows(path, "SELECT delivered, dead FROM outbox_counts") == [(5, 3)]
    async with open_desk(path) as desk:
        await desk.store.recover(LATER, timedelta(hours=1))
        await desk.kick_off("New", LATER)
        await desk.store.retry_all(kind=None, run_id=None, since=None, at=LATER, who=None)
        await desk.deliver_all(LATER)
        assert desk.cell("SELECT count(*) FROM outbox WHERE state <> 'delivered'") == 0
    for kept, counted in COUNTS.items():
        assert rows(path, kept) == rows(path, counted)
    assert rows(path, "PRAGMA foreign_key_check") == []
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_open_errors_that_say_the_same_become_the_first_of_them(path: Path) -> None:
    """A deleted record was one error an update, and a check opened another."""
    migrations = read_migrations(migrations_directory())
    before = next(place for place, one in enumerate(migrations) if one.name.endswith("one_error_a_trouble"))
    apply(path, migrations[:before])
    told = [  # kind, run, cause, record that a check found
        ("record_deleted", "run", "gone", None),
        ("rejected", "run", "no", None),
        ("rejected", "run", "never", None),
        ("record_deleted", "run", "gone", None),
        ("rejected", "run", "no", None),
        ("record_deleted", "run", "is missing", "rec1"),
        ("record_deleted", "other", "gone", None),
        ("unknown_record", "run", "x", "rec2"),
    ]
    with contextlib.closing(connect_writing(path)) as connection:
        at = "2026-05-16T09:20:0{}.000Z"
        connection.execute(
            "INSERT INTO runs (run_id, job_id, client_id, origin, airtable_record_id, created_at, changed_at, fields)"
            " VALUES ('run', 'j', 'c', 'adopted', 'rec1', ?, ?, '{}')",
            (at.format(0), at.format(0)),
        )
        for place, (kind, run_id, cause, record_id) in enumerate(told, 1):
            connection.execute(
                "INSERT INTO errors (kind, run_id, message, cause, first_at, last_at, found_record_id)"
                " VALUES (?, ?, 'x', ?, ?, ?, ?)",
                (kind, run_id, cause, at.format(place), at.format(place), record_id),
            )
        for error_id in (1, 2, 3, 4, 5):
            message = connection.execute(
                "INSERT INTO outbox (run_id, kind, source, fields, change, accepted_at)"
                " VALUES ('run', 'update', 'caller', '[]', '{}', ?)",
                (at.format(error_id),),
            ).lastrowid
            connection.execute("UPDATE outbox SET state = 'sending', call_id = 1 WHERE id = ?", (message,))
            connection.execute(
                "UPDATE outbox SET state = 'dead', dead_at = ?, error_id = ? WHERE id = ?",
                (at.format(error_id), error_id, message),
            )
    apply(path, migrations, LATER)
    shown = "SELECT id, kind, run_id, cause, count, last_at FROM errors WHERE state = 'open' ORDER BY id"
    assert rows(path, shown) == [
        (1, "record_deleted", "run", "gone", 3, at.format(6)),
        (2, "rejected", "run", "no", 2, at.format(5)),
        (3, "rejected", "run", "never", 1, at.format(3)),
        (7, "record_deleted", "other", "gone", 1, at.format(7)),
        (8, "unknown_record", "run", "x", 1, at.format(8)),
    ]
    assert rows(path, "SELECT id, resolution, note FROM errors WHERE state = 'resolved' ORDER BY id") == [
        (4, "merged", "counted with error 1"),
        (5, "merged", "counted with error 2"),
        (6, "merged", "counted with error 1"),
    ]
    assert rows(path, "SELECT error_id FROM outbox ORDER BY id") == [(1,), (2,), (3,), (1,), (2,)]
    assert rows(path, "PRAGMA foreign_key_check") == []
