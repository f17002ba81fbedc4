"""What the store takes in: one run a kickoff, updates queued or held, each request once."""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from app.errors import Conflict, IdempotencyKeyReused, Invalid
from app.fields import MAX_DECIMAL, MAX_INTEGER, Change
from app.model import BatchOrder, Duplicate, ErrorKind, Held, Idempotency, Kickoff, Queued, Update
from app.store.sqlite import intake
from app.store.sqlite.connection import connect_writing
from app.store.sqlite.intake import When
from tests.support.stores import AT, JOB, Desk, adding, kickoff, later, open_desk, setting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.fields import Number

RUN = f"{JOB}-Guy"
KEY = Idempotency("k1", "digest of one request")
SAME_KEY = Idempotency("k1", "digest of another request")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path / "runs.db") as opened:
        yield opened


# Kickoffs -------------------------------------------------------------------------------------------------------


async def test_a_kickoff_makes_a_run_and_its_create(desk: Desk) -> None:
    taken = await desk.store.accept_create(kickoff(client_name="Guy Wilson"), AT)
    assert (taken.created, taken.held_applied) == (True, 0)
    run = await desk.store.run(RUN)
    assert run is not None
    assert run == taken.run
    assert (run.job_id, run.client_id, run.client_name, run.sync) == (JOB, "Guy", "Guy Wilson", "pending")
    assert run.fields == {"run_id": RUN, "client_id": "Guy", "client_name": "Guy Wilson"}
    assert desk.states(RUN) == [("create", "pending", 0)]


async def test_the_same_kickoff_again_finds_the_run_and_writes_nothing_to_it(desk: Desk) -> None:
    await desk.kick_off(client_name="Guy Wilson")
    before = await desk.store.run(RUN)
    taken = await desk.store.accept_create(kickoff(client_name="Another"), later(60))
    assert not taken.created
    assert await desk.store.run(RUN) == before == taken.run
    assert desk.states(RUN) == [("create", "pending", 0)]
    assert (await desk.store.stats(AT)).creations[0].already_existed == 1


async def test_what_happened_to_a_run_is_not_read_while_others_wait_to_write(desk: Desk) -> None:
    """It may be a hundred thousand updates, and a kickoff may be repeated for each of them."""
    await desk.kick_off()
    await desk.update(adding(RUN, posts_harvested=1))
    written: list[str] = []
    await desk.store._writer.run(lambda connection: connection.set_trace_callback(written.append))
    taken = await desk.store.accept_create(kickoff(), later(60))
    assert len(taken.run.timeline) == 2
    assert any("repeated_kickoffs" in statement for statement in written)
    assert not any("run_timeline" in statement for statement in written)


async def test_kickoffs_at_once_make_one_run(desk: Desk) -> None:
    created = await asyncio.gather(*[desk.store.accept_create(kickoff(), AT) for _ in range(20)])
    assert sorted(one.created for one in created) == [False] * 19 + [True]
    assert desk.cell("SELECT count(*) FROM runs") == 1


async def test_without_a_job_the_next_free_second_is_taken(desk: Desk) -> None:
    created = await asyncio.gather(*[desk.store.accept_create(kickoff(job_id=None), AT) for _ in range(3)])
    assert sorted(one.run_id for one in created) == [f"260516-09200{second}-Guy" for second in range(3)]
    assert all(one.created for one in created)
    other = await desk.store.accept_create(kickoff("Ann", None), AT)
    assert other.run_id == "260516-092000-Ann"  # free for her


async def test_a_run_id_that_two_jobs_could_make_belongs_to_the_first(desk: Desk) -> None:
    await desk.store.accept_create(kickoff("b-c", "a"), AT)
    with pytest.raises(Conflict, match=r"belongs to job 'a' of client 'b-c'"):
        await desk.store.accept_create(kickoff("c", "a-b"), AT)
    assert desk.cell("SELECT count(*) FROM runs") == 1


async def test_a_kickoff_brings_its_batches(desk: Desk) -> None:
    orders = tuple(BatchOrder(f'{{"n":{number}}}', number, "actor", f"token-{number}") for number in (1, 2))
    await desk.store.accept_create(Kickoff("Guy", JOB, Change(), orders), AT)
    run = await desk.store.run(RUN)
    assert run is not None
    assert [(one.number, one.state, one.profiles) for one in run.batches] == [(1, "queued", 1), (2, "queued", 2)]


async def test_a_kickoff_key_names_one_request(desk: Desk) -> None:
    first = await desk.store.accept_create(kickoff(job_id=None, key=KEY), AT)
    again = await desk.store.accept_create(kickoff(job_id=None, key=KEY), later(60))
    assert (again.run_id, again.created) == (first.run_id, False)
    with pytest.raises(IdempotencyKeyReused):
        await desk.store.accept_create(kickoff("Ann", key=SAME_KEY), AT)
    assert desk.cell("SELECT count(*) FROM runs") == 1


async def test_a_refused_kickoff_leaves_its_key_free(desk: Desk) -> None:
    await desk.store.accept_create(kickoff("b-c", "a"), AT)
    with pytest.raises(Conflict):
        await desk.store.accept_create(kickoff("c", "a-b", key=KEY), AT)
    assert (await desk.store.accept_create(kickoff("c", "x", key=KEY), AT)).created


# Updates --------------------------------------------------------------------------------------------------------


async def test_updates_fold_in_the_order_of_acceptance(desk: Desk) -> None:
    await desk.kick_off()
    await desk.update(setting(RUN, posts_harvested=5, apify_status="READY"))
    await desk.update(adding(RUN, posts_harvested=2, total_api_cost=Decimal("0.1")))
    await desk.update(adding(RUN, total_api_cost=Decimal("0.2")))
    await desk.update(Update(RUN, Change(append={"progress_log": ("one", "two")})))
    await desk.update(Update(RUN, Change(set={"apify_status": None}, append={"progress_log": ("three",)})))
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.fields["posts_harvested"] == 7
    assert run.fields["total_api_cost"] == 0.3
    assert run.fields["progress_log"] == "one\ntwo\nthree"
    assert run.fields["apify_status"] is None


async def test_the_same_update_twice_counts_once(desk: Desk) -> None:
    await desk.kick_off()
    first = await desk.store.accept_update(adding(RUN, posts_harvested=3, key=KEY), AT)
    assert isinstance(first, Queued)
    again = await asyncio.gather(
        *[desk.store.accept_update(adding(RUN, posts_harvested=3, key=KEY), later(9)) for _ in range(3)]
    )
    assert again == [Duplicate(RUN)] * 3
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.fields["posts_harvested"] == 3


async def test_a_key_with_another_update_is_refused_and_changes_nothing(desk: Desk) -> None:
    await desk.kick_off()
    await desk.update(adding(RUN, posts_harvested=3, key=KEY))
    with pytest.raises(IdempotencyKeyReused):
        await desk.store.accept_update(adding(RUN, posts_harvested=4, key=SAME_KEY), AT)
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.fields["posts_harvested"] == 3


async def test_a_key_belongs_to_its_run_and_not_to_others_nor_to_kickoffs(desk: Desk) -> None:
    await desk.store.accept_create(kickoff(key=KEY), AT)
    other = await desk.kick_off("Ann")
    for run_id in (RUN, other, "kickoff"):
        outcome = await desk.store.accept_update(adding(run_id, posts_harvested=3, key=SAME_KEY), AT)
        assert not isinstance(outcome, Duplicate)


@pytest.mark.parametrize(
    ("name", "most", "advice"),
    [
        ("posts_harvested", MAX_INTEGER, "would be 18,014,398,509,481,982"),
        ("total_api_cost", Decimal(MAX_DECIMAL), "would be 2,000,000,000,000,000"),
    ],
)
async def test_a_sum_out_of_range_is_refused_and_changes_nothing(
    desk: Desk, name: str, most: int | Decimal, advice: str
) -> None:
    def add(number: Number) -> Update:
        return Update(RUN, Change(add={name: number}), KEY)

    await desk.kick_off()
    await desk.update(Update(RUN, Change(add={name: most})))
    before = await desk.store.run(RUN)
    with pytest.raises(Invalid, match=f"'{name}' takes .* the sum would be"):
        await desk.store.accept_update(add(1), later(1))
    with pytest.raises(Invalid, match=advice) as caught:
        await desk.store.accept_update(add(most), later(1))
    assert [flaw.pointer for flaw in caught.value.flaws] == [f"/add/{name}"]
    assert await desk.store.run(RUN) == before
    assert len(desk.states(RUN)) == 2
    await desk.update(add(-most))  # the key of what was refused is free


async def test_held_updates_whose_sum_is_out_of_range_do_not_hold_up_the_kickoff(desk: Desk) -> None:
    for _ in range(3):
        await desk.store.accept_update(adding(RUN, posts_harvested=MAX_INTEGER), AT)
    assert (await desk.store.accept_create(kickoff(), AT)).held_applied == 3


async def test_a_linger_lets_updates_gather_before_they_are_due(tmp_path: Path) -> None:
    async with open_desk(tmp_path / "runs.db", linger_seconds=2.0) as desk:
        await desk.kick_off()
        assert await desk.store.claim(later(1.9)) is None
        assert await desk.store.next_due() == later(2.0)
        await desk.update(adding(RUN, posts_harvested=1), later(1.9))
        claim = await desk.claim(later(2.0))
        assert len(claim.runs[0].messages) == 2


# Held updates ---------------------------------------------------------------------------------------------------


async def test_an_update_of_no_run_is_held_under_one_open_error(desk: Desk) -> None:
    first = await desk.store.accept_update(adding(RUN, posts_harvested=1), AT)
    second = await desk.store.accept_update(adding(RUN, posts_harvested=2), later(5))
    assert isinstance(first, Held)
    assert isinstance(second, Held)
    assert first.error.kind is ErrorKind.MISSING_RECORD
    assert (first.error.id, first.error.count) == (second.error.id, 1)
    assert second.error.count == 2
    assert "The kickoff did not create a record" in first.error.message
    error = await desk.store.error(first.error.id)
    assert error is not None
    assert (error.updates_held, error.count, error.client_id) == (2, 2, "Guy")
    assert await desk.store.run(RUN) is None
    assert await desk.store.claim(later(99)) is None


async def test_a_held_update_says_which_run_was_probably_meant(desk: Desk) -> None:
    meant = await desk.kick_off("Guy-Wilson")
    held = await desk.store.accept_update(adding(f"{meant}-Guy-Wilson", posts_harvested=1), AT)
    assert isinstance(held, Held)
    assert held.error.similar_runs[0] == meant
    assert f"Was {meant} meant?" in held.error.message


async def test_a_held_update_with_a_key_is_held_once(desk: Desk) -> None:
    await desk.store.accept_update(adding(RUN, posts_harvested=1, key=KEY), AT)
    assert await desk.store.accept_update(adding(RUN, posts_harvested=1, key=KEY), AT) == Duplicate(RUN)
    assert (await desk.store.stats(AT)).held == 1


async def test_a_late_kickoff_lets_the_held_updates_follow_its_create_in_order(desk: Desk) -> None:
    await desk.store.accept_update(setting(RUN, posts_harvested=10), AT)
    await desk.store.accept_update(adding(RUN, posts_harvested=5), later(1))
    await desk.store.accept_update(setting("251007-070457-Other", posts_harvested=99), later(1))
    created = await desk.store.accept_create(kickoff(posts_harvested=1), later(2))
    assert (created.created, created.held_applied) == (True, 2)
    run = await desk.store.run(RUN)
    assert run is not None
    assert run == created.run
    assert run.fields["posts_harvested"] == 15
    assert [kind for kind, _, _ in desk.states(RUN)] == ["create", "update", "update"]
    (error,) = run.errors
    assert (error.state, error.resolution, error.updates_held) == ("resolved", "created_late", 0)
    assert desk.rows("SELECT state, message_id FROM held_updates WHERE run_id = ? ORDER BY id", RUN) == [
        ("applied", 2),
        ("applied", 3),
    ]
    assert (await desk.store.stats(AT)).held == 1  # the other run's waits on


async def test_any_number_of_held_updates_is_one_change_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with open_desk(path) as desk:
        for number in range(500):
            line = Change(add={"posts_harvested": 1}, append={"progress_log": (f"line {number}",)})
            await desk.store.accept_update(Update(RUN, line), later(number))
    ran: list[str] = []
    with contextlib.closing(connect_writing(path)) as connection:
        connection.set_trace_callback(ran.append)
        when = When.of(later(600), 2.0)
        created = intake.accept_create(connection, kickoff(posts_harvested=1), now=later(600), when=when)
    assert created.held_applied == 500
    assert len({one for one in ran if "UPDATE runs" in one}) == 1
    async with open_desk(path) as desk:
        run = await desk.store.run(RUN)
        assert run is not None
        assert run.fields["posts_harvested"] == 501
        assert run.fields["progress_log"] == "\n".join(f"line {number}" for number in range(500))
        assert desk.rows("SELECT message_id FROM held_updates ORDER BY id") == [(number,) for number in range(2, 502)]
        assert desk.rows("SELECT DISTINCT sync, due_at, status_by FROM runs") == [
            ("pending", "2026-05-16T09:30:02.000Z", "batches")
        ]


async def test_a_status_among_the_held_updates_is_the_callers(desk: Desk) -> None:
    await desk.store.accept_update(setting(RUN, status="Completed"), AT)
    await desk.store.accept_update(adding(RUN, posts_harvested=1), AT)
    await desk.kick_off()
    assert desk.rows("SELECT status, status_by FROM runs") == [("Completed", "caller")]


async def test_a_key_of_a_held_update_is_still_known_after_the_late_kickoff(desk: Desk) -> None:
    await desk.store.accept_update(adding(RUN, posts_harvested=5, key=KEY), AT)
    await desk.kick_off()
    assert await desk.store.accept_update(adding(RUN, posts_harvested=5, key=KEY), AT) == Duplicate(RUN)
    run = await desk.store.run(RUN)
    assert run is not None
    assert run.fields["posts_harvested"] == 5
