"""A kickoff with batches over real sockets: each started once, within the plan, and followed to its record."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from app.apify_client import EVENTS
from app.sandbox.apify_account import HARVESTER, Limits
from app.sandbox.apify_answers import error_answer, rate_limited
from app.sandbox.apify_runs import Plan
from app.sandbox.wire import hung, reply
from tests.support.harness import WEBHOOK_SECRET
from tests.support.harvesting import RUN, Harvesting, harvesting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Harvesting]:
    async with harvesting(tmp_path) as made:
        yield made


async def test_a_kickoff_with_batches_runs_to_a_completed_record(field: Harvesting) -> None:
    async with field.running():
        await field.kick_off(["ann", "bob"], ["cleo"], client_name="Guy Wilson")
        await field.settled()
        shown = await field.shown()
    record, batches = field.record(), field.batches()
    assert record["Status"] == "Completed"
    assert record["Total Posts Harvested"] == 9
    assert record["Apify API Costs"] == 0.038
    assert record["Profiles Submitted for Post Harvesting"] == 3
    assert record["Apify Run ID"] == ", ".join(str(one.apify_run_id) for one in batches)
    assert record["Apify Status"] == "SUCCEEDED"
    assert record["End Time"] == max(str(one.finished_at) for one in batches)
    assert record["Last Webhook"] == "2026-05-16T09:00:01.000Z"
    assert "Error Details" not in record
    assert [(one.state, one.outcome, one.items, one.cost_usd, one.attempts) for one in batches] == [
        ("measured", "succeeded", 6, 0.022, 1),
        ("measured", "succeeded", 3, 0.016, 1),
    ]
    field.assert_each_started_once(2)
    assert shown["sync"] == "synced"


async def test_a_kickoff_does_not_wait_for_apify(field: Harvesting) -> None:
    field.apify.faults.add(hung(), times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.apify.wait_for(lambda log: len(log) == 1)
        assert field.batch().state == "starting"
        answer = await field.house.call("PATCH", f"/runs/{RUN}", {"append": {"progress_log": "still here"}})
        assert answer.status == 202
        field.apify.faults.clear()
        await field.settled()
    assert field.record()["Total Posts Harvested"] == 3
    assert field.record()["Progress Log"] == "still here"
    field.assert_each_started_once(1)


async def test_a_start_names_run_and_batch_in_the_webhooks_url_and_the_secret_in_a_header(field: Harvesting) -> None:
    async with field.running() as service:
        await field.kick_off(["ann"])
        await field.settled()
        url = service.url
    (start,) = field.starts()
    (webhook,) = json.loads(base64.b64decode(dict(start.query)["webhooks"]))
    assert sorted(webhook["eventTypes"]) == sorted(EVENTS)
    assert {one.rpartition(".")[2] for one in EVENTS} == {
        *("CREATED", "SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT", "RESURRECTED")
    }
    parts = urlsplit(webhook["requestUrl"])
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{url}/webhooks/apify"
    assert parse_qs(parts.query) == {"run": [RUN], "batch": [str(field.batch().token)]}
    assert WEBHOOK_SECRET not in webhook["requestUrl"]
    assert json.loads(webhook["headersTemplate"]) == {"Authorization": f"Bearer {WEBHOOK_SECRET}"}
    assert json.loads(start.body) == {"profiles": ["ann"]}


@pytest.mark.parametrize("status", [402, 403])
@pytest.mark.parametrize("kind", ["memory", "concurrent"])
async def test_a_full_plan_waits_and_uses_up_no_attempt(field: Harvesting, status: int, kind: str) -> None:
    full = Limits(memory_mbytes=1, status=status) if kind == "memory" else Limits(concurrent_runs=0, status=status)
    field.sandbox.limits = full
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: len(field.starts()) == 3)
        waiting = field.batch()
        assert (waiting.state, waiting.attempts) == ("queued", 0)
        assert "limit" in str(waiting.cause)
        field.sandbox.limits = Limits()
        await field.settled()
    assert field.batch().attempts == 1
    assert field.record()["Status"] == "Completed"
    field.assert_each_started_once(1)


async def test_a_429_waits_and_uses_up_no_attempt(field: Harvesting) -> None:
    field.apify.faults.add(reply(rate_limited()), method="POST", times=2)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert len(field.starts()) == 3
    assert field.batch().attempts == 1
    field.assert_each_started_once(1)


async def test_a_token_that_apify_refuses_waits_for_a_better_one(field: Harvesting) -> None:
    field.sandbox.token = "another"
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: len(field.starts()) == 2)
        assert field.batch().state == "queued"
        assert "user-or-token-not-found" in str(field.batch().cause)


async def test_apify_out_of_reach_costs_no_attempt_and_no_look(field: Harvesting) -> None:
    async with field.running():
        await field.apify.stop()
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().cause is not None)
        assert (field.batch().state, field.batch().attempts) == ("queued", 0)
        await field.apify.start()
        await field.settled()
    assert len(field.starts()) == 1
    field.assert_each_started_once(1)


async def test_never_more_runs_at_apify_than_allowed(tmp_path: Path) -> None:
    async with harvesting(tmp_path, apify={"max_concurrent_runs": 2}) as field:
        field.sandbox.script = lambda _: Plan(lasts_seconds=20, items=[{}], cost_usd=0.1)
        most = 0

        def seen() -> bool:
            nonlocal most
            most = max(most, sum(not run.is_terminal for run in field.sandbox.runs))
            return all(one.is_settled for one in field.batches())

        async with field.running():
            await field.kick_off(*([f"p{number}"] for number in range(7)))
            await field.until(seen)
            await field.synced()
        assert most == 2
        assert field.record()["Total Posts Harvested"] == 7
        assert field.record()["Apify API Costs"] == 0.7
        field.assert_each_started_once(7)


async def test_a_refused_input_fails_its_batch_with_the_cause(field: Harvesting) -> None:
    field.sandbox.refuses = lambda value: "no such profile" if value == {"profiles": ["nobody"]} else None
    async with field.running():
        await field.kick_off(["ann"], ["nobody"])
        await field.settled()
    refused = field.batch(2)
    assert (refused.state, refused.outcome, refused.apify_run_id) == ("failed", "failed", None)
    assert "no such profile" in str(refused.cause)
    record = field.record()
    assert record["Status"] == "Completed with Errors"
    assert record["Profiles Submitted for Post Harvesting"] == 1
    assert str(record["Error Details"]).startswith("Batch 2 (never started) failed: Apify refuses the input")
    assert "no such profile" in str(record["Error Details"])
    assert len(field.starts()) == 2


async def test_an_actor_that_does_not_exist_fails_its_batch(field: Harvesting) -> None:
    async with field.running():
        await field.house.kick_off(batches=[{"input": {}, "actor_id": "nobody~nothing"}])
        await field.settled()
    assert "knows no such actor" in str(field.batch().cause)
    assert field.record()["Status"] == "Failed"
    assert len(field.starts()) == 1


async def test_a_refusal_without_any_type_is_still_a_refusal(field: Harvesting) -> None:
    field.apify.faults.add(reply(error_answer(413, "request-too-large", "The input is too large")), method="POST")
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert field.record()["Status"] == "Failed"
    assert field.sandbox.starts[HARVESTER.id] == 0


async def test_a_run_without_batches_keeps_the_status_of_its_caller(field: Harvesting) -> None:
    async with field.running():
        await field.kick_off()
        await field.pass_time(120)
        await field.synced()
        assert field.record()["Status"] == "Running"
        await field.house.call("PATCH", f"/runs/{RUN}", {"set": {"status": "Completed"}})
        await field.pass_time(120)
        await field.synced()
    assert field.record()["Status"] == "Completed"
    assert not field.apify.log
