"""The store's file: one process writes it, others read beside it, a backup is a store, and no question scans it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
from typing import TYPE_CHECKING

import pytest

from app.errors import StoreError
from app.policy.delivery import Refused
from app.store.sqlite import (
    activity,
    batches,
    consistency,
    counting,
    delivery,
    harvest,
    intake,
    missing,
    prune,
    reading,
    replay,
    troubles,
    webhooks,
)
from app.store.sqlite.opening import hold_lock, open_reading
from app.store.views import DecisionFilter, ErrorFilter, MessageFilter, RunFilter, Slice
from tests.support.stores import JOB, Desk, adding, kickoff, later, open_desk, setting, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

RUN = f"{JOB}-Guy"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "runs.db") as opened:
        yield opened


# Who may open it ------------------------------------------------------------------------------------------------

OPEN_FOR_WRITING = """
import asyncio, pathlib, sys
from app.store.sqlite.opening import hold_lock
try:
    with hold_lock(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


async def another_process(path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OPEN_FOR_WRITING,
        str(path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def test_a_second_process_is_refused_while_the_first_writes(desk: Desk) -> None:
    other = await another_process(desk.path)
    said, _ = await other.communicate()
    assert b"another process writes" in said
    assert b"runs.db" in said


async def test_a_store_that_another_process_holds_is_not_opened_here(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    other = await another_process(path)
    assert other.stdout is not None
    assert await other.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match="another process writes"):
        async with open_desk(path):
            pass
    other.kill()  # even so the right is free again
    await other.communicate()
    async with open_desk(path) as desk:
        await desk.kick_off()


def test_the_lock_is_free_again_after_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with hold_lock(tmp_path / "runs.db"):
            pass


async def test_a_folder_that_cannot_be_made_is_told_plainly(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be opened"):
        async with open_desk(tmp_path / "data" / "runs.db"):
            pass


async def test_the_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    async with open_desk(tmp_path / "new" / "data" / "runs.db") as desk:
        await desk.kick_off()


# Reading beside the writer --------------------------------------------------------------------------------------


async def test_a_reader_beside_the_writer_sees_what_is_committed(desk: Desk) -> None:
    async with open_reading(desk.path) as beside:
        assert await beside.run(RUN) is None
        await desk.kick_off()
        assert (await beside.run(RUN)) == (await desk.store.run(RUN))
        await desk.update(adding(RUN, posts_harvested=1))
        seen = await beside.run(RUN)
        assert seen is not None
        assert seen.fields["posts_harvested"] == 1


async def test_a_reader_opens_a_store_that_nobody_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with open_desk(path) as desk:
        await desk.kick_off()
    async with open_reading(path) as alone:
        assert await alone.run(RUN) is not None


async def test_where_no_store_is_a_reader_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        async with open_reading(tmp_path / "runs.db"):
            pass
    assert list(tmp_path.iterdir()) == []


# Backup ---------------------------------------------------------------------------------------------------------


async def test_a_backup_taken_during_writes_opens_as_a_store(desk: Desk, tmp_path: Path) -> None:
    await desk.kick_off()
    copy = tmp_path / "copy.db"
    async with open_reading(desk.path) as beside:
        await asyncio.gather(beside.backup(copy), *[desk.update(adding(RUN, posts_harvested=1)) for _ in range(20)])
    async with open_desk(copy) as restored:
        run = await restored.store.run(RUN)
        assert run is not None
        assert await restored.deliver_all() == 1
        assert restored.rows("PRAGMA integrity_check") == [("ok",)]
        with pytest.raises(sqlite3.IntegrityError), contextlib.closing(sqlite3.connect(copy)) as by_hand:
            by_hand.execute("DELETE FROM runs")  # its triggers came along
    assert (await desk.store.stats(later(0))).pending == 21  # the original is as it was


async def test_a_backup_never_writes_over_a_file(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_text("precious")
    with pytest.raises(FileExistsError):
        await desk.store.backup(tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "precious"


# What was answered stays ----------------------------------------------------------------------------------------


async def test_all_is_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with open_desk(path) as desk:
        await desk.kick_off()
        await desk.update(setting(RUN, status="Completed"))
        before = await desk.store.run(RUN)
    async with open_desk(path) as desk:
        assert await desk.store.run(RUN) == before
        assert not (await desk.store.accept_create(kickoff(), later(9))).created


# Query plans ----------------------------------------------------------------------------------------------------

#: Walks of a partial index that holds only what is open, of a table with a row a day (or one row at all), or of the
#: newest rows up to a limit, cost nothing to speak of.
CHEAP = (
    "airtable_calls_in_flight",
    "runs_undue",
    "held_updates_waiting",
    "batches_active",
    "SCAN repeated_kickoffs",
    "SCAN creations_by_day",
    "SCAN creation_stats",
    "SCAN outbox_counts",
    "SCAN sqlite_sequence",
    "SCAN call_budget",
    "SCAN checks",
    "pragma_",
    "CONSTANT ROW",  # and ROWS
    "SCAN lane",
    "json_each",
    "VIRTUAL TABLE",
    "SCAN (subquery",
    "SCAN ours",  # the messages of one run, found by the searches before it
    "SCAN waiting",  # the rows that a statement brings along
    "SCAN run_timeline",  # the rows of one run, found by the searches before it
)


def scans(connection: sqlite3.Connection, sql: str) -> list[str]:
    """The steps of a statement's plan that go through a whole table or index."""
    connection.row_factory = None
    named = [part.split()[0].strip(",)\n;") for part in sql.split(":")[1:] if part[:1].isalpha()]
    values: dict[str, None] | list[None] = dict.fromkeys(named) if named else [None] * sql.count("?")
    plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
    return [step for *_, step in plan if step.startswith("SCAN") and not any(cheap in step for cheap in CHEAP)]


ON_THE_WAY = {
    "claim": [
        delivery.SELECT_LANE,
        delivery.SELECT_DUE,
        delivery.CLAIM_MESSAGES,
        delivery.CLAIM_RUN,
    ],
    "settle": [
        delivery.FINISH_CALL,
        delivery.SELECT_OWNER,
        delivery.SELECT_SENDING,
        delivery.KNOW_RECORD,
        delivery.DELIVER,
        delivery.UPDATES_WAIT_AGAIN,
        delivery.CREATE_WAITS_AGAIN,
        delivery.SET_ASIDE,
        delivery.REST_RUN,
    ],
    "recover": [
        delivery.INTERRUPT_CALLS,
        delivery.RECOVER_MESSAGES,
        delivery.RECOVER_RUNS,
        delivery.RECOVER_FAR_RUNS,
        missing.RECOVER_FAR_LOOKS,
        missing.RECOVER_FAR_RECORD_LOOKS,
        delivery.RECOVER_UNDUE_RUNS,
    ],
    "accept a create": [
        intake.SELECT_RUN_NAMES,
        intake.SELECT_KEY,
        intake.SELECT_HELD,
        intake.MARK_APPLIED,
        intake.RESOLVE_MISSING,
        webhooks.SELECT_HELD_EVENTS,
    ],
    "accept updates": [
        intake.SELECT_KEYS,
        intake.SELECT_FOLDS,
        intake.UPDATE_FOLD,
        intake.UPDATE_WAITING.format(rows=", ".join([intake.ROW_OF_FOLD] * 3)),
        intake.INSERT_UPDATES.format(rows=", ".join([intake.ROW_OF_UPDATE] * 3)),
        intake.INSERT_KEYS,
        intake.LAST_MESSAGE,
    ],
    "hold": [intake.SELECT_MISSING, intake.COUNT_ERROR, intake.SELECT_OF_JOB, intake.SELECT_OF_CLIENT],
    "accept a webhook": [
        webhooks.COUNT_DELIVERY,
        webhooks.SELECT_SAME_EVENT,
        webhooks.BATCH_BY_TOKEN,
        webhooks.BATCH_BY_APIFY_RUN,
        webhooks.SELECT_UNMATCHED,
        webhooks.RESOLVE_UNMATCHED,
    ],
    "harvest": [
        harvest.SELECT_NEXT_DUE,
        harvest.CLAIM_DUE,
        harvest.MARK_STARTING,
        harvest.MARK_CLAIMED,
        harvest.SELECT_TAKEN,
        harvest.RECOVER_FAR_BATCHES,
        harvest.RECOVER_STARTS,
        harvest.RECOVER_BATCHES,
        batches.BATCHES_OF_RUN,
        batches.UPDATE_BATCH,
    ],
    "replay": [replay.SELECT_DEAD, replay.REVIVE, replay.LOOK_FOR_RECORD, replay.LOOK_FOR_RECORDS, replay.WAKE_RUN],
    "meet and end troubles": [
        troubles.SELECT_OPEN,
        troubles.COUNT_AGAIN,
        troubles.RESOLVE_DELIVERED,
        troubles.RESOLVE_SEEN,
    ],
    "look for lost records": [missing.SELECT_DUE_RECORD_LOOKS, missing.SELECT_DEAD_OF_LOST, missing.NOTE_LINK],
    "show a run": [reading.SELECT_RUN, reading.SELECT_BATCHES, reading.SELECT_RUN_ERRORS, reading.SELECT_TIMELINE],
    "show a message": [reading.SELECT_MESSAGE],
    "prune": [
        prune.SELECT_DELIVERED,
        prune.DELETE_MESSAGES,
        prune.DELETE_CALLS,
        prune.EMPTY_WEBHOOKS,
        prune.DELETE_KEYS,
        prune.SELECT_FREE,
    ],
    "count": [sql for name, sql in vars(counting).items() if name.startswith(("COUNT_", "SELECT_"))],
    "check": [consistency.SELECT_DELIVERED],
    "plot": [
        activity.FIRST_ID,
        activity.LAST_ID,
        activity.MIDDLE,
        activity.COUNT_DELIVERED,
        activity.COUNT_DEAD,
        activity.SELECT_TIMES,
    ],
}


@pytest.mark.parametrize("unit", ON_THE_WAY)
async def test_no_unit_scans_a_table(desk: Desk, unit: str) -> None:
    with contextlib.closing(sqlite3.connect(desk.path)) as connection:
        assert {sql: found for sql in ON_THE_WAY[unit] if (found := scans(connection, sql))} == {}


async def test_what_of_a_run_never_arrived_is_found_in_one_walk_through_its_messages(desk: Desk) -> None:
    """Four times the messages, and four times the dead ones, cost four times as much, and not sixteen times."""

    async def steps(client_id: str, count: int) -> int:
        run_id = await desk.kick_off(client_id)
        await desk.deliver_all()
        refused = Refused(422, "no", field="status")
        for update, answer in ((setting(run_id, status="No"), refused), (setting(run_id, note="x"), None)):
            for _ in range(count):
                await desk.update(update)
            claim = await desk.claim()
            await desk.answer(claim, answer or written(claim))
        counted = 0

        def count_one() -> None:
            nonlocal counted
            counted += 1

        with contextlib.closing(sqlite3.connect(desk.path)) as connection:
            connection.row_factory = sqlite3.Row
            connection.set_progress_handler(count_one, 10)
            (found,) = consistency.delivered(connection, [f"rec-{run_id}"]).values()
        assert found.values["note"] == "x"
        assert "status" not in found.values
        return counted

    assert await steps("Ann", 200) < 8 * await steps("Bob", 50)


@pytest.mark.parametrize(
    ("table", "chosen"),
    [
        ("runs", RunFilter(client_id="Guy")),
        ("runs", RunFilter(job_id=JOB)),
        ("runs", RunFilter(status="Running")),
        ("runs", RunFilter(sync="failed")),
        ("outbox", MessageFilter(state="pending")),
        ("outbox", MessageFilter(state="dead")),
        ("outbox", MessageFilter(state="delivered")),
        ("outbox", MessageFilter(kind="create")),
        ("outbox", MessageFilter(run_id=RUN)),
        ("errors", ErrorFilter(kind="rejected", state="open")),
        ("errors", ErrorFilter(state="open")),
        ("errors", ErrorFilter(run_id=RUN)),
        ("errors", ErrorFilter(client_id="Guy")),
        ("runs", RunFilter(status="Failed", sync="synced")),
        ("decisions", DecisionFilter(message_id=1)),
        ("decisions", DecisionFilter(error_id=1)),
        ("decisions", DecisionFilter(action="check")),
    ],
)
async def test_no_listing_by_filter_scans_a_table(
    desk: Desk, table: str, chosen: RunFilter | MessageFilter | ErrorFilter | DecisionFilter
) -> None:
    """The statements that a listing really runs, as the connection saw them."""
    ran: list[str] = []
    with contextlib.closing(sqlite3.connect(desk.path)) as connection:
        connection.row_factory = sqlite3.Row
        connection.set_trace_callback(ran.append)
        match chosen:
            case RunFilter():
                reading.runs(connection, chosen, Slice(before=7))
            case MessageFilter():
                reading.messages(connection, chosen, Slice(before=7))
            case ErrorFilter():
                reading.errors(connection, chosen, Slice(before=7))
            case DecisionFilter():
                reading.decisions(connection, chosen, Slice(before=7))
        connection.set_trace_callback(None)
        (statement,) = [one for one in ran if one.lstrip().startswith("SELECT")]
        connection.row_factory = None
        plan = [step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()]
    assert [step for step in plan if step.startswith("SCAN")] == []
    assert plan[0].startswith(f"SEARCH {table} USING")
    assert "USING INTEGER PRIMARY KEY (rowid<?)" not in plan[0]  # a walk through all that is older
