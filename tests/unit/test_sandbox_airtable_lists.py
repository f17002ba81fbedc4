"""The Airtable sandbox lists, filters, sorts and pages as Airtable does: asked without a socket."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_limits import NO_LIMITS
from tests.support.airtable import Client, at

if TYPE_CHECKING:
    from app.model import Json


@pytest.fixture
def client() -> Client:
    return Client()


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
