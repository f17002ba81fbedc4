"""Airtable says no to one record: it is set aside with its cause, and delays nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.sandbox.faults import odd_body
from tests.support.harness import QuickClock, harness
from tests.support.watching import calls, rows, until

if TYPE_CHECKING:
    from pathlib import Path

    from app.model import Json
    from tests.support.harness import Harness


@pytest.fixture
def house(quick_house: Harness) -> Harness:
    return quick_house


async def change(house: Harness, run_id: str, **body: Json) -> int:
    answer = await house.call("PATCH", f"/runs/{run_id}", dict(body))
    message_id = answer.json()["message_id"]
    assert isinstance(message_id, int)
    return message_id


async def together(house: Harness, count: int, first: dict[str, Json]) -> list[str]:
    """Kick off `count` runs while Airtable is away, the first with these fields: they wait for one request."""
    await house.airtable_server.stop()
    async with house.running():
        bodies = [first, *({} for _ in range(count - 1))]
        run_ids = [await house.kick_off(f"client{number}", fields=body) for number, body in enumerate(bodies)]
    await house.airtable_server.start()
    return run_ids


def states(house: Harness) -> dict[str, int]:
    found = rows(house.store_path, "SELECT state, count(*) FROM outbox GROUP BY state")
    return {str(state): int(count or 0) for state, count in found}


async def test_one_bad_create_in_ten_is_found_by_halving_and_nine_are_delivered(house: Harness) -> None:
    """A new select option is refused in words that name no field: only trying with fewer finds whose it was."""
    house.airtable.remove_option("Status", "No Leads To Score")
    run_ids = await together(house, 10, {"status": "No Leads To Score"})
    async with house.running():
        await house.synced()
        error = (await house.call("GET", "/errors")).json()["errors"]
    assert sorted(house.records()) == sorted(run_ids[1:])
    assert states(house) == {"delivered": 9, "dead": 1}
    assert isinstance(error, list)
    assert len(error) == 1
    assert isinstance(error[0], dict)
    assert (error[0]["kind"], error[0]["run_id"], error[0]["state"]) == ("rejected", run_ids[0], "open")
    assert "INVALID_MULTIPLE_CHOICE_OPTIONS" in str(error[0]["cause"])
    assert len(house.airtable_server.log) <= 8


async def test_one_bad_create_in_ten_is_found_at_once_by_the_field_it_alone_writes(house: Harness) -> None:
    house.airtable.remove_column("Total Posts Harvested")
    run_ids = await together(house, 10, {"posts_harvested": 3})
    async with house.running():
        await house.synced()
    assert sorted(house.records()) == sorted(run_ids[1:])
    assert len(house.airtable_server.log) == 2


async def test_after_the_bad_one_is_out_ten_go_together_again(house: Harness) -> None:
    house.airtable.remove_option("Status", "No Leads To Score")
    run_ids = await together(house, 10, {"status": "No Leads To Score"})
    async with house.running():
        await house.synced()
        await house.airtable_server.stop()
        for run_id in run_ids[1:]:
            await change(house, run_id, add={"posts_harvested": 1})
        house.airtable_server.log.clear()
        await house.airtable_server.start()
        await house.synced()
    assert max(len(call.records) for call in calls(house.airtable_server.log)) == 9


async def test_only_what_touches_the_refused_field_is_set_aside(house: Harness) -> None:
    async with house.running():
        run_id = await house.kick_off()
        await house.synced()
    await house.airtable_server.stop()
    async with house.running():
        good = await change(house, run_id, set={"client_name": "Guy"})
        bad = await change(house, run_id, add={"posts_harvested": 3}, set={"profiles_scored": 5})
        also_good = await change(house, run_id, append={"progress_log": "x"})
    house.airtable.remove_column("Total Posts Harvested")
    await house.airtable_server.start()
    async with house.running():
        await house.synced()
    assert rows(house.store_path, "SELECT id, state FROM outbox WHERE kind = 'update' ORDER BY id") == [
        (good, "delivered"),
        (bad, "dead"),
        (also_good, "delivered"),
    ]
    assert house.records()[run_id]["Client Name"] == "Guy"
    assert house.records()[run_id]["Progress Log"] == "x"


async def test_a_dead_update_lets_later_ones_pass_and_its_replay_brings_no_old_value_back(served: Harness) -> None:
    run_id = await served.kick_off()
    await served.synced()
    served.airtable.remove_option("Status", "No Leads To Score")
    dead = await change(served, run_id, set={"status": "No Leads To Score", "client_name": "old"})
    await served.synced()
    later = await change(served, run_id, set={"status": "Completed", "client_name": "new"})
    await served.synced()
    assert rows(served.store_path, "SELECT state FROM outbox WHERE id = ?", dead) == [("dead",)]
    assert rows(served.store_path, "SELECT state FROM outbox WHERE id = ?", later) == [("delivered",)]
    assert (await served.call("POST", f"/outbox/{dead}/retry")).status == 200
    await served.synced()
    assert rows(served.store_path, "SELECT state FROM outbox WHERE id = ?", dead) == [("delivered",)]
    record = served.records()[run_id]
    assert (record["Status"], record["Client Name"]) == ("Completed", "new")
    assert rows(served.store_path, "SELECT state, resolution FROM errors") == [("resolved", "replayed")]


async def test_a_dead_create_holds_up_its_run_until_it_is_replayed(served: Harness) -> None:
    served.airtable.remove_option("Status", "No Leads To Score")
    run_id = await served.kick_off(fields={"status": "No Leads To Score"})
    await served.synced()
    dead = rows(served.store_path, "SELECT id FROM outbox WHERE state = 'dead'")[0][0]
    asked = len(served.airtable_server.log)
    await change(served, run_id, add={"posts_harvested": 3})
    await served.synced()
    assert len(served.airtable_server.log) == asked
    assert served.records() == {}
    assert (await served.call("GET", f"/runs/{run_id}")).json()["sync"] == "failed"
    served.airtable.add_option("Status", "No Leads To Score")
    await served.call("POST", f"/outbox/{dead}/retry")
    await served.synced()
    record = served.records()[run_id]
    assert (record["Status"], record["Total Posts Harvested"]) == ("No Leads To Score", 3)
    assert (await served.call("GET", f"/runs/{run_id}")).json()["sync"] == "synced"


async def test_a_record_that_was_deleted_by_hand_is_said_and_never_recreated(served: Harness) -> None:
    run_ids = [await served.kick_off(f"client{number}") for number in range(5)]
    await served.synced()
    gone = next(record for record in served.airtable.records() if record.fields["Run ID"] == run_ids[2])
    served.airtable.delete(gone.id)
    for run_id in run_ids:
        await change(served, run_id, add={"posts_harvested": 1})
    await served.synced()
    assert sorted(served.records()) == sorted([*run_ids[:2], *run_ids[3:]])
    assert {cells["Total Posts Harvested"] for cells in served.records().values()} == {1}
    found = rows(served.store_path, "SELECT kind, run_id, cause FROM errors")
    assert [row[:2] for row in found] == [("record_deleted", run_ids[2])]
    assert gone.id in str(found[0][2])
    await change(served, run_ids[2], add={"posts_harvested": 1})
    await served.synced()
    assert run_ids[2] not in served.records()


async def test_two_records_of_one_run_made_by_hand_are_said_and_none_is_touched(house: Harness) -> None:
    run_ids = await together(house, 4, {})
    twins = [house.airtable.insert({"Run ID": run_ids[1], "System Notes": "by hand"}) for _ in range(2)]
    async with house.running():
        await house.synced()
    assert rows(house.store_path, "SELECT kind, run_id FROM errors") == [("duplicate_record", run_ids[1])]
    by_run: dict[str, list[str]] = {}
    for record in house.airtable.records():
        by_run.setdefault(str(record.fields["Run ID"]), []).append(record.id)
    assert {run_id: len(ids) for run_id, ids in by_run.items()} == dict.fromkeys(run_ids, 1) | {run_ids[1]: 2}
    assert by_run[run_ids[1]] == [twin.id for twin in twins]
    assert all("Status" not in house.airtable.records()[place].fields for place in (0, 1))


async def test_a_record_made_by_hand_before_its_kickoff_is_taken_not_doubled(served: Harness) -> None:
    made = served.airtable.insert({"Run ID": "251007-070457-Guy-Wilson", "System Notes": "by hand"})
    run_id = await served.kick_off()
    await change(served, run_id, add={"posts_harvested": 2})
    await served.synced()
    assert [record.id for record in served.airtable.records()] == [made.id]
    assert served.records()[run_id]["System Notes"] == "by hand"
    assert served.records()[run_id]["Total Posts Harvested"] == 2


async def test_a_request_that_is_too_large_is_split_until_it_fits(house: Harness) -> None:
    run_ids = await together(house, 10, {})
    house.airtable.limits = type(house.airtable.limits)(body_bytes=700)
    async with house.running():
        await house.synced()
    assert sorted(house.records()) == sorted(run_ids)
    assert rows(house.store_path, "SELECT count(*) FROM errors") == [(0,)]


@pytest.mark.parametrize("status", [400, 403])
async def test_what_a_stranger_on_the_way_lets_not_pass_delays_nobody_and_dies_of_nothing(
    house: Harness, status: int
) -> None:
    """A wall that takes offence at a word: its page is no refusal of Airtable's, and may mean one request or all."""
    run_ids = await together(house, 13, {"client_name": "DROP TABLE"})
    offended = odd_body(b"<html>This has been reported.</html>", status=status, applied=False)
    house.airtable_server.faults.add(offended, times=None, where=lambda request: b"DROP TABLE" in request.body)
    async with house.running():
        await until(lambda: states(house).get("delivered") == 12, timeout=60)
        assert sorted(house.records()) == sorted(run_ids[1:])
        assert rows(house.store_path, "SELECT kind FROM errors") == []
        house.airtable_server.faults.clear()
        await house.synced()
    assert sorted(house.records()) == sorted(run_ids)


async def test_what_a_stranger_refuses_to_one_run_alone_is_set_aside_and_holds_up_no_other(tmp_path: Path) -> None:
    async with harness(tmp_path, clock=QuickClock(5), sync={"max_attempts": 5}) as house:
        offended = odd_body(b"<html>This has been reported.</html>", status=403, applied=False)
        house.airtable_server.faults.add(offended, times=None, where=lambda request: b"DROP TABLE" in request.body)
        told = "SELECT e.kind, e.run_id, e.cause FROM errors AS e JOIN outbox AS m ON m.error_id = e.id"
        async with house.running() as service:
            bad = await house.kick_off("bad", client_name="DROP TABLE")
            for number in range(200):
                good = await house.kick_off(f"good-{number}")
                await until(lambda good=good: good in house.records())  # type: ignore[misc]
                if rows(house.store_path, told):
                    break
            ((kind, run_id, cause),) = rows(house.store_path, told)
            await until(lambda: service.sync.trouble is None)
            house.airtable_server.faults.clear()
            assert (await house.call("POST", "/outbox/retry", {"kind": "rejected"})).status == 200
            await house.synced()
        assert (kind, run_id) == ("rejected", bad)
        assert "This has been reported" in str(cause)
        assert bad in house.records()
