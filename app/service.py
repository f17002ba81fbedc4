"""The composition root: settings in, a running service out. `serve`, `demo` and the tests all start it here."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets as randomness
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from app.airtable import Airtable, AirtableAccess
from app.clock import Clock, SystemClock
from app.config import check_destination, check_exposure
from app.errors import ConfigError
from app.intake import Intake
from app.logs import get_logger
from app.store.sqlite.store import open_store
from app.sync import SyncLoop, SyncRules
from app.web.application import make_application
from app.web.guard import Bearer
from app.web.handlers import Calls
from app.web.health import Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.config import Secrets, Settings
    from app.store.protocol import Store

log = get_logger(__name__)


def new_id() -> str:
    return uuid.uuid4().hex


def new_token() -> str:
    return randomness.token_urlsafe(16)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where time, ids and chance come from; tests bring their own."""

    clock: Clock = field(default_factory=SystemClock)
    new_id: Callable[[], str] = new_id
    new_token: Callable[[], str] = new_token
    random: random.Random = field(default_factory=random.SystemRandom)


class Service:
    """A running service: where it listens, its store and its loops."""

    def __init__(self, url: str, store: Store, sync: SyncLoop, loops: list[asyncio.Task[None]]) -> None:
        self.url = url
        self.store = store
        self.sync = sync
        self._loops = loops

    async def until_a_loop_ends(self) -> None:
        """Return or raise when one of the loops does: none of them should before the service stops."""
        done, _ = await asyncio.wait(self._loops, return_when=asyncio.FIRST_COMPLETED)
        for loop in done:
            loop.result()


@contextlib.asynccontextmanager
async def running(settings: Settings, secrets: Secrets, sources: Sources | None = None) -> AsyncIterator[Service]:
    """The service, accepting and syncing for as long as the block runs; then it stops in good order.

    Raises:
        ConfigError: it would be exposed without tokens, has nowhere to deliver to, or cannot listen.
        StoreError: the store cannot be opened.
    """
    check_exposure(settings, secrets)
    check_destination(settings, secrets)
    sources = sources or Sources()
    async with contextlib.AsyncExitStack() as stack:
        registry = settings.registry()
        store = await stack.enter_async_context(
            open_store(
                Path(settings.store.path),
                at=sources.clock.now(),
                linger_seconds=settings.airtable.linger_seconds,
                run_fields=list(registry),
                harvest=settings.harvest_rules(),
            )
        )
        access = AirtableAccess(
            api_key=secrets.airtable_api_key,
            endpoint_url=settings.airtable.endpoint_url,
            base_id=settings.airtable.base_id,
            table=settings.airtable.table,
            timeout_seconds=settings.airtable.timeout_seconds,
        )
        airtable = Airtable(access, registry)
        stack.callback(airtable.close)
        rules = SyncRules(
            requests_per_second=settings.airtable.requests_per_second,
            retry=settings.retry_rules(),
            pauses=settings.pause_rules(),
            shutdown_seconds=settings.sync.shutdown_seconds,
        )
        sync = SyncLoop(store, airtable, sources.clock, sources.random, rules)
        await sync.recover()
        loop = asyncio.create_task(sync.run(), name="sync-loop")
        stack.push_async_callback(_stop_loop, sync, loop)
        intake = Intake(
            store,
            registry,
            sources.clock,
            new_token=sources.new_token,
            actor_id=settings.apify.actor_id,
            on_work=sync.wake,
        )
        url = await stack.enter_async_context(_listening(settings, secrets, sources, store, sync, intake))
        log.info("service.started", url=url, store=settings.store.path, base=settings.airtable.base_id)
        yield Service(url, store, sync, [loop])
        log.info("service.stopping")
    log.info("service.stopped")


async def _stop_loop(sync: SyncLoop, loop: asyncio.Task[None]) -> None:
    sync.stop()
    await asyncio.wait([loop])


@contextlib.asynccontextmanager
async def _listening(
    settings: Settings, secrets: Secrets, sources: Sources, store: Store, sync: SyncLoop, intake: Intake
) -> AsyncIterator[str]:
    """The HTTP side; on the way out it takes no more connections and lets requests that began come to their end."""
    stopping = asyncio.Event()
    calls = Calls(
        intake,
        store,
        store,
        sources.clock,
        internal=Bearer(secrets.internal_tokens, "INTERNAL_API_TOKEN"),
        webhook=Bearer(secrets.webhook_secrets, "APIFY_WEBHOOK_SECRET"),
        on_work=sync.wake,
    )
    health = Health(store.check, lambda: sync.trouble, stopping.is_set)
    application = make_application(calls, health, new_id=sources.new_id, max_body_bytes=settings.server.max_body_bytes)
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=settings.sync.shutdown_seconds, handle_signals=False
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.server.host, settings.server.port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.server.host}:{settings.server.port} ({error.strerror or error}): is "
                "another process there? Choose another [server] port"
            ) from error
        yield _url_of(runner)
    finally:
        stopping.set()
        await runner.cleanup()


def _url_of(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
