"""What the store shows: runs, messages and errors by filter and page, counts, and views that say the same."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from app.clock import iso
from app.fields import Change
from app.model import Held, Update
from app.policy.delivery import RateLimited, Refused, Unknown
from app.store.views import ErrorFilter, MessageFilter, RunFilter, Slice
from tests.support.stores import JOB, Desk, adding, kickoff, later, open_desk, setting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

RUN = f"{JOB}-Guy"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "runs.db") as opened:
        yield opened


@pytest.fixture
async def busy(desk: Desk) -> Desk:
    """Of four runs one is synced, one set aside, one failed once and one waits; two more are missing."""
    await desk.kick_off("Synced", status="Completed")
    await desk.deliver_all()
    await desk.kick_off("Dead", later(10), status="Running")
    await desk.answer(await desk.claim(later(10)), Refused(422, "no such option"), later(11))
    await desk.kick_off("Failing", later(20), status="Running")
    await desk.answer(await desk.claim(later(20)), Unknown("it timed out"), later(21))
    await desk.store.accept_create(kickoff("Waiting", "260101-000000"), later(30))
    await desk.store.accept_create(kickoff("Synced"), later(31))
    await desk.store.accept_update(adding(f"{JOB}-Dea", posts_harvested=1), later(40))
    await desk.store.accept_update(adding(f"{JOB}-Dea", posts_harvested=1), later(41))
    await desk.store.accept_update(adding("nobody", posts_harvested=1), later(42))
    return desk


async def listed(desk: Desk, chosen: RunFilter) -> list[str]:
    return [run.client_id for run in (await desk.store.runs(chosen, Slice())).rows]


# Listings -------------------------------------------------------------------------------------------------------


async def test_runs_are_listed_newest_first_by_each_filter(busy: Desk) -> None:
    assert await listed(busy, RunFilter()) == ["Waiting", "Failing", "Dead", "Synced"]
    assert await listed(busy, RunFilter(client_id="Dead")) == ["Dead"]
    assert await listed(busy, RunFilter(job_id=JOB)) == ["Failing", "Dead", "Synced"]
    assert await listed(busy, RunFilter(status="Running")) == ["Failing", "Dead"]
    assert await listed(busy, RunFilter(sync="synced")) == ["Synced"]
    assert await listed(busy, RunFilter(sync="failed")) == ["Dead"]
    assert await listed(busy, RunFilter(status="Running", sync="pending")) == ["Failing"]
    assert await listed(busy, RunFilter(client_id="Nobody")) == []


async def test_messages_are_listed_with_what_holds_them(busy: Desk) -> None:
    page = await busy.store.messages(MessageFilter(), Slice())
    assert [(one.run_id.rpartition("-")[2], one.state, one.waits_for) for one in page.rows[::-1]] == [
        ("Synced", "delivered", None),
        ("Dead", "dead", "set aside: no such option"),
        ("Failing", "pending", f"failed 1 times, next try at {busy.cell(DUE_OF_FAILING)}: it timed out"),
        ("Waiting", "pending", "due at 2026-05-16T09:20:30.000Z"),
    ]
    for state, count in (("pending", 2), ("dead", 1), ("delivered", 1), ("sending", 0)):
        assert len((await busy.store.messages(MessageFilter(state=state), Slice())).rows) == count
    assert len((await busy.store.messages(MessageFilter(kind="update"), Slice())).rows) == 0
    assert len((await busy.store.messages(MessageFilter(run_id=f"{JOB}-Dead", kind="create"), Slice())).rows) == 1


DUE_OF_FAILING = "SELECT due_at FROM runs WHERE client_id = 'Failing'"


async def test_a_message_on_its_way_says_since_when(desk: Desk) -> None:
    await desk.kick_off()
    await desk.claim(later(5))
    message = await desk.store.message(1)
    assert message is not None
    assert message.waits_for == "on its way since 2026-05-16T09:20:05.000Z"


async def test_errors_are_listed_by_each_filter(busy: Desk) -> None:
    async def found(chosen: ErrorFilter) -> list[str | None]:
        return [one.run_id for one in (await busy.store.errors(chosen, Slice())).rows]

    assert await found(ErrorFilter()) == ["nobody", f"{JOB}-Dea", f"{JOB}-Dead"]
    assert await found(ErrorFilter(kind="missing_record")) == ["nobody", f"{JOB}-Dea"]
    assert await found(ErrorFilter(client_id="Dea")) == [f"{JOB}-Dea"]
    assert await found(ErrorFilter(run_id="nobody", state="open")) == ["nobody"]
    assert await found(ErrorFilter(state="resolved")) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_pages_follow_each_other_without_a_gap_or_a_double(desk: Desk, limit: int) -> None:
    for number in range(7):
        await desk.kick_off(f"C{number}")
        await desk.store.accept_update(adding(f"missing-{number}", posts_harvested=1), later(0))
    seen: list[str] = []
    before: int | None = None
    while True:
        page = await desk.store.runs(RunFilter(job_id=JOB), Slice(limit, before))
        assert len(page.rows) <= limit
        seen += [run.client_id for run in page.rows]
        if page.next_cursor is None:
            break
        before = int(page.next_cursor)
        await desk.kick_off(f"Newer-{before}")  # what comes meanwhile moves nothing
    assert seen == [f"C{number}" for number in range(6, -1, -1)]
    errors = await desk.store.errors(ErrorFilter(), Slice(limit))
    assert (errors.next_cursor is None) == (limit == 7)


# One run --------------------------------------------------------------------------------------------------------


async def test_a_run_is_shown_with_its_fields_and_errors(busy: Desk) -> None:
    await busy.update(adding(f"{JOB}-Dead", total_api_cost=Decimal("1.10")), later(50))
    run = await busy.store.run(f"{JOB}-Dead")
    assert run is not None
    assert (run.status, run.sync, run.origin, run.airtable_record_id) == ("Running", "failed", "kickoff", None)
    assert run.fields["total_api_cost"] == 1.1
    assert (run.created_at, run.changed_at) == ("2026-05-16T09:20:10.000Z", "2026-05-16T09:20:50.000Z")
    assert [one.kind for one in run.errors] == ["rejected"]
    assert await busy.store.run("nobody") is None


async def test_a_timeline_tells_all_that_happened_in_order(desk: Desk) -> None:
    await desk.store.accept_update(adding(RUN, posts_harvested=1), later(0))
    await desk.kick_off(at=later(10))
    await desk.deliver_all(later(20))
    await desk.update(setting(RUN, apify_status="x"), later(30))
    await desk.answer(await desk.claim(later(30)), Refused(422, "no"), later(40))
    run = await desk.store.run(RUN)
    assert run is not None
    told = [(entry.at[17:19], entry.what) for entry in run.timeline]
    assert told[:2] == [("00", "update held"), ("00", "missing_record opened")]
    assert ("10", "create accepted") in told
    assert ("10", "held update applied") in told
    assert ("10", "missing_record resolved") in told
    assert any(at == "20" and what.endswith("delivered") for at, what in told)
    assert told[-2:] == [("40", "rejected opened"), ("40", "update set aside")]
    assert told.index(("10", "create accepted")) < told.index(("10", "update accepted"))
    assert [at for at, _ in told] == sorted(at for at, _ in told)
    view = desk.rows("SELECT at, what FROM run_timeline WHERE run_id = ? ORDER BY at, step, id", RUN)
    assert view == [(entry.at, entry.what) for entry in run.timeline]


async def test_a_timeline_has_a_row_for_each_delivery_and_not_for_each_message(desk: Desk) -> None:
    await desk.kick_off()
    for at, count in ((10, 3), (20, 2)):
        for _ in range(count):
            await desk.update(adding(RUN, posts_harvested=1), later(at))
        await desk.deliver_all(later(at))
    delivered = desk.rows("SELECT at, detail FROM run_timeline WHERE what = 'delivered' ORDER BY at")
    assert delivered == [(iso(later(10)), "call 1 carried 4 messages"), (iso(later(20)), "call 2 carried 2 messages")]


async def test_a_timeline_shows_how_a_held_update_begins_and_the_whole_of_it_is_kept(desk: Desk) -> None:
    lines = tuple(f"line {number}" for number in range(200))
    await desk.store.accept_update(Update(RUN, Change(append={"progress_log": lines})), later(0))
    change = str(desk.cell("SELECT change FROM held_updates"))
    assert json.loads(change)["append"] == {"progress_log": list(lines)}
    detail = desk.cell("SELECT detail FROM run_timeline WHERE what = 'update held'")
    assert detail == f"held update 1, no such run: {change[:500]}"


# Counts and views -----------------------------------------------------------------------------------------------


async def test_the_counts_are_what_is_there(busy: Desk) -> None:
    stats = await busy.store.stats(later(100))
    assert (stats.runs, stats.pending, stats.dead, stats.held) == (4, 2, 1, 3)
    assert stats.oldest_pending_at == "2026-05-16T09:20:20.000Z"
    assert stats.oldest_pending_seconds == 80
    assert stats.creation_success_rate == 0.5
    assert stats.open_errors == {"missing_record": 2, "rejected": 1}
    assert (stats.calls_this_month.total, stats.calls_this_month.by_outcome) == (
        3,
        {"ok": 1, "refused": 1, "unknown": 1},
    )
    (day,) = stats.creations
    assert (day.day, day.created, day.already_existed, day.failed, day.success_rate) == ("2026-05-16", 4, 1, 1, 0.5)


async def test_nothing_is_counted_in_an_empty_store(desk: Desk) -> None:
    stats = await desk.store.stats(later(0))
    assert (stats.runs, stats.pending, stats.oldest_pending_at, stats.creation_success_rate) == (0, 0, None, None)
    assert stats.calls_this_month.total == 0


async def test_calls_are_counted_from_the_first_of_the_month(desk: Desk) -> None:
    await desk.kick_off()
    await desk.answer(await desk.claim(later(0)), RateLimited("slow down"), later(1))
    assert (await desk.store.stats(later(0).replace(day=31))).calls_this_month.total == 1
    assert (await desk.store.stats(later(0).replace(month=6, day=1))).calls_this_month.total == 0


async def test_the_views_say_what_the_answers_say(busy: Desk) -> None:
    missing = (await busy.store.errors(ErrorFilter(kind="missing_record", state="open"), Slice())).rows[::-1]
    assert busy.rows("SELECT run_id, updates_held, similar_runs, times, error_id FROM missing_records") == [
        (one.run_id, one.updates_held, ", ".join(one.similar_runs) or None, one.count, one.id) for one in missing
    ]
    assert [one.updates_held for one in missing] == [2, 1]
    assert f"{JOB}-Dead" in missing[0].similar_runs
    waiting = [one for one in (await busy.store.messages(MessageFilter(), Slice())).rows[::-1] if one.waits_for]
    assert busy.rows("SELECT message_id, run_id, state, waits_for FROM pending_sync ORDER BY message_id") == [
        (one.id, one.run_id, one.state, one.waits_for) for one in waiting
    ]
    stats = await busy.store.stats(later(0))
    assert busy.rows("SELECT * FROM creation_stats") == [
        (one.day, one.created, one.already_existed, one.failed, one.success_rate) for one in stats.creations
    ]


async def test_an_open_error_counts_all_that_waits_for_its_run_in_views_and_answers(desk: Desk) -> None:
    """What an earlier error held, closed by hand, follows a kickoff as well."""
    first = await desk.store.accept_update(adding(RUN, posts_harvested=1), later(0))
    assert isinstance(first, Held)
    await desk.store.resolve_error(first.error.id, note=None, discard=False, at=later(1))
    second = await desk.store.accept_update(adding(RUN, posts_harvested=1), later(2))
    assert isinstance(second, Held)
    error = await desk.store.error(second.error.id)
    assert error is not None
    assert error.updates_held == 2
    assert desk.rows("SELECT error_id, updates_held FROM missing_records") == [(second.error.id, 2)]
