"""The service with both sandboxes on one clock that the test moves: what the tests of batches start from."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING

from app.config import Secrets
from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER
from app.sandbox.apify_dispatch import DispatchState
from app.sandbox.apify_server import ApifyServer
from app.sandbox.hand_clock import HandClock
from tests.support.harness import AIRTABLE_KEY, INTERNAL_TOKEN, WEBHOOK_SECRET, Harness, harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from app.model import Json
    from app.sandbox.apify_dispatch import DispatchRecord
    from app.sandbox.apify_runs import Event, SandboxRun
    from app.sandbox.wire import LoggedRequest
    from app.service import Service

RUN = "251007-070457-Guy-Wilson"
#: Real seconds that what is under way gets to come to its end before time goes on; less where a request hangs.
_PATIENCE, _PATIENCE_WITH_THE_HUNG = 5.0, 0.5
#: Times in a row that nothing is under way: a step may be between its claim and its request.
_LOOKS = 3
_LONGEST_STEP = timedelta(seconds=30)
_HANGS = {"hung", "applied_then_hang", "applied_late", "slow"}


@dataclass(frozen=True, slots=True)
class BatchRow:
    """What a person sees of a batch in the store's file."""

    number: int
    state: str
    outcome: str | None
    cause: str | None
    token: str | None
    apify_run_id: str | None
    apify_status: str | None
    items: int | None
    cost_usd: float | None
    duration_seconds: float | None
    attempts: int
    due_at: str | None
    finished_at: str | None

    @property
    def is_settled(self) -> bool:
        return self.state == "measured" or (self.state == "failed" and self.apify_run_id is None)


_SELECT = f"SELECT {', '.join(one.name for one in fields(BatchRow))} FROM batches WHERE run_id = ? ORDER BY number"


@dataclass
class Harvesting:
    house: Harness
    apify: ApifyServer
    clock: HandClock

    @property
    def sandbox(self) -> ApifySandbox:
        return self.apify.sandbox

    def running(self) -> contextlib.AbstractAsyncContextManager[Service]:
        return self.house.running()

    async def kick_off(self, *batches: Sequence[str], client_id: str = "Guy-Wilson", **more: Json) -> str:
        """A run with a batch for each list of profiles."""
        orders: list[Json] = [{"input": {"profiles": list(one)}, "profiles": len(one)} for one in batches]
        return await self.house.kick_off(client_id, "251007-070457", batches=orders, **more)

    # What is to be seen

    def batches(self, run_id: str = RUN) -> list[BatchRow]:
        with contextlib.closing(sqlite3.connect(f"{self.house.store_path.as_uri()}?mode=ro", uri=True)) as connection:
            return [BatchRow(*row) for row in connection.execute(_SELECT, (run_id,))]

    def batch(self, number: int = 1, run_id: str = RUN) -> BatchRow:
        return self.batches(run_id)[number - 1]

    def record(self, run_id: str = RUN) -> dict[str, Json]:
        """The run's record in Airtable."""
        return self.house.records()[run_id]

    async def shown(self, run_id: str = RUN) -> dict[str, Json]:
        return (await self.house.call("GET", f"/runs/{run_id}")).json()

    def apify_run(self, number: int = 1, run_id: str = RUN) -> SandboxRun:
        apify_run_id = self.batch(number, run_id).apify_run_id
        assert apify_run_id is not None
        return self.sandbox.run(apify_run_id)

    def dispatches(self, event: Event) -> list[DispatchRecord]:
        return [one for one in self.apify.webhooks.log if one.event is event]

    def starts(self) -> list[LoggedRequest]:
        """The starts that were sent, with whatever success."""
        return [one for one in self.apify.log if one.method == "POST" and one.path.endswith("/runs")]

    def assert_each_started_once(self, runs: int) -> None:
        """Apify has made as many runs as there are batches, and each batch is one of them."""
        with contextlib.closing(sqlite3.connect(f"{self.house.store_path.as_uri()}?mode=ro", uri=True)) as connection:
            known = [row[0] for row in connection.execute("SELECT apify_run_id FROM batches WHERE token IS NOT NULL")]
        assert self.sandbox.starts[HARVESTER.id] == runs
        assert len(known) == len(set(known)) == runs
        assert None not in known

    # Time

    async def until(self, condition: Callable[[], bool], *, most: float = 3600.0) -> None:
        """Let time pass, from one due thing to the next, until `condition` holds. Fails after `most` seconds."""
        end = self.clock.monotonic() + most
        await self._come_to_rest()
        while not condition():
            left = end - self.clock.monotonic()
            assert left > 0, f"it did not come to be within {most} s: {self.batches()}"
            self.clock.pass_time(min(left, max(0.001, (await self._next_due() - self.clock.now()).total_seconds())))
            await self._come_to_rest()

    async def pass_time(self, seconds: float) -> None:
        end = self.clock.now() + timedelta(seconds=seconds)
        await self.until(lambda: self.clock.now() >= end, most=seconds)

    async def settled(self, *run_ids: str, most: float = 3600.0) -> None:
        """Let time pass until each batch is measured or failed, and Airtable knows of it."""
        chosen = run_ids or (RUN,)
        await self.until(lambda: all(one.is_settled for run_id in chosen for one in self.batches(run_id)), most=most)
        await self.synced()

    async def synced(self) -> None:
        assert self.house.service is not None
        idle = asyncio.create_task(self.house.service.sync.until_idle())
        await self.until(idle.done)
        await idle

    async def _come_to_rest(self) -> None:
        """Let what is under way come to its end, unless it hangs."""
        in_a_row, begun = 0, asyncio.get_running_loop().time()
        while in_a_row < _LOOKS:
            self._assert_that_all_loops_go_on()
            await asyncio.sleep(0.001)
            in_a_row = in_a_row + 1 if await self._is_at_rest() else 0
            hangs = any(one.status is None and one.fault in _HANGS for one in self.apify.log)
            if asyncio.get_running_loop().time() - begun > (_PATIENCE_WITH_THE_HUNG if hangs else _PATIENCE):
                return

    def _assert_that_all_loops_go_on(self) -> None:
        """Without its loops the service never comes to rest, and what is waited for never comes to be."""
        if self.house.service is not None:
            ended = [loop.get_name() for loop in self.house.service.loops if loop.done()]
            assert not ended, f"{', '.join(ended)} ended"

    async def _is_at_rest(self) -> bool:
        service = self.house.service
        if any(one.state is DispatchState.WAITING for one in self.apify.webhooks.log):
            return False
        if service is None or service.harvest is None:
            return True
        if service.harvest._steps or service.sync._in_flight:
            return False
        due = await service.store.next_batch_due()
        # The loop is at rest once it sleeps: no longer than until what is due next.
        soon = min(self.clock._sleepers.values(), default=None)
        return due is None or (due > self.clock.now() and soon is not None and soon <= due + timedelta(seconds=0.01))

    async def _next_due(self) -> datetime:
        """When something sleeps until, or is written down for: the sleep may be about to begin."""
        times = [*self.clock._sleepers.values(), self.sandbox.next_due(), self.clock.now() + _LONGEST_STEP]
        if self.house.service is not None:
            times += [await self.house.service.store.next_batch_due(), await self.house.service.store.next_due()]
        return min(time for time in times if time is not None)


@contextlib.asynccontextmanager
async def harvesting(
    folder: Path, *, clock: HandClock | None = None, **sections: Mapping[str, Json]
) -> AsyncIterator[Harvesting]:
    """The service (not started yet) and both sandboxes. Time stands still until the test lets it pass."""
    at = clock or HandClock()
    sandbox = ApifySandbox(now=at.now, random=random.Random(7))  # noqa: S311 - the same ids in every run
    async with ApifyServer(sandbox, sleep=at.sleep, monotonic=at.monotonic) as apify:
        apify_section = {"actor_id": HARVESTER.id, **sections.pop("apify", {}), "api_url": apify.url}
        async with harness(folder, clock=at, apify=apify_section, **sections) as house:
            house.secrets = harvest_secrets()
            house.settings = house.settings.model_copy(
                update={"server": house.settings.server.model_copy(update={"public_url": ""})}
            )
            yield Harvesting(house, apify, at)


def harvest_secrets() -> Secrets:
    return Secrets(AIRTABLE_KEY, TOKEN, (WEBHOOK_SECRET,), (INTERNAL_TOKEN,))
