"""The service killed at each step of a batch, and started again: one Apify run a batch, and the right figures."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from app.clock import SystemClock
from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER, Timing
from app.sandbox.apify_dispatch import Lose
from app.sandbox.apify_runs import Plan
from app.sandbox.apify_server import ApifyServer
from app.sandbox.wire import WireServer, applied_then_hang, hung
from tests.support.harness import AIRTABLE_KEY, INTERNAL_TOKEN, WEBHOOK_SECRET, make_airtable
from tests.support.process import Served, free_port, served
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from app.model import Json
    from app.sandbox.airtable import AirtableSandbox
    from app.sandbox.wire import LoggedRequest

RUN = "251007-070457-Guy-Wilson"


@dataclass
class Town:
    """Both sandboxes, which live on while the service does not."""

    folder: Path
    airtable: AirtableSandbox
    airtable_url: str
    apify: ApifyServer
    port: int

    def served(self) -> contextlib.AbstractAsyncContextManager[Served]:
        return served(
            self.folder,
            words=("serve",),
            port=self.port,
            AIRTABLE_API_KEY=AIRTABLE_KEY,
            APIFY_TOKEN=TOKEN,
            APIFY_WEBHOOK_SECRET=WEBHOOK_SECRET,
            INTERNAL_API_TOKEN=INTERNAL_TOKEN,
            RUNRECORDS_AIRTABLE__ENDPOINT_URL=self.airtable_url,
            RUNRECORDS_AIRTABLE__BASE_ID=self.airtable.schema.base_id,
            RUNRECORDS_APIFY__API_URL=self.apify.url,
            RUNRECORDS_APIFY__ACTOR_ID=HARVESTER.id,
            RUNRECORDS_APIFY__POLL_INTERVAL_SECONDS="0.2",
            RUNRECORDS_APIFY__LOOK_AFTER_SECONDS="1.5",
            RUNRECORDS_APIFY__SETTLE_SECONDS="0.5",
        )

    @contextlib.asynccontextmanager
    async def killed(self, when: Callable[[], bool]) -> AsyncIterator[Served]:
        """The service, killed with SIGKILL after the block as soon as it is time."""
        async with self.served() as service:
            yield service
            await until(when, timeout=30)
            assert await service.end(signal.SIGKILL) == -signal.SIGKILL

    async def kick_off(self, service: Served, *profiles: str) -> None:
        batches: list[Json] = [{"input": {"profiles": [one]}, "profiles": 1} for one in profiles]
        body = {"client_id": "Guy-Wilson", "job_id": "251007-070457", "batches": batches}
        status, _ = await service.call("POST", "/runs", body, {"Authorization": f"Bearer {INTERNAL_TOKEN}"})
        assert status == 201

    def states(self) -> list[object]:
        return [state for (state,) in rows(self.folder / "runs.db", "SELECT state FROM batches ORDER BY number")]

    def all_are(self, state: str) -> bool:
        return bool(self.states()) and set(self.states()) == {state}

    def log_has(self, fits: Callable[[LoggedRequest], bool]) -> bool:
        return any(fits(one) for one in self.apify.log)

    def record(self) -> dict[str, Json]:
        (record,) = self.airtable.records()
        return dict(record.fields)

    async def ends_well(self, batches: int = 1) -> None:
        """Start the service again, and judge what Apify and Airtable have in the end."""
        self.apify.faults.clear()
        async with self.served() as service:
            await until(lambda: self.all_are("measured"), timeout=40)
            await until(lambda: self.record().get("Total Posts Harvested") == 3 * batches)
            assert await service.end(signal.SIGTERM) == 0
        assert self.apify.sandbox.starts == {HARVESTER.id: batches}
        known = rows(self.folder / "runs.db", "SELECT apify_run_id FROM batches ORDER BY number")
        assert len({apify_run_id for (apify_run_id,) in known}) == batches
        record = self.record()
        assert record["Apify API Costs"] == round(0.016 * batches, 6)
        assert record["Status"] == "Completed"
        assert record["Profiles Submitted for Post Harvesting"] == batches
        assert record["Apify Run ID"] == ", ".join(str(apify_run_id) for (apify_run_id,) in known)


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    clock = SystemClock()
    airtable = make_airtable(clock)
    timing = Timing(settle=0.1, item_lag=0.1)
    sandbox = ApifySandbox(now=clock.now, random=random.Random(7), timing=timing)  # noqa: S311 - ids of a sandbox
    async with WireServer(airtable) as wire, ApifyServer(sandbox, retry_factor=0.02) as apify:
        yield Town(tmp_path, airtable, wire.url, apify, free_port())


@pytest.mark.parametrize("webhooks", ["lost", "retried"])
async def test_killed_after_the_mark_and_before_the_start(town: Town, webhooks: str) -> None:
    if webhooks == "lost":
        town.apify.webhooks.treat(Lose(), times=None)
    town.apify.faults.add(hung(), method="POST")
    async with town.killed(lambda: bool(town.apify.log)) as service:
        await town.kick_off(service, "ann")
    assert town.all_are("starting")
    await town.ends_well()


@pytest.mark.parametrize("webhooks", ["lost", "retried"])
async def test_killed_after_the_start_and_before_its_answer(town: Town, webhooks: str) -> None:
    if webhooks == "lost":
        town.apify.webhooks.treat(Lose(), times=None)
    town.apify.faults.add(applied_then_hang(), method="POST")
    async with town.killed(lambda: town.apify.sandbox.starts[HARVESTER.id] == 1) as service:
        await town.kick_off(service, "ann")
    await town.ends_well()


async def test_killed_while_it_ran(town: Town) -> None:
    plan = town.apify.sandbox.script
    town.apify.sandbox.script = lambda given: _lasting(plan(given), 2.0)
    async with town.killed(lambda: town.all_are("running")) as service:
        await town.kick_off(service, "ann", "bob")
    await town.ends_well(2)


async def test_killed_after_the_end_and_before_the_figures_were_asked_for(town: Town) -> None:
    async with town.killed(lambda: town.all_are("succeeded")) as service:
        await town.kick_off(service, "ann", "bob")
    await town.ends_well(2)


async def test_killed_before_the_figures_were_kept(town: Town) -> None:
    town.apify.faults.add(hung(), path_contains="/datasets/", times=None)
    async with town.killed(lambda: town.log_has(lambda one: "/datasets/" in one.path)) as service:
        await town.kick_off(service, "ann")
    assert town.all_are("succeeded")
    await town.ends_well()


async def test_killed_again_and_again_at_any_moment(town: Town) -> None:
    moments = random.Random(3)  # noqa: S311 - the same moments in every run
    plan = town.apify.sandbox.script
    town.apify.sandbox.script = lambda given: _lasting(plan(given), 1.0)
    async with town.served() as service:
        await town.kick_off(service, "a", "b", "c", "d")
        await service.end(signal.SIGKILL)
    for _ in range(3):
        async with town.served() as service:
            await asyncio.sleep(moments.uniform(0.0, 0.4))
            await service.end(signal.SIGKILL)
    await town.ends_well(4)


def _lasting(plan: Plan, seconds: float) -> Plan:
    return Plan(items=plan.items, cost_usd=plan.cost_usd, lasts_seconds=seconds)
