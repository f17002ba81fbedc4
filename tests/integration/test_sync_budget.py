"""The month's calls: who waits when they run short, who does not, and where it is said."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from app.clock import iso
from app.sandbox.hand_clock import START, HandClock
from tests.support.harness import Harness, harness
from tests.support.watching import calls, let_time_pass, meddle, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json

# At the clock's start 15.375 of May's 31 days have passed: of 76 ordinary calls 37 may have been spent by then.
BUDGET = 80
UNTIL_41_SPENT = iso(START.replace(day=1, hour=0) + timedelta(days=31) * (42 / 76))
SPENT = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO airtable_calls (method, outcome, records, messages, started_at, finished_at)
SELECT 'update', 'ok', 1, 1, ?, ? FROM n
"""
NEXT_MONTH = START.replace(month=6, day=1, hour=0)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def house(tmp_path: Path, clock: HandClock) -> AsyncIterator[Harness]:
    """A store with one delivered run, and a budget; the service is not running."""
    async with harness(tmp_path, clock=clock, airtable={"monthly_call_budget": BUDGET}) as made:
        async with made.running():
            await made.kick_off()
            await made.synced()
        yield made


def spend(house: Harness, upto: int) -> None:
    """Let that many calls of this month have been made."""
    (used,) = rows(house.store_path, "SELECT sum(calls) FROM airtable_calls_by_day")[0]
    assert isinstance(used, int)
    at = iso(START.replace(day=5))
    meddle(house.store_path, SPENT, upto - used, at, at)


async def update(house: Harness) -> None:
    answer = await house.call("PATCH", "/runs/251007-070457-Guy-Wilson", {"add": {"posts_scored": 1}})
    assert answer.status == 202


async def budget(house: Harness) -> dict[str, Json]:
    counted = (await house.call("GET", "/stats")).json()["calls_this_month"]
    assert isinstance(counted, dict)
    return counted


def sent(house: Harness) -> list[list[str]]:
    """The run ids of every call."""
    return [call.run_ids for call in calls(house.airtable_server.log)]


def held_by(house: Harness) -> list[str]:
    return [str(row[0]) for row in rows(house.store_path, "SELECT waits_for FROM pending_sync ORDER BY message_id")]


async def test_updates_wait_for_company_when_the_month_would_not_last_and_creates_do_not(
    house: Harness, clock: HandClock
) -> None:
    spend(house, 40)
    async with house.running():
        for _ in range(5):
            await update(house)
        created = await house.kick_off("Ann")
        stretched = f"waits until {UNTIL_41_SPENT}, for company: at this pace the month's calls would not last"
        await let_time_pass(clock, lambda: created in house.records() and held_by(house) == [stretched] * 5, step=0.5)
        counted = await budget(house)
        assert (counted["total"], counted["budget"], counted["state"]) == (41, BUDGET, "stretched")
        assert counted["forecast"] == 83
        assert (await house.call("GET", "/readyz", token=None)).status == 200
        assert counted["updates_wait_until"] == UNTIL_41_SPENT
        before = len(house.airtable_server.log)
        await let_time_pass(clock, lambda: not held_by(house), step=3600.0, most=1e7)
        assert len(house.airtable_server.log) == before + 1  # all five in one call
        assert iso(clock.now()) >= UNTIL_41_SPENT
        assert house.records()["251007-070457-Guy-Wilson"]["Posts Successfully Scored"] == 5


async def test_the_last_calls_are_kept_for_creates_and_errors(house: Harness, clock: HandClock) -> None:
    spend(house, 76)
    async with house.running():
        await update(house)
        created = await house.kick_off("Ann")
        await house.call("PATCH", "/runs/251007-070457-Nobody", {"add": {"posts_scored": 1}})
        log = house.airtable_server.log
        await let_time_pass(clock, lambda: created in house.records() and log[-1].method == "GET", step=0.5)
        ready = await house.call("GET", "/readyz", token=None)
        assert ready.status == 503
        assert "kept for creates and errors" in ready.text
        (held,) = held_by(house)
        assert (
            held == f"waits until {iso(NEXT_MONTH)}: what is left of the month's calls is kept for creates and errors"
        )
        report = (await house.call("POST", "/check")).json()
        assert "kept for creates and errors" in str(report["trouble"])
        assert (await budget(house))["total"] in {78, 79}  # the create, and one look or two


async def test_nothing_passes_the_budget_and_the_next_month_begins_anew(house: Harness, clock: HandClock) -> None:
    spend(house, 80)
    async with house.running() as service:
        before = len(house.airtable_server.log)
        await update(house)
        created = await house.kick_off("Ann")
        clock.pass_time(86_400)
        await let_time_pass(clock, lambda: service.sync.shortage is not None, step=60.0)
        assert len(house.airtable_server.log) == before
        assert held_by(house) == [f"waits until {iso(NEXT_MONTH)}: the month's calls are used up"] * 2
        clock.pass_time((NEXT_MONTH - clock.now()).total_seconds())
        await let_time_pass(clock, lambda: not held_by(house), step=60.0)
        assert created in house.records()
        assert (await budget(house))["total"] == 2
        assert (await house.call("GET", "/readyz", token=None)).status == 200


async def test_a_look_that_waits_for_the_next_month_alone_is_made_when_that_comes(
    house: Harness, clock: HandClock
) -> None:
    """Nothing else is due then, and nothing else would wake the loop."""
    spend(house, 80)
    async with house.running() as service:
        log = house.airtable_server.log
        before = len(log)
        await house.call("PATCH", "/runs/251007-070457-Nobody", {"add": {"posts_scored": 1}})
        await let_time_pass(clock, lambda: service.sync.shortage is not None, step=60.0)
        await let_time_pass(clock, lambda: len(log) > before, step=3600.0, most=3e6)
        assert log[-1].method == "GET"
        assert clock.now() >= NEXT_MONTH


async def test_a_higher_budget_lets_go_what_waited(house: Harness, clock: HandClock) -> None:
    spend(house, 76)
    async with house.running():
        await update(house)
    house.settings = house.settings.model_copy(
        update={"airtable": house.settings.airtable.model_copy(update={"monthly_call_budget": 1_000})}
    )
    async with house.running():
        await let_time_pass(clock, lambda: not held_by(house), step=0.5)
        assert (await budget(house))["state"] == "ample"
