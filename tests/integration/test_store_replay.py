"""What a person decides: dead messages sent again, errors resolved, held things discarded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.errors import Conflict, NotFound
from app.model import Held
from app.policy.delivery import Refused, Unknown
from app.policy.harvest import ActorRun, Report
from app.store.protocol import WebhookEvent
from app.store.views import ErrorFilter, Slice
from tests.support.stores import JOB, Desk, adding, later, open_desk, setting, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.store.views import ErrorView

RUN = f"{JOB}-Guy"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "runs.db") as opened:
        yield opened


async def refuse_all(desk: Desk, cause: str = "no") -> None:
    """Set aside whatever is due, run by run."""
    while (claim := await desk.store.claim(later(99))) is not None:
        await desk.answer(claim, Refused(422, cause), later(99))


async def open_errors(desk: Desk) -> list[ErrorView]:
    return list((await desk.store.errors(ErrorFilter(state="open"), Slice())).rows)


async def hold(desk: Desk, run_id: str = RUN) -> int:
    held = await desk.store.accept_update(adding(run_id, posts_harvested=1), later(0))
    assert isinstance(held, Held)
    return held.error.id


# Retry ----------------------------------------------------------------------------------------------------------


async def test_a_dead_create_goes_again_with_all_that_waited_for_it(desk: Desk) -> None:
    await desk.kick_off()
    await refuse_all(desk)
    await desk.update(adding(RUN, posts_harvested=1), later(100))
    await desk.store.retry(1, later(101))
    assert await desk.store.next_due() == later(101)
    claim = await desk.claim(later(101))
    assert len(claim.runs[0].messages) == 2
    await desk.answer(claim, written(claim), later(102))
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.sync == "synced"
    assert [(one.state, one.resolution) for one in run.errors] == [("resolved", "replayed")]


async def test_a_replay_starts_with_all_its_attempts(desk: Desk) -> None:
    await desk.kick_off()
    await refuse_all(desk)
    await desk.store.retry(1, later(101))
    assert desk.states(RUN) == [("create", "pending", 0)]
    await desk.answer(await desk.claim(later(101)), Unknown("broken", 500), later(101))
    assert desk.states(RUN) == [("create", "pending", 1)]


async def test_a_replay_never_brings_an_old_value_back(desk: Desk) -> None:
    await desk.kick_off()
    await desk.deliver_all()
    old = await desk.update(setting(RUN, apify_status="OLD"))
    await refuse_all(desk)
    await desk.update(setting(RUN, apify_status="NEW"), later(100))
    await desk.deliver_all(later(100))
    await desk.store.retry(old, later(101))
    assert (await desk.claim(later(101))).runs[0].values == {"apify_status": "NEW"}


async def test_only_dead_messages_are_retried(desk: Desk) -> None:
    await desk.kick_off()
    with pytest.raises(Conflict, match="message 1 is pending"):
        await desk.store.retry(1, later(1))
    await desk.deliver_all()
    with pytest.raises(Conflict, match="message 1 is delivered"):
        await desk.store.retry(1, later(1))
    with pytest.raises(NotFound, match="no message 7"):
        await desk.store.retry(7, later(1))


async def test_a_replayed_update_still_waits_for_its_dead_create(desk: Desk) -> None:
    await desk.kick_off()
    update = await desk.update(adding(RUN, posts_harvested=1))
    await refuse_all(desk)
    await desk.store.retry(update, later(100))
    assert await desk.store.claim(later(200)) is None
    await desk.store.retry(1, later(201))
    assert len((await desk.claim(later(201))).runs[0].messages) == 2


async def test_an_error_stays_open_while_one_of_its_messages_is_dead(desk: Desk) -> None:
    await desk.kick_off()
    update = await desk.update(adding(RUN, posts_harvested=1))
    await refuse_all(desk)
    assert len(await open_errors(desk)) == 1
    await desk.store.retry(update, later(100))
    assert len(await open_errors(desk)) == 1
    await desk.store.retry(1, later(100))
    assert len(await open_errors(desk)) == 1  # sent again is not yet delivered
    await desk.deliver_all(later(100))
    assert await open_errors(desk) == []


async def test_what_is_refused_again_for_the_same_cause_counts_up_its_error(desk: Desk) -> None:
    await desk.kick_off()
    await desk.deliver_all()
    for cause in ("no", "no", "never", "no"):
        await desk.update(adding(RUN, posts_harvested=1))
        await refuse_all(desk, cause)
    assert [(one.cause, one.count) for one in await open_errors(desk)] == [("never", 1), ("no", 3)]
    assert await desk.store.retry_all(kind="rejected", run_id=None, since=None, at=later(98)) == 4
    await refuse_all(desk, "no")
    assert [(one.cause, one.count) for one in await open_errors(desk)] == [("never", 1), ("no", 4)]
    assert desk.rows("SELECT DISTINCT error_id FROM outbox WHERE state = 'dead'") == [(1,)]
    await desk.store.retry_all(kind=None, run_id=None, since=None, at=later(101))
    await desk.deliver_all(later(101))
    assert desk.rows("SELECT DISTINCT state, resolution FROM errors") == [("resolved", "replayed")]


async def test_a_delivery_that_left_before_the_retry_ends_no_trouble(desk: Desk) -> None:
    await desk.kick_off()
    await desk.deliver_all()
    dead = await desk.update(setting(RUN, apify_status="READY"))
    await refuse_all(desk)
    await desk.update(adding(RUN, posts_harvested=1), later(100))
    claim = await desk.claim(later(100))
    await desk.store.retry(dead, later(101))
    await desk.answer(claim, written(claim), later(102))
    assert len(await open_errors(desk)) == 1
    await desk.deliver_all(later(103))
    assert await open_errors(desk) == []


async def test_many_are_retried_by_run_and_by_time(desk: Desk) -> None:
    other = await desk.kick_off("Ann")
    await refuse_all(desk)
    await desk.kick_off("Guy", later(100))
    claim = await desk.claim(later(200))
    await desk.answer(claim, Refused(422, "no"), later(200))
    assert await desk.store.retry_all(kind="drift", run_id=None, since=None, at=later(300)) == 0
    assert await desk.store.retry_all(kind="rejected", run_id=None, since=later(150), at=later(300)) == 1
    assert desk.states(other) == [("create", "dead", 1)]
    assert await desk.store.retry_all(kind=None, run_id=other, since=None, at=later(300)) == 1
    assert await desk.store.retry_all(kind=None, run_id=None, since=None, at=later(300)) == 0
    assert await desk.deliver_all(later(300)) == 1


async def test_a_retry_during_the_flight_of_its_run_goes_after_it(desk: Desk) -> None:
    await desk.kick_off()
    await desk.deliver_all()
    dead = await desk.update(setting(RUN, apify_status="READY"))
    await refuse_all(desk)
    await desk.update(adding(RUN, posts_harvested=1), later(100))
    claim = await desk.claim(later(100))
    await desk.store.retry(dead, later(101))
    assert await desk.store.claim(later(101)) is None
    await desk.answer(claim, written(claim), later(102))
    claim = await desk.claim(later(102))
    assert [message.id for message in claim.runs[0].messages] == [dead]


# Resolve --------------------------------------------------------------------------------------------------------


async def test_an_error_is_resolved_by_hand_once(desk: Desk) -> None:
    error_id = await hold(desk)
    await desk.store.resolve_error(error_id, note="a typo", discard=False, at=later(9))
    error = await desk.store.error(error_id)
    assert error is not None
    assert (error.state, error.resolution, error.note) == ("resolved", "by_hand", "a typo")
    assert error.resolved_at == "2026-05-16T09:20:09.000Z"
    with pytest.raises(Conflict, match="resolved already"):
        await desk.store.resolve_error(error_id, note=None, discard=True, at=later(10))
    with pytest.raises(NotFound, match="no error 7"):
        await desk.store.resolve_error(7, note=None, discard=False, at=later(10))


async def test_what_a_resolved_error_holds_still_follows_a_kickoff(desk: Desk) -> None:
    await desk.store.resolve_error(await hold(desk), note=None, discard=False, at=later(9))
    assert (await desk.store.stats(later(9))).held == 1
    run_id = await desk.kick_off(at=later(10))
    run = await desk.store.run(run_id)
    assert run is not None
    assert run.fields["posts_harvested"] == 1


async def test_what_is_discarded_follows_no_kickoff_and_stays_readable(desk: Desk) -> None:
    await desk.store.resolve_error(await hold(desk), note=None, discard=True, at=later(9))
    run = await desk.store.run(await desk.kick_off(at=later(10)))
    assert run is not None
    assert "posts_harvested" not in run.fields
    assert desk.rows("SELECT state, change FROM held_updates") == [("discarded", '{"add":{"posts_harvested":1}}')]
    assert "held update discarded" in [entry.what for entry in run.timeline]


async def test_discarding_drops_all_that_waits_for_the_run_and_nothing_else(desk: Desk) -> None:
    """What an earlier error of the run held is counted with this one, and goes with it."""
    first = await hold(desk)
    await desk.store.resolve_error(first, note=None, discard=False, at=later(1))
    second = await hold(desk)
    other = await hold(desk, f"{JOB}-Other")
    assert len({first, second, other}) == 3
    assert [one.updates_held for one in await open_errors(desk)] == [1, 2]
    assert desk.rows("SELECT updates_held FROM missing_records") == [(2,), (1,)]
    await desk.store.resolve_error(second, note=None, discard=True, at=later(2))
    assert desk.rows("SELECT error_id, state FROM held_updates ORDER BY id") == [
        (first, "discarded"),
        (second, "discarded"),
        (other, "held"),
    ]


async def test_a_new_update_of_a_resolved_missing_record_opens_a_new_error(desk: Desk) -> None:
    first = await hold(desk)
    await desk.store.resolve_error(first, note=None, discard=False, at=later(1))
    second = await hold(desk)
    assert second != first
    assert [one.id for one in await open_errors(desk)] == [second]
    await desk.kick_off(at=later(2))
    assert [one[0] for one in desk.rows("SELECT state FROM held_updates")] == ["applied", "applied"]


async def test_a_discarded_webhook_is_not_matched_later(desk: Desk) -> None:
    report = Report(ActorRun("a1", "SUCCEEDED"), "2026-05-16T09:20:00.000Z", "ACTOR.RUN.SUCCEEDED")
    taken = await desk.store.accept_webhook(
        WebhookEvent("ACTOR.RUN.SUCCEEDED", "{}", "d1", "a1 SUCCEEDED", report, run_id=RUN), later(0)
    )
    assert taken.error is not None
    await desk.store.resolve_error(taken.error.id, note=None, discard=True, at=later(1))
    run = await desk.store.run(await desk.kick_off(at=later(2)))
    assert run is not None
    assert run.batches == []
    assert desk.rows("SELECT outcome, detail FROM webhook_events") == [("ignored", "discarded with its error")]
