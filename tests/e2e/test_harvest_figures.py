"""What a run shows for its batches: figures measured when they are final, and a status that follows."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from app.sandbox.apify import TOKEN
from app.sandbox.apify_account import Timing
from app.sandbox.apify_answers import error_answer
from app.sandbox.apify_dispatch import Lose
from app.sandbox.apify_runs import ActorRunInput, Plan, RunStatus
from app.sandbox.wire import applied_then_dropped, reply, server_error
from tests.support.harness import WEBHOOK_SECRET
from tests.support.harvesting import RUN, Harvesting, harvesting
from tests.support.watching import meddle, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.sandbox.messages import WireRequest, WireResponse


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Harvesting]:
    async with harvesting(tmp_path) as made:
        yield made


def measures(field: Harvesting) -> int:
    return sum("/datasets/" in one.path and one.path.endswith("/items") for one in field.apify.log)


def posts_written(field: Harvesting) -> list[tuple[object, ...]]:
    """Every number of posts and every cost that was put into the outbox."""
    query = """SELECT change ->> '$.set.posts_harvested', change ->> '$.set.apify_api_costs' FROM outbox
        WHERE change ->> '$.set.posts_harvested' IS NOT NULL OR change ->> '$.set.apify_api_costs' IS NOT NULL"""
    return [tuple(row) for row in rows(field.house.store_path, query)]


async def test_figures_that_settle_late_are_read_once_and_final(field: Harvesting) -> None:
    field.sandbox.script = lambda _: Plan(items=[{}] * 25, cost_usd=0.123, early_cost_usd=0.01, lasts_seconds=2.5)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    batch = field.batch()
    assert (batch.items, batch.cost_usd, batch.duration_seconds) == (25, 0.123, 2.5)
    assert len(posts_written(field)) == 1
    assert measures(field) == 1
    assert field.record()["Total Posts Harvested"] == 25


async def test_a_cost_that_is_not_known_yet_is_asked_for_again(field: Harvesting) -> None:
    field.sandbox.timing = Timing(settle=40)
    field.sandbox.script = lambda _: Plan(items=[{}], cost_usd=0.25, early_cost_usd=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert field.batch().cost_usd == 0.25
    assert len(posts_written(field)) == 1
    assert measures(field) == 4


async def test_a_cost_that_never_comes_is_left_open(field: Harvesting) -> None:
    field.sandbox.timing = Timing(settle=10_000_000)
    field.sandbox.script = lambda _: Plan(items=[{}], cost_usd=0.25, early_cost_usd=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert (field.batch().items, field.batch().cost_usd) == (1, None)
    assert "Apify API Costs" not in field.record()


async def test_a_count_that_lags_is_made_whole_by_paging(field: Harvesting) -> None:
    field.sandbox.timing = Timing(item_lag=10_000)
    field.sandbox.script = lambda _: Plan(items=[{"n": n} for n in range(2_501)], cost_usd=0.25)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert field.batch().items == 2_501
    assert measures(field) > 1


async def test_figures_that_cannot_be_read_are_asked_for_until_they_can(field: Harvesting) -> None:
    field.sandbox.script = lambda _: Plan(RunStatus.FAILED, items=[{}], cost_usd=0.25, message="blocked")
    refused = reply(error_answer(400, "strange", "not now"))
    field.apify.faults.add(refused, path_contains="/datasets/", times=3)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    batch = field.batch()
    assert (batch.items, batch.cost_usd, batch.cause) == (1, 0.25, "blocked")


async def test_sums_are_decimal(field: Harvesting) -> None:
    field.sandbox.script = lambda _: Plan(items=[{}], cost_usd=0.1)
    async with field.running():
        await field.kick_off(["a"], ["b"], ["c"])
        await field.settled()
    assert field.record()["Apify API Costs"] == 0.3
    assert rows(field.house.store_path, "SELECT fields ->> '$.apify_api_costs' FROM runs") == [(0.3,)]


async def test_a_run_deleted_while_it_ran_ends_as_failed_with_its_cause(field: Harvesting) -> None:
    field.sandbox.script = lambda _: Plan(lasts_seconds=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().state == "running")
        field.sandbox.delete_run(field.apify_run().id)
        await field.settled()
    assert (field.batch().state, field.batch().outcome) == ("measured", "failed")
    assert field.record()["Status"] == "Failed"
    assert "Apify no longer has run" in str(field.record()["Error Details"])
    assert len(field.starts()) == 1


async def test_a_run_deleted_before_it_was_measured_keeps_its_end(field: Harvesting) -> None:
    async with field.running():
        await field.kick_off(["ann"], ["bob"])
        await field.until(lambda: field.batch().state == "succeeded")
        field.sandbox.delete_run(field.apify_run().id)
        await field.settled()
    assert (field.batch().outcome, field.batch().items) == ("succeeded", None)
    assert "its figures are unknown" in str(field.batch().cause)
    assert field.record()["Status"] == "Completed"
    assert field.record()["Total Posts Harvested"] == 3
    assert len(field.starts()) == 2


def say(field: Harvesting, was: bytes, odd: bytes) -> None:
    """Let Apify's API answer with something else than it means."""
    mean = field.apify._wire.backend

    def answer(request: WireRequest) -> WireResponse:
        meant = mean(request)
        return replace(meant, body=re.sub(was, odd, meant.body))

    field.apify._wire.backend = answer


@pytest.mark.parametrize(
    ("was", "odd", "known"),
    [
        (b'"told"', rb'"half \\ud83d of a pair"', (3, 0.25, 1.0)),
        (b'"usageTotalUsd":0.25', b'"usageTotalUsd":-0.25', (3, None, 1.0)),
        (b'"usageTotalUsd":0.25', b'"usageTotalUsd":NaN', (3, None, 1.0)),
        (b'"usageTotalUsd":0.25', b'"usageTotalUsd":Infinity', (3, None, 1.0)),
        (b'"runTimeSecs":[0-9.]+', b'"runTimeSecs":Infinity', (3, 0.25, None)),
        (b'"finishedAt":"....(.*)"runTimeSecs":[0-9.]+', rb'"finishedAt":"2001\1"runTimeSecs":null', (3, 0.25, None)),
        (b'"itemCount":3', b'"itemCount":%d' % 2**64, (None, 0.25, 1.0)),
    ],
    ids=["half a pair", "a cost below 0", "no number", "an endless cost", "an endless run", "an end before", "items"],
)
async def test_an_odd_word_or_figure_of_apify_stops_nothing_and_counts_as_untold(
    field: Harvesting, was: bytes, odd: bytes, known: tuple[object, ...]
) -> None:
    field.apify.webhooks.treat(Lose(), times=None)
    field.sandbox.script = lambda _: Plan(RunStatus.FAILED, items=[{}] * 3, cost_usd=0.25, message="told")
    say(field, was, odd)
    async with field.running() as service:
        await field.kick_off(["ann"])
        await field.settled(most=300.0)
        assert not any(loop.done() for loop in service.loops)
    batch = field.batch()
    assert (batch.items, batch.cost_usd, batch.duration_seconds) == known
    assert batch.cause == ("half ? of a pair" if b"pair" in odd else "told")
    assert field.record()["Status"] == "Failed"


async def test_what_one_batch_cannot_take_is_asked_for_again_and_stops_no_other(field: Harvesting) -> None:
    """Whatever is wrong with an answer: here the store refuses it, as it would refuse what no rule foresees."""
    refused = (
        "CREATE TRIGGER odd BEFORE UPDATE ON batches WHEN new.number = 1 AND {} BEGIN SELECT RAISE (ABORT, 'odd'); END"
    )
    field.apify.webhooks.treat(Lose(), times=None)
    async with field.running() as service:
        meddle(field.house.store_path, refused.format("new.state = 'measured'"))
        await field.kick_off(["ann"], ["bob"])
        await field.until(lambda: field.batch(2).is_settled)
        assert field.batch(1).state == "succeeded"
        meddle(field.house.store_path, "DROP TRIGGER odd")
        await field.settled()
        meddle(field.house.store_path, refused.format("new.state <> 'starting'"))  # not even that it failed
        await field.kick_off(["cid"], ["dan"], client_id="Zoe")
        zoe = "251007-070457-Zoe"
        await field.until(lambda: field.batch(2, zoe).is_settled)
        assert field.batch(1, zoe).state == "starting"
        assert not any(loop.done() for loop in service.loops)
    assert [one.attempts for one in field.batches()] == [1, 1]


async def test_a_start_whose_answer_cannot_be_taken_is_a_lost_one(field: Harvesting) -> None:
    """It is looked for, and not sent again."""
    field.apify.webhooks.treat(Lose(), times=None)
    odd = "WHEN new.state = 'running' BEGIN SELECT RAISE (ABORT, 'odd'); END"
    async with field.running():
        meddle(field.house.store_path, f"CREATE TRIGGER odd BEFORE UPDATE ON batches {odd}")
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().state == "unknown")
        assert "could not be taken" in str(field.batch().cause)
        meddle(field.house.store_path, "DROP TRIGGER odd")
        await field.settled()
    assert len(field.starts()) == 1
    field.assert_each_started_once(1)


def by_name(given: ActorRunInput) -> Plan:
    """The first profile says how the run ends."""
    assert isinstance(given.value, dict)
    assert isinstance(given.value["profiles"], list)
    outcome = RunStatus(str(given.value["profiles"][0]))
    return Plan(outcome, items=[{}], cost_usd=0.1, message=f"told to be {outcome}")


async def test_mixed_outcomes_complete_with_errors_and_say_which_and_why(field: Harvesting) -> None:
    field.sandbox.script = by_name
    async with field.running():
        await field.kick_off(["SUCCEEDED"], ["FAILED"], ["ABORTED"], ["TIMED-OUT"])
        await field.settled()
    record, batches = field.record(), field.batches()
    assert record["Status"] == "Completed with Errors"
    assert record["Apify Status"] == "ABORTED 1, FAILED 1, SUCCEEDED 1, TIMED-OUT 1"
    assert sorted(str(record["Error Details"]).splitlines()) == [
        f"Batch 2 (Apify run {batches[1].apify_run_id}) failed: told to be FAILED",
        f"Batch 3 (Apify run {batches[2].apify_run_id}) aborted: told to be ABORTED",
        f"Batch 4 (Apify run {batches[3].apify_run_id}) timed out: told to be TIMED-OUT",
    ]
    assert (record["Total Posts Harvested"], record["Apify API Costs"]) == (4, 0.4)


async def test_a_run_none_of_whose_batches_succeeded_has_failed(field: Harvesting) -> None:
    field.sandbox.script = by_name
    field.apify.webhooks.treat(Lose(), times=None)
    async with field.running():
        await field.kick_off(["FAILED"], ["ABORTED"])
        await field.settled()
    assert field.record()["Status"] == "Failed"
    assert len(str(field.record()["Error Details"]).splitlines()) == 2


async def test_an_update_of_the_caller_stands_beside_the_figures(field: Harvesting) -> None:
    async with field.running():
        await field.kick_off(["ann"], fields={"system_notes": "kept"})
        await field.house.call("PATCH", f"/runs/{RUN}", {"add": {"posts_scored": 2}})
        await field.settled()
    record = field.record()
    assert (record["System Notes"], record["Posts Successfully Scored"]) == ("kept", 2)
    assert record["Total Posts Harvested"] == 3


async def test_a_person_sees_each_batch_its_run_state_items_and_cost(field: Harvesting) -> None:
    field.apify.faults.add(applied_then_dropped(), method="POST")
    async with field.running():
        await field.kick_off(["ann", "bob"])
        await field.settled()
        shown = await field.shown()
    apify_run_id = field.batch().apify_run_id
    assert isinstance(shown["batches"], list)
    (batch,) = shown["batches"]
    assert isinstance(batch, dict)
    assert {name: batch[name] for name in ("number", "state", "outcome", "apify_run_id", "items", "cost_usd")} == {
        "number": 1,
        "state": "measured",
        "outcome": "succeeded",
        "apify_run_id": apify_run_id,
        "items": 6,
        "cost_usd": 0.022,
    }
    assert isinstance(shown["timeline"], list)
    told = {str(one["what"]): str(one["detail"]) for one in shown["timeline"] if isinstance(one, dict)}
    assert told["batch queued"] == "batch 1, 2 profiles"
    assert told["batch started"] == f"batch 1 is Apify run {apify_run_id}"
    assert told["batch succeeded"] == f"batch 1, Apify run {apify_run_id}"
    assert told["batch measured"] == "batch 1: 6 items, $0.022, 1.0 s"
    query = "SELECT what, detail FROM run_timeline WHERE run_id = ? ORDER BY at, step, id"
    assert ("batch measured", told["batch measured"]) in rows(field.house.store_path, query, RUN)


async def test_no_secret_is_told_or_kept(
    field: Harvesting, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even at the lowest level, nor when Apify repeats in an error what it was sent."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx2", "httpcore2", "httpcore2.http11", "apify_client"):
        caplog.set_level(logging.DEBUG, logger=name)
    field.apify.faults.add(server_error(500), method="POST")
    echo = reply(error_answer(402, "odd", f"what was sent: Bearer {WEBHOOK_SECRET} by {TOKEN}"))
    field.apify.faults.add(echo, method="POST")
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
        shown = json.dumps(await field.shown())
    told = capfd.readouterr()
    encoded = [dict(one.query)["webhooks"] for one in field.starts()]
    with sqlite3.connect(field.house.store_path) as connection:
        kept = "\n".join(connection.iterdump())
    connection.close()
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "harvest.stepped" in told.out + told.err + logged
    for place in (told.out, told.err, shown, kept, logged):
        for secret in (WEBHOOK_SECRET, TOKEN, *encoded, encoded[0][40:80]):
            assert secret not in place
