"""The formula language: what pyairtable writes is read back as it was meant, and anything else is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyairtable import formulas as pyairtable_formulas

from app.sandbox.formula_values import Value, format_datetime, parse_datetime
from app.sandbox.formulas import MAX_DEPTH, FormulaError, parse

NOON = datetime(2025, 10, 7, 12, 0, tzinfo=UTC)


@dataclass
class Record:
    cells: dict[str, Value] = field(default_factory=dict)
    record_id: str = "rec00000000000001"
    created_time: datetime = NOON
    now: datetime = NOON + timedelta(hours=1)

    def cell(self, name: str) -> Value:
        return self.cells.get(name)


def holds(text: str, **cells: Value) -> bool:
    return parse(text).matches(Record(dict(cells)))


@given(st.text(), st.text())
def test_what_match_asks_for_is_found_whatever_characters_it_has(asked: str, there: str) -> None:
    formula = parse(str(pyairtable_formulas.match({"Run ID": asked})))
    assert formula.fields == {"Run ID"}
    assert formula.matches(Record({"Run ID": asked}))
    assert formula.matches(Record({"Run ID": there})) == (there == asked)


@given(st.text(min_size=1).filter(lambda name: not name.endswith("\\") and "\\}" not in name))
def test_a_field_is_found_by_its_name_whatever_characters_it_has(name: str) -> None:
    formula = parse(str(pyairtable_formulas.match({name: "x"})))
    assert formula.fields == {name}
    assert formula.matches(Record({name: "x"}))


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (5, 6),
        (-5, 5),
        (1e-7, 0.0),
        (1e30, 1e31),
        (Decimal("1E+2"), 101.0),
        (True, False),
        (NOON, NOON + timedelta(milliseconds=1)),
    ],
)
def test_numbers_flags_and_moments_match_as_pyairtable_writes_them(
    value: float | Decimal | datetime, other: float | datetime
) -> None:
    formula = parse(str(pyairtable_formulas.match({"F": value})))
    assert formula.matches(Record({"F": float(value) if isinstance(value, Decimal) else value}))
    assert not formula.matches(Record({"F": other}))


def test_several_conditions_are_joined_by_and_or_or() -> None:
    wanted = {"Client ID": "Guy's", "Total": (">=", 21)}
    both = parse(str(pyairtable_formulas.match(wanted)))
    either = parse(str(pyairtable_formulas.match(wanted, match_any=True)))

    assert both.matches(Record({"Client ID": "Guy's", "Total": 21}))
    assert not both.matches(Record({"Client ID": "Guy's", "Total": 20}))
    assert either.matches(Record({"Client ID": "Guy's", "Total": 20}))
    assert not either.matches(Record({"Client ID": "Guy", "Total": 20}))


def test_pyairtables_functions_are_understood() -> None:
    f = pyairtable_formulas
    since = f.OR(
        f.AND(f.IS_AFTER(f.Field("Start"), NOON), f.NOT(f.EQ(f.Field("Status"), "Running"))),
        f.EQ(f.RECORD_ID(), "rec00000000000009"),
        f.IS_BEFORE(f.CREATED_TIME(), f.DATEADD(f.NOW(), -1, "days")),
    )
    formula = parse(str(since))
    late = NOON + timedelta(seconds=1)

    assert formula.matches(Record({"Start": late, "Status": "Failed"}))
    assert not formula.matches(Record({"Start": late, "Status": "Running"}))
    assert not formula.matches(Record({"Start": NOON, "Status": "Failed"}))
    assert formula.matches(Record({"Start": None}, record_id="rec00000000000009"))
    assert formula.matches(Record({}, created_time=NOON - timedelta(days=2)))


@pytest.mark.parametrize(
    "text",
    [
        "TRUE()",
        "1 < 2",
        "2<=2",
        "'b' > 'a'",
        "2 >= 1.5",
        '"a" != "A"',
        "1 + 2 * 3 = 7",
        "(1 + 2) * 3 = 9",
        "8 / 2 - 1 = 3",
        "-1 < 0",
        "- -1 = 1",
        "'a' & 1 & TRUE() & BLANK() = 'a11'",
        '"tab\\tquote\\"slash\\\\" = \'tab\tquote"slash\\\\\'',
        "Name = 'x'",
        "{Name}='x'",
        "and( {Name} = 'x' , not( FALSE() ) )",
        "IF({Name}='x', 1, 0)",
        "IF({Name}='y', 0) = BLANK()",
        "XOR(TRUE(), FALSE())",
        "{Nothing} = BLANK()",
        "{Nothing} = ''",
        "NOT({Nothing})",
        "LEN({Name}) = 1",
        "LEN({Nothing}) = 0",
        "LOWER('ABC') = 'abc'",
        "UPPER(TRIM('  abc ')) = 'ABC'",
        "CONCATENATE('a', 2.0, 1.5) = 'a21.5'",
        "FIND('c', 'abcabc') = 3",
        "FIND('c', 'abcabc', 4) = 6",
        "FIND('z', 'abc') = 0",
        "SEARCH('z', 'abc') = BLANK()",
        "SEARCH('b', 'abc')",
        "IS_SAME('2025-10-07', TODAY())",
        "IS_SAME(NOW(), '2025-10-07T13:59:59Z', 'hour')",
        "IS_AFTER(NOW(), CREATED_TIME())",
        "NOT(IS_AFTER(NOW(), CREATED_TIME(), 'day'))",
        "IS_SAME(DATEADD('2024-01-31', 1, 'month'), '2024-02-29')",
        "IS_SAME(DATEADD('2024-02-29', -1, 'years'), '2023-02-28')",
        "IS_SAME(DATEADD('2024-02-29', 90, 'minutes'), '2024-02-29T01:30:00')",
        "DATETIME_PARSE('2025-10-07T14:00:00+02:00') = CREATED_TIME()",
        "'at ' & CREATED_TIME() = 'at 2025-10-07T12:00:00.000Z'",
    ],
)
def test_this_holds(text: str) -> None:
    assert holds(text, Name="x", Nothing=None)


@pytest.mark.parametrize(
    "text",
    [
        "FALSE()",
        "''",
        "0",
        "BLANK()",
        "{Name} = 1",
        "{Name} > 1",
        "1 / 0",
        "{Name} + 1 = 1",
        "DATETIME_PARSE('yesterday') = 1",
        "IS_AFTER('soon', NOW())",
        "IS_AFTER(NOW(), 5)",
        "IS_SAME(NOW(), NOW(), 'fortnight')",
        "IS_SAME(NOW(), NOW(), 'week')",
        "DATEADD(NOW(), 1e9, 'years')",
        "DATEADD(NOW(), 1e300, 'days')",
        "CREATED_TIME() = BLANK()",
        "CREATED_TIME() > 5",
        "FIND('a', 'a', 1e400 - 1e400)",
        "FIND('a', 'a', 1e400)",
        "DATEADD(NOW(), 1e400, 'months')",
        "DATEADD(NOW(), 1e400 - 1e400, 'days')",
        "9" * 5_000 + " < 1",
    ],
)
def test_this_does_not_hold_and_an_error_in_a_row_is_no_match(text: str) -> None:
    assert not holds(text, Name="x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "{Name",
        "{Name} =",
        "= 1",
        "{Name} == 1",
        "'open",
        "AND()",
        "AND(1",
        "AND(1,)",
        "AND 1",
        "(1",
        "1)",
        "1 2",
        "1 # 2",
        "LEN()",
        "LEN(1, 2)",
        "REGEX_MATCH({Name}, 'x')",
        "__import__('os')",
        "(" * 10_000,
        "-" * 10_000 + "1",
        "NOT(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
    ],
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(FormulaError):
        parse(text)


def test_a_wide_formula_is_no_deep_one() -> None:
    wide = "OR(" + ",".join(f"{{Run ID}}='r{n}'" for n in range(5_000)) + ")"
    assert parse(wide).matches(Record({"Run ID": "r4999"}))
    assert holds("+".join(["1"] * 5_000) + "=5000")
    assert holds("NOT(" * (MAX_DEPTH - 1) + "FALSE()" + ")" * (MAX_DEPTH - 1))


@given(st.text())
def test_any_text_is_a_formula_or_is_refused(text: str) -> None:
    try:
        formula = parse(text)
    except FormulaError:
        return
    assert isinstance(formula.matches(Record()), bool)


def test_the_texts_that_an_index_can_answer_are_told() -> None:
    f = pyairtable_formulas
    one = f.match({"Run ID": "a'b"})
    several = f.OR(f.match({"Run ID": "a"}), f.match({"Run ID": "b"}))

    assert parse(str(one)).wanted_texts() == ("Run ID", frozenset({"a'b"}))
    assert parse(str(several)).wanted_texts() == ("Run ID", frozenset({"a", "b"}))
    for other in ("{A}=''", "{A}=1", "{A}!='a'", "OR({A}='a',{B}='b')", "OR({A}='a',{A}=1)", "AND({A}='a',1)"):
        assert parse(other).wanted_texts() is None, other


def test_moments_are_written_as_airtable_writes_them() -> None:
    here = datetime(2025, 10, 7, 9, 31, 12, 345_678, tzinfo=timezone(timedelta(hours=2)))
    assert format_datetime(here) == "2025-10-07T07:31:12.345Z"
    assert parse_datetime("2025-10-07T09:31:12+02:00") == datetime(2025, 10, 7, 7, 31, 12, tzinfo=UTC)
    assert parse_datetime("2025-10-07") == datetime(2025, 10, 7, tzinfo=UTC)
    assert parse_datetime("07/10/2025") is None
    assert parse_datetime("0001-01-01T00:00:00+14:00") is None
