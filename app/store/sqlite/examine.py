"""A look at a store's file from outside, for `doctor`: read-only, beside a running service or without one."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.errors import StoreError, StoreLocked
from app.store.sqlite.connection import connect_reading
from app.store.sqlite.files import bytes_of, refuse_losses
from app.store.sqlite.migrate import migrations_directory, missing_migrations, read_migrations
from app.store.sqlite.opening import damage_of, hold_lock

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

#: Two connections that write or checkpoint at once could corrupt a database (https://www.sqlite.org/wal.html).
_WAL_RESET_BUG: Final = ((3, 7, 0), (3, 51, 3))
_WAL_RESET_FIXED_IN: Final = ((3, 50, 7), (3, 44, 6))


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """`damage` is what SQLite found broken, `refusal` why this version would not open it; both empty where all is well.

    `missing` are the migrations that the next start applies.
    """

    damage: str | None = None
    refusal: str | None = None
    missing: tuple[str, ...] = ()
    version: int = 0
    wal_bytes: int = 0


def examine(path: Path) -> StoreSeen:
    """Read all of the file at `path`, which must exist, and write nothing."""
    try:
        refuse_losses(path)
        with contextlib.closing(connect_reading(path)) as connection:
            if damage := damage_of(connection):
                return StoreSeen(damage=damage)
            migrations = read_migrations(migrations_directory())
            missing = missing_migrations(connection, migrations)
    except sqlite3.Error as error:
        return StoreSeen(damage=str(error))
    except StoreError as error:
        return StoreSeen(refusal=str(error))
    return StoreSeen(
        missing=tuple(one.name for one in missing),
        version=len(migrations) - len(missing),
        wal_bytes=bytes_of(path)["wal"],
    )


def is_written(path: Path) -> bool:
    """Whether a process holds the right to write this store.

    Asked by taking that right for an instant, where nobody has it: a lock shows itself in no other way.

    Raises:
        StoreError: its folder cannot be written.
    """
    if not path.with_name(f"{path.name}.lock").exists():
        return False
    try:
        with hold_lock(path):
            return False
    except StoreLocked:
        return True


COUNT_CALLS_SINCE = "SELECT count(*) FROM airtable_calls WHERE started_at >= ?"


def calls_since(path: Path, at: datetime) -> int:
    """Requests to Airtable that the process which writes this store began then or later."""
    with contextlib.closing(connect_reading(path)) as connection:
        count: int = connection.execute(COUNT_CALLS_SINCE, (iso(at),)).fetchone()[0]
        return count


def has_wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite can corrupt a database that two connections write at once."""
    first, fixed = _WAL_RESET_BUG
    backported = any(version[:2] == fix[:2] and version >= fix for fix in _WAL_RESET_FIXED_IN)
    return first <= version < fixed and not backported


def sqlite_version() -> str:
    return sqlite3.sqlite_version
