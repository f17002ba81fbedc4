"""Stops under load, with requests to Apify and Airtable in flight: each ends with 0, in time, and loses nothing.

apify-client's own transport ends some of such processes with SIGABRT or SIGSEGV, when the interpreter takes it down.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from app.clock import SystemClock
from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER
from app.sandbox.apify_runs import Plan
from app.sandbox.apify_server import ApifyServer
from app.sandbox.wire import Faults, WireServer, applied_then_hang, dropped, hung
from tests.support.forks import Fork, Forks, forking
from tests.support.harness import environment_for, make_airtable
from tests.support.load import Load, held, kept
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SLOTS = 2
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


async def stop_one(
    forks: Forks, folder: Path, trouble: Callable[[Faults], None], number: signal.Signals
) -> tuple[int, float]:
    """Serve, get requests into flight on both sides, and stop under load; the exit code and the seconds it took."""
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
        service = await forks.serve(
            folder,
            {
                **environment_for(airtable, wire),
                "APIFY_TOKEN": TOKEN,
                "RUNRECORDS_APIFY__API_URL": apify.url,
                "RUNRECORDS_APIFY__ACTOR_ID": HARVESTER.id,
                "RUNRECORDS_APIFY__POLL_INTERVAL_SECONDS": "0.02",
                "RUNRECORDS_SYNC__SHUTDOWN_SECONDS": str(SHUTDOWN_SECONDS),
            },
        )
        assert await service.listening()
        load = Load(service.url, random.Random(7), batches=3)  # noqa: S311 - the same callers in every run
        calling = asyncio.create_task(load.run(4))
        await wire.wait_for(lambda log: len(log) > 0)
        method = "POST" if trouble is starts_hang else "GET"
        await apify.wait_for(lambda log: any(one.method == method for one in log))
        await until(lambda: len(load.ledger.told) > 20)
        begun = time.monotonic()
        service.signal(number)
        code = await service.ended(20)
        seconds = time.monotonic() - begun
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
    judge(service, folder / "runs.db", load)
    return code, seconds


def judge(service: Fork, store: Path, load: Load) -> None:
    assert "Traceback" not in service.said()
    assert '"service.stopped"' in service.said()
    assert not store.with_name("runs.db-wal").exists()  # all of it is in the one file
    assert rows(store, "PRAGMA integrity_check") == [("ok",)]
    load.ledger.judge(kept(store), held(store))


async def stop_often(folder: Path, times: int) -> None:
    numbers = iter(range(times))
    ends: list[tuple[int, float]] = []

    async def slot() -> None:
        async with forking() as forks:
            for number in numbers:
                signals = (signal.SIGTERM, signal.SIGINT)
                trouble = TROUBLES[number % len(TROUBLES)]
                ends.append(await stop_one(forks, folder / str(number), trouble, signals[number % len(signals)]))

    async with asyncio.TaskGroup() as slots:
        for _ in range(SLOTS):
            slots.create_task(slot())
    assert [code for code, _ in ends] == [0] * times
    assert max(seconds for _, seconds in ends) < SHUTDOWN_SECONDS + MARGIN_SECONDS


async def test_six_stops_with_requests_in_flight_end_with_0_in_time_and_lose_nothing(tmp_path: Path) -> None:
    await stop_often(tmp_path, 6)


async def test_a_look_up_of_a_name_that_hangs_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    airtable = make_airtable(SystemClock())
    async with WireServer(airtable) as wire, forking() as forks:
        service = await forks.serve(
            tmp_path,
            {
                **environment_for(airtable, wire),
                "RUNRECORDS_AIRTABLE__ENDPOINT_URL": "http://airtable.invalid",
                "APIFY_TOKEN": TOKEN,
                "RUNRECORDS_APIFY__API_URL": "http://apify.invalid",
                "RUNRECORDS_APIFY__ACTOR_ID": HARVESTER.id,
                "RUNRECORDS_SYNC__SHUTDOWN_SECONDS": str(SHUTDOWN_SECONDS),
            },
            nameless=("airtable.invalid", "apify.invalid"),
        )
        assert await service.listening()
        load = Load(service.url, random.Random(7), batches=3)  # noqa: S311 - as above
        calling = asyncio.create_task(load.run(4))
        await until(lambda: all(f"looking up {name}.invalid" in service.said() for name in ("airtable", "apify")))
        await until(lambda: len(load.ledger.told) > 20)
        service.signal(signal.SIGTERM)
        assert await service.ended(MARGIN_SECONDS) == 0
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
    judge(service, tmp_path / "runs.db", load)


async def test_signals_in_the_last_moments_do_not_change_how_it_ends(tmp_path: Path) -> None:
    airtable = make_airtable(SystemClock())
    async with WireServer(airtable) as wire, forking() as forks:
        service = await forks.serve(tmp_path, environment_for(airtable, wire), signalled_late=True)
        assert await service.listening()
        service.signal(signal.SIGTERM)
        assert await service.ended(MARGIN_SECONDS) == 0


@pytest.mark.soak
async def test_two_hundred_stops_in_a_row(tmp_path: Path) -> None:
    await stop_often(tmp_path, 200)
