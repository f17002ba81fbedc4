"""The threads that talk to Airtable: as many as are needed, one table each, and nothing stale goes out."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from pyairtable import Api

from app.table_threads import TableThreads
from tests.support.table_threads import airtable_threads, all_end

if TYPE_CHECKING:
    from pyairtable import Table


def open_table() -> Table:
    return Api("pat", retry_strategy=None, endpoint_url="http://127.0.0.1:9").table("app", "tbl")


async def test_what_was_given_up_while_all_threads_were_busy_is_never_sent() -> None:
    threads = TableThreads(open_table)
    gate = threading.Event()
    busy = [asyncio.create_task(threads.run(lambda _table: gate.wait(10))) for _ in range(TableThreads.MOST)]
    sent: list[str] = []
    stale = asyncio.create_task(threads.run(lambda _table: sent.append("stale")))
    await asyncio.sleep(0)
    stale.cancel()
    await asyncio.gather(stale, return_exceptions=True)
    gate.set()
    await asyncio.gather(*busy)
    await threads.run(lambda _table: sent.append("fresh"))
    threads.close()
    assert sent == ["fresh"]


async def test_threads_that_are_kept_busy_after_they_were_given_up_stand_in_nobodys_way() -> None:
    """As a peer does that sends forever what never becomes an answer."""
    others = set(threading.enumerate())  # of tests before, whose calls may still hang
    threads = TableThreads(open_table)
    gate = threading.Event()
    begun = threading.Semaphore(0)

    def keep_busy(_table: Table) -> None:
        begun.release()
        gate.wait(30)

    for _ in range(3):
        kept = [asyncio.create_task(threads.run(keep_busy)) for _ in range(TableThreads.MOST)]
        for _ in kept:
            assert await asyncio.to_thread(begun.acquire, timeout=10)
        for call in kept:
            call.cancel()
        await asyncio.gather(*kept, return_exceptions=True)
    assert await asyncio.wait_for(threads.run(lambda _table: "answered"), 10) == "answered"
    busy = airtable_threads() - others
    assert len(busy) == 3 * TableThreads.MOST + 1
    gate.set()
    assert await threads.run(lambda _table: "answered again") == "answered again"
    threads.close()
    await all_end(busy)


async def test_who_gives_up_what_is_just_over_writes_off_no_thread() -> None:
    others = set(threading.enumerate())
    threads = TableThreads(open_table)
    gate = threading.Event()
    goes_on = threading.Event()
    begun = threading.Semaphore(0)

    def wait_at_gate(_table: Table) -> None:
        begun.release()
        gate.wait(30)

    calls = [asyncio.create_task(threads.run(wait_at_gate)) for _ in range(TableThreads.MOST)]
    for _ in calls:
        assert await asyncio.to_thread(begun.acquire, timeout=10)
    after = asyncio.create_task(threads.run(lambda _table: goes_on.set()))
    await asyncio.sleep(0)
    gate.set()
    assert goes_on.wait(10)  # one call is over, and the loop, kept waiting here, has not heard of it
    for call in calls:
        call.cancel()
    await asyncio.gather(after, *calls, return_exceptions=True)
    busy = airtable_threads() - others
    threads.close()
    await all_end(busy)


async def test_what_waits_gets_a_thread_in_the_place_of_one_that_was_given_up() -> None:
    threads = TableThreads(open_table)
    gate = threading.Event()
    busy = [asyncio.create_task(threads.run(lambda _table: gate.wait(30))) for _ in range(TableThreads.MOST)]
    waiting = asyncio.create_task(threads.run(lambda _table: "answered"))
    await asyncio.sleep(0)
    busy[0].cancel()
    assert await asyncio.wait_for(waiting, 10) == "answered"
    gate.set()
    await asyncio.gather(*busy, return_exceptions=True)
    threads.close()


async def test_no_threads_are_lost_to_calls_that_were_given_up_with_others_waiting() -> None:
    others = set(threading.enumerate())
    threads = TableThreads(open_table)
    gate = threading.Event()
    begun = threading.Semaphore(0)

    def hang(_table: Table) -> None:
        begun.release()
        gate.wait(30)

    calls = [asyncio.create_task(threads.run(hang)) for _ in range(TableThreads.MOST + 5)]
    for _ in range(TableThreads.MOST):
        assert await asyncio.to_thread(begun.acquire, timeout=10)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert await asyncio.wait_for(threads.run(lambda _table: "answered"), 10) == "answered"
    busy = airtable_threads() - others
    gate.set()
    threads.close()
    await all_end(busy)


async def test_a_thread_is_used_again_and_keeps_its_table() -> None:
    threads = TableThreads(open_table)
    tables = [await threads.run(id) for _ in range(5)]
    threads.close()
    assert len(set(tables)) == 1


async def test_an_error_of_a_call_reaches_whoever_asked_and_the_thread_lives_on() -> None:
    threads = TableThreads(open_table)

    def fail(_table: Table) -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        await threads.run(fail)
    assert await threads.run(lambda _table: 1) == 1
    threads.close()
