"""Opening a store: its lock, its folder, what is refused before anything is written, its schema, its connections."""

from __future__ import annotations

import contextlib
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from app.errors import StoreError, StoreLocked
from app.store.sqlite.connection import (
    GroupCommit,
    Reader,
    connect_alone,
    connect_reading,
    connect_writing,
    open_unit_connection,
)
from app.store.sqlite.files import OpenedFiles, refuse_losses, wal_of
from app.store.sqlite.migrate import migrate, migrations_directory, missing_migrations, read_migrations
from app.store.sqlite.store import SqliteReading, SqliteStore, write_something

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from app.policy.harvest import HarvestRules

QUICK_CHECK: Final = "PRAGMA quick_check(5)"
#: A start reads all of a database up to this size (about a second); `doctor` reads one of any size.
LARGEST_READ_AT_START: Final = 32 * 1024 * 1024


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """The right to write this store, for as long as the block runs.

    Raises:
        StoreLocked: another process holds it.
        StoreError: its folder cannot be written.
    """
    lock = FileLock(f"{path.resolve()}.lock", timeout=0)  # one file is one store, whatever links lead to it
    try:
        lock.acquire()
    except Timeout:
        raise StoreLocked(
            f"another process writes {path}: stop it first, or use the commands that go through the running service"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be locked ({error.strerror}): its folder has to be writable") from error
    try:
        yield
    finally:
        lock.release()


def make_folder(path: Path) -> None:
    """Make the folder that `path` is to stand in.

    Raises:
        StoreError: it cannot be made.
    """
    with _as_store_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def prepare(path: Path, at: datetime) -> list[str]:
    """Make the folder and file if they are not there, and bring the schema to this version; what was applied.

    Raises:
        StoreError: the file cannot be opened, is damaged, not ours, newer, or was migrated differently.
    """
    make_folder(path)
    with _as_store_error(path):
        migrations = read_migrations(migrations_directory())
        refuse_losses(path)
        if path.exists():
            # Before a writing connection turns it to WAL: a file that is refused stays as it is, byte for byte.
            connect = connect_reading if wal_of(path.resolve()).exists() else connect_alone
            with contextlib.closing(connect(path)) as connection:
                missing_migrations(connection, migrations)
                if path.stat().st_size <= LARGEST_READ_AT_START and (damage := damage_of(connection)):
                    raise StoreError(
                        f"{path} is damaged ({damage}): restore a backup, or save what can be read with the sqlite3 "
                        "shell's .recover"
                    )
        with contextlib.closing(connect_writing(path)) as connection:
            return migrate(connection, migrations, at)


def damage_of(connection: sqlite3.Connection) -> str | None:
    """What is broken in the database, all of which is read."""
    found = [str(row[0]) for row in connection.execute(QUICK_CHECK)]
    return None if found == ["ok"] else "; ".join(found)


#: The part of an extended error code that says the kind of error.
_PRIMARY: Final = 0xFF


@contextlib.contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # Python's own errors have none
        if code & _PRIMARY in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            raise StoreError(
                f"{path} cannot be opened ({error}): see that its disk has room and works, and start again"
            ) from error
        raise StoreError(
            f"{path} cannot be used as a database ({error}): check its folder's permissions and the file with "
            "'PRAGMA integrity_check', or restore a backup"
        ) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}): check its folder's permissions") from error


def connect_opened(path: Path) -> sqlite3.Connection:
    """A writing connection that has written: the WAL is there, and a folder that takes nothing is found out now."""
    connection = connect_writing(path)
    try:
        connection.execute("BEGIN IMMEDIATE")
        write_something(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.asynccontextmanager
async def open_store(
    path: Path, *, at: datetime, linger_seconds: float, run_fields: Sequence[str], rules: HarvestRules
) -> AsyncIterator[SqliteStore]:
    """The store at `path`, locked for this process and brought to this version's schema.

    Raises:
        StoreError: as `hold_lock` and `prepare` do.
    """
    make_folder(path)
    with hold_lock(path):
        prepare(path, at)
        with _as_store_error(path):
            connection = await open_unit_connection(partial(connect_opened, path))
        writer = GroupCommit(connection, OpenedFiles(path).check)
        try:
            reader = Reader(await open_unit_connection(partial(connect_reading, path)))
        except BaseException:
            await writer.close()
            raise
        store = SqliteStore(writer, reader, linger_seconds=linger_seconds, run_fields=run_fields, rules=rules)
        try:
            yield store
        finally:
            await store.close()


@contextlib.asynccontextmanager
async def open_reading(path: Path) -> AsyncIterator[SqliteReading]:
    """The store at `path` to look at, beside a running service or without one.

    Raises:
        StoreError: there is none, it is not ours, or another version wrote it.
    """
    if not path.exists():
        raise StoreError(f"there is no store at {path} yet: start the service, or give [store] path")
    refuse_losses(path)
    with _as_store_error(path), contextlib.closing(connect_reading(path)) as connection:
        missing = missing_migrations(connection, read_migrations(migrations_directory()))
    if missing:
        raise StoreError(f"{path} is of an older version: run the service or 'migrate' first")
    reader = Reader(await open_unit_connection(partial(connect_reading, path)))
    try:
        yield SqliteReading(reader)
    finally:
        await reader.close()
