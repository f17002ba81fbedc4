"""Services as forked processes: started in a tenth of the time that an interpreter of their own would take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.forked import Crash, ServeOrder
from tests.support.process import environment, free_port
from tests.support.spawning import spawned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from tests.support.spawning import Spawned


@dataclass(frozen=True)
class Fork:
    """A service that is starting, listening or dead; `ending` gives its exit code, negative for a signal."""

    pid: int
    port: int
    log: Path
    ending: asyncio.Task[int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        if not self.ending.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ending

    async def ended(self, timeout: float = 30.0) -> int:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self.ending)
        except TimeoutError as error:
            self.signal(signal.SIGUSR1)
            await asyncio.sleep(1)
            error.add_note(self.said()[-8_000:])
            raise

    async def listening(self) -> bool:
        """Wait until it listens (`True`), or has died before that (`False`)."""
        while not self.ending.done():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
            await asyncio.sleep(0.005)
        return False

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")


class Forks:
    """Starts one service after another; the last one has to have ended before the next begins."""

    def __init__(self, process: Spawned, orders: int) -> None:
        self._process = process
        self._orders = orders
        self.last: Fork | None = None

    async def serve(
        self,
        folder: Path,
        settings: Mapping[str, str],
        *,
        port: int | None = None,
        crash: Crash | None = None,
        writes: Path | None = None,
        nameless: Sequence[str] = (),
        signalled_late: bool = False,
    ) -> Fork:
        """`settings` are environment variables, over a store in `folder`."""
        port = port or free_port()
        log = folder / "service.log"
        order = ServeOrder(
            environment(folder, port, **settings),
            str(log),
            crash,
            None if writes is None else str(writes),
            tuple(nameless),
            signalled_late,
        )
        os.write(self._orders, order.to_json().encode() + b"\n")
        pid = await self._answer("pid")
        self.last = Fork(pid, port, log, asyncio.create_task(self._answer("code")))
        return self.last

    async def _answer(self, word: str) -> int:
        said, number = (await self._process.stdout.readline()).split()
        assert said.decode() == word
        return int(number)


@contextlib.asynccontextmanager
async def forking() -> AsyncIterator[Forks]:
    theirs, orders = os.pipe()
    try:
        async with spawned((), os.environ, module="tests.support.forked", orders=theirs) as process:
            forks = Forks(process, orders)
            try:
                yield forks
            finally:
                if forks.last is not None:
                    await forks.last.kill()
    finally:
        os.close(orders)
