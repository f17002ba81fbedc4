"""Webhooks of batches, as they really come: twice, late, in any order, before the start's answer, or never."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from app.sandbox.apify_dispatch import Double, Hold, Lose
from app.sandbox.apify_runs import ActorRunInput, Event, Plan, RunStatus
from app.sandbox.wire import slow
from tests.support.harness import WEBHOOK_SECRET, sample
from tests.support.harvesting import RUN, Harvesting, harvesting
from tests.support.watching import rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Harvesting]:
    async with harvesting(tmp_path) as made:
        yield made


def outcomes(field: Harvesting) -> list[tuple[str, str, int]]:
    return [
        (str(event).rpartition(".")[2], str(outcome), int(str(deliveries)))
        for event, outcome, deliveries in rows(
            field.house.store_path, "SELECT event, outcome, deliveries FROM webhook_events ORDER BY id"
        )
    ]


def statuses(field: Harvesting) -> list[str]:
    """Every status that the run was given since its kickoff, in order."""
    found = rows(
        field.house.store_path, "SELECT change ->> '$.set.status' FROM outbox WHERE kind = 'update' ORDER BY id"
    )
    return [str(status) for (status,) in found if status is not None]


def assert_counted_once(field: Harvesting) -> None:
    assert field.record()["Total Posts Harvested"] == 3
    assert field.record()["Apify API Costs"] == 0.016
    assert field.record()["Status"] == "Completed"
    field.assert_each_started_once(1)


def two_lives(given: ActorRunInput) -> Plan:
    """Two posts in the first life, and three more in the second."""
    return Plan(items=[{}] * (2 + given.life), cost_usd=0.1 * (1 + given.life), lasts_seconds=100)


@pytest.mark.parametrize("same_dispatch", [True, False])
async def test_a_doubled_webhook_counts_once(field: Harvesting, *, same_dispatch: bool) -> None:
    field.apify.webhooks.treat(Double(same_dispatch=same_dispatch), times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert_counted_once(field)
    assert statuses(field) == ["Completed"]
    ends = [one[1:] for one in outcomes(field) if one[0] == "SUCCEEDED"]
    assert ends == ([("queued", 2)] if same_dispatch else [("queued", 1), ("duplicate", 1)])


async def test_webhooks_in_the_wrong_order_end_in_the_right_state(field: Harvesting) -> None:
    field.apify.webhooks.treat(Hold(), times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: len(field.apify.webhooks.log) == 2)
        (created,), (succeeded,) = field.dispatches(Event.CREATED), field.dispatches(Event.SUCCEEDED)
        await field.apify.webhooks.release(succeeded, created)
        assert field.batch().state == "succeeded"
        await field.settled()
    assert_counted_once(field)
    assert statuses(field) == ["Completed"]


async def test_without_any_webhook_the_end_is_found_by_asking_ever_more_rarely(field: Harvesting) -> None:
    field.sandbox.script = lambda _: Plan(lasts_seconds=1500, items=[{}] * 3, cost_usd=0.016)
    field.apify.webhooks.treat(Lose(), times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert_counted_once(field)
    asked = [one.received_at for one in field.apify.log if "/actor-runs/" in one.path]
    waits = [round(later - earlier) for earlier, later in zip([0.0, *asked], asked, strict=False)]
    assert waits == [60, 120, 240, 480, 960, 12]


async def test_webhooks_from_before_the_starts_answer_are_not_taken_back_by_it(field: Harvesting) -> None:
    field.apify.faults.add(slow(20), method="POST")
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().state == "succeeded")
        assert field.clock.monotonic() < 20
        await field.pass_time(30)
        await field.settled()
    assert_counted_once(field)
    assert statuses(field) == ["Completed"]


async def test_a_webhook_long_after_the_end_changes_nothing(field: Harvesting) -> None:
    field.apify.webhooks.treat(Hold(), times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
        assert field.batch().state == "measured"
        await field.pass_time(7200)
        await field.apify.webhooks.release()
        assert {one[1] for one in outcomes(field)} == {"ignored"}
        await field.settled()
    assert_counted_once(field)
    assert statuses(field) == ["Completed"]
    assert field.record()["Last Webhook"] is not None


async def test_a_resurrected_run_runs_again_and_its_figures_are_replaced(field: Harvesting) -> None:
    field.sandbox.script = two_lives
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
        assert (field.record()["Total Posts Harvested"], field.record()["Apify API Costs"]) == (2, 0.1)
        first_end = field.record()["End Time"]
        field.sandbox.resurrect(field.apify_run().id)
        await field.until(lambda: field.batch().state == "running")
        await field.synced()
        assert field.record()["Status"] == "Running"
        assert field.record().get("End Time") is None
        await field.settled()
    assert (field.record()["Total Posts Harvested"], field.record()["Apify API Costs"]) == (5, 0.3)
    assert field.record()["Status"] == "Completed"
    assert str(field.record()["End Time"]) > str(first_end)
    assert statuses(field) == ["Completed", "Running", "Completed"]
    field.assert_each_started_once(1)


async def test_a_failed_run_that_is_resurrected_can_still_complete(field: Harvesting) -> None:
    field.sandbox.script = lambda given: Plan(
        RunStatus.SUCCEEDED if given.life else RunStatus.FAILED, items=[{}], cost_usd=0.1, message="blocked"
    )
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
        assert field.record()["Status"] == "Failed"
        assert "failed: blocked" in str(field.record()["Error Details"])
        field.sandbox.resurrect(field.apify_run().id)
        await field.pass_time(5)
        await field.settled()
    assert field.record()["Status"] == "Completed"
    assert (field.record()["Total Posts Harvested"], field.record()["Apify API Costs"]) == (2, 0.2)


@pytest.mark.parametrize("when", ["running again", "ended again"])
async def test_the_first_end_told_after_a_resurrection_is_late(field: Harvesting, when: str) -> None:
    field.sandbox.script = two_lives
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().state == "running")
        field.apify.webhooks.treat(Hold(), event=Event.SUCCEEDED)
        await field.until(lambda: bool(field.dispatches(Event.SUCCEEDED)))
        field.sandbox.resurrect(field.apify_run().id)
        await field.pass_time(10)
        if when == "ended again":
            await field.settled()
        before = field.batch()
        await field.apify.webhooks.release()
        assert field.batch().state == before.state
        assert outcomes(field)[-1][1] == "ignored"
        await field.settled()
    assert (field.record()["Total Posts Harvested"], field.record()["Apify API Costs"]) == (5, 0.3)
    assert statuses(field) == ["Completed"]


async def test_a_resurrection_told_after_its_own_end_is_late(field: Harvesting) -> None:
    field.sandbox.script = two_lives
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
        field.apify.webhooks.treat(Hold(), event=Event.RESURRECTED)
        field.sandbox.resurrect(field.apify_run().id)
        await field.until(lambda: field.batch().state == "succeeded")
        await field.apify.webhooks.release()
        assert field.batch().state == "succeeded"
        await field.settled()
    assert (field.record()["Total Posts Harvested"], field.record()["Apify API Costs"]) == (5, 0.3)


async def test_a_resurrection_that_no_webhook_told_is_seen_when_the_run_is_measured(field: Harvesting) -> None:
    field.sandbox.script = two_lives
    field.apify.webhooks.treat(Lose(), event=Event.RESURRECTED)
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().state == "succeeded")
        field.sandbox.resurrect(field.apify_run().id)
        await field.until(lambda: field.batch().state == "running")
        await field.settled()
    assert (field.record()["Total Posts Harvested"], field.record()["Apify API Costs"]) == (5, 0.3)
    assert statuses(field) == ["Completed", "Running", "Completed"]


async def test_a_run_that_ended_again_before_it_was_measured_is_measured_whole(field: Harvesting) -> None:
    field.sandbox.script = lambda given: Plan(items=[{}] * (2 + given.life), cost_usd=0.1, lasts_seconds=1)
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().state == "succeeded")
        field.apify.webhooks.treat(Lose(), times=None)
        await field.pass_time(5)
        field.sandbox.resurrect(field.apify_run().id)
        await field.settled()
    assert (field.record()["Total Posts Harvested"], field.record()["Apify API Costs"]) == (5, 0.2)


async def test_a_test_dispatch_says_nothing_of_a_run(field: Harvesting) -> None:
    async with field.running() as service:
        headers = json.dumps({"Authorization": f"Bearer {WEBHOOK_SECRET}"})
        await field.kick_off(["ann"])
        field.sandbox.send_test_webhook(f"{service.url}/webhooks/apify", headers)
        await field.apify.webhooks.settled(Event.TEST)
        await field.settled()
    assert ("TEST", "ignored", 1) in outcomes(field)
    assert_counted_once(field)


async def test_a_webhook_of_an_unknown_run_is_held_and_matched_when_its_batch_appears(field: Harvesting) -> None:
    """A second webhook of the account's own names no run of ours, and comes before the lost start is found."""
    field.apify.faults.add(slow(20), method="POST")
    field.apify.webhooks.treat(Hold(), times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: len(field.apify.webhooks.log) == 2)
        body = field.dispatches(Event.SUCCEEDED)[0].dispatch.body
        answer = (await field.house.webhook(body, dispatch_id="of-the-account")).json()
        assert answer["outcome"] == "held"
        errors = (await field.house.call("GET", "/errors?kind=unmatched_webhook&state=open")).json()["errors"]
        assert isinstance(errors, list)
        assert len(errors) == 1
        assert (await field.house.webhook(body, dispatch_id="of-the-account")).json()["outcome"] == "duplicate"
        await field.apify.webhooks.release(field.dispatches(Event.CREATED)[0])
        assert field.batch().state == "succeeded"
        await field.pass_time(30)
        await field.settled()
        shown = await field.shown()
        resolved = (await field.house.call("GET", "/errors?kind=unmatched_webhook")).json()["errors"]
    assert isinstance(resolved, list)
    assert isinstance(resolved[0], dict)
    assert (resolved[0]["state"], resolved[0]["resolution"]) == ("resolved", "matched")
    assert shown["status"] == "Completed"
    assert_counted_once(field)


async def test_a_webhook_of_a_run_that_is_kicked_off_late_is_applied_then(field: Harvesting) -> None:
    body = sample("apify-webhook-succeeded.json")
    async with field.running():
        query = "?" + urlencode({"run": RUN})
        answer = (await field.house.webhook(body, query=query, dispatch_id="early")).json()
        assert answer["outcome"] == "held"
        open_errors = (await field.house.call("GET", "/errors?kind=missing_record&state=open")).json()["errors"]
        assert isinstance(open_errors, list)
        assert len(open_errors) == 1
        await field.kick_off()
        await field.synced()
        open_errors = (await field.house.call("GET", "/errors?state=open")).json()["errors"]
        assert open_errors == []
    payload: dict[str, dict[str, Json]] = json.loads(body)
    assert field.record()["Apify Run ID"] == payload["resource"]["id"]
    assert field.record()["Apify Status"] == "SUCCEEDED"
    assert field.record()["Status"] == "Running"


async def test_a_status_that_a_caller_set_is_not_changed_by_events(field: Harvesting) -> None:
    async with field.running():
        await field.kick_off(["ann"])
        await field.house.call("PATCH", f"/runs/{RUN}", {"set": {"status": "No Leads To Score"}})
        await field.settled()
        field.sandbox.resurrect(field.apify_run().id)
        await field.pass_time(5)
        await field.settled()
    assert field.record()["Status"] == "No Leads To Score"
    assert statuses(field) == ["No Leads To Score"]
    assert field.record()["Total Posts Harvested"] == 6


async def test_a_webhook_with_another_secret_is_refused(field: Harvesting) -> None:
    async with field.running():
        await field.kick_off(["ann"])
        body = sample("apify-webhook-succeeded.json")
        assert (await field.house.call("POST", "/webhooks/apify", body, token="wrong")).status == 401
        await field.settled()
    assert_counted_once(field)
