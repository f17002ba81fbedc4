"""The whole service against the sandbox over real sockets, with short waits: what most tests start from."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from app.clock import SystemClock
from app.config import (
    AirtableSettings,
    ApifySettings,
    ConsistencySettings,
    RetentionSettings,
    Secrets,
    ServerSettings,
    Settings,
    StoreSettings,
    SyncSettings,
)
from app.sandbox.airtable import AirtableSandbox
from app.sandbox.airtable_schema import Ids, schema_from_columns
from app.sandbox.apify_account import HARVESTER
from app.sandbox.wire import WireServer
from app.service import Service, Sources, running
from tests.support.stores import put_empty_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from app.clock import Clock
    from app.model import Json

SAMPLES = Path(__file__).parent.parent / "samples"
AIRTABLE_KEY = "patSandboxOnly"
INTERNAL_TOKEN = "internal-token-of-the-tests"
WEBHOOK_SECRET = "webhook-secret-of-the-tests"


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def table_columns() -> dict[str, Json]:
    columns: dict[str, Json] = json.loads(sample("client-run-results-columns.json"))["columns"]
    return columns


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> dict[str, Json]:
        answer: dict[str, Json] = json.loads(self.text)
        return answer


@dataclass
class Harness:
    """Start and stop the service as often as a test likes: the store's file and the sandbox stay."""

    folder: Path
    airtable: AirtableSandbox
    airtable_server: WireServer
    settings: Settings
    secrets: Secrets
    sources: Sources = field(default_factory=Sources)
    service: Service | None = None
    http: aiohttp.ClientSession | None = None

    @property
    def store_path(self) -> Path:
        return Path(self.settings.store.path)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        put_empty_store(self.store_path)
        async with running(self.settings, self.secrets, self.sources) as service, aiohttp.ClientSession() as http:
            self.service, self.http = service, http
            try:
                yield service
            finally:
                self.service = self.http = None

    async def call(
        self,
        method: str,
        path: str,
        body: Json | bytes = None,
        *,
        token: str | None = INTERNAL_TOKEN,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        assert self.http is not None
        assert self.service is not None
        sent = dict(headers or {})
        if token is not None:
            sent.setdefault("Authorization", f"Bearer {token}")
        data: bytes | None = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        async with self.http.request(method, self.service.url + path, data=data, headers=sent) as answer:
            return Answered(answer.status, dict(answer.headers), await answer.text())

    async def kick_off(self, client_id: str = "Guy-Wilson", job_id: str = "251007-070457", **more: Json) -> str:
        answer = await self.call("POST", "/runs", {"client_id": client_id, "job_id": job_id, **more})
        assert answer.status == 201, answer.text
        return f"{job_id}-{client_id}"

    async def webhook(self, body: bytes, *, query: str = "", dispatch_id: str | None = None) -> Answered:
        headers = {"X-Apify-Webhook-Dispatch-Id": dispatch_id} if dispatch_id else {}
        return await self.call("POST", f"/webhooks/apify{query}", body, token=WEBHOOK_SECRET, headers=headers)

    async def synced(self) -> None:
        """Wait until nothing waits any more."""
        assert self.service is not None
        async with asyncio.timeout(30):
            await self.service.sync.until_idle()

    def records(self) -> dict[str, dict[str, Json]]:
        """The table in Airtable by run id; a run with two records is a failure here and now."""
        found: dict[str, dict[str, Json]] = {}
        for record in self.airtable.records():
            run_id = str(record.fields["Run ID"])
            assert run_id not in found, f"two records for {run_id}"
            found[run_id] = dict(record.fields)
        return found


def make_settings(folder: Path, airtable_url: str, base_id: str, **sections: Mapping[str, Json]) -> Settings:
    """Settings for a test: loopback, any port, short waits; `sections` override keys of theirs."""
    defaults: dict[str, dict[str, Json]] = {
        "server": {"host": "127.0.0.1", "port": 0},
        "store": {"path": str(folder / "runs.db")},
        "airtable": {"endpoint_url": airtable_url, "base_id": base_id, "timeout_seconds": 1.0},
        "apify": {"actor_id": HARVESTER.id},
        "sync": {"backoff_base_seconds": 0.05, "backoff_max_seconds": 0.2, "shutdown_seconds": 5.0},
        "consistency": {"interval_seconds": 0, "grace_seconds": 0},
        "retention": {"delivered_days": 0, "idempotency_days": 0},
    }
    merged = {name: {**values, **sections.get(name, {})} for name, values in defaults.items()}
    return Settings(
        server=ServerSettings.model_validate(merged["server"]),
        store=StoreSettings.model_validate(merged["store"]),
        airtable=AirtableSettings.model_validate(merged["airtable"]),
        apify=ApifySettings.model_validate(merged["apify"]),
        sync=SyncSettings.model_validate(merged["sync"]),
        consistency=ConsistencySettings.model_validate(merged["consistency"]),
        retention=RetentionSettings.model_validate(merged["retention"]),
    )


def make_secrets() -> Secrets:
    return Secrets(AIRTABLE_KEY, "", (WEBHOOK_SECRET,), (INTERNAL_TOKEN,))


def environment_for(airtable: AirtableSandbox, server: WireServer) -> dict[str, str]:
    """What a service in a process of its own is told: the secrets, and a base that takes many requests a second."""
    return {
        "AIRTABLE_API_KEY": AIRTABLE_KEY,
        "APIFY_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "INTERNAL_API_TOKEN": INTERNAL_TOKEN,
        "RUNRECORDS_AIRTABLE__ENDPOINT_URL": server.url,
        "RUNRECORDS_AIRTABLE__BASE_ID": airtable.schema.base_id,
        "RUNRECORDS_AIRTABLE__REQUESTS_PER_SECOND": "50",
    }


class QuickClock:
    """Time that runs some times as fast as it does, for the service and the sandbox alike: what waits waits shorter.

    What the clients wait for at a socket is real time.
    """

    def __init__(self, times: float) -> None:
        self._times = times
        self._began = time.monotonic()
        self._began_at = datetime.now(UTC)

    def now(self) -> datetime:
        return self._began_at + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return (time.monotonic() - self._began) * self._times

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._times)


def make_airtable(clock: Clock, seed: int = 1) -> AirtableSandbox:
    ids = Ids(random.Random(seed))  # noqa: S311 - the same ids in every run
    schema = schema_from_columns("Client Run Results", table_columns(), ids)
    return AirtableSandbox(schema, token=AIRTABLE_KEY, ids=ids, now=clock.now, clock=clock.monotonic)


@contextlib.asynccontextmanager
async def harness(
    folder: Path, *, clock: Clock | None = None, **sections: Mapping[str, Json]
) -> AsyncIterator[Harness]:
    """A service and its sandbox, not started yet; `clock` is the time of both: real, quick, or moved by hand.

    It does not look at the schema, so that a test can count every request; `watch_schema` of its sources turns that on.
    """
    at = clock or SystemClock()
    airtable = make_airtable(at)
    async with WireServer(airtable, clock=at.monotonic, sleep=at.sleep) as server:
        settings = make_settings(folder, server.url, airtable.schema.base_id, **sections)
        yield Harness(folder, airtable, server, settings, make_secrets(), Sources(clock=at, watch_schema=False))
