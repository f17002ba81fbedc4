"""Backlog: what the store's units cost behind up to a million waiting messages and five million delivered ones.

Stores of three sizes stand side by side and take turns, so that a ratio compares the same moments. They are filled by
SQL with the triggers off, as the triggers would have left them; what is measured runs with all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from app.clock import SystemClock, iso
from app.config import DEFAULT_FIELDS
from app.fields import Change
from app.model import Kickoff, Update
from app.policy.delivery import RateLimited, RetryRules, settle
from app.pruning import Pruning, RetentionRules
from app.sandbox.wire import WireServer
from app.store.sqlite import counting, delivery, intake, reading
from app.store.sqlite.intake import When
from app.store.sqlite.opening import open_store, prepare
from app.store.views import ErrorFilter, MessageFilter, RunFilter, Slice
from tests.bench.frame import Options, Table, ratio
from tests.support.harness import AIRTABLE_KEY, INTERNAL_TOKEN, make_airtable
from tests.support.process import environment, free_port
from tests.support.stores import HARVEST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from app.policy.delivery import Claim
    from app.store.sqlite.store import SqliteStore

#: Waiting messages of the stores that are compared, and the delivered ones beside them.
FULL: Final = ((1_000, 100_000, 1_000_000), 5_000_000)
SHORT: Final = ((1_000, 10_000, 100_000), 500_000)
QUICK: Final = ((100, 1_000, 10_000), 50_000)
#: Delivered messages of each run: its create and four updates.
_PER_RUN: Final = 5
_BURST: Final = 20
#: The first rounds read what nobody has read yet.
_WARM: Final = 3
NOW: Final = datetime(2026, 6, 15, 12, tzinfo=UTC)
_RETRY: Final = RetryRules(100, 1.0, 900.0)
_CHANCE: Final = random.Random(1)  # noqa: S311


class Shape(StrEnum):
    SPREAD = "spread over runs"
    BURST = "one burst of 20 a run"
    BLOCKED = "one blocked run owns the oldest half"


# Filling --------------------------------------------------------------------------------------------------------

#: A few at each millisecond of a day, creates and updates mixed.
LATER: Final = "strftime('%Y-%m-%dT%H:%M:%fZ', '2026-06-14', '+' || (i * 0.04) || ' seconds')"
RUN: Final = "'260101-000000-c' || substr('000000' || i, -7)"
FILL_RUNS: Final = f"""
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :runs)
INSERT INTO runs (run_id, job_id, client_id, origin, airtable_record_id, sync, created_at, changed_at, fields, status)
SELECT {RUN}, '260101-000000', 'c' || substr('000000' || i, -7), 'kickoff', 'rec' || i, 'synced', :at, :at,
    '{{"status":"Running","posts_scored":4,"progress_log":"scored 1 post of 4"}}', 'Running' FROM n
"""
FILL_DELIVERED: Final = f"""
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :runs)
INSERT INTO outbox (run_id, kind, state, source, fields, change, attempts, accepted_at, delivered_at, call_id)
SELECT {RUN}, :kind, 'delivered', 'caller', '["posts_scored"]', '{{"add":{{"posts_scored":1}}}}', 1, :at, {LATER}, 1
FROM n
"""
FILL_PENDING: Final = f"""
WITH RECURSIVE n (i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i < :last)
INSERT INTO outbox (run_id, kind, source, fields, change, accepted_at)
SELECT {RUN}, 'update', 'caller', '["posts_scored"]', '{{"add":{{"posts_scored":1}}}}', :at FROM n
"""
FILL_BLOCKED: Final = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :number)
INSERT INTO outbox (run_id, kind, source, fields, change, attempts, accepted_at)
SELECT '260101-000000-c0000001', 'update', 'caller', '["posts_scored"]', '{"add":{"posts_scored":1}}', 3, :at FROM n
"""
WAKE: Final = "UPDATE runs SET due_at = :at, sync = 'pending' WHERE id BETWEEN :first AND :last"
BLOCK: Final = "UPDATE runs SET due_at = :later, failures = 3, sync = 'pending' WHERE id = 1"
COUNT: Final = (
    """
UPDATE outbox_counts SET dead = 0,
    delivered = (SELECT seq FROM sqlite_sequence WHERE name = 'outbox')
        - (SELECT count(*) FROM outbox WHERE delivered_at IS NULL)
""",
    "DELETE FROM creations_by_day",
    """
INSERT INTO creations_by_day (day, created, delivered, failed)
SELECT substr(accepted_at, 1, 10), count(*), sum(state = 'delivered'), 0 FROM outbox WHERE kind = 'create' GROUP BY 1
""",
)


@contextlib.contextmanager
def _filling(path: Path, *, anew: bool):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """A connection without triggers, and without the outbox's indexes where all of it is `anew`."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        journal = "OFF" if anew else "WAL"
        for pragma in (f"journal_mode = {journal}", "synchronous = OFF", "cache_size = -400000", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        kinds = "('trigger', 'index')" if anew else "('trigger')"
        taken = connection.execute(
            f"SELECT type, name, sql FROM sqlite_master WHERE type IN {kinds} AND sql IS NOT NULL"
        ).fetchall()
        connection.execute("BEGIN")
        for kind, name, _ in taken:
            connection.execute(f"DROP {kind} {name}")
        yield connection
        for _, _, sql in sorted(taken):
            connection.execute(sql)
        for statement in COUNT:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def fill_base(path: Path, delivered: int) -> None:
    """A store in which all is delivered."""
    prepare(path, NOW)
    runs = delivered // _PER_RUN
    at = iso(NOW - timedelta(days=1))
    with _filling(path, anew=True) as connection:
        connection.execute(FILL_RUNS, {"runs": runs, "at": at})
        for number in range(_PER_RUN):
            kind = "update" if number else "create"
            connection.execute(FILL_DELIVERED, {"runs": runs, "kind": kind, "at": at})


def add_pending(path: Path, shape: Shape, pending: int) -> None:
    at, later = iso(NOW - timedelta(hours=1)), iso(NOW + timedelta(hours=1))
    with _filling(path, anew=False) as connection:
        match shape:
            case Shape.SPREAD:
                connection.execute(FILL_PENDING, {"first": 1, "last": pending, "at": at})
                connection.execute(WAKE, {"first": 1, "last": pending, "at": at})
            case Shape.BURST:
                runs = pending // _BURST
                for _ in range(_BURST):
                    connection.execute(FILL_PENDING, {"first": 1, "last": runs, "at": at})
                connection.execute(WAKE, {"first": 1, "last": runs, "at": at})
            case Shape.BLOCKED:
                half = pending // 2
                connection.execute(FILL_BLOCKED, {"number": half, "at": at})
                connection.execute(FILL_PENDING, {"first": 2, "last": half + 1, "at": at})
                connection.execute(WAKE, {"first": 2, "last": half + 1, "at": at})
                connection.execute(BLOCK, {"later": later})


# Measuring ------------------------------------------------------------------------------------------------------

#: One use of a unit of the store: the milliseconds of its thread that it took.
Use: TypeAlias = Callable[["SqliteStore"], Awaitable[float]]


def _worked(unit: Callable[[sqlite3.Connection], object]) -> Callable[[sqlite3.Connection], float]:
    """The unit, timed by its thread's own clock: what else the machine does meanwhile is not counted."""

    def timed(connection: sqlite3.Connection) -> float:
        began = time.thread_time()
        unit(connection)
        return (time.thread_time() - began) * 1000

    return timed


def _writing(unit: Callable[[sqlite3.Connection], object]) -> Use:
    return lambda store: store._writer.run(_worked(unit))


def _reading(unit: Callable[[sqlite3.Connection], object]) -> Use:
    return lambda store: store._reader.run(_worked(unit))


def _claim(connection: sqlite3.Connection) -> Claim:
    claim = delivery.claim(connection, NOW, company_until=NOW, only_creates=False)
    assert claim is not None
    return claim


def _give_back(connection: sqlite3.Connection, claim: Claim) -> None:
    """As after a 429: all of it waits again, and is due."""
    settlement = settle(claim, RateLimited("slow down"), at=NOW, rules=_RETRY, random=_CHANCE)
    delivery.settle(connection, settlement, NOW)


async def _claiming(store: SqliteStore) -> float:
    claims: list[Claim] = []
    taken = await store._writer.run(_worked(lambda connection: claims.append(_claim(connection))))
    await store._writer.run(lambda connection: _give_back(connection, claims[0]))
    return taken


async def _settling(store: SqliteStore) -> float:
    claim = await store._writer.run(_claim)
    return await store._writer.run(_worked(lambda connection: _give_back(connection, claim)))


async def _claiming_in_all(store: SqliteStore) -> float:
    began = time.perf_counter()
    claim = await store.claim(NOW)
    taken = (time.perf_counter() - began) * 1000
    assert claim is not None
    await store._writer.run(lambda connection: _give_back(connection, claim))
    return taken


_BLOCKED_RUN: Final = "260101-000000-c0000001"
_LAST: Final = Slice(limit=50)
_WHEN: Final = When.of(NOW, 0.0)


def _accept_update(connection: sqlite3.Connection) -> None:
    intake.accept_updates(connection, [(Update(_BLOCKED_RUN, Change(add={"posts_scored": 1})), _WHEN)])


def _accept_create(connection: sqlite3.Connection) -> None:
    """Due tomorrow, so that it never stands before what waits when that is claimed."""
    kickoff = Kickoff(f"new-{_CHANCE.getrandbits(60)}", "260615-120000", Change())
    intake.accept_create(connection, kickoff, now=NOW, when=When.of(NOW + timedelta(days=1), 0.0))


def _messages(**chosen: str | bool) -> Use:
    return _reading(lambda connection: reading.messages(connection, MessageFilter(**chosen), _LAST))  # type: ignore[arg-type]


def _runs(**chosen: str) -> Use:
    return _reading(lambda connection: reading.runs(connection, RunFilter(**chosen), _LAST))


_IN_ALL: Final = "claim, with hops and commit (elapsed)"
UNITS: Final[Mapping[str, Use]] = {
    "claim": _claiming,
    _IN_ALL: _claiming_in_all,
    "settle": _settling,
    "next due": _reading(lambda connection: delivery.next_due(connection, only_creates=False)),
    "accept an update": _writing(_accept_update),
    "accept a create": _writing(_accept_create),
    "counts (/metrics)": _reading(lambda connection: counting.counts(connection, NOW)),
    "stats (/stats)": _reading(lambda connection: counting.stats(connection, NOW)),
    "runs": _runs(),
    "runs, sync=pending": _runs(sync="pending"),
    "runs, of a client": _runs(client_id="c0000001"),
    "messages": _messages(),
    "messages, pending": _messages(state="pending"),
    "messages, delivered": _messages(state="delivered"),
    "messages, dead": _messages(state="dead"),
    "messages, creates": _messages(kind="create"),
    "messages, of a run": _messages(run_id=_BLOCKED_RUN),
    "messages, undelivered": _messages(undelivered=True),
    "errors, open": _reading(lambda connection: reading.errors(connection, ErrorFilter(state="open"), _LAST)),
}


@contextlib.asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[SqliteStore]:
    async with open_store(path, at=NOW, linger_seconds=0.0, run_fields=tuple(DEFAULT_FIELDS), rules=HARVEST) as store:
        yield store


async def _measure_shape(stores: Sequence[SqliteStore], rounds: int) -> dict[str, list[list[float]]]:
    """Milliseconds of each unit, by size; every round takes the sizes in another order."""
    taken: dict[str, list[list[float]]] = {name: [[] for _ in stores] for name in UNITS}
    for number in range(rounds + _WARM):
        order = list(range(len(stores)))
        _CHANCE.shuffle(order)
        for name, use in UNITS.items():
            for place in order:
                milliseconds = await use(stores[place])
                if number >= _WARM:
                    taken[name][place].append(milliseconds)
    return taken


async def measure(options: Options) -> Sequence[Table]:
    sizes, delivered = options.pick(quick=QUICK, short=SHORT, full=FULL)
    base = options.folder / "base.db"
    fill_base(base, delivered)
    tables = []
    starts: dict[str, Start] = {}
    for shape in Shape:
        paths = []
        for pending in sizes:
            paths.append(options.folder / f"{shape.name.lower()}-{pending}.db")
            shutil.copy(base, paths[-1])
            add_pending(paths[-1], shape, pending)
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(_opened(path)) for path in paths]
            taken = await _measure_shape(stores, options.pick(quick=10, short=20, full=60))
        tables.append(_table(shape, sizes, delivered, taken))
        for place in (0, -1):
            starts[f"{sizes[place]:,} waiting, {shape}"] = await _start(paths[place], options.folder)
        for path in paths:
            for file in options.folder.glob(f"{path.name}*"):
                file.unlink()
    tables.append(_starts_table(starts))
    tables.append(await _pruning_table(base, options))
    return tables


def _table(shape: Shape, sizes: Sequence[int], delivered: int, taken: Mapping[str, list[list[float]]]) -> Table:
    rows = []
    for name, by_size in taken.items():
        middles = [statistics.median(taken) for taken in by_size]
        seen = ratio(by_size[-1], by_size[0])
        met = seen.middle <= 3.0 and middles[-1] < 1.0 if name == "claim" else seen.middle <= 1.5
        verdict = "" if name == _IN_ALL else "met" if met else "missed"
        rows.append([name, *(f"{middle:.3f}" for middle in middles), str(seen), verdict])
    columns = ["unit (ms, median)", *(f"{size:,} waiting" for size in sizes), "largest to smallest", ""]
    title = f"Backlog, {shape}, beside {delivered:,} delivered"
    note = (
        "The time that the unit takes of its thread, without the commit that it shares; the second row is what the "
        "sync loop waits for. The ratio is by rounds, with its 95 % interval. Goals: a claim under 1 ms and at most "
        "3 times, the others at most 1.5 times."
    )
    return Table(title, columns, rows, note)


# Starting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """From the start of the process to its first write at Airtable, in seconds; its most memory in MB."""

    seconds: float
    worked: float
    most_memory: float


async def _start(path: Path, folder: Path) -> Start:
    """Start the real service on that store, and let it deliver for some seconds."""
    airtable = make_airtable(SystemClock())
    async with WireServer(airtable) as base:
        home = folder / "service"
        home.mkdir(exist_ok=True)
        log = (home / "log").open("ab")
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app", "serve",
            env=environment(
                home, free_port(), AIRTABLE_API_KEY=AIRTABLE_KEY, INTERNAL_API_TOKEN=INTERNAL_TOKEN,
                RUNRECORDS_STORE__PATH=str(path),
                RUNRECORDS_AIRTABLE__ENDPOINT_URL=base.url,
                RUNRECORDS_AIRTABLE__BASE_ID=airtable.schema.base_id,
            ),
            stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        try:
            async with asyncio.timeout(120):
                while not any(request.method != "GET" for request in base.log):
                    if process.returncode is not None:
                        raise RuntimeError((home / "log").read_text("utf-8")[-2000:])
                    await asyncio.sleep(0.005)
            seconds, worked = time.monotonic() - began, _worked_for(process.pid)
            await asyncio.sleep(5.0)
            memory = _most_memory(process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
    return Start(seconds, worked, memory)


def _worked_for(pid: int) -> float:
    """Seconds of processor time, of all its threads."""
    figures = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(figures[11]) + int(figures[12])) / os.sysconf("SC_CLK_TCK")


def _most_memory(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM")


def _starts_table(starts: Mapping[str, Start]) -> Table:
    rows = [[name, f"{one.seconds:.2f}", f"{one.worked:.2f}", f"{one.most_memory:.0f}"] for name, one in starts.items()]
    note = (
        "From the start of the process, its imports and all, to its first write at Airtable; then it delivers for five "
        "seconds. Goals: under 2 s with a million waiting, and under 150 MB."
    )
    return Table(
        "Start behind a backlog", ("store", "s to the first write", "of it at work", "most memory, MB"), rows, note
    )


# Pruning --------------------------------------------------------------------------------------------------------


async def _pruning_table(base: Path, options: Options) -> Table:
    """How long an accepted update takes while a pruning goes on beside it, and without one."""
    path = options.folder / "pruned.db"
    shutil.copy(base, path)
    quiet: list[float] = []
    beside: list[float] = []
    removed = 0
    async with _opened(path) as store:
        for number in range(options.pick(quick=4, short=6, full=12)):
            if number % 2:
                pruning = Pruning(store, _Later(), RetentionRules.of_days(1, 1))
                task = asyncio.create_task(pruning.prune())
                beside += await _accept_for(store, 2.0)
                pruning.stop()
                await asyncio.gather(task, return_exceptions=True)
            else:
                quiet += await _accept_for(store, 2.0)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (removed,) = connection.execute("SELECT coalesce(sum(messages), 0) FROM pruned_messages").fetchone()
    for file in options.folder.glob(f"{path.name}*"):
        file.unlink()
    seconds = 2.0 * options.pick(quick=2, short=3, full=6)
    rows = [
        [name, f"{len(taken):,}", f"{_part(taken, 0.5):.2f}", f"{_part(taken, 0.99):.2f}", f"{max(taken) * 1000:.1f}"]
        for name, taken in (("without a pruning", quiet), ("beside a pruning", beside))
    ]
    times = _part(beside, 0.99) / _part(quiet, 0.99)
    note = (
        f"32 callers, in turns of 2 s; {removed / seconds:,.0f} messages were removed a second. p99 beside a pruning "
        f"is {times:.2f} times that without (goal: at most 2)."
    )
    return Table("Accepting while a pruning goes on", ("ms", "updates", "median", "p99", "longest"), rows, note)


class _Later(SystemClock):
    """The real time, a year on: all that is delivered is past its days."""

    def now(self) -> datetime:
        return NOW + timedelta(days=365)


async def _timed(unit: Awaitable[object]) -> float:
    began = time.perf_counter()
    await unit
    return time.perf_counter() - began


async def _accept_for(store: SqliteStore, seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    taken: list[float] = []

    async def accept(caller: int) -> None:
        while time.perf_counter() < end:
            run_id = f"260101-000000-c{1 + caller:07d}"
            taken.append(await _timed(store.accept_update(Update(run_id, Change(add={"posts_scored": 1})), NOW)))

    await asyncio.gather(*(accept(caller) for caller in range(32)))
    return taken


def _part(seconds: Sequence[float], part: float) -> float:
    return sorted(seconds)[int(part * len(seconds))] * 1000
