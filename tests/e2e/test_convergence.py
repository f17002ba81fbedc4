"""Random creates and updates under random faults: in the end Airtable holds the fold of what was accepted."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.faults import (
    applied_then_dropped,
    applied_then_hang,
    dropped,
    hung,
    mixture,
    odd_body,
    server_error,
    slow,
    truncated,
)
from tests.support.harness import Harness, harness
from tests.support.watching import calls, rows

if TYPE_CHECKING:
    from pathlib import Path

    from app.model import Json

FAULTS = [
    (0.06, applied_then_dropped()),
    (0.06, dropped()),
    (0.04, applied_then_hang()),
    (0.02, hung()),
    (0.05, server_error(500, applied=True)),
    (0.05, server_error(503)),
    (0.05, truncated()),
    (0.04, odd_body(b"{}")),
    (0.04, odd_body(b"null")),
    (0.10, slow(0.2)),
]
NUMBERS = {"posts_harvested": "Total Posts Harvested", "profiles_scored": "Profiles Successfully Scored"}


class Model:
    """What Airtable has to hold in the end, kept apart from how the service folds."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.runs: dict[str, dict[str, Json]] = {}
        self.sent = 0

    async def step(self, house: Harness) -> None:
        if len(self.runs) < 3 or (len(self.runs) < 25 and self.rng.random() < 0.25):
            await self._kick_off(house)
        else:
            await self._update(house, self.rng.choice(list(self.runs)))

    async def _kick_off(self, house: Harness) -> None:
        number = len(self.runs)
        body: dict[str, Json] = {"client_id": f"client{number}", "job_id": "251007-070457"}
        for _ in range(self.rng.choice([1, 1, 2])):  # a caller that heard nothing asks again
            assert (await house.call("POST", "/runs", body)).status in {200, 201}
        self.runs[f"251007-070457-client{number}"] = {"Status": "Running"}

    async def _update(self, house: Harness, run_id: str) -> None:
        self.sent += 1
        cells = self.runs[run_id]
        name, column = self.rng.choice(list(NUMBERS.items()))
        number = self.rng.randint(-5, 50)
        body: dict[str, Json]
        match self.rng.randrange(5):
            case 0:
                body = {"set": {name: number}}
                cells[column] = number
            case 1:
                status = self.rng.choice(["Running", "Completed", "Failed"])
                body = {"set": {"status": status}}
                cells["Status"] = status
            case 2:
                body = {"append": {"progress_log": f"line {self.sent}"}}
                log = cells.get("Progress Log")
                cells["Progress Log"] = f"{log}\nline {self.sent}" if log else f"line {self.sent}"
            case _:
                body = {"add": {name: number}}
                before = cells.get(column, 0)
                assert isinstance(before, int)
                cells[column] = before + number
        for _ in range(self.rng.choice([1, 1, 3])):
            answer = await house.call("PATCH", f"/runs/{run_id}", body, headers={"Idempotency-Key": str(self.sent)})
            assert answer.json()["outcome"] in {"queued", "duplicate"}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_happens_on_the_way_airtable_converges_to_what_was_accepted(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - the same story for the same seed
    model = Model(rng)
    async with harness(tmp_path, airtable={"requests_per_second": 50}, sync={"shutdown_seconds": 0.2}) as house:
        house.airtable.limits = NO_LIMITS
        house.airtable_server.faults.plan = mixture(random.Random(seed), FAULTS)  # noqa: S311
        for _ in range(3):  # and it is stopped and started in the middle of it all
            async with house.running():
                for _ in range(40):
                    await model.step(house)
        house.airtable_server.faults.clear()
        async with house.running():
            await house.synced()
            shown = {run_id: (await house.call("GET", f"/runs/{run_id}")).json() for run_id in model.runs}
    records = house.records()
    assert records.keys() == model.runs.keys()
    for run_id, cells in model.runs.items():
        assert {column: records[run_id].get(column) for column in cells} == cells, run_id
        assert shown[run_id]["sync"] == "synced"
    assert rows(house.store_path, "SELECT DISTINCT state FROM outbox") == [("delivered",)]
    assert rows(house.store_path, "SELECT count(*) FROM errors") == [(0,)]
    for call in calls(house.airtable_server.log):
        assert call.upsert == (None in call.ids)
        assert len(call.records) <= 10
