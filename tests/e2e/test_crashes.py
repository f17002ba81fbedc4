"""The service killed at any moment under load, and at each step by name: what was answered is there, once, in order.

Callers, webhooks and Airtable live on while it is killed and started again over the same file.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from typing import TYPE_CHECKING

import pytest

from app.clock import SystemClock
from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.faults import applied_then_hang, hung, slow
from app.sandbox.wire import WireServer
from app.store.sqlite import delivery, intake, webhooks
from tests.support.forked import Crash, Place
from tests.support.forks import Forks, forking
from tests.support.harness import environment_for, make_airtable
from tests.support.load import Load, held
from tests.support.process import free_port
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json
    from app.sandbox.airtable import AirtableSandbox

CALLERS = 8
STATEMENTS = {
    "a kickoff": (intake.INSERT_RUN,),
    # Of many rows as of one; the first comes only as fast as Airtable keeps up.
    "an update": (intake.UPDATE_FOLD, intake.UPDATE_WAITING.partition("{rows}")[0]),
    "an update's message": (intake.INSERT_UPDATES.partition("{rows}")[0],),
    "a held update": (intake.INSERT_MISSING,),
    "a webhook": (webhooks.INSERT_EVENT,),
    "a claim": (delivery.CLAIM_RUN,),
    "a create's answer": (delivery.KNOW_RECORD,),
    "an answer": (delivery.DELIVER,),
    "taking back": (delivery.RECOVER_MESSAGES,),
}
PLACES: tuple[Place, ...] = ("before", "after", "before its commit", "after its commit")
POINTS = [(name, place) for name in STATEMENTS for place in PLACES]


class Town:
    """One store and one base over many lives of the service; `lives` counts them."""

    def __init__(self, folder: Path, airtable: AirtableSandbox, wire: WireServer, forks: Forks, seed: int) -> None:
        self.folder = folder
        self.airtable = airtable
        self.wire = wire
        self.forks = forks
        self.rng = random.Random(seed)  # noqa: S311 - the same moments in every run
        self.port = free_port()
        self.load = Load(f"http://127.0.0.1:{self.port}", self.rng)
        self.lives = 0
        self.environment = environment_for(airtable, wire)

    @contextlib.asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        calling = asyncio.create_task(self.load.run(CALLERS))
        try:
            yield
            assert not calling.done()
        finally:
            calling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await calling

    async def die_at(self, point: tuple[str, Place]) -> None:
        name, place = point
        crash = Crash(STATEMENTS[name], place, 1 if name == "taking back" else self.rng.randint(1, 3))
        service = await self.forks.serve(self.folder, self.environment, port=self.port, crash=crash)
        assert await service.ended(60) == -signal.SIGKILL, point
        self.lives += 1

    async def die_at_any_moment(self) -> None:
        """Soon after some answers, while it starts, or while Airtable has a request of it."""
        service = await self.forks.serve(self.folder, self.environment, port=self.port)
        match self.rng.randrange(5):
            case 0:
                await asyncio.sleep(self.rng.uniform(0.0, 0.15))
            case 1:
                await service.listening()
                number = len(self.wire.log)
                self.wire.faults.add(self.rng.choice([hung(), applied_then_hang(), slow(0.02)]), method="PATCH")
                await until(lambda: len(self.wire.log) > number, timeout=60)
            case _:
                enough = len(self.load.ledger.told) + self.rng.randint(1, 60)
                await until(lambda: len(self.load.ledger.told) >= enough, timeout=60)
                await asyncio.sleep(self.rng.uniform(0.0, 0.01))
        await service.kill()
        self.wire.faults.clear()
        self.lives += 1

    async def ends_well(self) -> None:
        """Start it once more, without load, let it deliver all, and judge what is left."""
        service = await self.forks.serve(self.folder, self.environment, port=self.port)
        await service.listening()
        store = self.folder / "runs.db"
        waiting = "SELECT count(*) FROM outbox WHERE delivered_at IS NULL"
        await until(lambda: rows(store, waiting) == [(0,)], timeout=120)
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
        assert rows(store, "PRAGMA integrity_check") == [("ok",)]
        assert rows(store, "PRAGMA foreign_key_check") == []
        records: dict[str, dict[str, Json]] = {}
        for record in self.airtable.records():
            run_id = str(record.fields["Run ID"])
            assert run_id not in records, f"two records for {run_id}"
            records[run_id] = dict(record.fields)
        assert records.keys() == {run_id for (run_id,) in rows(store, "SELECT run_id FROM runs")}
        self.load.ledger.judge(records, held(store))
        assert "Traceback" not in service.said()


@contextlib.asynccontextmanager
async def town(folder: Path, seed: int) -> AsyncIterator[Town]:
    folder.mkdir()
    airtable = make_airtable(SystemClock())
    airtable.limits = NO_LIMITS
    async with WireServer(airtable, latency=0.005) as wire, forking() as forks:
        yield Town(folder, airtable, wire, forks, seed)


async def live_and_die(folder: Path, seed: int, points: list[tuple[str, Place]], moments: int) -> None:
    """A town through deaths at each of `points` and at `moments` more, mixed."""
    deaths: list[tuple[str, Place] | None] = [*points, *[None] * moments]
    async with town(folder, seed) as here:
        here.rng.shuffle(deaths)
        async with here.under_load():
            for point in deaths:
                try:
                    await (here.die_at_any_moment() if point is None else here.die_at(point))
                except Exception as error:
                    error.add_note(f"seed {seed}, life {here.lives}, to die at {point}")
                    raise
        await here.ends_well()
        assert here.lives == len(deaths)
        assert len(here.load.ledger.told) > 10 * len(deaths)


async def test_what_was_answered_outlives_a_kill_at_any_moment_and_at_each_step(tmp_path: Path) -> None:
    """Fifty-six kills in two towns: 36 by name, 20 by chance."""
    async with asyncio.TaskGroup() as towns:
        for number in (0, 1):
            towns.create_task(live_and_die(tmp_path / str(number), number, POINTS[number::2], 10))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_a_thousand_kills(tmp_path: Path, seed: int) -> None:
    async with asyncio.TaskGroup() as towns:
        for number in (0, 1):
            towns.create_task(live_and_die(tmp_path / str(number), 100 + 2 * seed + number, POINTS, 14))
