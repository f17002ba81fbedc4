"""The check against Airtable: what is there is read page by page, within the limit and behind real work, and compared.

Findings become errors, and nothing else: nothing is ever created, and what was changed by hand is delivered again only
when a person asks for it. What the check sees is kept in the store, so that no table has to fit into memory. Columns
that the table lacks are left out and named, so that one of them does not end all checks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.errors import Conflict, Stopping, StoreUnavailable
from app.fields import CLIENT_ID, RUN_ID, Registry, readable
from app.logs import get_logger
from app.model import MAX_ID, MAX_RUN_ID
from app.policy.asking import Described, Listed, Paging
from app.policy.consistency import cause_of, differences, is_expired
from app.policy.delivery import Denied, Refused
from app.store.protocol import CheckOutcome, CheckScope, SeenRecord
from app.store.views import CheckReport
from app.sync import DESCRIBE, LIST

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from app.airtable import Airtable
    from app.clock import Clock
    from app.policy.asking import FoundRecord, ListAnswer
    from app.policy.delivery import RetryRules
    from app.store.protocol import Consistency, Doubt
    from app.sync import SyncLoop

log = get_logger(__name__)

#: Records in doubt that one call asks for: their formula is within what Airtable takes.
DOUBTS_PER_CALL: Final = 50
#: A listing that expires so often is slower than Airtable lets one be.
_MOST_RESTARTS: Final = 5
#: A check that reads nothing for so long gives up, and leaves the rest to the next one.
_PATIENCE: Final = timedelta(hours=2)
_STORE_AGAIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class CheckRules:
    """`[consistency]` of the configuration, and how failures wait. Without an interval it runs on demand only."""

    interval: timedelta
    window: timedelta
    grace: timedelta
    retry: RetryRules


class _Expired(Exception):
    """The listing has to start again."""


class _CannotFinish(Exception):
    """No later try of this check would do better; the text says why."""


@dataclass(slots=True)
class _Reading:
    """How far a check has come. `listed_from` is when the first page of its listing was asked for.

    `registry` are the fields that it compares, whose columns the table has.
    """

    started_at: datetime
    since: datetime
    listed_from: datetime
    registry: Registry
    columns_left_out: tuple[str, ...] = ()
    pages: int = 0
    records: int = 0
    calls: int = 0


class ConsistencyCheck:
    """Checks every interval and on demand, one check at a time."""

    def __init__(
        self,
        store: Consistency,
        sync: SyncLoop,
        airtable: Airtable,
        registry: Registry,
        clock: Clock,
        random: random.Random,
        rules: CheckRules,
    ) -> None:
        self._store = store
        self._sync = sync
        self._airtable = airtable
        self._registry = registry
        self._clock = clock
        self._random = random
        self._rules = rules
        self._checking: asyncio.Task[CheckReport] | None = None
        self._stopping = False

    async def run(self) -> None:
        """Check every interval, counted from the end of the last check, until `stop` or cancelled."""
        if not self._rules.interval:
            await asyncio.Event().wait()
        while not self._stopping:
            try:
                if (delay := await self._until_due()) > 0.0:
                    await self._clock.sleep(delay)
                elif self._checking is not None:  # somebody asked for one
                    await asyncio.wait([self._checking])
                else:
                    await self.check()
            except StoreUnavailable as error:
                log.error("check.not_kept", reason=error.detail)  # noqa: TRY400
                await self._clock.sleep(_STORE_AGAIN_SECONDS)
            except Stopping:
                return

    async def _until_due(self) -> float:
        now = self._clock.now()
        interval = self._rules.interval
        last = await self._store.last_check_at() or now
        if last > now + interval:  # the clock was set back since
            return 0.0
        return min(last + interval - now, interval).total_seconds()

    @property
    def is_checking(self) -> bool:
        return self._checking is not None

    def stop(self) -> None:
        """Give up the check under way, if there is one: it has changed nothing yet."""
        self._stopping = True
        if self._checking is not None:
            self._checking.cancel()

    async def check(self, *, repair: bool = False) -> CheckReport:
        """Read, compare, and keep what was found; with `repair`, deliver drifted fields again.

        Raises:
            Conflict: a check is under way.
            Stopping: the service stopped before it was done.
            StoreUnavailable: what was found could not be kept.
        """
        if self._checking is not None:
            raise Conflict("a check is under way: wait for it, GET /stats shows the last one's result")
        self._checking = asyncio.create_task(self._check(repair=repair), name="check")
        try:
            return await self._checking
        except asyncio.CancelledError:
            if self._stopping:
                raise Stopping("The service stopped before the check was done: nothing was changed by it.") from None
            raise
        finally:
            self._checking = None

    async def _check(self, *, repair: bool) -> CheckReport:
        now = self._clock.now()
        reading = _Reading(now, now - self._rules.window, listed_from=now, registry=self._registry)
        outcome, trouble = CheckOutcome({}, (), 0, 0, 0), None
        try:
            await self._read(reading)
        except _CannotFinish as reason:
            trouble = str(reason)
        else:
            outcome = await self._store.finish_check(self._scope(reading), repair=repair, at=self._clock.now())
        report = CheckReport(
            started_at=iso(reading.started_at),
            finished_at=iso(self._clock.now()),
            since=iso(reading.since),
            trouble=trouble,
            pages=reading.pages,
            records=reading.records,
            calls=reading.calls,
            found=outcome.found,
            opened=outcome.opened,
            resolved=outcome.resolved,
            repaired=outcome.repaired,
            columns_left_out=reading.columns_left_out,
            findings=outcome.findings,
        )
        await self._store.keep_summary(report)
        _log(report)
        if outcome.repaired:
            self._sync.wake()
        return report

    def _scope(self, reading: _Reading) -> CheckScope:
        quiet_before = reading.listed_from - self._rules.grace
        return CheckScope(since=reading.since, quiet_before=quiet_before, whole=not reading.columns_left_out)

    # Reading

    async def _read(self, reading: _Reading) -> None:
        """The columns, the listing, then all that it leaves in doubt. Raises `_CannotFinish`."""
        for _ in range(_MOST_RESTARTS):
            await self._store.begin_check()
            reading.pages = reading.records = 0
            await self._describe(reading)
            try:
                await self._read_listing(reading)
                await self._store.gather_doubts(self._scope(reading))
                while doubts := await self._store.doubts(DOUBTS_PER_CALL):
                    await self._settle_doubts(reading, doubts)
            except _Expired:
                log.warning("check.expired", pages=reading.pages)
            else:
                return
        raise _CannotFinish(f"the listing expired {_MOST_RESTARTS} times before its end")

    async def _describe(self, reading: _Reading) -> None:
        """Leave out the columns that the table lacks. Raises `_CannotFinish` where nothing can be compared.

        A base that does not tell is asked for all columns: one that lacks any will refuse.
        """
        reading.calls += 1
        described = await self._sync.ask(DESCRIBE, self._airtable.describe)
        if not isinstance(described, Described):
            log.warning("check.not_described", reason=described.cause)
            return
        if described.columns is None:
            raise _CannotFinish("the base has no such table: see 'doctor'")
        there = {column.name for column in described.columns}
        reading.registry = Registry([field for field in self._registry.values() if field.column in there])
        reading.columns_left_out = tuple(one.column for one in self._registry.values() if one.column not in there)
        if RUN_ID not in reading.registry:
            column = self._registry[RUN_ID].column
            raise _CannotFinish(f"the table has no column {column!r}, by which records are told apart: see 'doctor'")

    async def _read_listing(self, reading: _Reading) -> None:
        columns = [field.column for field in reading.registry.values()]
        paging = Paging()

        async def page(offset: str | None) -> ListAnswer:
            if offset is None:
                reading.listed_from = self._clock.now()
            return paging.checked(await self._airtable.list_since(reading.since, columns, offset))

        offset: str | None = None
        while True:
            listed = await self._ask(reading, LIST, page, offset)
            await self._store.note_records(await self._compare(reading.registry, listed.records))
            if (offset := listed.offset) is None:
                return

    async def _settle_doubts(self, reading: _Reading, doubts: Sequence[Doubt]) -> None:
        run_ids = [doubt.run_id for doubt in doubts if doubt.run_id is not None]
        record_ids = [doubt.record_id for doubt in doubts]
        paging = Paging()

        async def page(offset: str | None) -> ListAnswer:
            return paging.checked(await self._airtable.find(run_ids, record_ids, offset))

        offset: str | None = None
        while True:
            listed = await self._ask(reading, "find", page, offset)
            offset = listed.offset
            seen = await self._compare(reading.registry, listed.records)
            await self._store.note_records(seen, asked=doubts if offset is None else ())
            if offset is None:
                return

    async def _ask(
        self, reading: _Reading, method: str, page: Callable[[str | None], Awaitable[ListAnswer]], offset: str | None
    ) -> Listed:
        """One page, however often it has to be asked for. Raises `_Expired` or `_CannotFinish`."""
        failed_at: datetime | None = None
        failures = 0
        while True:
            reading.calls += 1
            answer = await self._sync.ask(method, lambda: page(offset))
            if isinstance(answer, Listed):
                reading.pages += 1
                reading.records += len(answer.records)
                return answer
            if is_expired(answer):
                raise _Expired
            now = self._clock.now()
            failed_at = failed_at or now
            if isinstance(answer, Refused | Denied) or now - failed_at > _PATIENCE:
                raise _CannotFinish(answer.cause)
            failures += 1
            log.warning("check.waits", method=method, failures=failures, reason=answer.cause)
            await self._clock.sleep(self._rules.retry.backoff(failures, self._random).total_seconds())

    async def _compare(self, registry: Registry, records: Sequence[FoundRecord]) -> list[SeenRecord]:
        delivered = await self._store.delivered([record.id for record in records])
        seen = []
        for record in records:
            ours = delivered.get(record.id)
            found = differences(ours.values, record.cells, registry) if ours is not None else ()
            seen.append(
                SeenRecord(
                    record_id=record.id,
                    run_id=self._name(record, RUN_ID, MAX_RUN_ID),
                    client_id=self._name(record, CLIENT_ID, MAX_ID),
                    drifted=tuple(one.field for one in found),
                    cause=cause_of(found) or None,
                )
            )
        return seen

    def _name(self, record: FoundRecord, field: str, most: int) -> str | None:
        cell = record.cells.get(self._registry[field].column)
        return readable(cell[:most]) or None if isinstance(cell, str) else None


def _log(report: CheckReport) -> None:
    for finding in report.findings:
        if finding.is_new:
            log.warning(
                "check.found",
                error_id=finding.error_id,
                kind=finding.kind,
                run_id=finding.run_id,
                record_id=finding.record_id,
                cause=finding.cause,
            )
    told = log.warning if report.found or report.trouble or report.columns_left_out else log.info
    told(
        "check.done",
        trouble=report.trouble,
        pages=report.pages,
        records=report.records,
        calls=report.calls,
        found=dict(report.found),
        opened=report.opened,
        resolved=report.resolved,
        repaired=report.repaired,
        columns_left_out=list(report.columns_left_out),
    )
