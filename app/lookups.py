"""Looks for missing runs in Airtable: many ids in one call, behind real work, with pauses that grow.

Exactly one record with the run's id: the run is adopted with its cells as they are, and what was held follows. None:
the error stays open. Several: a person has to choose. Nothing is ever created.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from app.clock import Clock, wait_until_set
from app.errors import StoreUnavailable
from app.fields import RUN_ID
from app.logs import get_logger
from app.policy.asking import Listed
from app.store.protocol import Adoption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.airtable import Airtable
    from app.fields import Registry
    from app.policy.asking import FoundRecord
    from app.store.protocol import Missing
    from app.sync import SyncLoop

log = get_logger(__name__)

#: Ids that one call asks for: their formula is within what Airtable takes, and a page holds all their records.
IDS_PER_CALL: Final = 50
_FAILED_PAUSE_SECONDS: Final = 60.0


class LookupLoop:
    def __init__(self, store: Missing, sync: SyncLoop, airtable: Airtable, registry: Registry, clock: Clock) -> None:
        self._store = store
        self._sync = sync
        self._airtable = airtable
        self._registry = registry
        self._clock = clock
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """A run is missing (or another one): look at once."""
        self._wake.set()

    async def run(self) -> None:
        """Look whenever a look is due, until cancelled."""
        while True:
            self._wake.clear()
            delay = await self.run_once()
            if delay != 0.0:
                await wait_until_set(self._wake, self._clock, delay)

    async def run_once(self) -> float | None:
        """Ask one time at most; seconds until there may be more to ask, `None` when only a wake can tell."""
        now = self._clock.now()
        run_ids = await self._store.due_looks(now, IDS_PER_CALL)
        if not run_ids:
            due = await self._store.next_look_due()
            return None if due is None else max(0.001, (due - now).total_seconds())
        answer = await self._sync.ask("find", lambda: self._airtable.find(run_ids))
        if not isinstance(answer, Listed):
            log.warning("lookup.failed", run_ids=len(run_ids), reason=answer.cause)
            return _FAILED_PAUSE_SECONDS
        try:
            adopted = await self._store.settle_looks(self._sort(run_ids, answer.records), self._clock.now())
        except StoreUnavailable as error:
            log.error("lookup.not_settled", reason=error.detail)  # noqa: TRY400
            return _FAILED_PAUSE_SECONDS
        for run_id in adopted:
            log.warning("run.adopted", run_id=run_id)
        log.info("lookup.done", asked=len(run_ids), adopted=len(adopted))
        self._sync.wake()
        return 0.0

    def _sort(self, run_ids: Sequence[str], records: Sequence[FoundRecord]) -> dict[str, tuple[Adoption, ...]]:
        """What was found for each id that was asked for; only an exact match counts."""
        column = self._registry[RUN_ID].column
        return {
            run_id: tuple(
                Adoption(record.id, self._registry.read_cells(record.cells))
                for record in records
                if record.cells.get(column) == run_id
            )
            for run_id in run_ids
        }
