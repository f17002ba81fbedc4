"""The Apify sandbox as the real apify-client sees it, over both of its transports."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING

import httpx2
import impit
import pytest
from apify_client import ApifyClientAsync
from apify_client._models import Run, UserPrivateInfo
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
from app.sandbox.apify_account import HARVESTER, Limits
from app.sandbox.apify_answers import rate_limited
from app.sandbox.apify_runs import Plan
from app.sandbox.apify_server import ApifyServer
from app.sandbox.hand_clock import START, HandClock
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

ACTOR = f"{HARVESTER.username}/{HARVESTER.name}"
PATIENCE = timedelta(seconds=10)
TRANSPORT_ERRORS = (impit.TransportError, httpx2.TransportError)


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


async def start(client: ApifyClientAsync, run_input: Json = None) -> Run:
    return await client.actor(ACTOR).start(run_input=run_input or {"profiles": ["a", "b"]})


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
