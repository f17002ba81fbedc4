"""Mixtures of all that a wire and a base can do, by seed, over real sockets with the real clients; time passes by hand.

What the base saw and what the service wrote down of it are judged: the pace, the rests, that nothing was sent that was
not needed, and that all ends as if nothing had happened. `make soak` plays many more seeds.
"""

from __future__ import annotations

import asyncio
import os
import random
from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING, Final

import pytest

from app.clock import parse_iso
from app.sandbox.airtable_errors import ErrorForms, RateLimitForm, forbidden, quota_exceeded, rate_limited
from app.sandbox.faults import (
    applied_then_dropped,
    applied_then_hang,
    dropped,
    hung,
    mixture,
    odd_body,
    reply,
    server_error,
    slow,
    truncated,
)
from app.sandbox.hand_clock import HandClock
from tests.support.harness import Harness, harness
from tests.support.watching import calls, most_in_any_second, rows, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from app.sandbox.faults import Fault, Plan
    from app.sandbox.messages import WireRequest

#: Stands for a base that somebody else has asked too often: it says no, and goes on saying it for thirty seconds.
PENALTY: Final = rate_limited()
FAULTS: Final[list[tuple[float, Fault]]] = [
    (0.04, PENALTY),
    (0.02, rate_limited(RateLimitForm.LIST)),
    (0.01, odd_body(b"null", status=429)),
    (0.01, quota_exceeded()),
    (0.01, reply(forbidden().response(ErrorForms()), name="forbidden")),
    (0.04, server_error(500)),
    (0.04, server_error(500, applied=True)),
    (0.03, server_error(502, applied=True)),
    (0.04, server_error(503, 7)),
    (0.02, server_error(503, 45, applied=True)),
    (0.06, applied_then_dropped()),
    (0.04, dropped()),
    (0.005, applied_then_hang()),
    (0.005, hung()),
    (0.06, slow(0.7)),
    (0.04, slow(3.0)),
    (0.04, truncated()),
    (0.02, odd_body(b"{}")),
    (0.02, odd_body(b"5")),
    (0.02, odd_body(b"<html>hello</html>", applied=False)),
    (0.02, odd_body(b'{"records": []}', applied=False)),
    (0.02, odd_body(b'{"records": [{"id": "recOther000000000", "fields": {"Run ID": "other"}}]}')),
]
#: How long the base is left alone at the least after these of its answers.
RESTS: Final = {429: 30, 503: 7}
#: Those after which the sender gets the real answer.
HARMLESS: Final = {None, "slow"}


def plan_for(house: Harness, seed: int) -> Plan:
    mixed = mixture(random.Random(seed), FAULTS)  # noqa: S311 - the same faults for the same seed

    def plan(request: WireRequest) -> Fault | None:
        fault = mixed(request)
        if fault is not PENALTY:
            return fault
        house.airtable.exhaust_rate()
        return None

    return plan


async def let_it_run(
    house: Harness, clock: HandClock, condition: Callable[[], bool], most: float, longest: float = 0.2
) -> None:
    """Let time pass until `condition` holds, but not while a request is between the service and the base.

    So that what the base sees of the pace is the service's doing, and not that of a busy machine. While no answer is
    awaited, up to `longest` seconds pass at once: until whoever sleeps the least is woken.
    """
    end = clock.monotonic() + most
    while not condition():
        assert clock.monotonic() < end, f"it did not come to be within {most} s"
        await until(lambda: rows(house.store_path, BEGUN) == [(len(house.airtable_server.log),)])
        awaited = rows(house.store_path, AWAITED) != [(0,)]
        clock.pass_time(0.2 if awaited else max(0.2, clock.sleeps_for(longest)))
        await asyncio.sleep(0.002)


BEGUN: Final = "SELECT count(*) FROM airtable_calls"
AWAITED: Final = "SELECT count(*) FROM airtable_calls WHERE outcome = 'in_flight'"
WAITING: Final = "SELECT 1 FROM pending_sync LIMIT 1"


async def play(folder: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - the same story for the same seed
    clock = HandClock()
    sums: dict[str, int] = {}
    sync = {"max_attempts": 1000, "backoff_base_seconds": 1.0, "backoff_max_seconds": 20.0, "quota_pause_seconds": 90.0}
    async with harness(folder, clock=clock, sync=sync) as house, house.running():
        house.airtable_server.faults.plan = plan_for(house, seed)
        for _ in range(25):
            for _ in range(rng.randrange(5)):
                sums[await house.kick_off(f"client{len(sums)}")] = 0
            for run_id, number in product(rng.sample(sorted(sums), min(len(sums), 6)), [1, 2]):
                await house.call("PATCH", f"/runs/{run_id}", {"add": {"posts_harvested": number}})
                sums[run_id] += number
            now = clock.monotonic()
            await let_it_run(house, clock, lambda now=now: clock.monotonic() > now + 1.0, 10.0)  # type: ignore[misc]
        house.airtable_server.faults.clear()
        await let_it_run(house, clock, lambda: rows(house.store_path, WAITING) == [], 1000.0, longest=10.0)
        asked = len(house.airtable_server.log)
        now = clock.monotonic()
        await let_it_run(house, clock, lambda: clock.monotonic() > now + 120.0, 200.0, longest=1.0)
        assert len(house.airtable_server.log) == asked, "nothing waits, and it asked"
    held = {run_id: cells.get("Total Posts Harvested", 0) for run_id, cells in house.records().items()}
    assert held == sums
    assert rows(house.store_path, "SELECT count(*) FROM errors") == [(0,)]
    judge_the_log(house)
    judge_the_rests(house)


def judge_the_log(house: Harness) -> None:
    log = house.airtable_server.log
    assert most_in_any_second(log) <= 5
    assert {request.method for request in log} == {"PATCH"}, "no create is sent as a plain create"
    for call in calls(log):
        assert call.upsert == (None in call.ids)
        assert 1 <= len(call.records) <= 10
    assert rows(house.store_path, BEGUN) == [(len(log),)], "nobody below us sends anything again by himself"
    useful = rows(house.store_path, "SELECT count(DISTINCT call_id) FROM outbox WHERE state = 'delivered'")
    done = [request for request in log if request.fault in HARMLESS and request.status == 200]
    assert useful == [(len(done),)], "each request that was answered well delivered something"


def judge_the_rests(house: Harness) -> None:
    """From the moment at which a 429 is known nothing leaves for thirty seconds, and after a 503 for what it says."""
    made = [
        (parse_iso(str(started)), parse_iso(str(finished)), RESTS.get(int(str(status or 0)), 0))
        for started, finished, status in rows(
            house.store_path, "SELECT started_at, finished_at, status FROM airtable_calls ORDER BY id"
        )
    ]
    for _, refused, rest in made:
        early = [left for left, _, _ in made if refused < left < refused + timedelta(seconds=rest)]
        assert early == [], "the base was to rest"


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_mixture_of_faults_is_kept_pace_with_and_leaves_no_trace(tmp_path: Path, seed: int) -> None:
    await play(tmp_path, seed)


@pytest.mark.soak
async def test_many_mixtures_of_faults_are_kept_pace_with_and_leave_no_trace(tmp_path: Path) -> None:
    for seed in range(100, 100 + int(os.environ.get("RUNRECORDS_SOAK_SEEDS", "100"))):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            await play(folder, seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
