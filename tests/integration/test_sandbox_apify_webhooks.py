"""The webhooks of the Apify sandbox as a receiver sees them: on time, late, twice, out of order, or never."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from apify_client import ApifyClientAsync
from apify_client._models import Run, WebhookRepresentation
from apify_client.http_clients import Httpx2HttpClientAsync

from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER
from app.sandbox.apify_dispatch import DispatchState, Double, Hold, Late, Lose
from app.sandbox.apify_runs import Event, Plan, RunStatus
from app.sandbox.apify_server import ApifyServer
from app.sandbox.hand_clock import START, HandClock
from app.sandbox.wire import applied_then_hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.model import Json


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


@pytest.fixture
async def client(apify: ApifyServer) -> AsyncIterator[ApifyClientAsync]:
    async with Httpx2HttpClientAsync(max_retries=0) as http:
        yield ApifyClientAsync.with_custom_http_client(TOKEN, api_url=apify.url, http_client=http)


async def start(client: ApifyClientAsync, webhooks: list[WebhookRepresentation]) -> Run:
    return await client.actor(HARVESTER.id).start(run_input={"profiles": ["a", "b"]}, webhooks=webhooks)


class TestWebhooks:
    async def test_a_run_tells_its_life_with_the_headers_asked_for(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock, receiver: Receiver
    ) -> None:
        run = await start(client, receiver.webhooks())
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
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        apify.faults.add(applied_then_hang())
        starting = asyncio.create_task(start(client, receiver.webhooks()))
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
        run = await start(client, hook)
        record = await apify.webhooks.settled(Event.CREATED, run.id)
        assert record.state is DispatchState.FAILED
        assert record.attempts[0].status is None
        assert "ClientConnectorError" in (record.attempts[0].error or "")

    async def test_held_deliveries_are_released_in_any_order(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Hold(), times=None)
        run = await start(client, receiver.webhooks())
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
        run = await start(client, receiver.webhooks())
        apify.sandbox.finish(run.id, RunStatus.FAILED)
        receiver.answers.append(500)
        await apify.webhooks.release()
        assert receiver.events == ["ACTOR.RUN.CREATED", "ACTOR.RUN.FAILED"]
        assert apify.webhooks.log[0].state is DispatchState.RETRYING

    async def test_a_lost_delivery_never_comes(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Lose(), event=Event.SUCCEEDED)
        run = await start(client, receiver.webhooks())
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
        await start(client, receiver.webhooks())
        await apify.webhooks.wait_for(lambda log: any(r.state is DispatchState.DELIVERED for r in log))
        first, second = receiver.deliveries
        assert first.payload == second.payload
        assert (first.dispatch_id == second.dispatch_id) is same_dispatch

    async def test_a_late_delivery_is_overtaken(
        self, apify: ApifyServer, client: ApifyClientAsync, clock: HandClock, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Late(30), event=Event.CREATED)
        run = await start(client, receiver.webhooks())
        apify.sandbox.finish(run.id)
        await apify.webhooks.settled(Event.SUCCEEDED)
        clock.pass_time(30)
        await apify.webhooks.settled(Event.CREATED)
        assert receiver.events == ["ACTOR.RUN.SUCCEEDED", "ACTOR.RUN.CREATED"]

    async def test_a_treatment_is_for_the_runs_it_names_and_can_be_taken_back(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        apify.webhooks.treat(Lose(), run_id="another", times=None)
        first = await start(client, receiver.webhooks())
        assert (await apify.webhooks.settled(Event.CREATED, first.id)).state is DispatchState.DELIVERED
        apify.webhooks.treat(Lose(), times=None)
        apify.webhooks.treat_well()
        second = await start(client, receiver.webhooks())
        assert (await apify.webhooks.settled(Event.CREATED, second.id)).state is DispatchState.DELIVERED

    async def test_a_second_start_with_the_same_idempotency_key_has_no_webhook(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        first = await start(client, receiver.webhooks(idempotencyKey="batch-1"))
        second = await start(client, receiver.webhooks(idempotencyKey="batch-1"))
        apify.sandbox.finish(second.id)
        await apify.webhooks.settled(Event.CREATED)
        assert {record.run_id for record in apify.webhooks.log} == {first.id}

    async def test_a_payload_template_comes_through_the_client(
        self, apify: ApifyServer, client: ApifyClientAsync, receiver: Receiver
    ) -> None:
        template = json.dumps({"id": "{{resource.id}}", "text": "run {{resource.id}}"})
        hook = receiver.webhooks(payloadTemplate=template, shouldInterpolateStrings=True)
        run = await start(client, hook)
        await apify.webhooks.settled(Event.CREATED)
        assert receiver.deliveries[0].payload == {"id": run.id, "text": f"run {run.id}"}


class TestStopping:
    async def test_leaves_neither_task_nor_connection_with_everything_in_flight(
        self, clock: HandClock, receiver: Receiver
    ) -> None:
        before = asyncio.all_tasks()
        sandbox = ApifySandbox(now=clock.now, random=Random(7))  # noqa: S311 - ids of a sandbox
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
            run = await start(client, receiver.webhooks())
            record = await apify.webhooks.settled(Event.SUCCEEDED, run.id)
            await http.aclose()
        assert record.state is DispatchState.DELIVERED
