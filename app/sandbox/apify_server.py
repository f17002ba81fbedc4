"""The Apify sandbox as one thing to start and stop: the API on loopback, the life of its runs, and its webhooks.

Tests and the demo start it and give its `url` to apify-client. It must not know what the webhooks are for.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING

from app.sandbox.apify import ApifySandbox
from app.sandbox.apify_dispatch import Dispatcher
from app.sandbox.wire import Faults, WireServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from app.sandbox.wire import LoggedRequest


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ApifyServer:
    """`async with ApifyServer() as apify:` serves `apify.sandbox` at `apify.url`, for `ApifyClientAsync(api_url=…)`.

    By default it lives in real time, with Apify's own delays. A sandbox with a clock of its own needs that clock's
    `sleep` as well, or a `sandbox.tick()` after each step of the clock. `webhooks` and `faults` are the
    switches by which deliveries and requests go wrong.
    """

    def __init__(
        self,
        sandbox: ApifySandbox | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        faults: Faults | None = None,
        latency: float = 0.0,
        port: int = 0,
        retry_factor: float = 1.0,
    ) -> None:
        if sandbox is None:
            sandbox = ApifySandbox(now=_utc_now, random=Random(1))  # noqa: S311 - the ids of a sandbox
        self.sandbox = sandbox
        self.faults = faults if faults is not None else Faults()
        self.webhooks = Dispatcher(now=sandbox.now, new_id=sandbox.new_id, sleep=sleep, retry_factor=retry_factor)
        self._wire = WireServer(sandbox, faults=self.faults, clock=monotonic, sleep=sleep, latency=latency, port=port)
        self._sleep = sleep
        self._changed = asyncio.Event()
        self._living: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the API is, without `/v2`, which apify-client adds."""
        return self._wire.url

    @property
    def log(self) -> list[LoggedRequest]:
        """Every request that came in."""
        return self._wire.log

    async def wait_for(
        self, predicate: Callable[[list[LoggedRequest]], bool], *, within: float = 10.0
    ) -> list[LoggedRequest]:
        """Wait until the log of requests satisfies `predicate`. Raises `TimeoutError` after `within` real seconds."""
        return await self._wire.wait_for(predicate, within)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, and let the runs live. Raises `OSError` if the port is taken, `RuntimeError` if it runs already."""
        await self._wire.start()
        await self.webhooks.start()
        self.sandbox.on_change = self._hand_out
        # What fired while nothing listened.
        self._hand_out()
        self._living = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """Stop it all, and leave neither a task nor a socket. The account stays as it is, for another start."""
        self.sandbox.on_change = None
        living, self._living = self._living, None
        if living is not None:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
        await self._wire.stop()
        await self.webhooks.stop()

    def _hand_out(self) -> None:
        """Give what fired to the dispatcher, and let the life of the runs look at its clock again."""
        for dispatch in self.sandbox.take_dispatches():
            self.webhooks.send(dispatch)
        self._changed.set()

    async def _live(self) -> None:
        """Wake when the next thing is due, or when something has changed what that is."""
        while True:
            self.sandbox.tick()
            self._changed.clear()
            due = self.sandbox.next_due()
            waits: list[asyncio.Task[None]] = [asyncio.create_task(self._change())]
            if due is not None:
                waits.append(asyncio.create_task(self._pause_until(due)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _change(self) -> None:
        await self._changed.wait()

    async def _pause_until(self, due: datetime) -> None:
        # Looks at the clock here, when the sleep begins: a hand-moved one may have moved since `due` was found.
        await self._sleep(max(0.0, (due - self.sandbox.now()).total_seconds()))
