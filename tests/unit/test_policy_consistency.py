"""When a cell in Airtable counts as another value than the one that was delivered, and how that is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.clock import iso
from app.fields import MAX_DECIMAL, MAX_INTEGER, Field, FieldType, Registry, Value, plain
from app.policy.consistency import MOST_CAUSE, MOST_SHOWN, cause_of, differences

if TYPE_CHECKING:
    from app.model import Json

OPTIONS = ("Running", "Failed")
FIELDS = Registry(
    [
        Field("note", "Note", FieldType.TEXT),
        Field("log", "Log", FieldType.LOG),
        Field("posts", "Posts", FieldType.INTEGER),
        Field("cost", "Cost", FieldType.DECIMAL),
        Field("start", "Start", FieldType.DATETIME),
        Field("status", "Status", FieldType.SELECT, OPTIONS),
    ]
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
times = st.datetimes(timezones=st.just(UTC))
values: dict[str, st.SearchStrategy[Value]] = {
    "note": texts,
    "log": texts,
    "posts": st.integers(-MAX_INTEGER, MAX_INTEGER),
    "cost": st.floats(-MAX_DECIMAL, MAX_DECIMAL).map(lambda number: Decimal(repr(number))),
    "start": times.map(iso),
    "status": st.sampled_from(OPTIONS),
}
folds = st.fixed_dictionaries({}, optional={name: st.none() | strategy for name, strategy in values.items()})
cells_of_any_kind: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def kept(fold: dict[str, Value]) -> dict[str, Json]:
    """What Airtable answers after it was sent these values: no empty cells, and every number is a double."""
    sent = {FIELDS[name].column: plain(value) for name, value in fold.items()}
    return {
        column: float(cell) if isinstance(cell, int) else cell
        for column, cell in sent.items()
        if cell not in {None, ""}
    }


@settings(deadline=None)
@given(folds)
def test_what_was_delivered_comes_back_as_no_difference(fold: dict[str, Value]) -> None:
    assert differences(fold, kept(fold), FIELDS) == ()


@settings(deadline=None)
@given(folds, folds)
def test_two_folds_differ_exactly_where_their_cells_do(ours: dict[str, Value], theirs: dict[str, Value]) -> None:
    there = kept(theirs)
    here = kept(ours)
    expected = {name for name in ours if here.get(FIELDS[name].column) != there.get(FIELDS[name].column)}
    assert {one.field for one in differences(ours, there, FIELDS)} == expected


@settings(deadline=None)
@given(folds, st.dictionaries(st.sampled_from([one.column for one in FIELDS.values()]), cells_of_any_kind))
def test_whatever_a_cell_holds_the_cause_is_one_short_line_that_can_be_kept(
    ours: dict[str, Value], cells: dict[str, Json]
) -> None:
    cause = cause_of(differences(ours, cells, FIELDS))
    cause.encode()
    assert "\n" not in cause
    assert len(cause) <= MOST_CAUSE + 200


@settings(deadline=None)
@given(times, st.integers(-12, 14))
def test_a_time_is_the_same_in_any_zone(at: datetime, hours: int) -> None:
    at = at.replace(microsecond=0)
    if not timedelta(days=1) < at - datetime.min.replace(tzinfo=UTC) < timedelta(days=3_652_000):
        return
    there = at.astimezone(timezone(timedelta(hours=hours))).isoformat()
    assert differences({"start": iso(at)}, {"Start": there}, FIELDS) == ()


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "said"),
    [
        ("posts", 5, 7, "posts: 5 here, 7 in Airtable"),
        ("posts", 5, None, "posts: 5 here, empty in Airtable"),
        ("posts", None, 0, "posts: empty here, 0 in Airtable"),
        ("posts", 1, True, "posts: 1 here, true in Airtable"),
        ("posts", 5, "5", "posts: 5 here, '5' in Airtable"),
        ("posts", 5, 10**400, "posts: 5 here, '1000"),
        ("cost", Decimal("0.1"), 0.2, "cost: 0.1 here, 0.2 in Airtable"),
        ("note", "a", "b", "note: 'a' here, 'b' in Airtable"),
        ("note", "", "b", "note: empty here, 'b' in Airtable"),
        ("note", "a", {"state": "error"}, """note: 'a' here, {"state": "error"} in Airtable"""),
        ("status", "Running", "Failed", "status: 'Running' here, 'Failed' in Airtable"),
        ("start", "2026-05-16T09:20:00.000Z", "2026-05-16", "'2026-05-16' in Airtable"),
        ("log", "one\ntwo", "one", r"log: 'one\ntwo' here, 'one' in Airtable"),
    ],
)
def test_a_difference_names_the_field_and_both_values(name: str, ours: Value, theirs: Json, said: str) -> None:
    (found,) = differences({name: ours}, {FIELDS[name].column: theirs}, FIELDS)
    assert said in str(found)


@pytest.mark.parametrize(("ours", "theirs"), [(None, None), ("", None), (None, "")])
def test_empty_null_and_missing_are_the_same(ours: Value, theirs: Json) -> None:
    assert differences({"note": ours}, {"Note": theirs}, FIELDS) == ()
    assert differences({"note": ours}, {}, FIELDS) == ()


def test_only_what_was_delivered_is_compared() -> None:
    """Columns that a person fills, formulas, and fields that the registry has no more."""
    assert differences({"gone": "x"}, {"Note": "by hand", "Success Rate": 0.5}, FIELDS) == ()


def test_two_long_logs_are_shown_from_where_they_part() -> None:
    shared = "line\n" * 1_000
    (found,) = differences({"log": shared + "ours"}, {"Log": shared + "theirs"}, FIELDS)
    assert "ours" in found.ours
    assert "theirs" in found.theirs
    assert max(len(found.ours), len(found.theirs)) < 2 * MOST_SHOWN


def test_a_cause_counts_what_it_has_no_room_for() -> None:
    many = Registry([Field(f"field_{number}", f"Column {number}", FieldType.TEXT) for number in range(30)])
    cause = cause_of(differences(dict.fromkeys(many, "ours"), {}, many))
    assert cause.startswith("field_0: 'ours' here, empty in Airtable; field_1")
    assert cause.endswith("fields more")
    assert len(cause) <= MOST_CAUSE + 50


def test_a_lone_surrogate_in_a_cell_can_be_said() -> None:
    assert cause_of(differences({"note": "a"}, {"Note": "\ud800"}, FIELDS)).isascii()
