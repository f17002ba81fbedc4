"""Who may call: tokens, secrets, and what is open, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from app.config import Secrets
from app.errors import ConfigError
from app.sandbox.hand_clock import HandClock
from app.service import running
from app.web.contract import OPERATIONS
from app.web.health import STORE_CHECK_SECONDS
from app.web.operation import Access
from tests.support.harness import INTERNAL_TOKEN, WEBHOOK_SECRET, Harness, harness, sample
from tests.support.watching import raw_request, rows, send_raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.config import ServerSettings


@pytest.fixture
async def tokenless(house: Harness) -> AsyncIterator[Harness]:
    house.secrets = replace(house.secrets, internal_tokens=(), webhook_secrets=())
    async with house.running():
        yield house


GUARDED = [
    (one.method, one.path.replace("{run_id}", "x").replace("{id}", "1"))
    for one in OPERATIONS
    if one.access is not Access.OPEN
]


async def test_every_guarded_call_refuses_a_missing_and_a_wrong_token(served: Harness) -> None:
    assert len(GUARDED) == len(OPERATIONS) - 4, "open are /healthz, /readyz, /openapi.json and /docs"
    other = {"/webhooks/apify": INTERNAL_TOKEN}
    for method, path in GUARDED:
        right = WEBHOOK_SECRET if path.startswith("/webhooks") else INTERNAL_TOKEN
        wrong = ["", "wrong", right[:-1], right + "x", right.upper(), "é" * 9, other.get(path, WEBHOOK_SECRET)]
        for token in [None, *wrong]:
            answer = await served.call(method, path, token=token)
            assert answer.status == 401, (method, path, token)
            assert answer.json()["type"] == "urn:runrecords:problem:unauthorized"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await served.call(method, path, token=right)).status != 401


async def test_a_token_by_another_scheme_is_none(served: Harness) -> None:
    for header in (f"Basic {INTERNAL_TOKEN}", INTERNAL_TOKEN, f"Bearer{INTERNAL_TOKEN}", f"Token {INTERNAL_TOKEN}", ""):
        answer = await served.call("GET", "/runs", token=None, headers={"Authorization": header})
        assert answer.status == 401, header
    for header in (f"bearer {INTERNAL_TOKEN}", f"Bearer  {INTERNAL_TOKEN} "):
        answer = await served.call("GET", "/runs", token=None, headers={"Authorization": header})
        assert answer.status == 200, header


async def test_a_guarded_call_refuses_before_it_looks_at_the_body(served: Harness) -> None:
    answer = await served.call("POST", "/runs", b"x" * 500_000, token="wrong")
    assert answer.status == 401
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(0,)]


async def test_either_of_two_tokens_is_good_while_one_is_rotated(house: Harness) -> None:
    house.secrets = replace(house.secrets, internal_tokens=("new-one", "old-one"), webhook_secrets=("n", "o"))
    async with house.running():
        internal = [(await house.call("GET", "/runs", token=token)).status for token in ("new-one", "old-one", "n", "")]
        body = sample("apify-webhook-test.json")
        webhook = [
            (await house.call("POST", "/webhooks/apify", body, token=token)).status for token in ("n", "o", "old-one")
        ]
    assert internal == [200, 200, 401, 401]
    assert webhook == [200, 200, 401]


async def test_no_secret_is_taken_from_a_url(served: Harness) -> None:
    assert served.service is not None
    for query in (f"?token={INTERNAL_TOKEN}", f"?secret={WEBHOOK_SECRET}", f"?authorization=Bearer%20{INTERNAL_TOKEN}"):
        assert (await served.call("GET", "/runs" + query, token=None)).status == 401
        answer = await served.call("POST", "/webhooks/apify" + query, sample("apify-webhook-test.json"), token=None)
        assert answer.status == 401
    by_user = served.service.url.replace("http://", f"http://:{INTERNAL_TOKEN}@")
    assert served.http is not None
    async with served.http.get(by_user + "/runs") as answered:
        assert answered.status == 401


async def test_health_is_open(served: Harness) -> None:
    for path in ("/healthz", "/readyz"):
        assert (await served.call("GET", path, token=None)).status == 200


async def test_who_asks_for_readiness_cannot_make_the_store_commit_at_will(tmp_path: Path) -> None:
    """It proves itself by a commit, and asks for no token: once a second, however many ask."""
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house, house.running():
        with contextlib.closing(sqlite3.connect(house.store_path)) as connection:

            def commits() -> int:
                """Another number whenever somebody else has committed."""
                version: int = connection.execute("PRAGMA data_version").fetchone()[0]
                return version

            seen = {commits()}
            for _ in range(3):
                clock.pass_time(STORE_CHECK_SECONDS)
                for _ in range(3):
                    answers = await asyncio.gather(*(house.call("GET", "/readyz", token=None) for _ in range(5)))
                    assert [answer.status for answer in answers] == [200] * 5
                    seen.add(commits())
            assert len(seen) == 1 + 3


async def test_every_token_is_compared_in_constant_time(house: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tokens each time, whichever matches: what is measured must not tell which one was close."""
    compared: list[tuple[object, object]] = []
    real = hmac.compare_digest

    def watched(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    house.secrets = replace(house.secrets, internal_tokens=("new-one", "old-one"))
    async with house.running():
        for token in ("new-one", "old-one", "neither"):
            compared.clear()
            await house.call("GET", "/runs", token=token)
            assert compared == [(token.encode(), b"new-one"), (token.encode(), b"old-one")]


# Without tokens, on loopback


async def test_without_tokens_this_machine_may_call_by_its_own_names(tokenless: Harness) -> None:
    assert tokenless.service is not None
    port = tokenless.service.url.rpartition(":")[2]
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", f"127.0.0.1:{port}", "[::1]", f"[::1]:{port}"):
        answer = await send_raw(tokenless.service.url, raw_request(b"GET", b"/runs", host=host, authorization=""))
        assert answer.status == 200, host


async def test_without_tokens_a_foreign_host_is_refused(tokenless: Harness) -> None:
    """A page's own name can be pointed at this machine (DNS rebinding): then the browser sends that name."""
    assert tokenless.service is not None
    hosts = (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "a b",
        "@",
        "[",
        "localhost:x",
        "localhost:99999",
        "localhost\u2100",
    )
    for host in hosts:
        for request in (
            raw_request(b"GET", b"/runs", host=host, authorization=""),
            raw_request(b"POST", b"/webhooks/apify", sample("apify-webhook-succeeded.json"), host=host),
        ):
            answer = await send_raw(tokenless.service.url, request)
            assert answer.status in {400, 403}, (host, answer.body)
    assert rows(tokenless.store_path, "SELECT count(*) FROM webhook_events") == [(0,)]


async def test_without_tokens_a_web_page_cannot_change_anything(tokenless: Harness) -> None:
    """A browser sends such a POST across origins without asking first, and says in `Origin` for whom."""
    assert tokenless.service is not None
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1@evil.example"):
        for path, body, kind in (
            (b"/webhooks/apify", sample("apify-webhook-succeeded.json"), "text/plain"),
            (b"/outbox/retry", b"", "text/plain"),
            (b"/runs", b'{"client_id": "Guy"}', "application/json"),
        ):
            request = raw_request(b"POST", path, body, origin=origin, content_type=kind, authorization="")
            answer = await send_raw(tokenless.service.url, request)
            assert answer.status == 403, (origin, path, answer.body)
    for table in ("webhook_events", "runs"):
        assert rows(tokenless.store_path, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_a_web_form_cannot_say_json(served: Harness) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = await served.call("POST", "/runs", b'{"client_id": "Guy"}', headers={"Content-Type": kind})
        assert answer.status == 415
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert (await served.call("POST", "/runs", b'{"client_id": "Guy"}', headers=charset)).status == 201


def with_server(house: Harness, server: ServerSettings) -> None:
    house.settings = house.settings.model_copy(update={"server": server})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])  # noqa: S104 - it must refuse
@pytest.mark.parametrize(
    ("secrets", "named"),
    [
        (Secrets("k", "", ("w",), ()), ["INTERNAL_API_TOKEN"]),
        (Secrets("k", "", (), ("i",)), ["APIFY_WEBHOOK_SECRET"]),
        (Secrets("k", "", (), ()), ["INTERNAL_API_TOKEN", "APIFY_WEBHOOK_SECRET"]),
    ],
)
async def test_it_refuses_to_listen_beyond_this_machine_without_tokens(
    house: Harness, host: str, secrets: Secrets, named: list[str]
) -> None:
    with_server(house, house.settings.server.model_copy(update={"host": host}))
    with pytest.raises(ConfigError) as refusal:
        async with running(house.settings, secrets):
            pass
    assert all(name in str(refusal.value) for name in named)
    assert not house.store_path.exists()


async def test_a_port_that_is_taken_is_a_configuration_error_that_says_so(served: Harness) -> None:
    assert served.service is not None
    port = int(served.service.url.rpartition(":")[2])
    settings = served.settings.model_copy(
        update={
            "server": served.settings.server.model_copy(update={"port": port}),
            "store": served.settings.store.model_copy(update={"path": str(served.folder / "other.db")}),
        }
    )
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}"):
        async with running(settings, served.secrets):
            pass
