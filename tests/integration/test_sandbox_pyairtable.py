"""pyairtable works against the sandbox unchanged, over a real socket, in good times and in bad ones."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import pytest
import requests
from pyairtable import Api, Table, formulas
from pyairtable.models.schema import FieldType, SingleSelectFieldSchema
from pydantic import ValidationError

from app.sandbox import wire
from app.sandbox.airtable import AirtableSandbox
from app.sandbox.airtable_errors import RateLimitForm, quota_exceeded, rate_limited
from app.sandbox.airtable_limits import NO_LIMITS, Limits
from app.sandbox.airtable_schema import Ids, schema_from_columns
from app.sandbox.messages import parse_json
from app.sandbox.wire import Fault, WireServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from app.model import Json

SAMPLE = Path(__file__).parents[1] / "samples" / "client-run-results-columns.json"
TOKEN = "pat.secret"
P = ParamSpec("P")
R = TypeVar("R")


async def call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call pyairtable as the service does: it is synchronous, so in a thread."""
    return await asyncio.to_thread(function, *args, **kwargs)


async def refused(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> requests.Response:
    with pytest.raises(requests.HTTPError) as caught:
        await call(function, *args, **kwargs)
    assert caught.value.response is not None
    return caught.value.response


@pytest.fixture
def sandbox() -> AirtableSandbox:
    sample = parse_json(SAMPLE.read_bytes())
    assert isinstance(sample, dict)
    assert isinstance(sample["columns"], dict)
    ids = Ids(random.Random(5))  # noqa: S311 - the same ids in every run
    schema = schema_from_columns(str(sample["table"]), sample["columns"], ids, base_name="Runs")
    return AirtableSandbox(schema, token=TOKEN, ids=ids, limits=NO_LIMITS)


@pytest.fixture
async def server(sandbox: AirtableSandbox) -> AsyncIterator[WireServer]:
    async with WireServer(sandbox) as server:
        yield server


@pytest.fixture
def api(server: WireServer) -> Iterator[Api]:
    api = Api(TOKEN, endpoint_url=server.url, retry_strategy=None, timeout=(2, 10))
    yield api
    api.session.close()


@pytest.fixture
def table(api: Api, sandbox: AirtableSandbox) -> Table:
    return api.table(sandbox.schema.base_id, "Client Run Results")


def impatient(server: WireServer, sandbox: AirtableSandbox) -> Table:
    """A client that waits for an answer no longer than a moment."""
    api = Api(TOKEN, endpoint_url=server.url, retry_strategy=None)
    # requests takes fractions of a second, which pyairtable's annotation does not know of.
    api.timeout = (2, 0.2)  # type: ignore[assignment]
    return api.table(sandbox.schema.base_id, "Client Run Results")


async def test_who_am_i_and_what_is_there(api: Api, sandbox: AirtableSandbox) -> None:
    who = await call(api.whoami)
    (base,) = await call(api.bases)
    schema = (await call(base.schema)).table("Client Run Results")

    assert who["scopes"] == ["data.records:read", "data.records:write", "schema.bases:read"]
    assert (base.id, base.name) == (sandbox.schema.base_id, "Runs")
    assert schema.id == sandbox.schema.table_id
    assert schema.primary_field_id == sandbox.schema.columns[0].id
    assert [(field.id, field.name, FieldType(field.type).value) for field in schema.fields] == [
        (column.id, column.name, column.type.value) for column in sandbox.schema.columns
    ]
    status = schema.field("Status")
    assert isinstance(status, SingleSelectFieldSchema)
    assert [choice.name for choice in status.options.choices] == [
        "Running",
        "Completed",
        "Failed",
        "No Leads To Score",
        "Completed with Errors",
    ]


async def test_records_are_created_read_updated_replaced_and_deleted(table: Table) -> None:
    created = await call(table.create, {"Run ID": "a", "Status": "Running", "Start Time": "2025-10-07T07:31:12Z"})
    assert created["fields"]["Start Time"] == "2025-10-07T07:31:12.000Z"
    assert await call(table.get, created["id"]) == created

    updated = await call(table.update, created["id"], {"Status": None, "Total API Cost": 0.5})
    assert updated["fields"] == {
        "Run ID": "a",
        "Start Time": "2025-10-07T07:31:12.000Z",
        "Total API Cost": 0.5,
    }
    replaced = await call(table.update, created["id"], {"Run ID": "a2"}, replace=True)
    assert replaced["fields"] == {"Run ID": "a2"}
    assert await call(table.delete, created["id"]) == {"id": created["id"], "deleted": True}
    assert await call(table.all) == []


async def test_batches_go_ten_at_a_time_and_keep_their_order(table: Table, server: WireServer) -> None:
    created = await call(table.batch_create, [{"Run ID": f"r{n}"} for n in range(25)])
    assert [record["fields"]["Run ID"] for record in created] == [f"r{n}" for n in range(25)]
    updated = await call(table.batch_update, [{"id": record["id"], "fields": {"Client ID": "x"}} for record in created])
    assert all(record["fields"]["Client ID"] == "x" for record in updated)
    deleted = await call(table.batch_delete, [record["id"] for record in created])
    assert [record["id"] for record in deleted] == [record["id"] for record in created]
    assert [entry.method for entry in server.log] == ["POST"] * 3 + ["PATCH"] * 3 + ["DELETE"] * 3


async def test_an_upsert_tells_created_from_updated(table: Table, sandbox: AirtableSandbox) -> None:
    known = sandbox.insert({"Run ID": "a", "Client Name": "G"})
    rows: list[dict[str, Json]] = [{"fields": {"Run ID": "b"}}, {"fields": {"Run ID": "a", "Status": "Failed"}}]
    result = await call(table.batch_upsert, rows, key_fields=["Run ID"])
    assert result["updatedRecords"] == [known.id]
    assert result["createdRecords"] == [result["records"][0]["id"]]
    assert result["records"][1]["fields"] == {"Run ID": "a", "Client Name": "G", "Status": "Failed"}


@pytest.mark.parametrize("run_id", ["plain", "it's", 'say "hi"', "back\\slash", "\\'", "{brace}", "a\nb", "é😀", "'"])
async def test_a_run_is_found_by_its_id_whatever_characters_it_has(
    table: Table, sandbox: AirtableSandbox, run_id: str
) -> None:
    sandbox.insert({"Run ID": "other"})
    sandbox.insert({"Run ID": run_id})
    found = await call(table.first, formula=formulas.match({"Run ID": run_id}))
    assert found is not None
    assert found["fields"] == {"Run ID": run_id}
    assert await call(table.first, formula=formulas.match({"Run ID": run_id + "x"})) is None


async def test_conditions_on_times_and_numbers_select_as_meant(table: Table, sandbox: AirtableSandbox) -> None:
    for day, posts in ((6, 10), (7, 0), (8, 30)):
        start = f"2025-10-{day:02}T12:00:00Z"
        sandbox.insert({"Run ID": str(day), "Start Time": start, "Total Posts Harvested": posts})
    since = formulas.Field("Start Time").gte(datetime(2025, 10, 7, 12, tzinfo=UTC))
    some = formulas.match({"Total Posts Harvested": (">", 0)})
    records = await call(table.all, formula=formulas.AND(since, some), fields=["Run ID"])
    assert [record["fields"] for record in records] == [{"Run ID": "8"}]


async def test_a_formula_too_long_for_a_url_goes_as_a_post(
    table: Table, sandbox: AirtableSandbox, server: WireServer
) -> None:
    sandbox.limits = Limits(requests_per_second=None)
    for n in range(401):
        sandbox.insert({"Run ID": f"251007-070457-Client-{n}"})
    wanted = [formulas.match({"Run ID": f"251007-070457-Client-{n}"}) for n in range(400)]
    records = await call(table.all, formula=formulas.OR(*wanted), sort=["-Run ID"])
    assert len(records) == 400
    assert {entry.path.rpartition("/")[2] for entry in server.log if entry.method == "POST"} == {"listRecords"}
    assert all(entry.status == 200 for entry in server.log)


async def test_a_listing_iterates_page_by_page(table: Table, sandbox: AirtableSandbox) -> None:
    for n in range(230):
        sandbox.insert({"Run ID": str(n)})
    pages = await call(lambda: [[record["fields"]["Run ID"] for record in page] for page in table.iterate()])
    assert [len(page) for page in pages] == [100, 100, 30]
    assert [run for page in pages for run in page] == [str(n) for n in range(230)]
    assert len(await call(table.all, max_records=105, page_size=50)) == 105


async def test_a_listing_that_takes_too_long_must_be_begun_again(table: Table, sandbox: AirtableSandbox) -> None:
    for n in range(150):
        sandbox.insert({"Run ID": str(n)})
    pages = table.iterate()
    await call(next, pages)
    sandbox.expire_listings()
    response = await refused(next, pages)
    assert (response.status_code, response.json()["error"]["type"]) == (422, "LIST_RECORDS_ITERATOR_NOT_AVAILABLE")


async def test_field_ids_work_in_both_directions(table: Table, api: Api, sandbox: AirtableSandbox) -> None:
    api.use_field_ids = True
    run_id = sandbox.schema.named("Run ID").id
    created = await call(table.create, {run_id: "a"})
    assert created["fields"] == {run_id: "a"}
    assert await call(table.all) == [created]
    found = await call(table.first, formula=formulas.match({run_id: "a"}))
    assert found == created


async def test_refusals_arrive_with_status_type_and_message(table: Table) -> None:
    unknown = await refused(table.create, {"Nope": 1})
    option = await refused(table.create, {"Status": "Nope"})
    missing = await refused(table.batch_update, [{"id": "rec00000000000000", "fields": {"Run ID": "x"}}])
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (422, "UNKNOWN_FIELD_NAME")
    assert option.json()["error"] == {
        "type": "INVALID_MULTIPLE_CHOICE_OPTIONS",
        "message": 'Insufficient permissions to create new select option ""Nope""',
    }
    assert missing.json()["error"]["message"] == "Record ID rec00000000000000 does not exist in this table"


async def test_a_wrong_token_or_base_is_told_apart(server: WireServer, api: Api, sandbox: AirtableSandbox) -> None:
    stranger = Api("wrong", endpoint_url=server.url, retry_strategy=None)
    assert (await refused(stranger.whoami)).status_code == 401
    stranger.session.close()
    assert (await refused(api.table("app00000000000000", "X").all)).status_code == 403
    assert (await refused(api.table(sandbox.schema.base_id, "X").all)).status_code == 403


async def test_the_sixth_call_in_a_second_is_refused_and_the_log_can_judge_it(
    table: Table, sandbox: AirtableSandbox, server: WireServer
) -> None:
    sandbox.limits = Limits()
    for _ in range(5):
        await call(table.first)
    response = await refused(table.first)
    assert (response.status_code, response.json()["error"]["type"]) == (429, "RATE_LIMIT_REACHED")
    assert [entry.status for entry in server.log] == [200] * 5 + [429]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (rate_limited(), "RATE_LIMIT_REACHED"),
        (rate_limited(RateLimitForm.LIST), "RATE_LIMIT_REACHED"),
        (quota_exceeded(), "PUBLIC_API_BILLING_LIMIT_EXCEEDED"),
    ],
)
async def test_a_refusal_for_the_rate_or_the_quota_has_no_effect(
    table: Table, sandbox: AirtableSandbox, server: WireServer, fault: Fault, kind: str
) -> None:
    server.faults.add(fault)
    response = await refused(table.create, {"Run ID": "a"})
    assert (response.status_code, kind in response.text) == (429, True)
    assert sandbox.records() == []
    assert server.log[0].applied is False


@pytest.mark.parametrize(("fault", "written"), [(wire.applied_then_hang(), 1), (wire.hung(), 0)])
async def test_a_time_out_says_nothing_about_the_outcome(
    sandbox: AirtableSandbox, server: WireServer, fault: Fault, written: int
) -> None:
    server.faults.add(fault)
    table = impatient(server, sandbox)
    with pytest.raises(requests.exceptions.ReadTimeout):
        await call(table.create, {"Run ID": "a"})
    table.api.session.close()
    assert len(sandbox.records()) == written
    assert len(server.log) == 1


@pytest.mark.parametrize(("fault", "written"), [(wire.applied_then_dropped(), 1), (wire.dropped(), 0)])
async def test_nor_does_a_dropped_connection(
    table: Table, sandbox: AirtableSandbox, server: WireServer, fault: Fault, written: int
) -> None:
    server.faults.add(fault)
    with pytest.raises(requests.exceptions.ConnectionError):
        await call(table.create, {"Run ID": "a"})
    assert len(sandbox.records()) == written
    assert len(server.log) == 1


@pytest.mark.parametrize(("applied", "written"), [(True, 1), (False, 0)])
async def test_nor_does_a_server_error(
    table: Table, sandbox: AirtableSandbox, server: WireServer, *, applied: bool, written: int
) -> None:
    server.faults.add(wire.server_error(503, retry_after=7, applied=applied))
    response = await refused(table.create, {"Run ID": "a"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "7")
    assert len(sandbox.records()) == written


async def test_a_truncated_answer_is_a_connection_trouble_after_the_write(
    table: Table, sandbox: AirtableSandbox, server: WireServer
) -> None:
    server.faults.add(wire.truncated())
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        await call(table.create, {"Run ID": "a"})
    assert len(sandbox.records()) == 1


async def test_an_odd_answer_is_a_validation_error_after_the_write(
    table: Table, sandbox: AirtableSandbox, server: WireServer
) -> None:
    server.faults.add(wire.odd_body(b'{"ok": true}'))
    with pytest.raises(ValidationError):
        await call(table.create, {"Run ID": "a"})
    assert len(sandbox.records()) == 1


async def test_a_create_sent_again_after_a_time_out_makes_two_records_and_an_upsert_one(
    sandbox: AirtableSandbox, server: WireServer
) -> None:
    """The trap that the service must not fall into: the sandbox really has it."""
    table = impatient(server, sandbox)

    def create() -> None:
        table.create({"Run ID": "created"})

    def upsert() -> None:
        table.batch_upsert([{"fields": {"Run ID": "upserted"}}], key_fields=["Run ID"])

    for send in (create, upsert):
        server.faults.add(wire.applied_then_hang())
        with pytest.raises(requests.exceptions.ReadTimeout):
            await call(send)
        await call(send)
    table.api.session.close()
    assert [record.fields["Run ID"] for record in sandbox.records()] == ["created", "created", "upserted"]


async def test_a_write_that_lands_late_meets_the_upsert_that_was_sent_after_it(
    sandbox: AirtableSandbox, server: WireServer
) -> None:
    server.faults.add(wire.applied_late(0.5))
    table = impatient(server, sandbox)

    def upsert() -> None:
        table.batch_upsert([{"fields": {"Run ID": "a"}}], key_fields=["Run ID"])

    with pytest.raises(requests.exceptions.ReadTimeout):
        await call(upsert)
    await call(upsert)
    table.api.session.close()
    await server.wait_for(lambda log: all(entry.applied for entry in log))
    assert [record.fields["Run ID"] for record in sandbox.records()] == ["a"]
