"""A dead message hides nothing else of its run from the consistency check, and a repair that died is not sent again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.faults import odd_body, slow
from tests.support.checking import EVERY_TYPE, causes, check, errors, found, record_id
from tests.support.harness import Harness, harness
from tests.support.watching import meddle, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GUY = "251007-070457-Guy"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Harness]:
    """A run whose status was refused and set aside; all else of it was delivered."""
    async with harness(tmp_path, airtable={"requests_per_second": 50}) as made, made.running():
        made.airtable.limits = NO_LIMITS
        await made.kick_off("Guy", fields={"apify_run_ids": "run1"})
        await made.call("PATCH", f"/runs/{GUY}", {"set": {**EVERY_TYPE, "status": "Completed"}})
        await made.synced()
        made.airtable.remove_option("Status", "Failed")
        await made.call("PATCH", f"/runs/{GUY}", {"set": {"status": "Failed"}})
        await made.synced()
        assert errors(made) == [("rejected", GUY, "open", None)]
        yield made


async def test_what_never_arrived_has_not_drifted_and_all_else_is_compared(served: Harness) -> None:
    assert found(await check(served)) == []
    served.airtable.edit(record_id(served, GUY), {"Total Posts Harvested": 99})
    report = await check(served, "drift")
    assert causes(report) == ["posts_harvested: 5 here, 99 in Airtable"]
    await served.synced()
    cells = served.records()[GUY]
    assert (cells["Total Posts Harvested"], cells["Status"]) == (5, "Completed")
    assert rows(served.store_path, "SELECT sync FROM runs") == [("failed",)]
    assert errors(served)[1] == ("drift", GUY, "resolved", "repaired")


async def test_a_run_with_something_set_aside_counts_as_failed_while_its_repair_is_on_its_way(served: Harness) -> None:
    served.airtable.edit(record_id(served, GUY), {"Total Posts Harvested": 99})
    served.airtable_server.faults.add(slow(0.5), method="PATCH")
    assert (await check(served, "drift"))["repaired"] == 1
    assert rows(served.store_path, "SELECT sync, due_at IS NOT NULL FROM runs") == [("failed", 1)]
    await served.synced()
    assert rows(served.store_path, "SELECT sync, due_at IS NOT NULL FROM runs") == [("failed", 0)]


async def test_a_deleted_or_doubled_record_of_a_run_with_a_dead_message_is_found(served: Harness) -> None:
    twin = served.airtable.insert({"Run ID": GUY}).id
    assert found(await check(served)) == [("duplicate_record", GUY)]
    served.airtable.delete(twin)
    assert (await check(served))["resolved"] == 1
    served.airtable.delete(record_id(served, GUY))
    assert found(await check(served)) == [("record_deleted", GUY)]


async def test_what_a_later_message_delivered_after_all_is_compared_again(served: Harness) -> None:
    await served.call("PATCH", f"/runs/{GUY}", {"set": {"status": "Running"}})
    await served.synced()
    served.airtable.edit(record_id(served, GUY), {"Status": "Completed"})
    assert causes(await check(served)) == ["status: 'Running' here, 'Completed' in Airtable"]


async def test_a_repair_that_died_is_not_queued_again_and_its_drift_stays_open_until_it_is_replayed(
    served: Harness,
) -> None:
    served.airtable.edit(record_id(served, GUY), {"Total Posts Harvested": 99})
    refusal = {"type": "INVALID_VALUE_FOR_COLUMN", "message": 'Field "Total Posts Harvested" cannot accept the value'}
    served.airtable_server.faults.add(odd_body(json.dumps({"error": refusal}).encode(), 422), method="PATCH")
    assert (await check(served, "drift"))["repaired"] == 1
    await served.synced()
    for _ in range(2):
        report = await check(served, "drift")
        assert (found(report), report["repaired"], report["resolved"]) == ([], 0, 0)
    assert errors(served)[1:] == [("drift", GUY, "open", None), ("rejected", GUY, "open", None)]
    served.airtable.add_option("Status", "Failed")
    assert (await served.call("POST", "/outbox/retry", {"kind": "rejected"})).json()["retried"] == 2
    await served.synced()
    assert [row[3] for row in errors(served)] == ["replayed", "repaired", "replayed"]
    assert found(await check(served)) == []


async def test_a_run_is_left_alone_for_a_while_after_something_of_it_was_set_aside(served: Harness) -> None:
    served.airtable.edit(record_id(served, GUY), {"Total Posts Harvested": 99})
    meddle(served.store_path, "UPDATE outbox SET dead_at = '2099-01-01T00:00:00.000Z' WHERE state = 'dead'")
    assert found(await check(served)) == []
    meddle(served.store_path, "UPDATE outbox SET dead_at = '2020-01-01T00:00:00.000Z' WHERE state = 'dead'")
    assert found(await check(served)) == [("drift", GUY)]


async def test_a_delivered_update_does_not_end_a_duplicate(served: Harness) -> None:
    served.airtable.insert({"Run ID": GUY})
    await check(served)
    await served.call("PATCH", f"/runs/{GUY}", {"add": {"posts_scored": 1}})
    await served.synced()
    assert ("duplicate_record", GUY, "open", None) in errors(served)
