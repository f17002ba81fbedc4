"""POST /webhooks/apify over a real socket: every sample, doubles, strangers and garbage."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import WEBHOOK_SECRET, Harness, harness, sample
from tests.support.watching import raw_request, rows, send_raw

if TYPE_CHECKING:
    from pathlib import Path

    from app.model import Json


RUN_ID = "251007-070457-Guy-Wilson"
NAMED = f"?run={RUN_ID}"
MINIMAL, SUCCEEDED = "apify-webhook-minimal-template.json", "apify-webhook-succeeded.json"
TIMED_OUT, TEST = "apify-webhook-timed-out-no-stats.json", "apify-webhook-test.json"


def event(event_type: str, apify_run: str = "HG7ML7M8z78YcAPEB", **resource: Json) -> bytes:
    return json.dumps(
        {
            "eventType": event_type,
            "createdAt": "2025-10-07T07:31:12.000Z",
            "eventData": {"actorRunId": apify_run},
            "resource": {"id": apify_run, **resource},
        }
    ).encode()


@pytest.mark.parametrize(
    ("name", "query", "status"),
    [(MINIMAL, "", "SUCCEEDED"), (SUCCEEDED, NAMED, "SUCCEEDED"), (TIMED_OUT, NAMED, "TIMED-OUT")],
)
async def test_each_sample_that_names_its_run_reaches_its_record(
    served: Harness, name: str, query: str, status: str
) -> None:
    await served.kick_off()
    answer = await served.webhook(sample(name), query=query)
    assert (answer.status, answer.json()["outcome"], answer.json()["run_id"]) == (200, "queued", RUN_ID)
    assert rows(served.store_path, "SELECT outcome, body FROM webhook_events") == [("queued", sample(name).decode())]
    await served.synced()
    record = served.records()[RUN_ID]
    assert record["Apify Status"] == status
    assert record["Apify Run ID"] == json.loads(sample(name))["resource"]["id"]
    assert "Last Webhook" in record


async def test_the_same_dispatch_again_is_a_duplicate(served: Harness) -> None:
    await served.kick_off()
    answers = [await served.webhook(sample(MINIMAL), dispatch_id="d1") for _ in range(3)]
    assert [answer.json()["outcome"] for answer in answers] == ["queued", "duplicate", "duplicate"]
    assert rows(served.store_path, "SELECT deliveries FROM webhook_events") == [(3,)]
    assert rows(served.store_path, "SELECT count(*) FROM outbox WHERE source = 'harvest'") == [(1,)]


async def test_one_event_by_two_dispatches_is_applied_once(served: Harness) -> None:
    await served.kick_off()
    answers = [await served.webhook(sample(MINIMAL), dispatch_id=dispatch) for dispatch in ("d1", "d2")]
    assert [answer.json()["outcome"] for answer in answers] == ["queued", "duplicate"]
    assert rows(served.store_path, "SELECT count(*) FROM outbox WHERE source = 'harvest'") == [(1,)]


async def test_many_deliveries_of_one_event_at_once_are_applied_once(served: Harness) -> None:
    await served.kick_off()
    answers = await asyncio.gather(*(served.webhook(sample(MINIMAL), dispatch_id=f"d{n % 4}") for n in range(20)))
    outcomes = sorted(str(answer.json()["outcome"]) for answer in answers)
    assert outcomes == ["duplicate"] * 19 + ["queued"]
    assert rows(served.store_path, "SELECT count(*) FROM outbox WHERE source = 'harvest'") == [(1,)]


async def test_a_webhook_that_names_no_run_is_held_as_unmatched(served: Harness) -> None:
    await served.kick_off()
    answer = await served.webhook(sample(SUCCEEDED), dispatch_id="d1")
    error = answer.json()["error"]
    assert isinstance(error, dict)
    assert (answer.status, answer.json()["outcome"], error["kind"]) == (200, "held", "unmatched_webhook")
    assert rows(served.store_path, "SELECT kind, state FROM errors") == [("unmatched_webhook", "open")]
    assert rows(served.store_path, "SELECT outcome FROM webhook_events") == [("held",)]


async def test_a_webhook_of_a_run_that_nobody_kicked_off_waits_for_its_kickoff(served: Harness) -> None:
    answer = await served.webhook(sample(MINIMAL))
    error = answer.json()["error"]
    assert isinstance(error, dict)
    assert (answer.json()["outcome"], error["kind"]) == ("held", "missing_record")
    await served.synced()
    assert served.records() == {}
    await served.kick_off()
    await served.synced()
    assert served.records()[RUN_ID]["Apify Status"] == "SUCCEEDED"
    assert rows(served.store_path, "SELECT state, resolution FROM errors") == [("resolved", "created_late")]


async def test_what_named_no_run_follows_the_run_that_another_webhook_of_its_apify_run_named(served: Harness) -> None:
    """The one waits for its batch, the other for its run: with the kickoff comes the run, and with that the batch."""
    ended = event("ACTOR.RUN.FAILED", status="FAILED", finishedAt="2025-10-07T07:30:00.000Z")
    assert (await served.webhook(ended, dispatch_id="d1")).json()["outcome"] == "held"
    begun = await served.webhook(event("ACTOR.RUN.CREATED", status="RUNNING"), query=NAMED, dispatch_id="d2")
    assert begun.json()["outcome"] == "held"
    await served.kick_off()
    await served.synced()
    assert served.records()[RUN_ID]["Apify Status"] == "FAILED"
    assert rows(served.store_path, "SELECT state, resolution FROM errors ORDER BY id") == [
        ("resolved", "matched"),
        ("resolved", "created_late"),
    ]


async def test_many_webhooks_that_waited_for_a_kickoff_change_its_run_once(served: Harness) -> None:
    ended = {"status": "FAILED", "statusMessage": "blocked", "finishedAt": "2025-10-07T07:30:00.000Z"}
    for number in range(20):
        await served.webhook(event("ACTOR.RUN.FAILED", f"a{number}", **ended), query=NAMED)
        await served.webhook(event("ACTOR.RUN.CREATED", f"a{number}", status="READY"), query=NAMED)
    await served.kick_off()
    await served.synced()
    record = served.records()[RUN_ID]
    assert str(record["Apify Run ID"]).split(", ") == [f"a{number}" for number in range(20)]
    assert [f"Batch {n + 1} (Apify run a{n}) failed: blocked" for n in range(20)] == str(record["Error Details"]).split(
        "\n"
    )
    assert rows(served.store_path, "SELECT count(*) FROM outbox WHERE source = 'harvest'") == [(1,)]


@pytest.mark.parametrize("kicked_off", ["before", "after"])
async def test_a_failure_that_a_resurrection_mended_is_told_whenever_the_kickoff_comes(
    served: Harness, kicked_off: str
) -> None:
    """And the run's figures and status are those of its last end."""
    if kicked_off == "before":
        await served.kick_off()
    at = "2025-10-07T07:{}:00.000Z"
    for event_type, more in (
        ("FAILED", {"status": "FAILED", "statusMessage": "blocked", "finishedAt": at.format(30)}),
        ("RESURRECTED", {"status": "RUNNING"}),
        ("SUCCEEDED", {"status": "SUCCEEDED", "finishedAt": at.format(50)}),
    ):
        await served.webhook(event(f"ACTOR.RUN.{event_type}", "a1", **more), query=NAMED)
    if kicked_off == "after":
        await served.kick_off()
    await served.synced()
    record = served.records()[RUN_ID]
    assert record["Apify Status"] == "SUCCEEDED"
    assert record["Error Details"] == "Batch 1 (Apify run a1) failed: blocked"


async def test_a_test_dispatch_and_events_of_builds_are_ignored(served: Harness) -> None:
    await served.kick_off()
    for body in (sample(TEST), event("ACTOR.BUILD.SUCCEEDED"), event("SOMETHING.NEW"), b'{"eventType": "X"}'):
        answer = await served.webhook(body)
        assert (answer.status, answer.json()["outcome"]) == (200, "ignored"), body
    assert rows(served.store_path, "SELECT count(*) FROM errors") == [(0,)]
    assert rows(served.store_path, "SELECT count(*) FROM batches") == [(0,)]


async def test_a_late_event_takes_no_end_back(served: Harness) -> None:
    await served.kick_off()
    await served.webhook(sample(TIMED_OUT), query=NAMED)
    late = event("ACTOR.RUN.CREATED", status="RUNNING")
    answer = await served.webhook(late, query=NAMED)
    assert answer.json()["outcome"] == "ignored"
    await served.synced()
    assert served.records()[RUN_ID]["Apify Status"] == "TIMED-OUT"


async def test_an_end_before_its_beginning_counts(served: Harness) -> None:
    await served.kick_off()
    for event_type, status in (("ACTOR.RUN.SUCCEEDED", "RUNNING"), ("ACTOR.RUN.CREATED", "READY")):
        await served.webhook(event(event_type, status=status), query=NAMED)
    await served.synced()
    assert served.records()[RUN_ID]["Apify Status"] == "SUCCEEDED"


GARBAGE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"5",
    b'"TEST"',
    b"\xff\xfe",
    b"[" * 100_000,
    b"{}",
    b'{"eventType": null}',
    b'{"eventType": ""}',
    b'{"eventType": 7}',
    b'{"eventType": "ACTOR.RUN.SUCCEEDED"}',
    b'{"eventType": "ACTOR.RUN.SUCCEEDED", "resource": []}',
    b'{"eventType": "ACTOR.RUN.SUCCEEDED", "resource": {"id": ""}}',
    b'{"eventType": "ACTOR.RUN.SUCCEEDED", "resource": {"id": "a b"}}',
    b'{"eventType": "ACTOR.RUN.SUCCEEDED", "resource": {"id": "a"}, "createdAt": "yesterday"}',
    b'{"eventType": "ACTOR.RUN.SUCCEEDED", "resource": {"id": "a", "finishedAt": "9999-99-99"}}',
    b'{"eventType": "ACTOR.RUN.SUCCEEDED", "resource": {"id": "a"}, "jobRunId": "../../x", "clientId": "y"}',
    b"eventType=ACTOR.RUN.SUCCEEDED",
]


async def test_garbage_is_400_and_leaves_nothing_behind(served: Harness) -> None:
    for body in GARBAGE:
        answer = await served.webhook(body)
        assert (answer.status, answer.json()["type"]) == (400, "urn:runrecords:problem:malformed"), body[:80]
    for table in ("webhook_events", "errors", "batches"):
        assert rows(served.store_path, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_what_no_url_or_header_of_ours_holds_is_refused_and_never_an_error_of_ours(served: Harness) -> None:
    assert served.service is not None
    bearer = f"Bearer {WEBHOOK_SECRET}"
    body = sample(SUCCEEDED)
    for request in (
        raw_request(b"POST", b"/webhooks/apify?run=a/b", body, authorization=bearer),
        raw_request(b"POST", b"/webhooks/apify?run=%ED%A0%80", body, authorization=bearer),
        raw_request(b"POST", b"/webhooks/apify?run=" + b"x" * 500, body, authorization=bearer),
        raw_request(
            b"POST", b"/webhooks/apify", body, authorization=bearer, x_apify_webhook_dispatch_id="\udcff\udcfe"
        ),
        raw_request(b"POST", b"/webhooks/apify", body, authorization=bearer, x_apify_webhook_dispatch_id="x" * 500),
    ):
        answer = await send_raw(served.service.url, request)
        assert answer.status == 400, (request[:120], answer.body)
    assert rows(served.store_path, "SELECT count(*) FROM webhook_events") == [(0,)]


async def test_a_batch_token_that_is_none_of_ours_is_held_not_guessed(served: Harness) -> None:
    await served.kick_off()
    for token in ("nobody", "%ED%A0%80", "x" * 2_000):
        body = event("ACTOR.RUN.SUCCEEDED", apify_run=f"run{len(token)}")
        answer = await served.webhook(body, query=f"{NAMED}&batch={token}")
        assert answer.status in {200, 400}, answer.text
        assert answer.json().get("outcome") in {"held", None}
    assert rows(served.store_path, "SELECT count(*) FROM batches") == [(0,)]


async def test_too_large_a_webhook_is_413(tmp_path: Path) -> None:
    async with harness(tmp_path, server={"max_body_bytes": 2_000}) as house, house.running():
        answer = await house.webhook(event("ACTOR.RUN.SUCCEEDED", status="x" * 2_000))
        assert (answer.status, answer.json()["type"]) == (413, "urn:runrecords:problem:too-large")
        assert rows(house.store_path, "SELECT count(*) FROM webhook_events") == [(0,)]


async def test_any_content_type_will_do(served: Harness) -> None:
    """A headers template may say something else, and Apify has the secret in any case."""
    headers = {"Content-Type": "text/plain", "Authorization": f"Bearer {WEBHOOK_SECRET}"}
    answer = await served.call("POST", "/webhooks/apify", sample(TEST), token=None, headers=headers)
    assert answer.status == 200


async def test_what_was_answered_200_is_in_the_file_at_that_moment(served: Harness) -> None:
    await served.kick_off()
    for number in range(10):
        await served.webhook(
            event("ACTOR.RUN.SUCCEEDED", apify_run=f"run{number}"), query=NAMED, dispatch_id=f"d{number}"
        )
        kept = rows(served.store_path, "SELECT outcome FROM webhook_events WHERE dispatch_id = ?", f"d{number}")
        assert kept == [("queued",)]
