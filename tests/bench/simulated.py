"""Days in seconds: the real sync loop over the real store, on a clock that jumps from one event to the next.

The base is played in this process: it answers after its latency and holds us to five requests in any second, as the
sandbox does; sockets would need time that does not pass here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from app.config import DEFAULT_FIELDS
from app.fields import Change
from app.meters import Meters
from app.model import Kickoff, Update
from app.policy.delivery import RateLimited, RetryRules, Written
from app.policy.pace import PauseRules
from app.sandbox.hand_clock import HandClock
from app.store.sqlite.opening import open_store
from app.sync import SyncLoop, SyncRules
from tests.support.stores import HARVEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from app.policy.delivery import Answer, Claim
    from app.store.sqlite.store import SqliteStore

START: Final = datetime(2026, 4, 1, tzinfo=UTC)
#: The finest that the clock keeps.
_TICK: Final = 1e-6
#: Hops to the store's threads that it takes at most until everything sleeps again.
_SETTLED: Final = 4


@dataclass(frozen=True, slots=True)
class Event:
    """Something is accepted at `at` (seconds from the start): an update of a run, or its kickoff."""

    at: float
    client_id: str
    job_id: str
    creates: bool = False

    @property
    def run_id(self) -> str:
        return f"{self.job_id}-{self.client_id}"


@dataclass(slots=True)
class Base:
    """Airtable, as far as delivering goes."""

    clock: HandClock
    latency: float
    left: list[float] = field(default_factory=list)
    refused: int = 0

    async def deliver(self, claim: Claim) -> Answer:
        now = self.clock.monotonic()
        self.left.append(now)
        if len([at for at in self.left[-6:] if now - at < 1.0]) > 5:
            self.refused += 1
            return RateLimited("slow down")
        await self.clock.sleep(self.latency)
        return Written({run.run_id: run.record_id or f"rec-{run.run_id}" for run in claim.runs})


@dataclass(frozen=True, slots=True)
class Told:
    """What came of it: calls, refusals, runs, messages, and the seconds from each acceptance to its call, sorted."""

    calls: int
    refused: int
    runs: int
    accepted: int
    waited: Sequence[float]

    def part(self, part: float) -> float:
        return self.waited[int(part * (len(self.waited) - 1))] if self.waited else 0.0


async def simulate(
    path: Path,
    events: Iterable[Event],
    *,
    linger_seconds: float = 0.0,
    monthly_call_budget: int = 0,
    latency: float = 0.3,
    until: float | None = None,
) -> Told:
    """Let `events` come (in the order of their times) and be delivered: to the last one, or `until` that second."""
    clock = HandClock(START)
    base = Base(clock, latency)
    rules = SyncRules(5, RetryRules(100, 1.0, 900.0), PauseRules(30.0, 3600.0), 1.0, monthly_call_budget)
    async with open_store(
        path, at=START, linger_seconds=linger_seconds, run_fields=tuple(DEFAULT_FIELDS), rules=HARVEST
    ) as store:
        store_connection = store._writer._connection
        await store_connection.run(lambda connection: connection.execute("PRAGMA synchronous = OFF").close())
        sync = SyncLoop(store, base, clock, random.Random(1), rules, Meters())  # noqa: S311
        await sync.recover()
        looping = asyncio.create_task(sync.run())
        await _settle(store)
        runs = accepted = 0
        together: list[Event] = []
        for event in events:
            if together and event.at > together[-1].at:
                await _pass_until(store, clock, together[-1].at)
                await _accept(store, clock, sync, together)
                together = []
            together.append(event)
            runs, accepted = runs + event.creates, accepted + 1
        await _pass_until(store, clock, together[-1].at)
        await _accept(store, clock, sync, together)
        if until is None:
            while not sync._idle.is_set():
                now = clock.monotonic()
                await _pass_until(store, clock, max(min(_due(clock), now + 1.0), now + 0.001))
        else:
            await _pass_until(store, clock, until)
        sync.stop()
        clock.pass_time(latency)
        await looping
    return Told(len(base.left), base.refused, runs, accepted, _waited(path))


def _due(clock: HandClock) -> float:
    """When the next sleeper wakes, in seconds from the start; never, where nobody sleeps."""
    asleep = ((at - START).total_seconds() for waking, at in clock._sleepers.items() if not waking.done())
    return min(asleep, default=math.inf)


async def _pass_until(store: SqliteStore, clock: HandClock, end: float) -> None:
    """Jump from sleeper to sleeper up to `end`."""
    while end - (now := clock.monotonic()) > _TICK:
        clock.pass_time(min(max(_due(clock) - now, _TICK), end - now))
        await _settle(store)


async def _accept(store: SqliteStore, clock: HandClock, sync: SyncLoop, events: Sequence[Event]) -> None:
    now = clock.now()
    for event in events:
        if event.creates:
            await store.accept_create(Kickoff(event.client_id, event.job_id, Change()), now)
    updates = [event for event in events if not event.creates]
    change = Change(add={"posts_scored": 1})
    await asyncio.gather(*(store.accept_update(Update(event.run_id, change), now) for event in updates))
    sync.wake()
    await _settle(store)


async def _settle(store: SqliteStore) -> None:
    """Let everybody go on until all sleep: what was asked of the store is answered in order."""
    for _ in range(_SETTLED):
        await store.check()
        await store.next_due()
        await asyncio.sleep(0)


def _waited(path: Path) -> list[float]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT (julianday(c.started_at) - julianday(m.accepted_at)) * 86400 FROM outbox AS m "
            "JOIN airtable_calls AS c ON c.id = m.call_id WHERE m.state = 'delivered'"
        )
        return sorted(max(0.0, row[0]) for row in rows)


# Traffic --------------------------------------------------------------------------------------------------------


def ten_minutes(runs: int, updates: int = 20, seconds: float = 600.0) -> list[Event]:
    """Runs that begin at random moments, each with its updates at random moments after that."""
    chance = random.Random(1)  # noqa: S311
    events = []
    for number in range(runs):
        client, began = f"c{number}", round(chance.uniform(0, 0.8 * seconds), 1)
        events.append(Event(began, client, "260401-000000", creates=True))
        events += [
            Event(round(chance.uniform(began + 0.1, seconds), 1), client, "260401-000000") for _ in range(updates)
        ]
    return sorted(events, key=lambda event: event.at)


def a_day(clients: int, batches: int = 10, at_once: int = 8) -> list[Event]:
    """A job: all runs are kicked off together, and their batches harvested eight at a time, 90 s each.

    A batch that goes on tells something every four seconds or so.
    """
    chance = random.Random(1)  # noqa: S311
    job = "260401-070000"
    events = [Event(0.0, f"c{number}", job, creates=True) for number in range(clients)]
    free = [1.0] * at_once
    for batch in range(clients * batches):
        place = free.index(min(free))
        at, end = free[place], free[place] + 90.0
        while (at := at + chance.expovariate(1 / 4)) < end:
            events.append(Event(round(at, 1), f"c{batch // batches}", job))
        free[place] = end
    return sorted(events, key=lambda event: event.at)


def a_month(clients: int, days: int = 30, updates: int = 20) -> Iterable[Event]:
    """Every morning at seven a job over all clients; the updates come over the next three hours.

    To five minutes: calls are further apart in such a month, and what comes together is simulated at one go.
    """
    chance = random.Random(1)  # noqa: S311
    for day in range(days):
        began = timedelta(days=day, hours=7).total_seconds()
        job = f"2604{day + 1:02d}-070000"
        yield from (Event(began, f"c{number}", job, creates=True) for number in range(clients))
        yield from sorted(
            (
                Event(began + 300.0 * chance.randint(1, 36), f"c{number}", job)
                for number in range(clients)
                for _ in range(updates)
            ),
            key=lambda event: event.at,
        )
