"""The limit of a base: no second ever holds more than it allows, and rests grow while nobody gets a sound answer."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.policy.delivery import Answer, Denied, QuotaExhausted, RateLimited, Refused, RetryRules, Unknown, Written
from app.policy.pace import BaseHealth, Departure, PauseRules, RequestWindow

PAUSES = PauseRules(rate_limit_pause_seconds=30.0, quota_pause_seconds=3600.0)
RULES = RetryRules(max_attempts=5, backoff_base_seconds=1.0, backoff_max_seconds=900.0)


def most_in_a_second(times: list[float]) -> int:
    ordered = sorted(times)
    return max((sum(start <= one < start + 1.0 for one in ordered) for start in ordered), default=0)


# The window -----------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.floats(0, 2), st.booleans(), st.booleans()), max_size=60),
)
def test_no_second_holds_more_departures_than_the_limit(limit: int, steps: list[tuple[float, bool, bool]]) -> None:
    """Whenever it is asked, and whatever is answered when."""
    window = RequestWindow(limit)
    now = 0.0
    left: list[float] = []
    open_requests: list[Departure] = []
    for wait, answers, sound in steps:
        now += wait
        if answers and open_requests:
            window.answered(open_requests.pop(0), now, soundly=sound)
        if window.delay(now) == 0.0:
            open_requests.append(window.leave(now))
            left.append(now)
    assert most_in_a_second(left) <= limit


@given(
    st.integers(1, 8),
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.floats(0.01, 2),
)
@example(5, 0.0, [0.04] * 20 + [0.0], 0.2)
def test_no_second_holds_more_arrivals_than_the_limit(
    limit: int, usual: float, late: list[float], service: float
) -> None:
    """A request may be long on its way (a new connection, say), if one in eight is not, which tells the quickest way.

    The base takes the same time for each.
    """
    ways = [usual + (min(one, 0.04) if place % 8 == 0 else one) for place, one in enumerate(late)]
    assert most_in_a_second(arrivals(limit, ways, service)) <= limit


def test_a_machine_that_is_busy_for_half_a_minute_and_then_no_more_sends_no_request_too_many() -> None:
    quick, late = [0.03], [0.15]
    assert most_in_a_second(arrivals(5, quick * 20 + late * 150 + quick * 20, service=0.2)) <= 5


def arrivals(limit: int, ways: list[float], service: float) -> list[float]:
    """When requests arrive that leave as soon as they may, each so long on its way; every answer is noticed."""
    window = RequestWindow(limit)
    now = 0.0
    arrived: list[float] = []
    under_way: list[tuple[float, Departure]] = []
    for way in ways:
        while (delay := window.delay(now)) > 0.0:
            now = min([now + delay + 1e-6, *(answered_at for answered_at, _ in under_way)])
            under_way = answer_until(window, under_way, now)
        under_way.append((now + way + service, window.leave(now)))
        arrived.append(now + way)
    return arrived


def answer_until(
    window: RequestWindow, under_way: list[tuple[float, Departure]], now: float
) -> list[tuple[float, Departure]]:
    for answered_at, departure in sorted(under_way, key=lambda one: one[0]):
        if answered_at <= now:
            window.answered(departure, answered_at, soundly=True)
    return [one for one in under_way if one[0] > now]


def test_one_slow_answer_does_not_tell_how_long_the_base_takes() -> None:
    """The second request was long on its way and answered at once, which the first one's time would have hidden."""
    window = RequestWindow(5)
    window.answered(window.leave(0.0), 0.085, soundly=True)
    second = window.leave(0.09)
    arrived_at = 0.2
    window.answered(second, 0.21, soundly=True)
    assert second.counts_until >= arrived_at + 1.0


@given(st.integers(1, 8), st.floats(0, 10))
def test_a_full_second_leaves_at_once_and_the_next_one_waits(limit: int, now: float) -> None:
    window = RequestWindow(limit)
    for _ in range(limit):
        assert window.delay(now) == 0.0
        window.leave(now)
    assert window.delay(now) >= 1.0


def test_what_an_unclean_stop_may_have_sent_counts() -> None:
    window = RequestWindow(5)
    window.fill(10.0)
    assert window.delay(10.0) >= 1.0
    assert window.delay(11.1) == 0.0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1))
def test_the_longest_rest_stands(rests: list[tuple[float, float]]) -> None:
    window = RequestWindow(5)
    for now, seconds in rests:
        window.rest(now, seconds)
    until = max(now + seconds for now, seconds in rests)
    assert window.rests_for(0.0) == pytest.approx(until)
    assert window.delay(0.0) == pytest.approx(until)
    assert window.delay(until + 0.001) == 0.0


# Health ---------------------------------------------------------------------------------------------------------


def test_a_rate_limit_rests_for_its_pause_and_a_little_more() -> None:
    health = BaseHealth()
    assert 30.0 < health.rest_after(RateLimited("slow"), PAUSES, RULES) < 32.0
    assert health.trouble is None


def test_a_spent_quota_rests_long_and_is_told_until_an_answer_comes() -> None:
    health = BaseHealth()
    assert health.rest_after(QuotaExhausted("1,000 used"), PAUSES, RULES) == 3600.0
    assert "monthly calls are used up: 1,000 used" in str(health.trouble)
    assert health.rest_after(Written({}), PAUSES, RULES) == 0.0
    assert health.trouble is None


def test_denied_access_is_told_at_once_and_rests_longer_and_longer() -> None:
    health = BaseHealth()
    rests = [health.rest_after(Denied(403, "no"), PAUSES, RULES) for _ in range(9)]
    assert rests[:4] == [1.0, 2.0, 4.0, 8.0]
    assert rests[-1] == 60.0
    assert "denies access (403)" in str(health.trouble)


def test_one_lost_answer_rests_nobody_and_several_rest_the_base() -> None:
    health = BaseHealth()
    rests = [health.rest_after(Unknown("timeout"), PAUSES, RULES) for _ in range(5)]
    assert rests == [0.0, 0.0, 1.0, 2.0, 4.0]
    assert "5 times in a row: timeout" in str(health.trouble)


def test_what_a_stranger_says_to_one_run_again_and_again_rests_nobody_else_and_is_told() -> None:
    health = BaseHealth()
    rests = [health.rest_after(Unknown("<html>", 403), PAUSES, RULES, alone="bad") for _ in range(5)]
    assert rests == [0.0] * 5
    assert "5 times in a row: <html>" in str(health.trouble)
    assert not health.is_sound
    assert health.rest_after(Unknown("<html>", 403), PAUSES, RULES, alone="another") > 0.0
    assert health.rest_after(Unknown("timeout"), PAUSES, RULES, alone="another") > 0.0
    assert health.rest_after(Unknown("timeout"), PAUSES, RULES, alone="another") > 0.0  # that is said to nobody alone


@pytest.mark.parametrize("sound", [Written({}), Refused(422, "no")])
def test_a_sound_answer_ends_the_trouble(sound: Answer) -> None:
    health = BaseHealth()
    for _ in range(4):
        health.rest_after(Unknown("timeout"), PAUSES, RULES)
    assert health.rest_after(sound, PAUSES, RULES) == 0.0
    assert (health.failures, health.trouble) == (0, None)
    assert health.rest_after(Unknown("timeout"), PAUSES, RULES) == 0.0


def test_what_a_503_asks_for_rests_the_base_from_the_first_on() -> None:
    health = BaseHealth()
    rests = [health.rest_after(Unknown("busy", 503, 7.0), PAUSES, RULES) for _ in range(7)]
    assert rests == [7.0, 7.0, 7.0, 7.0, 7.0, 8.0, 16.0]  # and for longer where it is our turn to be patient


@given(st.integers(1, 2000), st.none() | st.floats(0, 1e9))
def test_no_rest_for_lost_answers_is_longer_than_a_minute(failures: int, retry_after: float | None) -> None:
    health = BaseHealth(failures)
    assert 0.0 <= health.rest_after(Unknown("busy", 503, retry_after), PAUSES, RULES) <= 60.0


def test_rests_never_shrink_while_nothing_is_answered() -> None:
    health = BaseHealth()
    rests = [health.rest_after(Unknown("timeout"), PAUSES, RULES) for _ in range(100)]
    assert all(before <= after for before, after in pairwise(rests))
