"""The consistency check when the wire misbehaves, the base is busy, or the service stops; and how much it asks."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING

import pytest

from app.clock import SystemClock, parse_iso
from app.sandbox.airtable import READ, SCHEMA, WRITE
from app.sandbox.airtable_errors import quota_exceeded, rate_limited
from app.sandbox.airtable_limits import NO_LIMITS, Limits
from app.sandbox.faults import Fault, dropped, hung, odd_body, server_error, slow, truncated
from app.sandbox.hand_clock import START, HandClock
from app.store.sqlite import connection
from tests.support.checking import JOB, causes, check, errors, fill, found, log_of, record_id, spoil
from tests.support.harness import Harness, QuickClock, harness
from tests.support.watching import let_time_pass, most_in_any_second, rows, until, waits_for_long
from tests.support.wire_by_hand import JumpingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.clock import Clock
    from app.model import Json
    from app.sandbox.messages import WireRequest

GUY = f"{JOB}-Guy"
SHORT_PAUSES: dict[str, Json] = {"rate_limit_pause_seconds": 0.2, "quota_pause_seconds": 0.2}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Harness]:
    """A store of 250 delivered runs, three pages, at a base that takes whatever comes."""
    async with filled(tmp_path, SystemClock(), 1.0) as made:
        yield made


@pytest.fixture
async def quick_house(tmp_path: Path) -> AsyncIterator[Harness]:
    """The same in a time that runs quickly."""
    async with filled(tmp_path, QuickClock(5), 0.5) as made:
        yield made


@contextlib.asynccontextmanager
async def filled(folder: Path, clock: Clock, timeout_seconds: float) -> AsyncIterator[Harness]:
    airtable: dict[str, Json] = {"requests_per_second": 50, "timeout_seconds": timeout_seconds}
    async with harness(folder, clock=clock, airtable=airtable, sync=SHORT_PAUSES) as made:
        made.airtable.limits = NO_LIMITS
        async with made.running():
            pass
        fill(made, 250)
        yield made


FAULTS = {
    "429": rate_limited(),
    "quota": quota_exceeded(),
    "500": server_error(500),
    "503 with Retry-After": server_error(503, 1),
    "dropped": dropped(),
    "hung": hung(),
    "truncated": truncated(),
    "no JSON": odd_body(b"<html>"),
    "no records": odd_body(b"{}"),
}
PAGE_BEFORE_ITSELF = b'{"records": [{"id": "rec00000000000001", "fields": {}}], "offset": "same"}'


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("after", [1, 2, 4], ids=["first page", "second page", "find"])
async def test_a_failure_waits_and_the_check_goes_on(quick_house: Harness, fault: Fault, after: int) -> None:
    expected = spoil(quick_house)
    quick_house.airtable_server.faults.add(fault, after=after)
    async with quick_house.running():
        report = await check(quick_house)
    assert found(report) == expected
    assert quick_house.airtable_server.faults.pending == 0
    assert (report["pages"], report["calls"]) == (4, 6)
    assert rows(quick_house.store_path, "SELECT count(*) FROM airtable_calls") == [(6,)]


@pytest.mark.parametrize("fault", [rate_limited(), server_error(500), dropped()], ids=["429", "500", "dropped"])
async def test_failures_in_the_middle_of_everything_change_no_finding(quick_house: Harness, fault: Fault) -> None:
    expected = spoil(quick_house)
    for after in (0, 2, 4, 5, 7):
        quick_house.airtable_server.faults.add(fault, after=after)
    async with quick_house.running():
        assert found(await check(quick_house)) == expected
        assert found(await check(quick_house)) == expected
    assert len(errors(quick_house)) == 4


async def test_an_outage_is_waited_for(house: Harness) -> None:
    expected = spoil(house)
    await house.airtable_server.stop()
    async with house.running() as service:
        checking = asyncio.create_task(check(house))
        await until(lambda: service.sync.trouble is not None)
        assert not checking.done()
        await house.airtable_server.start()
        assert found(await checking) == expected


async def test_an_expired_listing_starts_again(house: Harness) -> None:
    expected = spoil(house)
    house.airtable_server.latency = 0.1
    async with house.running():
        checking = asyncio.create_task(check(house))
        await house.airtable_server.wait_for(lambda log: len(log) == 3)
        house.airtable.delete(house.airtable.records()[0].id)  # was read already, and is gone when it is read again
        house.airtable.expire_listings()
        report = await checking
    assert found(report) == sorted([*expected, ("record_deleted", f"{JOB}-client0")])
    assert log_of(house) == ["describe", *["list"] * 2, "describe", *["list"] * 3, "find"]
    assert (report["pages"], report["records"], report["calls"]) == (3 + 1, 250, 8)


async def test_a_page_whose_records_were_deleted_meanwhile_leads_on(house: Harness) -> None:
    gone = house.airtable.records()[100:200]

    def delete_second_page(request: WireRequest) -> bool:
        if "offset" in dict(request.query):
            while gone:
                house.airtable.delete(gone.pop().id)
        return False

    deleted = sorted(("record_deleted", str(record.fields["Run ID"])) for record in gone)
    house.airtable_server.faults.add(dropped(), where=delete_second_page)
    async with house.running():
        report = await check(house)
    assert found(report) == deleted
    assert (report["pages"], report["records"]) == (3 + 2, 150)


async def test_a_listing_that_always_expires_is_said_and_changes_nothing(house: Harness) -> None:
    spoil(house)
    house.airtable.limits = Limits(requests_per_second=None, iterator_seconds=0.0)
    async with house.running():
        report = await unfinished(house)
        assert "expired" in str(report["trouble"])
        house.airtable.limits = NO_LIMITS
        assert len(found(await check(house))) == 4


async def unfinished(house: Harness) -> dict[str, Json]:
    report = await check(house)
    assert report["trouble"] is not None
    assert (report["found"], report["findings"], report["opened"], report["resolved"]) == ({}, [], 0, 0)
    stats = (await house.call("GET", "/stats")).json()["last_check"]
    assert isinstance(stats, dict)
    assert stats["trouble"] == report["trouble"]
    return report


async def test_a_table_that_cannot_be_read_is_said_and_changes_nothing(house: Harness) -> None:
    """Without its Run IDs nothing is known of a record; to a token without scope a table would look empty."""
    spoil(house)
    async with house.running():
        assert len(found(await check(house))) == 4
        before = errors(house)
        house.airtable.rename_column("Run ID", "Run")
        assert "no column 'Run ID'" in str((await unfinished(house))["trouble"])
        house.airtable.rename_column("Run", "Run ID")
        house.airtable.scopes = (WRITE, SCHEMA)
        assert "INVALID_PERMISSIONS" in str((await unfinished(house))["trouble"])
        assert errors(house) == before


async def test_columns_that_the_table_lacks_are_left_out_and_said_and_the_rest_is_compared(house: Harness) -> None:
    """A renamed column would look like drift of every record, and must not end all checks either."""
    expected = spoil(house)
    async with house.running():
        house.airtable.rename_column("Total Posts Harvested", "Posts")
        house.airtable.remove_column("Client Name")
        report = await check(house)
        assert sorted(report["columns_left_out"]) == ["Client Name", "Total Posts Harvested"]  # type: ignore[arg-type, type-var]
        assert found(report) == [one for one in expected if one[0] != "drift"]
        house.airtable.rename_column("Posts", "Total Posts Harvested")
        report = await check(house)
        assert (found(report), report["columns_left_out"]) == (expected, ["Client Name"])
        house.airtable.rename_column("Total Posts Harvested", "Posts")
        assert (await check(house))["resolved"] == 0  # what cannot be seen is not gone
        assert ("drift", f"{JOB}-client10", "open", None) in errors(house)
        stats = (await house.call("GET", "/stats")).json()["last_check"]
        assert isinstance(stats, dict)
        assert stats["columns_left_out"] == ["Client Name", "Total Posts Harvested"]


async def test_a_token_that_may_not_describe_the_base_still_checks(house: Harness) -> None:
    expected = spoil(house)
    house.airtable.scopes = (READ, WRITE)
    async with house.running():
        assert found(await check(house)) == expected
        house.airtable.rename_column("Client Name", "Name")
        assert "Client Name" in str((await unfinished(house))["trouble"])


async def test_a_check_that_waits_for_hours_gives_up(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house, house.running():
        house.airtable_server.faults.add(quota_exceeded(), times=None)
        checking = asyncio.create_task(unfinished(house))
        await let_time_pass(clock, checking.done, step=60, most=86_400)
        assert "BILLING_LIMIT" in str((await checking)["trouble"])
        assert len(house.airtable_server.log) < 10


async def test_a_listing_without_an_end_is_given_up(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock, sync={"backoff_max_seconds": 900.0}) as house, house.running():
        house.airtable_server.faults.add(odd_body(PAGE_BEFORE_ITSELF), method="GET", path_contains="Client", times=None)
        checking = asyncio.create_task(unfinished(house))
        await let_time_pass(clock, checking.done, step=60, most=86_400)
        report = await checking
    assert "read already" in str(report["trouble"])
    assert report["pages"] == 1
    assert len(house.airtable_server.log) < 50


# Behind real work


async def test_updates_that_come_during_a_check_go_first_and_the_limit_holds(house: Harness) -> None:
    expected = spoil(house)
    house.airtable.limits = Limits()
    house.settings = house.settings.model_copy(
        update={"airtable": house.settings.airtable.model_copy(update={"requests_per_second": 5, "timeout_seconds": 5})}
    )
    async with house.running():
        house.airtable_server.faults.add(slow(0.5), after=1)
        checking = asyncio.create_task(check(house))
        await house.airtable_server.wait_for(lambda log: len(log) == 2)  # the first page is being read
        for number in range(60, 110):
            await house.call("PATCH", f"/runs/{JOB}-client{number}", {"add": {"posts_scored": 1}})
        report = await checking
        await house.synced()
    # The one whose answer was out is not called back, and no other page is asked for while an update waits.
    kinds = log_of(house)
    assert kinds[:2] == ["describe", "list"]
    assert kinds.index("list", 2) > max(place for place, kind in enumerate(kinds) if kind == "update")
    assert most_in_any_second(house.airtable_server.log) <= 5
    assert {one.status for one in house.airtable_server.log} == {200}
    assert found(report) == expected


# One at a time, and every interval


async def test_a_second_check_meanwhile_is_refused(house: Harness) -> None:
    house.airtable_server.faults.add(slow(0.5))
    async with house.running():
        first = asyncio.create_task(check(house))
        await house.airtable_server.wait_for(lambda log: len(log) == 1)
        second = await house.call("POST", "/check")
        assert second.status == 409
        assert "under way" in second.text
        assert found(await first) == []
        assert found(await check(house)) == []


async def test_a_stop_ends_a_check_at_once_and_it_has_changed_nothing(house: Harness) -> None:
    spoil(house)
    house.airtable_server.faults.add(hung(), after=2)
    async with house.running():
        checking = asyncio.create_task(house.call("POST", "/check"))
        await house.airtable_server.wait_for(lambda log: len(log) == 3)
        began = time.monotonic()
        assert house.service is not None
        house.service.stop()
        answer = await checking
    assert answer.status == 503
    assert "nothing was changed" in answer.text
    assert time.monotonic() - began < 3
    assert errors(house) == []
    async with house.running():
        assert len(found(await check(house))) == 4


async def test_it_checks_every_interval_over_restarts_and_on_demand_begins_a_new_one(tmp_path: Path) -> None:
    clock = HandClock()
    hour = {"interval_seconds": 3600, "grace_seconds": 60}

    def checked() -> list[float]:
        """Seconds from the end of one check (or the first start) to the beginning of the next."""
        found_at = rows(tmp_path / "runs.db", "SELECT started_at, finished_at FROM checks ORDER BY id")
        times = [(parse_iso(str(began)), parse_iso(str(ended))) for began, ended in found_at]
        ends = [START, *(ended for _, ended in times)]
        return [(began - end).total_seconds() for (began, _), end in zip(times, ends, strict=False)]

    async with harness(tmp_path, clock=clock, consistency=hour) as house:
        async with house.running():
            await house.kick_off("Guy")
            await house.synced()
            await let_time_pass(clock, lambda: clock.monotonic() >= 3540, step=30)
            assert checked() == []
        async with house.running():
            await let_time_pass(clock, lambda: len(checked()) == 1, step=10)
            house.airtable.edit(record_id(house, GUY), {"Client ID": "by hand"})
            await let_time_pass(clock, lambda: len(checked()) == 2, step=30)
            assert errors(house) == [("drift", GUY, "open", None)]
            half_an_hour_later = clock.monotonic() + 1800
            await let_time_pass(clock, lambda: clock.monotonic() >= half_an_hour_later, step=30)
            await asked_by_hand(house, clock)
            await let_time_pass(clock, lambda: len(checked()) == 4, step=30)
    gaps = checked()
    assert all(gap >= 3600 for gap in (gaps[0], gaps[1], gaps[3]))
    assert all(gap < 3600 + 120 for gap in gaps)
    assert 1800 <= gaps[2] < 1800 + 120


async def test_a_clock_that_is_set_back_puts_no_check_off_for_more_than_an_interval(tmp_path: Path) -> None:
    clock = JumpingClock()
    clock.jump(2 * 86_400)
    async with harness(tmp_path, clock=clock, consistency={"interval_seconds": 3600}) as house, house.running():
        await let_time_pass(clock, lambda: rows(house.store_path, "SELECT 1 FROM checks") == [(1,)], step=30)
        clock.jump(-2 * 86_400)  # from here on the beginnings are counted: how long a check takes is real time
        await let_time_pass(clock, lambda: log_of(house).count("describe") == 2, step=30, most=3_700)
        nearly_two_hours_later = clock.monotonic() + 7_000
        await let_time_pass(clock, lambda: clock.monotonic() >= nearly_two_hours_later, step=30)
        assert log_of(house).count("describe") == 3


async def asked_by_hand(house: Harness, clock: HandClock) -> None:
    checking = asyncio.create_task(check(house))
    await let_time_pass(clock, checking.done, step=0.05)
    assert causes(await checking) == ["client_id: 'Guy' here, 'by hand' in Airtable"]


async def test_a_store_that_keeps_nothing_puts_the_check_off_and_not_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_MS", 300)  # SQLite's own patience, twice over, is ten real seconds
    clock = HandClock()
    async with (
        harness(tmp_path, clock=clock, consistency={"interval_seconds": 60}) as house,
        house.running() as service,
    ):
        with contextlib.closing(sqlite3.connect(house.store_path, isolation_level=None)) as busy:
            busy.execute("BEGIN IMMEDIATE")
            await until(lambda: waits_for_long(clock))  # for its time to come
            clock.pass_time(61)
            await until(lambda: not waits_for_long(clock))  # it has begun
            await until(lambda: waits_for_long(clock), timeout=20)  # and was put off
            assert not any(loop.done() for loop in service.loops)
            busy.execute("ROLLBACK")
        await let_time_pass(clock, lambda: bool(rows(house.store_path, "SELECT 1 FROM checks")), step=1)
        assert not any(loop.done() for loop in service.loops)
