"""Looks for records in Airtable by their Run IDs: many in one call, and behind real work. Nothing is ever created.

Of missing runs, with pauses that grow. Exactly one record with the run's id: the run is adopted with its cells as they
are, and what was held follows. None: the error stays open. Several: a person has to choose.
Of runs whose record was deleted, once when a person retries their messages: exactly one other record with the run's id
is the run's from then on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from app.clock import Clock, seconds_until, wait_until_set
from app.errors import StoreUnavailable
from app.fields import RUN_ID
from app.logs import get_logger
from app.policy.asking import Listed, Paging
from app.policy.missing import refused_pause
from app.store.protocol import Adoption

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from app.airtable import Airtable
    from app.fields import Registry
    from app.policy.asking import FoundRecord, ListAnswer
    from app.store.protocol import Missing
    from app.sync import SyncLoop

log = get_logger(__name__)

#: Runs that one call asks for: their formula is within what Airtable takes.
IDS_PER_CALL: Final = 50
#: The answer to a look that cannot be kept is asked for again, and calls are counted.
_STORE_AGAIN_SECONDS: Final = 60.0


class LookupLoop:
    def __init__(self, store: Missing, sync: SyncLoop, airtable: Airtable, registry: Registry, clock: Clock) -> None:
        self._store = store
        self._sync = sync
        self._airtable = airtable
        self._registry = registry
        self._clock = clock
        self._wake = asyncio.Event()
        self._refusals = 0
        self._has_asked = False

    def wake(self) -> None:
        """A run is missing: look at once, or after the pause that follows a refusal."""
        if not self._has_asked:
            self._wake.set()

    def look_again(self) -> None:
        """A person asks for what waits: look at once, for what was refused may be mended."""
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
        self._has_asked = False
        now = self._clock.now()
        try:
            for look in (self._look_for_missing, self._look_for_lost):
                if (delay := await look(now)) is not None:
                    return delay
            due = await self._store.next_look_due()
            if due is not None and await self._store.recover_looks(now):
                return 0.0
        except StoreUnavailable as error:  # it passes: the disk is full, say, or a person holds the database
            log.error("lookup.store_unavailable", reason=error.detail)  # noqa: TRY400
            return _STORE_AGAIN_SECONDS
        return seconds_until(due, self._clock.now())

    async def _look_for_missing(self, now: datetime) -> float | None:
        """Ask for missing runs; seconds until it can go on, `None` where none is due."""
        run_ids = await self._store.due_looks(now, IDS_PER_CALL)
        if not run_ids:
            return None
        records = await self._find(run_ids)
        if records is None:
            return self._pause()
        adopted = await self._store.settle_looks(self._sort(run_ids, records), self._clock.now())
        for run_id in adopted:
            log.warning("run.adopted", run_id=run_id)
        log.info("lookup.done", asked=len(run_ids), adopted=len(adopted))
        self._sync.wake()
        return 0.0

    async def _look_for_lost(self, now: datetime) -> float | None:
        """Ask for the records of runs whose own was deleted; seconds until it can go on, `None` where none is due."""
        lost = await self._store.due_record_looks(now, IDS_PER_CALL)
        if not lost:
            return None
        run_ids = [one.run_id for one in lost]
        records = await self._find(run_ids, [one.record_id for one in lost])
        if records is None:
            return self._pause()
        own = {one.record_id: one.run_id for one in lost}
        named = self._sort(run_ids, records)
        found = {run_id: [one.record_id for one in named[run_id]] for run_id in run_ids}
        for record in records:
            if record.id in own and record.id not in found[own[record.id]]:  # it is there, and was renamed
                found[own[record.id]].append(record.id)
        linked = await self._store.settle_record_looks(found, self._clock.now())
        for run_id, record_id in linked.items():
            log.warning("run.linked", run_id=run_id, record_id=record_id)
        log.info("lookup.lost_done", asked=len(run_ids), linked=len(linked))
        self._sync.wake()
        return 0.0

    async def _find(self, run_ids: Sequence[str], record_ids: Sequence[str] = ()) -> list[FoundRecord] | None:
        """All records that are asked for, or nothing where Airtable does not tell."""
        self._has_asked = True
        records: list[FoundRecord] = []
        paging = Paging()
        offset: str | None = None

        async def page() -> ListAnswer:
            return paging.checked(await self._airtable.find(run_ids, record_ids, offset))

        while True:
            answer = await self._sync.ask("find", page)
            if not isinstance(answer, Listed):
                log.warning("lookup.failed", run_ids=len(run_ids), reason=answer.cause)
                return None
            records += answer.records
            if (offset := answer.offset) is None:
                self._refusals = 0
                return records

    def _pause(self) -> float:
        """Airtable did not tell: seconds for which it is not asked again, but by a person."""
        pause = refused_pause(self._refusals)
        self._refusals += 1
        return pause.total_seconds()

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
