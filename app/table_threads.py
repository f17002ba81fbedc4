"""Threads that own a table each: pyairtable is synchronous, and nothing promises that a session may be shared.

Written by hand because a `ThreadPoolExecutor` waits at exit for every thread: one hanging request would keep a stopped
process alive. These are daemons; what hangs is left behind, and the outbox sends it again.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from app.airtable_transport import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyairtable import Table

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Job:
    call: Callable[[Table], object]
    answer: asyncio.Future[object]
    loop: asyncio.AbstractEventLoop
    line: Line = field(default_factory=Line)
    is_taken: bool = False
    is_over: bool = False
    is_written_off: bool = False


class TableThreads:
    """As many threads as are needed at once, up to `MOST`; what comes then waits for one.

    Who gives a call up cuts its line, which ends it, and its thread gives its place to another: nothing can cut short
    the look-up of a name or the way to its addresses, and as many of those would be the end of all calls.
    """

    MOST: Final = 32

    def __init__(self, open_table: Callable[[], Table]) -> None:
        self._open_table = open_table
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = 0
        #: Threads without a call; below zero, calls that wait for one.
        self._idle = 0

    async def run(self, call: Callable[[Table], T]) -> T:
        """`call`'s result, from one of the threads. Once this is cancelled, `call` sends nothing more."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()
        self._idle -= 1
        self._staff()
        job = _Job(call, answer, loop)
        self._jobs.put(job)
        try:
            return await answer  # type: ignore[return-value]  # the future holds what `call` returns
        except asyncio.CancelledError:
            job.line.cut()
            if job.is_taken and not job.is_over:
                job.is_written_off = True
                self._threads -= 1
                self._staff()
            raise

    def _staff(self) -> None:
        """A thread more, where a call waits for one."""
        if self._idle < 0 and self._threads < self.MOST:
            self._idle += 1
            self._threads += 1
            threading.Thread(target=self._work, name=f"airtable-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        table = self._open_table()
        while (job := self._jobs.get()) is not None:
            job.is_taken = True
            result: object = None
            error: Exception | None = None
            if not job.answer.done():  # who waited for a thread in vain has given up: a stale write must not go out
                try:
                    with job.line:
                        result = job.call(table)
                except Exception as raised:  # noqa: BLE001  # it belongs to whoever asked
                    error = raised
            try:
                job.loop.call_soon_threadsafe(self._finish, job, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                break
        table.api.session.close()

    def _finish(self, job: _Job, result: object, error: Exception | None) -> None:
        job.is_over = True
        if job.is_written_off:
            self._jobs.put(None)  # this thread or another ends: there is one too many
            return
        self._idle += 1
        if job.answer.done():
            return
        if error is None:
            job.answer.set_result(result)
        else:
            job.answer.set_exception(error)

    def close(self) -> None:
        """Let idle threads end; those with a call under way end after it."""
        for _ in range(self._threads):
            self._jobs.put(None)
