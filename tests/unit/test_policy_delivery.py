"""What an answer means for each run that it is about, whatever the claim and the answer are."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.model import CallOutcome, ErrorKind
from app.policy.delivery import (
    SHARES,
    Answer,
    Claim,
    ClaimedRun,
    Denied,
    QuotaExhausted,
    RateLimited,
    Refused,
    RetryRules,
    RunSettlement,
    Settlement,
    Unknown,
    Waiting,
    Written,
    fields_to_send,
    settle,
)

AT = datetime(2026, 5, 16, 9, 20, tzinfo=UTC)
RULES = RetryRules(max_attempts=5, backoff_base_seconds=1.0, backoff_max_seconds=60.0)
FIELDS = ("status", "posts", "cost")


def run(
    number: int, *messages: Waiting, share: int = 10, failures: int = 0, record_id: str | None = None
) -> ClaimedRun:
    given_messages = messages or (Waiting(number, ("status",), 1),)
    values = fields_to_send(given_messages, dict.fromkeys(FIELDS, 1))
    return ClaimedRun(f"run-{number}", record_id, share, failures, given_messages, values)


def decide(answer: Answer, *runs: ClaimedRun, rules: RetryRules = RULES) -> Settlement:
    settlement = settle(Claim(7, False, runs), answer, at=AT, rules=rules, random=random.Random(1))  # noqa: S311
    assert settlement.call_id == 7
    return settlement


MESSAGES = st.lists(
    st.tuples(st.lists(st.sampled_from(FIELDS), unique=True).map(tuple), st.integers(1, 6)), min_size=1, max_size=4
)


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    """Up to ten runs, each with messages of its own."""
    runs: list[ClaimedRun] = []
    for number, drawn in enumerate(draw(st.lists(MESSAGES, min_size=1, max_size=10))):
        messages = [Waiting(number * 10 + place, names, attempts) for place, (names, attempts) in enumerate(drawn)]
        shares, failures = draw(st.sampled_from(SHARES)), draw(st.integers(0, 200))
        runs.append(run(number, *messages, share=shares, failures=failures, record_id=f"rec{number}"))
    return Claim(7, False, tuple(runs))


ANSWERS: st.SearchStrategy[Answer] = st.one_of(
    st.builds(Written, st.dictionaries(st.sampled_from([f"run-{n}" for n in range(10)]), st.just("rec"))),
    st.builds(
        Refused,
        st.just(422),
        st.just("no"),
        st.sampled_from([ErrorKind.REJECTED, ErrorKind.RECORD_DELETED, ErrorKind.DUPLICATE_RECORD]),
        st.none() | st.sampled_from(["rec0", "rec3", "rec99"]),
        st.none() | st.sampled_from(["status", "cost", "weather"]),
    ),
    st.just(RateLimited("slow")),
    st.just(QuotaExhausted("spent")),
    st.builds(Denied, st.just(403), st.just("no")),
    st.builds(Unknown, st.just("lost"), st.sampled_from([None, 403, 500, 503]), st.none() | st.floats(0, 3600)),
)


@given(claims(), ANSWERS)
def test_no_message_is_ever_lost(claim: Claim, answer: Answer) -> None:
    settlement = settle(claim, answer, at=AT, rules=RULES, random=random.Random(1))  # noqa: S311
    assert [one.run_id for one in settlement.runs] == [one.run_id for one in claim.runs]
    for claimed, settled in zip(claim.runs, settlement.runs, strict=True):
        ids = {message.id for message in claimed.messages}
        dead = set(settled.dead.message_ids) if settled.dead else set()
        assert dead <= ids
        assert not (settled.delivered and dead)
        assert settled.dead is None or dead
        assert settled.due_at >= AT
        assert settled.share in SHARES


@given(claims(), ANSWERS)
def test_only_a_written_record_is_delivered_and_it_names_its_record(claim: Claim, answer: Answer) -> None:
    settlement = settle(claim, answer, at=AT, rules=RULES, random=random.Random(1))  # noqa: S311
    for settled in settlement.runs:
        named = isinstance(answer, Written) and settled.run_id in answer.record_ids
        assert settled.delivered == named
        assert (settled.record_id is not None) == named


@given(claims(), ANSWERS)
def test_an_attempt_is_spent_only_where_airtable_itself_did_not_get_it_done(claim: Claim, answer: Answer) -> None:
    settlement = settle(claim, answer, at=AT, rules=RULES, random=random.Random(1))  # noqa: S311
    for settled in settlement.runs:
        spent = not settled.give_back and not settled.delivered
        counts = isinstance(answer, Written) or (isinstance(answer, Unknown) and not answer.is_outage)
        assert spent == (not settled.delivered and counts)


@given(claims(), st.booleans())
def test_a_refusal_kills_at_most_one_run_and_halves_the_rest(claim: Claim, named: bool) -> None:
    answer = Refused(422, "no", record_id="rec0" if named else None)
    settlement = settle(claim, answer, at=AT, rules=RULES, random=random.Random(1))  # noqa: S311
    dead = [one for one in settlement.runs if one.dead]
    if named or len(claim.runs) == 1:
        assert len(dead) == 1
        assert all(
            one.share == claimed.share
            for one, claimed in zip(settlement.runs, claim.runs, strict=True)
            if one.dead is None
        )
    else:
        assert dead == []
        assert all(one.share < len(claim.runs) for one in settlement.runs)


@pytest.mark.parametrize("bad", range(10))
def test_bisection_finds_the_bad_one_of_ten(bad: int) -> None:
    waiting = {f"run-{number}": run(number) for number in range(10)}
    delivered: set[str] = set()
    dead: list[RunSettlement] = []
    calls = 0
    while waiting:
        share = next(iter(waiting.values())).share
        group = [one for one in waiting.values() if one.share == share][:share]
        calls += 1
        is_bad = any(one.run_id == f"run-{bad}" for one in group)
        answer = Refused(422, "no") if is_bad else Written({one.run_id: "rec" for one in group})
        for settled in decide(answer, *group).runs:
            if settled.delivered:
                delivered.add(waiting.pop(settled.run_id).run_id)
            elif settled.dead:
                dead.append(settled)
                del waiting[settled.run_id]
            else:
                waiting[settled.run_id] = run(int(settled.run_id[4:]), share=settled.share)
    assert [one.run_id for one in dead] == [f"run-{bad}"]
    assert len(delivered) == 9
    assert calls <= 10


def test_a_refusal_that_names_a_field_kills_only_what_touches_it() -> None:
    messages = (Waiting(1, ("status", "posts"), 1), Waiting(2, ("posts",), 1), Waiting(3, ("cost",), 1))
    (settled,) = decide(Refused(422, "no", field="posts"), run(0, *messages)).runs
    assert settled.dead is not None
    assert settled.dead.message_ids == (1, 2)
    (settled,) = decide(Refused(422, "no", field="weather"), run(0, *messages)).runs
    assert settled.dead is not None
    assert settled.dead.message_ids == (1, 2, 3)


def test_a_refused_field_points_at_the_only_run_that_writes_it() -> None:
    writing = run(0, Waiting(1, ("cost",), 1))
    others = [run(number) for number in (1, 2)]
    settled = decide(Refused(422, "no", field="cost"), others[0], writing, others[1]).runs
    assert [one.dead is not None for one in settled] == [False, True, False]
    settled = decide(Refused(422, "no", field="status"), *others).runs
    assert [one.dead for one in settled] == [None, None]


def test_a_deleted_record_is_told_as_such() -> None:
    answer = Refused(404, "gone", ErrorKind.RECORD_DELETED, record_id="recB")
    settled = decide(answer, run(1, record_id="recA"), run(2, record_id="recB")).runs
    assert settled[0].dead is None
    assert settled[1].dead is not None
    assert settled[1].dead.kind is ErrorKind.RECORD_DELETED


# Trying again ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.integers(), st.floats(0.01, 100), st.floats(0.01, 10_000))
def test_a_backoff_stays_between_half_and_the_whole_of_its_step(
    failures: int, seed: int, base: float, most: float
) -> None:
    rules = RetryRules(5, base, most)
    longest = min(base * 2.0 ** min(failures - 1, 62), most)
    wait = rules.backoff(failures, random.Random(seed)).total_seconds()  # noqa: S311
    assert longest / 2 - 1e-6 <= wait <= longest + 1e-6


def test_a_worn_out_message_dies_and_a_fresh_one_beside_it_does_not() -> None:
    settled = decide(Unknown("broken", 500), run(0, Waiting(1, ("status",), 5), Waiting(2, ("posts",), 4))).runs[0]
    assert settled.dead is not None
    assert settled.dead.message_ids == (1,)
    assert settled.failures == 1
    assert not settled.give_back


@pytest.mark.parametrize("status", [None, 403, 408, 502, 503, 504])
def test_an_outage_wears_nothing_out_and_is_waited_for_longer_and_longer(status: int | None) -> None:
    settled = decide(Unknown("nobody there", status), run(0, Waiting(1, ("status",), 99), failures=6)).runs[0]
    assert (settled.dead, settled.give_back, settled.failures) == (None, True, 7)
    assert settled.share == (5 if status in {403, 408} else 10)
    assert (settled.due_at - AT).total_seconds() >= 30


@pytest.mark.parametrize("status", [200, 202, 500, 501])
def test_what_airtable_answers_itself_is_an_attempt(status: int) -> None:
    settled = decide(Unknown("what?", status), run(0, Waiting(1, ("status",), 4))).runs[0]
    assert (settled.dead, settled.give_back) == (None, False)
    assert decide(Unknown("what?", status), run(0, Waiting(1, ("status",), 5))).runs[0].dead is not None


def test_a_retry_after_is_waited_for() -> None:
    settled = decide(Unknown("busy", 503, retry_after=120.0), run(0)).runs[0]
    assert (settled.due_at - AT).total_seconds() == 120
    settled = decide(Unknown("busy", 503, retry_after=0.0), run(0)).runs[0]
    assert (settled.due_at - AT).total_seconds() >= 0.5


@pytest.mark.parametrize("status", [500, 400, 403])
def test_a_run_that_gets_500_or_a_strangers_no_twice_goes_with_fewer_and_recovers_its_share(status: int) -> None:
    assert decide(Unknown("broken", status), run(0)).runs[0].share == 10
    assert decide(Unknown("broken", status), run(0, failures=1)).runs[0].share == 5
    assert decide(Unknown("broken", status), run(0, failures=1, share=1)).runs[0].share == 1
    assert decide(Unknown("busy", 503), run(0, failures=9)).runs[0].share == 10
    assert decide(Written({"run-0": "rec"}), run(0, failures=9, share=1)).runs[0].share == 10


@pytest.mark.parametrize(("base_was_sound", "runs", "counts"), [(True, 1, True), (False, 1, False), (True, 2, False)])
def test_a_strangers_no_costs_an_attempt_only_where_it_is_said_to_one_run_alone(
    base_was_sound: bool, runs: int, counts: bool
) -> None:
    worn = [run(number, Waiting(number, ("status",), 5), share=1) for number in range(runs)]
    settled = settle(
        Claim(7, False, tuple(worn)),
        Unknown("<html>", 403),
        at=AT,
        rules=RULES,
        random=random.Random(1),  # noqa: S311
        base_was_sound=base_was_sound,
    ).runs[0]
    assert settled.give_back is not counts
    assert (settled.dead is not None) is counts


@pytest.mark.parametrize(
    ("answer", "outcome", "status"),
    [
        (Written({"run-0": "rec"}), CallOutcome.OK, 200),
        (Refused(422, "no"), CallOutcome.REFUSED, 422),
        (RateLimited("slow"), CallOutcome.RATE_LIMITED, 429),
        (QuotaExhausted("spent"), CallOutcome.QUOTA, 429),
        (Denied(401, "who"), CallOutcome.DENIED, 401),
        (Unknown("lost"), CallOutcome.UNKNOWN, None),
    ],
)
def test_a_call_is_kept_with_what_was_answered(answer: Answer, outcome: CallOutcome, status: int | None) -> None:
    settlement = decide(answer, run(0))
    assert (settlement.outcome, settlement.status) == (outcome, status)
    assert settlement.error == (None if isinstance(answer, Written) else answer.cause)


def test_what_is_sent_is_the_present_value_of_every_field_that_waits() -> None:
    waiting = [Waiting(1, ("status", "posts"), 1), Waiting(2, ("posts", "cost"), 1)]
    assert fields_to_send(waiting, {"status": "Running", "posts": 5}) == {"status": "Running", "posts": 5, "cost": None}
