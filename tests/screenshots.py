"""The pictures of the page in docs/, made by the code of this commit: `make screenshots`.

They show the demo's job over an afternoon of the hand clock: three clients are kicked off and harvested, their updates
come all afternoon, Airtable fails for a moment, and one update names a run that nobody kicked off.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from app.logs import configure_logs
from app.sandbox.demo import BATCHES, CLIENTS
from app.sandbox.hand_clock import HandClock
from app.sandbox.wire import server_error, slow
from tests.support.browser import open_browser, visit
from tests.support.harvesting import Harvesting, harvesting
from tests.support.watching import let_time_pass

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.model import Json

JOB = "261123-090000"
START = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
MINUTES = 330
_STEP = 5


@contextlib.asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Harvesting]:
    """The service at the end of that afternoon, running."""
    async with harvesting(folder, clock=HandClock(START)) as one, one.running():
        await _play(one)
        yield one


async def _play(one: Harvesting) -> None:
    chance = random.Random(20)  # noqa: S311 - the same afternoon in every run
    for client_id, name in CLIENTS.items():
        batches = [
            [f"https://www.linkedin.com/in/{client_id}-{n}" for n in range(size)] for size in BATCHES.get(client_id, ())
        ]
        orders: list[Json] = [{"input": {"profiles": list(urls)}, "profiles": len(urls)} for urls in batches]
        await one.house.kick_off(client_id, JOB, client_name=name, batches=orders)
    runs = [f"{JOB}-{client_id}" for client_id in CLIENTS]
    await one.settled(*runs[:2])
    faults = one.house.airtable_server.faults
    faults.plan = lambda _request: slow(0.2 + chance.expovariate(2.5))
    for minute in range(_STEP, MINUTES, _STEP):
        if minute == 140:
            faults.add(server_error(503), times=6)
        for n in range(chance.randint(0, 3) + (9 if 100 < minute < 190 else 2)):
            await _update(one, chance.choice(runs), {"add": {"posts_scored": 1 + n % 3}})
            one.clock.pass_time(chance.random())
        await _delivered(one)
        one.clock.pass_time(_STEP * 60 - (one.clock.monotonic() % (_STEP * 60)))
    await _update(one, JOB, {"add": {"posts_scored": 7}})
    await _update(one, JOB, {"append": {"progress_log": "scored 7 posts"}})
    await _update(one, runs[2], {"set": {"status": "No Leads To Score"}})
    await _delivered(one)
    faults.clear()


async def _update(one: Harvesting, run_id: str, change: Json) -> None:
    assert (await one.house.call("PATCH", f"/runs/{run_id}", change)).status == 202


async def _delivered(one: Harvesting) -> None:
    assert one.house.service is not None
    idle = asyncio.create_task(one.house.service.sync.until_idle())
    await let_time_pass(one.clock, idle.done)


# Pictures -------------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs"


async def take_all() -> None:
    configure_logs((), quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        async with scene(Path(folder)) as one, open_browser() as browser:
            assert one.house.service is not None
            url = one.house.service.url
            async with visit(browser, url) as seen:
                await seen.sign_in()
                await seen.page.locator("#runs").wait_for()
                await seen.page.screenshot(path=DOCS / "page.png", full_page=True)
                await seen.go(f"/page/runs/{JOB}-Guy-Wilson")
                await seen.page.screenshot(path=DOCS / "run.png")
            async with visit(browser, url, scheme="dark") as seen:
                await seen.sign_in()
                await seen.page.locator("#runs").wait_for()
                await seen.page.screenshot(path=DOCS / "page-dark.png", full_page=True)
            async with visit(browser, url, width=360, scale=2) as seen:
                await seen.sign_in()
                await seen.page.locator("#runs").wait_for()
                await seen.page.screenshot(path=DOCS / "page-phone.png")


if __name__ == "__main__":
    asyncio.run(take_all())
