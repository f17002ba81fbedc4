"""The one source of time, so that tests can be their own. Wall time dates what people read; monotonic time paces."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

#: Who sleeps until a time that is far ahead looks at the clock this often, for it may have been set.
_LONGEST_SLEEP_SECONDS: Final = 3600.0


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, for measuring waits."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def iso(at: datetime) -> str:
    """UTC ISO 8601 with milliseconds and `Z`, e.g. `2026-05-16T09:20:00.000Z`: sorts as text in order of time."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_iso(text: str) -> datetime:
    """An ISO 8601 time with an offset, in UTC.

    Raises:
        ValueError: it is not one, has no offset, or is a time that UTC cannot hold.
    """
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        msg = "the time has no offset"
        raise ValueError(msg)
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(str(error)) from error


def parse_http_date(text: str | None) -> datetime | None:
    """The time in a `Date` header (RFC 9110), in UTC; `None` where there is none that makes sense."""
    try:
        return parsedate_to_datetime(text or "").astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def seconds_until(due: datetime | None, now: datetime) -> float | None:
    """How long to sleep before what is `due` is looked for again: never 0, and `None` where nothing is."""
    return None if due is None else min(max(0.001, (due - now).total_seconds()), _LONGEST_SLEEP_SECONDS)


async def wait_until_set(event: asyncio.Event, clock: Clock, seconds: float | None) -> None:
    """Return when `event` is set, or `seconds` have passed on `clock` (`None`: however long it takes)."""
    if event.is_set():
        return
    waits: list[asyncio.Task[None]] = [asyncio.create_task(_wait(event))]
    if seconds is not None:
        waits.append(asyncio.create_task(_sleep(clock, seconds)))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _sleep(clock: Clock, seconds: float) -> None:
    await clock.sleep(seconds)
