"""The service without sockets, stepped by hand: real store, intake, sync loop, look-ups and client, on a wire by hand.

Each step of the sync loop sends at most one request, and that stays on its way until the test says what becomes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import requests

from app.airtable import Airtable
from app.config import SyncSettings
from app.intake import Intake
from app.lookups import LookupLoop
from app.meters import Meters
from app.sandbox.airtable_limits import NO_LIMITS
from app.store.sqlite.opening import open_store
from app.sync import SyncLoop, SyncRules
from tests.support.harness import AIRTABLE_KEY, make_airtable, make_settings
from tests.support.stores import HARVEST, put_empty_store
from tests.support.wire_by_hand import URL, AccessByHand, HandWire, JumpingClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from pathlib import Path

    from app.fields import Registry
    from app.model import Json
    from app.sandbox.messages import WireResponse
    from app.store.sqlite.store import SqliteStore
    from tests.support.wire_by_hand import OnItsWay

T = TypeVar("T")

#: Virtual seconds. As long as a request may be on its way before its sender gives it up: twice the time-out.
TIMEOUT_SECONDS: Final = 30.0
GIVEN_UP_AFTER: Final = 2 * TIMEOUT_SECONDS
#: Messages are worn out soon, so that it happens.
SYNC: Final = SyncSettings(max_attempts=2, backoff_base_seconds=1.0, backoff_max_seconds=60.0)


@dataclass(eq=False)
class Flight:
    """A request on its way, and the task that waits for its answer."""

    way: OnItsWay
    task: asyncio.Task[None]
    left_at: float
    runs: tuple[str, ...] = ()  # that it writes, once that was read

    @property
    def is_write(self) -> bool:
        return self.way.request.method == "PATCH"

    @property
    def body(self) -> dict[str, Json]:
        body: dict[str, Json] = json.loads(self.way.request.body)
        return body

    @property
    def is_upsert(self) -> bool:
        return self.is_write and "performUpsert" in self.body

    @property
    def records(self) -> list[tuple[str | None, dict[str, Json]]]:
        """The record ids and cells of a write."""
        records = self.body["records"]
        assert isinstance(records, list)
        return [(one.get("id"), one["fields"]) for one in records if isinstance(one, dict)]  # type: ignore[misc]


class HouseByHand:
    """Lives on a loop of its own, and can be killed and opened again; the clock, the emulator and the file stay."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = JumpingClock()
        self.airtable = make_airtable(self.clock)
        self.airtable.limits = NO_LIMITS  # judged when a request leaves
        self.settings = make_settings(folder, URL, self.airtable.schema.base_id)
        self.registry: Registry = self.settings.registry()
        self.path = folder / "runs.db"
        put_empty_store(self.path)
        self.flights: list[Flight] = []
        self.look: asyncio.Task[float | None] | None = None
        self._tokens = 0
        self._random = random.Random(1)  # noqa: S311 - the same waits in every run
        self.opened = contextlib.AsyncExitStack()
        self.open()

    def wait_for(self, awaitable: Awaitable[T]) -> T:
        async def whole() -> T:
            return await awaitable

        return self.loop.run_until_complete(whole())

    # Life

    def open(self) -> None:
        self.wait_for(self._open())
        self.eyes = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)

    async def _open(self) -> None:
        self.store: SqliteStore = await self.opened.enter_async_context(
            open_store(
                self.path,
                at=self.clock.now(),
                linger_seconds=0.0,
                run_fields=list(self.settings.fields),
                rules=HARVEST,
            )
        )
        base = self.airtable.schema
        access = AccessByHand(
            AIRTABLE_KEY, URL, base.base_id, base.table_name, TIMEOUT_SECONDS, wire=HandWire(self.loop)
        )
        self.wire = access.wire
        airtable = Airtable(access, self.registry)
        self.opened.callback(airtable.close)
        rules = SyncRules(
            5, self.settings.model_copy(update={"sync": SYNC}).retry_rules(), self.settings.pause_rules(), 5.0
        )
        meters = Meters()
        self.sync = SyncLoop(self.store, airtable, self.clock, self._random, rules, meters)
        self.lookups = LookupLoop(self.store, self.sync, airtable, self.registry, self.clock)
        self.intake = Intake(
            self.store,
            self.registry,
            self.clock,
            new_token=self._new_token,
            actor_id="actor",
            on_work=self.sync.wake,
            on_missing=self.lookups.wake,
            meters=meters,
        )
        await self.sync.recover()

    def _new_token(self) -> str:
        self._tokens += 1
        return f"token-{self._tokens}"

    def kill(self) -> None:
        """The process is gone, with whatever it was waiting for; what the base made of that is decided already."""
        self.wait_for(self._kill())
        self.eyes.close()

    async def _kill(self) -> None:
        tasks = [flight.task for flight in self.flights]
        if self.look is not None:
            tasks.append(self.look)  # type: ignore[arg-type]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for flight in self.flights:
            flight.way.fail(requests.ConnectionError("the process is gone"))
        self.flights.clear()
        self.look = None
        await self.opened.aclose()
        self.opened = contextlib.AsyncExitStack()

    def close(self) -> None:
        self.kill()
        self.loop.close()

    # Steps

    def step(self) -> tuple[Flight | None, float | None]:
        """One step of the sync loop; what it sent, and its delay."""
        return self.wait_for(self._step())

    async def _step(self) -> tuple[Flight | None, float | None]:
        before = set(self.sync._in_flight)
        delay = await self.sync.run_once()
        return await self._sent(before), delay

    def step_beside(self, other: Coroutine[None, None, T], *, first: bool) -> tuple[Flight | None, T]:
        """One step at the same moment as `other`, which comes just before or just after it; what it sent."""
        return self.wait_for(self._step_beside(other, first=first))

    async def _step_beside(self, other: Coroutine[None, None, T], *, first: bool) -> tuple[Flight | None, T]:
        before = set(self.sync._in_flight)
        doing = self.loop.create_task(other) if first else None
        stepping = self.loop.create_task(self.sync.run_once())
        doing = doing or self.loop.create_task(other)
        await asyncio.gather(doing, stepping)
        return await self._sent(before), doing.result()

    async def _sent(self, before: set[asyncio.Task[None]]) -> Flight | None:
        for task in self.sync._in_flight - before:
            flight = Flight(await self.wire.left(), task, self.clock.monotonic())
            self.flights.append(flight)
            return flight
        return None

    def begin_look(self) -> list[str]:
        """Let the look-ups begin; the runs that they will ask for."""
        return self.wait_for(self._begin_look())

    async def _begin_look(self) -> list[str]:
        due = await self.store.due_looks(self.clock.now(), 50) or [
            one.run_id for one in await self.store.due_record_looks(self.clock.now(), 50)
        ]
        self.look = self.loop.create_task(self.lookups.run_once())
        while not self.look.done() and not self.sync._questions:  # noqa: ASYNC110 - a question has no event
            await asyncio.sleep(0)
        return list(due)

    def end(self, flight: Flight, ending: WireResponse | requests.RequestException) -> None:
        """Let a request end, and what follows from it be kept."""
        self.wait_for(self._end(flight, ending))

    async def _end(self, flight: Flight, ending: WireResponse | requests.RequestException) -> None:
        self.flights.remove(flight)
        if isinstance(ending, requests.RequestException):
            flight.way.fail(ending)
        else:
            flight.way.answer(ending)
        await flight.task
        if not flight.is_write and self.look is not None:
            await self.look
        if self.look is not None and self.look.done():
            self.look = None

    # Looking

    def rows(self, sql: str, *values: str | int) -> list[tuple[str | int | None, ...]]:
        return self.eyes.execute(sql, values).fetchall()

    def pairs(self, sql: str) -> dict[str, str | int | None]:
        return {str(key): value for key, value in self.rows(sql)}
