"""The budget of the month's calls: never passed, and no wait where there is enough."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policy.budget import RESERVED_SHARE, Allowance, BudgetState, allowance, forecast, month_of, next_month

MONTH = datetime(2026, 4, 1, tzinfo=UTC)  # 30 days
TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
BUDGETS = st.integers(1, 1_000_000)


def day(number: float) -> datetime:
    """The moment when that many days of the month have passed."""
    return MONTH + timedelta(days=number)


def ordinary(budget: int) -> int:
    return budget - ceil(RESERVED_SHARE * budget)


def test_without_a_budget_nothing_waits() -> None:
    assert allowance(0, 10**9, day(1)) == Allowance()


@pytest.mark.parametrize(
    ("used", "days", "state"),
    [
        (0, 0, "ample"),
        (30, 0, "ample"),  # the first day's share may be spent in its first second
        (31, 0, "stretched"),
        (474, 15, "ample"),
        (475, 15, "stretched"),
        (948, 30, "ample"),
        (950, 30, "reserved"),
        (950, 2, "reserved"),
        (999, 2, "reserved"),
        (1000, 2, "spent"),
        (1001, 29.9, "spent"),
    ],
)
def test_who_may_spend_follows_from_the_line_through_the_month(used: int, days: float, state: str) -> None:
    at = min(day(days), day(30) - timedelta(milliseconds=1))
    assert allowance(1000, used, at).state == state


def test_what_is_held_back_says_until_when_and_what_to_do() -> None:
    assert allowance(1000, 600, day(15)).shortage is None
    reserved, spent = allowance(1000, 950, day(15)).shortage, allowance(1000, 1000, day(15)).shortage
    assert reserved == (
        "what is left of the month's calls is kept for creates and errors: updates wait until 2026-05-01 or a higher "
        "[airtable] monthly_call_budget"
    )
    assert spent is not None
    assert "nothing is sent until 2026-05-01" in spent


@pytest.mark.parametrize(
    ("used", "at", "calls"), [(0, day(3), 0), (10, day(0.1), 300), (10, day(2), 150), (7, day(15), 14)]
)
def test_the_forecast_goes_on_as_the_month_went(used: int, at: datetime, calls: int) -> None:
    assert forecast(used, at) == calls


@given(BUDGETS, st.integers(0, 2_000_000), TIMES)
def test_waiting_ends_this_month_and_the_next_begins_anew(budget: int, used: int, at: datetime) -> None:
    allowed = allowance(budget, used, at)
    if allowed.updates_wait_until is not None:
        assert at < allowed.updates_wait_until <= next_month(at)
    if ordinary(budget) * (timedelta(days=1) / timedelta(days=31)) >= 1:
        assert allowance(budget, 0, next_month(at)) == Allowance()


@given(BUDGETS, st.integers(0, 2_000_000), TIMES)
def test_when_the_wait_is_over_the_next_call_may_go(budget: int, used: int, at: datetime) -> None:
    until = allowance(budget, used, at).updates_wait_until
    if until is not None and until < next_month(at):
        assert allowance(budget, used, until + timedelta(milliseconds=1)).state is BudgetState.AMPLE


@given(BUDGETS, st.integers(0, 1_000_000), st.integers(0, 1_000_000), TIMES)
def test_less_spent_or_more_to_spend_never_waits_longer(budget: int, used: int, more: int, at: datetime) -> None:
    def waits(allowed: Allowance) -> datetime:
        return allowed.updates_wait_until or at

    assert waits(allowance(budget, used, at)) <= waits(allowance(budget, used + more, at))
    assert waits(allowance(budget + more, used, at)) <= waits(allowance(budget, used, at))


@given(st.integers(1, 300), st.lists(st.integers(0, 3), min_size=80, max_size=80))
def test_whatever_comes_updates_leave_the_reserve_and_nothing_passes_the_budget(
    budget: int, creates: list[int]
) -> None:
    """A month of updates without end, and of creates that come as they like: some every nine hours."""
    used = updates = 0
    for part, number in enumerate(creates):
        at = day(30 * part / len(creates))
        for _ in range(number):
            used += allowance(budget, used, at).state is not BudgetState.SPENT
        while allowance(budget, used, at) == Allowance():  # one update after the other, as fast as they are let
            used, updates = used + 1, updates + 1
    assert updates <= ordinary(budget)
    assert used <= budget


@given(TIMES)
def test_a_month_is_from_first_to_first(at: datetime) -> None:
    assert month_of(at) <= at < next_month(at)
    assert (month_of(at).day, next_month(at).day) == (1, 1)
    assert timedelta(days=28) <= next_month(at) - month_of(at) <= timedelta(days=31)
