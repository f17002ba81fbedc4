"""Updates that share their statements leave what they would have left one by one: answers, rows, and ids in order."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import IdempotencyKeyReused, Invalid, Problem
from app.fields import MAX_INTEGER, MAX_TEXT, Change
from app.model import Duplicate, Held, Idempotency, Kickoff, Queued, Update
from app.policy.delivery import Refused
from app.store.sqlite.connection import connect_writing
from app.store.sqlite.intake import MOST_OF_A_BITE, PORTION, When, accept_updates
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
LONG_RUNS = 128


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
) -> tuple[list[UpdateOutcome | str], Rows]:
    """What is answered, a refusal by its text, and left by taking these one after another."""
    with undone(connection):
        outcomes = [outcome for call in calls for outcome in accept_updates(connection, call)]
        return [str(one) if isinstance(one, Problem) else one for one in outcomes], rows(connection)


@settings(max_examples=examples(200))
@given(several=st.lists(updates(), max_size=12))
@example(several=[adding(WAITING, posts_harvested=2), adding(MISSING, posts_harvested=2)] * 3)
@example(several=[setting(SYNCED, status="Completed"), setting(SYNCED, status="Running"), setting(SYNCED)])
def test_together_they_leave_what_they_leave_one_by_one(
    connection: sqlite3.Connection, several: Sequence[Update]
) -> None:
    assert taken(connection, timed(several)) == taken(connection, *([one] for one in timed(several)))


def test_a_key_that_comes_twice_at_once_counts_once(connection: sqlite3.Connection) -> None:
    same = adding(WAITING, posts_harvested=5, key=Idempotency("k", "a"))
    elsewhere = adding(SYNCED, posts_harvested=5, key=Idempotency("k", "b"))
    another = adding(WAITING, posts_harvested=6, key=Idempotency("k", "c"))
    with undone(connection):
        outcomes = accept_updates(connection, timed([same, same, elsewhere, another]))
        assert [type(one) for one in outcomes] == [Queued, Duplicate, Queued, IdempotencyKeyReused]
        assert value(connection, WAITING, "posts_harvested") == 6


def test_nothing_is_kept_of_one_that_is_refused(connection: sqlite3.Connection) -> None:
    """Neither its sum nor its key, and of its neighbours all."""
    one, key = adding(WAITING, posts_harvested=1), Idempotency("k", "a")
    too_much = Update(WAITING, Change(set={"apify_status": "no"}, add={"posts_harvested": MAX_INTEGER}), key)
    again = adding(WAITING, posts_harvested=1, key=key)
    with undone(connection):
        outcomes = accept_updates(connection, timed([one, too_much, again]))
        assert [type(one) for one in outcomes] == [Queued, Invalid, Queued]
        assert value(connection, WAITING, "posts_harvested") == 3
        assert value(connection, WAITING, "apify_status") is None


@pytest.mark.parametrize("run_id", [WAITING, SYNCED])
def test_a_status_that_a_caller_sets_is_his_even_if_it_is_the_same(connection: sqlite3.Connection, run_id: str) -> None:
    """No event of a batch changes it from then on."""
    statement = "SELECT status_by FROM runs WHERE run_id = ?"
    with undone(connection):
        accept_updates(connection, timed([adding(run_id, posts_harvested=1)]))
        assert connection.execute(statement, (run_id,)).fetchone()[0] == "batches"
        accept_updates(connection, timed([setting(run_id, status="Running"), adding(run_id, posts_harvested=1)]))
        assert connection.execute(statement, (run_id,)).fetchone()[0] == "caller"


def test_ids_follow_the_order_in_which_they_came_however_long_they_are(connection: sqlite3.Connection) -> None:
    """Some are held in the middle; all are more than one portion, and those more than one statement takes at once."""
    lines = Change(append={"progress_log": ("x" * (MOST_OF_A_BITE // 10),)})
    several = [Update(run_id, lines) for run_id in [WAITING, MISSING, SYNCED, FAILED] * (PORTION // 2)]
    before = connection.execute("SELECT max(id) FROM outbox").fetchone()[0]
    with undone(connection):
        outcomes = accept_updates(connection, timed(several))
        found = connection.execute("SELECT id, run_id, accepted_at FROM outbox WHERE id > ? ORDER BY id", (before,))
        added = [tuple(row) for row in found]
    queued = [(update.run_id, when.at) for update, when in timed(several) if update.run_id != MISSING]
    assert added == [(before + number, *one) for number, one in enumerate(queued, 1)]
    assert [one.message_id for one in outcomes if isinstance(one, Queued)] == [number for number, *_ in added]
    assert len([one for one in outcomes if isinstance(one, Held)]) == PORTION // 2


@pytest.mark.parametrize(
    ("by_hand", "first"),
    [
        ("DELETE FROM sqlite_sequence", 5),
        ("UPDATE sqlite_sequence SET seq = 1", 5),
        ("UPDATE sqlite_sequence SET seq = 90", 91),
    ],
)
def test_an_id_is_given_once_whatever_a_hand_did_to_their_count(
    connection: sqlite3.Connection, by_hand: str, first: int
) -> None:
    with undone(connection):
        connection.execute(by_hand)
        outcomes = accept_updates(connection, timed([adding(WAITING, posts_harvested=1)] * 2))
        assert [one.message_id for one in outcomes if isinstance(one, Queued)] == [first, first + 1]


def test_long_fields_of_many_runs_do_not_stand_in_memory_together(tmp_path: Path) -> None:
    """As many as a group commit takes at once, each of a run with 300,000 characters: less than half are held."""
    asyncio.run(_fill_with_long_runs(tmp_path / "runs.db"))
    with contextlib.closing(connect_writing(tmp_path / "runs.db")) as connection, undone(connection):
        several = timed([adding(f"{JOB}-{number}", posts_harvested=1) for number in range(LONG_RUNS)])
        tracemalloc.start()
        try:
            assert len(accept_updates(connection, several)) == LONG_RUNS
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < LONG_RUNS * 300_000 / 2


async def _fill_with_long_runs(path: Path) -> None:
    async with open_desk(path) as desk:
        names = ("progress_log", "system_notes", "error_details")
        lines = Change(append=dict.fromkeys(names, ("x" * MAX_TEXT,)))
        for number in range(LONG_RUNS):
            await desk.store.accept_create(Kickoff(str(number), JOB, lines), AT)


def value(connection: sqlite3.Connection, run_id: str, name: str) -> str | int | None:
    found: str | int | None = connection.execute(
        "SELECT json_extract(fields, '$.' || ?) FROM runs WHERE run_id = ?", (name, run_id)
    ).fetchone()[0]
    return found
