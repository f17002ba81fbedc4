"""Brings a database to the schema of this version: plain SQL files, each applied with its record in one transaction."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

#: Marks a SQLite file as ours (`PRAGMA application_id`): "RunR".
APPLICATION_ID: Final = 0x52756E52
_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_PACKAGE: Final = Path(__file__).resolve().parent.parent.parent

CREATE_RECORD = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at TEXT NOT NULL
) STRICT
"""
SELECT_APPLIED = "SELECT version, name, checksum FROM schema_migrations ORDER BY version"
INSERT_RECORD = "INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES (?, ?, ?, ?)"
COUNT_TABLES = "SELECT count(*) FROM sqlite_master"
SELECT_APPLICATION = "PRAGMA application_id"


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def statements(self) -> Iterator[str]:
        """Its statements one by one: `executescript` would commit first, and triggers hold inner semicolons."""
        statement = ""
        for part in re.findall(r"[^;]*;|[^;]+$", self.sql):
            statement += part
            if sqlite3.complete_statement(statement):
                yield statement
                statement = ""
        if not all(line.startswith("--") for line in map(str.strip, statement.splitlines()) if line):
            raise StoreError(f"migration {self.name} ends inside a statement")


def migrations_directory() -> Path:
    """Beside `app/` in a checkout, inside it in an installed package."""
    packaged = _PACKAGE / "migrations"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "migrations"


def read_migrations(directory: Path) -> list[Migration]:
    """The migrations of this version, in order.

    Raises:
        StoreError: a file is named otherwise, or a number is missing or doubled.
    """
    found: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        named = _FILE_NAME.fullmatch(path.name)
        if named is None:
            raise StoreError(f"migrations/{path.name} is not named NNNN_name.sql")
        found.append(Migration(int(named[1]), path.stem, path.read_text(encoding="utf-8")))
    numbers = [one.version for one in found]
    if not found or numbers != list(range(1, len(found) + 1)):
        raise StoreError(f"the migrations in {directory} are numbered {numbers}, not 1, 2, 3 …")
    return found


def migrate(connection: sqlite3.Connection, migrations: list[Migration], at: datetime) -> list[str]:
    """Apply what is missing; the names of what was applied.

    Raises:
        StoreError: the file is not ours, was made by a newer version, or a migration was changed after it was applied;
            nothing is touched then.
    """
    pending = missing_migrations(connection, migrations)
    for migration in pending:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(CREATE_RECORD)
            for statement in migration.statements():
                connection.execute(statement)
            connection.execute(INSERT_RECORD, (migration.version, migration.name, migration.checksum, iso(at)))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"migration {migration.name} failed and nothing of it was kept: {error}") from error
            raise
    return [migration.name for migration in pending]


def missing_migrations(connection: sqlite3.Connection, migrations: list[Migration]) -> list[Migration]:
    """What is still to be applied, after checking that what was applied is what this version knows.

    Raises:
        StoreError: as for `migrate`.
    """
    application_id = connection.execute(SELECT_APPLICATION).fetchone()[0]
    if application_id != APPLICATION_ID:
        if application_id or connection.execute(COUNT_TABLES).fetchone()[0]:
            raise StoreError("this SQLite file belongs to another program: give [store] path a file of its own")
        return migrations
    applied = {version: (name, checksum) for version, name, checksum in connection.execute(SELECT_APPLIED)}
    known = {one.version: one for one in migrations}
    for version, (name, checksum) in applied.items():
        migration = known.get(version)
        if migration is None:
            raise StoreError(
                f"the database has migration {name}, which this version does not know: it was opened by a newer "
                "version; run that one, or restore a backup from before the upgrade"
            )
        if (name, checksum) != (migration.name, migration.checksum):
            raise StoreError(
                f"migration {migration.name} was changed after it was applied to this database (as {name}): put its "
                "file back as it was, and make the change in a migration of its own"
            )
    return [one for one in migrations if one.version not in applied]
