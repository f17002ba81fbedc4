"""Updates that share their statements leave what they would have left one by one: answers, rows, and ids in order."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import IdempotencyKeyReused, Problem
from app.fields import MAX_INTEGER, Change
from app.model import Duplicate, Held, Idempotency, Queued, Update
from app.policy.delivery import Refused
from app.store.sqlite.connection import connect_writing
from app.store.sqlite.intake import MOST_OF_A_BITE, When, accept_updates
from tests.support.examples import examples
from tests.support.stores import AT, JOB, adding, kickoff, later, open_desk, setting

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from app.model import UpdateOutcome

    Rows: TypeAlias = dict[str, list[tuple[str | int | float | None, ...]]]

WAITING, SYNCED, FAILED, MISSING, OTHER = (f"{JOB}-{name}" for name in ("Waits", "Synced", "Failed", "Nobody", "Noone"))
LINGER = 7.0


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A store with a run that waits, one with nothing to send, and one whose create was set aside."""
    path = tmp_path_factory.mktemp("together") / "runs.db"
    asyncio.run(_fill(path))
    with contextlib.closing(connect_writing(path)) as opened:
        yield opened


async def _fill(path: Path) -> None:
    async with open_desk(path) as desk:
        for name, answer in (("Synced", None), ("Failed", Refused(422, "no"))):
            await desk.store.accept_create(kickoff(name), AT)
            if answer is None:
                await desk.deliver_all()
            else:
                await desk.answer(await desk.claim(), answer)
        await desk.store.accept_create(kickoff("Waits"), AT)
        await desk.update(adding(WAITING, posts_harvested=1, key=Idempotency("before", "{}")))


values = st.sampled_from(["Running", "Completed", 'a "quoted"\\ text', "\u202eline\n\u0000\U0001f600", None])
parts = st.builds(
    Change,
    set=st.dictionaries(st.sampled_from(["status", "apify_status", "client_name"]), values, max_size=2),
    add=st.dictionaries(st.just("posts_harvested"), st.sampled_from([0, 1, -3, MAX_INTEGER]), max_size=1),
    append=st.dictionaries(st.just("progress_log"), st.just(("one", "", "two")), max_size=1),
)
keys = st.sampled_from([None, None, "before", "first", "second"])


@st.composite
def updates(draw: st.DrawFn) -> Update:
    change, key = draw(parts), draw(keys)
    run_id = draw(st.sampled_from([WAITING, SYNCED, FAILED, MISSING, OTHER]))
    return Update(run_id, change, None if key is None else Idempotency(key, change.to_json()))


def timed(several: Sequence[Update]) -> list[tuple[Update, When]]:
    return [(update, When.of(later(number), LINGER)) for number, update in enumerate(several)]


def rows(connection: sqlite3.Connection) -> Rows:
    tables = ("runs", "outbox", "idempotency_keys", "errors", "held_updates", "outbox_counts")
    return {
        table: [tuple(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")] for table in tables
    }


@contextlib.contextmanager
def undone(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def taken(
    connection: sqlite3.Connection, *calls: Sequence[tuple[Update, When]]
) -> tuple[list[UpdateOutcome], Rows] | type[Problem]:
    """What is answered and left by taking these one after another, or how one of them is refused."""
    with undone(connection):
        try:
            outcomes = [outcome for call in calls for outcome in accept_updates(connection, call)]
        except Problem as problem:
            return type(problem)
        return outcomes, rows(connection)


@settings(max_examples=examples(200))
@given(several=st.lists(updates(), max_size=12))
@example(several=[adding(WAITING, posts_harvested=2), adding(MISSING, posts_harvested=2)] * 3)
@example(several=[setting(SYNCED, status="Completed"), setting(SYNCED, status="Running"), setting(SYNCED)])
def test_together_they_leave_what_they_leave_one_by_one(
    connection: sqlite3.Connection, several: Sequence[Update]
) -> None:
    """Where one of them would be refused, all are: then the group commit takes each by itself."""
    assert taken(connection, timed(several)) == taken(connection, *([one] for one in timed(several)))


def test_a_key_that_comes_twice_at_once_counts_once(connection: sqlite3.Connection) -> None:
    same = adding(WAITING, posts_harvested=5, key=Idempotency("k", "a"))
    elsewhere = adding(SYNCED, posts_harvested=5, key=Idempotency("k", "b"))
    with undone(connection):
        first, second, third = accept_updates(connection, timed([same, same, elsewhere]))
        assert [type(first), type(second), type(third)] == [Queued, Duplicate, Queued]
        (total,) = connection.execute(
            "SELECT json_extract(fields, '$.posts_harvested') FROM runs WHERE run_id = ?", (WAITING,)
        ).fetchone()
        assert total == 6
    another = adding(WAITING, posts_harvested=6, key=Idempotency("k", "c"))
    assert taken(connection, timed([same, another])) is IdempotencyKeyReused


def test_ids_follow_the_order_in_which_they_came_however_long_they_are(connection: sqlite3.Connection) -> None:
    """More than one statement takes at once, in the middle of which are some that are held."""
    lines = Change(append={"progress_log": ("x" * (MOST_OF_A_BITE // 10),)})
    several = [Update(run_id, lines) for run_id in [WAITING, MISSING, SYNCED, FAILED] * 8]
    with undone(connection):
        outcomes = accept_updates(connection, timed(several))
        ids = [one.message_id for one in outcomes if isinstance(one, Queued)]
        found = connection.execute(
            "SELECT run_id, accepted_at FROM outbox WHERE id >= ? ORDER BY id", (ids[0],)
        ).fetchall()
    assert ids == list(range(ids[0], ids[0] + 24))
    assert len([one for one in outcomes if isinstance(one, Held)]) == 8
    queued = [(update.run_id, when.at) for update, when in timed(several) if update.run_id != MISSING]
    assert [tuple(row) for row in found] == queued
