"""What the store hands to the sync loop, and what an answer makes of it."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from app.clock import iso
from app.fields import Change
from app.model import BatchOrder, BatchState, ErrorKind, Kickoff
from app.policy.delivery import Denied, QuotaExhausted, RateLimited, Refused, Unknown, Written
from app.policy.harvest import ENDED
from app.store.sqlite import delivery
from app.store.views import ErrorFilter, Slice
from tests.support.stores import AT, JOB, Desk, adding, later, open_desk, setting, written
from tests.support.watching import meddle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.policy.delivery import Answer

RUN = f"{JOB}-Guy"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "runs.db") as opened:
        yield opened


async def kick_off_many(desk: Desk, count: int) -> list[str]:
    return [await desk.kick_off(f"C{number:02}", later(number)) for number in range(count)]


# Claim ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_claimed_before_it_is_due(desk: Desk) -> None:
    await desk.kick_off(at=later(10))
    assert await desk.store.claim(later(9.9)) is None
    assert await desk.store.next_due() == later(10)
    assert (await desk.claim(later(10))).runs[0].run_id == RUN


async def test_a_run_that_a_hand_made_due_without_a_message_costs_no_call(desk: Desk) -> None:
    await desk.kick_off("Idle")
    await desk.deliver_all()
    meddle(desk.path, "UPDATE runs SET due_at = '2020-01-01T00:00:00.000Z', sync = 'pending'")
    assert await desk.store.claim(later(9)) is None
    assert await desk.store.next_due() is None
    run_id = await desk.kick_off("Busy")
    assert [run.run_id for run in (await desk.claim(later(9))).runs] == [run_id]


async def test_thousands_that_a_hand_made_due_without_a_message_are_laid_to_rest_claim_by_claim(desk: Desk) -> None:
    """A few hundred a claim, so that none stalls the writer, and a run with a message still has its turn."""
    await kick_off_many(desk, 1_100)
    await desk.deliver_all(later(9_999))
    meddle(desk.path, "UPDATE runs SET due_at = '2020-01-01T00:00:00.000Z', sync = 'pending'")
    run_id = await desk.kick_off("Busy")
    claims = [await desk.store.claim(later(9_999)) for _ in range(3)]
    assert claims[:2] == [None, None]
    assert claims[2] is not None
    assert [run.run_id for run in claims[2].runs] == [run_id]


async def test_a_claim_takes_the_ten_that_are_due_longest(desk: Desk) -> None:
    run_ids = await kick_off_many(desk, 12)
    first = await desk.claim(later(99))
    assert [run.run_id for run in first.runs] == run_ids[:10]
    second = await desk.claim(later(99))
    assert [run.run_id for run in second.runs] == run_ids[10:]
    assert await desk.store.claim(later(99)) is None


async def test_creates_and_updates_go_in_separate_requests(desk: Desk) -> None:
    known = await desk.kick_off("Known")
    await desk.deliver_all()
    await desk.kick_off("New", later(1))
    await desk.update(adding(known, posts_harvested=1), later(2))
    claims = [await desk.claim(later(9)), await desk.claim(later(9))]
    assert [(claim.creating, [run.run_id for run in claim.runs]) for claim in claims] == [
        (True, [f"{JOB}-New"]),
        (False, [known]),
    ]


async def test_all_that_waits_for_a_run_is_one_write_of_present_values(desk: Desk) -> None:
    await desk.kick_off(status="Running")
    await desk.deliver_all()
    await desk.update(setting(RUN, apify_status="READY", posts_harvested=1))
    await desk.update(adding(RUN, posts_harvested=4))
    await desk.update(setting(RUN, apify_status=None))
    (run,) = (await desk.claim()).runs
    assert run.values == {"posts_harvested": 5, "apify_status": None}
    assert run.record_id == f"rec-{RUN}"
    assert len(run.messages) == 3


async def test_a_pending_create_takes_its_updates_along(desk: Desk) -> None:
    await desk.kick_off(client_name="Guy")
    await desk.update(adding(RUN, posts_harvested=4))
    claim = await desk.claim()
    assert claim.creating
    assert claim.runs[0].values == {"run_id": RUN, "client_id": "Guy", "client_name": "Guy", "posts_harvested": 4}
    await desk.answer(claim, written(claim))
    assert desk.states(RUN) == [("create", "delivered", 1), ("update", "delivered", 1)]


async def test_a_run_is_never_in_two_calls(desk: Desk) -> None:
    await desk.kick_off()
    await desk.claim()
    await desk.update(adding(RUN, posts_harvested=1), later(1))
    assert await desk.store.claim(later(99)) is None
    assert await desk.store.next_due() is None


async def test_no_claim_takes_more_than_its_part_of_one_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MESSAGES_PER_RUN", 3)
    await desk.kick_off()
    for _ in range(5):
        await desk.update(adding(RUN, posts_harvested=1))
    first = await desk.claim()
    assert len(first.runs[0].messages) == 3  # its create and two updates
    assert first.runs[0].values["posts_harvested"] == 5  # the present value, of what follows too
    await desk.answer(first, written(first))
    second = await desk.claim()
    assert len(second.runs[0].messages) == 3
    await desk.answer(second, written(second))
    assert {state for _, state, _ in desk.states(RUN)} == {"delivered"}


async def test_a_claim_is_kept_as_a_call_before_it_is_sent(desk: Desk) -> None:
    await kick_off_many(desk, 2)
    claim = await desk.claim(later(9))
    assert desk.rows("SELECT id, method, outcome, records, messages FROM airtable_calls") == [
        (claim.call_id, "create", "in_flight", 2, 2)
    ]
    await desk.answer(claim, written(claim), later(10))
    assert desk.rows("SELECT outcome, status, finished_at FROM airtable_calls") == [
        ("ok", 200, "2026-05-16T09:20:10.000Z")
    ]


# Settle ---------------------------------------------------------------------------------------------------------


async def test_what_was_delivered_is_synced_and_knows_its_record(desk: Desk) -> None:
    await desk.kick_off()
    await desk.answer(await desk.claim(), Written({RUN: "rec1"}))
    run = await desk.store.run(RUN)
    assert run is not None
    assert (run.sync, run.airtable_record_id) == ("synced", "rec1")
    assert await desk.store.next_due() is None


async def test_what_arrives_during_the_flight_is_due_at_once_after_it(desk: Desk) -> None:
    await desk.kick_off()
    claim = await desk.claim()
    await desk.update(adding(RUN, posts_harvested=1), later(1))
    await desk.answer(claim, written(claim), later(2))
    assert desk.states(RUN) == [("create", "delivered", 1), ("update", "pending", 0)]
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.sync == "pending"
    (claimed,) = (await desk.claim(later(2))).runs
    assert claimed.values == {"posts_harvested": 1}


@pytest.mark.parametrize("answer", [RateLimited("slow down"), QuotaExhausted("no more"), Denied(403, "no")])
async def test_a_call_that_was_not_tried_gives_the_attempt_back(desk: Desk, answer: Answer) -> None:
    await desk.kick_off()
    await desk.update(adding(RUN, posts_harvested=1))
    await desk.answer(await desk.claim(), answer, later(1))
    assert desk.states(RUN) == [("create", "pending", 0), ("update", "pending", 0)]
    assert await desk.store.next_due() == later(1)
    assert desk.cell("SELECT failures FROM runs") == 0


async def test_an_unknown_outcome_is_tried_again_later_and_later(desk: Desk) -> None:
    await desk.kick_off()
    await desk.answer(await desk.claim(), Unknown("broken", 500))
    due = await desk.store.next_due()
    assert due is not None
    assert later(0.5) <= due <= later(1)
    await desk.answer(await desk.claim(due), Unknown("broken", 500), due)
    again = await desk.store.next_due()
    assert again is not None
    assert (again - due).total_seconds() >= 1
    assert desk.states(RUN) == [("create", "pending", 2)]


async def test_a_run_that_was_worn_out_is_set_aside_with_its_cause(desk: Desk) -> None:
    await desk.kick_off()
    at = AT
    for _ in range(3):
        await desk.answer(await desk.claim(at), Unknown("it broke", 500), at)
        at = at.replace(hour=at.hour + 1)
    assert desk.states(RUN) == [("create", "dead", 3)]
    assert await desk.store.next_due() is None
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.sync == "failed"
    assert [(one.kind, one.cause) for one in run.errors] == [("rejected", "it broke")]


async def test_an_answer_that_forgets_a_run_leaves_it_waiting(desk: Desk) -> None:
    first, second = await kick_off_many(desk, 2)
    claim = await desk.claim(later(9))
    await desk.answer(claim, Written({first: "rec1"}), later(9))
    assert desk.states(first) == [("create", "delivered", 1)]
    assert desk.states(second) == [("create", "pending", 1)]


async def test_a_record_that_is_another_runs_stops_neither_the_loop_nor_its_neighbours(desk: Desk) -> None:
    """A person renamed the first run's record in Airtable to the second run's id, so that its upsert fell on it."""
    first = await desk.kick_off("Ann")
    await desk.deliver_all()
    second, third = await kick_off_many(desk, 2)
    claim = await desk.claim(later(9))
    await desk.answer(claim, Written({second: f"rec-{first}", third: "rec3"}), later(9))
    assert desk.states(second) == [("create", "dead", 1)]
    assert desk.states(third) == [("create", "delivered", 1)]
    run = await desk.store.run(second)
    assert run is not None
    assert (run.sync, run.airtable_record_id) == ("failed", None)
    assert run.errors[0].kind == ErrorKind.DUPLICATE_RECORD
    assert first in run.errors[0].message
    assert await desk.store.retry_all(kind=None, run_id=second, since=None, at=later(10)) == 1
    claim = await desk.claim(later(10))
    await desk.answer(claim, written(claim), later(10))
    assert desk.states(second) == [("create", "delivered", 1)]


# One bad record -------------------------------------------------------------------------------------------------


async def test_a_refused_run_alone_is_set_aside(desk: Desk) -> None:
    await desk.kick_off()
    await desk.answer(await desk.claim(), Refused(422, "not an option"))
    assert desk.states(RUN) == [("create", "dead", 1)]
    (error,) = (await desk.store.errors(ErrorFilter(run_id=RUN), Slice())).rows
    assert (error.kind, error.state, error.cause, error.client_id) == ("rejected", "open", "not an option", "Guy")


async def test_a_dead_create_holds_up_its_run_and_nobody_else(desk: Desk) -> None:
    bad = await desk.kick_off("Bad")
    await desk.answer(await desk.claim(), Refused(422, "no"))
    await desk.update(adding(bad, posts_harvested=1), later(1))
    assert await desk.store.claim(later(99)) is None
    assert await desk.store.next_due() is None
    message = await desk.store.message(2)
    assert message is not None
    assert message.waits_for == "waits for the create of its run, which was set aside"
    good = await desk.kick_off("Good", later(2))
    assert [run.run_id for run in (await desk.claim(later(2))).runs] == [good]


async def test_what_rode_with_a_create_that_died_waits_for_its_replay(desk: Desk) -> None:
    await desk.kick_off()
    at = AT
    for _ in range(3):
        await desk.update(adding(RUN, posts_harvested=1), at)
        await desk.answer(await desk.claim(at), Unknown("broken", 500), at)
        at = at.replace(hour=at.hour + 1)
    states = [("create", "dead", 3), ("update", "dead", 3), ("update", "pending", 2), ("update", "pending", 1)]
    assert desk.states(RUN) == states
    assert await desk.store.next_due() is None
    assert await desk.store.claim(at) is None


async def test_a_dead_update_holds_up_nothing(desk: Desk) -> None:
    await desk.kick_off()
    await desk.deliver_all()
    await desk.update(setting(RUN, apify_status="READY"))
    await desk.answer(await desk.claim(), Refused(422, "no"))
    assert await desk.store.next_due() is None
    await desk.update(adding(RUN, posts_harvested=2), later(1))
    claim = await desk.claim(later(1))
    assert claim.runs[0].values == {"posts_harvested": 2}
    await desk.answer(claim, written(claim), later(1))
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.sync == "failed"  # until the dead one is replayed
    assert [state for _, state, _ in desk.states(RUN)] == ["delivered", "dead", "delivered"]


async def test_only_the_updates_that_touch_a_refused_field_die(desk: Desk) -> None:
    await desk.kick_off()
    await desk.update(setting(RUN, apify_status="READY"))
    await desk.update(adding(RUN, posts_harvested=2))
    await desk.answer(await desk.claim(), Refused(422, "no", field="apify_status"))
    assert desk.states(RUN) == [("create", "pending", 0), ("update", "dead", 1), ("update", "pending", 0)]
    claim = await desk.claim()
    assert "apify_status" not in claim.runs[0].values
    assert claim.runs[0].values["posts_harvested"] == 2


async def test_the_bad_one_of_ten_is_found_and_the_others_are_delivered(desk: Desk) -> None:
    run_ids = await kick_off_many(desk, 10)
    bad = run_ids[6]
    calls = 0
    while (claim := await desk.store.claim(later(99))) is not None:
        names = {run.run_id for run in claim.runs}
        await desk.answer(claim, Refused(422, "no") if bad in names else written(claim), later(99))
        calls += 1
        assert calls < 20
    assert desk.rows("SELECT run_id FROM outbox WHERE state = 'dead'") == [(bad,)]
    assert desk.cell("SELECT count(*) FROM outbox WHERE state = 'delivered'") == 9
    assert desk.rows("SELECT DISTINCT share FROM runs") == [(10,)]


async def test_runs_under_suspicion_do_not_mix_with_others(desk: Desk) -> None:
    suspects = await kick_off_many(desk, 2)
    await desk.answer(await desk.claim(later(9)), Refused(422, "no"), later(9))
    fresh = await desk.kick_off("Fresh", later(9))
    claims = [await desk.claim(later(9)) for _ in range(3)]
    assert sorted([run.run_id for run in claim.runs] for claim in claims) == sorted(
        [[one] for one in [*suspects, fresh]]
    )


# Recover --------------------------------------------------------------------------------------------------------


async def test_what_a_stopped_process_was_sending_is_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with open_desk(path) as desk:
        await desk.kick_off()
        await desk.update(adding(RUN, posts_harvested=1))
        await desk.claim()
    async with open_desk(path) as desk:
        assert await desk.store.recover(later(60)) == 2
        assert desk.states(RUN) == [("create", "pending", 1), ("update", "pending", 1)]
        assert desk.rows("SELECT outcome FROM airtable_calls") == [("interrupted",)]
        claim = await desk.claim(later(60))
        assert claim.creating
        assert len(claim.runs[0].messages) == 2
        assert await desk.store.recover(later(61)) == 2
        assert await desk.store.recover(later(62)) == 0


async def test_what_a_clock_that_was_set_back_left_due_far_ahead_is_due_at_once(desk: Desk) -> None:
    await desk.kick_off()
    await desk.kick_off("Ann")
    await desk.store.accept_update(adding("251007-070457-MGuy", posts_harvested=1), AT)
    await desk.store.accept_update(adding("251007-070457-MAnn", posts_harvested=1), AT)
    meddle(desk.path, "UPDATE runs SET due_at = ?", iso(later(3600 + 1)))
    meddle(desk.path, "UPDATE runs SET due_at = ? WHERE client_id = 'Ann'", iso(later(3600)))  # as a backoff may
    meddle(desk.path, "UPDATE errors SET look_due_at = ?", iso(later(86_400 + 1)))
    meddle(desk.path, "UPDATE errors SET look_due_at = ? WHERE client_id = 'MAnn'", iso(later(86_400)))
    meddle(desk.path, "INSERT INTO record_looks SELECT run_id, ? FROM runs", iso(later(3600 + 1)))
    assert await desk.store.recover_far(AT) == 1
    assert await desk.store.recover_looks(AT) == 3
    assert desk.rows("SELECT client_id, due_at FROM runs ORDER BY id") == [("Guy", iso(AT)), ("Ann", iso(later(3600)))]
    assert await desk.store.due_looks(AT, 9) == ["251007-070457-MGuy"]
    assert desk.cell("SELECT max(look_due_at) FROM errors") == iso(later(86_400))
    assert len(await desk.store.due_record_looks(AT, 9)) == 2


async def test_a_longer_backoff_is_kept_at_a_start(desk: Desk) -> None:
    await desk.kick_off()
    meddle(desk.path, "UPDATE runs SET due_at = ?", iso(later(7200)))
    await desk.store.recover(AT, timedelta(hours=2))
    assert await desk.store.next_due() == later(7200)
    await desk.store.recover(AT)
    assert await desk.store.next_due() == AT


async def test_a_batch_that_is_due_far_ahead_is_due_at_a_start(desk: Desk) -> None:
    orders = tuple(BatchOrder("{}", 1, "actor", f"token-{number}") for number in (1, 2))
    await desk.store.accept_create(Kickoff("Guy", JOB, Change(), orders), AT)
    meddle(desk.path, "UPDATE batches SET due_at = ?", iso(later(86_400)))
    meddle(desk.path, "UPDATE batches SET due_at = ? WHERE number = 2", iso(later(960)))  # sixteen polls' time
    await desk.store.recover_batches(AT)
    assert desk.rows("SELECT due_at FROM batches ORDER BY number") == [(iso(AT),), (iso(later(960)),)]


async def test_of_batches_in_every_state_a_start_makes_due_those_that_have_a_next_step(desk: Desk) -> None:
    await desk.kick_off()
    for number, state in enumerate([*BatchState, "failed"]):
        ended = state if state in ENDED.values() else "succeeded" if state == "measured" else None
        at = iso(AT)
        insert = """
            INSERT INTO batches (run_id, number, state, outcome, apify_run_id, attempted_at, measured_at, created_at)
            VALUES (?1, ?2, ?3, nullif(?4, ''), nullif(?5, ''), ?6, iif(?3 = 'measured', ?6, NULL), ?6)"""
        is_run = state not in ("queued", "starting", "unknown") and number < len(BatchState)
        meddle(desk.path, insert, RUN, number + 1, state, ended or "", f"a{number}" if is_run else "", at)
    assert await desk.store.recover_batches(AT) == 8
    at_rest = desk.rows("SELECT state, apify_run_id IS NULL FROM batches WHERE due_at IS NULL ORDER BY number")
    assert at_rest == [("measured", 0), ("failed", 1)]  # what never was a run has nothing left to ask for
    assert desk.rows("SELECT number, due_at FROM batches WHERE due_at > ?", iso(AT)) == [(2, iso(later(5)))]


async def test_a_run_whose_due_time_was_cleared_by_hand_is_due_at_a_start(desk: Desk) -> None:
    await desk.kick_off()
    await desk.kick_off("Ann")
    await desk.deliver_all()
    await desk.update(adding(RUN, posts_harvested=1))
    created = await desk.kick_off("Zoe")
    meddle(desk.path, "UPDATE runs SET due_at = NULL")
    await desk.store.recover(later(9))
    assert desk.rows("SELECT run_id, due_at FROM runs WHERE due_at IS NOT NULL ORDER BY id") == [
        (RUN, iso(later(9))),
        (created, iso(later(9))),
    ]


async def test_a_run_whose_create_was_set_aside_is_not_due_at_a_start(desk: Desk) -> None:
    await desk.kick_off()
    await desk.update(adding(RUN, posts_harvested=1))
    while (claim := await desk.store.claim(AT)) is not None:
        await desk.answer(claim, Refused(422, "no"), AT)
    await desk.update(adding(RUN, posts_harvested=1))
    assert ("create", "dead") in [(kind, state) for kind, state, _ in desk.states(RUN)]
    assert ("update", "pending") in [(kind, state) for kind, state, _ in desk.states(RUN)]
    await desk.store.recover(later(9))
    assert await desk.store.next_due() is None


async def test_a_run_whose_create_was_set_aside_and_that_a_hand_made_due_goes_to_rest(desk: Desk) -> None:
    """Its updates must not leave, and what tries to send them would end the loop, and each start after it."""
    await desk.kick_off()
    await desk.answer(await desk.claim(), Refused(422, "no"), AT)
    await desk.update(adding(RUN, posts_harvested=1))
    meddle(desk.path, "UPDATE runs SET due_at = '2026-01-01T00:00:00.000Z'")
    assert await desk.store.claim(AT) is None
    assert await desk.store.next_due() is None
    assert {(kind, state) for kind, state, _ in desk.states(RUN)} == {("create", "dead"), ("update", "pending")}


async def test_a_due_time_that_no_calendar_has_is_one_that_is_too_far_ahead(desk: Desk) -> None:
    await desk.kick_off()
    meddle(desk.path, "UPDATE runs SET due_at = '2026-11-31T00:00:00.000Z'")
    due = await desk.store.next_due()
    assert due is not None
    assert due > later(10**9)
    assert await desk.store.recover_far(AT) == 1
    assert await desk.store.next_due() == AT


async def test_what_was_settled_is_not_taken_back(desk: Desk) -> None:
    await desk.kick_off()
    await desk.deliver_all()
    assert await desk.store.recover(later(60)) == 0
    assert await desk.store.claim(later(60)) is None


async def test_the_last_rate_limit_is_remembered_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with open_desk(path) as desk:
        assert await desk.store.last_rate_limited() is None
        claims = []
        for client_id in ("Guy", "Ann"):
            await desk.kick_off(client_id)
            claims.append(await desk.claim())
        await desk.answer(claims[1], RateLimited("slow down"), later(3))
        await desk.answer(claims[0], RateLimited("slow down"), later(100))  # it began first, and was answered last
    async with open_desk(path) as desk:
        assert await desk.store.last_rate_limited() == later(100)


async def test_a_create_that_waits_though_its_record_is_known_goes_as_an_update(desk: Desk) -> None:
    """A person wrote the record id in by hand: nothing may spin, and no second record may come of it."""
    await desk.kick_off(client_name="Guy")

    with contextlib.closing(sqlite3.connect(desk.path, isolation_level=None)) as by_hand:
        by_hand.execute("UPDATE runs SET airtable_record_id = 'recByHand'")
    claim = await desk.claim()
    assert not claim.creating
    assert claim.runs[0].record_id == "recByHand"
    assert claim.runs[0].values["client_name"] == "Guy"
    await desk.answer(claim, written(claim))
    assert await desk.store.claim(later(1)) is None
