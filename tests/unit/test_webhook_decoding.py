"""What is no webhook is `Malformed`, whatever bytes they are; what is one says what Apify said."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.apify import DISPATCH_HEADER, decode_webhook
from app.errors import Malformed
from tests.support.examples import examples
from tests.support.harness import sample

if TYPE_CHECKING:
    from app.model import Json
    from app.store.protocol import WebhookEvent

NOW = datetime(2026, 5, 16, 9, 30, tzinfo=UTC)

json_values: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
words = st.sampled_from(
    [
        *(
            f"ACTOR.RUN.{end}"
            for end in ("CREATED", "SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT", "RESURRECTED", "NEW", "")
        ),
        "ACTOR.BUILD.FAILED",
        "TEST",
        "2026-05-16T09:20:00.000Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "HG7ML7M8z78YcAPEB",
        "251007-070457",
        "Guy-Wilson",
        "SUCCEEDED",
    ]
)
RESOURCE = ("id", "actId", "status", "statusMessage", "startedAt", "finishedAt", "defaultDatasetId", "more")
resources = st.fixed_dictionaries({}, optional=dict.fromkeys(RESOURCE, words | json_values))
#: Nearly a webhook: the right names, with values that are right, wrong or missing.
payloads = st.fixed_dictionaries(
    {"eventType": words | json_values},
    optional={
        "createdAt": words | json_values,
        "eventData": st.fixed_dictionaries({}, optional={"actorRunId": words | json_values, "actorId": words})
        | json_values,
        "resource": resources | json_values,
        "jobRunId": words | json_values,
        "clientId": words | json_values,
        "userId": json_values,
    },
)
headers = st.dictionaries(st.just(DISPATCH_HEADER), st.text(max_size=250), max_size=1)
queries = st.dictionaries(st.sampled_from(["run", "batch", "other"]), st.text(max_size=250) | words, max_size=3)


def decoded(body: bytes, heads: dict[str, str], query: dict[str, str]) -> WebhookEvent | None:
    """The event, or None where it was refused; any other exception is the failure of a test."""
    try:
        return decode_webhook(body, heads, query, received_at=NOW)
    except Malformed:
        return None


@given(body=st.binary(max_size=200), heads=headers, query=queries)
@example(body=b"[" * 100_000, heads={}, query={})
@example(body=b"9" * 10_000, heads={}, query={})
@example(body=b'{"eventType": ' + b'"' + b"x" * 10_000 + b'"}', heads={}, query={})
@example(body=b"\xef\xbb\xbf{}", heads={}, query={})
@settings(max_examples=examples(150), deadline=None)
def test_any_bytes_give_an_event_or_malformed(body: bytes, heads: dict[str, str], query: dict[str, str]) -> None:
    decoded(body, heads, query)


@given(value=json_values, heads=headers, query=queries)
@settings(max_examples=examples(200), deadline=None)
def test_any_json_gives_an_event_or_malformed(value: Json, heads: dict[str, str], query: dict[str, str]) -> None:
    decoded(json.dumps(value).encode(), heads, query)


@given(payload=payloads, heads=headers, query=queries)
@settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_anything_like_a_webhook_gives_a_storable_event_or_malformed(
    payload: dict[str, Json], heads: dict[str, str], query: dict[str, str]
) -> None:
    event = decoded(json.dumps(payload).encode(), heads, query)
    if event is None:
        return
    for text in (event.event, event.body, event.dispatch_id, event.event_key, event.run_id):
        assert text is None or text.encode() is not None  # it can be written as UTF-8
    if event.report is not None:
        assert event.report.run.id
        assert event.event_key is not None
        for time in (event.report.at, event.report.run.started_at, event.report.run.finished_at):
            assert time is None or (len(time), time[-1]) == (24, "Z")


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (rb"half \ud83d of a pair", "half \ufffd of a pair"),
        (rb"\ude00\uD83D", "\ufffd\ufffd"),
        (rb"\ud83d\ud83d\uDE00", "\ufffd\U0001f600"),
        (rb"\\ud83d \\\ud83d \n", "\\ud83d \\\ufffd \n"),
    ],
)
def test_half_of_a_surrogate_pair_in_what_an_actor_says_is_replaced(said: bytes, heard: str) -> None:
    body = b'{"eventType": "ACTOR.RUN.FAILED", "resource": {"id": "a", "statusMessage": "%s"}}' % said
    event = decode_webhook(body, {}, {}, received_at=NOW)
    assert event.report is not None
    assert event.report.run.status_message == heard


def test_the_sample_of_the_documentation_is_read_whole() -> None:
    event = decode_webhook(sample("apify-webhook-succeeded.json"), {DISPATCH_HEADER: "d1"}, {}, received_at=NOW)
    assert event.report is not None
    assert (event.event, event.dispatch_id, event.run_id) == ("ACTOR.RUN.SUCCEEDED", "d1", None)
    run = event.report.run
    assert (run.id, run.status, run.actor_id) == ("uPBN9qaKd2iLs5naZ", "SUCCEEDED", "fW4MyDhgwtMLrB987")
    assert (run.started_at, run.finished_at) == ("2019-01-09T15:59:40.750Z", "2019-01-09T15:59:56.408Z")
    assert run.dataset_id == "wmKPijuyDnPZAPRMk"


def test_the_template_of_the_process_names_its_run_by_job_and_client() -> None:
    event = decode_webhook(sample("apify-webhook-minimal-template.json"), {}, {}, received_at=NOW)
    assert event.run_id == "251007-070457-Guy-Wilson"


@pytest.mark.parametrize("job_run_id", ["251007-070457", "251007-070457-Guy-Wilson"])
def test_a_template_that_gives_the_whole_run_id_doubles_no_suffix(job_run_id: str) -> None:
    payload = json.loads(sample("apify-webhook-minimal-template.json")) | {"jobRunId": job_run_id}
    event = decode_webhook(json.dumps(payload).encode(), {}, {}, received_at=NOW)
    assert event.run_id == "251007-070457-Guy-Wilson"


def test_the_run_in_the_url_wins_over_that_of_the_body() -> None:
    body = sample("apify-webhook-minimal-template.json")
    assert decode_webhook(body, {}, {"run": "a-b", "batch": "t"}, received_at=NOW).run_id == "a-b"
    assert decode_webhook(body, {}, {"run": "a-b", "batch": "t"}, received_at=NOW).batch_token == "t"


def test_an_end_is_an_end_whatever_snapshot_came_with_it() -> None:
    body = json.dumps({"eventType": "ACTOR.RUN.TIMED_OUT", "resource": {"id": "r", "status": "RUNNING"}}).encode()
    event = decode_webhook(body, {}, {}, received_at=NOW)
    assert event.report is not None
    assert event.report.run.status == "TIMED-OUT"


def test_two_ends_of_one_resurrected_run_are_two_events() -> None:
    keys = set()
    for finished in ("2026-05-16T09:20:00.000Z", "2026-05-16T09:20:00+00:00", "2026-05-16T10:20:00.000Z"):
        resource = {"id": "r", "finishedAt": finished}
        body = json.dumps({"eventType": "ACTOR.RUN.SUCCEEDED", "resource": resource}).encode()
        keys.add(decode_webhook(body, {}, {}, received_at=NOW).event_key)
    assert len(keys) == 2
