"""Callers that put a service under load and keep a ledger of what they were told, to be held against what is left.

Each update appends one line of its own to the run's log and adds one to a number, so that a run's record tells by
itself what arrived, how often, and in which order.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import aiohttp

from tests.support.harness import INTERNAL_TOKEN, WEBHOOK_SECRET
from tests.support.watching import rows

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from app.model import Json

JOB = "251007-070457"
LINES, COUNT, APIFY_RUNS = "Progress Log", "Total Posts Harvested", "Apify Run ID"
#: Updates of one run: enough that they come while it is created, sent and settled.
UPDATES_PER_RUN = 6


@dataclass(frozen=True, slots=True)
class Told:
    """Something that was answered with 2xx. `at` is what the clock of the load showed when the answer was there."""

    what: Literal["kickoff", "line", "webhook"]
    run_id: str
    item: str
    at: float


@dataclass
class Ledger:
    """What was answered with 2xx, and the lines that were sent at all."""

    told: list[Told] = field(default_factory=list)
    tried: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def judge(
        self,
        records: Mapping[str, Mapping[str, Json]],
        held: Mapping[str, Sequence[str]],
        until: float = math.inf,
    ) -> None:
        """`records` are all of the base by their run ids, one for each; `held` the lines of runs that do not exist.

        Only what was answered by `until` has to be there.
        """
        told: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for one in self.told:
            if one.at <= until:
                told[one.what][one.run_id].add(one.item)
        assert told["kickoff"].keys() <= records.keys(), "a kickoff lost"
        for run_id in told["line"].keys() - records.keys():
            assert told["line"][run_id] <= set(held.get(run_id, ())), f"{run_id}: a held line lost"
        for run_id, waiting in held.items():
            assert len(waiting) == len(set(waiting)), f"{run_id}: a held line twice"
        for run_id, cells in records.items():
            lines = str(cells[LINES]).split("\n") if cells.get(LINES) else []
            assert len(lines) == len(set(lines)), f"{run_id}: a line twice"
            assert told["line"][run_id] <= set(lines), f"{run_id}: a line lost"
            assert set(lines) <= self.tried[run_id], f"{run_id}: a line from nowhere"
            assert (cells.get(COUNT) or 0) == len(lines), f"{run_id}: not each counted once"
            assert lines == sorted(lines), f"{run_id}: out of order"  # one caller, who waits for each answer
            apify_runs = [one for one in str(cells.get(APIFY_RUNS) or "").split(", ") if one]
            assert len(apify_runs) == len(set(apify_runs)), f"{run_id}: a webhook twice"
            assert told["webhook"][run_id] <= set(apify_runs), f"{run_id}: a webhook lost"


def kept(store: Path) -> dict[str, dict[str, Json]]:
    """The runs of a store as the base is to show them."""
    names = {"progress_log": LINES, "posts_harvested": COUNT, "apify_run_ids": APIFY_RUNS}
    found = rows(store, "SELECT run_id, fields FROM runs")
    return {
        str(run_id): {names[name]: value for name, value in json.loads(str(fields)).items() if name in names}
        for run_id, fields in found
    }


def held(store: Path) -> dict[str, list[str]]:
    """The lines that a store holds for runs that do not exist, in order of their acceptance."""
    lines: dict[str, list[str]] = defaultdict(list)
    for run_id, change in rows(store, "SELECT run_id, change FROM held_updates WHERE state = 'held' ORDER BY id"):
        lines[str(run_id)] += json.loads(str(change))["append"]["progress_log"]
    return lines


class Load:
    """Callers that go on over restarts: who was not answered asks again, or, every fifth, never does."""

    def __init__(self, url: str, rng: random.Random, *, batches: int = 0) -> None:
        """The first `batches` kickoffs order a batch each."""
        self.ledger = Ledger()
        self.refused = 0
        self._url = url
        self._batches = batches
        self._rng = rng
        self._numbers = itertools.count(1)
        self.clock: Callable[[], float] = time.monotonic

    async def run(self, callers: int) -> None:
        """Call without end."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self._call_on(http))

    async def _call_on(self, http: aiohttp.ClientSession) -> None:
        while True:
            await self._one_run(http, next(self._numbers))

    async def _one_run(self, http: aiohttp.ClientSession, number: int) -> None:
        client = str(number)
        run_id = f"{JOB}-{client}"
        early = self._rng.random() < 0.15  # its updates are held until it comes
        if early:
            await self._update(http, run_id, number, 0)
        kickoff: dict[str, Json] = {"client_id": client, "job_id": JOB}
        if number <= self._batches:
            kickoff["batches"] = [{"input": {"profiles": ["ann"]}, "profiles": 1}]
        if await self._send(http, "POST", "/runs", kickoff, {}):
            self._tell("kickoff", run_id, run_id)
        elif not early:
            return  # nobody knows whether it is there
        for step in range(1, UPDATES_PER_RUN):
            if step == 3:
                await self._webhook(http, run_id, client, number)
            await self._update(http, run_id, number, step)

    def _tell(self, what: Literal["kickoff", "line", "webhook"], run_id: str, item: str) -> None:
        self.ledger.told.append(Told(what, run_id, item, self.clock()))

    async def _update(self, http: aiohttp.ClientSession, run_id: str, number: int, step: int) -> None:
        line = f"{number}:{step}"
        self.ledger.tried[run_id].add(line)
        body: dict[str, Json] = {"append": {"progress_log": line}, "add": {"posts_harvested": 1}}
        if await self._send(http, "PATCH", f"/runs/{run_id}", body, {"Idempotency-Key": line}):
            self._tell("line", run_id, line)

    async def _webhook(self, http: aiohttp.ClientSession, run_id: str, client: str, number: int) -> None:
        apify_run = f"run{number}"
        body: dict[str, Json] = {
            "resource": {"id": apify_run, "defaultDatasetId": f"set{number}", "status": "SUCCEEDED"},
            "jobRunId": JOB,
            "clientId": client,
            "eventType": "ACTOR.RUN.SUCCEEDED",
            "createdAt": "2025-10-07T07:31:12.000Z",
        }
        headers = {"X-Apify-Webhook-Dispatch-Id": apify_run, "Authorization": f"Bearer {WEBHOOK_SECRET}"}
        if await self._send(http, "POST", "/webhooks/apify", body, headers):
            self._tell("webhook", run_id, apify_run)

    async def _send(
        self, http: aiohttp.ClientSession, method: str, path: str, body: Json, headers: Mapping[str, str]
    ) -> bool:
        """Whether it was answered with 2xx in the end; `False` where the caller gave up."""
        gives_up = self._rng.random() < 0.2
        sent = {"Authorization": f"Bearer {INTERNAL_TOKEN}", "Content-Type": "application/json", **headers}
        while True:
            begun = False
            with contextlib.suppress(aiohttp.ClientError):
                async with http.request(method, self._url + path, data=json.dumps(body), headers=sent) as answer:
                    begun = True
                    text = await answer.text()
                    if answer.status < 300:
                        return True
                    assert answer.status == 503, text
                    self.refused += 1
            await asyncio.sleep(0.01)  # it is being stopped, or started again
            if begun or gives_up:
                return False
