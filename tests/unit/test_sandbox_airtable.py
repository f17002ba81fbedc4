"""The Airtable sandbox lets in, limits, changes by hand and survives as Airtable does: asked without a socket."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sandbox import airtable_errors as errors
from app.sandbox.airtable_errors import ErrorForms, NotFoundForm, RateLimitForm
from app.sandbox.airtable_limits import NO_LIMITS, Limits
from app.sandbox.airtable_schema import Ids, schema_from_columns
from app.sandbox.faults import Reply
from app.sandbox.messages import WireRequest, parse_json
from tests.support.airtable import NOW, TOKEN, Client, at

if TYPE_CHECKING:
    from app.model import Json


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


# --- whatever comes ---

_names = st.sampled_from(
    [
        "records",
        "fields",
        "id",
        "typecast",
        "performUpsert",
        "fieldsToMergeOn",
        "pageSize",
        "offset",
        "sort",
        "field",
        "filterByFormula",
    ]
) | st.sampled_from(["Run ID", "Status", "Start Time", "Total Posts Harvested", "Checked", "Duration"])
_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | _names
_bodies = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=12) | st.dictionaries(_names, inner, max_size=5), max_leaves=25
)


@given(
    method=st.sampled_from(["GET", "POST", "PATCH", "PUT", "DELETE", "HEAD"]),
    rest=st.sampled_from(["", "/listRecords", "/rec00000000000000", "/x/y", "/v0/meta/bases"]),
    body=_bodies,
    query=st.lists(st.tuples(_names | st.text(), st.text()), max_size=3),
)
def test_whatever_comes_is_answered_or_refused_and_a_refusal_changes_nothing(
    method: str, rest: str, body: Json, query: list[tuple[str, str]]
) -> None:
    client = Client()
    before = client.sandbox.schema, client.sandbox.records()
    path = rest if rest.startswith("/v") else f"/v0/{before[0].base_id}/{before[0].table_id}{rest}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    request = WireRequest(method, path, tuple(query), headers, json.dumps(body).encode())
    status = client.sandbox(request).status
    assert status in {200, 400, 403, 404, 422}
    if status != 200:
        assert (client.sandbox.schema, client.sandbox.records()) == before
