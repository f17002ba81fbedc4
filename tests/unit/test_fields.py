"""The registry: what callers may say of a field, and how their changes fold."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import reduce
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app import fields
from app.errors import MOST_FLAWS, Invalid
from app.fields import (
    MAX_DECIMAL,
    MAX_INTEGER,
    MAX_TEXT,
    MOST_NAMES,
    Change,
    Field,
    FieldType,
    Registry,
    dump,
    fold,
    load_fold,
)

if TYPE_CHECKING:
    from app.fields import Fold, Value
    from app.model import Json

STATUSES = ("Running", "Completed", "No Leads To Score")
REGISTRY = Registry(
    [
        Field("run_id", "Run ID", FieldType.TEXT),
        Field("client_id", "Client ID", FieldType.TEXT),
        Field("client_name", "Client Name", FieldType.TEXT),
        Field("status", "Status", FieldType.SELECT, STATUSES),
        Field("start_time", "Start Time", FieldType.DATETIME),
        Field("progress_log", "Progress Log", FieldType.LOG),
        Field("posts", "Posts", FieldType.INTEGER),
        Field("cost", "Cost", FieldType.DECIMAL),
    ]
)


def change(
    set_: dict[str, Json] | None = None, add: dict[str, Json] | None = None, append: dict[str, Json] | None = None
) -> Change:
    return REGISTRY.check_change(set_=set_ or {}, add=add or {}, append=append or {})


def flaws(
    set_: dict[str, Json] | None = None, add: dict[str, Json] | None = None, append: dict[str, Json] | None = None
) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        change(set_, add, append)
    return [(flaw.pointer, flaw.detail) for flaw in caught.value.flaws]


# Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given_value", "kept"),
    [
        ("client_name", "Guy", "Guy"),
        ("client_name", "", ""),
        ("client_name", None, None),
        ("client_name", "x" * MAX_TEXT, "x" * MAX_TEXT),
        ("posts", 3, 3),
        ("posts", 3.0, 3),
        ("posts", -MAX_INTEGER, -MAX_INTEGER),
        ("cost", 0.1, Decimal("0.1")),
        ("cost", 2, Decimal(2)),
        ("cost", 1e-7, Decimal("1e-7")),
        ("start_time", "2026-05-16T11:20:00+02:00", "2026-05-16T09:20:00.000Z"),
        ("start_time", "2026-05-16T09:20:00.123456Z", "2026-05-16T09:20:00.123Z"),
        ("status", "No Leads To Score", "No Leads To Score"),
    ],
)
def test_a_value_is_kept_in_one_form(name: str, given_value: Json, kept: Value) -> None:
    assert change({name: given_value}).set == {name: kept}


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("client_name", 7, "takes a text"),
        ("client_name", "x" * (MAX_TEXT + 1), "at most 100,000 characters, this has 100,001"),
        ("client_name", "\ud800", "half of a surrogate pair"),
        ("posts", "3", "takes an integer"),
        ("posts", True, "takes an integer"),
        ("posts", 3.5, "3.5 has a fraction"),
        ("posts", MAX_INTEGER + 1, "takes integers between"),
        ("posts", float("inf"), "takes an integer"),
        ("cost", True, "takes a number"),
        ("cost", "1.5", "takes a number"),
        ("cost", float("nan"), "takes numbers between"),
        ("cost", MAX_DECIMAL * 10, "takes numbers between"),
        ("start_time", "2026-05-16", "takes an ISO 8601 time with an offset"),
        ("start_time", "2026-05-16T09:20:00", "with an offset"),
        ("start_time", "0001-01-01T00:00:00+01:00", "with an offset"),
        ("start_time", 1_747_387_200, "with an offset"),
        ("status", "Complete", "did you mean 'Completed'?"),
        ("status", "completed", "takes one of 'Running'"),
        ("status", 1, "takes one of"),
        ("status", ["Running"], "takes one of"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_advice(name: str, value: Json, advice: str) -> None:
    ((pointer, detail),) = flaws({name: value})
    assert pointer == f"/set/{name}"
    assert detail.startswith(f"'{name}' ")
    assert advice in detail


# Updates --------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_closest_known_one() -> None:
    assert flaws({"progres_log": "x"}) == [
        ("/set/progres_log", "'progres_log' is not a known field; did you mean 'progress_log'?")
    ]
    assert flaws({"weather": "x"}) == [("/set/weather", "'weather' is not a known field")]


@pytest.mark.parametrize("name", ["run_id", "client_id"])
@pytest.mark.parametrize("part", ["set_", "add", "append"])
def test_no_part_of_an_update_renames_a_run(name: str, part: str) -> None:
    parts: dict[str, dict[str, Json]] = {part: {name: "x"}}
    ((_, detail),) = flaws(**parts)
    assert "never changes" in detail


def test_each_part_changes_only_what_it_can() -> None:
    assert "only grows" in flaws({"progress_log": "x"})[0][1]
    assert "cannot be added to" in flaws(add={"client_name": 1})[0][1]
    assert "cannot be added to" in flaws(add={"progress_log": 1})[0][1]
    assert "only logs can be appended to" in flaws(append={"client_name": "x"})[0][1]
    assert "under both 'set' and 'add'" in flaws({"posts": 1}, {"posts": 1})[0][1]
    assert "takes a number to add" in flaws(add={"posts": None})[0][1]
    assert "takes a text, or a list of them" in flaws(append={"progress_log": [1]})[0][1]


def test_an_empty_update_is_refused() -> None:
    assert "changes nothing" in flaws()[0][1]


def test_every_flaw_is_told_at_once() -> None:
    found = flaws({"posts": "3", "weather": 1, "run_id": "x"}, {"cost": "y"}, {"status": "z"})
    assert [pointer for pointer, _ in found] == [
        "/set/posts",
        "/set/weather",
        "/set/run_id",
        "/add/cost",
        "/append/status",
    ]


def test_a_line_or_lines_are_appended_as_given() -> None:
    assert change(append={"progress_log": "one\ntwo"}).append == {"progress_log": ("one\ntwo",)}
    assert change(append={"progress_log": ["one", "two"]}).append == {"progress_log": ("one", "two")}


def test_a_kickoff_may_fill_every_field_but_those_that_name_the_run() -> None:
    made = REGISTRY.check_new({"client_name": "Guy", "progress_log": ["a", "b"], "posts": 0, "start_time": None})
    assert made == Change({"client_name": "Guy", "posts": 0, "start_time": None}, {}, {"progress_log": ("a", "b")})
    with pytest.raises(Invalid, match="follows from the kickoff itself"):
        REGISTRY.check_new({"run_id": "x"})


@pytest.mark.parametrize("part", ["set_", "add", "append"])
def test_of_many_flaws_some_are_named_and_the_others_counted(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    asked: list[str] = []

    def hint(word: str, _known: object) -> str:
        asked.append(word)
        return ""

    monkeypatch.setattr(fields, "did_you_mean", hint)
    names: dict[str, Json] = {f"progress_log{number}": 1 for number in range(MOST_NAMES)}
    found = flaws(**{part: names})
    assert len(found) == MOST_FLAWS + 1
    assert found[-1] == ("", f"and {MOST_NAMES - MOST_FLAWS} more")
    assert len(asked) == MOST_FLAWS  # a hint is looked for only where it is given


@pytest.mark.parametrize("part", ["set_", "add", "append"])
def test_a_part_with_too_many_names_is_refused_before_any_is_looked_at(part: str) -> None:
    names: dict[str, Json] = {f"progress_log{number}": 1 for number in range(60_000)}
    ((pointer, detail),) = flaws(**{part: names})
    assert pointer == f"/{part.removesuffix('_')}"
    assert detail == f"'{part.removesuffix('_')}' names 60,000 fields: it takes at most {MOST_NAMES}"


def test_a_kickoff_with_too_many_names_is_refused_before_any_is_looked_at() -> None:
    with pytest.raises(Invalid) as caught:
        REGISTRY.check_new({f"progress_log{number}": 1 for number in range(60_000)})
    (flaw,) = caught.value.flaws
    assert (flaw.pointer, flaw.detail) == ("/fields", f"'fields' names 60,000 fields: it takes at most {MOST_NAMES}")


@given(st.text())
def test_whatever_name_is_sent_the_answer_can_be_written(name: str) -> None:
    try:
        change({name: None})
    except Invalid as error:
        for flaw in error.flaws:
            json.dumps([flaw.pointer, flaw.detail]).encode()
            assert len(flaw.detail) < 300


# Folding --------------------------------------------------------------------------------------------------------

CENTS = st.integers(-(10**8), 10**8).map(lambda cents: Decimal(cents).scaleb(-2))
CHANGES = st.builds(
    Change,
    set=st.dictionaries(st.sampled_from(["client_name", "status"]), st.none() | st.text(max_size=5))
    | st.fixed_dictionaries({"posts": st.none() | st.integers(-1000, 1000)})
    | st.fixed_dictionaries({"cost": st.none() | CENTS}),
    add=st.fixed_dictionaries({}, optional={"posts": st.integers(-1000, 1000), "cost": CENTS}),
    append=st.fixed_dictionaries({}, optional={"progress_log": st.lists(st.text(max_size=5), max_size=3).map(tuple)}),
)


def fold_all(start: Fold, changes: list[Change]) -> dict[str, Value]:
    return reduce(fold, changes, dict(start))


@given(st.lists(CHANGES, max_size=8), st.integers(0, 8))
def test_a_fold_may_be_kept_and_taken_up_again_anywhere(changes: list[Change], cut: int) -> None:
    whole = fold_all({}, changes)
    kept = load_fold(dump(fold_all({}, changes[:cut])))
    assert dump(fold_all(kept, changes[cut:])) == dump(whole)


@given(CHANGES)
def test_a_change_comes_back_from_its_json_as_it_was(one: Change) -> None:
    assert Change.from_json(one.to_json()).to_json() == one.to_json()
    assert dump(fold({}, Change.from_json(one.to_json()))) == dump(fold({}, one))


@given(st.lists(CENTS, max_size=50))
def test_what_is_added_sums_to_the_cent(costs: list[Decimal]) -> None:
    kept: dict[str, Value] = {}
    for cost in costs:
        kept = load_fold(dump(fold(kept, Change(add={"cost": cost}))))
    assert kept.get("cost", 0) == sum(costs)


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1))
def test_integers_stay_integers(numbers: list[int]) -> None:
    kept: dict[str, Value] = {}
    for number in numbers:
        kept = load_fold(dump(fold(kept, Change(add={"posts": number}))))
    assert kept["posts"] == sum(numbers)
    assert isinstance(kept["posts"], int)


def test_what_is_added_to_nothing_is_the_sum_so_far() -> None:
    assert fold({}, change(add={"posts": 3})) == {"posts": 3}
    assert fold({"posts": None}, change(add={"posts": 3})) == {"posts": 3}


@given(st.lists(st.text(alphabet="ab\n", max_size=30_000), max_size=8))
def test_a_log_keeps_its_end_and_never_outgrows_its_cell(lines: list[str]) -> None:
    kept: dict[str, Value] = {}
    for line in lines:
        kept = fold(kept, Change(append={"progress_log": (line,)}))
    log = kept.get("progress_log", "")
    assert isinstance(log, str)
    assert len(log) <= MAX_TEXT
    assert log == "\n".join(lines)[-MAX_TEXT:]


def test_a_log_is_cut_from_the_front() -> None:
    full = fold({}, Change(append={"progress_log": ("x" * MAX_TEXT,)}))
    log = fold(full, Change(append={"progress_log": ("the end",)}))["progress_log"]
    assert isinstance(log, str)
    assert len(log) == MAX_TEXT
    assert log.endswith("x\nthe end")


@given(CHANGES)
def test_a_change_names_each_field_that_it_touches_once(one: Change) -> None:
    assert sorted(one.names()) == sorted({*one.set, *one.add, *one.append})
    assert set(fold({}, one)) == set(one.names())


# Stored texts ---------------------------------------------------------------------------------------------------


@given(number=st.floats(allow_nan=False, allow_infinity=False))
@example(number=5e-05)
@example(number=1e-07)
@example(number=-0.0)
@example(number=1e16)
def test_a_decimal_is_written_as_json_writes_a_float(number: float) -> None:
    """A repeated request is known by a digest of such a text, which an older version may have taken."""
    assert dump({"add": {"cost": Decimal(repr(number))}}) == json.dumps(
        {"add": {"cost": number}}, separators=(",", ":")
    )


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.lists(st.text())))
def test_a_text_is_written_as_json_writes_it(values: dict[str, object]) -> None:
    text = dump(values)
    assert text == json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert load_fold(text) == values


@pytest.mark.parametrize("number", [Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity"), Decimal("1e999")])
def test_what_is_no_number_of_json_is_not_written(number: Decimal) -> None:
    with pytest.raises(ValueError, match="no such number"):
        dump({"cost": number})


def test_what_a_hand_wrote_into_the_store_and_sqlite_lets_pass_is_read() -> None:
    """Half of a surrogate pair: one such run must not stop the claim of all."""
    assert load_fold(r'{"client_name":"x\ud800","cost":0.1}') == {"client_name": "x\ud800", "cost": Decimal("0.1")}
