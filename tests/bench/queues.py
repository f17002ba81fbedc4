"""The queues that are compared: each can put one job durably, and take and acknowledge what it holds.

Each is used as its own documentation does it, with every commit synced, in a process of its own that takes an order a
line from standard input (producers, seconds) and answers with jobs a second: JSON both. No producers: one consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from app.config import DEFAULT_FIELDS
from app.fields import Change
from app.model import Kickoff, Update
from app.policy.delivery import RetryRules, Written, settle
from app.policy.harvest import HarvestRules
from app.store.sqlite.opening import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

#: Producers at once at most.
MOST: Final = 32
JOB: Final = "x" * 500
_AN_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Blocking:
    """Each producer is a thread. `take` says how many jobs it took and acknowledged: 0 when there are none."""

    put: Callable[[], object]
    take: Callable[[], int] | None

    async def produce(self, producers: int, until: float) -> int:
        return sum(await asyncio.gather(*(asyncio.to_thread(self._put_until, until) for _ in range(producers))))

    def _put_until(self, until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            self.put()
            count += 1
        return count

    async def consume(self, until: float) -> int:
        assert self.take is not None
        done = 0
        while time.perf_counter() < until and (taken := self.take()):
            done += taken
        return done


@dataclass(frozen=True, slots=True)
class Awaiting:
    """Each producer is a task; `put` is told which."""

    put: Callable[[int], Awaitable[object]]
    take: Callable[[], Awaitable[int]]

    async def produce(self, producers: int, until: float) -> int:
        return sum(await asyncio.gather(*(self._put_until(one, until) for one in range(producers))))

    async def _put_until(self, producer: int, until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            await self.put(producer)
            count += 1
        return count

    async def consume(self, until: float) -> int:
        done = 0
        while time.perf_counter() < until and (taken := await self.take()):
            done += taken
        return done


Queue: TypeAlias = Blocking | Awaiting


def nothing(payload: str) -> None:
    """What a job would do: what is measured is the queue."""


# Ours -----------------------------------------------------------------------------------------------------------

_RUNS: Final = 200
_HARVEST: Final = HarvestRules(
    max_concurrent_runs=1, poll_interval_seconds=60.0, look_after_seconds=60.0, settle_seconds=12.0
)
_RETRY: Final = RetryRules(max_attempts=3, backoff_base_seconds=1.0, backoff_max_seconds=60.0)


@contextlib.asynccontextmanager
async def ours(folder: Path, _postgres: str) -> AsyncIterator[Queue]:
    """The store: an update is folded into its run and its message queued; a claim takes ten runs with all of theirs."""
    begun, chance = datetime.now(UTC), random.Random(1)  # noqa: S311 - the same waits each time
    async with open_store(
        folder / "ours.db", at=begun, linger_seconds=0.0, run_fields=tuple(DEFAULT_FIELDS), rules=_HARVEST
    ) as store:
        runs = [await store.accept_create(Kickoff(f"c{one}", "job", Change()), begun) for one in range(_RUNS)]

        async def put(_producer: int) -> None:
            run = runs[chance.randrange(_RUNS)]
            await store.accept_update(Update(run.run_id, Change(set={"apify_run_ids": JOB})), datetime.now(UTC))

        async def take() -> int:
            at = datetime.now(UTC)
            claim = await store.claim(at)
            if claim is None:
                return 0
            answer = Written({run.run_id: f"rec-{run.run_id}" for run in claim.runs})
            await store.settle(settle(claim, answer, at=at, rules=_RETRY, random=chance), at)
            return sum(len(run.messages) for run in claim.runs)

        yield Awaiting(put, take)


# Libraries on SQLite --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def huey(folder: Path, _postgres: str) -> AsyncIterator[Queue]:
    """Takes a job by deleting it: one that was taken and not finished is lost with its worker."""
    from huey import SqliteHuey  # noqa: PLC0415 - each process loads only what it measures

    made = SqliteHuey(filename=str(folder / "huey.db"), fsync=True, timeout=30, results=False)

    job = made.task()(nothing)
    yield Blocking(lambda: job(JOB), lambda: int(made.dequeue() is not None))


@contextlib.asynccontextmanager
async def litequeue(folder: Path, _postgres: str) -> AsyncIterator[Queue]:
    """Not synced by default: here its connections are told to be. Keeps what is done."""
    from litequeue import LiteQueue  # noqa: PLC0415

    own = threading.local()

    def mine() -> LiteQueue:
        if not hasattr(own, "queue"):
            own.queue = LiteQueue(str(folder / "lite.db"), timeout=30)
            own.queue.conn.execute("PRAGMA synchronous = FULL")
        queue: LiteQueue = own.queue
        return queue

    def take() -> int:
        message = mine().pop()
        if message is None:
            return 0
        mine().done(message.message_id)
        return 1

    mine()
    yield Blocking(lambda: mine().put(JOB), take)


@contextlib.asynccontextmanager
async def persist_queue(folder: Path, _postgres: str) -> AsyncIterator[Queue]:
    """Keeps what is done until it is told to clear it. Its connection is synced by SQLite's own default."""
    from persistqueue import Empty, SQLiteAckQueue  # noqa: PLC0415

    queue = SQLiteAckQueue(str(folder / "persist"), multithreading=True)

    def take() -> int:
        try:
            item = queue.get(block=False)
        except Empty:
            return 0
        queue.ack(item)
        return 1

    yield Blocking(lambda: queue.put(JOB), take)


@contextlib.asynccontextmanager
async def dbos(folder: Path, _postgres: str) -> AsyncIterator[Queue]:
    """A workflow is queued; to take it is to run it, which is more than a queue does, and is not measured."""
    from dbos import DBOS, DBOSClient  # noqa: PLC0415

    url = f"sqlite:///{folder / 'dbos.db'}"
    made = DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})
    made.launch()
    made.destroy()
    client = DBOSClient(system_database_url=url, system_database_pool_size=MOST)
    yield Blocking(lambda: client.enqueue({"queue_name": "jobs", "workflow_name": "job"}, JOB), None)


# Libraries on PostgreSQL ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def procrastinate(_folder: Path, postgres: str) -> AsyncIterator[Queue]:
    """Has locks, schedules, periodic jobs and retries; keeps what is done unless told to delete it, as it is here."""
    from procrastinate import App, PsycopgConnector  # noqa: PLC0415
    from procrastinate.jobs import Status  # noqa: PLC0415

    app = App(connector=PsycopgConnector(conninfo=postgres, min_size=MOST, max_size=MOST))

    job = app.task(name="job")(nothing)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        worker = await app.job_manager.register_worker()

        async def take() -> int:
            found = await app.job_manager.fetch_job(None, worker)
            if found is None:
                return 0
            await app.job_manager.finish_job(found, Status.SUCCEEDED, delete_job=True)
            return 1

        yield Awaiting(lambda _producer: job.defer_async(payload=JOB), take)


@contextlib.asynccontextmanager
async def pgqueuer(_folder: Path, postgres: str) -> AsyncIterator[Queue]:
    """A connection a producer. It takes ten jobs at once, as ours takes ten runs."""
    import uuid  # noqa: PLC0415

    from pgqueuer.queries import EntrypointExecutionParameter, Queries  # noqa: PLC0415
    from psycopg import AsyncConnection  # noqa: PLC0415

    async with contextlib.AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(await AsyncConnection.connect(postgres, autocommit=True))
            for _ in range(MOST)
        ]
        queries = [Queries.from_psycopg_connection(connection) for connection in connections]
        await queries[0].install()
        entrypoints = {"job": EntrypointExecutionParameter(0)}
        manager, payload = uuid.uuid4(), JOB.encode()

        async def take() -> int:
            jobs = await queries[0].dequeue(10, entrypoints, manager, None, _AN_HOUR)
            if jobs:
                await queries[0].log_jobs([(one, "successful", None) for one in jobs])
            return len(jobs)

        yield Awaiting(lambda producer: queries[producer].enqueue("job", payload), take)


QUEUES: Final[Mapping[str, Callable[[Path, str], contextlib.AbstractAsyncContextManager[Queue]]]] = {
    "ours": ours,
    "huey": huey,
    "litequeue": litequeue,
    "persist-queue": persist_queue,
    "dbos": dbos,
    "procrastinate": procrastinate,
    "pgqueuer": pgqueuer,
}
ON_POSTGRES: Final = ("procrastinate", "pgqueuer")
#: Those whose dequeue is no dequeue.
NOT_TAKEN: Final = ("dbos",)


async def main() -> None:
    name, folder, postgres = sys.argv[1:]
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(MOST))
    lines = ThreadPoolExecutor(1)
    async with QUEUES[name](Path(folder), postgres) as queue:
        print(json.dumps("ready"), flush=True)
        while line := await loop.run_in_executor(lines, sys.stdin.readline):
            producers, seconds = json.loads(line)
            began = time.perf_counter()
            until = began + seconds
            done = await (queue.produce(producers, until) if producers else queue.consume(until))
            print(json.dumps(done / (time.perf_counter() - began)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
