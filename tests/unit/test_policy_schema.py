"""What keeps the registry from the real table, flaw by flaw: each names the field, the column and what to do."""

from __future__ import annotations

import pytest

from app.config import DEFAULT_FIELDS
from app.fields import Field, FieldType, Registry
from app.policy.asking import Column
from app.policy.schema import COMPUTED, TAKES, schema_flaws

REGISTRY = Registry(
    [
        Field("run_id", "Run ID", FieldType.TEXT),
        Field("client_id", "Client ID", FieldType.TEXT),
        Field("client_name", "Client Name", FieldType.TEXT),
        Field("status", "Status", FieldType.SELECT, ("Running", "Failed")),
        Field("notes", "System Notes", FieldType.LOG),
        Field("posts", "Total Posts", FieldType.INTEGER),
        Field("cost", "API Cost", FieldType.DECIMAL),
        Field("begun", "Start Time", FieldType.DATETIME),
    ]
)
TABLE = {
    "Run ID": Column("Run ID", "singleLineText"),
    "Client ID": Column("Client ID", "singleLineText"),
    "Client Name": Column("Client Name", "singleLineText"),
    "Status": Column("Status", "singleSelect", ("Running", "Failed", "More")),
    "System Notes": Column("System Notes", "multilineText"),
    "Total Posts": Column("Total Posts", "number"),
    "API Cost": Column("API Cost", "currency"),
    "Start Time": Column("Start Time", "dateTime"),
    "Success Rate": Column("Success Rate", "formula"),
}


def flaws(*changed: Column, without: str | None = None) -> list[tuple[str | None, str | None, str]]:
    """What is found in the table with some columns changed, and without one."""
    columns = {**TABLE, **{column.name: column for column in changed}}
    kept = [column for name, column in columns.items() if name != without]
    return [(flaw.field, flaw.column, flaw.detail) for flaw in schema_flaws(REGISTRY, kept)]


def test_a_table_with_columns_and_options_of_its_own_fits() -> None:
    assert flaws(Column("Somebody's notes", "multipleAttachments")) == []


def test_the_default_fields_fit_the_table_that_they_are_made_for() -> None:
    registry = Registry([Field(name, one.column, one.type, one.options) for name, one in DEFAULT_FIELDS.items()])
    columns = [Column(one.column, TAKES[one.type][0], one.options) for one in DEFAULT_FIELDS.values()]
    assert schema_flaws(registry, columns) == ()


def test_a_missing_column_is_named_with_both_ways_to_mend_it() -> None:
    ((field, column, detail),) = flaws(without="Total Posts")
    assert (field, column) == ("posts", "Total Posts")
    assert "add it there, or correct [fields.posts] column in config.toml" in detail
    assert "did you mean" not in detail


@pytest.mark.parametrize("near", ["Total Post", "TOTAL POSTS", "Total  Posts ", "TotalPosts"])
def test_a_near_column_is_asked_for(near: str) -> None:
    ((_, _, detail),) = flaws(Column(near, "number"), without="Total Posts")
    assert detail.endswith(f"did you mean {near!r}?")


def test_a_column_of_another_field_is_never_asked_for() -> None:
    """`Client ID` is near `Client Name`, and is taken."""
    ((_, _, detail),) = flaws(without="Client Name")
    assert "did you mean" not in detail


@pytest.mark.parametrize("kind", sorted(COMPUTED))
def test_a_column_that_airtable_fills_is_named_as_such(kind: str) -> None:
    ((field, column, detail),) = flaws(Column("Total Posts", kind))
    assert (field, column) == ("posts", "Total Posts")
    assert f"is a {kind}, which Airtable fills by itself and nobody can write" in detail
    assert "[fields.posts]" in detail


@pytest.mark.parametrize(
    ("column", "kind", "needed"),
    [
        ("Total Posts", "singleLineText", "number, currency, percent or duration"),
        ("API Cost", "rating", "number, currency, percent or duration"),
        ("Client Name", "number", "singleLineText"),
        ("System Notes", "singleLineText", "multilineText or richText"),
        ("Start Time", "date", "needs dateTime:"),
        ("Status", "singleLineText", "needs singleSelect:"),
        ("Status", "multipleSelects", "needs singleSelect:"),
    ],
)
def test_a_column_of_the_wrong_type_is_named_with_the_types_that_fit(column: str, kind: str, needed: str) -> None:
    ((_, named, detail),) = flaws(Column(column, kind, ("Running", "Failed")))
    assert named == column
    assert f"is a {kind}" in detail
    assert needed in detail
    assert "change the column's type in the base" in detail


@pytest.mark.parametrize(
    ("column", "kind"),
    [("Total Posts", "currency"), ("Total Posts", "percent"), ("System Notes", "richText"), ("Client Name", "url")],
)
def test_every_type_that_takes_a_fields_values_fits(column: str, kind: str) -> None:
    assert flaws(Column(column, kind)) == []


def test_the_run_id_is_plain_text_because_upserts_merge_on_it() -> None:
    assert flaws(Column("Run ID", "multilineText")) == []
    ((field, _, detail),) = flaws(Column("Run ID", "richText"))
    assert field == "run_id"
    assert "needs singleLineText or multilineText" in detail


def test_each_missing_option_is_a_flaw_of_its_own_with_the_near_one() -> None:
    found = flaws(Column("Status", "singleSelect", ("running", "More")))
    assert [(field, column) for field, column, _ in found] == [("status", "Status")] * 2
    assert "lacks the option 'Running'" in found[0][2]
    assert found[0][2].endswith("did you mean 'running'?")
    assert "lacks the option 'Failed'" in found[1][2]
    assert "[fields.status] options" in found[1][2]


def test_a_missing_table_is_one_flaw_and_names_a_near_one() -> None:
    (flaw,) = schema_flaws(REGISTRY, None, table="Client Run Result", tables=("Clients", "Client Run Results"))
    assert (flaw.field, flaw.column) == (None, None)
    assert "the base has no table 'Client Run Result': correct [airtable] table" in flaw.detail
    assert flaw.detail.endswith("did you mean 'Client Run Results'?")


def test_all_flaws_are_found_at_once_in_the_order_of_the_registry() -> None:
    found = flaws(Column("Status", "number"), Column("API Cost", "rollup"), without="Client ID")
    assert [field for field, _, _ in found] == ["client_id", "status", "cost"]
