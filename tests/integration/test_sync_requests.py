"""What the sync loop asks of Airtable, judged by the sandbox's log: few requests, the right ones, never too fast."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.sandbox.hand_clock import HandClock
from app.sandbox.wire import slow
from tests.support.harness import Harness, harness
from tests.support.watching import calls, let_time_pass, most_in_any_second, rows, until

if TYPE_CHECKING:
    from pathlib import Path


async def add_posts(house: Harness, run_id: str, posts: int = 1) -> None:
    answer = await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": posts}})
    assert answer.json()["outcome"] == "queued", answer.text


async def kick_off_many(house: Harness, count: int, job_id: str = "251007-070457") -> list[str]:
    return list(await asyncio.gather(*(house.kick_off(f"client{number}", job_id) for number in range(count))))


async def test_one_create_and_twenty_updates_that_wait_are_one_request(house: Harness) -> None:
    await house.airtable_server.stop()
    async with house.running():
        run_id = await house.kick_off()
        for _ in range(20):
            await add_posts(house, run_id)
    await house.airtable_server.start()
    async with house.running():
        await house.synced()
    sent = calls(house.airtable_server.log)
    assert len(sent) == 1
    assert sent[0].run_ids == [run_id]
    assert house.records()[run_id]["Total Posts Harvested"] == 20


async def test_what_is_accepted_while_a_request_is_under_way_goes_together_in_the_next(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock, airtable={"timeout_seconds": 30}) as house, house.running():
        run_id = await house.kick_off()
        await house.synced()
        house.airtable_server.faults.add(slow(0.3))
        await add_posts(house, run_id)
        await house.airtable_server.wait_for(lambda log: len(log) == 2)
        for _ in range(20):
            await add_posts(house, run_id)
        clock.pass_time(0.3)
        await house.synced()
        assert len(house.airtable_server.log) == 3
        assert house.records()[run_id]["Total Posts Harvested"] == 21


async def test_ten_runs_share_a_request_and_creates_and_updates_never_do(house: Harness) -> None:
    async with house.running():
        old = await kick_off_many(house, 12, "250101-000000")
        await house.synced()
    await house.airtable_server.stop()
    house.airtable_server.log.clear()
    async with house.running():
        new = await kick_off_many(house, 25)
        for run_id in (*old, *new):
            await add_posts(house, run_id)
    await house.airtable_server.start()
    async with house.running():
        await house.synced()
    sent = calls(house.airtable_server.log)
    assert sorted(len(call.records) for call in sent if call.upsert) == [5, 10, 10]
    assert sorted(len(call.records) for call in sent if not call.upsert) == [2, 10]
    assert sorted(run_id for call in sent if call.upsert for run_id in call.run_ids) == sorted(new)
    assert {cells["Total Posts Harvested"] for cells in house.records().values()} == {1}


async def test_creates_are_upserts_on_the_run_id_and_updates_go_by_record_id_only(served: Harness) -> None:
    run_ids = await kick_off_many(served, 12)
    await served.synced()
    for run_id in run_ids:
        await add_posts(served, run_id)
    await served.synced()
    assert {request.method for request in served.airtable_server.log} == {"PATCH"}
    for request, call in zip(served.airtable_server.log, calls(served.airtable_server.log), strict=True):
        body = request.json()
        assert isinstance(body, dict)
        assert not body.get("typecast")
        if call.upsert:
            assert body["performUpsert"] == {"fieldsToMergeOn": ["Run ID"]}
            assert all(call.run_ids)
            assert set(call.ids) == {None}
        else:
            assert None not in call.ids
            assert all("Run ID" not in cells for cells in call.cells)
    known = {record.id for record in served.airtable.records()}
    assert {one for call in calls(served.airtable_server.log) if not call.upsert for one in call.ids} == known


async def test_an_update_sends_only_the_fields_that_changed(served: Harness) -> None:
    """What a person wrote into other cells by hand stays."""
    run_id = await served.kick_off()
    await served.synced()
    served.airtable.edit(served.airtable.records()[0].id, {"System Notes": "by hand", "Status": "Failed"})
    await add_posts(served, run_id, 4)
    await served.synced()
    assert calls(served.airtable_server.log)[-1].cells == [{"Total Posts Harvested": 4}]
    assert served.records()[run_id]["System Notes"] == "by hand"


async def test_a_burst_never_puts_more_than_five_requests_into_any_second(served: Harness) -> None:
    """Judged by a window that slides over the arrivals, and by Airtable itself: not one 429."""
    log = served.airtable_server.log
    run_ids = await kick_off_many(served, 200)
    left_meanwhile = len(log)
    await served.synced()
    assert len(log) - left_meanwhile <= 20 + 1  # once all is there requests are full, but for one that was on its way
    for run_id in run_ids[:60]:
        await add_posts(served, run_id)
    left_meanwhile = len(log)
    await served.synced()
    assert len(log) - left_meanwhile <= 6 + 1
    assert most_in_any_second(log) <= 5
    assert {request.status for request in log} == {200}
    assert len(served.records()) == 200


async def test_a_restart_in_the_middle_of_a_burst_keeps_to_the_limit(house: Harness) -> None:
    """What left just before the stop counts too: Airtable knows nothing of our restarts."""
    async with house.running():
        run_ids = await kick_off_many(house, 60)
        await house.airtable_server.wait_for(lambda log: len(log) >= 5)
    async with house.running():
        await house.synced()
    assert most_in_any_second(house.airtable_server.log) <= 5
    assert {request.status for request in house.airtable_server.log} == {200}
    assert sorted(house.records()) == sorted(run_ids)


async def test_a_slow_base_gets_several_requests_at_once_but_never_two_for_one_run(tmp_path: Path) -> None:
    async with harness(tmp_path, airtable={"timeout_seconds": 5}) as house, house.running():
        house.airtable_server.latency = 1.5
        run_ids = await kick_off_many(house, 60)
        for run_id in run_ids:
            await add_posts(house, run_id)
        await house.synced()
        spans = [(one.received_at, one.answered_at or one.received_at) for one in house.airtable_server.log]
        at_once = [sum(start <= begun < end for start, end in spans) for begun, _ in spans]
        assert max(at_once) > 2
        by_id = {record.id: str(record.fields["Run ID"]) for record in house.airtable.records()}
        open_until: dict[str, float] = {}
        for request, call in zip(house.airtable_server.log, calls(house.airtable_server.log), strict=True):
            runs = call.run_ids if call.upsert else [by_id[one] for one in call.ids if one is not None]
            for run_id in runs:
                assert request.received_at >= open_until.get(run_id, 0.0), f"two requests for {run_id} at once"
                open_until[run_id] = request.answered_at or float("inf")
        assert {cells["Total Posts Harvested"] for cells in house.records().values()} == {1}


# Waking and waiting, by a clock that stands still


async def test_a_new_message_is_sent_at_once_without_any_time_passing(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house, house.running():
        run_id = await house.kick_off()
        await house.synced()
        await add_posts(house, run_id)
        await house.synced()
        assert [one.received_at for one in house.airtable_server.log] == [0.0, 0.0]


async def test_an_idle_service_does_nothing_at_all(tmp_path: Path) -> None:
    """A day goes by, and nobody slept through it: nothing waits for the clock, nothing looks at the store."""
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house, house.running():
        await house.kick_off()
        await house.synced()
        loop_before = rows(house.store_path, "SELECT count(*) FROM airtable_calls")
        await until(lambda: not clock._sleepers)
        clock.pass_time(86_400)
        await house.call("GET", "/healthz", token=None)
        assert not clock._sleepers
        assert rows(house.store_path, "SELECT count(*) FROM airtable_calls") == loop_before
        assert len(house.airtable_server.log) == 1


async def test_a_linger_lets_what_comes_within_it_go_together(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock, airtable={"linger_seconds": 5}) as house, house.running():
        run_id = await house.kick_off()
        for _ in range(3):
            clock.pass_time(1)
            await add_posts(house, run_id)
        assert house.airtable_server.log == []
        await let_time_pass(clock, lambda: len(house.airtable_server.log) > 0)
        await house.synced()
        sent = house.airtable_server.log
        assert len(sent) == 1
        assert 5.0 <= sent[0].received_at < 6.0  # from the first of them, so that a steady stream cannot starve it
        assert house.records()[run_id]["Total Posts Harvested"] == 3
