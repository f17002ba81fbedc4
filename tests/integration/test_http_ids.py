"""Ids that no kickoff should make, and those that look odd and are good: from the request to the Airtable cell."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.watching import raw_request, rows, send_raw

if TYPE_CHECKING:
    from app.model import Json
    from tests.support.harness import Harness


GOOD = ["Guy-Wilson", "O'Brien", "a.b_c", "anna@example.com", "a+b", "José", "Владимир", "李小龍", "7", "a--b", "_x_"]

BAD = {
    "empty": "",
    "slash": "a/b",
    "path": "../x",
    "double quote": 'a"b',
    "formula": "{Run ID}='x'",
    "formula call": "OR(1,1)",
    "formula sign": "=1+1",
    "backslash": "a\\b",
    "percent": "a%2Fb",
    "question mark": "a?b",
    "newline inside": "a\nb",
    "newline at the end": "a\n",
    "nul": "a\x00b",
    "escape": "\x1b[31mred",
    "space": "Guy Wilson",
    "no-break space": "Guy\u00a0Wilson",
    "right-to-left override": "a\u202eb",
    "left-to-right mark": "a\u200e",
    "zero-width space": "a\u200bb",
    "zero-width joiner": "a\u200db",
    "byte order mark": "\ufeffa",
    "dash first": "-a",
    "dash last": "a-",
    "decomposed": unicodedata.normalize("NFD", "José"),
    "not composed": "\u212bngstr\u00f6m",
    "emoji": "a😀",
    "too long": "x" * 101,
}


@pytest.mark.parametrize("client_id", GOOD)
async def test_a_good_id_goes_all_the_way_and_back(served: Harness, client_id: str) -> None:
    created = await served.call("POST", "/runs", {"client_id": client_id, "job_id": "251007-070457"})
    assert created.status == 201, created.text
    run_id = f"251007-070457-{client_id}"
    path = f"/runs/{quote(run_id, safe='')}"
    assert (await served.call("PATCH", path, {"add": {"posts_harvested": 2}})).json()["outcome"] == "queued"
    await served.synced()
    assert (await served.call("GET", path)).json()["run_id"] == run_id
    assert served.records()[run_id]["Total Posts Harvested"] == 2
    assert served.records()[run_id]["Client ID"] == client_id


async def test_a_bad_id_is_refused_wherever_it_stands(served: Harness) -> None:
    for what, bad in BAD.items():
        as_client = await served.call("POST", "/runs", {"client_id": bad, "job_id": "251007-070457"})
        assert as_client.status == 422, what
        as_job = await served.call("POST", "/runs", {"client_id": "Guy", "job_id": bad})
        assert as_job.status == 422, what
        if 0 < len(bad) <= 100 and bad != "../x":
            path = f"/runs/{quote(bad, safe='')}"
            update = await served.call("PATCH", path, {"add": {"posts_harvested": 2}})
            assert update.status in {404, 422}, what
            assert (await served.call("GET", path)).status == 404, what
    for table in ("runs", "outbox", "held_updates", "errors"):
        assert rows(served.store_path, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_a_decomposed_name_is_told_to_compose_itself(served: Harness) -> None:
    """A caller on a Mac cannot see what is wrong with its é, so the answer has to say it."""
    answer = await served.call("POST", "/runs", {"client_id": unicodedata.normalize("NFD", "José")})
    assert answer.status == 422
    assert "NFC" in answer.text


async def test_a_lone_surrogate_is_refused_in_every_place_of_a_body(served: Harness) -> None:
    for body in (
        rb'{"client_id": "a\ud800b"}',
        rb'{"client_id": "Guy", "job_id": "\udc00"}',
        rb'{"client_id": "Guy", "fields": {"progress_log": "\ud83d"}}',
        rb'{"client_id": "Guy", "fields": {"\ud83d": 1}}',
        rb'{"client_id": "Guy", "batches": [{"input": {"x": "\ud83d"}}]}',
        b'{"client_id": "\xed\xa0\x80"}',
        b'{"client_id": "\xff"}',
    ):
        answer = await served.call("POST", "/runs", body)
        assert answer.status in {400, 422}, (body, answer.text)
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(0,)]


@pytest.mark.parametrize("octets", [b"%ED%A0%80", b"%FF", b"%00", b"\xff\xfe", b"%C3%28", b"a%0D%0Ab"])
async def test_octets_that_are_no_text_are_refused_in_a_path_and_a_query(served: Harness, octets: bytes) -> None:
    assert served.service is not None
    change = b'{"add": {"posts_harvested": 1}}'
    for request, allowed in (
        (raw_request(b"GET", b"/runs/" + octets), {400, 404, 422}),
        (raw_request(b"PATCH", b"/runs/" + octets, change), {400, 422}),
        (raw_request(b"GET", b"/runs?client_id=" + octets), {200, 400, 422}),
        (raw_request(b"GET", b"/errors?run_id=" + octets), {200, 400, 422}),
    ):
        answer = await send_raw(served.service.url, request)
        assert answer.status in allowed, (request, answer.body)
    assert rows(served.store_path, "SELECT count(*) FROM held_updates") == [(0,)]


async def test_a_job_id_that_ends_with_the_client_already_is_refused_and_the_right_one_named(served: Harness) -> None:
    doubled: dict[str, Json] = {"client_id": "Guy-Wilson", "job_id": "251007-070457-Guy-Wilson"}
    answer = await served.call("POST", "/runs", doubled)
    assert answer.status == 422
    assert "'251007-070457'" in str(answer.json()["detail"])
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(0,)]


async def test_two_kickoffs_that_make_the_same_run_id_by_different_names_conflict(served: Harness) -> None:
    assert (await served.call("POST", "/runs", {"client_id": "b-c", "job_id": "a"})).status == 201
    answer = await served.call("POST", "/runs", {"client_id": "c", "job_id": "a-b"})
    assert answer.status == 409
    assert answer.json()["type"] == "urn:runrecords:problem:conflict"


async def test_an_update_by_a_doubled_suffix_is_held_and_names_the_run_that_was_meant(served: Harness) -> None:
    run_id = await served.kick_off()
    answer = await served.call("PATCH", f"/runs/{run_id}-Guy-Wilson", {"add": {"posts_harvested": 2}})
    error = answer.json()["error"]
    assert answer.json()["outcome"] == "held"
    assert isinstance(error, dict)
    assert error["similar_runs"] == [run_id]
