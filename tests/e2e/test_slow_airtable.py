"""An Airtable that takes seconds for an answer: callers notice nothing, memory stays flat, and all drains in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from pathlib import Path
from statistics import median

import pytest

from app.clock import SystemClock
from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.wire import WireServer
from tests.support.forks import Fork, forking
from tests.support.harness import environment_for, make_airtable
from tests.support.load import Load, held, kept
from tests.support.watching import rows, until

WAITING = "SELECT count(*) FROM outbox WHERE delivered_at IS NULL"


def resident_mb(service: Fork) -> float:
    status = Path(f"/proc/{service.pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


async def hold(folder: Path, *, answers: int, slow_seconds: float) -> list[float]:
    """Answer so many requests of four callers before a slow Airtable; the seconds that each quarter of them took."""
    airtable = make_airtable(SystemClock())
    airtable.limits = NO_LIMITS
    store = folder / "runs.db"
    async with WireServer(airtable, latency=slow_seconds, log_limit=1_000) as wire, forking() as forks:
        settings = environment_for(airtable, wire)
        service = await forks.serve(folder, settings)
        assert await service.listening()
        load = Load(service.url, random.Random(1))  # noqa: S311 - the same callers in every run
        calling = asyncio.create_task(load.run(4))
        memory: list[float] = []
        took: list[float] = []
        for quarter in range(1, 5):
            begun = time.monotonic()
            enough = answers * quarter // 4
            await until(lambda enough=enough: len(load.ledger.told) >= enough, timeout=1800)  # type: ignore[misc]
            took.append(time.monotonic() - begun)
            memory.append(resident_mb(service))
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
        backlog = rows(store, WAITING)[0][0]
        assert isinstance(backlog, int)
        assert backlog > answers // 10, "Airtable was not slow enough to leave anything behind"
        wire.latency = 0.0
        begun = time.monotonic()
        await until(lambda: rows(store, WAITING) == [(0,)], timeout=1800)
        print(  # noqa: T201 - the figures of docs/reliability.md
            f"{answers} answers, seconds a quarter {[round(one, 1) for one in took]}, resident MB "
            f"{[round(one) for one in memory]}, backlog {backlog} drained in {time.monotonic() - begun:.1f} s"
        )
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
    load.ledger.judge({str(record.fields["Run ID"]): dict(record.fields) for record in airtable.records()}, held(store))
    assert len(airtable.records()) == len(kept(store))
    assert memory[-1] < 1.25 * memory[0] + 8.0
    assert load.refused == 0
    return took


async def test_a_slow_airtable_is_felt_by_nobody_else(tmp_path: Path) -> None:
    await hold(tmp_path, answers=400, slow_seconds=2.0)


@pytest.mark.soak
async def test_an_hours_traffic_before_a_slow_airtable(tmp_path: Path) -> None:
    """36,000 requests: ten a second for an hour, as fast as they are answered."""
    took = await hold(tmp_path, answers=36_000, slow_seconds=20.0)
    assert took[-1] < 3 * median(took[:2])  # what grew with the backlog would be many times as slow
