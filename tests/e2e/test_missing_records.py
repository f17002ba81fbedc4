"""A missing record, step by step: held, looked for, adopted, created late, found twice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_errors import ErrorForms, invalid_formula, rate_limited
from app.sandbox.faults import applied_then_dropped, odd_body, reply, server_error
from app.sandbox.hand_clock import HandClock
from tests.support.harness import Harness, harness, sample
from tests.support.process import command
from tests.support.watching import let_time_pass, rows, until, waits_for_long

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json

RUN_ID = "251007-070457-Guy-Wilson"
BY_HAND: dict[str, Json] = {
    "Run ID": RUN_ID,
    "Client ID": "Guy-Wilson",
    "Status": "Running",
    "Total Posts Harvested": 5,
    "Progress Log": "by hand",
}


@pytest.fixture
def house(quick_house: Harness) -> Harness:
    return quick_house


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def slow_house(tmp_path: Path, clock: HandClock) -> AsyncIterator[Harness]:
    """A house whose time passes by hand."""
    async with harness(tmp_path, clock=clock) as made:
        yield made


async def add_posts(house: Harness, posts: int, key: str | None = None) -> dict[str, Json]:
    headers = {"Idempotency-Key": key} if key else None
    answer = await house.call("PATCH", f"/runs/{RUN_ID}", {"add": {"posts_harvested": posts}}, headers=headers)
    assert answer.status == 202
    return answer.json()


def looks(house: Harness) -> int:
    return sum(request.method == "GET" for request in house.airtable_server.log)


async def resolved(house: Harness) -> str | None:
    found = rows(house.store_path, "SELECT resolution FROM errors WHERE kind = 'missing_record'")
    return str(found[0][0]) if found and found[0][0] else None


async def test_a_run_that_is_in_airtable_is_adopted_and_its_held_updates_follow(house: Harness) -> None:
    house.airtable.insert(BY_HAND)
    async with house.running() as service:
        assert (await add_posts(house, 3, "a"))["outcome"] == "held"
        await until(lambda: bool(rows(house.store_path, "SELECT 1 FROM runs")))
        assert (await add_posts(house, 3, "a"))["outcome"] == "duplicate"
        assert (await add_posts(house, 2, "b"))["outcome"] == "queued"
        await service.sync.until_idle()
        run = (await house.call("GET", f"/runs/{RUN_ID}")).json()
    record = house.records()[RUN_ID]
    assert record["Total Posts Harvested"] == 10
    assert record["Progress Log"] == "by hand"
    assert run["origin"] == "adopted"
    assert run["client_id"] == "Guy-Wilson"
    assert await resolved(house) == "adopted"
    told = [entry["what"] for entry in run["timeline"]]  # type: ignore[index, union-attr, call-overload]
    assert told.index("update held") < told.index("run adopted") < told.index("missing_record resolved")


@pytest.mark.parametrize("name", [RUN_ID.lower(), RUN_ID.upper(), f"{RUN_ID} ", f" {RUN_ID}", RUN_ID[:-1], None])
async def test_only_the_very_run_id_adopts(house: Harness, name: Json) -> None:
    """Client ids differ by case too: whatever Airtable takes for a match, another run's record is not ours."""
    like_ours = {"id": "recAAAAAAAAAAAAAA", "fields": {**BY_HAND, "Run ID": name}}
    house.airtable_server.faults.add(odd_body(json.dumps({"records": [like_ours]}).encode()), method="GET")
    async with house.running():
        assert (await add_posts(house, 3))["outcome"] == "held"
        await until(lambda: rows(house.store_path, "SELECT looks FROM errors") == [(1,)])
    assert rows(house.store_path, "SELECT count(*) FROM runs") == [(0,)]
    assert rows(house.store_path, "SELECT kind, state FROM errors") == [("missing_record", "open")]
    assert house.records() == {}


async def test_a_run_is_adopted_from_a_table_that_lacks_other_columns(house: Harness) -> None:
    for column in ("Client ID", "Client Name", "Progress Log"):
        house.airtable.remove_column(column)
    record = house.airtable.insert({"Run ID": RUN_ID, "Total Posts Harvested": 4}).id
    async with house.running():
        await add_posts(house, 3)
        await until(lambda: house.records()[RUN_ID]["Total Posts Harvested"] == 7)
        assert (await house.call("GET", f"/runs/{RUN_ID}")).json()["airtable_record_id"] == record
    assert await resolved(house) == "adopted"


async def test_a_kickoff_of_an_adopted_run_creates_nothing(house: Harness) -> None:
    house.airtable.insert(BY_HAND)
    async with house.running() as service:
        await add_posts(house, 3)
        await until(lambda: bool(rows(house.store_path, "SELECT 1 FROM runs")))
        answer = await house.call("POST", "/runs", {"client_id": "Guy-Wilson", "job_id": "251007-070457"})
        assert (answer.status, answer.json()["created"]) == (200, False)
        await service.sync.until_idle()
    assert len(house.records()) == 1


async def test_the_batches_of_a_kickoff_that_comes_after_the_adoption_are_queued_once(house: Harness) -> None:
    house.airtable.insert(BY_HAND)
    kickoff: Json = {"client_id": "Guy-Wilson", "job_id": "251007-070457", "batches": [{"input": {"profiles": ["a"]}}]}
    async with house.running() as service:
        await add_posts(house, 3)
        await until(lambda: bool(rows(house.store_path, "SELECT 1 FROM runs")))
        for _ in range(2):
            answer = await house.call("POST", "/runs", kickoff)
            assert (answer.status, answer.json()["created"]) == (200, False)
        await service.sync.until_idle()
    assert rows(house.store_path, "SELECT number, state FROM batches") == [(1, "queued")]


async def test_a_look_asks_for_many_ids_at_once_and_pauses_longer_each_time(
    slow_house: Harness, clock: HandClock
) -> None:
    async with slow_house.running():
        for number in range(30):
            await slow_house.call("PATCH", f"/runs/251007-070457-Nobody-{number}", {"add": {"posts_scored": 1}})
        done = "SELECT count(*) FROM errors WHERE look_due_at IS NOT NULL AND looks = ?"
        path, times = slow_house.store_path, []
        for count, pause in ((1, 0), (2, 60), (3, 120)):
            if pause:
                await until(lambda: waits_for_long(clock))
                clock.pass_time(pause - 10)
            await let_time_pass(clock, lambda n=count: rows(path, done, n) == [(30,)], step=0.1, most=200.0)  # type: ignore[misc]
            times.append(clock.monotonic())
        assert looks(slow_house) == 3
        assert 60 <= times[1] - times[0] < 90
        assert 120 <= times[2] - times[1] < 180
    assert slow_house.records() == {}


async def test_what_goes_missing_within_a_second_is_looked_for_in_one_call(
    slow_house: Harness, clock: HandClock
) -> None:
    async with slow_house.running():
        for number in range(5):
            clock.pass_time(0.15)
            await slow_house.call("PATCH", f"/runs/251007-070457-Nobody-{number}", {"add": {"posts_scored": 1}})
        looked = "SELECT count(*) FROM errors WHERE looks = 1"
        await let_time_pass(clock, lambda: rows(slow_house.store_path, looked) == [(5,)])
        assert looks(slow_house) == 1


async def test_two_records_are_a_duplicate_until_a_person_leaves_one(slow_house: Harness, clock: HandClock) -> None:
    slow_house.airtable.insert(BY_HAND)
    second = slow_house.airtable.insert(BY_HAND)
    path = slow_house.store_path
    async with slow_house.running():
        await add_posts(slow_house, 1)
        kinds = "SELECT kind FROM errors WHERE state = 'open' ORDER BY kind"
        await let_time_pass(clock, lambda: rows(path, kinds) == [("duplicate_record",), ("missing_record",)], most=5.0)
        slow_house.airtable.delete(second.id)
        await let_time_pass(clock, lambda: rows(path, kinds) == [], step=0.5, most=70.0)
        await let_time_pass(clock, lambda: rows(path, "SELECT sync FROM runs") == [("synced",)], most=5.0)
    assert slow_house.records()[RUN_ID]["Total Posts Harvested"] == 6


async def test_a_record_that_is_another_runs_is_found_and_not_adopted(slow_house: Harness, clock: HandClock) -> None:
    """A person gave the record of a run the id of the one that is missing."""
    kinds = "SELECT kind, run_id FROM errors WHERE state = 'open' ORDER BY kind"
    async with slow_house.running() as service:
        await slow_house.kick_off("Dean-Hobin")
        await slow_house.synced()
        (record,) = slow_house.airtable.records()
        slow_house.airtable.edit(record.id, {"Run ID": RUN_ID})
        await add_posts(slow_house, 1)
        both = [("duplicate_record", RUN_ID), ("missing_record", RUN_ID)]
        await let_time_pass(clock, lambda: rows(slow_house.store_path, kinds) == both, most=5.0)
        assert not any(loop.done() for loop in service.loops)
    assert rows(slow_house.store_path, "SELECT run_id FROM runs") == [("251007-070457-Dean-Hobin",)]


async def test_looks_survive_the_faults_of_the_wire(slow_house: Harness, clock: HandClock) -> None:
    slow_house.airtable.insert(BY_HAND)
    for fault in (rate_limited(), server_error(503), applied_then_dropped()):
        slow_house.airtable_server.faults.add(fault)
    path = slow_house.store_path
    async with slow_house.running():
        await add_posts(slow_house, 1)
        await let_time_pass(clock, lambda: rows(path, "SELECT sync FROM runs") == [("synced",)], step=0.5, most=600.0)
    assert slow_house.records()[RUN_ID]["Total Posts Harvested"] == 6


async def test_a_look_that_is_refused_is_repeated_ever_less_until_it_is_answered(
    slow_house: Harness, clock: HandClock
) -> None:
    """However many updates are held meanwhile; but a person who has mended the cause need not wait."""
    refused = reply(invalid_formula("no such column").response(ErrorForms()))
    slow_house.airtable_server.faults.add(refused, times=None, method="GET")

    async def pass_hours(hours: float) -> int:
        before, end = looks(slow_house), clock.monotonic() + hours * 3600
        while clock.monotonic() < end:
            await add_posts(slow_house, 1)
            soon = clock.monotonic() + 600
            await let_time_pass(clock, lambda soon=soon: clock.monotonic() >= soon, step=30.0)  # type: ignore[misc]
        return looks(slow_house) - before

    async with slow_house.running():
        assert await pass_hours(2) == 7  # at once, and after 1, 2, 4, 8, 16 and 32 minutes
        assert await pass_hours(4) == 4
        before = looks(slow_house)
        assert (await slow_house.call("POST", "/outbox/retry", {})).status == 200
        await until(lambda: looks(slow_house) == before + 1)
        slow_house.airtable_server.faults.clear()
        await let_time_pass(clock, lambda: rows(slow_house.store_path, "SELECT looks FROM errors") == [(1,)], step=20.0)
        slow_house.airtable_server.faults.add(refused, times=None, method="GET")
        assert await pass_hours(0.5) == 5  # after 1 minute, and then as at first
    assert slow_house.records() == {}


async def test_a_look_without_an_end_is_given_up_and_repeated_later(slow_house: Harness, clock: HandClock) -> None:
    slow_house.airtable.insert(BY_HAND)
    page = b'{"records": [{"id": "rec00000000000001", "fields": {}}], "offset": "same"}'
    slow_house.airtable_server.faults.add(odd_body(page), times=None, method="GET")
    path = slow_house.store_path
    async with slow_house.running():
        await add_posts(slow_house, 1)
        end = clock.monotonic() + 90
        await let_time_pass(clock, lambda: clock.monotonic() >= end, step=0.5)
        assert looks(slow_house) == 2 * 2  # at once and after a minute: a page, and the one that it leads to
        slow_house.airtable_server.faults.clear()
        await let_time_pass(clock, lambda: rows(path, "SELECT sync FROM runs") == [("synced",)], step=1.0)
    assert slow_house.records()[RUN_ID]["Total Posts Harvested"] == 6


async def test_a_late_kickoff_is_followed_by_what_was_held_in_its_order(house: Harness) -> None:
    async with house.running() as service:
        for line in ("one", "two", "three"):
            await house.call("PATCH", f"/runs/{RUN_ID}", {"append": {"progress_log": line}})
        await house.webhook(sample("apify-webhook-minimal-template.json"))
        await house.kick_off(fields={"progress_log": "kickoff"})
        await house.call("PATCH", f"/runs/{RUN_ID}", {"append": {"progress_log": "four"}})
        await service.sync.until_idle()
    record = house.records()[RUN_ID]
    assert record["Progress Log"] == "kickoff\none\ntwo\nthree\nfour"
    assert record["Apify Run ID"] == "HG7ML7M8z78YcAPEB"
    assert await resolved(house) == "created_late"


async def test_a_deleted_record_is_not_recreated_and_comes_back_when_it_is_restored(house: Harness) -> None:
    async with house.running() as service:
        await house.kick_off()
        await house.synced()
        (record,) = house.airtable.records()
        house.airtable.delete(record.id)
        await add_posts(house, 4)
        await until(lambda: rows(house.store_path, "SELECT kind FROM errors") == [("record_deleted",)])
        await service.sync.until_idle()
        assert house.airtable.records() == []
        shown = (await house.call("GET", "/runs?sync=failed")).json()
        assert [run["run_id"] for run in shown["runs"]] == [RUN_ID]  # type: ignore[union-attr, index, call-overload]


async def test_a_record_that_was_renamed_by_hand_to_another_run_is_never_shared(house: Harness) -> None:
    """The upsert of the second run matches the first one's record: it is set aside, and the service goes on."""
    async with house.running() as service:
        await house.kick_off("Guy-Wilson")
        await house.synced()
        (record,) = house.airtable.records()
        house.airtable.edit(record.id, {"Run ID": "251007-070457-Dean-Hobin"})
        await house.kick_off("Dean-Hobin")
        await house.kick_off("Ana-Petrov")
        await service.sync.until_idle()
        shown = (await house.call("GET", "/runs/251007-070457-Dean-Hobin")).json()
        found = rows(house.store_path, "SELECT kind, run_id FROM errors")
    assert (shown["sync"], shown["airtable_record_id"]) == ("failed", None)
    assert found == [("duplicate_record", "251007-070457-Dean-Hobin")]
    assert "251007-070457-Ana-Petrov" in house.records()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("251007-070457", "251007-070457-Guy-Wilson"),
        ("251007-070457-Guy-Wilson-Guy-Wilson", "251007-070457-Guy-Wilson"),
        ("251007-070458-Guy-Wilson", "251007-070457-Guy-Wilson"),
        ("251007-070457-guy-wilson", "251007-070457-Guy-Wilson"),
        ("251007-070457-Guy-Wlison", "251007-070457-Guy-Wilson"),
    ],
)
async def test_the_error_names_what_was_probably_meant(house: Harness, wrong: str, meant: str) -> None:
    async with house.running():
        await house.kick_off("Guy-Wilson")
        await house.kick_off("Dean-Hobin", job_id="251006-070457")
        held = (await house.call("PATCH", f"/runs/{wrong}", {"add": {"posts_scored": 1}})).json()
        assert held["error"]["similar_runs"][0] == meant  # type: ignore[index, call-overload]
        found = rows(house.store_path, "SELECT run_id, updates_held, similar_runs FROM missing_records")
    assert found[0][:2] == (wrong, 1)
    assert meant in str(found[0][2])


async def test_a_run_that_nobody_kicked_off_shows_what_named_it_and_what_waits_for_it(house: Harness) -> None:
    wrong = f"{RUN_ID}-Guy-Wilson"
    async with house.running():
        await house.kick_off("Guy-Wilson")
        for posts in (1, 2):
            await house.call("PATCH", f"/runs/{wrong}", {"add": {"posts_scored": posts}})
        told = await house.call("GET", f"/runs/{wrong}")
        assert told.status == 404
        for part in ("POST /runs", "Error 1 (missing_record) is open and holds 2 updates", f"was it {RUN_ID}"):
            assert part in told.json()["detail"]  # type: ignore[operator]
        unheard = (await house.call("GET", "/runs/unheard-of")).json()["detail"]
        assert unheard == "there is no run 'unheard-of': runs are created at kickoff only (POST /runs)"
    shown = await command(house.folder, "runs", "show", wrong, "--json")
    assert shown.code == 1
    known = json.loads(shown.out)
    assert [one["updates_held"] for one in known["errors"]] == [2]
    assert [one["what"] for one in known["timeline"]].count("update held") == 2
    assert "holds 2 updates" in shown.err
    assert "What happened" in (await command(house.folder, "runs", "show", wrong)).out
