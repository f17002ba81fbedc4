"""Power cuts: whatever of the unsynced writes is lost, kept or torn, nothing that was answered is gone.

`kill -9` cannot show that: what a dead process wrote is still in the machine's memory. So a service under load has all
its writes and syncs recorded, and its files are put together again as cuts at many moments would leave them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from app.clock import SystemClock
from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.wire import WireServer
from app.store.sqlite.opening import prepare
from tests.support.disk import Disk, read_acts
from tests.support.forks import forking
from tests.support.harness import environment_for, make_airtable
from tests.support.load import Load, held, kept
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.load import Ledger

STORE = "runs.db"


async def record(folder: Path, seed: int, answers: int) -> tuple[bytes, bytes, Ledger]:
    """The store's file, what was done to it under load until a kill, and what was answered, at which length of that."""
    writes = folder / "writes"
    airtable = make_airtable(SystemClock())
    airtable.limits = NO_LIMITS
    async with WireServer(airtable) as wire, forking() as forks:
        environment = environment_for(airtable, wire)
        service = await forks.serve(folder, environment)
        await service.listening()
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
        assert not (folder / f"{STORE}-wal").exists()  # a stop leaves all in the one file
        before = (folder / STORE).read_bytes()
        service = await forks.serve(folder, environment, writes=writes)
        await service.listening()
        load = Load(service.url, random.Random(seed))  # noqa: S311 - the same callers in every run
        load.clock = lambda: writes.stat().st_size
        calling = asyncio.create_task(load.run(8))
        await until(lambda: len(load.ledger.told) >= answers, timeout=600)
        await service.kill()
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
    return before, writes.read_bytes(), load.ledger


async def cut_power(folder: Path, seed: int, *, answers: int, cuts: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - the same cuts for the same writes
    before, journal, ledger = await record(folder, seed, answers)
    acts = list(read_acts(journal))
    assert sum(act.kind == "write" and act.name == STORE for _, act in acts) > 10, "no checkpoint was among it"
    moments = sorted(rng.sample(range(len(acts)), cuts))
    disk = Disk({STORE: bytearray(before)})
    done = 0
    for moment in moments:
        for _, act in acts[done : moment + 1]:
            disk.do(act)
        done = moment + 1
        left = folder / "left"
        left.mkdir()
        for name, content in disk.after_power_cut(rng).items():
            (left / name).write_bytes(content)
        prepare(left / STORE, datetime.now(UTC))
        assert rows(left / STORE, "PRAGMA integrity_check") == [("ok",)]
        assert rows(left / STORE, "PRAGMA foreign_key_check") == []
        ledger.judge(kept(left / STORE), held(left / STORE), until=acts[moment][0])
        shutil.rmtree(left)


async def test_what_was_answered_outlives_a_power_cut(tmp_path: Path) -> None:
    await cut_power(tmp_path, 1, answers=300, cuts=40)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_ten_thousand_power_cuts(tmp_path: Path, seed: int) -> None:
    await cut_power(tmp_path, 100 + seed, answers=3_000, cuts=1_000)
