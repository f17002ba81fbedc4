"""How a batch moves, whatever is reported in whatever order, and what its run shows for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from app.clock import iso
from app.model import BatchState, RunStatus
from app.policy.harvest import (
    ENDED,
    RESURRECTED,
    ActorRun,
    Batch,
    HarvestRules,
    Report,
    poll_interval,
    reported,
)
from app.policy.rollup import new_failure, rollup, run_change, status_of

if TYPE_CHECKING:
    from random import Random

AT = datetime(2026, 5, 16, 9, 20, tzinfo=UTC)
RULES = HarvestRules(max_concurrent_runs=4, poll_interval_seconds=60.0, look_after_seconds=60.0, settle_seconds=12.0)
STATUSES = ("READY", "RUNNING", "TIMING-OUT", "ABORTING", *ENDED)
KNOWN = (
    "status",
    "end_time",
    "profiles_submitted",
    "posts_harvested",
    "apify_api_costs",
    "apify_run_ids",
    "apify_status",
    "last_webhook",
    "error_details",
)


def time(seconds: int) -> str:
    return iso(AT + timedelta(seconds=seconds))


def report(status: str, seconds: int, event: str | None = "ACTOR.RUN.CREATED", run_id: str = "a1") -> Report:
    finished_at = time(seconds) if status in ENDED else None
    return Report(ActorRun(run_id, status, started_at=time(0), finished_at=finished_at), time(seconds), event)


def ordered(number: int = 1, **more: object) -> Batch:
    made = Batch(number, "251007-Guy", number, BatchState.QUEUED, token=f"t{number}", profiles=number)
    return replace(made, **more)  # type: ignore[arg-type]  # names and values of its fields


def after_all(batch: Batch, *reports: Report) -> Batch:
    for one in reports:
        batch = reported(batch, one, at=AT, rules=RULES)
    return batch


# Reports --------------------------------------------------------------------------------------------------------


def test_a_batch_runs_and_ends_as_apify_says() -> None:
    running = after_all(ordered(), report("RUNNING", 1))
    assert (running.state, running.outcome, running.apify_run_id) == (BatchState.RUNNING, None, "a1")
    for status, state in ENDED.items():
        ended = after_all(running, report(status, 9))
        assert (ended.state, ended.outcome, ended.apify_status) == (state, state, status)
        assert ended.finished_at == time(9)
        assert (ended.cause is None) == (state is BatchState.SUCCEEDED)
        assert ended.due_at == iso(AT + timedelta(seconds=12))  # to be measured


LATE = st.builds(
    report,
    st.sampled_from(STATUSES),
    st.integers(0, 9),
    st.sampled_from(["ACTOR.RUN.CREATED", "ACTOR.RUN.SUCCEEDED", RESURRECTED]),
)


@given(st.sampled_from(list(ENDED)), st.lists(LATE, max_size=8))
def test_a_late_report_never_takes_an_end_back(status: str, late: list[Report]) -> None:
    """All that was said at or before the end, come in any order after it."""
    ended = after_all(ordered(), report(status, 9))
    assert after_all(ended, *late) == ended


@given(st.permutations([report("READY", 0), report("RUNNING", 1), report("SUCCEEDED", 9, "ACTOR.RUN.SUCCEEDED")]))
def test_the_order_of_webhooks_does_not_matter(order: list[Report]) -> None:
    ended = after_all(ordered(), *order)
    assert (ended.state, ended.finished_at) == (BatchState.SUCCEEDED, time(9))


@given(st.lists(st.sampled_from([report("RUNNING", 1), report("SUCCEEDED", 9)]), min_size=1))
def test_a_report_that_comes_again_changes_nothing(reports: list[Report]) -> None:
    batch = after_all(ordered(), *reports)
    if batch.outcome is not None:
        assert after_all(batch, *reports) is batch


def test_a_resurrected_run_runs_again_and_ends_again() -> None:
    ended = after_all(ordered(), report("FAILED", 9))
    again = after_all(ended, report("RUNNING", 20, RESURRECTED))
    assert (again.state, again.outcome, again.finished_at) == (BatchState.RUNNING, None, None)
    assert after_all(again, report("FAILED", 9)) == again  # its first end, told late
    final = after_all(again, report("SUCCEEDED", 30))
    assert (final.state, final.finished_at) == (BatchState.SUCCEEDED, time(30))


def test_a_report_of_another_run_is_not_about_this_batch() -> None:
    running = after_all(ordered(), report("RUNNING", 1))
    assert after_all(running, report("SUCCEEDED", 9, run_id="a2")) is running


@given(st.integers(0, 10_000))
def test_looks_without_news_come_less_and_less_often_but_always_come(polls: int) -> None:
    wait = poll_interval(polls, RULES)
    assert timedelta(seconds=60) <= wait <= timedelta(seconds=16 * 60)
    assert poll_interval(polls + 1, RULES) >= wait


# What the run shows ---------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    """Batches of one run in every state that its outcome allows, numbered in order."""
    made: list[Batch] = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        outcome = draw(st.none() | st.sampled_from(list(ENDED.values())))
        made.append(
            ordered(
                number,
                token=draw(st.sampled_from([None, f"t{number}"])),
                state=outcome or BatchState.RUNNING,
                outcome=outcome,
                apify_run_id=draw(st.sampled_from([None, f"a{number}"])),
                apify_status=draw(st.none() | st.sampled_from(STATUSES)),
                items=draw(st.none() | st.integers(0, 1000)),
                cost_usd=draw(st.none() | st.integers(0, 10**6).map(lambda mills: mills / 1000)),
                finished_at=None if outcome is None else time(draw(st.integers(0, 99))),
                last_webhook_at=draw(st.none() | st.integers(0, 99).map(time)),
            )
        )
    return made


@given(batches(), st.randoms())
def test_figures_do_not_depend_on_the_order_of_batches(made: list[Batch], shuffler: Random) -> None:
    shuffled = made[:]
    shuffler.shuffle(shuffled)
    assert rollup(shuffled) == rollup(made)


@given(batches())
def test_figures_are_the_sums_of_what_is_known(made: list[Batch]) -> None:
    values = rollup(made)
    items = [one.items for one in made if one.items is not None]
    assert values.get("posts_harvested") == (sum(items) if items else None)
    costs = [Decimal(str(one.cost_usd)) for one in made if one.cost_usd is not None]
    assert values.get("apify_api_costs") == (sum(costs) if costs else None)


@given(batches(), batches())
def test_a_change_brings_the_run_from_what_it_showed_to_what_it_shows(before: list[Batch], now: list[Batch]) -> None:
    change = run_change(before, now, failures=(), known=KNOWN, status_is_ours=True)
    assert {**rollup(before), **change.set} == {**rollup(before), **rollup(now)}
    assert not change.add  # a figure is set and not added, so that it counts once however often it is told


@given(batches())
def test_what_did_not_change_is_no_update(made: list[Batch]) -> None:
    assert run_change(made, made, failures=(), known=KNOWN, status_is_ours=True).names() == ()


def test_a_status_that_a_caller_set_is_left_alone() -> None:
    before, now = [ordered(state=BatchState.RUNNING)], [after_all(ordered(), report("SUCCEEDED", 9))]
    assert run_change(before, now, failures=(), known=KNOWN, status_is_ours=True).set["status"] == RunStatus.COMPLETED
    assert "status" not in run_change(before, now, failures=(), known=KNOWN, status_is_ours=False).set


def test_only_fields_of_the_registry_are_changed() -> None:
    now = [after_all(ordered(), report("FAILED", 9))]
    change = run_change([ordered()], now, failures=("a line",), known=("apify_status",), status_is_ours=True)
    assert change.names() == ("apify_status",)


def test_each_failure_is_a_line_once() -> None:
    failed = after_all(ordered(), report("FAILED", 9))
    line = "Batch 1 (Apify run a1) failed: Apify says FAILED"
    assert new_failure(ordered(), failed) == (line,)
    assert new_failure(failed, failed) == ()
    change = run_change([ordered()], [failed], failures=(line, line), known=KNOWN, status_is_ours=True)
    assert change.append == {"error_details": (line, line)}


@given(st.lists(st.none() | st.sampled_from(list(ENDED.values())), min_size=1))
def test_a_run_is_done_when_all_its_batches_are(outcomes: list[BatchState | None]) -> None:
    status = status_of([ordered(number, outcome=outcome) for number, outcome in enumerate(outcomes, start=1)])
    if None in outcomes:
        assert status is RunStatus.RUNNING
    elif set(outcomes) == {BatchState.SUCCEEDED}:
        assert status is RunStatus.COMPLETED
    elif BatchState.SUCCEEDED in outcomes:
        assert status is RunStatus.COMPLETED_WITH_ERRORS
    else:
        assert status is RunStatus.FAILED


def test_batches_of_others_count_but_do_not_say_how_the_run_stands() -> None:
    observed = ordered(2, token=None, outcome=BatchState.FAILED, state=BatchState.FAILED, items=5)
    values = rollup([observed])
    assert values["posts_harvested"] == 5
    assert "status" not in values
    assert rollup([ordered(1, outcome=BatchState.SUCCEEDED), observed])["status"] is RunStatus.COMPLETED
