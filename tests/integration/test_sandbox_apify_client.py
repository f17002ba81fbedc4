"""The Apify sandbox as the real apify-client sees it, over both of its transports, and as a webhook's receiver does."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

import httpx2
import impit
import pytest
from aiohttp import web
from apify_client import ApifyClientAsync
from apify_client._models import Run, UserPrivateInfo, WebhookRepresentation
from apify_client.errors import (
    ApifyApiError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    ServerError,
    UnauthorizedError,
)
from apify_client.http_clients import Httpx2HttpClientAsync
from pydantic import ValidationError

from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER, Limits, Timing
from app.sandbox.apify_answers import rate_limited
from app.sandbox.apify_dispatch import DispatchState, Double, Hold, Late, Lose
from app.sandbox.apify_runs import Event, Plan, RunStatus
from app.sandbox.apify_server import ApifyServer
from app.sandbox.wire import (
    Fault,
    applied_then_dropped,
    applied_then_hang,
    dropped,
    hung,
    odd_body,
    reply,
    server_error,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from app.model import Json

START = datetime(2026, 5, 16, 9, 0, tzinfo=UTC)
ACTOR = f"{HARVESTER.username}/{HARVESTER.name}"
PATIENCE = timedelta(seconds=10)
TRANSPORT_ERRORS = (impit.TransportError, httpx2.TransportError)


class HandClock:
    """Time that passes when a test says so, and a sleep that keeps to it."""

    def __init__(self) -> None:
        self.at = START
        self._sleepers: dict[asyncio.Future[None], datetime] = {}

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        waking = asyncio.get_running_loop().create_future()
        self._sleepers[waking] = self.at + timedelta(seconds=seconds)
        try:
            if seconds > 0:
                await waking
        finally:
            del self._sleepers[waking]

    def pass_time(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        for waking, due in self._sleepers.items():
            if due <= self.at and not waking.done():
                waking.set_result(None)


@dataclass(slots=True)
class Delivery:
    headers: dict[str, str]
    payload: dict[str, Json]

    @property
    def dispatch_id(self) -> str:
        return self.headers["X-Apify-Webhook-Dispatch-Id"]

    @property
    def event(self) -> Json:
        return self.payload["eventType"]

    @property
    def status(self) -> Json:
        resource = self.payload["resource"]
        assert isinstance(resource, dict)
        return resource["status"]


@dataclass(slots=True)
class Receiver:
    """Takes webhooks, and answers with `answers` in turn, then with 200."""

    url: str = ""
    deliveries: list[Delivery] = field(default_factory=list)
    answers: deque[int] = field(default_factory=deque)
    hangs: bool = False
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        self.deliveries.append(Delivery(dict(request.headers), await request.json()))
        self.came.set()
        if self.hangs:
            await asyncio.Event().wait()
        return web.Response(status=self.answers.popleft() if self.answers else 200)

    def webhooks(self, **more: Json) -> list[WebhookRepresentation]:
        events: Json = [event.value for event in Event if event is not Event.TEST]
        template = '{"Authorization": "Bearer secret"}'
        definition: dict[str, Json] = {"eventTypes": events, "requestUrl": self.url, "headersTemplate": template}
        return [WebhookRepresentation.model_validate(definition | more)]

    @property
    def events(self) -> list[Json]:
        return [delivery.event for delivery in self.deliveries]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/webhooks/apify", receiver.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/apify?run=251007-070457-Guy-Wilson&batch=1"
    yield receiver
    await runner.cleanup()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def apify(clock: HandClock) -> AsyncIterator[ApifyServer]:
    sandbox = ApifySandbox(now=clock.now, random=Random(7))  # noqa: S311 - ids of a sandbox
    async with ApifyServer(sandbox, sleep=clock.sleep) as server:
        yield server


@pytest.fixture(params=["impit", "httpx2"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def connect(apify: ApifyServer, transport: str) -> AsyncIterator[Callable[..., ApifyClientAsync]]:
    """Make clients of one transport, which send each request once unless told otherwise."""
    made: list[ApifyClientAsync] = []

    def make(*, token: str = TOKEN, max_retries: int = 0, timeout: timedelta = PATIENCE) -> ApifyClientAsync:
        brief = timedelta(milliseconds=1)
        if transport == "impit":
            client = ApifyClientAsync(
                token,
                api_url=apify.url,
                max_retries=max_retries,
                min_delay_between_retries=brief,
                timeout_short=timeout,
                timeout_medium=timeout,
            )
        else:
            http = Httpx2HttpClientAsync(
                max_retries=max_retries,
                min_delay_between_retries=brief,
                timeout_short=timeout,
                timeout_medium=timeout,
            )
            client = ApifyClientAsync.with_custom_http_client(token, api_url=apify.url, http_client=http)
        made.append(client)
        return client

    yield make
    for client in made:
        await client.http_client.aclose()


@pytest.fixture
def client(connect: Callable[..., ApifyClientAsync]) -> ApifyClientAsync:
    return connect()


async def start(
    client: ApifyClientAsync, run_input: Json = None, webhooks: list[WebhookRepresentation] | None = None
) -> Run:
    return await client.actor(ACTOR).start(run_input=run_input or {"profiles": ["a", "b"]}, webhooks=webhooks)


class TestClient:
    async def test_starts_a_run_and_follows_it_to_its_end(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock
    ) -> None:
        started = await client.actor(ACTOR).start(
            run_input={"profiles": ["a", "b"]},
            memory_mbytes=2048,
            run_timeout=timedelta(minutes=5),
            build="beta",
            max_items=4,
        )
        assert (started.status, started.act_id) == ("READY", HARVESTER.id)
        assert (started.options.memory_mbytes, started.options.timeout_secs) == (2048, 300)
        assert (started.options.build, started.options.max_items) == ("beta", 4)
        clock.pass_time(0.5)
        running = await client.run(started.id).get()
        assert running is not None
        assert (running.status, running.finished_at) == ("RUNNING", None)
        clock.pass_time(60)
        ended = await client.run(started.id).get()
        assert ended is not None
        assert (ended.status, ended.usage_total_usd, ended.status_message) == ("SUCCEEDED", 0.018, "Harvested 4 posts")
        assert ended.finished_at == START + timedelta(seconds=1)
        assert ended.stats.run_time_secs == 1.0
        assert apify.sandbox.starts == {HARVESTER.id: 1}

    async def test_waits_for_a_run_to_finish(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock
    ) -> None:
        run = await start(client)
        waiting = asyncio.create_task(client.run(run.id).wait_for_finish())
        await apify.wait_for(lambda log: any(("waitForFinish", "999999") in entry.query for entry in log))
        clock.pass_time(2)
        ended = await waiting
        assert ended is not None
        assert ended.status == "SUCCEEDED"

    async def test_calls_an_actor_and_gets_the_finished_run(self, apify: ApifyServer, client: ApifyClientAsync) -> None:
        apify.sandbox.script = lambda _: Plan(lasts_seconds=0)
        run = await client.actor(ACTOR).call(run_input={}, logger=None)
        assert run is not None
        assert run.status == "SUCCEEDED"
        assert (await client.log(run.id).get() or "").count("ACTOR: SUCCEEDED.") == 1

    async def test_reads_the_input_back_even_when_it_was_compressed(self, client: ApifyClientAsync) -> None:
        run_input: Json = {"profiles": [f"https://www.linkedin.com/in/é-{n}" for n in range(200)]}
        run = await start(client, run_input)
        record = await client.key_value_store(run.default_key_value_store_id).get_record("INPUT")
        assert record is not None
        assert (record["value"], record["content_type"]) == (run_input, "application/json; charset=utf-8")
        assert await client.run(run.id).key_value_store().get_record("INPUT") == record
        assert await client.key_value_store(run.default_key_value_store_id).record_exists("INPUT")
        keys = await client.key_value_store(run.default_key_value_store_id).list_keys()
        assert [key.key for key in keys.items] == ["INPUT"]
        store = await client.key_value_store(run.default_key_value_store_id).get()
        assert store is not None
        assert store.act_run_id == run.id

    async def test_reads_every_item_while_the_count_still_lags(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock
    ) -> None:
        items: list[Json] = [{"n": n} for n in range(25)]
        apify.sandbox.script = lambda _: Plan(items=items)
        run = await start(client)
        clock.pass_time(1)
        early = await client.dataset(run.default_dataset_id).get()
        found = [item async for item in client.dataset(run.default_dataset_id).iterate_items(chunk_size=10)]
        clock.pass_time(5)
        late = await client.dataset(run.default_dataset_id).get()
        assert early is not None
        assert late is not None
        assert (early.item_count, found, late.item_count) == (12, items, 25)
        page = await client.dataset(run.default_dataset_id).list_items(offset=20, limit=10)
        assert (page.total, page.offset, page.limit, page.count, page.items) == (25, 20, 10, 5, items[20:])

    async def test_lists_runs_by_start_and_status_over_pages(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock
    ) -> None:
        started = []
        for _ in range(5):
            started.append((await start(client)).id)
            clock.pass_time(10)
        apify.sandbox.resurrect(started[0])
        runs = client.actor(ACTOR).runs()
        since = await runs.list(started_after=START + timedelta(seconds=20), desc=True)
        assert [run.id for run in since.items] == started[:1:-1]
        assert [run.id async for run in runs.iterate(chunk_size=2)] == started
        assert [run.id for run in (await client.runs().list(status="RUNNING")).items] == started[:1]
        both = await client.runs().list(status=["RUNNING", "SUCCEEDED"], limit=3)
        assert (both.total, both.count) == (5, 3)

    async def test_aborts_and_resurrects_a_run(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock
    ) -> None:
        apify.sandbox.script = lambda given: Plan(lasts_seconds=None if given.life == 0 else 1)
        run = await start(client)
        assert (await client.run(run.id).abort()).status == "ABORTED"
        assert (await client.run(run.id).resurrect()).status == "RUNNING"
        clock.pass_time(1)
        ended = await client.run(run.id).get()
        assert ended is not None
        assert (ended.status, ended.stats.resurrect_count) == ("SUCCEEDED", 1)

    async def test_knows_the_actor_and_the_user(self, client: ApifyClientAsync) -> None:
        actor = await client.actor(ACTOR).get()
        user = await client.user().get()
        assert actor is not None
        assert (actor.id, actor.name) == (HARVESTER.id, HARVESTER.name)
        assert isinstance(user, UserPrivateInfo)
        assert user.id == actor.user_id

    async def test_finds_nothing_of_a_deleted_run(self, apify: ApifyServer, client: ApifyClientAsync) -> None:
        run = await start(client)
        apify.sandbox.delete_run(run.id)
        assert await client.run(run.id).get() is None
        assert await client.dataset(run.default_dataset_id).get() is None
        assert await client.key_value_store(run.default_key_value_store_id).get_record("INPUT") is None
        with pytest.raises(NotFoundError):
            await client.dataset(run.default_dataset_id).list_items()
        with pytest.raises(NotFoundError):
            await client.run(run.id).dataset().get()


class TestRefusals:
    async def test_each_refusal_is_the_clients_own_exception_and_nothing_starts(
        self, apify: ApifyServer, connect: Callable[..., ApifyClientAsync]
    ) -> None:
        client = connect(max_retries=3)
        apify.sandbox.refuses = lambda value: "no profiles" if value == {} else None
        apify.sandbox.limits = Limits(concurrent_runs=0, status=402)
        cases: list[tuple[Awaitable[Run], type[ApifyApiError], str]] = [
            (client.actor(ACTOR).start(run_input={}), InvalidRequestError, "invalid-input"),
            (client.actor("nobody/nothing").start(), NotFoundError, "record-not-found"),
            (connect(token="wrong").actor(ACTOR).start(), UnauthorizedError, "user-or-token-not-found"),
            (client.actor(ACTOR).start(), ApifyApiError, "concurrent-runs-limit-exceeded"),
        ]
        for number, (refused, kind, name) in enumerate(cases, start=1):
            with pytest.raises(kind) as caught:
                await refused
            assert caught.value.type == name
            assert len(apify.log) == number
        apify.sandbox.limits = Limits(memory_mbytes=512, status=403)
        with pytest.raises(ForbiddenError) as full:
            await client.actor(ACTOR).start()
        assert full.value.type == "actor-memory-limit-exceeded"
        assert not apify.sandbox.runs

    async def test_a_rate_limit_is_an_exception_once_retries_are_used_up(
        self, apify: ApifyServer, connect: Callable[..., ApifyClientAsync]
    ) -> None:
        apify.faults.add(reply(rate_limited()), times=3)
        with pytest.raises(RateLimitError):
            await start(connect(max_retries=1))
        await start(connect(max_retries=1))
        assert len(apify.log) == 4


LOST = [
    pytest.param(applied_then_dropped(), TRANSPORT_ERRORS, id="dropped"),
    pytest.param(applied_then_hang(), (impit.TimeoutException, httpx2.ReadTimeout), id="timed out"),
    pytest.param(server_error(502, applied=True), (ServerError,), id="5xx"),
    pytest.param(odd_body(b"<html>"), (ValueError,), id="not JSON"),
    pytest.param(odd_body(b'{"data": {"id": "x"}}'), (ValidationError,), id="not a run"),
]
NEVER_CAME = [
    pytest.param(dropped(), TRANSPORT_ERRORS, id="dropped"),
    pytest.param(hung(), (impit.TimeoutException, httpx2.ReadTimeout), id="timed out"),
    pytest.param(server_error(503), (ServerError,), id="5xx"),
]


class TestLostAnswers:
    @pytest.mark.parametrize(("fault", "errors"), LOST)
    async def test_a_start_whose_answer_is_lost_exists_once_and_was_sent_once(
        self,
        apify: ApifyServer,
        connect: Callable[..., ApifyClientAsync],
        fault: Fault,
        errors: tuple[type[Exception], ...],
    ) -> None:
        apify.faults.add(fault)
        client = connect(timeout=timedelta(milliseconds=500))
        with pytest.raises(errors):
            await start(client)
        assert [entry.method for entry in apify.log] == ["POST"]
        (run,) = apify.sandbox.runs
        listed = await connect().actor(ACTOR).runs().list(started_after=START)
        assert [found.id for found in listed.items] == [run.id]

    @pytest.mark.parametrize(("fault", "errors"), NEVER_CAME)
    async def test_a_start_that_never_came_looks_the_same_and_leaves_no_run(
        self,
        apify: ApifyServer,
        connect: Callable[..., ApifyClientAsync],
        fault: Fault,
        errors: tuple[type[Exception], ...],
    ) -> None:
        apify.faults.add(fault)
        with pytest.raises(errors):
            await start(connect(timeout=timedelta(milliseconds=500)))
        assert [entry.method for entry in apify.log] == ["POST"]
        assert not apify.sandbox.runs

    async def test_a_client_that_retries_starts_a_run_for_each_lost_answer(
        self, apify: ApifyServer, connect: Callable[..., ApifyClientAsync]
    ) -> None:
        apify.faults.add(applied_then_dropped(), times=4)
        await start(connect(max_retries=4))
        assert apify.sandbox.starts == {HARVESTER.id: 5}

    async def test_reads_may_be_retried(self, apify: ApifyServer, connect: Callable[..., ApifyClientAsync]) -> None:
        client = connect(max_retries=4)
        run = await start(client)
        apify.faults.add(dropped(), times=2)
        apify.faults.add(server_error(500), times=2)
        found = await client.run(run.id).get()
        assert found is not None
        assert found.id == run.id


class TestWebhooks:
    """Over one transport: what is received does not depend on it."""

    @pytest.fixture
    def transport(self) -> str:
        return "httpx2"

    async def test_a_run_tells_its_life_with_the_headers_asked_for(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock, receiver: Receiver
    ) -> None:
        run = await start(client, webhooks=receiver.webhooks())
        await apify.webhooks.settled(Event.CREATED, run.id)
        clock.pass_time(1)
        record = await apify.webhooks.settled(Event.SUCCEEDED, run.id)
        created, ended = receiver.deliveries
        assert (created.event, created.status) == ("ACTOR.RUN.CREATED", "READY")
        assert (ended.event, ended.status) == ("ACTOR.RUN.SUCCEEDED", "SUCCEEDED")
        assert ended.headers["Authorization"] == "Bearer secret"
        assert ended.headers["X-Apify-Webhook"] == "true"
        assert ended.headers["X-Apify-Request-Origin"] == "WEBHOOK"
        assert ended.headers["Content-Type"] == "application/json"
        assert ended.dispatch_id == record.dispatch.id != created.dispatch_id
        assert [attempt.status for attempt in record.attempts] == [200]

    async def test_a_webhook_can_come_before_the_answer_to_the_start(
        self, apify: ApifyServer, connect: Callable[..., ApifyClientAsync], receiver: Receiver
    ) -> None:
        apify.faults.add(applied_then_hang())
        starting = asyncio.create_task(start(connect(), webhooks=receiver.webhooks()))
        await asyncio.wait_for(receiver.came.wait(), 10)
        assert not starting.done()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    async def test_a_refused_delivery_is_retried_with_the_old_snapshot_and_the_same_id(
        self, receiver: Receiver
    ) -> None:
        asked: list[float] = []

        async def sleep(seconds: float) -> None:
            asked.append(seconds)
            await asyncio.sleep(0)

        receiver.answers.extend([503, 401, 302])
        sandbox = ApifySandbox(now=lambda: START, random=Random(7))  # noqa: S311 - ids of a sandbox
        async with ApifyServer(sandbox, sleep=sleep) as apify:
            apify.sandbox.send_test_webhook(receiver.url)
            record = await apify.webhooks.settled(Event.TEST)
        assert record.state is DispatchState.DELIVERED
        assert [attempt.status for attempt in record.attempts] == [503, 401, 302, 200]
        assert asked == [60, 120, 240]
        first, *later = receiver.deliveries
        assert all(one.payload == first.payload and one.dispatch_id == first.dispatch_id for one in later)

    async def test_apify_gives_up_after_eleven_retries(self, receiver: Receiver) -> None:
        asked: list[float] = []

        async def sleep(seconds: float) -> None:
            asked.append(seconds)
            await asyncio.sleep(0)

        receiver.answers.extend([500] * 20)
        sandbox = ApifySandbox(now=lambda: START, random=Random(7))  # noqa: S311 - ids of a sandbox
        async with ApifyServer(sandbox, sleep=sleep, retry_factor=1 / 60) as apify:
            apify.sandbox.send_test_webhook(receiver.url)
            record = await apify.webhooks.settled(Event.TEST)
        assert record.state is DispatchState.FAILED
        assert asked == [2.0**n for n in range(11)]
        assert len(receiver.deliveries) == 12

    async def test_a_receiver_that_is_down_is_a_failed_attempt(
        self, apify: ApifyServer, client: ApifyClientAsync
    ) -> None:
        hook = Receiver(url="http://127.0.0.1:1/hook").webhooks(doNotRetry=True)
        run = await start(client, webhooks=hook)
        record = await apify.webhooks.settled(Event.CREATED, run.id)
        assert record.state is DispatchState.FAILED
        assert record.attempts[0].status is None
        assert "ClientConnectorError" in (record.attempts[0].error or "")

    async def test_held_deliveries_are_released_in_any_order(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Hold(), times=None)
        run = await start(client, webhooks=receiver.webhooks())
        clock.pass_time(1)
        ended = await apify.webhooks.settled(Event.SUCCEEDED, run.id)
        created = await apify.webhooks.settled(Event.CREATED, run.id)
        assert receiver.deliveries == []
        await apify.webhooks.release(ended, created)
        assert receiver.events == ["ACTOR.RUN.SUCCEEDED", "ACTOR.RUN.CREATED"]
        assert receiver.deliveries[1].status == "READY"
        with pytest.raises(ValueError, match="not held"):
            await apify.webhooks.release(ended)

    async def test_all_that_is_held_is_released_as_it_was_held(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Hold(), times=None)
        run = await start(client, webhooks=receiver.webhooks())
        apify.sandbox.finish(run.id, RunStatus.FAILED)
        receiver.answers.append(500)
        await apify.webhooks.release()
        assert receiver.events == ["ACTOR.RUN.CREATED", "ACTOR.RUN.FAILED"]
        assert apify.webhooks.log[0].state is DispatchState.RETRYING

    async def test_a_lost_delivery_never_comes(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Lose(), event=Event.SUCCEEDED)
        run = await start(client, webhooks=receiver.webhooks())
        apify.sandbox.finish(run.id)
        assert (await apify.webhooks.settled(Event.SUCCEEDED)).state is DispatchState.LOST
        await apify.webhooks.settled(Event.CREATED)
        assert receiver.events == ["ACTOR.RUN.CREATED"]

    @pytest.mark.parametrize("same_dispatch", [True, False])
    async def test_a_doubled_delivery_comes_twice(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver, same_dispatch: bool
    ) -> None:
        apify.webhooks.treat(Double(same_dispatch=same_dispatch), event=Event.CREATED)
        receiver.answers.append(500)
        await start(client, webhooks=receiver.webhooks())
        await apify.webhooks.wait_for(lambda log: any(r.state is DispatchState.DELIVERED for r in log))
        first, second = receiver.deliveries
        assert first.payload == second.payload
        assert (first.dispatch_id == second.dispatch_id) is same_dispatch

    async def test_a_late_delivery_is_overtaken(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Late(30), event=Event.CREATED)
        run = await start(client, webhooks=receiver.webhooks())
        apify.sandbox.finish(run.id)
        await apify.webhooks.settled(Event.SUCCEEDED)
        clock.pass_time(30)
        await apify.webhooks.settled(Event.CREATED)
        assert receiver.events == ["ACTOR.RUN.SUCCEEDED", "ACTOR.RUN.CREATED"]

    async def test_a_treatment_is_for_the_runs_it_names_and_can_be_taken_back(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Lose(), run_id="another", times=None)
        first = await start(client, webhooks=receiver.webhooks())
        assert (await apify.webhooks.settled(Event.CREATED, first.id)).state is DispatchState.DELIVERED
        apify.webhooks.treat(Lose(), times=None)
        apify.webhooks.treat_well()
        second = await start(client, webhooks=receiver.webhooks())
        assert (await apify.webhooks.settled(Event.CREATED, second.id)).state is DispatchState.DELIVERED

    async def test_a_second_start_with_the_same_idempotency_key_has_no_webhook(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        first = await start(client, webhooks=receiver.webhooks(idempotencyKey="batch-1"))
        second = await start(client, webhooks=receiver.webhooks(idempotencyKey="batch-1"))
        apify.sandbox.finish(second.id)
        await apify.webhooks.settled(Event.CREATED)
        assert {record.run_id for record in apify.webhooks.log} == {first.id}

    async def test_a_payload_template_comes_through_the_client(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        template = json.dumps({"id": "{{resource.id}}", "text": "run {{resource.id}}"})
        hook = receiver.webhooks(payloadTemplate=template, shouldInterpolateStrings=True)
        run = await start(client, webhooks=hook)
        await apify.webhooks.settled(Event.CREATED)
        assert receiver.deliveries[0].payload == {"id": run.id, "text": f"run {run.id}"}


class TestStopping:
    @pytest.fixture
    def transport(self) -> str:
        return "httpx2"

    async def test_leaves_neither_task_nor_connection_with_everything_in_flight(
        self, clock: HandClock, receiver: Receiver
    ) -> None:
        before = asyncio.all_tasks()
        sandbox = ApifySandbox(now=clock.now, random=Random(7), timing=Timing(settle=1))  # noqa: S311 - ids
        async with ApifyServer(sandbox, sleep=clock.sleep) as apify:
            apify.sandbox.send_test_webhook("http://127.0.0.1:1/refused")
            await apify.webhooks.wait_for(lambda log: log[0].state is DispatchState.RETRYING)
            receiver.hangs = True
            apify.sandbox.send_test_webhook(receiver.url)
            await asyncio.wait_for(receiver.came.wait(), 10)
            assert asyncio.all_tasks() > before
        receiver.hangs = False
        # The receiver's own connections end when it does.
        left = {task for task in asyncio.all_tasks() - before if "RequestHandler" not in repr(task)}
        assert left == set()

    async def test_an_account_outlives_its_server(self, clock: HandClock, receiver: Receiver) -> None:
        sandbox = ApifySandbox(now=clock.now, random=Random(7))  # noqa: S311 - ids of a sandbox
        server = ApifyServer(sandbox, sleep=clock.sleep)
        async with server:
            url = server.url
        sandbox.send_test_webhook(receiver.url)
        async with server:
            assert server.url == url
            record = await server.webhooks.settled(Event.TEST)
        assert record.state is DispatchState.DELIVERED

    async def test_in_real_time_a_run_ends_by_itself(self, receiver: Receiver) -> None:
        async with ApifyServer() as apify:
            apify.sandbox.script = lambda _: Plan(lasts_seconds=0.05)
            http = Httpx2HttpClientAsync(max_retries=0)
            client = ApifyClientAsync.with_custom_http_client(TOKEN, api_url=apify.url, http_client=http)
            run = await start(client, webhooks=receiver.webhooks())
            record = await apify.webhooks.settled(Event.SUCCEEDED, run.id)
            await http.aclose()
        assert record.state is DispatchState.DELIVERED
