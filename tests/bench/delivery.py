"""Delivery: how near to Airtable's limit the sync loop comes, how few calls it takes, and how long a change waits."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Final

from app.clock import SystemClock
from app.fields import Change
from app.logs import configure_logs
from app.model import Kickoff
from app.sandbox.faults import slow
from tests.bench.frame import Form, Options, Table
from tests.bench.simulated import START, a_day, a_month, simulate, ten_minutes
from tests.support.harness import Harness, harness
from tests.support.stores import adding, open_desk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


LATENCY: Final = 0.3
#: What the base would take: five requests a second with ten records each.
MOST: Final = 50.0
FREE_PLAN: Final = 1_000
LINGERS: Final = (0.0, 1.0, 5.0, 30.0)


async def measure(options: Options) -> Sequence[Table]:
    folder = options.folder
    configure_logs((), quiet=True)
    return [
        await _limit(folder, 200 if options.form is Form.QUICK else 2_000),
        await _burst(folder),
        await _idle(folder, 10 if options.form is Form.QUICK else 60),
        await _company(folder, 300 if options.form is Form.QUICK else 3_000),
        await _lingering(folder, options.pick(quick=10, short=15, full=100)),
        await _budget(folder, (10,) if options.form is Form.QUICK else (10, 30, 100)),
    ]


async def _limit(folder: Path, runs: int) -> Table:
    """Pending creates, at the sandbox's real limit, over real sockets."""
    (folder / "limit").mkdir()
    async with harness(folder / "limit") as house:
        house.airtable_server.faults.add(slow(LATENCY), times=None)
        async with open_desk(house.store_path, SystemClock().now()) as desk:
            kickoffs = [Kickoff(f"c{number}", "260401-070000", Change()) for number in range(runs)]
            await asyncio.gather(*(desk.store.accept_create(one, SystemClock().now()) for one in kickoffs))
        async with house.running() as service:
            async with asyncio.timeout(runs):
                await service.sync.until_idle()
        log = house.airtable_server.log
    refused = sum(request.status == 429 for request in log)
    took = max(request.received_at for request in log) - min(request.received_at for request in log)
    per_second = (runs - 10) / took  # between the first request and the last, whose ten are on top
    rows = [
        ["records a second", f"{per_second:.1f}", f"at least {0.95 * MOST:.1f}", _verdict(per_second >= 0.95 * MOST)],
        ["requests", str(len(log)), str(runs // 10), ""],
        ["429s", str(refused), "0", _verdict(refused == 0)],
    ]
    return Table(f"{runs:,} pending runs, 300 ms latency, 5 requests a second", ("", "seen", "goal", ""), rows)


async def _burst(folder: Path) -> Table:
    (folder / "burst").mkdir()
    async with harness(folder / "burst", airtable={"timeout_seconds": 30.0}) as house:
        house.airtable_server.faults.add(slow(3.0), times=1)  # so that all updates come while the create is on its way
        async with house.running():
            run_id = await house.kick_off("first")
            await _update(house, run_id, 20)
            await house.synced()
        under_way = len(house.airtable_server.log)
        async with open_desk(house.store_path, SystemClock().now()) as desk:
            now = SystemClock().now()
            await desk.store.accept_create(Kickoff("second", "260401-070000", Change()), now)
            for _ in range(20):
                await desk.store.accept_update(adding("260401-070000-second", posts_scored=1), now)
        async with house.running():
            await house.synced()
        waiting = len(house.airtable_server.log) - under_way
    rows = [
        ["all accepted before the call leaves", str(waiting), "1", _verdict(waiting == 1)],
        ["the create is on its way already", str(under_way), "2", _verdict(under_way <= 2)],
    ]
    return Table("One create and 20 updates of one run", ("", "calls", "goal", ""), rows)


async def _update(house: Harness, run_id: str, times: int) -> None:
    for _ in range(times):
        answer = await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_scored": 1}})
        assert answer.status == 202


async def _idle(folder: Path, times: int) -> Table:
    """From the answer to a caller, and from his request, to the arrival at the base."""
    (folder / "idle").mkdir()
    after: list[float] = []
    whole: list[float] = []
    async with harness(folder / "idle") as house, house.running():
        run_id = await house.kick_off()
        await house.synced()
        for _ in range(times):
            await asyncio.sleep(0.25)  # within the limit, so that nothing waits for it
            asked = time.monotonic()
            await _update(house, run_id, 1)
            answered = time.monotonic()
            await house.synced()
            at = house.airtable_server.log[-1].received_at
            after.append(max(0.0, at - answered) * 1000)
            whole.append((at - asked) * 1000)
    rows = [
        [name, f"{statistics.median(taken):.1f}", f"{sorted(taken)[int(0.95 * len(taken))]:.1f}", goal]
        for name, taken, goal in (
            ("from the answer 202", after, _verdict(statistics.median(after) < 15)),
            ("from the caller's request", whole, ""),
        )
    ]
    return Table(
        "An idle service: an update to the request on the wire, ms", ("", "median", "p95", "under 15 ms"), rows
    )


async def _company(folder: Path, runs: int) -> Table:
    told = await simulate(folder / "company.db", ten_minutes(runs))
    naive = 2 * 20 + 1
    rows = [
        ["calls a run", f"{told.calls / runs:.2f}", "at most 1.2", _verdict(told.calls <= 1.2 * runs)],
        ["the naive way: a look-up and a write an update", f"{naive}", "", ""],
        ["calls", f"{told.calls:,}", f"{naive * runs:,} the naive way", ""],
        ["429s", str(told.refused), "0", _verdict(told.refused == 0)],
        ["seconds to the call: median, p95", f"{told.part(0.5):.1f}, {told.part(0.95):.1f}", "", ""],
    ]
    title = f"{runs:,} runs of one create and 20 updates, over ten simulated minutes"
    return Table(title, ("", "seen", "goal", ""), rows)


async def _lingering(folder: Path, clients: int) -> Table:
    events = a_day(clients)
    rows = []
    for linger in LINGERS:
        told = await simulate(folder / f"linger-{linger:g}.db", events, linger_seconds=linger)
        rows.append(
            [
                f"{linger:g} s", f"{told.calls:,}", f"{told.accepted / told.calls:.1f}",
                f"{told.part(0.5):.1f}", f"{told.part(0.95):.1f}", f"{told.part(1.0):.1f}",
            ]
        )  # fmt: skip
    hours = (events[-1].at - events[0].at) / 3600
    note = (
        f"{clients} clients of 10 batches, eight batches at a time, an update about every four seconds of each: "
        f"{len(events):,} messages in {hours:.1f} hours. Delays are in seconds from the acceptance to the call."
    )
    columns = ("linger_seconds", "calls", "messages a call", "median delay", "p95", "longest")
    return Table("What lingering saves, and what it costs, on a day's traffic", columns, rows, note)


async def _budget(folder: Path, clients: Sequence[int]) -> Table:
    rows = []
    month = 30 * 86_400.0
    for number in clients:
        events = a_month(number)
        told = await simulate(folder / f"month-{number}.db", events, monthly_call_budget=FREE_PLAN, until=month - 1.0)
        rows.append(
            [
                f"{number} a day: {told.runs:,} runs", f"{told.calls:,}", f"{len(told.waited) / told.accepted:.1%}",
                _time(told.part(0.5)), _time(told.part(0.95)), _time(told.part(1.0)),
            ]
        )  # fmt: skip
    note = (
        "A job a day at seven over all clients, each run with one create and 20 updates in the next three hours, from "
        f"{START:%B} 1 to the end of that month. The naive way needs 41 calls a run: 24 runs a month."
    )
    columns = ("runs", f"calls of {FREE_PLAN:,}", "delivered by the month's end", "median delay", "p95", "longest")
    return Table("A month on the Free plan", columns, rows, note)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _verdict(met: bool) -> str:
    return "met" if met else "missed"
