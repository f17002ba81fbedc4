"""The composition root: settings in, a running service out. `serve`, `demo` and the tests all start it here."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets as randomness
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from aiohttp import web

from app.airtable import Airtable, AirtableAccess
from app.clock import Clock, SystemClock
from app.config import check_destination, check_exposure
from app.consistency import CheckRules, ConsistencyCheck
from app.errors import ConfigError
from app.intake import Intake
from app.logs import get_logger
from app.lookups import LookupLoop
from app.meters import Meters
from app.pruning import Pruning, RetentionRules
from app.schema_watch import SchemaWatch
from app.store.sqlite.opening import open_store
from app.sync import DESCRIBE, SyncLoop, SyncRules
from app.web.application import make_application
from app.web.edge import Edge, EdgeLimits
from app.web.guard import Bearer
from app.web.handlers import Calls
from app.web.health import Health
from app.web.metrics import LoopState, Metrics
from app.web.page import Page
from app.web.session import Sessions
from app.web.verdict import Standing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from app.config import Secrets, Settings
    from app.harvest import HarvestLoop
    from app.store.protocol import Store
    from app.store.views import CheckReport

log = get_logger(__name__)

#: A request that has arrived is answered within moments; one whose body has not arrived by then is not waited for.
HTTP_SHUTDOWN_SECONDS: Final = 3.0


#: Ids of requests guard nothing; to ask the system for each would let another thread in between.
_ids: Final = random.Random()  # noqa: S311


def new_id() -> str:
    return f"{_ids.getrandbits(128):032x}"


def new_token() -> str:
    return randomness.token_urlsafe(16)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where time, ids and chance come from, and what the HTTP edge lets in; tests bring their own.

    Tests that count every request do without the look at the schema.
    """

    clock: Clock = field(default_factory=SystemClock)
    new_id: Callable[[], str] = new_id
    new_token: Callable[[], str] = new_token
    random: random.Random = field(default_factory=random.SystemRandom)
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    watch_schema: bool = True


class Watch(Protocol):
    async def run(self) -> None: ...


class Loop(Watch, Protocol):
    def stop(self) -> None: ...


class Service:
    """A running service: where it listens, its store and its loops. `harvest` is missing without an Apify token."""

    def __init__(
        self,
        url: str,
        store: Store,
        sync: SyncLoop,
        lookups: LookupLoop,
        schema: SchemaWatch,
        consistency: ConsistencyCheck,
        pruning: Pruning,
    ) -> None:
        self.url = url
        self.store = store
        self.sync = sync
        self.lookups = lookups
        self.schema = schema
        self.consistency = consistency
        self.pruning = pruning
        self.harvest: HarvestLoop | None = None
        self.stopping = False
        self.loops: list[asyncio.Task[None]] = []

    def wake(self) -> None:
        """Something was accepted: the loops look at once."""
        self.sync.wake()
        if self.harvest is not None:
            self.harvest.wake()

    def wake_for_replay(self) -> None:
        """A person asked for messages to be sent again: the records of some may have to be found first."""
        self.wake()
        self.lookups.look_again()

    def stop(self) -> None:
        """Begin nothing new. Everything that is under way has the same time from now to come to its end."""
        self.stopping = True
        self.consistency.stop()
        self.pruning.stop()
        self.sync.stop()
        if self.harvest is not None:
            self.harvest.stop()

    async def until_a_loop_ends(self) -> None:
        """Return or raise when one of the loops does: none of them should before the service stops."""
        done, _ = await asyncio.wait(self.loops, return_when=asyncio.FIRST_COMPLETED)
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
        store = await stack.enter_async_context(
            open_store(
                Path(settings.store.path),
                at=sources.clock.now(),
                linger_seconds=settings.airtable.linger_seconds,
                run_fields=list(settings.fields),
                rules=settings.harvest_rules(),
            )
        )
        await store.bind_base(settings.airtable.base_id, sources.clock.now())
        airtable = Airtable(_airtable_access(settings, secrets), settings.registry())
        stack.callback(airtable.close)
        meters = Meters()
        sync = SyncLoop(
            store,
            airtable,
            sources.clock,
            sources.random,
            _sync_rules(settings),
            meters,
            on_refused=lambda cause: schema.suspect(cause),  # noqa: PLW0108 - it comes to be below
        )
        listener = stack.enter_context(_bind(settings))
        lookups = LookupLoop(store, sync, airtable, settings.registry(), sources.clock)
        schema = _schema_watch(settings, sources, sync, airtable)
        consistency = _consistency_check(settings, sources, store, sync, airtable)
        pruning = Pruning(store, sources.clock, retention_rules(settings))
        service = Service(_url_of(listener), store, sync, lookups, schema, consistency, pruning)
        await sync.recover()
        await stack.enter_async_context(_looping(sync, service))
        await stack.enter_async_context(_watching(lookups, service))
        await stack.enter_async_context(_watching(consistency, service))
        await stack.enter_async_context(_watching(pruning, service))
        if sources.watch_schema:
            await stack.enter_async_context(_watching(schema, service))
        if secrets.apify_token:
            await asyncio.to_thread(import_module, "app.harvesting")  # it takes a while, and delivering goes on
            from app.harvesting import harvest_loop  # noqa: PLC0415

            harvest = harvest_loop(settings, secrets, service.url, store, sources.clock, on_work=service.wake)
            service.harvest = await stack.enter_async_context(harvest)
            await stack.enter_async_context(_looping(service.harvest, service))
        else:
            log.warning("harvest.off", reason="APIFY_TOKEN is not set: batches wait until it is")
        await stack.enter_async_context(_serving(settings, secrets, sources, service, listener, meters))
        log.info("service.started", url=service.url, store=settings.store.path, base=settings.airtable.base_id)
        try:
            yield service
        finally:
            log.info("service.stopping")
            service.stop()
    log.info("service.stopped")


@contextlib.asynccontextmanager
async def _looping(loop: Loop, service: Service) -> AsyncIterator[None]:
    task = asyncio.create_task(loop.run(), name=type(loop).__name__)
    service.loops.append(task)
    try:
        yield
    finally:
        loop.stop()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def _watching(loop: Watch, service: Service) -> AsyncIterator[None]:
    """A loop that only asks: it has nothing to bring to an end, and is cancelled."""
    task = asyncio.create_task(loop.run(), name=type(loop).__name__)
    service.loops.append(task)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _airtable_access(settings: Settings, secrets: Secrets) -> AirtableAccess:
    return AirtableAccess(
        api_key=secrets.airtable_api_key,
        endpoint_url=settings.airtable.endpoint_url,
        base_id=settings.airtable.base_id,
        table=settings.airtable.table,
        timeout_seconds=settings.airtable.timeout_seconds,
    )


def _sync_rules(settings: Settings) -> SyncRules:
    return SyncRules(
        requests_per_second=settings.airtable.requests_per_second,
        retry=settings.retry_rules(),
        pauses=settings.pause_rules(),
        shutdown_seconds=settings.sync.shutdown_seconds,
        monthly_call_budget=settings.airtable.monthly_call_budget,
    )


def retention_rules(settings: Settings) -> RetentionRules:
    return RetentionRules.of_days(settings.retention.delivered_days, settings.retention.idempotency_days)


def _schema_watch(settings: Settings, sources: Sources, sync: SyncLoop, airtable: Airtable) -> SchemaWatch:
    return SchemaWatch(
        lambda first: sync.ask(DESCRIBE, airtable.describe, before_work=first),
        settings.registry(),
        settings.airtable.table,
        sources.clock,
    )


def _consistency_check(
    settings: Settings, sources: Sources, store: Store, sync: SyncLoop, airtable: Airtable
) -> ConsistencyCheck:
    rules = CheckRules(
        interval=timedelta(seconds=settings.consistency.interval_seconds),
        window=timedelta(days=settings.consistency.window_days),
        grace=timedelta(seconds=settings.consistency.grace_seconds),
        retry=settings.retry_rules(),
    )
    return ConsistencyCheck(store, sync, airtable, settings.registry(), sources.clock, sources.random, rules)


async def check_once(settings: Settings, secrets: Secrets, store: Store, *, repair: bool) -> CheckReport:
    """A consistency check where no service runs. What waits in the store is delivered first, and repairs after it.

    Raises:
        ConfigError: there is no base to ask.
        StoreError: the store belongs to another base.
    """
    check_destination(settings, secrets)
    sources = Sources()
    await store.bind_base(settings.airtable.base_id, sources.clock.now())
    airtable = Airtable(_airtable_access(settings, secrets), settings.registry())
    sync = SyncLoop(store, airtable, sources.clock, sources.random, _sync_rules(settings), Meters())
    await sync.recover()
    delivering = asyncio.create_task(sync.run())
    consistency = _consistency_check(settings, sources, store, sync, airtable)
    checking = asyncio.create_task(consistency.check(repair=repair))
    try:
        await asyncio.wait([delivering, checking], return_when=asyncio.FIRST_COMPLETED)
        if delivering.done():
            delivering.result()
        report = await checking
        if report.repaired:
            with contextlib.suppress(TimeoutError):  # then they wait for the service
                async with asyncio.timeout(settings.sync.shutdown_seconds):
                    await sync.until_idle()
        return report
    finally:
        checking.cancel()
        sync.stop()
        await asyncio.wait([delivering, checking])
        airtable.close()


def _bind(settings: Settings) -> socket.socket:
    """The listening socket, before anything else is started.

    Raises:
        ConfigError: the address is not ours or taken.
    """
    host, port = settings.server.host, settings.server.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): is another process there? Choose another "
            "[server] port"
        ) from error


@contextlib.asynccontextmanager
async def _serving(
    settings: Settings, secrets: Secrets, sources: Sources, service: Service, listener: socket.socket, meters: Meters
) -> AsyncIterator[None]:
    """The HTTP side; on the way out it takes no more connections and lets requests that began come to their end."""
    store = service.store
    intake = Intake(
        store,
        settings.registry(),
        sources.clock,
        new_token=sources.new_token,
        actor_id=settings.apify.actor_id,
        on_work=service.wake,
        on_missing=service.lookups.wake,
        meters=meters,
    )
    internal = Bearer(secrets.internal_tokens, "INTERNAL_API_TOKEN")
    calls = Calls(
        intake,
        store,
        store,
        sources.clock,
        internal=internal,
        webhook=Bearer(secrets.webhook_secrets, "APIFY_WEBHOOK_SECRET"),
        check=service.consistency.check,
        prune=service.pruning.prune,
        on_work=service.wake_for_replay,
    )
    health = Health(
        store.check,
        sources.clock,
        sync_trouble=lambda: service.sync.trouble or service.sync.shortage,
        schema_troubles=lambda: service.schema.troubles if sources.watch_schema else (),
        is_stopping=lambda: service.stopping,
    )
    metrics = Metrics(store.counts, lambda: _loop_state(service), meters, sources.clock, internal=internal)
    page = Page(
        store,
        store,
        sources.clock,
        sessions=Sessions(secrets.internal_tokens, sources.clock, new_token),
        check=service.consistency.check,
        standing=lambda: _standing(service),
        statuses=_statuses(settings),
        public_url=settings.server.public_url,
        on_work=service.wake_for_replay,
    )
    edge = Edge(sources.limits, sources.new_id)
    application = make_application(
        calls,
        health,
        metrics,
        page,
        settings.registry(),
        edge=edge,
        new_id=sources.new_id,
        max_body_bytes=settings.server.max_body_bytes,
    )
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=HTTP_SHUTDOWN_SECONDS, handle_signals=False)
    await runner.setup()
    try:
        assert runner.server is not None
        async with edge.accepting(runner.server, listener):
            yield
    finally:
        await runner.cleanup()


def _loop_state(service: Service) -> LoopState:
    return LoopState(
        base_rests_for_seconds=service.sync.rests_for,
        base_in_trouble=service.sync.trouble is not None,
        schema_flaws=len(service.schema.flaws),
    )


def _standing(service: Service) -> Standing:
    return Standing(
        trouble=service.sync.trouble,
        rests_for_seconds=service.sync.rests_for,
        schema_flaws=[flaw.detail for flaw in service.schema.flaws],
        is_checking=service.consistency.is_checking,
    )


def _statuses(settings: Settings) -> Sequence[str]:
    return settings.fields["status"].options if "status" in settings.fields else ()


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
