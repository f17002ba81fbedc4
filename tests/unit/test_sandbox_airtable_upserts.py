"""The Airtable sandbox upserts by Airtable's rules: asked without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.airtable import Client, at

if TYPE_CHECKING:
    from app.model import Json


@pytest.fixture
def client() -> Client:
    return Client()


# --- upserts ---


def test_an_upsert_creates_what_it_does_not_find_and_updates_what_it_does(client: Client) -> None:
    known = client.sandbox.insert({"Run ID": "a", "Client Name": "G"})
    answer = client.upsert({"Run ID": "b"}, {"Run ID": "a", "Status": "Failed"})
    assert answer.run_ids == ["b", "a"]
    assert answer.at("updatedRecords") == [known.id]
    assert answer.at("createdRecords") == [at(answer.records[0], "id")]
    assert client.cells() == [{"Run ID": "a", "Client Name": "G", "Status": "Failed"}, {"Run ID": "b"}]

    again = client.upsert({"Run ID": "b"}, {"Run ID": "a", "Status": "Failed"})
    assert again.at("createdRecords") == []
    assert len(client.sandbox.records()) == 2


def test_an_upsert_by_put_clears_what_it_does_not_name(client: Client) -> None:
    client.sandbox.insert({"Run ID": "a", "Client Name": "G"})
    assert client.upsert({"Run ID": "a", "Status": "Failed"}, method="PUT").status == 200
    assert client.cells() == [{"Run ID": "a", "Status": "Failed"}]


def test_several_matches_fail_the_whole_upsert(client: Client) -> None:
    for _ in range(2):
        client.sandbox.insert({"Run ID": "double"})
    assert client.upsert({"Run ID": "new"}, {"Run ID": "double", "Client Name": "x"}).status == 422
    assert client.cells() == [{"Run ID": "double"}] * 2


def test_a_record_with_an_id_ignores_the_merge_fields(client: Client) -> None:
    a, b = (client.sandbox.insert({"Run ID": name}).id for name in ("a", "b"))
    answer = client.upsert({"id": a, "fields": {"Run ID": "b"}}, on=["Run ID"])
    assert answer.at("updatedRecords") == [a]
    assert [cells["Run ID"] for cells in client.cells()] == ["b", "b"]
    assert b == client.sandbox.records()[1].id


def test_an_upsert_may_merge_on_up_to_three_fields_that_must_all_match(client: Client) -> None:
    first: dict[str, Json] = {"Run ID": "a", "Client ID": "x", "Total Posts Harvested": 1}
    second: dict[str, Json] = {"Run ID": "a", "Client ID": "y", "Total Posts Harvested": 1}
    on: list[Json] = ["Run ID", "Client ID", "Total Posts Harvested"]
    assert client.upsert(first, second, on=on).at("updatedRecords") == []
    assert client.upsert({**second, "Client Name": "G"}, on=on).at("createdRecords") == []
    assert client.cells() == [first, {**second, "Client Name": "G"}]


@pytest.mark.parametrize(
    "on",
    [
        [],
        ["Run ID", "Client ID", "Status", "Client Name"],
        ["Run ID", "Run ID"],
        ["Nope"],
        [5],
        ["Success Rate"],
        ["Checked"],
        "Run ID",
    ],
)
def test_an_upsert_on_impossible_fields_is_refused(client: Client, on: Json) -> None:
    body: Json = {"records": [{"fields": {"Run ID": "a"}}], "performUpsert": {"fieldsToMergeOn": on}}
    assert client.call("PATCH", body=body).status == 422
    assert client.cells() == []


@pytest.mark.parametrize("fields", [{}, {"Run ID": None}, {"Run ID": ""}, {"Client ID": "x"}])
def test_an_upsert_without_its_key_is_refused(client: Client, fields: dict[str, Json]) -> None:
    client.sandbox.insert({})
    assert client.upsert({"fields": fields}).status == 422
    assert client.cells() == [{}]


def test_the_same_key_twice_in_one_upsert_is_refused(client: Client) -> None:
    assert client.upsert({"Run ID": "a"}, {"Run ID": "a"}).status == 422
    assert client.cells() == []


def test_an_upsert_sees_every_way_a_key_can_change(client: Client) -> None:
    """The index that finds the match follows edits, deletions, PUT and changes of the schema."""
    record = client.sandbox.insert({"Run ID": "a"})
    assert client.upsert({"Run ID": "a"}).at("updatedRecords") == [record.id]
    client.sandbox.edit(record.id, {"Run ID": "b"})
    assert client.upsert({"Run ID": "b"}).at("updatedRecords") == [record.id]
    client.call("PUT", f"/{record.id}", {"fields": {}})
    assert client.upsert({"Run ID": "b"}).at("updatedRecords") == []
    client.sandbox.delete(client.sandbox.records()[1].id)
    assert client.upsert({"Run ID": "b"}).at("updatedRecords") == []
    client.sandbox.remove_column("Run ID")
    assert client.upsert({"Run ID": "b"}).error[0] == "UNKNOWN_FIELD_NAME"


# --- many records ---


def test_an_upsert_among_twenty_thousand_records_looks_only_at_its_own() -> None:
    client = Client()
    for n in range(20_000):
        client.sandbox.insert({"Run ID": f"r{n}"})
    client.upsert({"Run ID": "r0"})

    class Untouchable(dict[str, object]):
        def values(self) -> object:  # type: ignore[override]
            raise AssertionError("an upsert looked at every record")

    client.sandbox._store._records = Untouchable(client.sandbox._store._records)  # type: ignore[assignment]
    ten: list[dict[str, Json]] = [{"Run ID": f"r{n}", "Client Name": "G"} for n in range(19_995, 20_005)]
    answer = client.upsert(*ten)
    wanted = client.listing(("filterByFormula", "OR({Run ID}='r7', {Run ID}='r20001')"))

    created, updated = answer.at("createdRecords"), answer.at("updatedRecords")
    assert isinstance(created, list)
    assert isinstance(updated, list)
    assert (len(created), len(updated)) == (5, 5)
    assert wanted.run_ids == ["r7", "r20001"]
