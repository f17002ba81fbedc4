"""The main job over real sockets: kickoff, updates and webhooks in, records in Airtable out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.harness import sample

if TYPE_CHECKING:
    from tests.support.harness import Harness


async def test_a_kickoff_and_its_updates_become_one_record(house: Harness) -> None:
    async with house.running():
        run_id = await house.kick_off(client_name="Guy Wilson")
        for posts in (3, 4):
            answer = await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": posts}})
            assert answer.status == 202
            assert answer.json()["outcome"] == "queued"
        await house.call("PATCH", f"/runs/{run_id}", {"append": {"progress_log": ["one", "two"]}})
        await house.call("PATCH", f"/runs/{run_id}", {"set": {"status": "Completed"}})
        await house.synced()
        shown = (await house.call("GET", f"/runs/{run_id}")).json()
    record = house.records()[run_id]
    assert record["Total Posts Harvested"] == 7
    assert record["Progress Log"] == "one\ntwo"
    assert record["Status"] == "Completed"
    assert record["Client Name"] == "Guy Wilson"
    assert shown["sync"] == "synced"


async def test_a_webhook_that_names_its_run_updates_the_record(house: Harness) -> None:
    async with house.running():
        run_id = await house.kick_off()
        answer = await house.webhook(sample("apify-webhook-minimal-template.json"))
        assert answer.json()["outcome"] == "queued"
        await house.synced()
    assert house.records()[run_id]["Apify Run ID"] == "HG7ML7M8z78YcAPEB"
    assert house.records()[run_id]["Apify Status"] == "SUCCEEDED"
