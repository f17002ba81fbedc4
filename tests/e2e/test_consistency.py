"""The consistency check finds what people do to records by hand, says it once, and takes it back when it is mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_limits import NO_LIMITS
from tests.support.checking import EVERY_TYPE, backdate, causes, check, errors, found, record_id
from tests.support.harness import Harness, QuickClock, harness
from tests.support.watching import meddle, rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json

ANA, GUY, DEAN = "251007-070457-Ana", "251007-070457-Guy", "251007-070457-Dean"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Harness]:
    """A base that takes whatever comes: the pace is not what these tests are about."""
    async with harness(tmp_path, clock=QuickClock(5), airtable={"requests_per_second": 50}) as made:
        made.airtable.limits = NO_LIMITS
        yield made


@pytest.fixture
async def served(house: Harness) -> AsyncIterator[Harness]:
    """Three runs, delivered, with values of every type."""
    async with house.running():
        for client_id in ("Ana", "Guy", "Dean"):
            await house.kick_off(client_id, client_name=client_id)
            update: Json = {"set": EVERY_TYPE, "append": {"system_notes": ["a note", "with two lines"]}}
            answer = await house.call("PATCH", f"/runs/251007-070457-{client_id}", update)
            assert answer.status == 202, answer.text
        await house.synced()
        yield house


async def test_a_table_that_nobody_touched_has_no_findings(served: Harness) -> None:
    report = await check(served)
    assert found(report) == []
    assert (report["pages"], report["records"], report["calls"]) == (1, 3, 2)
    assert errors(served) == []


EDITS: dict[str, tuple[str, Json, str]] = {
    "text": ("Apify Run ID", "run2", "apify_run_ids: 'run1' here, 'run2' in Airtable"),
    "log": ("System Notes", "a note", r"system_notes: 'a note\nwith two lines' here, 'a note' in Airtable"),
    "integer": ("Total Posts Harvested", 6, "posts_harvested: 5 here, 6 in Airtable"),
    "decimal": ("Apify API Costs", 0.3, "apify_api_costs: 0.1 here, 0.3 in Airtable"),
    "datetime": (
        "Start Time",
        "2026-05-16T09:21:00.000Z",
        "start_time: '2026-05-16T09:20:00.000Z' here, '2026-05-16T09:21:00.000Z' in Airtable",
    ),
    "select": ("Status", "Failed", "status: 'Running' here, 'Failed' in Airtable"),
    "emptied": ("Client Name", None, "client_name: 'Guy' here, empty in Airtable"),
    "renamed": ("Run ID", "renamed", "run_id: '251007-070457-Guy' here, 'renamed' in Airtable"),
}


@pytest.mark.parametrize(("column", "value", "cause"), EDITS.values(), ids=EDITS.keys())
async def test_an_edited_cell_is_drift_that_names_the_field_and_both_values(
    served: Harness, column: str, value: Json, cause: str
) -> None:
    record = record_id(served, GUY)
    before = served.airtable.records()[1].fields.get(column)
    served.airtable.edit(record, {column: value})
    report = await check(served)
    assert found(report) == [("drift", GUY)]
    assert causes(report) == [cause]
    served.airtable.edit(record, {column: before})
    assert found(await check(served)) == []
    assert errors(served) == [("drift", GUY, "resolved", "no_longer_seen")]


async def test_cells_that_we_do_not_deliver_may_be_edited(served: Harness) -> None:
    served.airtable.edit(record_id(served, GUY), {"Total Tokens Used": 7, "Error Details": "by hand"})
    assert found(await check(served)) == []


async def test_a_deleted_record_is_missing_in_airtable(served: Harness) -> None:
    gone = record_id(served, GUY)
    served.airtable.delete(gone)
    report = await check(served)
    assert found(report) == [("record_deleted", GUY)]
    assert causes(report) == [f"the record is missing in Airtable: {gone} is gone"]


async def test_a_record_that_was_deleted_and_made_again_has_an_id_that_no_longer_matches(served: Harness) -> None:
    gone = record_id(served, GUY)
    served.airtable.delete(gone)
    made = served.airtable.insert({"Run ID": GUY, "Client ID": "Guy"}).id
    report = await check(served)
    assert found(report) == [("record_deleted", GUY)]
    assert causes(report) == [f"the record id no longer matches: {gone} is gone, and the run is {made} there"]


async def test_a_second_record_with_a_run_id_is_a_duplicate(served: Harness) -> None:
    ours = record_id(served, GUY)
    second = served.airtable.insert({"Run ID": GUY}).id
    report = await check(served)
    assert found(report) == [("duplicate_record", GUY)]
    assert causes(report) == [f"ours is {ours}, and there is {second}"]
    served.airtable.delete(second)
    assert found(await check(served)) == []
    assert errors(served) == [("duplicate_record", GUY, "resolved", "no_longer_seen")]


async def test_a_record_that_nobody_kicked_off_is_unknown(served: Harness) -> None:
    stranger = served.airtable.insert({"Run ID": "251007-070457-Eve", "Client ID": "Eve"}).id
    nameless = served.airtable.insert({"Client Name": "nobody"}).id
    report = await check(served)
    assert found(report) == [("unknown_record", "251007-070457-Eve"), ("unknown_record", None)]
    assert sorted(causes(report)) == sorted(
        [f"record {stranger} has Run ID 251007-070457-Eve", f"record {nameless} has no Run ID"]
    )
    assert rows(served.store_path, "SELECT client_id FROM errors ORDER BY id") == [("Eve",), (None,)]
    served.airtable.delete(stranger)
    served.airtable.delete(nameless)
    assert found(await check(served)) == []
    assert {row[3] for row in errors(served)} == {"no_longer_seen"}


async def test_a_record_renamed_to_another_run_of_ours_is_drift_and_no_duplicate(served: Harness) -> None:
    served.airtable.edit(record_id(served, GUY), {"Run ID": ANA})
    assert found(await check(served)) == [("drift", GUY)]


async def test_every_kind_at_once_is_found_once_each_however_often_it_is_looked_for(served: Harness) -> None:
    served.airtable.edit(record_id(served, ANA), {"Status": "Failed", "Client Name": None})
    served.airtable.delete(record_id(served, GUY))
    served.airtable.insert({"Run ID": DEAN})
    served.airtable.insert({"Run ID": "unknown"})
    everything = [
        ("drift", ANA),
        ("duplicate_record", DEAN),
        ("record_deleted", GUY),
        ("unknown_record", "unknown"),
    ]
    first = await check(served)
    assert (found(first), first["opened"], first["resolved"]) == (everything, 4, 0)
    again = await check(served)
    assert (found(again), again["opened"], again["resolved"]) == (everything, 0, 0)
    assert len(errors(served)) == 4
    assert rows(served.store_path, "SELECT DISTINCT count FROM errors") == [(2,)]
    assert {one.fields.get("Run ID") for one in served.airtable.records()} == {ANA, DEAN, "unknown"}  # nothing created


async def test_a_finding_follows_what_it_is_now_and_a_resolved_one_opens_anew(served: Harness) -> None:
    record = record_id(served, GUY)
    served.airtable.edit(record, {"Status": "Failed"})
    await check(served)
    served.airtable.edit(record, {"Apify Run ID": "run2"})
    assert "apify_run_ids: 'run1' here, 'run2' in Airtable" in causes(await check(served))[0]
    assert len(errors(served)) == 1
    assert (await served.call("POST", "/errors/1/resolve")).status == 200
    assert (await check(served))["opened"] == 1
    assert [row[2] for row in errors(served)] == ["resolved", "open"]


async def test_what_happened_stands_in_the_timeline_of_the_run(served: Harness) -> None:
    served.airtable.edit(record_id(served, GUY), {"Status": "Failed"})
    await check(served, "drift")
    await served.synced()
    shown = (await served.call("GET", f"/runs/{GUY}")).text
    for what in ("drift opened", "update accepted", "from repair", "drift resolved", "repaired"):
        assert what in shown


# Repair


async def test_repair_delivers_our_present_values_of_the_drifted_fields_and_nothing_else(served: Harness) -> None:
    guy = record_id(served, GUY)
    served.airtable.edit(guy, {"Status": "Failed", "Total Posts Harvested": 99, "Total Tokens Used": 3})
    served.airtable.delete(record_id(served, DEAN))
    served.airtable.insert({"Run ID": ANA})
    before = served.airtable_server.log[:]
    report = await check(served, "drift")
    assert report["repaired"] == 1
    await served.synced()
    written = [one for one in served.airtable_server.log[len(before) :] if one.method not in {"GET", "POST"}]
    assert [one.json() for one in written] == [
        {"records": [{"id": guy, "fields": {"Status": "Running", "Total Posts Harvested": 5}}]}
    ]
    cells = next(one.fields for one in served.airtable.records() if one.id == guy)
    assert (cells["Status"], cells["Total Posts Harvested"], cells["Total Tokens Used"]) == ("Running", 5, 3)
    assert len(served.airtable.records()) == 3  # nothing was created
    drift = rows(served.store_path, "SELECT state, resolution FROM errors WHERE kind = 'drift'")
    assert drift == [("resolved", "repaired")]
    assert found(await check(served)) == [("duplicate_record", ANA), ("record_deleted", DEAN)]


async def test_without_repair_nothing_is_written(served: Harness) -> None:
    served.airtable.edit(record_id(served, GUY), {"Status": "Failed"})
    sent = len(served.airtable_server.log)
    await check(served)
    await served.synced()
    assert {one.method for one in served.airtable_server.log[sent:]} <= {"GET", "POST"}
    assert served.records()[GUY]["Status"] == "Failed"


async def test_a_renamed_record_gets_its_run_id_back(served: Harness) -> None:
    served.airtable.edit(record_id(served, GUY), {"Run ID": "renamed"})
    await check(served, "drift")
    await served.synced()
    assert set(served.records()) == {ANA, GUY, DEAN}


async def test_an_ordinary_update_mends_drift_too(served: Harness) -> None:
    served.airtable.edit(record_id(served, GUY), {"Total Posts Harvested": 99})
    await check(served)
    await served.call("PATCH", f"/runs/{GUY}", {"add": {"posts_harvested": 1}})
    await served.synced()
    assert found(await check(served)) == []
    assert errors(served) == [("drift", GUY, "resolved", "no_longer_seen")]


async def test_what_can_be_asked_of_a_check_is_said(served: Harness) -> None:
    answer = await served.call("POST", "/check", {"repair": "everything"})
    assert answer.status == 422
    assert "drift" in answer.text
    assert (await served.call("POST", "/check", token=None)).status == 401


async def test_the_last_report_is_in_the_stats(served: Harness) -> None:
    before = (await served.call("GET", "/stats")).json()
    assert before["last_check"] is None
    served.airtable.delete(record_id(served, GUY))
    report = await check(served)
    stats = (await served.call("GET", "/stats")).json()
    assert stats["last_check"] == {name: value for name, value in report.items() if name != "findings"}


# What is not a finding


IN_HALF_AN_HOUR = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+30 minutes')"


async def test_a_run_that_is_on_its_way_is_no_finding(house: Harness) -> None:
    async with house.running():
        for client_id in ("Ana", "Guy", "Dean"):
            await house.kick_off(client_id)
        await house.synced()
    meddle(house.store_path, f"UPDATE runs SET due_at = {IN_HALF_AN_HOUR}, sync = 'pending' WHERE client_id <> 'Dean'")
    house.airtable.edit(record_id(house, ANA), {"Client ID": "by hand"})
    house.airtable.delete(record_id(house, GUY))
    house.airtable.insert({"Run ID": DEAN})
    house.airtable.edit(record_id(house, DEAN), {"Client ID": "by hand"})
    async with house.running():
        assert found(await check(house)) == [("drift", DEAN), ("duplicate_record", DEAN)]


async def test_a_run_is_left_alone_for_the_time_of_grace(tmp_path: Path) -> None:
    async with harness(tmp_path, consistency={"grace_seconds": 300}) as house, house.running():
        await house.kick_off("Guy")
        await house.synced()
        house.airtable.edit(record_id(house, GUY), {"Client ID": "by hand"})
        assert found(await check(house)) == []
        meddle(house.store_path, "UPDATE runs SET changed_at = '2020-01-01T00:00:00.000Z'")
        assert found(await check(house)) == []  # changed long ago, and delivered just now
        meddle(house.store_path, "UPDATE outbox SET delivered_at = '2020-01-01T00:00:00.000Z'")
        assert found(await check(house)) == [("drift", GUY)]
        meddle(house.store_path, "UPDATE runs SET changed_at = '2099-01-01T00:00:00.000Z'")
        report = await check(house)
        assert (found(report), report["resolved"]) == ([], 0)  # not sure any more, so it stays as it is
        assert errors(house) == [("drift", GUY, "open", None)]


async def test_a_missing_run_that_is_looked_for_is_no_unknown_record(served: Harness) -> None:
    """It is an open error already, and is adopted if there is one record of it."""
    served.airtable.insert({"Run ID": "251007-070457-Eve"})
    served.airtable.insert({"Run ID": "251007-070457-Eve"})
    await served.call("PATCH", "/runs/251007-070457-Eve", {"add": {"posts_harvested": 1}})
    assert found(await check(served)) == []


async def test_of_an_adopted_run_only_what_we_delivered_is_compared(served: Harness) -> None:
    eve = served.airtable.insert({"Run ID": "251007-070457-Eve", "Client Name": "Eve", "Total Posts Harvested": 4}).id
    assert found(await check(served)) == [("unknown_record", "251007-070457-Eve")]
    await served.call("PATCH", "/runs/251007-070457-Eve", {"add": {"posts_harvested": 1}})
    await until(
        lambda: bool(rows(served.store_path, "SELECT 1 FROM runs WHERE origin = 'adopted' AND sync = 'synced'"))
    )
    await served.synced()
    served.airtable.edit(eve, {"Client Name": "Eva"})
    assert found(await check(served)) == []
    assert ("unknown_record", "251007-070457-Eve", "resolved", "no_longer_seen") in errors(served)
    served.airtable.edit(eve, {"Total Posts Harvested": 99})
    report = await check(served, "drift")
    assert causes(report) == ["posts_harvested: 5 here, 99 in Airtable"]
    await served.synced()
    served.airtable.edit(eve, {"Run ID": "renamed"})
    assert causes(await check(served)) == ["run_id: '251007-070457-Eve' here, 'renamed' in Airtable"]


# The window


async def test_a_record_older_than_the_window_is_neither_read_nor_missed(house: Harness) -> None:
    async with house.running():
        await house.kick_off("Guy")
        await house.synced()
        meddle(house.store_path, "UPDATE runs SET created_at = '2020-01-01T00:00:00.000Z'")
        house.airtable.delete(record_id(house, GUY))
        report = await check(house)
        assert found(report) == []
        assert report["calls"] == 2


async def test_what_was_found_wrong_is_looked_at_again_when_it_has_left_the_window(served: Harness) -> None:
    """It is not mended because the listing no longer shows it: its record is asked for by name."""
    served.airtable.edit(record_id(served, ANA), {"Status": "Failed"})
    served.airtable.insert({"Run ID": GUY})
    stranger = served.airtable.insert({"Run ID": "unknown"}).id
    nameless = served.airtable.insert({"Client Name": "nobody"}).id
    assert (await check(served))["opened"] == 4
    backdate(served, days=30)
    meddle(served.store_path, "UPDATE runs SET created_at = '2020-01-01T00:00:00.000Z'")
    report = await check(served)
    assert (len(found(report)), report["opened"], report["resolved"]) == (4, 0, 0)
    served.airtable.edit(record_id(served, ANA), {"Status": "Running"})
    served.airtable.delete(stranger)
    served.airtable.delete(nameless)
    served.airtable.delete(next(one.id for one in reversed(served.airtable.records()) if one.fields["Run ID"] == GUY))
    report = await check(served)
    assert (found(report), report["resolved"]) == ([], 4)


async def test_a_record_that_the_listing_left_out_is_asked_for_before_it_is_called_missing(served: Harness) -> None:
    backdate(served, days=30)
    report = await check(served)
    assert found(report) == []
    assert (report["pages"], report["records"]) == (2, 3)
    served.airtable.edit(record_id(served, GUY), {"Status": "Failed", "Run ID": "renamed"})
    assert found(await check(served)) == [("drift", GUY)]  # by its record id too
