"""Retention: what is past its days goes in bites; what keeps the order, the counts and the checks stays."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING

import pytest

from app.errors import Conflict, Stopping
from app.model import Duplicate, Idempotency, Queued, WebhookOutcome
from app.policy.delivery import Refused
from app.policy.harvest import ActorRun, Report
from app.pruning import Pruning, RetentionRules
from app.sandbox.hand_clock import HandClock
from app.store.protocol import Adoption, WebhookEvent
from app.store.sqlite.prune import BITE
from app.store.views import MessageFilter, Slice
from tests.support.stores import AT, JOB, Desk, adding, kickoff, later, open_desk, setting
from tests.support.watching import meddle, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from app.store.views import PruneReport

RUN = f"{JOB}-Guy"
DAY = 86_400.0
RULES = RetentionRules.of_days(delivered=30, idempotency=7)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "runs.db") as opened:
        yield opened


async def prune(desk: Desk, days: float, rules: RetentionRules = RULES) -> PruneReport:
    return await Pruning(desk.store, HandClock(later(days * DAY)), rules).prune()


async def deliver_updates(desk: Desk, number: int, days: float = 0.0) -> None:
    for _ in range(number):
        await desk.update(adding(RUN, posts_harvested=1), later(days * DAY))
    await desk.deliver_all(later(days * DAY))


# What goes ------------------------------------------------------------------------------------------------------


async def test_delivered_updates_go_after_their_days_and_creates_and_what_waits_stay(desk: Desk) -> None:
    await desk.kick_off()
    await deliver_updates(desk, 3)
    await deliver_updates(desk, 2, days=2)
    await desk.update(setting(RUN, status="no such option"), later(3 * DAY))
    await desk.answer(await desk.claim(later(3 * DAY)), Refused(422, "no"), later(3 * DAY))
    await desk.update(adding(RUN, posts_harvested=1), later(3 * DAY))
    assert (await prune(desk, 30)).messages == 0  # not a moment too early
    before = await desk.store.stats(later(31 * DAY))
    report = await prune(desk, 31)
    assert (report.messages, report.calls) == (3, 1)
    assert [(kind, state) for kind, state, _ in desk.states(RUN)] == [
        ("create", "delivered"), *[("update", "delivered")] * 2, ("update", "dead"), ("update", "pending")
    ]  # fmt: skip
    assert await desk.store.stats(later(31 * DAY)) == before
    again = await desk.store.accept_create(kickoff(), later(31 * DAY))
    assert not again.created
    assert (await prune(desk, 31)).messages == 0


async def test_the_timeline_says_what_was_pruned(desk: Desk) -> None:
    await desk.kick_off()
    await deliver_updates(desk, 3)
    await deliver_updates(desk, 1, days=1)
    await prune(desk, 40)
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.fields["posts_harvested"] == 4
    (pruned,) = [entry for entry in run.timeline if entry.what == "updates pruned"]
    assert pruned.at == "2026-05-17T09:20:00.000Z"
    assert pruned.detail is not None
    assert pruned.detail.startswith("4 updates accepted since 2026-05-16T09:20:00.000Z")


async def test_a_check_says_the_same_of_an_adopted_run_before_and_after(desk: Desk) -> None:
    """Only what messages of ours named is compared there: the others are what its record held before."""
    await desk.store.accept_update(adding(RUN, posts_harvested=1), AT)
    await desk.store.settle_looks({RUN: [Adoption("recFound", {"run_id": RUN, "status": "by hand"})]}, AT)
    await desk.update(setting(RUN, apify_status="x"))
    await desk.deliver_all()
    before = await desk.store.delivered(["recFound"])
    assert set(before["recFound"].values) == {"run_id", "posts_harvested", "apify_status"}
    assert (await prune(desk, 40)).messages == 2
    assert await desk.store.delivered(["recFound"]) == before


async def test_calls_that_were_pruned_still_count_for_their_month(desk: Desk) -> None:
    await desk.kick_off()
    await desk.deliver_all()
    calls = (await desk.store.stats(later(DAY))).calls_this_month
    assert (await prune(desk, 2, RetentionRules.of_days(1, 0))).calls == 1
    assert (await desk.store.stats(later(DAY))).calls_this_month == calls
    assert (calls.total, calls.by_outcome) == (1, {"ok": 1})


async def test_bodies_of_webhooks_go_but_of_those_that_are_held(desk: Desk) -> None:
    def event(run: str, run_id: str | None) -> WebhookEvent:
        report = Report(ActorRun(run, "RUNNING"), "2026-05-16T09:20:00.000Z", "ACTOR.RUN.CREATED")
        return WebhookEvent("ACTOR.RUN.CREATED", "{}", f"d-{run}", f"k-{run}", report, run_id)

    await desk.kick_off()
    assert (await desk.store.accept_webhook(event("a", RUN), AT)).outcome is WebhookOutcome.QUEUED
    assert (await desk.store.accept_webhook(event("b", None), AT)).outcome is WebhookOutcome.HELD
    assert (await prune(desk, 31)).webhook_bodies == 1
    assert desk.rows("SELECT apify_run_id, body FROM webhook_events ORDER BY id") == [("a", None), ("b", "{}")]
    assert (await desk.store.accept_webhook(event("a", RUN), later(1))).outcome is WebhookOutcome.DUPLICATE


async def test_an_idempotency_key_is_known_for_its_days(desk: Desk) -> None:
    await desk.kick_off()
    once = adding(RUN, key=Idempotency("k", "digest"), posts_harvested=1)
    assert isinstance(await desk.store.accept_update(once, AT), Queued)
    assert (await prune(desk, 7)).idempotency_keys == 0
    assert isinstance(await desk.store.accept_update(once, AT), Duplicate)
    assert (await prune(desk, 7.01)).idempotency_keys == 1
    assert isinstance(await desk.store.accept_update(once, AT), Queued)


async def test_nothing_goes_where_it_is_kept_for_good(desk: Desk) -> None:
    await desk.kick_off()
    await deliver_updates(desk, 1)
    report = await prune(desk, 3650, RetentionRules.of_days(0, 0))
    assert (report.delivered_before, report.keys_before, report.messages, report.calls) == (None, None, 0, 0)


# In bites -------------------------------------------------------------------------------------------------------


class Restful(HandClock):
    """Does something in the rests between two bites."""

    def __init__(self, do: Callable[[], None]) -> None:
        super().__init__(later(40 * DAY))
        self.do = do
        self.rests = 0

    async def sleep(self, seconds: float) -> None:
        self.rests += 1
        self.do()
        await super().sleep(seconds)


async def fill(desk: Desk) -> None:
    """Two bites of delivered updates and a little, behind as many creates."""
    await asyncio.gather(*(desk.kick_off(f"C{number}") for number in range(BITE)))
    await desk.kick_off()
    await desk.deliver_all()
    await asyncio.gather(*(desk.update(adding(RUN, posts_harvested=1), later(1)) for _ in range(2 * BITE + 7)))
    await desk.deliver_all(later(1))


async def test_it_goes_in_bites_and_others_write_in_between(desk: Desk) -> None:
    await fill(desk)
    accepted: list[asyncio.Task[int]] = []
    clock = Restful(lambda: accepted.append(asyncio.create_task(desk.update(adding(RUN, posts_scored=1), later(2)))))
    report = await Pruning(desk.store, clock, RULES).prune()
    assert report.messages == 2 * BITE + 7
    assert clock.rests > 3
    await asyncio.gather(*accepted)
    left = (await desk.store.messages(MessageFilter(run_id=RUN, kind="update"), Slice())).rows
    assert len(left) == len(accepted)
    assert desk.cell("SELECT messages FROM pruned_messages") == 2 * BITE + 7


async def test_a_stop_ends_it_between_two_bites_and_the_next_goes_on(desk: Desk) -> None:
    await fill(desk)
    clock = Restful(lambda: None)
    pruning = Pruning(desk.store, clock, RULES)
    clock.do = pruning.stop
    with pytest.raises(Stopping):
        await pruning.prune()
    left = desk.cell("SELECT count(*) FROM outbox WHERE kind = 'update'")
    report = await prune(desk, 40)
    assert report.messages == left
    assert desk.cell("SELECT messages FROM pruned_messages") == 2 * BITE + 7


async def test_one_pruning_at_a_time(desk: Desk) -> None:
    await fill(desk)
    pruning = Pruning(desk.store, Restful(lambda: None), RULES)
    first = asyncio.create_task(pruning.prune())
    await asyncio.sleep(0)
    with pytest.raises(Conflict, match="under way"):
        await pruning.prune()
    await first


async def test_it_prunes_daily_by_itself(desk: Desk) -> None:
    await desk.kick_off()
    await deliver_updates(desk, 1)
    clock = HandClock(later(0))
    loop = asyncio.create_task(Pruning(desk.store, clock, RULES).run())
    seen = []
    for _ in range(32):
        await until(lambda: any(due > clock.now() for due in clock._sleepers.values()))
        seen.append(desk.cell("SELECT count(*) FROM outbox"))
        clock.pass_time(DAY)
    loop.cancel()
    assert seen == [2] * 31 + [1]


# Whoever removes ------------------------------------------------------------------------------------------------


async def test_what_a_hand_removes_leaves_its_trace_too(desk: Desk) -> None:
    await desk.kick_off()
    await deliver_updates(desk, 2)
    meddle(desk.path, "DELETE FROM outbox WHERE kind = 'update'")
    assert desk.rows("SELECT run_id, messages, fields FROM pruned_messages") == [(RUN, 2, '["posts_harvested"]')]
    with pytest.raises(sqlite3.IntegrityError, match="remembered"):
        meddle(desk.path, "DELETE FROM pruned_messages")
