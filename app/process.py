"""A service as a process: it serves until a signal or a dead loop ends it, and its exit code says which."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn

from app.config import check_exposure
from app.logs import get_logger
from app.service import running
from app.store.sqlite.opening import make_folder

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from app.config import Secrets, Settings
    from app.service import Service

log = get_logger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: Signals that come this close together are one request to stop: a terminal sends Ctrl-C to us and to whoever started
#: us and passes it on, and some orchestrators send theirs twice.
SAME_REQUEST_SECONDS: Final = 0.5


def run(serving: Coroutine[None, None, int]) -> NoReturn:
    """Run `serve` or `serve_sandbox`, and leave the process with its code. Raises as they do.

    It leaves as soon as all is closed and said: both asyncio and the interpreter would wait for every thread first. One
    may be looking up a name, which nothing can cut short, and by then no signal would be heard any more.
    """
    with asyncio.Runner() as runner:
        code = runner.run(serving)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


async def serve(settings: Settings, secrets: Secrets) -> int:
    """Serve until SIGTERM or SIGINT (0), or until a loop dies (1). Raises as `running` does."""
    stop = _stop_signals()
    async with running(settings, secrets) as service:
        return await _until_the_end(service, stop)


async def serve_sandbox(settings: Settings, secrets: Secrets, journal: Path) -> int:
    """Serve against the embedded emulators, whose Airtable keeps its records in `journal`. Raises as `running` does."""
    from app.sandbox.embedded import embedded  # noqa: PLC0415 - only who plays waits until the emulators are loaded

    check_exposure(settings, secrets)
    make_folder(journal)
    stop = _stop_signals()
    async with (
        embedded(settings, secrets, journal=journal) as sandbox,
        running(sandbox.settings, sandbox.secrets) as service,
    ):
        log.info("sandbox.started", airtable=sandbox.airtable_server.url, apify=sandbox.apify.url)
        return await _until_the_end(service, stop)


async def _until_the_end(service: Service, stop: asyncio.Event) -> int:
    _look_for_garbage_in_what_is_new()
    stopped = asyncio.create_task(stop.wait())
    loops = asyncio.create_task(service.until_a_loop_ends())
    await asyncio.wait([stopped, loops], return_when=asyncio.FIRST_COMPLETED)
    if stopped.done():
        loops.cancel()
        return 0
    stopped.cancel()
    error = loops.exception()
    log.critical("loop.died", exc_info=error)
    return 1


def _look_for_garbage_in_what_is_new() -> None:
    """What is loaded by now stays, and to look through all of it would stop everything for some 70 ms at a time."""
    gc.freeze()
    gc.enable()


def _stop_signals() -> asyncio.Event:
    """An event that the first signal sets. A later one ends the process at once: the outbox is made for that.

    They are heard until the process is gone, and by nobody once the loop has ended: what comes so late must not take
    the place of the exit code.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    asked_at = 0.0

    def on_signal(number: signal.Signals) -> None:
        nonlocal asked_at
        if not stop.is_set():
            asked_at = loop.time()
            log.info("process.stopping", signal=number.name)
            stop.set()
        elif loop.time() - asked_at > SAME_REQUEST_SECONDS:
            log.warning("process.ended_at_once", signal=number.name)
            os._exit(128 + number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    return stop
