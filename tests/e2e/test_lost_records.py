"""A record that was deleted by hand, or is there twice: one error of its run, and the ways back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_errors import rate_limited
from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.airtable_store import Change
from app.sandbox.faults import applied_then_dropped, server_error
from app.sandbox.hand_clock import HandClock
from tests.support.checking import check, errors, found, log_of, record_id
from tests.support.harness import Harness, harness
from tests.support.watching import let_time_pass, meddle, rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json
    from app.sandbox.airtable import PlainRecord

GUY = "251007-070457-Guy"
DEAN = "251007-070457-Dean"
GONE = ("record_deleted", GUY, "open", None)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Harness]:
    """A run with some values, delivered."""
    async with harness(tmp_path, airtable={"requests_per_second": 50}) as made, made.running():
        made.airtable.limits = NO_LIMITS
        await made.kick_off("Guy", client_name="Guy W")
        await add_posts(made, 1)
        yield made


async def add_posts(house: Harness, posts: int) -> None:
    answer = await house.call("PATCH", f"/runs/{GUY}", {"add": {"posts_harvested": posts}})
    assert (answer.status, answer.json()["outcome"]) == (202, "queued")
    await house.synced()


def delete_record(house: Harness) -> PlainRecord:
    (gone,) = [one for one in house.airtable.records() if one.fields.get("Run ID") == GUY]
    house.airtable.delete(gone.id)
    return gone


async def delete(house: Harness, posts: int = 2) -> PlainRecord:
    """Delete the run's record, and let an update find that out; the record."""
    gone = delete_record(house)
    await add_posts(house, posts)
    assert errors(house) == [GONE]
    return gone


async def retry(house: Harness, **chosen: Json) -> Json:
    """Ask for what was set aside to be sent again, and wait until that has come to an end."""
    answer = await house.call("POST", "/outbox/retry", {"kind": "record_deleted", **chosen})
    assert answer.status == 200, answer.text
    await until(lambda: rows(house.store_path, "SELECT 1 FROM record_looks") == [])
    await house.synced()
    return answer.json()["retried"]


def states(house: Harness) -> list[tuple[str | int | float | None, ...]]:
    return rows(house.store_path, "SELECT state, count(*) FROM outbox GROUP BY state ORDER BY state")


# One error


async def test_a_deleted_record_is_one_error_however_often_and_by_whom_it_is_met(served: Harness) -> None:
    await delete(served)
    await add_posts(served, 3)
    await add_posts(served, 4)
    report = await check(served)
    assert (found(report), report["opened"]) == ([("record_deleted", GUY)], 0)
    await add_posts(served, 5)
    assert errors(served) == [GONE]
    assert rows(served.store_path, "SELECT count FROM errors") == [(5,)]
    assert rows(served.store_path, "SELECT count(*), max(error_id) FROM outbox WHERE state = 'dead'") == [(4, 1)]


async def test_an_error_that_a_check_opened_takes_what_dies_later(served: Harness) -> None:
    served.airtable.delete(record_id(served, GUY))
    assert (await check(served))["opened"] == 1
    await add_posts(served, 3)
    assert errors(served) == [GONE]
    assert rows(served.store_path, "SELECT error_id FROM outbox WHERE state = 'dead'") == [(1,)]
    assert (await check(served))["resolved"] == 0


async def test_a_deletion_ends_when_the_record_is_seen_again_and_what_died_is_replayed(served: Harness) -> None:
    gone = await delete(served)
    restore(served, gone)
    report = await check(served)
    assert (found(report), report["resolved"]) == ([], 0)
    assert await retry(served) == 1
    assert errors(served) == [("record_deleted", GUY, "resolved", "replayed")]
    assert served.records()[GUY]["Total Posts Harvested"] == 3
    assert len(served.airtable.records()) == 1


@pytest.mark.parametrize("seen_by", ["a check", "a delivery"])
async def test_that_a_lost_record_is_there_again_is_said_until_it_is_lost_anew(served: Harness, seen_by: str) -> None:
    note = "SELECT note FROM errors"
    gone = await delete(served)
    restore(served, gone)
    if seen_by == "a check":
        await check(served)
    else:
        await add_posts(served, 3)
    (told,) = rows(served.store_path, note)
    assert str(told[0]).startswith("its record is there again: 'outbox retry --kind record_deleted'")
    served.airtable.delete(gone.id)
    if seen_by == "a check":
        await check(served)
    else:
        await add_posts(served, 4)
    assert rows(served.store_path, note) == [(None,)]
    restore(served, gone)
    await check(served)
    assert rows(served.store_path, note) == [told]
    await retry(served)
    assert errors(served) == [("record_deleted", GUY, "resolved", "replayed")]


async def test_a_deletion_that_only_a_check_met_ends_with_any_delivery(served: Harness) -> None:
    gone = delete_record(served)
    await check(served)
    restore(served, gone)
    await add_posts(served, 2)
    assert errors(served) == [("record_deleted", GUY, "resolved", "no_longer_seen")]


def restore(house: Harness, gone: PlainRecord) -> None:
    """What Airtable's trash does: the record is there again, under its id."""
    made = house.airtable.insert(gone.fields)
    store = house.airtable._store
    store.commit(Change(put=(replace(store.records[made.id], id=gone.id),)))
    house.airtable.delete(made.id)


# A new record


async def test_a_record_that_was_made_anew_is_linked_by_a_retry_and_gets_all_values(served: Harness) -> None:
    gone = await delete(served)
    await add_posts(served, 3)
    made = served.airtable.insert({"Run ID": GUY, "Client Name": "by hand", "Total Tokens Used": 9}).id
    asked = len(log_of(served))
    assert await retry(served) == 2
    assert log_of(served)[asked:] == ["find", "update"]
    run = (await served.call("GET", f"/runs/{GUY}")).json()
    assert (run["airtable_record_id"], run["sync"]) == (made, "synced")
    cells = served.records()[GUY]
    assert (cells["Total Posts Harvested"], cells["Client Name"], cells["Total Tokens Used"]) == (6, "Guy W", 9)
    assert errors(served) == [("record_deleted", GUY, "resolved", "replayed")]
    note = f"its record is {made} now, in the place of {gone.id}"
    assert rows(served.store_path, "SELECT note FROM errors") == [(note,)]
    assert note in str(run["timeline"])
    assert found(await check(served)) == []


async def test_one_message_is_retried_like_all_of_them(served: Harness) -> None:
    await delete(served)
    await add_posts(served, 3)
    served.airtable.insert({"Run ID": GUY})
    (dead, *_) = rows(served.store_path, "SELECT id FROM outbox WHERE state = 'dead' ORDER BY id")
    answer = await served.call("POST", f"/outbox/{dead[0]}/retry")
    assert (answer.status, answer.json()["state"]) == (200, "pending")
    assert "looked for by its Run ID" in str(answer.json()["waits_for"])
    await until(
        lambda: rows(served.store_path, "SELECT state, count(*) FROM outbox GROUP BY state") == [("delivered", 5)]
    )
    assert served.records()[GUY]["Total Posts Harvested"] == 6


async def test_a_deletion_without_dead_messages_is_mended_by_a_retry_too(served: Harness) -> None:
    served.airtable.delete(record_id(served, GUY))
    made = served.airtable.insert({"Run ID": GUY}).id
    assert found(await check(served)) == [("record_deleted", GUY)]
    assert await retry(served, run_id=GUY) == 0
    assert errors(served) == [("record_deleted", GUY, "resolved", "no_longer_seen")]
    assert record_id(served, GUY) == made
    assert served.records()[GUY]["Total Posts Harvested"] == 1


async def test_without_a_record_a_retry_ends_as_it_began(served: Harness) -> None:
    await delete(served)
    assert await retry(served) == 1
    assert errors(served) == [GONE]
    assert rows(served.store_path, "SELECT count FROM errors") == [(2,)]
    assert states(served) == [("dead", 1), ("delivered", 2)]
    assert served.airtable.records() == []


async def test_of_several_new_records_none_is_taken_until_one_is_left(served: Harness) -> None:
    await delete(served)
    first = served.airtable.insert({"Run ID": GUY}).id
    second = served.airtable.insert({"Run ID": GUY}).id
    await retry(served)
    assert errors(served) == [GONE, ("duplicate_record", GUY, "open", None)]
    assert states(served) == [("dead", 1), ("delivered", 2)]
    assert (await check(served))["resolved"] == 0
    served.airtable.delete(first)
    await retry(served)
    assert {row[2] for row in errors(served)} == {"resolved"}
    assert record_id(served, GUY) == second
    assert states(served) == [("delivered", 4)]


async def test_the_record_of_another_run_is_never_taken(served: Harness) -> None:
    await served.kick_off("Dean")
    await served.synced()
    await delete(served)
    served.airtable.edit(record_id(served, DEAN), {"Run ID": GUY})
    await retry(served)
    assert errors(served) == [GONE]
    assert rows(served.store_path, "SELECT count(DISTINCT airtable_record_id) FROM runs") == [(2,)]


async def test_a_record_that_is_there_under_another_name_stays_the_runs_own(served: Harness) -> None:
    gone = await delete(served)
    restore(served, gone)
    served.airtable.edit(gone.id, {"Run ID": "renamed"})
    served.airtable.insert({"Run ID": GUY})
    await retry(served)
    run = (await served.call("GET", f"/runs/{GUY}")).json()
    assert (run["airtable_record_id"], run["sync"]) == (gone.id, "synced")


async def test_what_was_refused_for_another_cause_is_not_sent_with_a_new_record(served: Harness) -> None:
    served.airtable.remove_option("Status", "Failed")
    await served.call("PATCH", f"/runs/{GUY}", {"set": {"status": "Failed"}})
    await served.synced()
    served.airtable.delete(record_id(served, GUY))
    await add_posts(served, 2)
    served.airtable.insert({"Run ID": GUY})
    await retry(served)
    assert served.records()[GUY]["Total Posts Harvested"] == 3
    assert [(row[0], row[2]) for row in errors(served)] == [("rejected", "open"), ("record_deleted", "resolved")]
    assert states(served)[0] == ("dead", 1)


async def test_a_look_for_a_lost_record_survives_a_stop_and_the_faults_of_the_wire(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house:
        async with house.running():
            await house.kick_off("Guy")
            await let_time_pass(clock, lambda: rows(house.store_path, "SELECT sync FROM runs") == [("synced",)])
            house.airtable.delete(record_id(house, GUY))
            await house.call("PATCH", f"/runs/{GUY}", {"add": {"posts_harvested": 2}})
            await let_time_pass(clock, lambda: rows(house.store_path, "SELECT sync FROM runs") == [("failed",)])
        made = house.airtable.insert({"Run ID": GUY}).id
        at = "2020-01-01T00:00:00.000Z"  # as a stop leaves it: asked for, and not looked for yet
        meddle(house.store_path, "INSERT INTO record_looks VALUES (?, ?)", GUY, at)
        meddle(
            house.store_path,
            "UPDATE outbox SET state = 'pending', dead_at = NULL, error_id = NULL WHERE state = 'dead'",
        )
        for fault in (rate_limited(), server_error(503), applied_then_dropped()):
            house.airtable_server.faults.add(fault)
        sent = len(house.airtable_server.log)
        async with house.running():
            synced = "SELECT sync, airtable_record_id FROM runs"
            await let_time_pass(
                clock, lambda: rows(house.store_path, synced) == [("synced", made)], step=0.5, most=600.0
            )
        assert set(log_of(house)[sent : sent + 3]) == {"find"}
        assert house.records()[GUY]["Total Posts Harvested"] == 2


async def test_a_run_that_a_call_carries_is_linked_after_it(served: Harness) -> None:
    await delete(served)
    served.airtable.insert({"Run ID": GUY})
    served.airtable_server.latency = 0.1
    await served.call("PATCH", f"/runs/{GUY}", {"add": {"posts_harvested": 3}})
    await served.airtable_server.wait_for(lambda log: log[-1].method == "PATCH")
    await retry(served)
    await until(lambda: rows(served.store_path, "SELECT sync FROM runs") == [("synced",)])
    assert served.records()[GUY]["Total Posts Harvested"] == 6


# There twice


async def test_a_duplicate_that_a_look_met_ends_with_the_create_that_finds_one(served: Harness) -> None:
    first = served.airtable.insert({"Run ID": DEAN}).id
    served.airtable.insert({"Run ID": DEAN})
    await served.call("PATCH", f"/runs/{DEAN}", {"add": {"posts_harvested": 3}})
    await until(lambda: ("duplicate_record", DEAN, "open", None) in errors(served))
    await served.kick_off("Dean")
    await served.synced()
    twice = [row for row in errors(served) if row[0] == "duplicate_record"]
    assert twice == [("duplicate_record", DEAN, "open", None)]  # the create met it too: the same error
    served.airtable.delete(first)
    assert (await served.call("POST", "/outbox/retry", {"run_id": DEAN})).json()["retried"] == 2
    await served.synced()
    assert [row[2:] for row in errors(served)] == [("resolved", "created_late"), ("resolved", "no_longer_seen")]
    assert "the create found one: rec" in str(rows(served.store_path, "SELECT note FROM errors"))
    assert served.records()[DEAN]["Total Posts Harvested"] == 3


async def test_a_duplicate_that_a_look_met_is_closed_with_the_missing_run(served: Harness) -> None:
    for _ in range(2):
        served.airtable.insert({"Run ID": DEAN})
    await served.call("PATCH", f"/runs/{DEAN}", {"add": {"posts_harvested": 3}})
    await until(lambda: ("duplicate_record", DEAN, "open", None) in errors(served))
    assert (await served.call("POST", "/errors/1/resolve", {"note": "nobody needs it"})).status == 200
    assert errors(served) == [
        ("missing_record", DEAN, "resolved", "by_hand"),
        ("duplicate_record", DEAN, "resolved", "by_hand"),
    ]
    assert "closed with error 1: the run is not looked for any more" in str(
        rows(served.store_path, "SELECT note FROM errors")
    )


async def test_a_duplicate_that_a_look_met_ends_when_a_later_look_finds_none(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house, house.running():
        twins = [house.airtable.insert({"Run ID": DEAN}).id for _ in range(2)]
        await house.call("PATCH", f"/runs/{DEAN}", {"add": {"posts_harvested": 3}})
        await let_time_pass(clock, lambda: len(errors(house)) == 2)
        for twin in twins:
            house.airtable.delete(twin)
        over = ("duplicate_record", DEAN, "resolved", "no_longer_seen")
        await let_time_pass(clock, lambda: over in errors(house), step=0.5, most=100.0)
        assert errors(house)[0] == ("missing_record", DEAN, "open", None)
