"""A whole run with failures, by a real process; then every secret is looked for wherever something was written.

Both sides repeat the keys in their errors, callers use wrong and right tokens in right and wrong places.
"""

from __future__ import annotations

import base64
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import aiohttp

from app.clock import SystemClock
from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER
from app.sandbox.apify_server import ApifyServer
from app.sandbox.wire import WireServer, applied_then_dropped, odd_body
from app.web.contract import OPERATIONS
from tests.support.harness import AIRTABLE_KEY, make_airtable, sample
from tests.support.process import command, free_port, served
from tests.support.watching import meddle, raw_request, rows, send_raw, until

if TYPE_CHECKING:
    from collections.abc import Mapping

INTERNAL, OLD_INTERNAL = "internal-Zq8vTz0p", "old-internal-Lw3nBx7k"
WEBHOOK, OLD_WEBHOOK = "webhook-Rk5mYc2d", "old-webhook-Hs9gJf4a"
SECRETS = (AIRTABLE_KEY, TOKEN, INTERNAL, OLD_INTERNAL, WEBHOOK, OLD_WEBHOOK)
RUN = "251007-070457-Guy-Wilson"


@dataclass
class Seen:
    """Everything that was written anywhere, by where."""

    places: dict[str, bytes] = field(default_factory=dict)

    def add(self, place: str, what: bytes | str) -> None:
        self.places[place] = self.places.get(place, b"") + (what.encode() if isinstance(what, str) else what)

    def files(self, folder: Path) -> None:
        for file in folder.rglob("*"):
            if file.is_file():
                self.add(f"file {file.name}", file.read_bytes())

    def judge(self) -> None:
        found = [
            (place, secret)
            for place, what in self.places.items()
            for secret in SECRETS
            for form in (secret.encode(), base64.b64encode(secret.encode())[:-4], quote(secret).encode())
            if form in what
        ]
        assert found == []


@dataclass
class Caller:
    url: str
    http: aiohttp.ClientSession
    seen: Seen

    async def ask(self, method: str, path: str, token: str | None, **more: object) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.http.request(
            method,
            self.url + path,
            headers=headers,
            allow_redirects=False,
            **more,  # type: ignore[arg-type]
        ) as answer:
            self.seen.add(f"{method} {path.partition('?')[0]}", str(answer.headers) + await answer.text())
            return answer.status


async def test_no_secret_is_written_anywhere_in_a_run_where_everything_fails_once(tmp_path: Path) -> None:
    seen, clock, port = Seen(), SystemClock(), free_port()
    airtable = make_airtable(clock)
    apify_sandbox = ApifySandbox(now=clock.now, random=random.Random(7))  # noqa: S311 - ids of a sandbox
    async with WireServer(airtable) as wire, ApifyServer(apify_sandbox) as apify:
        key, token = AIRTABLE_KEY.encode(), TOKEN.encode()
        for status in (401, 500, 429, 422):
            wire.faults.add(odd_body(b'{"error": {"type": "T", "message": "no: %s"}}' % key, status=status))
        wire.faults.add(odd_body(b"<p>Bearer %s</p>" % key))
        wire.faults.add(applied_then_dropped())
        for status in (401, 500, 400):
            apify.faults.add(odd_body(b'{"error": {"type": "t", "message": "no: %s"}}' % token, status=status))
        environment: Mapping[str, str] = {
            "AIRTABLE_API_KEY": AIRTABLE_KEY,
            "APIFY_TOKEN": TOKEN,
            "APIFY_WEBHOOK_SECRET": f"{WEBHOOK},{OLD_WEBHOOK}",
            "INTERNAL_API_TOKEN": f"{INTERNAL},{OLD_INTERNAL}",
            "RUNRECORDS_AIRTABLE__ENDPOINT_URL": wire.url,
            "RUNRECORDS_AIRTABLE__BASE_ID": airtable.schema.base_id,
            "RUNRECORDS_AIRTABLE__TIMEOUT_SECONDS": "1",
            "RUNRECORDS_APIFY__API_URL": apify.url,
            "RUNRECORDS_APIFY__ACTOR_ID": HARVESTER.id,
            "RUNRECORDS_APIFY__POLL_INTERVAL_SECONDS": "0.1",
            "RUNRECORDS_SYNC__BACKOFF_BASE_SECONDS": "0.05",
            "RUNRECORDS_SYNC__RATE_LIMIT_PAUSE_SECONDS": "0.1",
        }
        store = tmp_path / "runs.db"
        async with served(tmp_path, words=("serve",), port=port, **environment) as service:
            seen.add("process list", Path(f"/proc/{service.process.pid}/cmdline").read_bytes())
            caller = Caller(service.url, service.http, seen)
            await use(caller)
            calls = "SELECT count(*) FROM airtable_calls WHERE outcome <> 'ok'"
            await until(lambda: rows(store, calls)[0][0] >= 4, timeout=40)  # type: ignore[operator]
            await until(lambda: apify.faults.pending == 0, timeout=40)
            await look(caller)
            for words in (("status",), ("errors", "list"), ("outbox", "list"), ("runs", "show", RUN), ("doctor",)):
                ended = await command(tmp_path, *words, port=port, **environment)
                seen.add(f"command {words}", ended.out + ended.err)
            seen.files(tmp_path)  # while it runs: the write-ahead log is there
            assert any(place.endswith("-wal") for place in seen.places)
            meddle(store, "DROP VIEW run_timeline")  # an error of ours is logged with its path, whatever stands in that
            assert await caller.ask("GET", f"/runs/{INTERNAL}", INTERNAL) == 500
            assert await service.end(signal.SIGTERM) == 0
            seen.add("log", "".join(service.lines))
        seen.files(tmp_path)
    assert b"[redacted]" in seen.places["file runs.db"]  # the keys were repeated, and kept without
    assert seen.places["log"].count(b"\n") > 30
    assert b'"path": "/runs/[redacted]"' in seen.places["log"]
    seen.judge()


async def use(caller: Caller) -> None:
    """Kickoffs, updates and webhooks, with right and wrong tokens, in right and wrong places."""
    kickoff = {
        "client_id": "Guy-Wilson",
        "job_id": "251007-070457",
        "batches": [{"input": {"profiles": ["a"]}}, {"input": {"profiles": ["b"]}}],
    }
    assert await caller.ask("POST", "/runs", INTERNAL, json=kickoff) == 201
    update = {"add": {"posts_scored": 1}}
    for token, status in ((OLD_INTERNAL, 202), (WEBHOOK, 401), (INTERNAL + "x", 401), (None, 401)):
        assert await caller.ask("PATCH", f"/runs/{RUN}", token, json=update) == status
    assert await caller.ask("PATCH", "/runs/251007-070457-Nobody", INTERNAL, json=update) == 202
    body = sample("apify-webhook-succeeded.json")
    for token, status in ((WEBHOOK, 200), (OLD_WEBHOOK, 200), (INTERNAL, 401), (WEBHOOK[:-1], 401)):
        assert await caller.ask("POST", "/webhooks/apify", token, data=body) == status
    for query in (f"?token={INTERNAL}", f"?secret={WEBHOOK}"):
        assert await caller.ask("POST", f"/webhooks/apify{query}", None, data=body) == 401
        assert await caller.ask("GET", f"/runs{query}", INTERNAL) == 422
        assert await caller.ask("GET", f"/nowhere/{INTERNAL}{query}", INTERNAL) == 404
    for request in (
        raw_request(b"GET", b"/runs", authorization=f"Bearer {INTERNAL}\x00"),
        raw_request(b"GET", b"/runs", authorization=f"Bearer {INTERNAL} " + "x" * 20_000),
        raw_request(b"GET", f"/runs?{INTERNAL}".encode() + b"y" * 20_000),
        f"{INTERNAL}\r\n\r\n".encode(),
    ):
        answer = await send_raw(caller.url, request)
        assert answer.status == 400
        caller.seen.add("what is no HTTP", answer.head + answer.body)


async def look(caller: Caller) -> None:
    """Every call that only looks, and the page behind its sign-in."""
    for operation in OPERATIONS:
        if operation.method == "GET":
            for path in {operation.path.replace("{run_id}", RUN), operation.path.replace("{run_id}", "x")}:
                await caller.ask("GET", path, INTERNAL)
    await caller.ask("POST", "/check", INTERNAL)
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": caller.url}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        for token in (f"{INTERNAL}x", INTERNAL):
            data = urlencode({"token": token, "name": "Ana", "next": "/"})
            async with http.post(
                f"{caller.url}/page/sign-in", data=data, headers=form, allow_redirects=False
            ) as answer:
                caller.seen.add("sign-in", str(answer.headers) + await answer.text())
        for path in ("/", "/page/runs", f"/page/runs/{RUN}", "/page/errors", "/page/outbox", "/page/check"):
            async with http.get(caller.url + path, allow_redirects=False) as answer:
                assert answer.status == 200, path
                caller.seen.add(f"page {path}", str(answer.headers) + await answer.text())
