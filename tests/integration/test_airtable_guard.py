"""Whatever Airtable or the network answers: it spreads no key, ends no loop and leads nowhere else."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from app import airtable_transport
from app.airtable import Airtable, AirtableAccess
from app.logs import REDACTED
from app.policy.asking import Identified
from app.policy.delivery import Denied, Refused, Unknown
from app.sandbox.faults import Fault, Reply, odd_body
from tests.support.harness import AIRTABLE_KEY, Harness, table_columns
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from app.model import Json
    from app.sandbox.wire import WireServer


@pytest.fixture
def house(quick_house: Harness) -> Harness:
    return quick_house


def access(server: WireServer, key: str = AIRTABLE_KEY) -> AirtableAccess:
    return AirtableAccess(key, server.url, "appX", "Client Run Results", timeout_seconds=1.0)


# The key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 422, 429, 500])
@pytest.mark.parametrize(
    "body", [b'{"error": {"type": "T", "message": "no: %s"}}', b"<p>no: %s</p>", b'{"error": "%s"}']
)
async def test_an_error_that_repeats_the_key_is_told_without_it(house: Harness, status: int, body: bytes) -> None:
    house.airtable_server.faults.add(odd_body(body % AIRTABLE_KEY.encode(), status=status), times=None)
    async with house.running():
        await house.kick_off()
        told = "SELECT error FROM airtable_calls WHERE error IS NOT NULL"
        await until(lambda: bool(rows(house.store_path, told)))
        seen = [(await house.call("GET", path)).text for path in ("/readyz", "/errors", "/outbox")]
    assert REDACTED in str(rows(house.store_path, told))
    assert AIRTABLE_KEY not in "".join(seen)
    for file in house.folder.glob("runs.db*"):
        assert AIRTABLE_KEY.encode() not in file.read_bytes(), file.name


async def test_a_key_is_cut_out_before_the_text_is_cut_off(house: Harness) -> None:
    """Half of a key is too much as well."""
    for length in range(470, 500):
        body = b"x" * length + AIRTABLE_KEY.encode()
        house.airtable_server.faults.add(odd_body(body, status=422))
        airtable = Airtable(access(house.airtable_server), house.settings.registry())
        answer = await airtable.peek()
        airtable.close()
        assert isinstance(answer, Refused)
        assert AIRTABLE_KEY[:6] not in answer.cause


@pytest.mark.parametrize("key", ["pat\nSecret", "pat\r\nSecret", 'it\'s\na "pat"', "p\xe4t\nSecret", "pat\u20acSecret"])
async def test_a_key_that_fits_no_header_is_not_told(house: Harness, key: str) -> None:
    airtable = Airtable(access(house.airtable_server, key), house.settings.registry())
    answer = await airtable.peek()
    airtable.close()
    assert isinstance(answer, Unknown)
    for form in (key, repr(key)[1:-1], ascii(key)[1:-1], "Secret"):
        assert form not in answer.cause
    assert not house.airtable_server.log


def test_an_access_does_not_show_its_key(house: Harness) -> None:
    assert AIRTABLE_KEY not in repr(dataclasses.replace(access(house.airtable_server)))


# Odd records ----------------------------------------------------------------------------------------------------


REC = "recAAAAAAAAAAAAAA"


@pytest.mark.parametrize(
    "page",
    [
        *({"records": [{"id": odd, "fields": {}}]} for odd in ("", "rec", "\ud800", f"{REC}\n", "A" * 1_000_000)),
        *({"records": [], "offset": odd} for odd in ("", "\ud800", "a\nb", "x" * 1_001, "\xe4", 7)),
    ],
)
async def test_a_page_with_an_impossible_id_or_offset_is_none(house: Harness, page: object) -> None:
    house.airtable_server.faults.add(odd_body(json.dumps(page).encode()))
    airtable = Airtable(access(house.airtable_server), house.settings.registry())
    answer = await airtable.find(["x"])
    airtable.close()
    assert isinstance(answer, Unknown)
    answer.cause.encode()


ODD_CELLS: list[Json] = [
    "\ud800",
    "x\udfff",
    float("nan"),
    float("inf"),
    10**400,
    [],
    {},
    True,
    "0001-01-01T00:00+01:00",
]


@pytest.mark.parametrize("odd", ODD_CELLS, ids=ascii)
async def test_a_record_with_odd_cells_is_adopted_without_them(house: Harness, odd: Json) -> None:
    run_id = "251007-070457-Guy-Wilson"
    cells = {column: odd for column in table_columns() if column not in {"Run ID", "Progress Log"}}
    found = {"id": REC, "fields": {**cells, "\ud800": odd, "Run ID": run_id, "Progress Log": "by hand"}}
    house.airtable_server.faults.add(odd_body(json.dumps({"records": [found]}).encode()), method="GET")
    async with house.running() as service:
        await house.call("PATCH", f"/runs/{run_id}", {"append": {"progress_log": "x"}})
        await until(lambda: bool(rows(house.store_path, "SELECT 1 FROM runs")))
        assert not any(loop.done() for loop in service.loops)
        shown = (await house.call("GET", f"/runs/{run_id}")).json()
    assert shown["airtable_record_id"] == REC
    assert shown["fields"]["progress_log"] == "by hand\nx"  # type: ignore[index, call-overload]


async def test_a_fraction_in_a_column_of_integers_is_adopted_and_added_to(house: Harness) -> None:
    run_id = "251007-070457-Guy-Wilson"
    house.airtable.insert({"Run ID": run_id, "Total Posts Harvested": 5.5})
    async with house.running():
        await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": 2}})
        await house.synced()
        await until(lambda: house.records()[run_id]["Total Posts Harvested"] == 7.5)


@pytest.mark.parametrize("odd", ["", "\ud800"], ids=ascii)
async def test_a_look_that_finds_an_impossible_id_adopts_nothing_and_goes_on(house: Harness, odd: str) -> None:
    run_id = "251007-070457-Guy-Wilson"
    body = json.dumps({"records": [{"id": odd, "fields": {"Run ID": run_id}}]}).encode()
    house.airtable_server.faults.add(odd_body(body), method="GET")
    async with house.running() as service:
        await house.call("PATCH", f"/runs/{run_id}", {"append": {"progress_log": "x"}})
        await until(lambda: bool(rows(house.store_path, "SELECT 1 FROM airtable_calls WHERE finished_at IS NOT NULL")))
        await asyncio.sleep(0.05)
        assert not any(loop.done() for loop in service.loops)
    assert rows(house.store_path, "SELECT count(*) FROM runs") == [(0,)]
    assert rows(house.store_path, "SELECT outcome FROM airtable_calls") == [("unknown",)]


# Redirects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 700])
async def test_an_update_that_is_sent_elsewhere_is_not_delivered(house: Harness, status: int) -> None:
    """Followed, it would become a listing, which names the very records that should have been written."""
    async with house.running():
        run_id = await house.kick_off()
        await house.synced()
        base = f"{house.airtable_server.url}/v0/{house.airtable.schema.base_id}"
        elsewhere = {"Location": f"{base}/Client%20Run%20Results?{AIRTABLE_KEY}"}
        listing = json.dumps({"records": [{"id": house.airtable.records()[0].id, "fields": {}}]})
        before = len(house.airtable_server.log)
        fault = Fault(apply=False, then=Reply(status, listing.encode(), elsewhere))
        house.airtable_server.faults.add(fault, method="PATCH")
        await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": 3}})
        await house.synced()
        methods = [request.method for request in house.airtable_server.log[before:]]
    assert house.records()[run_id]["Total Posts Harvested"] == 3
    assert methods == ["PATCH", "PATCH"]
    (told,) = rows(house.store_path, "SELECT outcome, status, error FROM airtable_calls WHERE outcome <> 'ok'")
    assert told[:2] == (("denied", status) if status < 400 else ("unknown", status))
    assert ("endpoint_url" in str(told[2])) == (status < 400)
    assert AIRTABLE_KEY not in str(told[2])


async def test_a_question_that_is_sent_elsewhere_is_not_followed(house: Harness) -> None:
    fault = Fault(apply=False, then=Reply(302, b"", {"Location": "http://127.0.0.1:9/"}))
    house.airtable_server.faults.add(fault, times=None)
    airtable = Airtable(access(house.airtable_server), house.settings.registry())
    answers = [await airtable.identify(), await airtable.peek(), await airtable.describe(), await airtable.find(["x"])]
    airtable.close()
    for answer in answers:
        assert isinstance(answer, Denied)
        assert (answer.status, "endpoint_url" in answer.cause) == (302, True)
    assert len(house.airtable_server.log) == 4


async def test_what_stands_in_a_netrc_replaces_no_key(house: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = house.folder / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    airtable = Airtable(access(house.airtable_server), house.settings.registry())
    answer = await airtable.identify()
    airtable.close()
    assert isinstance(answer, Identified)


# Its size -------------------------------------------------------------------------------------------------------


async def test_an_answer_without_end_is_not_read_to_it(house: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one is read as ever."""
    monkeypatch.setattr(airtable_transport, "LARGEST_ANSWER", 1 << 20)
    larger = b'{"records": [' + b" " * (1 << 20) + b"]}"
    house.airtable_server.faults.add(odd_body(larger, applied=False))
    airtable = Airtable(
        dataclasses.replace(access(house.airtable_server), timeout_seconds=10.0), house.settings.registry()
    )
    answer = await airtable.peek()
    assert isinstance(answer, Unknown)
    assert "more than 1 MiB" in answer.cause
    assert isinstance(await airtable.peek(), Denied)  # there is no such base
    airtable.close()
