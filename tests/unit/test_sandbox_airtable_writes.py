"""The Airtable sandbox creates, updates and deletes by Airtable's rules: asked without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_errors import ComputedForm, ErrorForms, MissingRecordForm
from tests.support.airtable import Client, at

if TYPE_CHECKING:
    from app.model import Json


@pytest.fixture
def client() -> Client:
    return Client()


# --- creating ---


def test_one_record_created_is_answered_bare(client: Client) -> None:
    answer = client.call("POST", body={"fields": {"Run ID": "r1", "Client ID": "Guy-Wilson"}})
    assert answer.status == 200
    assert answer.at("fields") == {"Run ID": "r1", "Client ID": "Guy-Wilson"}
    assert answer.at("createdTime") == "2025-10-07T07:31:12.000Z"
    assert answer.at("id") == client.sandbox.records()[0].id


def test_ten_records_are_created_in_their_order_and_eleven_are_refused(client: Client) -> None:
    ten: list[dict[str, Json]] = [{"Run ID": f"r{n}"} for n in range(10)]
    assert client.create(*ten).run_ids == [f"r{n}" for n in range(10)]
    refused = client.create(*ten, {"Run ID": "r10"})
    assert (refused.status, refused.error[0]) == (422, "INVALID_RECORDS")
    assert len(client.sandbox.records()) == 10


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"Nope": 1}, "UNKNOWN_FIELD_NAME", 'Unknown field name: "Nope"'),
        ({"Run ID": 5}, "INVALID_VALUE_FOR_COLUMN", 'Field "Run ID" cannot accept the provided value'),
        ({"Duration": "5"}, "INVALID_VALUE_FOR_COLUMN", 'Field "Duration" cannot accept the provided value'),
        (
            {"Status": "Done"},
            "INVALID_MULTIPLE_CHOICE_OPTIONS",
            'Insufficient permissions to create new select option ""Done""',
        ),
        (
            {"Status": ""},
            "INVALID_MULTIPLE_CHOICE_OPTIONS",
            'Insufficient permissions to create new select option """"',
        ),
    ],
)
def test_one_bad_record_fails_its_whole_batch_and_nothing_is_written(
    client: Client, fields: dict[str, Json], kind: str, message: str
) -> None:
    kept = client.sandbox.insert({"Run ID": "kept"})
    created = client.create({"Run ID": "good"}, fields)
    updated = client.call(
        "PATCH",
        body={"records": [{"id": kept.id, "fields": {"Run ID": "x"}}, {"id": kept.id, "fields": fields}]},
    )
    upserted = client.upsert({"Run ID": "good"}, {"Run ID": "kept", **fields})
    for answer in (created, updated, upserted):
        assert (answer.status, answer.error) == (422, (kind, message))
    assert client.sandbox.records() == [kept]


@pytest.mark.parametrize(
    ("column", "given", "shown"),
    [
        ("Run ID", "é\n😀", "é\n😀"),
        ("Progress Log", "x" * 100_000, "x" * 100_000),
        ("Total Posts Harvested", 5, 5),
        ("Total Posts Harvested", 0, 0),
        ("Total Posts Harvested", -1.5, -1.5),
        ("Total Posts Harvested", 2**53 + 1, 2.0**53),
        ("Apify API Costs", 0.2654, 0.2654),
        ("Start Time", "2025-10-07T07:31:12.000Z", "2025-10-07T07:31:12.000Z"),
        ("Start Time", "2025-10-07T09:31:12.5+02:00", "2025-10-07T07:31:12.500Z"),
        ("Start Time", "2025-10-07", "2025-10-07T00:00:00.000Z"),
        ("Status", "Completed with Errors", "Completed with Errors"),
        ("Checked", True, True),
    ],
)
def test_a_cell_takes_what_fits_its_column(client: Client, column: str, given: Json, shown: Json) -> None:
    answer = client.create({column: given})
    assert at(answer.records[0], "fields", column) == shown
    assert client.cells() == [{column: shown}]


@pytest.mark.parametrize(
    ("column", "given"),
    [
        ("Run ID", 5),
        ("Run ID", True),
        ("Run ID", ["a"]),
        ("Run ID", "\ud800"),
        ("Progress Log", "x" * 100_001),
        ("Total Posts Harvested", "5"),
        ("Total Posts Harvested", True),
        ("Total Posts Harvested", [5]),
        ("Total Posts Harvested", 10**400),
        ("Apify API Costs", "0.5"),
        ("Start Time", "yesterday"),
        ("Start Time", 1759822272),
        ("Status", 1),
        ("Status", ["Running"]),
        ("Checked", "true"),
        ("Checked", 1),
    ],
)
def test_a_cell_refuses_what_does_not_fit_its_column(client: Client, column: str, given: Json) -> None:
    answer = client.create({column: given})
    assert (answer.status, answer.error[0]) == (422, "INVALID_VALUE_FOR_COLUMN")
    assert client.cells() == []


def test_empty_cells_are_left_out_and_null_clears(client: Client) -> None:
    full: dict[str, Json] = {
        "Run ID": "r",
        "Client Name": "G",
        "Total Posts Harvested": 1,
        "Status": "Failed",
        "Checked": True,
    }
    record_id = at(client.create(full).records[0], "id")
    empty: dict[str, Json] = {"Run ID": "", "Checked": False, "Status": None}
    assert client.create(empty).at("records", 0, "fields") == {}

    fields: dict[str, Json] = {"Client Name": None, "Total Posts Harvested": None, "Status": None, "Checked": None}
    answer = client.call("PATCH", f"/{record_id}", {"fields": fields})

    assert answer.at("fields") == {"Run ID": "r"}
    assert client.cells() == [{"Run ID": "r"}, {}]


def test_typecast_parses_strings_and_makes_new_options(client: Client) -> None:
    given: dict[str, Json] = {"Run ID": 5, "Total Posts Harvested": "7", "Status": "Paused"}
    answer = client.create(given, {"Status": ""}, {"Status": "Paused"}, typecast=True)
    assert client.cells() == [
        {"Run ID": "5", "Total Posts Harvested": 7.0, "Status": "Paused"},
        {},
        {"Status": "Paused"},
    ]
    assert answer.status == 200
    options = [choice.name for choice in client.sandbox.schema.named("Status").choices]
    assert options.count("Paused") == 1
    assert client.create({"Status": "Paused"}).status == 200
    assert client.create({"Total Posts Harvested": "many"}, typecast=True).status == 422


def test_an_option_that_only_a_refused_request_wanted_is_not_made(client: Client) -> None:
    assert client.create({"Status": "Paused"}, {"Nope": 1}, typecast=True).status == 422
    assert not client.sandbox.schema.named("Status").has_option("Paused")


def test_field_ids_are_taken_and_answered_in_place_of_names(client: Client) -> None:
    run_id = client.sandbox.schema.named("Run ID").id
    answer = client.call("POST", body={"fields": {run_id: "r"}, "returnFieldsByFieldId": True})
    assert answer.at("fields") == {run_id: "r"}
    record_id = str(answer.at("id"))
    assert client.call("GET", f"/{record_id}").at("fields") == {"Run ID": "r"}
    by_id = client.call("GET", f"/{record_id}", query=[("returnFieldsByFieldId", "1")])
    assert by_id.at("fields") == {run_id: "r"}
    assert client.listing(("returnFieldsByFieldId", "1")).at("records", 0, "fields") == {run_id: "r"}
    assert client.upsert({run_id: "r"}, on=[run_id]).at("updatedRecords") == [record_id]


def test_the_address_takes_the_id_of_the_table_too(client: Client) -> None:
    assert client.call("GET", table=client.sandbox.schema.table_id).status == 200


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"fields": []},
        {"records": {}},
        {"records": []},
        {"records": [5]},
        {"records": [{}]},
        {"records": [{"fields": 5}]},
        {"records": [{"fields": {}, "id": 5}]},
        {"records": [{"fields": {}}], "typecast": "yes"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_a_body_of_another_shape_is_refused(client: Client, method: str, body: Json) -> None:
    answer = client.call(method, body=body)
    assert answer.status == 422
    assert answer.error[0] in {"INVALID_REQUEST_UNKNOWN", "INVALID_RECORDS"}
    assert client.cells() == []


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"fields": {"Total Posts Harvested": NaN}}', b"[" * 100_000])
def test_a_body_that_is_no_json_is_a_bad_request(client: Client, raw: bytes) -> None:
    answer = client.call("POST", raw=raw)
    assert (answer.status, answer.body) == (400, {"error": "BAD_REQUEST"})


def test_a_formula_field_is_refused_in_the_other_form_too(client: Client) -> None:
    client.sandbox.forms = ErrorForms(computed=ComputedForm.READ_ONLY)
    assert client.create({"Success Rate": "1"}).error[0] == "CANNOT_UPDATE_READONLY_FIELD"


# --- updating and deleting ---


def test_patch_merges_and_put_clears_what_is_not_named(client: Client) -> None:
    one, two = (client.sandbox.insert({"Run ID": name, "Client Name": "G"}).id for name in ("a", "b"))
    assert client.call("PATCH", f"/{one}", {"fields": {"Status": "Failed"}}).at("fields") == {
        "Run ID": "a",
        "Client Name": "G",
        "Status": "Failed",
    }
    assert client.call("PUT", f"/{one}", {"fields": {"Run ID": "a2"}}).at("fields") == {"Run ID": "a2"}
    both: list[Json] = [{"id": two, "fields": {"Run ID": "b2"}}, {"id": one, "fields": {"Client Name": "H"}}]
    assert client.call("PATCH", body={"records": both}).run_ids == ["b2", "a2"]
    assert client.call("PUT", body={"records": both}).run_ids == ["b2", None]
    assert client.cells() == [{"Client Name": "H"}, {"Run ID": "b2"}]


def test_an_unknown_record_fails_its_batch_and_is_never_created(client: Client) -> None:
    known = client.sandbox.insert({"Run ID": "a"})
    entries: list[Json] = [
        {"id": known.id, "fields": {"Run ID": "x"}},
        {"id": "rec00000000000000", "fields": {"Run ID": "y"}},
    ]
    bodies: list[Json] = [{"records": entries}, {"records": entries, "performUpsert": {"fieldsToMergeOn": ["Run ID"]}}]
    for body in bodies:
        answer = client.call("PATCH", body=body)
        assert answer.status == 422
        assert answer.error == (
            "ROW_DOES_NOT_EXIST",
            "Record ID rec00000000000000 does not exist in this table",
        )
    assert client.sandbox.records() == [known]


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_an_unknown_record_in_the_address_is_not_found_in_either_form(client: Client, method: str) -> None:
    answer = client.call(method, "/rec00000000000000", {"fields": {}})
    assert (answer.status, answer.error[0]) == (404, "MODEL_ID_NOT_FOUND")
    client.sandbox.forms = ErrorForms(missing_record=MissingRecordForm.NOT_FOUND)
    assert client.call(method, "/rec00000000000000", {"fields": {}}).body == {"error": "NOT_FOUND"}


def test_the_same_record_twice_in_one_request_is_refused(client: Client) -> None:
    record_id = client.sandbox.insert({"Run ID": "a"}).id
    entry: Json = {"id": record_id, "fields": {"Run ID": "b"}}
    assert client.call("PATCH", body={"records": [entry, entry]}).status == 422
    assert client.upsert({"id": record_id, "fields": {}}, {"Run ID": "a"}).status == 422
    assert client.cells() == [{"Run ID": "a"}]


def test_updates_of_many_must_name_their_records(client: Client) -> None:
    answer = client.call("PATCH", body={"records": [{"fields": {"Run ID": "a"}}]})
    assert (answer.status, answer.error[0]) == (422, "INVALID_RECORDS")
    assert client.cells() == []


def test_records_are_deleted_one_or_many_at_a_time_or_not_at_all(client: Client) -> None:
    ids = [client.sandbox.insert({"Run ID": str(n)}).id for n in range(4)]
    assert client.call("DELETE", f"/{ids[0]}").body == {"id": ids[0], "deleted": True}
    missing = client.call("DELETE", query=[("records[]", ids[1]), ("records[]", ids[0])])
    assert (missing.status, missing.error[0]) == (422, "ROW_DOES_NOT_EXIST")
    assert len(client.sandbox.records()) == 3
    many = client.call("DELETE", query=[("records[]", ids[1]), ("records[1]", ids[3])])
    assert many.records == [{"id": ids[1], "deleted": True}, {"id": ids[3], "deleted": True}]
    assert client.cells() == [{"Run ID": "2"}]
    assert client.call("DELETE").status == 422
    assert client.call("DELETE", query=[("records[]", "x")] * 11).error[0] == "INVALID_RECORDS"
