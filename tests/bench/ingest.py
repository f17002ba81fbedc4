"""Ingest: what a durable answer costs, against the same server with less to do.

All servers are up at once, each a process of its own; those whose turn it is not are frozen, so that their sync loops
take nothing from the one that is measured. A turn is one second of load, after a warm-up, on runs that are new: a run
takes some twenty updates in its life, and its fields stay as long as they would be.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from app.clock import SystemClock
from app.sandbox.wire import WireServer
from tests.bench.contestants import Kind
from tests.bench.frame import Goal, Options, Table, goals_table, ratio, spread
from tests.bench.load import Answered, Job
from tests.support.harness import AIRTABLE_KEY, INTERNAL_TOKEN, WEBHOOK_SECRET, make_airtable, sample
from tests.support.process import environment, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

LEVELS: Final = (1, 32, 128)
MOST: Final = LEVELS[-1]
SECONDS: Final = 1.0
WARM_UP_SECONDS: Final = 0.2
#: Runs that the requests of a turn go to, so that each gets about as many as it would in its life.
_RUNS: Final[Mapping[int, int]] = {1: 50, 32: 200, 128: 200}
_READY_SECONDS: Final = 120.0

_EVENT: Final[dict[str, object]] = json.loads(sample("apify-webhook-succeeded.json"))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of one kind. `request` is one of them for the runs of a job, with the generator's two marks in it."""

    name: str
    contestants: Sequence[Kind]
    request: Callable[[str], str]
    needs_runs: bool


@dataclass
class Server:
    kind: Kind
    port: int
    process: asyncio.subprocess.Process

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @property
    def keeps(self) -> bool:
        return self.kind not in {Kind.BARE, Kind.CHECKED}


@dataclass
class Generator:
    """The load generator's process."""

    process: asyncio.subprocess.Process

    async def send(self, job: Job) -> Answered:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        answer = Answered(**json.loads(await self.process.stdout.readline()))
        if answer.statuses:
            raise RuntimeError(f"requests were refused: {answer.statuses}")
        return answer


@dataclass
class Seen:
    """What the turns of one contestant at one level came to, round by round."""

    per_second: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)

    def add(self, answer: Answered) -> None:
        self.per_second.append(answer.per_second)
        self.p50.append(answer.p50)
        self.p99.append(answer.p99)


# Requests -------------------------------------------------------------------------------------------------------


def _request(method: str, path: str, token: str, body: object, *headers: str) -> str:
    """A whole request; the marks in it are as long as the numbers that take their place."""
    text = json.dumps(body)
    return "\r\n".join([
        f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}",
        "Content-Type: application/json", f"Content-Length: {len(text)}", *headers, "", text,
    ])  # fmt: skip


def kickoff(job_id: str, mark: str = "REQUEST") -> str:
    client_id = f"c{mark}"
    body = {"client_id": client_id, "client_name": f"Client {client_id}", "job_id": job_id,
            "fields": {"profiles_submitted": 40, "progress_log": "kicked off for 40 profiles"}}  # fmt: skip
    return _request("POST", "/runs", INTERNAL_TOKEN, body, f"Idempotency-Key: kickoff-{job_id}-{client_id}")


def update(job_id: str) -> str:
    body = {
        "set": {"apify_status": "SUCCEEDED", "last_webhook": "2026-05-16T09:20:00Z", "status": "Running"},
        "add": {"posts_scored": 12, "post_scoring_tokens": 4711, "total_api_cost": 0.0137},
        "append": {"progress_log": "09:20:00 batch REQUEST scored: 12 posts of 8 profiles, 4711 tokens"},
    }
    return _request("PATCH", f"/runs/{job_id}-cRUNNUM", INTERNAL_TOKEN, body, "Idempotency-Key: scored-REQUEST")


def webhook(job_id: str) -> str:
    name = f"{job_id}xREQUEST"
    body = {**_EVENT, "eventData": {"actorRunId": name}, "resource": {**_resource(), "id": name}}
    path = f"/webhooks/apify?run={job_id}-cRUNNUM"
    return _request("POST", path, WEBHOOK_SECRET, body, f"X-Apify-Webhook-Dispatch-Id: {name}")


def _resource() -> dict[str, object]:
    resource = _EVENT["resource"]
    assert isinstance(resource, dict)
    return resource


_FEWER: Final = (Kind.SERVICE, Kind.BARE, Kind.CHECKED, Kind.DIRECT)
TRAFFIC: Final = (
    Traffic("PATCH /runs/{run_id}", tuple(Kind), update, needs_runs=True),
    Traffic("POST /runs", _FEWER, kickoff, needs_runs=False),
    Traffic("POST /webhooks/apify", _FEWER, webhook, needs_runs=True),
)


# Turns ----------------------------------------------------------------------------------------------------------


async def measure(options: Options) -> Sequence[Table]:
    tables: list[Table] = []
    goals: list[Goal] = []
    rounds = options.pick(quick=3, short=6, full=24)
    async with _generator() as generator:
        for traffic in TRAFFIC:
            folder = options.folder / traffic.request.__name__
            async with _all_up(traffic.contestants, folder) as servers:
                seen = await _rounds(traffic, servers, generator, rounds)
            tables.append(_table(traffic, seen))
            goals += _goals(traffic, seen)
    return [goals_table("Ingest: ratios within a round", goals), *tables]


async def _rounds(
    traffic: Traffic, servers: Sequence[Server], generator: Generator, rounds: int
) -> Mapping[tuple[Kind, int], Seen]:
    seen: dict[tuple[Kind, int], Seen] = defaultdict(Seen)
    chance = random.Random()  # noqa: S311 - an order that nothing else has
    turns = itertools.count()
    for number in range(rounds):
        order = [(server, level) for server in servers for level in LEVELS]
        chance.shuffle(order)
        for server, level in order:
            answer = await _turn(traffic, server, generator, level, f"s{next(turns):06}")
            seen[server.kind, level].add(answer)
        print(f"{traffic.name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return seen


async def _turn(traffic: Traffic, server: Server, generator: Generator, level: int, job_id: str) -> Answered:
    runs = _RUNS[level]
    server.thaw()
    try:
        if traffic.needs_runs and server.keeps:
            await generator.send(Job(server.port, min(MOST, runs), kickoff(job_id, "RUNNUM"), runs))
        job = Job(server.port, level, traffic.request(job_id), runs, SECONDS, WARM_UP_SECONDS)
        return await generator.send(job)
    finally:
        server.freeze()


@contextlib.asynccontextmanager
async def _generator() -> AsyncIterator[Generator]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Generator(process)
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def _all_up(kinds: Sequence[Kind], folder: Path) -> AsyncIterator[Sequence[Server]]:
    """Each server with a base of its own, which this process plays: listening, and frozen."""
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for kind in kinds:
            base = make_airtable(SystemClock())
            at = await stack.enter_async_context(WireServer(base))
            to_base = {"RUNRECORDS_AIRTABLE__ENDPOINT_URL": at.url, "RUNRECORDS_AIRTABLE__BASE_ID": base.schema.base_id}
            server = await stack.enter_async_context(_up(kind, folder / kind, to_base))
            servers.append(server)
        yield servers


@contextlib.asynccontextmanager
async def _up(kind: Kind, folder: Path, to_base: Mapping[str, str]) -> AsyncIterator[Server]:
    folder.mkdir(parents=True)
    port = free_port()
    secrets = {
        "AIRTABLE_API_KEY": AIRTABLE_KEY, "INTERNAL_API_TOKEN": INTERNAL_TOKEN, "APIFY_WEBHOOK_SECRET": WEBHOOK_SECRET
    }  # fmt: skip
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.contestants", kind,
        env=environment(folder, port, **secrets, **to_base), stdout=log, stderr=log,
    )  # fmt: skip
    os.close(log)
    server = Server(kind, port, process)
    try:
        await _listening(server, folder)
        server.freeze()
        yield server
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _listening(server: Server, folder: Path) -> None:
    async with asyncio.timeout(_READY_SECONDS):
        while server.process.returncode is None:
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.close()
                return
            await asyncio.sleep(0.05)
    raise RuntimeError(f"{server.kind} did not start:\n{(folder / 'log').read_text('utf-8')[-2000:]}")


# Tables ---------------------------------------------------------------------------------------------------------


def _table(traffic: Traffic, seen: Mapping[tuple[Kind, int], Seen]) -> Table:
    columns = ["server", *(f"{level} connection{'s' if level > 1 else ''}" for level in LEVELS), f"p50 / p99 at {MOST}"]
    rows = []
    for kind in traffic.contestants:
        at_most = seen[kind, MOST]
        latencies = f"{_middle(at_most.p50):.1f} / {_middle(at_most.p99):.1f} ms"
        rows.append([kind.value, *(spread(seen[kind, level].per_second) for level in LEVELS), latencies])
    note = "Answers a second: the median of the rounds, and their middle half in brackets."
    return Table(traffic.name, columns, rows, note)


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _goals(traffic: Traffic, seen: Mapping[tuple[Kind, int], Seen]) -> Iterator[Goal]:
    def against(kind: Kind, level: int) -> Goal:
        ours, theirs = seen[Kind.SERVICE, level].per_second, seen[kind, level].per_second
        return Goal(f"{traffic.name}, {level}: over {kind}", ratio(ours, theirs), _WANTED.get((kind, level)))

    for kind in traffic.contestants:
        if kind is not Kind.SERVICE:
            yield from (against(kind, level) for level in LEVELS if level == MOST or (kind, level) in _WANTED)
    slowest = ratio(seen[Kind.SERVICE, MOST].p99, seen[Kind.BARE, MOST].p99)
    yield Goal(f"{traffic.name}, {MOST}: p99 over that of bare", slowest, _SLOWEST, at_most=True)


#: Goals by contestant and connections: how many times as fast the service should be.
_WANTED: Final[Mapping[tuple[Kind, int], float]] = {
    (Kind.CHECKED, MOST): 0.70,
    (Kind.BARE, MOST): 0.50,
    (Kind.TRANSACTION, MOST): 4.0,
    (Kind.NORMAL, MOST): 0.90,
    (Kind.DIRECT, 1): 1.0,
}
_SLOWEST: Final = 2.5
