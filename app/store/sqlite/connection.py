"""The one writing connection, with group commit, and the reading one. Knows nothing of tables.

A unit is a plain function over `sqlite3.Connection`. It runs in one hop on the connection's own thread, so no
coroutine can slip into its transaction and no cancellation can leave it open. Units that arrive while a commit is
under way share the next one, and alike ones their statements too; a lone unit waits for nobody. No library offers this:
aiosqlite hops per statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

import aiosqlite

from app.errors import Problem, Stopping, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")
ItemT = TypeVar("ItemT")
Unit: TypeAlias = "Callable[[sqlite3.Connection], T]"

BUSY_TIMEOUT_MS: Final = 5_000
#: A WAL that grew beyond this, because somebody read for long, is cut back to it when it begins anew.
WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
#: Units that share one commit at most, so that the first of a flood is not kept waiting by the last.
GROUP_LIMIT: Final = 256
_ITER_CHUNK_SIZE: Final = 64


class UnitConnection(aiosqlite.Connection):
    """An aiosqlite connection that runs a whole unit in one hop to its thread."""

    async def run(self, unit: Unit[T]) -> T:
        result: T = await self._execute(unit, self._conn)  # type: ignore[no-untyped-call]  # aiosqlite leaves it bare
        return result


def _open(path: Path, *, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None, cached_statements=256
    )
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def connect_writing(path: Path) -> sqlite3.Connection:
    """A connection whose commits survive a power cut (WAL with `synchronous=FULL`)."""
    connection = _open(path, mode="rwc")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reading(path: Path) -> sqlite3.Connection:
    return _open(path, mode="ro")


def connect_alone(path: Path) -> sqlite3.Connection:
    """A reading connection to a file that nobody writes and that has no WAL: not even a file beside it is made."""
    return _open(path, mode="ro&immutable=1")


async def open_unit_connection(connector: Callable[[], sqlite3.Connection]) -> UnitConnection:
    connection = UnitConnection(connector, _ITER_CHUNK_SIZE)
    await connection
    return connection


@dataclass(frozen=True, slots=True)
class Alike(Generic[ItemT, T]):
    """A unit of which several take fewer statements together: what stands side by side in a group is given to `take`.

    `take` answers each item in its order, as if they had come one by one, or with the `Problem` of one that it refused
    and kept nothing of.
    """

    take: Callable[[sqlite3.Connection, Sequence[ItemT]], Sequence[T | Problem]]
    item: ItemT

    def __call__(self, connection: sqlite3.Connection) -> T:
        (result,) = self.take(connection, [self.item])
        if isinstance(result, Problem):
            raise result
        return result


@dataclass(slots=True)
class _Waiting(Generic[T]):
    unit: Unit[T]
    answer: asyncio.Future[T]


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    result: T


class GroupCommit:
    """Runs units one after another; those that wait together share one transaction and one fsync.

    A unit that fails is rolled back alone. Nobody is answered before the commit that carries his unit.
    """

    def __init__(self, connection: UnitConnection, check_files: Callable[[], None] = lambda: None) -> None:
        """`check_files` raises a `Problem` where a commit would go to a file that nobody would find again."""
        self._connection = connection
        self._check_files = check_files
        self._waiting: list[_Waiting[object]] = []
        self._committing: asyncio.Task[None] | None = None
        self._closed = False

    async def run(self, unit: Unit[T]) -> T:
        """The unit's result, once it is committed. Cancelling the caller does not undo the unit.

        Raises:
            StoreUnavailable: nothing was kept (disk full, database busy or broken).
            Stopping: the store is closing.
        """
        if self._closed:
            raise Stopping("The service is stopping: send the request again in a moment.")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(unit, answer))  # type: ignore[arg-type]  # a list of futures of all kinds
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all(), name="group-commit")
        return await answer

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:GROUP_LIMIT], self._waiting[GROUP_LIMIT:]
                try:
                    units = [one.unit for one in group]
                    outcomes = await self._connection.run(partial(_commit_together, units, self._check_files))
                except Exception as error:  # noqa: BLE001  # whatever it is, each caller has to hear of it
                    outcomes = [_as_unavailable(error)] * len(group)
                for one, outcome in zip(group, outcomes, strict=True):
                    if one.answer.done():
                        continue
                    if isinstance(outcome, _Done):
                        one.answer.set_result(outcome.result)
                    else:
                        one.answer.set_exception(outcome)
        finally:
            self._committing = None

    async def close(self) -> None:
        """Commit what waits, then close the connection."""
        self._closed = True
        while self._committing is not None:
            await asyncio.shield(self._committing)
        await self._connection.close()


def _commit_together(
    units: list[Unit[object]], check_files: Callable[[], None], connection: sqlite3.Connection
) -> list[_Done[object] | Exception]:
    """One transaction for all. Units do nothing but read and write through the connection, so that they can run twice.

    Nearly always none of them fails, and a savepoint costs a quarter of what it guards: they run without, and where
    one failed all run again, each behind a savepoint of its own.
    """
    check_files()
    try:
        connection.execute("BEGIN IMMEDIATE")
        outcomes = _run_all(units, connection)
        if outcomes is None:
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [_run_apart(unit, connection) for unit in units]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
    check_files()  # again: they may have gone between the first look and the commit
    return outcomes


def _run_all(units: list[Unit[object]], connection: sqlite3.Connection) -> list[_Done[object] | Exception] | None:
    """Their results, or `None` where one failed."""
    try:
        return [
            result if isinstance(result, Problem) else _Done(result)
            for _, side_by_side in groupby(units, key=_kind)
            for result in _run_alike(list(side_by_side), connection)
        ]
    except Exception:
        if not connection.in_transaction:  # SQLite itself gave up the whole transaction (disk full, I/O error)
            raise
        return None


def _kind(unit: Unit[object]) -> object:
    return unit.take if isinstance(unit, Alike) else unit


def _run_alike(units: list[Unit[object]], connection: sqlite3.Connection) -> Sequence[object | Problem]:
    if isinstance(first := units[0], Alike):
        results: Sequence[object] = first.take(connection, [unit.item for unit in units if isinstance(unit, Alike)])
        return results
    return [unit(connection) for unit in units]


def _run_apart(unit: Unit[object], connection: sqlite3.Connection) -> _Done[object] | Exception:
    """A failing unit must not fail its neighbours."""
    connection.execute("SAVEPOINT unit")
    outcome: _Done[object] | Exception
    try:
        outcome = _Done(unit(connection))
    except Exception as error:
        if not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO unit")
        outcome = _as_unavailable(error)
    connection.execute("RELEASE unit")
    return outcome


def _as_unavailable(error: Exception) -> Exception:
    """What the caller hears: a broken constraint is our bug and stays what it is, the rest is the machine's state."""
    if isinstance(error, Problem | sqlite3.IntegrityError | sqlite3.ProgrammingError):
        return error
    if isinstance(error, sqlite3.Error):
        return StoreUnavailable(f"Nothing was stored ({error}): send the request again later.")
    return error


#: A statement that makes no sense, or one that writes: not the machine's state, but a bug.
_OUR_MISTAKES: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY)


class Reader:
    """Runs reading units, each over one consistent snapshot."""

    def __init__(self, connection: UnitConnection) -> None:
        self._connection = connection

    async def run(self, unit: Unit[T]) -> T:
        """The unit's result.

        Raises:
            StoreUnavailable: the file cannot be read now.
        """
        return await self.run_alone(partial(_read, unit))

    async def run_alone(self, unit: Unit[T]) -> T:
        """Run what SQLite refuses inside a transaction; raises as `run` does."""
        try:
            return await self._connection.run(unit)
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            if error.sqlite_errorcode in _OUR_MISTAKES:
                raise
            raise StoreUnavailable(f"The store could not be read ({error}): try again later.") from error

    async def close(self) -> None:
        await self._connection.close()


def _read(unit: Unit[T], connection: sqlite3.Connection) -> T:
    connection.execute("BEGIN")
    try:
        return unit(connection)
    finally:
        connection.execute("ROLLBACK")
