"""Whatever answers in Apify's place: it takes no memory, no time and no token, and no start goes elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING

import pytest

from app.apify_client import Apify, ApifyAccess
from app.apify_transport import LARGEST_ANSWER, MOST_VALUES
from app.model import BatchState
from app.policy.harvest import (
    Batch,
    Found,
    LookFailed,
    NoneFound,
    Started,
    StartLost,
    StartPostponed,
    StartRefused,
    Vanished,
)
from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER, RunRequest
from app.sandbox.apify_dispatch import Lose
from app.sandbox.apify_runs import RunOptions
from app.sandbox.apify_server import ApifyServer
from app.sandbox.faults import Fault, Reply
from tests.support.certificates import ANOTHERS, OURS, needs_openssl, tls_before
from tests.support.dripping import dripping
from tests.support.harvesting import RUN, Harvesting, harvesting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from app.model import Json
    from app.sandbox.apify_runs import SandboxRun
    from app.sandbox.faults import Plan
    from app.sandbox.messages import WireRequest


BATCH = Batch(1, "r", 1, BatchState.STARTING, "token", HARVESTER.id, attempted_at="2026-05-16T09:00:00.000Z")
AT = datetime(2026, 5, 16, 9, 2, tzinfo=UTC)
HTML = {"Content-Type": "text/html"}


def answer(status: int, body: bytes = b"", headers: Mapping[str, str] = HTML) -> Fault:
    """Somebody answers, and nothing is done."""
    return Fault(apply=False, then=Reply(status, body, headers))


def kept_in(asked: list[WireRequest], fault: Fault) -> Plan:
    """The same to everything that is asked."""

    def plan(request: WireRequest) -> Fault:
        asked.append(request)
        return fault

    return plan


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Harvesting]:
    async with harvesting(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def asking(
    api_url: str, timeout_seconds: float = 10.0, *, public_url: str = "", webhook_secret: str = ""
) -> AsyncIterator[Apify]:
    apify = Apify(ApifyAccess(TOKEN, api_url, public_url, webhook_secret, timeout_seconds))
    try:
        yield apify
    finally:
        await apify.close()


# Size and time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 400])
@pytest.mark.parametrize(
    ("body", "headers", "cause"),
    [
        (b" " * (LARGEST_ANSWER + 1), {"Content-Type": "application/json"}, "an answer of more than 16 MiB"),
        (b"[%s]" % (b"{}," * MOST_VALUES + b",{}"), {"Content-Type": "application/json"}, "more than 100,000 values"),
        (gzip.compress(b" " * 1_000), {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, "that is packed"),
        (b"x", {"Content-Type": "text/plain", "Content-Encoding": "br, gzip"}, "that is packed"),
    ],
    ids=["too long", "too many", "gzip", "twice"],
)
async def test_an_answer_that_apify_does_not_give_is_not_read_and_tells_nothing(
    status: int, body: bytes, headers: dict[str, str], cause: str
) -> None:
    async with ApifyServer() as server, asking(server.url) as apify:
        asked: list[WireRequest] = []
        server.faults.plan = kept_in(asked, answer(status, body, headers))
        started = await apify.start(BATCH, "{}")
        looks = [await apify.find(BATCH, "{}", (), AT), await apify.follow("x", AT), await apify.measure("x")]
    assert [one.headers["Accept-Encoding"] for one in asked] == ["identity"] * 4  # nor is it asked for again at once
    assert isinstance(started, StartLost)
    for told in (started, *looks):
        assert isinstance(told, StartLost | LookFailed)
        assert cause in told.cause


async def test_an_answer_that_is_not_what_was_asked_for_is_told_in_brief() -> None:
    """And without what it says, which nobody has made readable, and which takes long to write out."""
    async with ApifyServer() as server, asking(server.url) as apify:
        server.faults.add(answer(200, b'{"data": {"id": "said"}}', {"Content-Type": "application/json"}))
        one = await apify.follow("x", AT)
        many = b'{"data": {"items": [%s{}]}}' % (b"{}," * 1_000)
        server.faults.add(answer(200, many, {"Content-Type": "application/json"}))
        other = await apify.find(BATCH, "{}", (), AT)
    assert isinstance(one, LookFailed)
    assert one.cause.endswith("the answer is no RunResponse: data.actId: Field required")
    assert isinstance(other, LookFailed)
    assert other.cause.endswith("the answer is no ListOfRunsResponse")


async def test_a_charset_unpacks_nothing() -> None:
    async with ApifyServer() as server, asking(server.url) as apify:
        error = b'{"error": {"type": "invalid-input", "message": "so it is"}}'
        server.faults.add(answer(400, error, {"Content-Type": "application/json; charset=zlib"}))
        told = await apify.start(BATCH, "{}")
    assert isinstance(told, StartRefused)
    assert told.cause.endswith("invalid-input: so it is")


async def test_an_answer_that_drips_is_hung_up_on() -> None:
    async with dripping() as (url, hung_up), asking(url, timeout_seconds=0.2) as apify, asyncio.timeout(20):
        told = await apify.follow("x", AT)
        assert isinstance(told, LookFailed)
        assert "more than 0.4 s" in told.cause
        await hung_up.wait()
        hung_up.clear()
        assert isinstance(await apify.start(BATCH, "{}"), StartLost)
        await hung_up.wait()


# Elsewhere, and strangers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_says_what_to_check(status: int) -> None:
    async with ApifyServer() as there, ApifyServer() as server, asking(server.url) as apify:
        server.faults.add(answer(status, headers={"Location": f"{there.url}/v2/somewhere"}), times=None)
        started = await apify.start(BATCH, "{}")
        looks = [await apify.find(BATCH, "{}", (), AT), await apify.follow("x", AT), await apify.measure("x")]
        assert len(server.log) == 4
        assert there.log == []
    assert isinstance(started, StartLost)
    for told in (started, *looks):
        assert isinstance(told, StartLost | LookFailed)
        assert f"says {status}" in told.cause
        assert "check [apify] api_url, and any proxy" in told.cause


async def test_a_record_may_be_kept_elsewhere_and_gets_no_token_there() -> None:
    """As Apify documents it of the records of its key-value stores, an input among them."""
    sandbox = ApifySandbox(now=lambda: AT, random=Random(1))  # noqa: S311 - the ids of a sandbox
    async with ApifyServer() as there, ApifyServer(sandbox) as server:
        value: Json = {"a": 1}
        body = b'{"a": 1}'
        run = server.sandbox.start(RunRequest(HARVESTER, body, "application/json", value, RunOptions(), user_agent=""))
        elsewhere = there.url.replace("127.0.0.1", "localhost")
        server.faults.add(answer(302, headers={"Location": f"{elsewhere}/INPUT"}), path_contains="/records/")
        asked: list[WireRequest] = []
        there.faults.plan = kept_in(asked, answer(200, body, {"Content-Type": "application/json"}))
        async with asking(server.url) as apify:
            found = await apify.find(BATCH, body.decode(), (), AT)
    assert isinstance(found, Found)
    assert found.run.id == run.id
    assert [(one.path, "Authorization" in one.headers) for one in asked] == [("/INPUT", False)]


@needs_openssl
@pytest.mark.parametrize(("names", "is_trusted"), [(OURS, False), (ANOTHERS, True)], ids=["unknown", "another's"])
async def test_who_cannot_show_that_he_is_apify_gets_no_token_and_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, *, is_trusted: bool
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    async with ApifyServer() as server, tls_before(server.url, tmp_path, names) as (url, certificate):
        if is_trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with asking(url) as apify:
            told = [await apify.start(BATCH, "{}"), await apify.follow("x", AT), await apify.measure("x")]
    assert server.log == []
    for one in told:
        assert isinstance(one, StartPostponed | LookFailed)
        assert "CERTIFICATE_VERIFY_FAILED" in one.cause


@needs_openssl
async def test_who_is_trusted_gets_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    async with ApifyServer() as server, tls_before(server.url, tmp_path) as (url, certificate):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with asking(url) as apify:
            assert isinstance(await apify.start(BATCH, "{}"), Started)
    assert len(server.log) == 1


STRANGERS = [
    answer(404, b"<html>Not found</html>"),
    answer(400, b"Bad request"),
    answer(401, b"<html>Who are you?</html>"),
    answer(403, b"<html>Blocked</html>"),
    answer(405),
    answer(429, b"<html>Too fast</html>"),
    answer(451, b"<html>Not here</html>"),
    answer(200, b"<html>Sign in to go on</html>"),
    answer(307, headers={"Location": "/v2/acts"}),
    answer(300, b"{}", {"Content-Type": "application/json"}),
    answer(404, b'{"error": "no such route"}', {"Content-Type": "application/json"}),
    answer(404, b'{"error": {"code": 404, "message": "x", "status": "NOT_FOUND"}}'),
    answer(400, b'{"error": {"type": "invalid_request_error", "message": "x"}}'),
    answer(400, b'{"error": {"type": ["a"], "message": "x"}}'),
    answer(403, b'{"error": {"type": "a", "message": null}}'),
]


def name_of(fault: Fault) -> str:
    assert isinstance(fault.then, Reply)
    return f"{fault.then.status} {fault.then.body[:40].decode()}"


@pytest.mark.parametrize("stranger", STRANGERS, ids=name_of)
async def test_only_apify_itself_is_believed_that_a_start_was_not_done(field: Harvesting, stranger: Fault) -> None:
    """Whoever else answers may have let it through."""
    field.apify.faults.add(replace(stranger, apply=True), method="POST", times=None)
    field.apify.webhooks.treat(Lose(), times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.until(lambda: field.batch().cause is not None)
        assert (field.batch().state, field.batch().attempts) == ("unknown", 1)
        assert "check [apify] api_url, and any proxy" in str(field.batch().cause)
        await field.settled()
    assert len(field.starts()) == 1
    assert field.record(RUN)["Status"] == "Completed"
    field.assert_each_started_once(1)


async def test_a_start_that_a_stranger_kept_to_himself_is_sent_again_once_a_look_found_none(field: Harvesting) -> None:
    field.apify.faults.add(STRANGERS[0], method="POST", times=2)
    async with field.running():
        await field.kick_off(["ann"])
        await field.settled()
    first, second, third = (one.received_at for one in field.starts())
    assert min(second - first, third - second) >= 60
    field.assert_each_started_once(1)


@pytest.mark.parametrize("was_done", [True, False], ids=["done", "not done"])
async def test_while_a_stranger_answers_all_nothing_is_started_again(field: Harvesting, *, was_done: bool) -> None:
    stranger = STRANGERS[0]
    field.apify.webhooks.treat(Lose(), times=None)
    post = field.apify.faults.add(replace(stranger, apply=was_done), method="POST", times=None)
    rest = field.apify.faults.add(stranger, times=None)
    async with field.running():
        await field.kick_off(["ann"])
        await field.pass_time(3600)
        assert (field.batch().state, len(field.starts())) == ("unknown", 1)
        assert "could not be listed: what answers there says 404, as Apify does not" in str(field.batch().cause)
        post.left = rest.left = 0
        await field.settled()
    assert len(field.starts()) == (1 if was_done else 2)
    assert field.record(RUN)["Status"] == "Completed"
    field.assert_each_started_once(1)


async def test_a_run_is_not_gone_because_a_stranger_knows_none() -> None:
    async with ApifyServer() as server, asking(server.url) as apify:
        server.faults.add(STRANGERS[0], times=None)
        for told in (await apify.follow("x", AT), await apify.measure("x")):
            assert isinstance(told, LookFailed)
            assert "says 404" in told.cause
        server.faults.clear()
        assert isinstance(await apify.follow("x", AT), Vanished)


# What others started --------------------------------------------------------------------------------------------


def start_by_hand(server: ApifyServer, body: bytes, *, content_type: str = "application/json") -> SandboxRun:
    """Somebody starts the actor from elsewhere: who asked does not tell that it was not us."""
    return server.sandbox.start(RunRequest(HARVESTER, body, content_type, {}, RunOptions(), user_agent="Mozilla/5.0"))


FOREIGN = [
    pytest.param(b'{"urls": [%s"u"]}' % (b'"u",' * 100_001), "application/json", id="many values"),
    pytest.param(b"[" * 5_000 + b"]" * 5_000, "application/json", id="deep"),
    pytest.param(b"{", "application/json", id="no JSON"),
    pytest.param(b'"\xff"', "application/json", id="no characters"),
    pytest.param(b"1" * 5_000, "application/json", id="a long number"),
    pytest.param(b"", "application/json", id="nothing"),
    pytest.param(b"\x00" * 5_000, "application/octet-stream", id="bytes"),
    pytest.param(b" " * (LARGEST_ANSWER + 1), "application/json", id="long"),
]


@pytest.mark.parametrize(("body", "content_type"), FOREIGN)
async def test_what_another_run_was_started_with_stops_no_look(body: bytes, content_type: str) -> None:
    async with ApifyServer(ApifySandbox(now=lambda: AT, random=Random(1))) as server, asking(server.url) as apify:  # noqa: S311
        start_by_hand(server, body, content_type=content_type)
        assert await apify.find(BATCH, '{"a":[1]}', (), AT) == NoneFound(AT)
        ours = start_by_hand(server, b'{ "a": [ 1.0 ] }')  # written anew, it is what it was
        found = await apify.find(BATCH, '{"a":[1]}', (), AT)
    assert isinstance(found, Found)
    assert found.run.id == ours.id


async def test_our_own_input_is_known_again_however_many_values_it_holds() -> None:
    run_input = json.dumps({"urls": ["u"] * (MOST_VALUES + 50_000)}, separators=(",", ":"))
    async with ApifyServer(ApifySandbox(now=lambda: AT, random=Random(1))) as server, asking(server.url) as apify:  # noqa: S311
        ours = start_by_hand(server, json.dumps(json.loads(run_input), indent=1).encode())
        found = await apify.find(BATCH, run_input, (), AT)
    assert isinstance(found, Found)
    assert found.run.id == ours.id


async def test_an_input_too_long_to_be_read_may_be_ours_where_ours_is_long() -> None:
    run_input = json.dumps({"a": "x" * (LARGEST_ANSWER // 4)})
    async with ApifyServer(ApifySandbox(now=lambda: AT, random=Random(1))) as server, asking(server.url) as apify:  # noqa: S311
        start_by_hand(server, b" " * (LARGEST_ANSWER + 1))
        told = await apify.find(BATCH, run_input, (), AT)
    assert isinstance(told, LookFailed)
    assert "an answer of more than 16 MiB" in told.cause


@pytest.mark.parametrize(
    ("stranger", "cause"),
    [(STRANGERS[0], "says 404"), (answer(403, b" " * (LARGEST_ANSWER + 1)), "an answer of more than 16 MiB")],
    ids=["404", "403, long"],
)
async def test_an_input_that_a_stranger_withholds_may_be_ours(stranger: Fault, cause: str) -> None:
    async with ApifyServer(ApifySandbox(now=lambda: AT, random=Random(1))) as server, asking(server.url) as apify:  # noqa: S311
        start_by_hand(server, b'{"a": 1}')
        server.faults.add(stranger, path_contains="/records/")
        told = await apify.find(BATCH, '{"a":1}', (), AT)
    assert isinstance(told, LookFailed)
    assert cause in told.cause


# What is told ---------------------------------------------------------------------------------------------------


SHAPES = pytest.mark.parametrize(
    "shape", [b"%s", b'{"error": {"type": "a", "message": "%s"}}'], ids=["stranger", "Apify"]
)


@SHAPES
async def test_the_webhooks_of_a_start_are_not_told_by_whoever_repeats_its_address(shape: bytes) -> None:
    """They hold the secret that ours are called with, packed as base64: no search for the secret itself finds it."""
    async with (
        ApifyServer() as server,
        asking(server.url, public_url="https://us.example", webhook_secret="secret") as apify,
    ):
        sent: list[str] = []

        def repeat(request: WireRequest) -> Fault:
            sent.append(dict(request.query)["webhooks"])
            return answer(400, shape % f"?webhooks={sent[0]}&x=1".encode())

        server.faults.plan = repeat
        told = await apify.start(BATCH, "{}")
    assert isinstance(told, StartLost | StartRefused)
    assert "[redacted]" in told.cause
    pieces = [sent[0][start : start + 8] for start in range(len(sent[0]) - 7)]
    assert not any(piece in told.cause for piece in pieces)


@SHAPES
async def test_what_looks_like_webhooks_is_not_told_even_where_it_is_cut_off(shape: bytes) -> None:
    """A text is cut before it is looked through, which takes long: no stump of theirs may be left."""
    async with ApifyServer() as server, asking(server.url) as apify:
        for length in range(9_800, 10_000, 10):
            server.faults.add(answer(400, shape % (b"x" * length + b" " + b"c2VjcmV0" * 20 + b" end")))
            told = await apify.start(BATCH, "{}")
            assert isinstance(told, StartLost | StartRefused)
            assert "c2VjcmV0" not in told.cause
