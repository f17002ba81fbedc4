"""Troubles of the machine that pass: the loops live through them, and nothing is stuck afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING

from app.sandbox.apify_dispatch import Lose
from app.sandbox.apify_runs import Plan
from app.sandbox.faults import server_error
from app.sandbox.wire import hung
from app.store.sqlite.store import SqliteStore
from tests.support.harvesting import RUN, harvesting
from tests.support.watching import let_time_pass, rows, until
from tests.support.wire_by_hand import JumpingClock

if TYPE_CHECKING:
    from pathlib import Path

    from app.service import Service

MISSING = "251007-070457-Nobody"
A_DAY = 86_400.0


async def test_what_a_clock_put_off_that_is_set_back_by_days_is_done_within_an_hour(tmp_path: Path) -> None:
    """A run after a failed send, a batch that runs, a look for a missing run: by a clock two days ahead."""
    clock = JumpingClock()
    clock.jump(2 * A_DAY)
    async with harvesting(tmp_path, clock=clock, apify={"poll_interval_seconds": 5_000.0}) as field:
        field.apify.webhooks.treat(Lose(), times=None)
        field.sandbox.script = lambda _: Plan(lasts_seconds=None)
        store, airtable = field.house.store_path, field.house.airtable_server
        async with field.running() as service:
            await field.kick_off(["ann"])
            await let_time_pass(clock, lambda: field.batch().state == "running")
            await field.house.synced()
            airtable.faults.add(server_error(503), times=None)
            await field.house.call("PATCH", f"/runs/{RUN}", {"add": {"posts_scored": 2}})
            await let_time_pass(clock, lambda: rows(store, "SELECT failures > 0 FROM runs") == [(1,)], step=0.01)
            field.house.airtable.insert({"Run ID": MISSING})
            await field.house.call("PATCH", f"/runs/{MISSING}", {"add": {"posts_scored": 1}})
            clock.jump(-2 * A_DAY)
            airtable.faults.clear()
            field.sandbox.abort(field.apify_run().id, gracefully=False)
            await let_time_pass(clock, lambda: field.batch().outcome == "aborted", step=20.0, most=3_700.0)
            synced = "SELECT run_id FROM runs WHERE sync = 'synced' ORDER BY run_id"
            await let_time_pass(clock, lambda: rows(store, synced) == [(RUN,), (MISSING,)], step=1.0, most=60.0)
            assert not any(loop.done() for loop in service.loops)
    assert field.house.records()[RUN]["Posts Successfully Scored"] == 2
    assert field.house.records()[MISSING]["Posts Successfully Scored"] == 1


async def test_a_store_that_cannot_be_read_for_a_while_stops_no_loop(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with harvesting(tmp_path, clock=clock) as field, field.running() as service:
        field.house.airtable.insert({"Run ID": MISSING})
        await let_readers(service, sqlite3.SQLITE_DENY)
        await field.kick_off(["ann"])
        await field.house.call("PATCH", f"/runs/{MISSING}", {"add": {"posts_scored": 1}})
        await until(lambda: RUN in field.house.records())
        await let_time_pass(clock, lambda: clock.monotonic() > 100.0, step=1.0)
        assert not any(loop.done() for loop in service.loops)
        await let_readers(service, sqlite3.SQLITE_OK)
        await field.settled()
        await let_time_pass(clock, lambda: len(rows(field.house.store_path, "SELECT 1 FROM runs")) == 2, step=1.0)
        await field.synced()
    assert field.house.records()[MISSING]["Posts Successfully Scored"] == 1


async def let_readers(service: Service, may: int) -> None:
    """What SQLite says from now on to whoever reads a column over the reading connection."""
    assert isinstance(service.store, SqliteStore)

    def allow(action: int, *_: object) -> int:
        return may if action == sqlite3.SQLITE_READ else sqlite3.SQLITE_OK

    await service.store._reader.run_alone(lambda connection: connection.set_authorizer(allow))


async def test_a_harvest_loop_that_is_cancelled_lets_its_steps_end(tmp_path: Path) -> None:
    async with harvesting(tmp_path, sync={"shutdown_seconds": 0.1}) as field:
        field.apify.faults.add(hung(), method="POST")
        async with field.running() as service:
            await field.kick_off(["ann"])
            await until(lambda: len(field.starts()) == 1)
            (loop,) = [one for one in service.loops if one.get_name() == "HarvestLoop"]
            loop.cancel()
            await asyncio.wait([loop])
            assert [task for task in asyncio.all_tasks() if task.get_name().startswith("batch-")] == []
