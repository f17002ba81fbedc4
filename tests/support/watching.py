"""Ways to look at what happened: the store's file from a second connection, the sandbox's log, a raw socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from app.model import Json
    from app.sandbox.hand_clock import HandClock
    from app.sandbox.wire import LoggedRequest


def rows(path: Path, query: str, *values: str | int) -> list[tuple[str | int | float | None, ...]]:
    """What a person with the `sqlite3` shell sees: committed rows, through a read-only connection of his own."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query, values).fetchall()


def meddle(path: Path, statement: str, *values: str | int) -> None:
    """What a person should not do: write to the store's file."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement, values)


async def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:  # noqa: ASYNC109
    """Look until `condition` holds. Raises `TimeoutError` after `timeout` real seconds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event of its own
            await asyncio.sleep(0.002)


async def let_time_pass(
    clock: HandClock, condition: Callable[[], bool], *, step: float = 0.05, most: float = 10_000.0
) -> None:
    """Move the clock in small steps until `condition` holds, but by no more than `most` seconds.

    What has become due by then may still be under way, in the real time of threads and sockets: it is waited for.
    """
    end = clock.monotonic() + most
    while not condition() and clock.monotonic() < end:
        clock.pass_time(step)
        await asyncio.sleep(0.002)
    try:
        await until(condition)
    except TimeoutError:
        raise AssertionError(f"it did not come to be within {most} s of the clock") from None


def waits_for_long(clock: HandClock) -> bool:
    """Whether somebody sleeps by it whom a jump of half a minute would not wake."""
    return any(due - clock.now() > timedelta(seconds=30) for due in clock._sleepers.values())


# What was sent to Airtable ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the base, read."""

    upsert: bool
    records: list[dict[str, Json]]

    @property
    def run_ids(self) -> list[str]:
        return [str(cells.get("Run ID")) for cells in self.cells]

    @property
    def ids(self) -> list[str | None]:
        return [str(record["id"]) if "id" in record else None for record in self.records]

    @property
    def cells(self) -> list[dict[str, Json]]:
        return [cells for record in self.records if isinstance(cells := record["fields"], dict)]


def read_call(request: LoggedRequest) -> Call:
    body = json.loads(request.body)
    return Call("performUpsert" in body, body["records"])


def calls(log: Sequence[LoggedRequest]) -> list[Call]:
    return [read_call(request) for request in log]


def most_in_any_second(log: Sequence[LoggedRequest]) -> int:
    """The largest number of requests that came in any one second, by a window that slides."""
    times = sorted(request.received_at for request in log)
    return max((sum(start <= time < start + 1.0 for time in times) for start in times), default=0)


# A raw socket -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawAnswer:
    status: int
    head: str
    body: str

    def header(self, name: str) -> str | None:
        for line in self.head.splitlines()[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name.lower():
                return value.strip()
        return None

    def json(self) -> dict[str, Json]:
        answer: dict[str, Json] = json.loads(self.body)
        return answer


def raw_request(method: bytes, target: bytes, body: bytes = b"", **headers: str) -> bytes:
    """A request as bytes, with a Host, the internal token and a JSON body unless `headers` says otherwise."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    sent = {
        "Host": "localhost",
        "Authorization": "Bearer internal-token-of-the-tests",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **named,
    }
    lines = [f"{name}: {value}".encode("utf-8", "surrogateescape") for name, value in sent.items()]
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", *lines, b"", body])


async def send_raw(url: str, request: bytes) -> RawAnswer:
    """Send bytes that no decent client sends, and read the answer until the server ends it."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(30):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(
                int(line.partition(":")[2]) for line in head.splitlines() if line.lower().startswith("content-length:")
            )
            body = (await reader.readexactly(length)).decode()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return RawAnswer(int(head.split()[1]), head, body)
