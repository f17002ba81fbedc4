"""What the plots show, asked of the store once: steps that are over hardly change, however often a page asks again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.store.protocol import Reading
    from app.store.views import ActivityStep

#: What was set aside may be retried, and leaves its step then: that shows after this long.
KEPT_FOR: Final = timedelta(minutes=1)


class Activity:
    """The steps of each span that are over, kept for a minute, for all who look."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._over: dict[timedelta, tuple[datetime, dict[datetime, ActivityStep]]] = {}

    async def steps(self, now: datetime, step: timedelta, count: int) -> Sequence[ActivityStep]:
        """`count` steps, the last of which is the one that `now` is in."""
        last = _start_of(now, step)
        starts = [last - step * number for number in range(count - 1, -1, -1)]
        kept_at, over = self._over.get(step, (now, {}))
        if not timedelta() <= now - kept_at < KEPT_FOR:
            kept_at, over = now, {}
        first = next(number for number, start in enumerate(starts) if start not in over)
        fresh = await self._reading.activity(starts[first], step, count - first)
        steps = [*(over[start] for start in starts[:first]), *fresh]
        self._over[step] = (kept_at, dict(zip(starts[:-1], steps[:-1], strict=True)))
        return steps


def _start_of(now: datetime, step: timedelta) -> datetime:
    """The beginning of the step that `now` is in, as clocks count: the steps stand still while time goes on."""
    seconds = step.total_seconds()
    return datetime.fromtimestamp(now.timestamp() // seconds * seconds, now.tzinfo)
