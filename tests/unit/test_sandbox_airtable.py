"""The Airtable sandbox answers as Airtable does: asked directly, without a socket."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import pytest

from app.sandbox import airtable_errors as errors
from app.sandbox.airtable import AirtableSandbox
from app.sandbox.airtable_errors import ComputedForm, ErrorForms, MissingRecordForm, NotFoundForm, RateLimitForm
from app.sandbox.airtable_limits import NO_LIMITS, Limits
from app.sandbox.airtable_schema import Ids, TableSchema, schema_from_columns
from app.sandbox.faults import Reply
from app.sandbox.messages import WireRequest, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.model import Json

TOKEN = "pat.secret"
NOW = datetime(2025, 10, 7, 7, 31, 12, 345_000, tzinfo=UTC)
SAMPLE = Path(__file__).parents[1] / "samples" / "client-run-results-columns.json"


def sample_schema(ids: Ids) -> TableSchema:
    sample = parse_json(SAMPLE.read_bytes())
    assert isinstance(sample, dict)
    assert isinstance(sample["columns"], dict)
    columns: dict[str, Json] = {**sample["columns"], "Checked": "checkbox"}
    return schema_from_columns(str(sample["table"]), columns, ids)


@dataclass
class Answer:
    status: int
    body: Json

    @property
    def error(self) -> tuple[str, str]:
        """Type and message of an error of the usual form."""
        assert isinstance(self.body, dict)
        error = self.body["error"]
        assert isinstance(error, dict)
        return str(error["type"]), str(error.get("message"))

    @property
    def records(self) -> list[Json]:
        assert self.status == 200, self.body
        assert isinstance(self.body, dict)
        records = self.body["records"]
        assert isinstance(records, list)
        return records

    @property
    def run_ids(self) -> list[Json]:
        return [at(record, "fields", "Run ID") for record in self.records]

    def at(self, *path: str | int) -> Json:
        return at(self.body, *path)


def at(value: Json, *path: str | int) -> Json:
    """Walk down a JSON value; None where there is nothing."""
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step]
        else:
            return None
    return value


class Client:
    """Asks a sandbox, with clocks that stand still until they are moved."""

    def __init__(self, limits: Limits = NO_LIMITS, journal: Path | None = None, seed: int = 1) -> None:
        self.clock = 1000.0
        self.now = NOW
        ids = Ids(random.Random(seed))  # noqa: S311 - the same ids in every run
        self.sandbox = AirtableSandbox(
            sample_schema(ids),
            token=TOKEN,
            ids=ids,
            now=lambda: self.now,
            clock=lambda: self.clock,
            limits=limits,
            journal=journal,
        )

    def call(
        self,
        method: str,
        rest: str = "",
        body: Json = None,
        *,
        query: list[tuple[str, str]] | None = None,
        token: str | None = TOKEN,
        raw: bytes | None = None,
        base: str | None = None,
        table: str | None = None,
    ) -> Answer:
        schema = self.sandbox.schema
        path = f"/v0/{base or schema.base_id}/{quote(table or schema.table_name, safe='')}{rest}"
        if rest.startswith("/v"):
            path = rest
        query = query or []
        request = WireRequest(
            method,
            path,
            tuple(query),
            {"Authorization": f"Bearer {token}"} if token else {},
            raw if raw is not None else (json.dumps(body).encode() if body is not None else b""),
            path + (f"?{urlencode(query)}" if query else ""),
        )
        response = self.sandbox(request)
        return Answer(response.status, parse_json(response.body))

    def create(self, *runs: Mapping[str, Json], typecast: bool = False) -> Answer:
        return self.call("POST", body={"records": [{"fields": dict(run)} for run in runs], "typecast": typecast})

    def upsert(self, *runs: Mapping[str, Json], on: list[Json] | None = None, method: str = "PATCH") -> Answer:
        return self.call(
            method,
            body={
                "records": [dict(run) if "fields" in run else {"fields": dict(run)} for run in runs],
                "performUpsert": {"fieldsToMergeOn": ["Run ID"] if on is None else on},
            },
        )

    def listing(self, *query: tuple[str, str]) -> Answer:
        return self.call("GET", query=list(query))

    def cells(self) -> list[dict[str, Json]]:
        return [dict(record.fields) for record in self.sandbox.records()]


@pytest.fixture
def client() -> Client:
    return Client()


# --- who may ask, and for what ---


@pytest.mark.parametrize("token", [None, "wrong", ""])
def test_without_the_token_nothing_is_answered(client: Client, token: str | None) -> None:
    answer = client.call("GET", token=token)
    assert answer.status == 401
    assert answer.body == {"error": {"type": "AUTHENTICATION_REQUIRED", "message": "Authentication required"}}


def test_an_unknown_base_or_table_is_forbidden_rather_than_not_found(client: Client) -> None:
    for answer in (
        client.call("GET", base="app00000000000000"),
        client.call("GET", table="tbl00000000000000"),
        client.call("GET", table="No such table"),
        client.call("GET", "/v0/meta/bases/app00000000000000/tables"),
    ):
        assert answer.status == 403
        assert answer.error[0] == "INVALID_PERMISSIONS_OR_MODEL_NOT_FOUND"


@pytest.mark.parametrize("path", ["/v", "/v0", "/v1/x/y", "/v0/app1/Table", "/v0/meta/nothing", "/v0/meta/bases/x/y/z"])
def test_an_unknown_address_is_not_found_in_either_form(client: Client, path: str) -> None:
    assert client.call("GET", path).body == {"error": "NOT_FOUND"}
    client.sandbox.forms = ErrorForms(not_found=NotFoundForm.OBJECT)
    answer = client.call("GET", path)
    assert (answer.status, answer.body) == (404, {"error": {"type": "NOT_FOUND"}})


def test_a_token_without_a_scope_may_not_use_it(client: Client) -> None:
    client.sandbox.scopes = ("data.records:read",)
    assert client.listing().status == 200
    assert client.call("POST", "/listRecords", {}).status == 200
    assert client.create({"Run ID": "a"}).status == 403
    assert client.call("GET", "/v0/meta/bases").status == 403
    assert client.call("GET", "/v0/meta/whoami").at("scopes") == ["data.records:read"]


def test_the_meta_api_shows_the_base_and_its_schema(client: Client) -> None:
    schema = client.sandbox.schema
    bases = client.call("GET", "/v0/meta/bases").at("bases")
    tables = client.call("GET", f"/v0/meta/bases/{schema.base_id}/tables")
    status = schema.named("Status")

    assert bases == [{"id": schema.base_id, "name": "Sandbox", "permissionLevel": "create"}]
    assert tables.at("tables", 0, "name") == "Client Run Results"
    assert tables.at("tables", 0, "primaryFieldId") == schema.columns[0].id
    fields = tables.at("tables", 0, "fields")
    assert isinstance(fields, list)
    shown = {at(field, "name"): field for field in fields}
    assert shown["Run ID"] == {"id": schema.named("Run ID").id, "name": "Run ID", "type": "singleLineText"}
    assert at(shown["Total Posts Harvested"], "options", "precision") == 0
    assert at(shown["Success Rate"], "type") == "formula"
    assert at(shown["Status"], "options", "choices", 0) == {
        "id": status.choices[0].id,
        "name": "Running",
        "color": "blueLight2",
    }


def test_ids_look_like_airtables_and_are_the_same_from_the_same_seed(client: Client) -> None:
    record_id = client.sandbox.insert({}).id
    ids = [client.sandbox.schema.base_id, client.sandbox.schema.table_id, record_id]
    assert [made[:3] for made in ids] == ["app", "tbl", "rec"]
    assert all(len(made) == 17 and made.isalnum() for made in ids)
    assert Client().sandbox.insert({}).id == record_id
    assert Client(seed=2).sandbox.insert({}).id != record_id


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


# --- listing ---


@pytest.fixture
def listed(client: Client) -> Client:
    for n in range(250):
        status = "Running" if n % 2 else "Failed"
        client.sandbox.insert({"Run ID": f"r{n:03}", "Status": status, "Total Posts Harvested": n % 7})
    return client


def test_a_listing_comes_in_pages_of_a_hundred_and_ends_without_an_offset(listed: Client) -> None:
    pages = [listed.listing()]
    while isinstance(offset := pages[-1].at("offset"), str):
        pages.append(listed.listing(("offset", offset)))
    assert [len(page.records) for page in pages] == [100, 100, 50]
    assert [run for page in pages for run in page.run_ids] == [f"r{n:03}" for n in range(250)]


def test_a_page_may_be_asked_for_again_and_a_listing_shows_what_it_found_at_first(listed: Client) -> None:
    first = listed.listing(("pageSize", "2"), ("maxRecords", "5"))
    offset = ("offset", str(first.at("offset")))
    listed.sandbox.delete(listed.sandbox.records()[3].id)
    listed.sandbox.insert({"Run ID": "later"})
    assert listed.listing(offset, ("pageSize", "2")).run_ids == ["r002"]
    again = listed.listing(offset, ("pageSize", "3"))
    assert again.run_ids == ["r002", "r004"]
    assert again.at("offset") is None


def test_an_expired_or_foreign_offset_is_refused(listed: Client) -> None:
    offset = ("offset", str(listed.listing().at("offset")))
    assert listed.listing(offset).status == 200
    for bad in ("itr00000000000000/rec00000000000000", "", f"{offset[1]}x"):
        assert listed.listing(("offset", bad)).error[0] == "LIST_RECORDS_ITERATOR_NOT_AVAILABLE"
    listed.sandbox.expire_listings()
    answer = listed.listing(offset)
    assert (answer.status, answer.error[0]) == (422, "LIST_RECORDS_ITERATOR_NOT_AVAILABLE")


def test_an_offset_expires_by_the_clock_if_a_limit_says_so(listed: Client) -> None:
    listed.sandbox.limits = replace(NO_LIMITS, iterator_seconds=300)
    offset = ("offset", str(listed.listing().at("offset")))
    listed.clock += 299
    assert listed.listing(offset).status == 200
    listed.clock += 1
    assert listed.listing(offset).status == 422


def test_post_takes_the_same_options_as_get(listed: Client) -> None:
    get = listed.listing(
        ("pageSize", "3"),
        ("maxRecords", "4"),
        ("fields[]", "Run ID"),
        ("fields[]", "Status"),
        ("sort[0][field]", "Total Posts Harvested"),
        ("sort[0][direction]", "desc"),
        ("sort[1][field]", "Run ID"),
        ("filterByFormula", "{Status}='Running'"),
        ("view", "Grid view"),
        ("timeZone", "utc"),
    )
    body: dict[str, Json] = {
        "pageSize": 3,
        "maxRecords": 4,
        "fields": ["Run ID", "Status"],
        "sort": [{"field": "Total Posts Harvested", "direction": "desc"}, {"field": "Run ID"}],
        "filterByFormula": "{Status}='Running'",
        "view": None,
    }
    post = listed.call("POST", "/listRecords", body)

    assert get.run_ids == ["r013", "r027", "r041"]
    assert at(get.records[0], "fields") == {"Run ID": "r013", "Status": "Running"}
    assert post.records == get.records
    rest = listed.call("POST", "/listRecords", {"offset": post.at("offset"), "fields": ["Run ID"]})
    assert [at(record, "fields") for record in rest.records] == [{"Run ID": "r055"}]


def test_sorting_puts_blanks_first_numbers_by_size_and_options_in_their_order(client: Client) -> None:
    for name, number, status in (("a", 10, "Failed"), ("b", 9, None), ("c", None, "Running")):
        client.sandbox.insert({"Run ID": name, "Total Posts Harvested": number, "Status": status})
    by_number = [("sort[0][field]", "Total Posts Harvested")]
    assert client.listing(*by_number).run_ids == ["c", "b", "a"]
    assert client.listing(*by_number, ("sort[0][direction]", "desc")).run_ids == ["a", "b", "c"]
    assert client.listing(("sort[0][field]", "Status")).run_ids == ["b", "c", "a"]


@pytest.mark.parametrize(
    "query",
    [
        [("pageSize", "0")],
        [("pageSize", "101")],
        [("pageSize", "x")],
        [("maxRecords", "0")],
        [("fields[]", "Nope")],
        [("sort[0][field]", "Nope")],
        [("sort[0][direction]", "asc")],
        [("sort[0][field]", "Run ID"), ("sort[0][direction]", "up")],
        [("cellFormat", "string")],
    ],
)
def test_an_impossible_listing_is_refused(client: Client, query: list[tuple[str, str]]) -> None:
    assert client.listing(*query).status == 422


@pytest.mark.parametrize("body", [[], {"pageSize": "5"}, {"fields": "Run ID"}, {"sort": [{}]}])
def test_an_impossible_listing_by_post_is_refused(client: Client, body: Json) -> None:
    assert client.call("POST", "/listRecords", body).status == 422
    assert client.call("POST", "/listRecords", raw=b"{").status == 400


def test_formulas_filter_by_name_or_id_and_compare_times_as_times(client: Client) -> None:
    for day in (6, 7, 8):
        client.sandbox.insert({"Run ID": f"it's {day}\\", "Start Time": f"2025-10-{day:02}T12:00:00Z"})
    run_id = client.sandbox.schema.named("Run ID").id
    assert client.listing(("filterByFormula", r"{Run ID}='it\'s 7\\'")).run_ids == ["it's 7\\"]
    assert client.listing(("filterByFormula", rf"{{{run_id}}}='it\'s 6\\'")).run_ids == ["it's 6\\"]
    late = client.listing(("filterByFormula", "IS_AFTER({Start Time}, '2025-10-07T14:00:00+02:00')"))
    assert late.run_ids == ["it's 8\\"]
    many = r"OR({Run ID}='it\'s 8\\', {Run ID}='it\'s 6\\', {Run ID}='none')"
    assert client.listing(("filterByFormula", many)).run_ids == ["it's 6\\", "it's 8\\"]
    assert client.listing(("filterByFormula", "")).status == 200


@pytest.mark.parametrize("formula", ["{Nope}=1", "{Run ID", "REGEX_MATCH({Run ID}, 'x')"])
def test_an_invalid_formula_is_refused(client: Client, formula: str) -> None:
    answer = client.listing(("filterByFormula", formula))
    assert (answer.status, answer.error[0]) == (422, "INVALID_FILTER_BY_FORMULA")
    assert answer.error[1].startswith("The formula for filtering records is invalid: ")


# --- limits ---


def test_the_sixth_request_within_any_second_is_refused_and_so_is_all_for_thirty_seconds() -> None:
    client = Client(Limits())
    statuses = []
    for moment in (0.0, 0.9, 0.9, 0.9, 0.9, 1.0, 1.8, 31.7, 31.85):
        client.clock = 1000 + moment
        statuses.append(client.listing().status)
    assert statuses == [200, 200, 200, 200, 200, 200, 429, 429, 200]
    assert client.sandbox.calls.rate_limited == 2


def test_five_a_second_can_go_on_for_ever() -> None:
    client = Client(Limits())
    for _ in range(100):
        client.clock += 0.2
        assert client.listing().status == 200


def test_the_rate_counts_reading_the_schema_but_not_who_one_is() -> None:
    client = Client(Limits())
    for _ in range(5):
        assert client.call("GET", f"/v0/meta/bases/{client.sandbox.schema.base_id}/tables").status == 200
    assert client.listing().status == 429
    assert client.call("GET", "/v0/meta/whoami").status == 200
    assert client.call("GET", "/v0/meta/bases").status == 200


def test_a_rate_limit_speaks_in_either_form(client: Client) -> None:
    client.sandbox.exhaust_rate()
    assert client.listing().error[0] == "RATE_LIMIT_REACHED"
    client.sandbox.forms = ErrorForms(rate_limit=RateLimitForm.LIST)
    assert client.listing().at("errors", 0, "error") == "RATE_LIMIT_REACHED"
    client.clock += 30
    assert client.listing().status == 200


def test_a_used_up_month_blocks_records_and_not_the_schema_until_the_next_month() -> None:
    client = Client(replace(NO_LIMITS, monthly_calls=2))
    assert [client.listing().status for _ in range(3)] == [200, 200, 429]
    refused = client.create({"Run ID": "a"})
    assert (refused.status, refused.at("errors", 0, "error")) == (429, "PUBLIC_API_BILLING_LIMIT_EXCEEDED")
    assert client.call("GET", f"/v0/meta/bases/{client.sandbox.schema.base_id}/tables").status == 200
    assert (client.sandbox.calls.month, client.sandbox.calls.over_quota, client.sandbox.calls.meta) == (2, 2, 1)

    client.now += timedelta(days=30)
    assert client.listing().status == 200
    assert (client.sandbox.calls.month, client.sandbox.calls.records) == (1, 3)


def test_the_count_of_the_month_can_be_set_by_hand() -> None:
    client = Client(replace(NO_LIMITS, monthly_calls=1000))
    client.sandbox.calls.month = 999
    assert [client.listing().status for _ in range(2)] == [200, 429]


def test_a_full_base_takes_no_more_records() -> None:
    client = Client(replace(NO_LIMITS, records=2))
    assert client.create({"Run ID": "a"}, {"Run ID": "b"}, {"Run ID": "c"}).status == 422
    assert client.create({"Run ID": "a"}).status == 200
    assert client.upsert({"Run ID": "a"}, {"Run ID": "b"}).status == 200
    assert client.upsert({"Run ID": "b"}, {"Run ID": "c"}).status == 422
    assert len(client.sandbox.records()) == 2


def test_too_large_a_body_and_too_long_a_url_are_refused() -> None:
    client = Client(replace(NO_LIMITS, body_bytes=100, url_characters=16_000))
    assert client.create({"Run ID": "x" * 100}).status == 413
    assert client.listing(("filterByFormula", "1" * 15_900)).status == 200
    assert client.listing(("filterByFormula", "1" * 16_000)).status == 414


def test_the_ready_made_faults_have_the_documented_bodies() -> None:
    by_object = errors.rate_limited().then
    by_list = errors.rate_limited(RateLimitForm.LIST).then
    quota = errors.quota_exceeded().then
    bodies = [parse_json(then.body) for then in (by_object, by_list, quota) if isinstance(then, Reply)]
    assert at(bodies[0], "error", "type") == "RATE_LIMIT_REACHED"
    assert at(bodies[1], "errors", 0, "error") == "RATE_LIMIT_REACHED"
    assert at(bodies[2], "errors", 0, "error") == "PUBLIC_API_BILLING_LIMIT_EXCEEDED"
    assert not errors.rate_limited().apply


# --- by hand ---


def test_work_by_hand_is_no_api_call(client: Client) -> None:
    record = client.sandbox.insert({"Run ID": "a", "Status": "Failed"})
    client.sandbox.edit(record.id, {"Status": None, "Client Name": "G"})
    assert client.sandbox.records()[0].fields == {"Run ID": "a", "Client Name": "G"}
    assert record.created_time == NOW.replace(microsecond=0)
    client.sandbox.delete(record.id)
    assert client.sandbox.records() == []
    assert client.sandbox.calls.records == 0
    with pytest.raises(KeyError):
        client.sandbox.edit(record.id, {})
    with pytest.raises(KeyError):
        client.sandbox.delete(record.id)
    with pytest.raises(errors.Refusal, match="Unknown field name"):
        client.sandbox.insert({"Nope": 1})


def test_a_column_removed_by_hand_takes_its_cells_and_is_unknown_from_then_on(client: Client) -> None:
    client.sandbox.insert({"Run ID": "a", "Client Name": "G"})
    client.sandbox.remove_column("Client Name")
    assert client.cells() == [{"Run ID": "a"}]
    assert client.create({"Client Name": "G"}).error[0] == "UNKNOWN_FIELD_NAME"
    with pytest.raises(KeyError):
        client.sandbox.remove_column("Client Name")


def test_a_renamed_column_keeps_its_cells_and_its_id(client: Client) -> None:
    client.sandbox.insert({"Run ID": "a", "Client Name": "G"})
    column_id = client.sandbox.schema.named("Client Name").id
    client.sandbox.rename_column("Client Name", "Client")
    assert client.cells() == [{"Run ID": "a", "Client": "G"}]
    assert client.sandbox.schema.named("Client").id == column_id
    assert client.create({"Client Name": "G"}).error[0] == "UNKNOWN_FIELD_NAME"


def test_an_option_removed_by_hand_empties_its_cells_and_can_be_added_again(client: Client) -> None:
    client.sandbox.insert({"Run ID": "a", "Status": "Failed"})
    client.sandbox.remove_option("Status", "Failed")
    assert client.cells() == [{"Run ID": "a"}]
    assert client.create({"Status": "Failed"}).error[0] == "INVALID_MULTIPLE_CHOICE_OPTIONS"
    client.sandbox.add_option("Status", "Failed")
    assert client.create({"Status": "Failed"}).status == 200
    with pytest.raises(KeyError):
        client.sandbox.remove_option("Status", "Nope")


def test_a_column_of_an_unknown_type_makes_no_schema() -> None:
    ids = Ids(random.Random(1))  # noqa: S311 - the same ids in every run
    shapes: list[Json] = ["hologram", {"multipleSelects": ["a"]}, 5]
    for described in shapes:
        with pytest.raises(ValueError, match=r"hologram|no known type"):
            schema_from_columns("T", {"A": described}, ids)


# --- what survives ---


def test_what_was_answered_is_there_again_after_a_kill(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    before = Client(journal=journal)
    before.create({"Run ID": "a", "Start Time": "2025-10-07T07:00:00Z", "Total Posts Harvested": 1, "Checked": True})
    before.create({"Run ID": "b", "Apify API Costs": 0.5, "Status": "New"}, typecast=True)
    before.upsert({"Run ID": "a", "Client Name": "G"})
    before.call("DELETE", f"/{before.sandbox.insert({'Run ID': 'gone'}).id}")
    before.sandbox.remove_column("System Notes")

    after = Client(journal=journal, seed=99)

    assert after.sandbox.records() == before.sandbox.records()
    assert after.sandbox.schema == before.sandbox.schema
    assert type(after.cells()[0]["Total Posts Harvested"]) is int
    assert after.cells()[0]["Checked"] is True
    assert after.upsert({"Run ID": "b"}).at("createdRecords") == []
    assert after.create({"Status": "New"}).status == 200


def test_a_new_process_with_the_same_seed_makes_no_id_twice(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    for _ in range(3):
        Client(journal=journal).create({"Run ID": "a"}, {"Run ID": "b"})
    assert len({record.id for record in Client(journal=journal).sandbox.records()}) == 6


def test_a_line_that_a_kill_cut_short_is_dropped_and_the_journal_goes_on_after_it(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    before = Client(journal=journal)
    before.create({"Run ID": "a"})
    whole = journal.stat().st_size
    before.create({"Run ID": "b"})
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 1)

    after = Client(journal=journal)
    assert after.cells() == [{"Run ID": "a"}]
    assert journal.stat().st_size == whole
    after.create({"Run ID": "c"})
    assert [cells["Run ID"] for cells in Client(journal=journal).cells()] == ["a", "c"]


def test_a_journal_broken_in_the_middle_is_told_and_not_guessed_at(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    Client(journal=journal).create({"Run ID": "a"})
    journal.write_bytes(b"{\n" + journal.read_bytes())
    with pytest.raises(ValueError, match="line 1"):
        Client(journal=journal)


def test_a_write_that_the_journal_refuses_has_not_happened(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    client = Client(journal=journal)
    journal.unlink()
    journal.mkdir()
    with pytest.raises(OSError, match="directory"):
        client.create({"Run ID": "a"})
    assert client.cells() == []


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
