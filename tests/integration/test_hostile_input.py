"""Values and ids made to break things: refused with a clear 4xx, or in Airtable's cell exactly as they were sent."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from app.airtable import Airtable, AirtableAccess
from app.policy.asking import Listed
from app.sandbox.airtable_limits import NO_LIMITS
from tests.support.harness import AIRTABLE_KEY, WEBHOOK_SECRET
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.model import Json
    from tests.support.harness import Harness

RUN = "251007-070457-Guy-Wilson"
PATH = f"/runs/{RUN}"

#: Texts that mean something to somebody on their way: a shell, SQL, a formula, JSON, HTML, a terminal, a template.
TEXTS = [
    "'",
    '"',
    "\\",
    "''",
    '\\"',
    "'); DROP TABLE runs; --",
    "' OR '1'='1",
    '" OR ""="',
    "=1+1",
    '=HYPERLINK("http://evil.example","x")',
    "{Run ID}='x'",
    "OR(TRUE(), {Run ID}='",
    "',TRUE(),'",
    '"; {Run ID}="',
    "%s %(name)s {0} {name} ${jndi:ldap://x} {{7*7}} $(id) `id`",
    "<script>alert(1)</script>",
    "</textarea>&amp;&lt;",
    "null",
    '{"set": {"status": "Failed"}}',
    "\x00",
    "a\x00b",
    "".join(map(chr, range(32))),
    "\x7f\x80\x85\x9f",
    "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\u202eexe.txt\u202c \u2066x\u2069 \u200f\u061c",
    "\u200b\u200d\ufeff\u00ad",
    "\u2028\u2029",
    "e\u0301 \u00e9 \u212b \ufb01",
    "😀 👩‍👩‍👧 \U0010ffff \ufffe \uffff",
    "0" * 1_000,
    "1e400",
    "  leading and trailing  ",
    "\t\n",
    "",
    "x" * 100_000,
    "😀" * 20_000,
]


@pytest.fixture
async def served(quick_house: Harness) -> AsyncIterator[Harness]:
    quick_house.airtable.limits = NO_LIMITS
    async with quick_house.running():
        yield quick_house


async def test_a_text_of_whatever_characters_is_in_its_cell_exactly(served: Harness) -> None:
    chance = random.Random(5)  # noqa: S311 - the same texts in every run
    texts = [*TEXTS, *("".join(chr(_character(chance)) for _ in range(chance.randrange(1, 60))) for _ in range(100))]
    for place, text in enumerate(texts):
        kickoff: dict[str, Json] = {"client_id": f"c{place}", "job_id": "j", "client_name": text}
        created = await served.call("POST", "/runs", {**kickoff, "fields": {"system_notes": ["first", text]}})
        assert created.status == 201, (text[:40], created.text[:200])
        update: dict[str, Json] = {"set": {"apify_run_ids": text}, "append": {"progress_log": text}}
        updated = await served.call("PATCH", f"/runs/j-c{place}", update)
        assert updated.status == 202, (text[:40], updated.text[:200])
    await served.synced()
    records = served.records()
    for place, text in enumerate(texts):
        record = records[f"j-c{place}"]
        for column in ("Client Name", "Apify Run ID", "Progress Log"):
            assert record.get(column, "") == text, (column, text[:40])  # Airtable leaves empty cells out
        assert record["System Notes"] == f"first\n{text}"[-100_000:]
        shown = (await served.call("GET", f"/runs/j-c{place}")).json()
        assert shown["client_name"] == text
    assert rows(served.store_path, "SELECT count(*) FROM errors") == [(0,)]
    assert rows(served.store_path, "PRAGMA integrity_check") == [("ok",)]


def _character(chance: random.Random) -> int:
    number = chance.randrange(chance.choice((0x80, 0x800, 0xD800, 0x110000)))
    return number if not 0xD800 <= number < 0xE000 else 0xFFFD


async def test_what_no_cell_can_hold_is_refused_and_leaves_nothing(served: Harness) -> None:
    await served.kick_off()
    megabyte = b'"' + b"x" * 1_000_000 + b'"'
    deep = b"[" * 10_000 + b"]" * 10_000
    deep_object = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
    values = [
        rb'"\ud83d"', rb'"\ude00\ud83d"', rb'"a\udfff"', b'"\xed\xa0\x80"', b'"\xff"', megabyte,
        b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1" * 5_000, b"0x10", b"01", b"+1", b".5", b"'x'",
        b"[" * 100 + b"]" * 100, deep, deep_object, b"{}", b"true",
    ]  # fmt: skip
    before = rows(served.store_path, "SELECT count(*), max(id) FROM outbox")
    for value in values:
        for part, name in (("set", "client_name"), ("set", "apify_api_costs"), ("append", "progress_log")):
            if (part, name, value) == ("append", "progress_log", b"[]"):
                continue
            answer = await served.call("PATCH", PATH, b'{"%s": {"%s": %s}}' % (part.encode(), name.encode(), value))
            assert answer.status in {400, 422}, (part, name, value[:40], answer.text[:200])
            assert len(answer.text) < 20_000
        for body in (
            b'{"client_id": %s}' % value,
            b'{"client_id": "Ann", "fields": {"apify_status": %s}}' % value,
            b'{"client_id": "Ann", "batches": [{"input": 1, "profiles": %s}]}' % value,
            b'{"client_id": "Ann", "batches": %s}' % value,
            value,
        ):
            answer = await served.call("POST", "/runs", body)
            assert answer.status in {400, 422}, (body[:80], answer.text[:200])
    assert rows(served.store_path, "SELECT count(*), max(id) FROM outbox") == before
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(1,)]


async def test_an_input_of_a_batch_is_kept_as_it_was_or_refused_however_deep(served: Harness) -> None:
    for levels in (1, 50, 100, 150, 199, 200, 201, 500, 1_000, 10_000):
        value = b"[" * levels + b"]" * levels
        body = b'{"client_id": "deep", "job_id": "d%d", "batches": [{"input": %s}]}' % (levels, value)
        answer = await served.call("POST", "/runs", body)
        assert answer.status in {201, 400, 422}, (levels, answer.text[:200])
        assert (answer.status == 201) is (levels <= 150) or 150 < levels <= 200, levels
        if answer.status == 201:
            kept = rows(served.store_path, "SELECT input FROM batches WHERE run_id = ?", f"d{levels}-deep")
            assert kept == [(value.decode(),)]


async def test_of_a_doubled_member_the_last_counts_everywhere(served: Harness) -> None:
    """RFC 8259 leaves it open; what is answered, stored and delivered has to be one and the same."""
    await served.call("POST", "/runs", b'{"client_id": "no", "client_id": "Guy-Wilson", "job_id": "251007-070457"}')
    body = b'{"set": {"status": "Failed"}, "set": {"posts_harvested": 1, "posts_harvested": 7}}'
    assert (await served.call("PATCH", PATH, body)).status == 202
    await served.synced()
    fields = (await served.call("GET", PATH)).json()["fields"]
    assert isinstance(fields, dict)
    assert (fields["posts_harvested"], fields["status"]) == (7, "Running")
    record = served.records()[RUN]
    assert (record["Total Posts Harvested"], record["Status"]) == (7, "Running")


async def test_what_a_webhook_says_is_in_its_cell_exactly_or_refused(served: Harness) -> None:
    taken: dict[str, str] = {}
    for place, text in enumerate(TEXTS):
        run_id = await served.kick_off(f"c{place}")
        resource = {"id": f"run{place}", "status": text, "statusMessage": text}
        body = json.dumps({"eventType": "ACTOR.RUN.CREATED", "resource": resource}).encode()
        answer = await served.webhook(body, query=f"?run={run_id}")
        assert answer.status == (200 if 0 < len(text) <= 100 else 400), (text[:40], answer.text)
        if answer.status == 200:
            taken[run_id] = text
    await served.synced()
    records = served.records()
    assert {run_id: records[run_id]["Apify Status"] for run_id in taken} == taken


# Injection ------------------------------------------------------------------------------------------------------

#: Ids that an id may be, made of what means something in a formula.
SLY = ["O'Brien", "a'+'b", "a'-'b", "x'''y", "a'.'b", "a'@'b", "1'+1", "TRUE", "a'+RECORD_ID+'b", "_'_"]


async def test_a_run_id_that_reads_like_a_formula_finds_its_own_record_and_no_other(served: Harness) -> None:
    """The look for a missing run: no id adopts another's record, nor all of them."""
    decoys = ["ab", "a", "b", "O", "Brien", "x", "1", "TRUE()", "O'Brien", "251007-O", ""]
    for decoy in decoys:
        served.airtable.insert({"Run ID": decoy, "Client ID": "decoy"})
    own: dict[str, str] = {}
    for place, sly in enumerate(SLY):
        run_id = f"251007-{sly}"
        if place % 2:
            own[run_id] = served.airtable.insert({"Run ID": run_id, "Client ID": sly}).id
        answer = await served.call("PATCH", f"/runs/{quote(run_id, safe='')}", {"add": {"posts_harvested": 1}})
        assert answer.json()["outcome"] == "held", answer.text
    unseen = "SELECT count(*) FROM errors WHERE looks = 0 AND state = 'open'"
    await until(lambda: rows(served.store_path, unseen) == [(0,)])
    await until(lambda: rows(served.store_path, "SELECT count(*) FROM runs") == [(len(own),)])
    await served.synced()
    adopted = rows(served.store_path, "SELECT run_id, airtable_record_id FROM runs")
    assert sorted(adopted) == sorted(own.items())
    for record in served.airtable.records():
        if record.fields.get("Client ID") == "decoy":
            assert "Total Posts Harvested" not in record.fields, record.fields


async def test_a_text_that_closes_the_formula_it_stands_in_finds_nothing_else(served: Harness) -> None:
    """Past the check of ids, straight to the formula: quoting alone has to hold."""
    for name in ("a", "b", "x"):
        served.airtable.insert({"Run ID": name})
    access = AirtableAccess(
        AIRTABLE_KEY, served.airtable_server.url, served.airtable.schema.base_id, "Client Run Results", 1.0
    )
    airtable = Airtable(access, served.settings.registry())
    try:
        for text in TEXTS:
            if 0 < len(text) < 2_000 and "\x00" not in text:
                found = await airtable.find([text])
                assert isinstance(found, Listed), (text, found)
                assert found.records == (), text
        assert len((await _listed(airtable, ["a", "' , TRUE(), '"])).records) == 1
    finally:
        airtable.close()


async def _listed(airtable: Airtable, run_ids: list[str]) -> Listed:
    found = await airtable.find(run_ids)
    assert isinstance(found, Listed)
    return found


async def test_no_parameter_or_id_reaches_the_store_as_sql(served: Harness) -> None:
    await served.kick_off()
    await served.call("PATCH", "/runs/251007-070457-Ann", {"add": {"posts_harvested": 1}})
    sly = ["' OR '1'='1", "x' UNION SELECT 1--", "1; DROP TABLE runs", '") OR 1=1 --', "%", "_", "*", "NULL", "\\'"]
    for text in sly:
        for path, name in (
            ("/runs?client_id=", "runs"),
            ("/runs?job_id=", "runs"),
            ("/runs?status=", "runs"),
            ("/errors?run_id=", "errors"),
            ("/errors?client_id=", "errors"),
            ("/outbox?run_id=", "messages"),
        ):
            answer = await served.call("GET", path + quote(text))
            assert answer.json()[name] == [], (path, text)
        assert (await served.call("POST", "/outbox/retry", {"run_id": text})).json() == {"retried": 0}
        assert (await served.call("POST", f"/outbox/{quote(text, safe='')}/retry")).status == 404
        body = json.dumps({"eventType": "ACTOR.RUN.SUCCEEDED", "resource": {"id": "r1"}}).encode()
        webhook = await served.call(
            "POST", f"/webhooks/apify?batch={quote(text)}", body, token=WEBHOOK_SECRET,
            headers={"X-Apify-Webhook-Dispatch-Id": text},
        )  # fmt: skip
        assert webhook.status == 200
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(1,)]
    assert rows(served.store_path, "PRAGMA integrity_check") == [("ok",)]
