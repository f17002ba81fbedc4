"""A real process under more than it was made for: its memory stays bounded, and every answer is a clear one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.process import Served, served
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

MEGABYTE = 1024 * 1024
#: What a burst may add to a process of about 100 MB: bodies that wait, and what Python keeps of them.
MOST_GROWTH = 300 * MEGABYTE


@contextlib.asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Served]:
    """The service, its log read as it is written: a full pipe would stop it. It has to end well."""
    async with served(folder) as service:
        stderr = service.process.stderr
        assert stderr is not None

        async def follow() -> None:
            service.lines += [line.decode() async for line in stderr]

        following = asyncio.create_task(follow())
        yield service
        service.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await service.process.wait() == 0
            await following
    assert "Traceback" not in "".join(service.lines)


#: No answer: the connection was ended while it idled, at the moment that its client used it again.
ENDED = 0
#: What a 503 says in `Retry-After`.
AGAIN_SECONDS = 2.0


def memory(service: Served) -> int:
    """Bytes of it that are in memory."""
    pages = int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak(service: Served) -> int:
    """The most that it ever had in memory."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


async def idle(service: Served, count: int) -> list[asyncio.StreamWriter]:
    port = int(service.url.rpartition(":")[2])
    made = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(count)))
    return [writer for _, writer in made]


async def leave(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def send_all(
    count: int, callers: int, send: Callable[[aiohttp.ClientSession, int], Coroutine[None, None, int]]
) -> Counter[int]:
    """Send `count` requests by so many callers at once, each until it is stored; how they were answered."""
    told: Counter[int] = Counter()
    numbers = iter(range(count))

    async def caller(http: aiohttp.ClientSession) -> None:
        for number in numbers:
            while True:
                try:
                    status = await send(http, number)
                except aiohttp.ClientConnectionError:
                    status = ENDED
                told[status] += 1
                if status not in {408, 503, ENDED}:
                    break
                await asyncio.sleep(AGAIN_SECONDS)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(caller(http) for _ in range(callers)))
    return told


def webhook(number: int) -> bytes:
    resource_of_it = {"id": f"run{number}", "status": "SUCCEEDED", "finishedAt": "2025-10-07T07:31:12.000Z"}
    body = {"eventType": "ACTOR.RUN.SUCCEEDED", "resource": resource_of_it, "jobRunId": f"251007-{number:06}-Guy"}
    return json.dumps({**body, "padding": "x" * 2_000}).encode()


async def burst(service: Served, count: int, callers: int) -> None:
    async def send(http: aiohttp.ClientSession, number: int) -> int:
        async with http.post(f"{service.url}/webhooks/apify", data=webhook(number)) as answer:
            await answer.read()
            return answer.status

    told = await send_all(count, callers, send)
    assert set(told) <= {200, 503, ENDED}, told
    assert told[200] == count
    assert told[ENDED] <= count // 50, told
    print(dict(told))  # noqa: T201


async def crowd(service: Served, count: int) -> None:
    """So many idle connections, and then somebody with a question."""
    writers = await idle(service, count)
    async with aiohttp.ClientSession() as http, asyncio.timeout(30), http.get(f"{service.url}/healthz") as answer:
        assert answer.status == 200
    await leave(writers)


async def test_idle_connections_beyond_its_files_and_a_burst_of_webhooks_leave_it_well(tmp_path: Path) -> None:
    async with watched(tmp_path) as service:
        before = memory(service)
        assert service.process.pid is not None
        files = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
        limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (files + 80, limits[1]))
        await crowd(service, 150)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
        await burst(service, 300, 60)
        assert peak(service) - before < MOST_GROWTH
        assert rows(tmp_path / "runs.db", "SELECT count(*) FROM webhook_events") == [(300,)]
    told = "".join(service.lines)
    assert "Too many open files" in told
    assert told.count("edge.cannot_accept") == 1


@pytest.mark.soak
async def test_a_thousand_idle_connections_leave_room_for_a_caller(tmp_path: Path) -> None:
    async with watched(tmp_path) as service:
        before = memory(service)
        for _ in range(5):
            await crowd(service, 1_000)
        assert peak(service) - before < MOST_GROWTH


@pytest.mark.soak
@pytest.mark.timeout(1_200)
async def test_ten_thousand_webhooks_in_a_burst_are_all_kept_in_bounded_memory(tmp_path: Path) -> None:
    async with watched(tmp_path) as service:
        before = memory(service)
        begun = time.monotonic()
        await burst(service, 10_000, 1_000)
        print(f"10,000 webhooks in {time.monotonic() - begun:.1f} s, {(peak(service) - before) / MEGABYTE:.0f} MB more")  # noqa: T201
        assert peak(service) - before < MOST_GROWTH
        assert rows(tmp_path / "runs.db", "SELECT count(*) FROM webhook_events") == [(10_000,)]


@pytest.mark.soak
@pytest.mark.timeout(1_200)
async def test_bodies_of_a_megabyte_from_many_at_once_are_stored_or_told_to_come_again(tmp_path: Path) -> None:
    async with watched(tmp_path) as service:
        before = memory(service)

        async def send(http: aiohttp.ClientSession, number: int) -> int:
            lines = ["x" * 99_000] * 10
            async with http.post(
                f"{service.url}/runs",
                json={"client_id": f"c{number}", "job_id": "j", "fields": {"progress_log": lines}},
            ) as answer:
                await answer.read()
                return answer.status

        told = await send_all(120, 120, send)
        print(f"{dict(told)}, {(peak(service) - before) / MEGABYTE:.0f} MB more")  # noqa: T201
        assert set(told) <= {200, 201, 408, 503, ENDED}
        assert told[201] + told[200] == 120
        assert peak(service) - before < 2 * MOST_GROWTH
        await until(lambda: rows(tmp_path / "runs.db", "SELECT count(*) FROM runs") == [(120,)])
