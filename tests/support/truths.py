"""What is true after every step of a world (`tests.support.world`), whatever came before: one sentence a function."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import astuple
from typing import TYPE_CHECKING, Final

from tests.support.house_by_hand import SYNC

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.world import World

#: The column that a person renames.
COLUMN: Final = "Posts Successfully Scored"


def one_record_a_run(world: World) -> None:
    ours = [str(one.fields["Run ID"]) for one in world.house.airtable.records() if one.id not in world.by_hand]
    assert len(ours) == len(set(ours))


def what_is_sending_is_in_a_call_and_the_reverse(world: World) -> None:
    sending = """
        SELECT DISTINCT m.run_id, c.outcome, r.call_id = m.call_id
        FROM outbox AS m JOIN runs AS r USING (run_id) LEFT JOIN airtable_calls AS c ON c.id = m.call_id
        WHERE m.state = 'sending' ORDER BY 1
    """
    on_the_way = sorted(run_id for flight in world.house.flights for run_id in flight.runs)
    assert world.house.rows(sending) == [(run_id, "in_flight", 1) for run_id in on_the_way]
    carried = world.house.rows("SELECT run_id FROM runs WHERE call_id IS NOT NULL ORDER BY 1")
    assert carried == [(run_id,) for run_id in on_the_way]
    in_flight = world.house.rows("SELECT count(*) FROM airtable_calls WHERE outcome = 'in_flight'")
    assert in_flight == [(len(world.house.flights),)]


def how_a_run_stands_follows_from_its_messages(world: World) -> None:
    wrong = """
        SELECT r.run_id FROM runs AS r JOIN (
            SELECT run_id, sum(state = 'dead') AS dead, sum(state IN ('pending', 'sending')) AS waiting,
                max(kind = 'create' AND state = 'dead') AS create_is_dead
            FROM outbox GROUP BY run_id) AS m USING (run_id)
        WHERE r.sync <> CASE WHEN dead THEN 'failed' WHEN waiting THEN 'pending' ELSE 'synced' END
            OR ((due_at IS NOT NULL) <> (waiting AND NOT create_is_dead)
                AND NOT (due_at IS NULL AND EXISTS (SELECT 1 FROM record_looks AS l WHERE l.run_id = r.run_id)))
    """
    assert world.house.rows(wrong) == []


def nothing_is_lost(world: World) -> None:
    kept = "SELECT run_id, count(*) FROM outbox WHERE source IN ('kickoff', 'caller') GROUP BY run_id"
    assert world.house.pairs(kept) == {one.run_id: one.messages for one in world.model.runs.values() if one.messages}
    held = world.house.rows("SELECT error_id, run_id, change FROM held_updates WHERE state = 'held' ORDER BY id")
    assert [(error_id, run_id) for error_id, run_id, _ in held] == [one[:2] for one in world.model.held]
    told = world.house.rows("SELECT error_id, apify_run_id FROM webhook_events WHERE outcome = 'held' ORDER BY id")
    assert told == [(error_id, one.apify_run) for error_id, one in world.model.held_told]


def every_run_shows_its_fold(world: World) -> None:
    folds = {
        str(run_id): json.loads(str(fields)) for run_id, fields in world.house.rows("SELECT run_id, fields FROM runs")
    }
    assert folds == world.cells()


def errors_are_as_the_model_says(world: World) -> None:
    shown = """
        SELECT id, kind, iif(kind = 'missing_record', run_id, replace(cause, 'Apify run ', '')), count, resolution
        FROM errors WHERE kind IN ('missing_record', 'unmatched_webhook') ORDER BY id
    """
    expected = [(id_, *astuple(error)) for id_, error in sorted(world.model.errors.items())]
    assert world.house.rows(shown) == expected


def nothing_dies_without_its_cause(world: World) -> None:
    """A message is set aside for what a person did to its own record or column, or after all its attempts."""
    dead = """
        SELECT m.run_id, m.fields, m.attempts, e.kind, e.cause, e.message
        FROM outbox AS m JOIN errors AS e ON e.id = m.error_id WHERE m.state = 'dead'
    """
    for run_id, fields, attempts, kind, cause, message in world.house.rows(dead):
        if kind == "record_deleted":
            assert run_id in world.gone
        elif kind == "duplicate_record":
            assert run_id in world.doubled
        elif "Unknown field name" in str(cause):
            assert kind == "rejected"
            assert world.was_renamed
            assert "posts_scored" in json.loads(str(fields))
        else:
            assert (kind, int(str(attempts)) >= SYNC.max_attempts) == ("rejected", True), (cause, message)


def what_is_delivered_stands_in_airtable(world: World) -> None:
    """Each cell of which nothing waits to be delivered is as the fold says."""
    waiting: dict[str, set[str]] = defaultdict(set)
    for run_id, names in world.house.rows("SELECT run_id, fields FROM outbox WHERE state <> 'delivered'"):
        waiting[str(run_id)] |= set(json.loads(str(names)))
    table = {one.id: one.fields for one in world.house.airtable.records()}
    for run_id, record_id in world.house.rows("SELECT run_id, airtable_record_id FROM runs"):
        if record_id not in table:
            continue
        for name, value in world.model.runs[str(run_id)].cells.items():
            column = world.house.registry[name].column
            if (
                name not in waiting[str(run_id)]
                and (record_id, column) not in world.stale
                and not (world.renamed and column == COLUMN)
            ):
                assert (table[str(record_id)].get(column) or None) == (value or None), (run_id, column)


TRUTHS: Final[tuple[Callable[[World], None], ...]] = (
    one_record_a_run,
    what_is_sending_is_in_a_call_and_the_reverse,
    how_a_run_stands_follows_from_its_messages,
    nothing_is_lost,
    every_run_shows_its_fold,
    errors_are_as_the_model_says,
    nothing_dies_without_its_cause,
    what_is_delivered_stands_in_airtable,
)
