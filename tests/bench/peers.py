"""Peers: other durable queues beside our store, on the same disk and in the same rounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.bench.frame import Goal, Table, goals_table, ratio, spread
from tests.bench.postgres import NoPostgres, postgres
from tests.bench.queues import MOST, NOT_TAKEN, ON_POSTGRES, QUEUES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.bench.frame import Options

SECONDS: Final = 1.0
_STARTS_WITHIN_SECONDS: Final = 120.0
OURS: Final = "ours"
#: Producers of a turn; 0 is one consumer.
TURNS: Final[Mapping[int, str]] = {1: "put, 1 producer", MOST: f"put, {MOST} producers", 0: "take and acknowledge"}
_TIMES_SQLITE: Final = 5.0

Seen = dict[tuple[str, int], list[float]]


@dataclass
class Contestant:
    name: str
    process: asyncio.subprocess.Process

    async def turn(self, producers: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps([producers, SECONDS])}\n".encode())
        return float(await self.answer())

    async def answer(self) -> str:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended")
        return str(json.loads(line))


async def measure(options: Options) -> Sequence[Table]:
    async with contextlib.AsyncExitStack() as stack:
        missing = ""
        names = list(QUEUES)
        try:
            server = await stack.enter_async_context(postgres(options.folder / "postgres"))
        except NoPostgres as error:
            server, missing = "", f"Without PostgreSQL's: {error}."
            names = [name for name in names if name not in ON_POSTGRES]
        contestants = [await stack.enter_async_context(_started(name, options.folder / name, server)) for name in names]
        seen = await _rounds(contestants, options.pick(quick=3, short=5, full=12))
    return [goals_table("Peers: ratios within a round", list(_goals(seen, names)), missing), _table(seen, names)]


async def _rounds(contestants: Sequence[Contestant], rounds: int) -> Seen:
    """Puts come before takes in a round, so that there is something to take."""
    seen: Seen = defaultdict(list)
    chance = random.Random()  # noqa: S311 - an order that nothing else has
    for number in range(rounds):
        puts = [(one, producers) for one in contestants for producers in TURNS if producers]
        takes = [(one, 0) for one in contestants if one.name not in NOT_TAKEN]
        chance.shuffle(puts)
        chance.shuffle(takes)
        for one, producers in [*puts, *takes]:
            seen[one.name, producers].append(await one.turn(producers))
        print(f"peers: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return seen


@contextlib.asynccontextmanager
async def _started(name: str, folder: Path, server: str) -> AsyncIterator[Contestant]:
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.queues", name, str(folder), server,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
    one = Contestant(name, process)
    try:
        try:
            async with asyncio.timeout(_STARTS_WITHIN_SECONDS):
                await one.answer()
        except RuntimeError as error:
            raise RuntimeError(f"{name} did not start:\n{(folder / 'log').read_text('utf-8')[-2000:]}") from error
        yield one
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _goals(seen: Seen, names: Sequence[str]) -> Iterator[Goal]:
    for producers in TURNS:
        others = [name for name in names if name != OURS and (name, producers) in seen]
        for name in others:
            seen_ratio = ratio(seen[OURS, producers], seen[name, producers])
            yield Goal(f"{TURNS[producers]}: over {name}", seen_ratio, _wanted(name, producers, seen, others))


def _wanted(name: str, producers: int, seen: Seen, others: Sequence[str]) -> float | None:
    """Five times each SQLite library at 32 producers, ahead of PostgreSQL's; alone no worse than the best."""
    if producers == MOST:
        return 1.0 if name in ON_POSTGRES else _TIMES_SQLITE
    best = max(others, key=lambda other: statistics.median(seen[other, producers]))
    return 1.0 if producers == 1 and name == best else None


def _table(seen: Seen, names: Sequence[str]) -> Table:
    rows = [
        [name, *(spread(seen[name, producers]) if (name, producers) in seen else "" for producers in TURNS)]
        for name in names
    ]
    note = "Jobs a second: the median of the rounds, and their middle half in brackets."
    return Table("A job of 500 bytes, every commit synced", ["queue", *TURNS.values()], rows, note)
