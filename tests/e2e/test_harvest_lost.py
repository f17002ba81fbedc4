"""Starts whose answer was lost: found again, and never sent blindly twice."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from app.apify_client import ApifyAccess
from app.sandbox.apify import TOKEN
from app.sandbox.apify_account import HARVESTER, RunRequest, Timing
from app.sandbox.apify_dispatch import Lose
from app.sandbox.apify_runs import Event, Plan, RunOptions
from app.sandbox.wire import (
    Fault,
    applied_late,
    applied_then_dropped,
    applied_then_hang,
    dropped,
    hung,
    odd_body,
    server_error,
    truncated,
)
from tests.support.harvesting import RUN, Harvesting, harvesting
from tests.support.watching import let_time_pass, rows
from tests.support.wire_by_hand import JumpingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json
    from app.sandbox.wire import LoggedRequest

APPLIED = [
    pytest.param(applied_then_dropped(), id="dropped"),
    pytest.param(applied_then_hang(), id="timed out"),
    pytest.param(server_error(502, applied=True), id="5xx"),
    pytest.param(truncated(), id="truncated"),
    pytest.param(odd_body(b"<html>"), id="not JSON"),
    pytest.param(odd_body(b"[]"), id="no object"),
    pytest.param(odd_body(b"null", 201), id="null"),
    pytest.param(odd_body(b'{"data": {"id": "x"}}'), id="not a run"),
]
NOT_APPLIED = [
    pytest.param(dropped(), id="dropped"),
    pytest.param(hung(), id="timed out"),
    pytest.param(server_error(503), id="5xx"),
]


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Harvesting]:
    async with harvesting(tmp_path, sync={"shutdown_seconds": 0.3}) as made:  # what hangs at the end hangs for ever
        yield made


def lose_webhooks(field: Harvesting) -> None:
    field.apify.webhooks.treat(Lose(), times=None)


def forget_who_asked(field: Harvesting) -> None:
    """Let Apify keep no User-Agent: only the input tells a run then."""
    ask = field.sandbox.start

    def start(asked: RunRequest) -> object:
        run = ask(asked)
        run.user_agent = ""
        return run

    field.sandbox.start = start  # type: ignore[method-assign,assignment]


def start_by_hand(field: Harvesting, *profiles: str) -> str:
    """Somebody else starts a run with this input, from Apify's console."""
    body = ('{"profiles":[' + ",".join(f'"{one}"' for one in profiles) + "]}").encode()
    value: Json = {"profiles": list(profiles)}
    options = RunOptions()
    return field.sandbox.start(
        RunRequest(HARVESTER, body, "application/json", value, options, user_agent="Mozilla/5.0")
    ).id


def listings(field: Harvesting) -> list[LoggedRequest]:
    return [one for one in field.apify.log if one.method == "GET" and one.path.endswith("/runs")]


@pytest.mark.parametrize("fault", APPLIED)
async def test_a_lost_start_is_found_by_its_created_webhook(field: Harvesting, fault: Fault) -> None:
    field.apify.faults.add(fault, method="POST")
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert len(field.starts()) == 1
    assert not listings(field)
    assert (field.batch().state, field.batch().attempts) == ("measured", 1)
    assert field.record()["Total Posts Harvested"] == 3
    assert field.record()["Status"] == "Completed"
    field.assert_each_started_once(1)


@pytest.mark.parametrize("known_by", ["user agent", "input"])
@pytest.mark.parametrize("fault", APPLIED)
async def test_a_lost_start_without_webhooks_is_found_by_looking(
    field: Harvesting, fault: Fault, known_by: str
) -> None:
    field.apify.faults.add(fault, method="POST")
    lose_webhooks(field)
    if known_by == "input":
        forget_who_asked(field)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert len(field.starts()) == 1
    assert listings(field)
    assert field.record()["Total Posts Harvested"] == 3
    assert field.record()["Apify API Costs"] == 0.016
    assert field.record()["Status"] == "Completed"
    field.assert_each_started_once(1)


@pytest.mark.parametrize("fault", NOT_APPLIED)
async def test_a_start_is_sent_again_only_after_a_list_long_enough_after_it(field: Harvesting, fault: Fault) -> None:
    field.apify.faults.add(fault, method="POST")
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    first, second = field.starts()
    assert second.received_at - first.received_at >= 60
    assert any(first.received_at + 60 <= look.received_at <= second.received_at for look in listings(field))
    assert field.batch().attempts == 2
    assert field.record()["Status"] == "Completed"
    field.assert_each_started_once(1)


async def test_a_lost_start_is_found_by_a_clock_that_is_ahead_of_apifys(field: Harvesting) -> None:
    apifys = field.sandbox.now
    field.sandbox.now = lambda: apifys() - timedelta(hours=1)
    field.apify.faults.add(applied_then_dropped(), method="POST")
    lose_webhooks(field)
    async with field.running():
        await field.kick_off(["ann"])
        await let_time_pass(field.clock, lambda: field.batch().is_settled, step=0.5, most=300.0)
    field.assert_each_started_once(1)


async def test_a_start_that_was_tried_by_a_clock_that_is_set_back_is_looked_for_once_in_a_while(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with harvesting(tmp_path, clock=clock) as field:
        field.apify.faults.add(dropped(), method="POST")
        async with field.running():
            await field.kick_off(["ann"])
            await field.until(lambda: field.batch().state == "unknown")
            clock.jump(-2 * 86_400)
            until_then = clock.monotonic() + 600
            await let_time_pass(clock, lambda: clock.monotonic() > until_then, step=1.0)
    assert 5 <= len({look.received_at for look in listings(field)}) <= 12  # a minute apart
    assert len(field.starts()) == 1


async def test_a_run_that_a_listing_shows_late_is_waited_for(field: Harvesting) -> None:
    field.sandbox.timing = Timing(listing_lag=50)
    field.apify.faults.add(applied_then_dropped(), method="POST")
    lose_webhooks(field)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    assert len(listings(field)) > 1
    assert len(field.starts()) == 1
    field.assert_each_started_once(1)


async def test_while_nobody_can_look_nothing_is_started_again(field: Harvesting) -> None:
    field.apify.faults.add(server_error(503), method="POST")
    rule = field.apify.faults.add(odd_body(b'{"data": {}}'), method="GET", path_contains="/runs", times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.pass_time(3000)
        assert len(field.starts()) == 1
        assert field.batch().state == "unknown"
        assert "could not be listed" in str(field.batch().cause)
        rule.left = 0
        await field.settled()
    assert field.batch().cause is None
    field.assert_each_started_once(1)


async def test_an_incomplete_list_proves_nothing(field: Harvesting) -> None:
    """The list's first page came, its second did not: the run may be on it."""
    field.apify.faults.add(server_error(503), method="POST")
    rule = field.apify.faults.add(odd_body(b"<html>"), method="GET", path_contains="/runs", after=1, times=None)
    async with field.running():
        start_by_hand(field, "zoe")
        await field.kick_off(["ann"])
        await field.pass_time(600)
        assert len(field.starts()) == 1
        rule.left = 0
        await field.settled()
    assert len(field.starts()) == 2


@pytest.mark.parametrize("known_by", ["user agent", "input"])
async def test_two_lost_batches_with_one_input_are_a_run_each(field: Harvesting, known_by: str) -> None:
    field.apify.faults.add(applied_then_dropped(), method="POST", times=2)
    lose_webhooks(field)
    if known_by == "input":
        forget_who_asked(field)
    async with field.running():
        await field.kick_off(["ann"], ["ann"])
        await field.settled()
    assert len(field.starts()) == 2
    assert field.record()["Total Posts Harvested"] == 6
    assert field.record()["Apify API Costs"] == 0.032
    field.assert_each_started_once(2)


async def test_the_run_of_another_batch_is_nobody_elses(field: Harvesting) -> None:
    """The first batch is a run with the very input; the second's start never arrived."""
    forget_who_asked(field)
    field.apify.faults.add(server_error(500), method="POST", after=1)
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().state == "running")
        await field.kick_off(["ann"], client_id="Bo")
        await field.settled(RUN, "251007-070457-Bo")
    assert len(field.starts()) == 3
    field.assert_each_started_once(2)
    assert field.record("251007-070457-Bo")["Total Posts Harvested"] == 3


async def test_a_run_that_somebody_else_started_with_this_input_is_not_taken_for_ours(field: Harvesting) -> None:
    field.apify.faults.add(applied_then_dropped(), method="POST")
    lose_webhooks(field)
    async with field.running():
        theirs = start_by_hand(field, "ann")
        await field.kick_off(["ann"])
        await field.settled()
    assert field.batch().apify_run_id not in {None, theirs}
    assert len(field.starts()) == 1


async def test_a_batch_whose_run_another_one_found_finds_the_others(field: Harvesting) -> None:
    """While the first start hangs, the second batch, lost, looks and sees a run with its very input."""
    field.sandbox.script = lambda _: Plan(lasts_seconds=300, items=[{}], cost_usd=0.5)
    field.apify.faults.add(applied_then_hang(), method="POST")
    field.apify.faults.add(server_error(503), method="POST")
    field.apify.webhooks.treat(Lose(), event=Event.CREATED, times=None)
    forget_who_asked(field)
    async with field.running():
        await field.kick_off(["ann"], ["ann"])
        await field.settled()
    assert len(field.starts()) == 3
    field.assert_each_started_once(2)
    assert field.record()["Total Posts Harvested"] == 2
    assert field.record()["Apify API Costs"] == 1
    assert not rows(field.house.store_path, "SELECT * FROM errors WHERE state = 'open'")


async def test_a_run_that_comes_to_be_long_after_it_was_given_up_is_told_of_and_not_counted(field: Harvesting) -> None:
    field.sandbox.script = lambda _: Plan(lasts_seconds=300, items=[{}], cost_usd=0.5)
    field.apify.faults.add(applied_late(120), method="POST")
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
        await field.pass_time(600)
        errors = (await field.house.call("GET", "/errors?kind=unmatched_webhook")).json()["errors"]
    assert isinstance(errors, list)
    assert len(errors) == 1
    assert field.sandbox.starts[HARVESTER.id] == 2
    assert field.record()["Total Posts Harvested"] == 1
    assert field.record()["Apify API Costs"] == 0.5


def test_what_apify_access_shows_of_itself_holds_no_secret() -> None:
    access = ApifyAccess(token=TOKEN, api_url="http://x", public_url="", webhook_secret="of-the-webhook")
    assert TOKEN not in repr(access)
    assert "of-the-webhook" not in repr(access)
