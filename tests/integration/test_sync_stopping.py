"""The loop stops in good order, loses nothing when it cannot, and never dies unheard."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import TYPE_CHECKING

import pytest

from app.sandbox.faults import applied_then_hang, hung, slow
from tests.support.harness import Harness, harness
from tests.support.watching import meddle, rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.sandbox.faults import Fault


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Harness]:
    """It waits long for Airtable, but not when it is to stop."""
    async with harness(tmp_path, airtable={"timeout_seconds": 20}, sync={"shutdown_seconds": 0.3}) as made:
        yield made


async def test_a_stop_lets_the_call_that_is_under_way_land(house: Harness) -> None:
    house.airtable_server.faults.add(slow(0.5))
    async with house.running():
        run_id = await house.kick_off()
        await house.airtable_server.wait_for(lambda log: len(log) == 1)
    assert rows(house.store_path, "SELECT state FROM outbox") == [("delivered",)]
    assert rows(house.store_path, "SELECT outcome FROM airtable_calls") == [("ok",)]
    assert list(house.records()) == [run_id]


async def test_a_stop_begins_no_new_call(house: Harness) -> None:
    house.airtable_server.faults.add(slow(0.5))
    async with house.running():
        run_id = await house.kick_off()
        await house.airtable_server.wait_for(lambda log: len(log) == 1)
        assert (await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": 1}})).status == 202
    assert len(house.airtable_server.log) == 1
    assert rows(house.store_path, "SELECT kind, state FROM outbox ORDER BY id") == [
        ("create", "delivered"),
        ("update", "pending"),
    ]
    async with house.running():
        await house.synced()
    assert house.records()[run_id]["Total Posts Harvested"] == 1


@pytest.mark.parametrize("fault", [hung(), applied_then_hang()], ids=["not applied", "applied"])
async def test_a_call_that_hangs_is_given_up_in_time_and_nothing_is_lost(hasty: Harness, fault: Fault) -> None:
    hasty.airtable_server.faults.add(fault)
    async with hasty.running():
        run_id = await hasty.kick_off()
        await hasty.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": 2}})
        await hasty.airtable_server.wait_for(lambda log: len(log) == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 3.0
    await hasty.airtable_server.stop()  # lets the thread that was left behind end
    await hasty.airtable_server.start()
    async with hasty.running():
        await hasty.synced()
    assert hasty.records()[run_id]["Total Posts Harvested"] == 2
    assert rows(hasty.store_path, "SELECT DISTINCT state FROM outbox") == [("delivered",)]
    outcomes = rows(hasty.store_path, "SELECT outcome FROM airtable_calls ORDER BY id")
    assert (outcomes[0], outcomes[-1]) == (("interrupted",), ("ok",))


async def test_a_request_that_is_under_way_at_the_stop_is_answered_and_kept(house: Harness) -> None:
    async with house.running():
        answers = [asyncio.create_task(house.call("POST", "/runs", {"client_id": f"c{n}"})) for n in range(20)]
        first = await answers[0]
        assert first.status == 201
    kept = {row[0] for row in rows(house.store_path, "SELECT client_id FROM runs")}
    for number, answer in enumerate(await asyncio.gather(*answers, return_exceptions=True)):
        if not isinstance(answer, BaseException) and answer.status == 201:
            assert f"c{number}" in kept


BROKEN = (
    "CREATE TRIGGER broken BEFORE UPDATE OF state ON outbox WHEN new.state = '{}' BEGIN SELECT RAISE (ABORT, 'x'); END"
)


@pytest.mark.parametrize("state", ["sending", "delivered"])
async def test_a_loop_that_dies_of_a_bug_ends_the_service(house: Harness, state: str) -> None:
    """Serving on without delivering would look well from outside for days."""
    async with house.running() as service:
        ends = asyncio.create_task(service.until_a_loop_ends())
        await house.kick_off()
        await house.synced()
        assert not ends.done()
        meddle(house.store_path, BROKEN.format(state))
        await house.kick_off("Ann")
        async with asyncio.timeout(5):
            with pytest.raises(sqlite3.IntegrityError):
                await ends
    meddle(house.store_path, "DROP TRIGGER broken")
    async with house.running():
        await house.synced()
    assert "251007-070457-Ann" in house.records()


async def test_a_store_that_is_busy_for_a_while_delays_the_loop_and_does_not_end_it(house: Harness) -> None:
    """A person who writes in the sqlite3 shell, or a full disk: it passes."""
    async with house.running() as service:
        await house.kick_off()
        await house.synced()
        meddle(house.store_path, "ALTER TABLE airtable_calls RENAME TO elsewhere")
        await house.kick_off("Ann")
        await until(lambda: service.sync.trouble is not None)
        assert not any(loop.done() for loop in service.loops)
        assert (await house.call("GET", "/readyz")).status == 503
        meddle(house.store_path, "ALTER TABLE elsewhere RENAME TO airtable_calls")
        await house.synced()
        assert (await house.call("GET", "/readyz")).status == 200
    assert "251007-070457-Ann" in house.records()
