"""Errors as answers (RFC 9457), and the request id that every answer carries."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import capture_logs

from app.errors import MOST_FLAWS, Malformed
from app.web.edge import EdgeLimits
from app.web.problems import problem_answer
from tests.support.harness import Harness, harness
from tests.support.watching import RawAnswer, meddle, raw_request, rows, send_raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness(tmp_path) as house:
        house.sources = replace(house.sources, limits=EdgeLimits(body_seconds=0.05))
        async with house.running():
            yield house


def check_shape(answer: dict[str, Json], status: int, slug: str) -> None:
    assert answer["type"] == f"urn:runrecords:problem:{slug}"
    assert answer["status"] == status
    assert isinstance(answer["title"], str)
    assert isinstance(answer["detail"], str)
    assert isinstance(answer["request_id"], str)


async def test_every_error_has_one_shape(served: Harness) -> None:
    run_id = await served.kick_off()
    await served.synced()
    wrong: list[tuple[str, str, Json | bytes, int, str]] = [
        ("POST", "/runs", b"{", 400, "malformed"),
        ("GET", "/nowhere", None, 404, "not-found"),
        ("GET", "/runs/nobody", None, 404, "not-found"),
        ("GET", f"/runs/{run_id}/fields", None, 404, "not-found"),
        ("POST", "/errors/99/resolve", None, 404, "not-found"),
        ("POST", "/errors/x/resolve", None, 404, "not-found"),
        ("POST", "/outbox/99/retry", None, 404, "not-found"),
        ("POST", f"/outbox/{'9' * 40}/retry", None, 404, "not-found"),
        ("PUT", "/runs", b"{}", 405, "method-not-allowed"),
        ("DELETE", f"/runs/{run_id}", None, 405, "method-not-allowed"),
        ("POST", f"/runs/{run_id}", b"{}", 405, "method-not-allowed"),
        ("POST", "/outbox/1/retry", None, 409, "conflict"),
        ("POST", "/runs", {"client_id": ""}, 422, "invalid"),
        ("GET", "/runs?limit=0", None, 422, "invalid"),
    ]
    for method, path, body, status, slug in wrong:
        answer = await served.call(method, path, body)
        assert answer.status == status, (method, path, answer.text)
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        check_shape(answer.json(), status, slug)
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


async def test_a_method_that_is_not_taken_is_answered_with_those_that_are(served: Harness) -> None:
    answer = await served.call("PUT", "/runs", b"{}")
    assert {name.strip() for name in answer.headers["Allow"].split(",")} >= {"GET", "POST"}


async def test_a_body_with_thousands_of_unknown_members_is_answered_shortly(served: Harness) -> None:
    run_id = await served.kick_off()
    members: dict[str, Json] = {f"fieldz{number}": 1 for number in range(40_000)}
    asked: list[tuple[str, str, Json]] = [
        ("POST", "/runs", {"client_id": "Guy", **members}),
        ("POST", "/runs", {"client_id": "Guy", "batches": [{"input": 1, **members}]}),
        ("PATCH", f"/runs/{run_id}", members),
        ("PATCH", f"/runs/{run_id}", {"set": members}),
        ("PATCH", f"/runs/{run_id}", {"x" * 200_000: 1}),
    ]
    for method, path, body in asked:
        answer = await served.call(method, path, body)
        assert answer.status == 422, answer.text
        errors = answer.json()["errors"]
        assert isinstance(errors, list)
        assert len(errors) <= MOST_FLAWS + 1
        assert len(answer.text) < 10_000


async def test_a_body_just_within_the_limit_is_read(tmp_path: Path) -> None:
    async with harness(tmp_path, server={"max_body_bytes": 2_000}) as house, house.running():
        body = b'{"client_id": "Guy", "job_id": "j"}'
        assert (await house.call("POST", "/runs", body.ljust(2_000))).status == 201
        answer = await house.call("POST", "/runs", body.ljust(2_001))
        assert answer.status == 413
        check_shape(answer.json(), 413, "too-large")


async def test_a_body_that_breaks_on_its_way_is_the_senders_error(served: Harness) -> None:
    assert served.service is not None
    head = raw_request(b"POST", b"/runs").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunked = await send_raw(served.service.url, head + b'5\r\n{"cli\r\nnot a length\r\n')
    assert chunked.status == 400, chunked.body
    check_shape(chunked.json(), 400, "malformed")


async def test_a_body_that_dawdles_is_answered_408(impatient: Harness) -> None:
    assert impatient.service is not None
    request = raw_request(b"POST", b"/runs", b'{"client_id": "Guy"}')
    answer = await send_raw(impatient.service.url, request[:-5])
    assert answer.status == 408
    check_shape(answer.json(), 408, "too-slow")
    assert answer.header("X-Request-ID") == answer.json()["request_id"]
    assert rows(impatient.store_path, "SELECT count(*) FROM runs") == [(0,)]


async def test_a_caller_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours(served: Harness) -> None:
    assert served.service is not None
    host, _, port = served.service.url.removeprefix("http://").rpartition(":")
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw_request(b"POST", b"/runs", b'{"client_id": "Guy"}')[:-5])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(5):
            while not any(entry["event"] in {"http.answered", "http.failed"} for entry in logs):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_an_error_of_ours_shows_no_insides_and_logs_its_context(served: Harness) -> None:
    meddle(served.store_path, "DROP VIEW pending_sync")
    with capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        answer = await served.call("GET", "/outbox", headers={"X-Request-ID": "trace-me-7"})
    assert answer.status == 500
    check_shape(answer.json(), 500, "internal")
    assert "pending_sync" not in answer.text
    assert "sqlite" not in answer.text.lower()
    failure = next(entry for entry in logs if entry["event"] == "http.failed")
    assert (failure["request_id"], failure["path"], failure["method"]) == ("trace-me-7", "/outbox", "GET")
    assert failure["exc_info"]
    assert (await served.call("GET", "/healthz")).status == 200


def test_a_detail_that_is_no_unicode_is_told_all_the_same() -> None:
    """Half of a surrogate pair cannot be written: the answer to a mistake must not fail over it."""
    answer = problem_answer(Malformed("half \ud800 of a pair"), "trace-9")
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body)["detail"] == "half \ud800 of a pair"


async def test_a_store_that_cannot_commit_answers_503_and_keeps_nothing(served: Harness) -> None:
    meddle(served.store_path, "ALTER TABLE idempotency_keys RENAME TO elsewhere")
    answer = await served.call("POST", "/runs", {"client_id": "Guy"}, headers={"Idempotency-Key": "k"})
    assert answer.status == 503
    check_shape(answer.json(), 503, "store-unavailable")
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(0,)]


# Request ids


async def test_a_good_request_id_is_echoed_and_a_bad_one_replaced(served: Harness) -> None:
    for good in ("a", "trace-1.2_3", "x" * 64):
        assert (await served.call("GET", "/runs", headers={"X-Request-ID": good})).headers["X-Request-ID"] == good
    for bad in ("", "x" * 65, "with space", "a;b", "<script>", "é", "a\tb"):
        given = (await served.call("GET", "/runs", headers={"X-Request-ID": bad})).headers["X-Request-ID"]
        assert given != bad
        assert given.isalnum()


async def test_every_answer_has_a_request_id_and_each_its_own(served: Harness) -> None:
    paths = ["/healthz", "/readyz", "/runs", "/nowhere", "/runs/nobody", "/errors?kind=x", "/webhooks/apify"]
    answers = [await served.call("GET", path) for path in paths]
    answers += [await served.call("GET", path, token=None) for path in paths]
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == len(answers)


async def test_a_request_that_http_itself_forbids_is_answered_without_insides(served: Harness) -> None:
    assert served.service is not None
    for request in (b"NONSENSE\r\n\r\n", raw_request(b"GET", b"/runs", x="y" * 20_000), raw_request(b"G ET", b"/runs")):
        answer: RawAnswer = await send_raw(served.service.url, request)
        assert 400 <= answer.status < 500
        assert "Traceback" not in answer.body


async def test_the_log_of_a_request_names_its_route_and_id_and_no_secret(served: Harness) -> None:
    with capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        await served.call("GET", "/runs/nobody?x=1", headers={"X-Request-ID": "trace-8"})
    answered = next(entry for entry in logs if entry["event"] == "http.answered")
    assert (answered["route"], answered["status"], answered["request_id"]) == ("/runs/{run_id}", 422, "trace-8")
    assert "internal-token" not in json.dumps(logs, default=str)
