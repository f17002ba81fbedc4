"""What the plots are made of: messages by step of time, and what people decided."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from app.model import Action
from app.policy.delivery import Refused
from app.store.views import DecisionFilter, Slice
from app.web.activity import Activity
from tests.support.stores import AT, JOB, Desk, adding, later, open_desk
from tests.support.watching import meddle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from pathlib import Path

STEP = timedelta(minutes=1)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "runs.db") as opened:
        yield opened


async def test_each_step_counts_what_happened_in_it(desk: Desk) -> None:
    await desk.kick_off("Guy", later(0))
    await desk.deliver_all(later(4))
    for second in (60, 61, 119.999):
        await desk.update(adding(f"{JOB}-Guy", posts_harvested=1), later(second))
    await desk.deliver_all(later(125))
    await desk.kick_off("Dean", later(180))
    await desk.answer(await desk.claim(later(180)), Refused(422, "no"), later(181))
    steps = await desk.store.activity(AT, STEP, 5)
    assert [(one.accepted, one.delivered, one.dead) for one in steps] == [
        (1, 1, 0), (3, 0, 0), (0, 3, 0), (1, 0, 1), (0, 0, 0),
    ]  # fmt: skip
    assert [one.start for one in steps][:2] == ["2026-05-16T09:20:00.000Z", "2026-05-16T09:21:00.000Z"]
    assert [one.median_delay_seconds for one in steps] == [4.0, None, 64.0, None, None]
    assert [one.slowest_delay_seconds for one in steps] == [4.0, None, 65.0, None, None]
    before = await desk.store.activity(AT - 3 * STEP, STEP, 3)
    assert [one.accepted for one in before] == [0, 0, 0]


async def test_pruned_messages_still_count_as_accepted(desk: Desk) -> None:
    await desk.kick_off("Guy", later(0))
    for second in range(1, 10):
        await desk.update(adding(f"{JOB}-Guy", posts_harvested=1), later(second * 10))
    await desk.deliver_all(later(100))
    meddle(desk.path, "DELETE FROM outbox WHERE kind = 'update' AND id IN (3, 4, 8)")
    assert [one.accepted for one in await desk.store.activity(AT, STEP, 2)] == [6, 4]


async def test_steps_that_are_over_are_asked_for_once_a_minute(desk: Desk) -> None:
    async def accepted(at: datetime) -> list[int]:
        return [one.accepted for one in await kept.steps(at, STEP, 3)]

    kept = Activity(desk.store)
    await desk.kick_off("Guy", later(0))
    assert await accepted(later(65)) == [0, 1, 0]
    await desk.kick_off("Dean", later(66))
    assert await accepted(later(70)) == [0, 1, 1]
    # What was over is not looked at again: not even this, which nobody may do.
    for trigger in ("outbox_keeps_creates", "outbox_keeps_undelivered", "outbox_leaves_a_trace"):
        meddle(desk.path, f"DROP TRIGGER {trigger}")
    meddle(desk.path, "DELETE FROM outbox WHERE id = 1")
    assert await accepted(later(119)) == [0, 1, 1]
    assert await accepted(later(121)) == [1, 1, 0]
    assert await accepted(later(126)) == [0, 1, 0]


async def test_nothing_happened_in_an_empty_store(desk: Desk) -> None:
    steps = await desk.store.activity(AT, STEP, 2)
    assert [(one.accepted, one.delivered, one.dead, one.median_delay_seconds) for one in steps] == [(0, 0, 0, None)] * 2


async def test_decisions_are_listed_and_stay_as_they_were_made(desk: Desk) -> None:
    await desk.store.decide(Action.CHECK, later(1), who="Ana", note="all of it")
    await desk.kick_off()
    await desk.answer(await desk.claim(later(0)), Refused(422, "no"), later(2))
    await desk.store.retry(1, later(3), who="Bob")
    await desk.answer(await desk.claim(later(3)), Refused(422, "no"), later(4))
    await desk.store.retry_all(kind=None, run_id=None, since=None, at=later(5))
    made = (await desk.store.decisions(DecisionFilter(), Slice())).rows
    assert [(one.action, one.who, one.run_id, one.message_id) for one in made] == [
        ("retry", None, f"{JOB}-Guy", 1), ("retry", "Bob", f"{JOB}-Guy", 1), ("check", "Ana", None, None),
    ]  # fmt: skip
    assert (await desk.store.decisions(DecisionFilter(message_id=1), Slice(limit=1))).rows == made[:1]
    for statement in (
        "DELETE FROM decisions",
        "UPDATE decisions SET who = 'Eve'",
        "UPDATE OR REPLACE decisions SET id = 1 WHERE id = 2",
        "INSERT OR REPLACE INTO decisions (id, at, action) VALUES (1, '2026-05-16T09:20:00.000Z', 'check')",
        "INSERT INTO decisions (at, action) VALUES ('2026-05-16T09:20:00.000Z', 'retry')",
        "INSERT INTO decisions (at, action) VALUES ('yesterday', 'check')",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            meddle(desk.path, statement)
