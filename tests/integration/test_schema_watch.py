"""The look at the real table: flaws made by hand in the sandbox, seen at start, said, and gone when they are mended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from app.sandbox.airtable import READ, SCHEMA, WRITE
from app.sandbox.airtable_errors import rate_limited
from app.sandbox.airtable_schema import FieldType
from app.sandbox.hand_clock import HandClock
from app.sandbox.wire import hung, odd_body, server_error
from app.schema_watch import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, LOOK_AGAIN_SECONDS
from tests.support.harness import Answered, Harness, harness
from tests.support.watching import let_time_pass, rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from app.model import Json
    from app.sandbox.airtable import AirtableSandbox
    from app.sandbox.wire import LoggedRequest

META = "/v0/meta/bases/"


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Harness]:
    """A service that looks at the schema, not started yet; time stands still until a test lets it pass.

    Its clients wait as long as they really do: the first look of a busy machine took more than a second now and then,
    was given up, and the next one was due in a time that no test let pass.
    """
    async with harness(tmp_path, clock=HandClock(), airtable={"timeout_seconds": 30.0}) as house:
        house.sources = replace(house.sources, watch_schema=True)
        yield house


def clock_of(house: Harness) -> HandClock:
    clock = house.sources.clock
    assert isinstance(clock, HandClock)
    return clock


def looks(house: Harness) -> list[LoggedRequest]:
    return [request for request in house.airtable_server.log if request.path.startswith(META)]


async def looked(house: Harness, times: int = 1) -> None:
    """Wait until the service has heard so many answers to its look."""
    query = "SELECT count(*) FROM airtable_calls WHERE method = 'describe' AND finished_at IS NOT NULL"
    await until(lambda: rows(house.store_path, query) == [(times,)])


async def ready_or_not(house: Harness) -> Answered:
    return await house.call("GET", "/readyz", token=None)


async def not_ready(house: Harness) -> list[str]:
    """Wait until the service has looked, and says that it is not ready; its reasons."""
    async with asyncio.timeout(30):
        while (answer := await ready_or_not(house)).status == 200 or "not compared" in answer.text:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    said = answer.json()
    assert (answer.status, said["status"], said["accepting"], said["syncing"]) == (503, "not ready", True, False)
    reasons = said["reasons"]
    assert isinstance(reasons, list)
    return [str(reason) for reason in reasons]


def by_hand(name: str) -> Callable[[AirtableSandbox], None]:
    changes: dict[str, Callable[[AirtableSandbox], None]] = {
        "a column is removed": lambda table: table.remove_column("Total Posts Harvested"),
        "a column is renamed": lambda table: table.rename_column("Total Posts Harvested", "Total Posts Harvestd"),
        "an option is removed": lambda table: table.remove_option("Status", "No Leads To Score"),
        "a number becomes a text": lambda table: table.change_type("Total Posts Harvested", FieldType.SINGLE_LINE_TEXT),
        "a number becomes a formula": lambda table: table.change_type("Total Posts Harvested", FieldType.FORMULA),
    }
    return changes[name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("a column is removed", ["'Total Posts Harvested' of field 'posts_harvested' is not in the table", "add it"]),
        ("a column is renamed", ["is not in the table", "[fields.posts_harvested] column", "'Total Posts Harvestd'?"]),
        ("an option is removed", ["'Status' of field 'status' lacks the option 'No Leads To Score'", "add it"]),
        ("a number becomes a text", ["'Total Posts Harvested'", "is a singleLineText", "needs number, currency"]),
        ("a number becomes a formula", ["is a formula", "nobody can write", "[fields.posts_harvested]"]),
    ],
)
async def test_a_flaw_made_by_hand_is_logged_as_an_error_and_a_reason_not_to_be_ready(
    watched: Harness, change: str, says: list[str]
) -> None:
    by_hand(change)(watched.airtable)
    with capture_logs() as logs:
        async with watched.running():
            (reason,) = await not_ready(watched)
    for part in says:
        assert part in reason
    (logged,) = [entry for entry in logs if entry["event"] == "schema.flaw"]
    assert (logged["log_level"], logged["detail"]) == ("error", reason)
    assert logged["field"] in {"posts_harvested", "status"}
    assert logged["column"] in reason


async def test_a_table_that_is_not_there_is_one_flaw(watched: Harness) -> None:
    airtable = watched.settings.airtable.model_copy(update={"table": "Client Runs Results"})
    watched.settings = watched.settings.model_copy(update={"airtable": airtable})
    async with watched.running():
        (reason,) = await not_ready(watched)
    assert "no table 'Client Runs Results'" in reason
    assert reason.endswith("did you mean 'Client Run Results'?")


async def test_a_table_that_fits_is_looked_at_once_and_never_again(watched: Harness) -> None:
    with capture_logs() as logs:
        async with watched.running():
            await looked(watched)
            await until(lambda: any(entry["event"] == "schema.fits" for entry in logs))
            assert (await ready_or_not(watched)).json()["reasons"] == []
            clock_of(watched).pass_time(86_400)
            await watched.kick_off()
            await watched.synced()
            assert len(looks(watched)) == 1
    assert not [entry for entry in logs if entry["log_level"] == "error"]


async def test_it_is_ready_again_by_itself_once_the_base_is_mended_and_says_each_flaw_once(watched: Harness) -> None:
    clock = clock_of(watched)
    watched.airtable.rename_column("Run ID", "Run Id")
    watched.airtable.remove_option("Status", "Failed")
    with capture_logs() as logs:
        async with watched.running():
            assert len(await not_ready(watched)) == 2
            await until(lambda: bool(clock._sleepers))
            clock.pass_time(LOOK_AGAIN_SECONDS - 1)
            watched.airtable.rename_column("Run Id", "Run ID")
            assert len(await not_ready(watched)) == 2  # it has not looked again yet
            clock.pass_time(1)
            await looked(watched, 2)
            await until(lambda: bool(clock._sleepers))
            (left,) = await not_ready(watched)
            assert "'Failed'" in left
            watched.airtable.add_option("Status", "Failed")
            clock.pass_time(LOOK_AGAIN_SECONDS)
            await looked(watched, 3)
            await until(lambda: any(entry["event"] == "schema.fits" for entry in logs))
            assert (await ready_or_not(watched)).status == 200
            clock.pass_time(86_400)
            assert len(looks(watched)) == 3
    assert [entry["column"] for entry in logs if entry["event"] == "schema.flaw"] == ["Run ID", "Status"]


async def test_with_a_wrong_schema_it_accepts_everything_and_syncs_what_it_can(watched: Harness) -> None:
    watched.airtable.rename_column("Total Posts Harvested", "Posts")
    async with watched.running():
        await not_ready(watched)
        good, bad = await watched.kick_off("Guy"), await watched.kick_off("Dean")
        assert (await watched.call("PATCH", f"/runs/{good}", {"set": {"posts_scored": 3}})).status == 202
        assert (await watched.call("PATCH", f"/runs/{bad}", {"set": {"posts_harvested": 7}})).status == 202
        await let_time_pass(clock_of(watched), lambda: len(watched.records()) == 2)
        await let_time_pass(clock_of(watched), lambda: watched.records()[good].get("Posts Successfully Scored") == 3)
        dead_ones = "SELECT count(*) FROM outbox WHERE state = 'dead'"
        await let_time_pass(clock_of(watched), lambda: rows(watched.store_path, dead_ones) == [(1,)])
        dead = (await watched.call("GET", "/outbox?state=dead")).json()["messages"]
        assert isinstance(dead, list)
        assert "Unknown field name" in str(dead[0])
        watched.airtable.rename_column("Posts", "Total Posts Harvested")
        await watched.call("POST", "/outbox/retry", {"kind": "rejected"})
        await let_time_pass(clock_of(watched), lambda: watched.records()[bad].get("Total Posts Harvested") == 7)


async def test_start_and_acceptance_do_not_wait_for_the_look(watched: Harness) -> None:
    watched.airtable_server.faults.add(hung(), path_contains=META, times=None)
    async with watched.running():
        await watched.kick_off()
        await watched.airtable_server.wait_for(lambda _: len(looks(watched)) == 1)
        await until(lambda: len(watched.records()) == 1)
        await watched.airtable_server.stop()  # or the service's own stop would wait for the look


async def test_it_is_not_ready_before_the_first_look_has_an_answer(watched: Harness) -> None:
    watched.airtable_server.faults.add(hung(), path_contains=META)
    watched.settings = watched.settings.model_copy(
        update={"airtable": watched.settings.airtable.model_copy(update={"timeout_seconds": 0.5})}
    )
    async with watched.running():
        await watched.airtable_server.wait_for(lambda _: len(looks(watched)) == 1)
        said = (await ready_or_not(watched)).json()
        assert (said["status"], said["accepting"], said["syncing"]) == ("not ready", True, False)
        assert "not compared with [fields.*] yet" in str(said["reasons"])
        await looked(watched)  # it was no use, and it was tried
        await until(lambda: bool(clock_of(watched)._sleepers))
        assert (await ready_or_not(watched)).status == 200


async def test_a_stop_in_the_middle_of_a_look_is_quick(watched: Harness) -> None:
    watched.airtable_server.faults.add(hung(), path_contains=META, times=None)
    watched.settings = watched.settings.model_copy(
        update={"sync": watched.settings.sync.model_copy(update={"shutdown_seconds": 0.1})}
    )
    async with asyncio.timeout(5):
        async with watched.running():
            await watched.airtable_server.wait_for(lambda _: len(looks(watched)) == 1)


@pytest.mark.parametrize("trouble", ["the scope is missing", "an outage", "an odd answer"])
async def test_a_base_that_cannot_be_described_is_a_warning_and_no_reason_not_to_be_ready(
    watched: Harness, trouble: str
) -> None:
    faults = {"an outage": server_error(502), "an odd answer": odd_body(b'{"tables": 1}')}
    if trouble == "the scope is missing":
        watched.airtable.scopes = (READ, WRITE)
    else:
        watched.airtable_server.faults.add(faults[trouble], path_contains=META, times=None)
    watched.airtable.remove_column("Total Posts Harvested")
    with capture_logs() as logs:
        async with watched.running():
            for number in range(1, 5):  # more looks in a row than failures that put a base in trouble
                await looked(watched, number)
                await until(lambda: bool(clock_of(watched)._sleepers))
                clock_of(watched).pass_time(LONGEST_PAUSE_SECONDS)
            assert (await ready_or_not(watched)).status == 200
            run_id = await watched.kick_off()
            await until(lambda: run_id in watched.records())
    warned = [entry for entry in logs if entry["event"] == "schema.not_described"]
    assert len(warned) >= 4
    assert {entry["log_level"] for entry in warned} == {"warning"}
    assert ("schema.bases:read" in warned[0]["reason"]) == (trouble == "the scope is missing")
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_pauses_grow_while_the_base_cannot_be_described_and_it_is_looked_at_when_it_can(watched: Harness) -> None:
    clock = clock_of(watched)
    watched.airtable.scopes = (READ, WRITE)
    watched.airtable.remove_column("Total Posts Harvested")
    with capture_logs() as logs:
        async with watched.running():
            for number in range(1, 10):
                await looked(watched, number)
                await until(lambda: bool(clock._sleepers))
                clock.pass_time(LONGEST_PAUSE_SECONDS)
            await looked(watched, 10)
            await until(lambda: bool(clock._sleepers))
            watched.airtable.scopes = (READ, WRITE, SCHEMA)
            clock.pass_time(LONGEST_PAUSE_SECONDS)
            assert "is not in the table" in (await not_ready(watched))[0]
    pauses = [entry["again_in_seconds"] for entry in logs if entry["event"] == "schema.not_described"]
    assert pauses[:4] == [FIRST_PAUSE_SECONDS, 60.0, 120.0, 240.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


async def test_flaws_stay_a_reason_while_the_base_cannot_be_described_again(watched: Harness) -> None:
    watched.airtable.remove_column("Total Posts Harvested")
    async with watched.running():
        await not_ready(watched)
        watched.airtable.scopes = (READ, WRITE)
        await until(lambda: bool(clock_of(watched)._sleepers))
        clock_of(watched).pass_time(LOOK_AGAIN_SECONDS)
        await looked(watched, 2)
        assert len(await not_ready(watched)) == 1


async def test_a_look_that_is_told_to_slow_down_lets_the_base_rest(watched: Harness) -> None:
    """The meta API shares the base's rate: its 429 is the one answer that concerns deliveries too."""
    watched.airtable_server.faults.add(rate_limited(), path_contains=META)
    async with watched.running() as service:
        await looked(watched)
        assert service.sync.rests_for >= 30


async def test_the_first_look_waits_for_no_backlog(watched: Harness) -> None:
    """It tells whether the service is ready: time stands still here, and the window lets only five requests out."""
    await watched.airtable_server.stop()
    async with watched.running():
        for number in range(100):
            await watched.kick_off(f"client{number}")
    await watched.airtable_server.start()
    clock_of(watched).pass_time(3600)
    sent = len(looks(watched))
    async with watched.running():
        await until(lambda: len(looks(watched)) > sent)
        assert len(watched.records()) < 100


@pytest.mark.parametrize(
    ("change", "update"),
    [
        ("a column is removed", {"add": {"posts_harvested": 1}}),
        ("an option is removed", {"set": {"status": "No Leads To Score"}}),
        ("a number becomes a formula", {"add": {"posts_harvested": 1}}),
    ],
)
async def test_a_refusal_that_the_schema_may_explain_is_looked_into(
    watched: Harness, change: str, update: dict[str, Json]
) -> None:
    clock = clock_of(watched)
    async with watched.running() as service:
        await until(lambda: not service.schema.troubles)
        run_id = await watched.kick_off()
        await watched.synced()
        clock.pass_time(LOOK_AGAIN_SECONDS)
        by_hand(change)(watched.airtable)
        await watched.call("PATCH", f"/runs/{run_id}", update)
        await looked(watched, 2)
        (reason,) = await not_ready(watched)
        assert "Total Posts Harvested" in reason or "No Leads To Score" in reason


async def test_refusals_that_the_schema_does_not_explain_cost_one_look_in_five_minutes(watched: Harness) -> None:
    """What is refused for its value alone looks the same. A deleted record has nothing to do with the schema."""
    clock = clock_of(watched)
    async with watched.running() as service:
        await until(lambda: not service.schema.troubles)
        clock.pass_time(LOOK_AGAIN_SECONDS)
        service.schema.suspect("ROW_DOES_NOT_EXIST: gone")
        for _ in range(3):
            service.schema.suspect('INVALID_VALUE_FOR_COLUMN: Field "Status" cannot accept the provided value')
            await looked(watched, 2)
        await until(lambda: bool(clock._sleepers))
        assert (await ready_or_not(watched)).status == 200
        clock.pass_time(LOOK_AGAIN_SECONDS - 1)
        assert len(looks(watched)) == 2
        clock.pass_time(1)
        await looked(watched, 3)
        clock.pass_time(86_400)
        service.schema.suspect("ROW_DOES_NOT_EXIST: gone")
        await watched.kick_off()
        await watched.synced()
        assert len(looks(watched)) == 3


async def test_a_bug_in_the_look_ends_the_service(watched: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("app.schema_watch.schema_flaws", stumble)
    async with watched.running() as service:
        with pytest.raises(AssertionError, match="a bug"):
            async with asyncio.timeout(5):
                await service.until_a_loop_ends()
