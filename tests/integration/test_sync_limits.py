"""Airtable says wait: its rate, its month, its absence. By a clock that is moved by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_errors import RateLimitForm, quota_exceeded, rate_limited
from app.sandbox.faults import dropped, server_error
from app.sandbox.hand_clock import HandClock
from tests.support.harness import Harness, harness
from tests.support.watching import let_time_pass, meddle, rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def house(tmp_path: Path, clock: HandClock) -> AsyncIterator[Harness]:
    sync: dict[str, Json] = {"backoff_base_seconds": 1.0, "backoff_max_seconds": 900.0}
    async with harness(tmp_path, clock=clock, sync=sync) as made:
        yield made


def calls_made(house: Harness) -> int:
    return len(rows(house.store_path, "SELECT id FROM airtable_calls WHERE outcome <> 'in_flight'"))


async def ready(house: Harness) -> tuple[int, dict[str, Json]]:
    answer = await house.call("GET", "/readyz", token=None)
    return answer.status, answer.json()


def assert_rested_thirty_seconds(house: Harness) -> None:
    """Between two requests: as the base saw it no less, and as the service kept it no more.

    While the second is on its way the hand goes on moving the clock, and the faster the busier the machine is.
    """
    first, second = house.airtable_server.log
    assert second.received_at - first.received_at >= 30.0
    query = "SELECT (julianday(max(started_at)) - julianday(min(finished_at))) * 86400 FROM airtable_calls"
    [(rested,)] = rows(house.store_path, query)
    assert isinstance(rested, float)
    assert rested < 32.0


@pytest.mark.parametrize("form", list(RateLimitForm))
async def test_after_a_429_the_base_rests_thirty_seconds_and_no_attempt_is_lost(
    house: Harness, clock: HandClock, form: RateLimitForm
) -> None:
    house.airtable_server.faults.add(rate_limited(form))
    async with house.running():
        run_id = await house.kick_off()
        await until(lambda: calls_made(house) == 1)
        assert rows(house.store_path, "SELECT state, attempts FROM outbox") == [("pending", 0)]
        await house.kick_off("Ann")  # a new message wakes the loop, and must not end the rest
        await let_time_pass(clock, lambda: len(house.airtable_server.log) > 1, step=0.25)
        await house.synced()
        assert (await ready(house))[0] == 200
    assert_rested_thirty_seconds(house)
    assert sorted(house.records()) == ["251007-070457-Ann", run_id]
    assert rows(house.store_path, "SELECT outcome, status FROM airtable_calls") == [("rate_limited", 429), ("ok", 200)]


async def test_the_pause_after_a_429_outlives_a_restart(house: Harness, clock: HandClock) -> None:
    house.airtable.exhaust_rate()
    async with house.running():
        await house.kick_off()
        await until(lambda: calls_made(house) == 1)
    clock.pass_time(10)
    async with house.running():
        await let_time_pass(clock, lambda: len(house.airtable_server.log) > 1, step=0.25)
        await house.synced()
    assert_rested_thirty_seconds(house)
    assert house.airtable_server.log[1].status == 200


async def test_a_clock_that_was_set_back_does_not_lengthen_the_pause_after_a_429(
    house: Harness, clock: HandClock
) -> None:
    house.airtable.exhaust_rate()
    async with house.running():
        await house.kick_off()
        await until(lambda: calls_made(house) == 1)
    tomorrow = "2026-05-17T09:00:00.000Z"
    meddle(house.store_path, "UPDATE airtable_calls SET started_at = ?, finished_at = ?", tomorrow, tomorrow)
    meddle(house.store_path, "UPDATE runs SET due_at = ?", tomorrow)
    async with house.running() as service:
        assert 30.0 <= service.sync.rests_for < 32.0
        await let_time_pass(clock, lambda: len(house.airtable_server.log) > 1, step=0.25, most=40.0)
        await house.synced()


async def test_when_the_month_is_used_up_all_is_parked_said_and_taken_up_again(
    house: Harness, clock: HandClock
) -> None:
    house.airtable_server.faults.add(quota_exceeded(), times=2)
    async with house.running():
        run_id = await house.kick_off()
        await until(lambda: calls_made(house) == 1)
        status, body = await ready(house)
        assert status == 503
        assert (body["accepting"], body["syncing"]) == (True, False)
        assert "monthly calls are used up" in str(body["reasons"])
        assert (await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": 1}})).status == 202
        assert set(rows(house.store_path, "SELECT state, attempts FROM outbox")) == {("pending", 0)}
        await let_time_pass(clock, lambda: calls_made(house) == 2, step=20.0)
        await let_time_pass(clock, lambda: calls_made(house) == 3, step=20.0)
        await house.synced()
        assert (await ready(house))[0] == 200
    first, second, third = (one.received_at for one in house.airtable_server.log)
    assert second - first >= 3600
    assert third - second >= 3600
    assert house.records()[run_id]["Total Posts Harvested"] == 1
    assert rows(house.store_path, "SELECT count(*) FROM errors") == [(0,)]


async def test_a_base_that_is_down_is_asked_ever_more_seldom_and_nothing_is_lost(
    house: Harness, clock: HandClock
) -> None:
    down = house.airtable_server.faults.add(dropped(), times=None)
    async with house.running():
        run_ids = [await house.kick_off(f"client{number}") for number in range(30)]
        for run_id in run_ids:
            await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": 1}})
        end = clock.monotonic() + 600
        await let_time_pass(clock, lambda: clock.monotonic() > end, step=0.5)
        times = [one.received_at for one in house.airtable_server.log]
        assert len(times) < 45  # 1,200 and more by the limit of five a second
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert max(gaps[-5:]) > 5 * max(*gaps[:5], 0.5)
        status, body = await ready(house)
        assert status == 503
        assert "not answered soundly" in str(body["reasons"])
        down.left = 0
        await let_time_pass(clock, lambda: len(house.airtable.records()) == 30, step=0.5)
        await let_time_pass(clock, lambda: rows(house.store_path, "SELECT 1 FROM pending_sync") == [], step=0.5)
        assert (await ready(house))[0] == 200
    assert {cells["Total Posts Harvested"] for cells in house.records().values()} == {1}
    assert rows(house.store_path, "SELECT count(*) FROM errors") == [(0,)]


async def test_a_base_that_was_down_is_caught_up_with_in_the_order_of_acceptance(
    house: Harness, clock: HandClock
) -> None:
    async with house.running():
        run_id = await house.kick_off()
        await house.synced()
        down = house.airtable_server.faults.add(dropped(), times=None)
        for name in ("first", "second", "third"):
            await house.call(
                "PATCH", f"/runs/{run_id}", {"set": {"client_name": name}, "append": {"progress_log": name}}
            )
        end = clock.monotonic() + 60
        await let_time_pass(clock, lambda: clock.monotonic() > end, step=0.5)
        down.left = 0
        await let_time_pass(clock, lambda: rows(house.store_path, "SELECT 1 FROM pending_sync") == [], step=0.5)
    assert house.records()[run_id]["Client Name"] == "third"
    assert house.records()[run_id]["Progress Log"] == "first\nsecond\nthird"


async def test_a_503_is_asked_again_when_it_said_and_not_before(house: Harness, clock: HandClock) -> None:
    house.airtable_server.faults.add(server_error(503, 20))
    async with house.running():
        run_id = await house.kick_off()
        await until(lambda: calls_made(house) == 1)
        await let_time_pass(clock, lambda: calls_made(house) == 2, step=0.25)
        await house.synced()
    first, second = house.airtable_server.log
    assert 20.0 <= second.received_at - first.received_at < 23.0
    assert list(house.records()) == [run_id]


async def test_a_retry_after_beyond_all_reason_is_not_believed(house: Harness, clock: HandClock) -> None:
    house.airtable_server.faults.add(server_error(503, 10**30))
    async with house.running():
        run_id = await house.kick_off()
        await until(lambda: calls_made(house) == 1)
        await let_time_pass(clock, lambda: calls_made(house) == 2, step=20.0)
        await house.synced()
    assert house.airtable_server.log[1].received_at <= 4_000
    assert list(house.records()) == [run_id]


async def test_a_token_that_is_refused_uses_no_attempt_and_is_said(house: Harness, clock: HandClock) -> None:
    house.airtable.scopes = ("data.records:read",)
    async with house.running():
        run_id = await house.kick_off()
        await until(lambda: calls_made(house) == 1)
        status, body = await ready(house)
        assert (status, "denies access (403)" in str(body["reasons"])) == (503, True)
        end = clock.monotonic() + 600
        await let_time_pass(clock, lambda: clock.monotonic() > end, step=0.5)
        await until(lambda: rows(house.store_path, "SELECT state, attempts FROM outbox") == [("pending", 0)])
        assert len(house.airtable_server.log) < 20
        house.airtable.scopes = ("data.records:read", "data.records:write")
        await let_time_pass(clock, lambda: run_id in house.records(), step=0.5)
        await house.synced()
        assert (await ready(house))[0] == 200


async def test_out_of_attempts_a_message_is_set_aside_with_its_cause(tmp_path: Path, clock: HandClock) -> None:
    async with harness(tmp_path, clock=clock, sync={"max_attempts": 4, "backoff_base_seconds": 1.0}) as house:
        house.airtable_server.faults.add(server_error(500), times=None)
        async with house.running():
            run_id = await house.kick_off()
            await let_time_pass(clock, lambda: rows(house.store_path, "SELECT 1 FROM errors") != [], step=0.25)
    assert len(house.airtable_server.log) == 4
    error = rows(house.store_path, "SELECT kind, run_id, message, cause FROM errors")[0]
    assert error[:2] == ("rejected", run_id)
    assert "after 4 attempts" in str(error[2])
    assert "500" in str(error[3])


async def test_an_outage_wears_nothing_out_however_long_it_is(tmp_path: Path, clock: HandClock) -> None:
    """A day and a half of it, first behind a gateway and then without an answer; then all goes on by itself."""
    sync = {"max_attempts": 4, "backoff_max_seconds": 900.0}
    async with harness(tmp_path, clock=clock, sync=sync) as house, house.running():
        run_id = await house.kick_off()
        await house.synced()
        await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": 7}})
        for fault in (server_error(503), dropped()):
            house.airtable_server.faults.clear()
            house.airtable_server.faults.add(fault, times=None)
            end = clock.monotonic() + 64_800
            await let_time_pass(clock, lambda end=end: clock.monotonic() > end, step=300.0, most=70_000.0)  # type: ignore[misc]
        assert rows(house.store_path, "SELECT count(*) > 50 FROM airtable_calls WHERE outcome = 'unknown'") == [(1,)]
        assert rows(house.store_path, "SELECT count(*) FROM errors") == [(0,)]
        house.airtable_server.faults.clear()
        await let_time_pass(clock, lambda: house.records()[run_id].get("Total Posts Harvested") == 7, step=5.0)
