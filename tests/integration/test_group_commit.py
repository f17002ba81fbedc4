"""Group commit on real files: units share commits, nobody is answered before his, and nobody pays for a neighbour."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import pytest

from app.errors import Conflict, Problem, Stopping, StoreUnavailable
from app.store.sqlite.connection import (
    GROUP_LIMIT,
    Alike,
    GroupCommit,
    Reader,
    connect_reading,
    connect_writing,
    open_unit_connection,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence
    from pathlib import Path

    from app.store.sqlite.connection import Unit

T = TypeVar("T")


@dataclass
class Desk:
    """A group commit over a file with one table, every statement that its connection ran, and a second connection."""

    path: Path
    commit: GroupCommit
    statements: list[str] = field(default_factory=list)

    def seen(self) -> set[int]:
        """What another connection sees at this moment."""
        with contextlib.closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as other:
            return {row[0] for row in other.execute("SELECT id FROM notes")}

    def count(self, statement: str) -> int:
        return self.statements.count(statement)


@contextlib.asynccontextmanager
async def open_desk(path: Path) -> AsyncIterator[Desk]:
    with contextlib.closing(connect_writing(path)) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, words BLOB)")
    statements: list[str] = []

    def connector() -> sqlite3.Connection:
        connection = connect_writing(path)
        connection.execute("PRAGMA busy_timeout = 20")
        connection.set_trace_callback(statements.append)
        return connection

    commit = GroupCommit(await open_unit_connection(connector))
    try:
        yield Desk(path, commit, statements)
    finally:
        await commit.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "notes.db") as opened:
        yield opened


def note(number: int, words: bytes = b"") -> Unit[int]:
    def unit(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO notes VALUES (?, ?)", (number, words))
        return number

    return unit


class Gate:
    """A unit that keeps the connection's thread busy until it is opened, so that others gather behind it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.entered = asyncio.Event()
        self._loop = loop
        self._opened = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO notes VALUES (0, NULL)")
        self._loop.call_soon_threadsafe(self.entered.set)
        assert self._opened.wait(timeout=30)

    def open(self) -> None:
        self._opened.set()


@contextlib.asynccontextmanager
async def gathering(desk: Desk) -> AsyncIterator[Gate]:
    """Whatever is run inside waits behind one commit; the gate opens at the end, if it was not opened before."""
    gate = Gate(asyncio.get_running_loop())
    holding = asyncio.create_task(desk.commit.run(gate))
    await gate.entered.wait()
    try:
        yield gate
    finally:
        gate.open()
    await holding


async def start(*waiting: Awaitable[T]) -> Sequence[asyncio.Future[T]]:
    """Tasks that have run up to their first wait."""
    tasks = [asyncio.ensure_future(one) for one in waiting]
    await asyncio.sleep(0)
    return tasks


# Shared commits -------------------------------------------------------------------------------------------------


async def test_units_that_wait_together_share_one_commit(desk: Desk) -> None:
    async with gathering(desk):
        tasks = await start(*[desk.commit.run(note(number)) for number in range(1, 101)])
    assert await asyncio.gather(*tasks) == list(range(1, 101))
    assert desk.count("COMMIT") == 2  # the gate's, and one for the hundred
    assert desk.seen() == set(range(101))


async def test_a_unit_alone_waits_for_nobody(desk: Desk) -> None:
    assert await desk.commit.run(note(1)) == 1
    assert await desk.commit.run(note(2)) == 2
    assert desk.count("COMMIT") == 2


async def test_the_first_of_a_flood_is_not_kept_for_the_last(desk: Desk) -> None:
    async with gathering(desk):
        tasks = await start(*[desk.commit.run(note(number)) for number in range(1, GROUP_LIMIT + 2)])
    await tasks[0]
    assert not tasks[-1].done()
    await asyncio.gather(*tasks)
    assert desk.count("COMMIT") == 3


async def test_nobody_is_answered_before_his_commit(desk: Desk) -> None:
    async def run_and_look(number: int) -> bool:
        await desk.commit.run(note(number))
        return number in desk.seen()

    assert all(await asyncio.gather(*[run_and_look(number) for number in range(300)]))


async def test_a_failure_too_is_told_after_the_commit(desk: Desk) -> None:
    async def fail_and_look() -> bool:
        with pytest.raises(Conflict):
            await desk.commit.run(_fail_after_writing)
        return desk.seen() == {0, 1}

    async with gathering(desk):
        tasks = await start(fail_and_look())
        others = await start(desk.commit.run(note(1)))
    assert await asyncio.gather(*tasks, *others) == [True, 1]


async def test_a_unit_is_never_inside_the_transaction_of_another(desk: Desk) -> None:
    inside: list[int] = []

    def alone(number: int) -> Unit[bool]:
        def unit(connection: sqlite3.Connection) -> bool:
            inside.append(number)
            connection.execute("INSERT INTO notes VALUES (?, NULL)", (number,))
            first = inside == [number]
            inside.remove(number)
            return first

        return unit

    assert all(await asyncio.gather(*[desk.commit.run(alone(number)) for number in range(50)]))
    opened = [one for one in desk.statements if one in {"BEGIN IMMEDIATE", "COMMIT"}]
    assert opened == ["BEGIN IMMEDIATE", "COMMIT"] * (len(opened) // 2)


# Alike units ----------------------------------------------------------------------------------------------------


class Notes:
    """Takes notes together, and knows which came together; 13 is refused, and 99 fails."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []

    def take(self, connection: sqlite3.Connection, numbers: Sequence[int]) -> Sequence[int | Problem]:
        self.taken.append(list(numbers))
        kept = [(number,) for number in numbers if number != 13]
        connection.executemany("INSERT INTO notes VALUES (?, NULL)", kept)
        if 99 in numbers:
            raise ZeroDivisionError
        return [Conflict("thirteen") if number == 13 else number * 10 for number in numbers]


async def test_alike_units_that_stand_side_by_side_are_taken_together_and_in_order(desk: Desk) -> None:
    notes, others = Notes(), Notes()
    units = [*alike(notes, 1, 2), note(3), *alike(notes, 4), *alike(others, 5)]
    async with gathering(desk):
        tasks = await start(*[desk.commit.run(unit) for unit in units])
    assert await asyncio.gather(*tasks) == [10, 20, 3, 40, 50]
    assert (notes.taken, others.taken) == ([[1, 2], [4]], [[5]])
    assert desk.count("COMMIT") == 2
    assert await desk.commit.run(*alike(notes, 6)) == 60


def alike(notes: Notes, *numbers: int) -> list[Unit[int]]:
    take = notes.take
    units: list[Alike[int, int]] = [Alike(take, number) for number in numbers]
    return [*units]


async def test_one_of_them_that_is_refused_costs_the_others_nothing(desk: Desk) -> None:
    notes = Notes()
    async with gathering(desk):
        tasks = await start(*[desk.commit.run(unit) for unit in alike(notes, 12, 13, 14)])
    await asyncio.wait(tasks)
    assert [type(one.exception()) for one in tasks] == [type(None), Conflict, type(None)]
    assert (tasks[0].result(), tasks[2].result()) == (120, 140)
    assert notes.taken == [[12, 13, 14]]
    assert desk.seen() == {0, 12, 14}
    with pytest.raises(Conflict):
        await desk.commit.run(*alike(notes, 13))


async def test_one_of_them_that_fails_fails_alone(desk: Desk) -> None:
    notes = Notes()
    async with gathering(desk):
        tasks = await start(*[desk.commit.run(unit) for unit in alike(notes, 12, 99, 13)])
    await asyncio.wait(tasks)
    assert [type(one.exception()) for one in tasks] == [type(None), ZeroDivisionError, Conflict]
    assert desk.seen() == {0, 12}


# A failing unit -------------------------------------------------------------------------------------------------


def _fail_after_writing(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO notes VALUES (999, NULL)")
    raise Conflict("on purpose")


async def test_a_failing_unit_fails_alone(desk: Desk) -> None:
    async with gathering(desk):
        kept = await start(desk.commit.run(note(1)))
        failing = await start(desk.commit.run(_fail_after_writing))
        kept = [*kept, *await start(desk.commit.run(note(2)))]
    with pytest.raises(Conflict, match="on purpose"):
        await failing[0]
    assert await asyncio.gather(*kept) == [1, 2]
    assert desk.seen() == {0, 1, 2}
    assert desk.count("COMMIT") == 2


async def test_a_broken_constraint_is_not_called_a_full_disk(desk: Desk) -> None:
    await desk.commit.run(note(1))
    async with gathering(desk):
        kept = await start(desk.commit.run(note(2)))
        twice = await start(desk.commit.run(note(1)))
    with pytest.raises(sqlite3.IntegrityError):
        await twice[0]
    assert await kept[0] == 2


# Cancelled callers ----------------------------------------------------------------------------------------------


async def test_a_caller_who_leaves_undoes_nothing_and_leaves_no_transaction_open(desk: Desk) -> None:
    async with gathering(desk):
        staying, leaving = await start(desk.commit.run(note(1)), desk.commit.run(note(2)))
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert await staying == 1
    assert await desk.commit.run(lambda connection: connection.in_transaction)  # his own
    assert desk.count("BEGIN IMMEDIATE") == desk.count("COMMIT") == 3
    assert desk.seen() == {0, 1, 2}


async def test_a_caller_who_leaves_during_his_own_unit_undoes_nothing(desk: Desk) -> None:
    gate = Gate(asyncio.get_running_loop())
    leaving, staying = await start(desk.commit.run(gate), desk.commit.run(note(1)))
    await gate.entered.wait()
    leaving.cancel()
    gate.open()
    assert await staying == 1
    assert desk.seen() == {0, 1}


# When nothing can be kept ---------------------------------------------------------------------------------------

HOLD_WRITE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


async def test_while_another_process_writes_nobody_is_told_that_it_was_stored(desk: Desk) -> None:
    other = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOLD_WRITE_LOCK,
        str(desk.path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert other.stdout is not None
    assert await other.stdout.readline() == b"held\n"
    answers = await asyncio.gather(*[desk.commit.run(note(number)) for number in (1, 2)], return_exceptions=True)
    assert [type(one) for one in answers] == [StoreUnavailable, StoreUnavailable]
    await other.communicate(b"\n")
    assert desk.seen() == set()
    assert await desk.commit.run(note(3)) == 3
    assert desk.seen() == {3}


async def test_when_the_disk_is_full_what_was_answered_is_what_is_stored(desk: Desk) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}").close()

    await desk.commit.run(fill)
    async with gathering(desk):
        tasks = await start(*[desk.commit.run(note(number, b"x" * 1_000 * number**3)) for number in range(1, 6)])
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    stored = {one for one in answers if isinstance(one, int)}
    assert {type(one) for one in answers if not isinstance(one, int)} == {StoreUnavailable}
    assert desk.seen() - {0} == stored
    await desk.commit.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").close())
    assert await desk.commit.run(note(9, b"x" * 100_000)) == 9


def _refuse_commits(connection: sqlite3.Connection) -> None:
    def decide(action: int, what: str | None, *_more: str | None) -> int:
        return sqlite3.SQLITE_DENY if (action, what) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK

    connection.set_authorizer(decide)


async def test_a_commit_that_fails_keeps_nothing_and_says_so_to_all(desk: Desk) -> None:
    async with gathering(desk):
        tasks = await start(*[desk.commit.run(unit) for unit in (note(1), _refuse_commits, note(2))])
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in answers] == [StoreUnavailable] * 3
    assert desk.seen() == {0}
    await desk.commit.run(lambda connection: connection.set_authorizer(None))
    assert await desk.commit.run(note(3)) == 3
    assert desk.seen() == {0, 3}


def _make_sqlite_give_up(connection: sqlite3.Connection) -> None:
    """SQLite rolls the whole transaction back by itself, as it may when the disk is full."""
    connection.execute("INSERT OR ROLLBACK INTO notes VALUES (0, NULL)")


@pytest.mark.parametrize("before", [note(1), _fail_after_writing], ids=["together", "apart"])
async def test_where_sqlite_gives_up_the_transaction_nothing_is_kept_and_all_hear_its_own_cause(
    desk: Desk, before: Unit[int]
) -> None:
    async with gathering(desk):
        tasks = await start(*[desk.commit.run(unit) for unit in (before, _make_sqlite_give_up, note(2))])
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(one) for one in answers] == ["UNIQUE constraint failed: notes.id"] * 3
    assert desk.seen() == {0}
    assert await desk.commit.run(note(3)) == 3
    assert desk.seen() == {0, 3}


# Closing, and what the connections are --------------------------------------------------------------------------


async def test_closing_commits_what_waits_and_takes_nothing_more(tmp_path: Path) -> None:
    async with open_desk(tmp_path / "notes.db") as desk:
        async with gathering(desk) as gate:
            tasks = await start(*[desk.commit.run(note(number)) for number in (1, 2)])
            closing = (await start(desk.commit.close()))[0]
            with pytest.raises(Stopping):
                await desk.commit.run(note(3))
            gate.open()
            await closing
        assert await asyncio.gather(*tasks) == [1, 2]
        assert desk.seen() == {0, 1, 2}


async def test_what_is_committed_survives_a_power_cut(desk: Desk) -> None:
    def settings(connection: sqlite3.Connection) -> tuple[str, int, int]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        mode, synchronous, keys = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        return mode, synchronous, keys

    assert await desk.commit.run(settings) == ("wal", 2, 1)  # 2 is FULL


async def test_a_reader_sees_one_state_and_cannot_write(desk: Desk) -> None:
    reader = Reader(await open_unit_connection(lambda: connect_reading(desk.path)))

    def look_twice(connection: sqlite3.Connection) -> tuple[int, int]:
        before: int = connection.execute("SELECT count(*) FROM notes").fetchone()[0]
        with contextlib.closing(sqlite3.connect(desk.path, isolation_level=None)) as other:
            other.execute("INSERT INTO notes VALUES (?, NULL)", (before,))
        after: int = connection.execute("SELECT count(*) FROM notes").fetchone()[0]
        return before, after

    try:
        assert await reader.run(look_twice) == (0, 0)
        assert await reader.run(look_twice) == (1, 1)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await reader.run(note(7))
        assert await reader.run(look_twice) == (2, 2)
    finally:
        await reader.close()
