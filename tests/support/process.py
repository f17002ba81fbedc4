"""A real service process, started the way a person starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import aiohttp

from tests.support.spawning import Spawned, spawned

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from app.model import Json

    Process: TypeAlias = asyncio.subprocess.Process | Spawned


#: Below what systems give to who asks for any port (Linux from 32768 on, others from 49152).
_PORTS: Final = range(10_000, 32_000)


def free_port() -> int:
    """A port that stays free while its service is down: no server or connection is given it for want of another."""
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def environment(folder: Path, port: int, **more: str) -> dict[str, str]:
    """This environment without what could leak into the service, and with a store and port of the test's own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("RUNRECORDS_", "AIRTABLE", "APIFY"))
    }
    own = {"RUNRECORDS_STORE__PATH": str(folder / "runs.db"), "RUNRECORDS_SERVER__PORT": str(port)}
    return {**kept, **own, "PYTHONUNBUFFERED": "1", **more}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Starting: TypeAlias = "Callable[[Sequence[str], Mapping[str, str]], contextlib.AbstractAsyncContextManager[Process]]"


@contextlib.asynccontextmanager
async def afresh(words: Sequence[str], own: Mapping[str, str]) -> AsyncIterator[Process]:
    """An interpreter of its own, which takes two seconds to import: where the start itself is what is tested."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", *words, env=own, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def command(folder: Path, *words: str, port: int = 1, **more: str) -> Ended:
    """Run a command to its end."""
    return await run(spawned, words, environment(folder, port, **more))


async def run(starting: Starting, words: Sequence[str], own: Mapping[str, str]) -> Ended:
    async with starting(words, own) as process, asyncio.timeout(60):
        out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


@dataclass
class Served:
    process: Process
    url: str
    http: aiohttp.ClientSession
    lines: list[str]

    async def call(
        self, method: str, path: str, body: Mapping[str, object] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Json]]:
        async with self.http.request(method, self.url + path, json=body, headers=headers) as answer:
            shown: dict[str, Json] = json.loads(await answer.read())
            return answer.status, shown

    async def said(self, event: str) -> str:
        """Wait until the log has a line with this event."""
        async with asyncio.timeout(30):
            while True:
                for line in self.lines:
                    if f'"event": "{event}"' in line:
                        return line
                assert self.process.stderr is not None
                line = (await self.process.stderr.readline()).decode()
                if not line:
                    raise AssertionError(f"the process ended without {event}:\n{''.join(self.lines)}")
                self.lines.append(line)

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            self.lines += (await self.process.stderr.read()).decode().splitlines(keepends=True)
            return await self.process.wait()


@contextlib.asynccontextmanager
async def served(
    folder: Path, *, words: Sequence[str] = ("serve", "--sandbox"), port: int | None = None, **more: str
) -> AsyncIterator[Served]:
    """The service as a process of its own, listening; killed at the end if it still lives."""
    port = port or free_port()
    async with serving(spawned, words, environment(folder, port, **more), port) as one:
        yield one


@contextlib.asynccontextmanager
async def serving(starting: Starting, words: Sequence[str], own: Mapping[str, str], port: int) -> AsyncIterator[Served]:
    async with starting(words, own) as process, aiohttp.ClientSession() as http:
        one = Served(process, f"http://127.0.0.1:{port}", http, [])
        await one.said("service.started")
        yield one
