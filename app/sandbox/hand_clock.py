"""Time that passes by hand, for tests: one clock for an emulator and for the service that talks to it.

It knows nothing of either; it has the `now`, `monotonic` and `sleep` that both take.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

START = datetime(2026, 5, 16, 9, 0, tzinfo=UTC)


class HandClock:
    """Stands still until `pass_time`. Who sleeps by it wakes when that much time has been passed."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._at = start
        self._sleepers: dict[asyncio.Future[None], datetime] = {}

    def now(self) -> datetime:
        return self._at

    def monotonic(self) -> float:
        return (self._at - self._start).total_seconds()

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers[waking] = self._at + timedelta(seconds=seconds)
        try:
            await waking
        finally:
            del self._sleepers[waking]

    def sleeps_for(self, most: float) -> float:
        """Seconds until the first of those wakes who sleep by it, `most` at the most."""
        waits = [(due - self._at).total_seconds() for waking, due in self._sleepers.items() if not waking.done()]
        return min([most, *waits])

    def pass_time(self, seconds: float) -> None:
        """Let `seconds` pass at once, and wake whoever was due in them, in the order of their times."""
        self._at += timedelta(seconds=seconds)
        for waking, due in sorted(self._sleepers.items(), key=lambda sleeper: sleeper[1]):
            if due <= self._at and not waking.done():
                waking.set_result(None)
