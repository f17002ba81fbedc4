"""Threads that own a table each: pyairtable is synchronous, and nothing promises that a session may be shared.

Written by hand because a `ThreadPoolExecutor` waits at exit for every thread: one hanging request would keep a stopped
process alive. These are daemons; what hangs is left behind, and the outbox sends it again.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyairtable import Table

T = TypeVar("T")

_Job = tuple["Callable[[Table], object]", "asyncio.Future[object]", asyncio.AbstractEventLoop]


class TableThreads:
    """As many threads as are needed at once, up to `MOST`; what comes then waits for one."""

    MOST: Final = 32

    def __init__(self, open_table: Callable[[], Table]) -> None:
        self._open_table = open_table
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0

    async def run(self, call: Callable[[Table], T]) -> T:
        """`call`'s result, from one of the threads. Cancelling leaves the call to end by itself."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()
        if self._idle == 0 and self._threads < self.MOST:
            self._threads += 1
            threading.Thread(target=self._work, name=f"airtable-{self._threads}", daemon=True).start()
        else:
            self._idle -= 1
        self._jobs.put((call, answer, loop))
        return await answer  # type: ignore[return-value]  # the future holds what `call` returns

    def _work(self) -> None:
        table = self._open_table()
        while (job := self._jobs.get()) is not None:
            call, answer, loop = job
            result: object = None
            error: Exception | None = None
            if not answer.done():  # who waited for a thread in vain has given up: a stale write must not go out
                try:
                    result = call(table)
                except Exception as raised:  # noqa: BLE001  # it belongs to whoever asked
                    error = raised
            try:
                loop.call_soon_threadsafe(self._finish, answer, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                break
        table.api.session.close()

    def _finish(self, answer: asyncio.Future[object], result: object, error: Exception | None) -> None:
        self._idle += 1
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def close(self) -> None:
        """Let idle threads end; those with a call under way end after it."""
        for _ in range(self._threads):
            self._jobs.put(None)
