"""The database as a person at the `sqlite3` shell has it: the schema, and nothing of the program."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from pathlib import Path
from typing import TypeAlias

from app.store.sqlite.migrate import CREATE_RECORD

MIGRATIONS = Path(__file__).parent.parent.parent / "migrations"
AT = "2026-05-16T09:20:00.000Z"
LATER = "2026-05-16T09:20:30.000Z"

Cell: TypeAlias = str | int | float | None


@functools.cache
def _made() -> bytes:
    """The file that the migrations make."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(CREATE_RECORD)
        for migration in sorted(MIGRATIONS.glob("*.sql")):
            connection.executescript(f"BEGIN; {migration.read_text(encoding='utf-8')} COMMIT;")
        return connection.serialize()


class Shell:
    """One connection with the shell's defaults: foreign keys off, recursive triggers off, no transaction opened."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(_made())
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA synchronous = OFF")  # a power cut is not what these tests are about

    def do(self, sql: str, *values: Cell) -> int:
        """Run one statement; the rows that it changed."""
        return self.connection.execute(sql, values).rowcount

    def one(self, sql: str, *values: Cell) -> Cell:
        """The first cell of what a query finds."""
        row = self.connection.execute(sql, values).fetchone()
        found: Cell = row[0] if row is not None else None
        return found

    def dump(self) -> list[str]:
        """All rows of all tables, to see that a refusal changed nothing."""
        return list(self.connection.iterdump())

    def add_run(self, run_id: str, origin: str = "kickoff", record_id: str | None = None, **more: Cell) -> None:
        columns = {
            "run_id": run_id,
            "job_id": run_id.partition("-")[0],
            "client_id": run_id.partition("-")[2],
            "origin": origin,
            "airtable_record_id": record_id,
            "created_at": AT,
            "changed_at": AT,
            "due_at": AT,
            "fields": "{}",
            **more,
        }
        self._insert("runs", columns)

    def add_message(self, run_id: str, kind: str, **more: Cell) -> int:
        columns = {
            "run_id": run_id,
            "kind": kind,
            "source": "caller",
            "fields": "[]",
            "change": "{}",
            "accepted_at": AT,
            **more,
        }
        return self._insert("outbox", columns)

    def add_error(self, kind: str, run_id: str | None, **more: Cell) -> int:
        columns = {"kind": kind, "run_id": run_id, "message": "it went wrong", "first_at": AT, "last_at": AT, **more}
        return self._insert("errors", columns)

    def add_held(self, run_id: str, error_id: int, **more: Cell) -> int:
        columns = {"run_id": run_id, "error_id": error_id, "change": "{}", "accepted_at": AT, **more}
        return self._insert("held_updates", columns)

    def add_batch(self, run_id: str, number: int, **more: Cell) -> int:
        return self._insert("batches", {"run_id": run_id, "number": number, "created_at": AT, **more})

    def add_event(self, **more: Cell) -> int:
        columns = {"event": "ACTOR.RUN.SUCCEEDED", "outcome": "held", "received_at": AT, **more}
        return self._insert("webhook_events", columns)

    def kick_off(self, run_id: str) -> int:
        """A run with its create; the id of the create."""
        self.add_run(run_id)
        return self.add_message(run_id, "create", source="kickoff")

    def send(self, message_id: int, call_id: int = 1) -> None:
        self.do("UPDATE outbox SET state = 'sending', call_id = ? WHERE id = ?", call_id, message_id)

    def deliver_create(self, run_id: str) -> None:
        """The way of a create to its end, as the sync loop goes it."""
        message_id = self.one("SELECT id FROM outbox WHERE run_id = ? AND kind = 'create'", run_id)
        assert isinstance(message_id, int)
        self.send(message_id)
        self.do("UPDATE runs SET airtable_record_id = ? WHERE run_id = ?", f"rec{run_id}", run_id)
        self.deliver(message_id)

    def deliver(self, message_id: int) -> None:
        self.do("UPDATE outbox SET state = 'delivered', delivered_at = ? WHERE id = ?", LATER, message_id)

    def set_aside(self, message_id: int) -> int:
        error_id = self.add_error("rejected", None)
        self.do("UPDATE outbox SET state = 'dead', dead_at = ?, error_id = ? WHERE id = ?", LATER, error_id, message_id)
        return error_id

    def _insert(self, table: str, columns: dict[str, Cell]) -> int:
        names, places = ", ".join(columns), ", ".join("?" * len(columns))
        inserted = self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(columns.values()))
        return inserted.lastrowid or 0
