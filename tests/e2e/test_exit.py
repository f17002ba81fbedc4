"""Stops with requests to Apify and Airtable in flight: each ends with 0, in time, and never by a signal.

apify-client's own transport ends some of such processes with SIGABRT or SIGSEGV, when the interpreter takes it down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING

import aiohttp

from app.clock import SystemClock
from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER
from app.sandbox.apify_runs import Plan
from app.sandbox.apify_server import ApifyServer
from app.sandbox.wire import Faults, WireServer, applied_then_hang, dropped, hung
from tests.support.harness import AIRTABLE_KEY, INTERNAL_TOKEN, WEBHOOK_SECRET, make_airtable
from tests.support.process import environment, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

STOPS = 50
SLOTS = 3
SHUTDOWN_SECONDS = 0.3
#: For what is not waiting: a fork's own end, on a machine that is busy. Who waited for his requests would take 30 s.
MARGIN_SECONDS = 10.0


def starts_hang(faults: Faults) -> None:
    faults.add(applied_then_hang(), times=None)


def looks_hang(faults: Faults) -> None:
    faults.add(hung(), method="GET", times=None)


def looks_are_dropped(faults: Faults) -> None:
    """apify-client waits between its retries when it is stopped."""
    faults.add(dropped(), method="GET", times=None)


TROUBLES = (starts_hang, looks_hang, looks_are_dropped)


@contextlib.asynccontextmanager
async def forks() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", "tests.support.stopping",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def answer(process: asyncio.subprocess.Process, word: str) -> int:
    assert process.stdout is not None
    said, number = (await process.stdout.readline()).split()
    assert said.decode() == word
    return int(number)


async def stop_one(
    process: asyncio.subprocess.Process, folder: Path, trouble: Callable[[Faults], None]
) -> tuple[int, float]:
    """Serve, get requests into flight on both sides, and stop; the exit code and the seconds that it took."""
    folder.mkdir()
    clock = SystemClock()
    airtable = make_airtable(clock)
    sandbox = ApifySandbox(
        now=clock.now,
        random=random.Random(7),  # noqa: S311 - ids of a sandbox
        script=lambda _: Plan(lasts_seconds=None),
    )
    async with WireServer(airtable) as wire, ApifyServer(sandbox) as apify:
        wire.faults.add(hung(), times=None)
        trouble(apify.faults)
        port = free_port()
        own = environment(
            folder,
            port,
            AIRTABLE_API_KEY=AIRTABLE_KEY,
            APIFY_TOKEN=TOKEN,
            APIFY_WEBHOOK_SECRET=WEBHOOK_SECRET,
            INTERNAL_API_TOKEN=INTERNAL_TOKEN,
            RUNRECORDS_AIRTABLE__ENDPOINT_URL=wire.url,
            RUNRECORDS_AIRTABLE__BASE_ID=airtable.schema.base_id,
            RUNRECORDS_APIFY__API_URL=apify.url,
            RUNRECORDS_APIFY__ACTOR_ID=HARVESTER.id,
            RUNRECORDS_APIFY__POLL_INTERVAL_SECONDS="0.02",
            RUNRECORDS_SYNC__SHUTDOWN_SECONDS=str(SHUTDOWN_SECONDS),
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(own).encode() + b"\n")
        child = await answer(process, "pid")
        await kick_off(f"http://127.0.0.1:{port}")
        await wire.wait_for(lambda log: len(log) > 0)
        method = "POST" if trouble is starts_hang else "GET"
        await apify.wait_for(lambda log: any(one.method == method for one in log))
        begun = time.monotonic()
        os.kill(child, signal.SIGTERM)
        try:
            async with asyncio.timeout(20):
                code = await answer(process, "code")
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            raise
        return code, time.monotonic() - begun


async def kick_off(url: str) -> None:
    body = {"client_id": "Guy-Wilson", "batches": [{"input": {"profiles": ["ann"]}}] * 3}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {INTERNAL_TOKEN}"}) as http:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    async with http.post(f"{url}/runs", json=body) as answered:
                        assert answered.status == 201
                        return
                await asyncio.sleep(0.02)  # it does not listen yet


async def test_fifty_stops_with_requests_in_flight_end_with_0_in_time(tmp_path: Path) -> None:
    numbers = iter(range(STOPS))
    ends: list[tuple[int, float]] = []

    async def slot() -> None:
        async with forks() as process:
            for number in numbers:
                end = await stop_one(process, tmp_path / str(number), TROUBLES[number % len(TROUBLES)])
                ends.append(end)

    async with asyncio.TaskGroup() as slots:
        for _ in range(SLOTS):
            slots.create_task(slot())
    assert [code for code, _ in ends] == [0] * STOPS
    assert max(seconds for _, seconds in ends) < SHUTDOWN_SECONDS + MARGIN_SECONDS
