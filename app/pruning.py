"""Retention: once a day, and when asked, what is past its days is removed in small bites beside the work.

Between two bites it rests for as long as the bite took, so that the writer is never more than half its own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.errors import Conflict, Stopping, StoreUnavailable
from app.logs import get_logger
from app.store.protocol import PruneCursor
from app.store.views import PruneReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from app.clock import Clock
    from app.store.protocol import Retention

log = get_logger(__name__)

_INTERVAL: Final = timedelta(days=1)
#: A start has more urgent things to do.
_FIRST_SECONDS: Final = 60.0
_STORE_AGAIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """`[retention]` of the configuration: how long delivered things and idempotency keys are kept; `None`: for good."""

    delivered: timedelta | None
    idempotency: timedelta | None

    @staticmethod
    def of_days(delivered: int, idempotency: int) -> RetentionRules:
        """0 days keep for good."""
        return RetentionRules(
            timedelta(days=delivered) if delivered else None, timedelta(days=idempotency) if idempotency else None
        )


class Pruning:
    """One pruning at a time: by itself soon after a start and daily after that, or on demand."""

    def __init__(self, store: Retention, clock: Clock, rules: RetentionRules) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules
        self._pruning = False
        self._stopping = False

    async def run(self) -> None:
        """Prune soon and then daily, until `stop` or cancelled; a cancelled pruning ends between two bites."""
        if self._rules == RetentionRules(None, None):
            await asyncio.Event().wait()
        await self._clock.sleep(_FIRST_SECONDS)
        while not self._stopping:
            try:
                await self.prune()
            except Conflict:  # somebody asked for one
                await self._clock.sleep(_STORE_AGAIN_SECONDS)
            except StoreUnavailable as error:
                log.error("prune.not_done", reason=error.detail)  # noqa: TRY400
                await self._clock.sleep(_STORE_AGAIN_SECONDS)
            except Stopping:
                return
            else:
                await self._clock.sleep(_INTERVAL.total_seconds())

    def stop(self) -> None:
        """Begin no further bite."""
        self._stopping = True

    async def prune(self) -> PruneReport:
        """Remove all that is past its days.

        Raises:
            Conflict: a pruning is under way.
            Stopping: the service stopped before it was done; the next one goes on.
            StoreUnavailable: a bite could not be committed; those before it are.
        """
        if self._pruning:
            raise Conflict("a pruning is under way: wait for it")
        self._pruning = True
        try:
            return await self._prune(self._clock.now())
        finally:
            self._pruning = False

    async def _prune(self, now: datetime) -> PruneReport:
        messages = calls = bodies = keys = 0
        delivered_before = now - self._rules.delivered if self._rules.delivered else None
        keys_before = now - self._rules.idempotency if self._rules.idempotency else None
        if delivered_before is not None:
            messages = await self._prune_messages(delivered_before)
            calls = await self._prune_all(self._store.prune_calls, delivered_before)
            bodies = await self._prune_all(self._store.prune_webhook_bodies, delivered_before)
        if keys_before is not None:
            keys = await self._prune_all(self._store.prune_idempotency_keys, keys_before)
        report = PruneReport(
            started_at=iso(now),
            finished_at=iso(self._clock.now()),
            delivered_before=iso(delivered_before) if delivered_before else None,
            keys_before=iso(keys_before) if keys_before else None,
            messages=messages,
            calls=calls,
            webhook_bodies=bodies,
            idempotency_keys=keys,
            free_bytes=await self._store.free_bytes(),
        )
        log.info("prune.done", messages=messages, calls=calls, webhook_bodies=bodies, idempotency_keys=keys)
        return report

    async def _prune_messages(self, before: datetime) -> int:
        removed = 0
        cursor: PruneCursor | None = PruneCursor()
        while cursor is not None:
            since = self._begin_bite()
            bite = await self._store.prune_messages(before, cursor)
            removed, cursor = removed + bite.removed, bite.next
            await self._rest(since)
        return removed

    async def _prune_all(self, bite: Callable[[datetime], Awaitable[int]], before: datetime) -> int:
        removed = 0
        while True:
            since = self._begin_bite()
            bitten = await bite(before)
            if not bitten:
                return removed
            removed += bitten
            await self._rest(since)

    def _begin_bite(self) -> float:
        if self._stopping:
            raise Stopping("The service stopped before the pruning was done: the next one goes on.")
        return self._clock.monotonic()

    async def _rest(self, since: float) -> None:
        await self._clock.sleep(self._clock.monotonic() - since)
