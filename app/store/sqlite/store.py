"""The SQLite store: turns each call of the protocol into one unit on the right connection."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from app.clock import parse_iso
from app.store.protocol import LONGEST_WAIT
from app.store.sqlite import (
    activity,
    consistency,
    counting,
    delivery,
    harvest,
    intake,
    missing,
    prune,
    reading,
    replay,
    webhooks,
)
from app.store.sqlite.connection import Alike
from app.store.sqlite.intake import When
from app.store.views import HowFar, KickoffTaken

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from app.model import Action, Created, Kickoff, Update, UpdateOutcome, WebhookTaken
    from app.policy.budget import Allowance
    from app.policy.delivery import Claim, Settlement
    from app.policy.harvest import Batch, BatchEvent, HarvestRules
    from app.store.protocol import (
        Adoption,
        BatchStep,
        Bite,
        CheckOutcome,
        CheckScope,
        Delivered,
        Doubt,
        LostRecord,
        PruneCursor,
        SeenRecord,
        WebhookEvent,
    )
    from app.store.sqlite.connection import GroupCommit, Reader
    from app.store.views import (
        ActivityStep,
        CheckSummary,
        Counts,
        DecisionFilter,
        DecisionView,
        ErrorFilter,
        ErrorView,
        MessageFilter,
        MessageView,
        NoRun,
        Page,
        RunFilter,
        RunSummary,
        RunView,
        Slice,
        Stats,
    )

VACUUM_INTO: Final = "VACUUM INTO ?"
#: In a table that is empty between two consistency checks, and has no id like this one.
INSERT_PROBE: Final = "INSERT INTO check_doubts (record_id) VALUES ('')"
DELETE_PROBE: Final = "DELETE FROM check_doubts WHERE record_id = ''"


class SqliteReading:
    """The reading half, over a read-only connection: what commands use beside a running service."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def run(self, run_id: str) -> RunView | None:
        return await self._reader.run(lambda connection: reading.run(connection, run_id))

    async def no_run(self, run_id: str) -> NoRun:
        return await self._reader.run(lambda connection: reading.no_run(connection, run_id))

    async def runs(self, chosen: RunFilter, part: Slice) -> Page[RunSummary]:
        return await self._reader.run(lambda connection: reading.runs(connection, chosen, part))

    async def message(self, message_id: int) -> MessageView | None:
        return await self._reader.run(lambda connection: reading.message(connection, message_id))

    async def messages(self, chosen: MessageFilter, part: Slice) -> Page[MessageView]:
        return await self._reader.run(lambda connection: reading.messages(connection, chosen, part))

    async def error(self, error_id: int) -> ErrorView | None:
        return await self._reader.run(lambda connection: reading.error(connection, error_id))

    async def errors(self, chosen: ErrorFilter, part: Slice) -> Page[ErrorView]:
        return await self._reader.run(lambda connection: reading.errors(connection, chosen, part))

    async def stats(self, at: datetime) -> Stats:
        return await self._reader.run(lambda connection: counting.stats(connection, at))

    async def decisions(self, chosen: DecisionFilter, part: Slice) -> Page[DecisionView]:
        return await self._reader.run(lambda connection: reading.decisions(connection, chosen, part))

    async def activity(self, since: datetime, step: timedelta, count: int) -> Sequence[ActivityStep]:
        return await self._reader.run(lambda connection: activity.activity(connection, since, step, count))

    async def check_progress(self, since: datetime) -> HowFar:
        return await self._reader.run(lambda connection: consistency.progress(connection, since))

    async def counts(self, at: datetime) -> Counts:
        return await self._reader.run(lambda connection: counting.counts(connection, at))

    async def backup(self, to: Path) -> None:
        if to.exists():
            raise FileExistsError(f"{to} exists already: a backup never writes over a file")
        part = _part_of(to)  # what has the backup's name is whole
        part.unlink(missing_ok=True)
        try:
            await self._reader.run_alone(lambda connection: connection.execute(VACUUM_INTO, (str(part),)).close())
            part.rename(to)
        finally:
            part.unlink(missing_ok=True)


async def backup_progress(path: Path, to: Path) -> HowFar:
    """How far the backup of the store at `path` is, in bytes. What was free in it is not copied: it may end early."""
    part = _part_of(to)
    return HowFar(part.stat().st_size if part.exists() else 0, path.stat().st_size)


def _part_of(backup: Path) -> Path:
    return backup.with_name(f"{backup.name}.part")


class SqliteStore(SqliteReading):
    """The whole store. `run_fields` are the names of the registry's fields that batches may change."""

    def __init__(
        self,
        writer: GroupCommit,
        reader: Reader,
        *,
        linger_seconds: float,
        run_fields: Sequence[str],
        rules: HarvestRules,
    ) -> None:
        super().__init__(reader)
        self._writer = writer
        self._linger_seconds = linger_seconds
        self._run_fields = run_fields
        self._rules = rules

    # Intake

    async def accept_create(self, kickoff: Kickoff, at: datetime) -> KickoffTaken:
        created, run = await self._writer.run(lambda connection: self._accept_create(connection, kickoff, at))
        if run is None:  # much may have happened to it: that is read where nobody waits to write
            run = await self._reader.run(lambda connection: reading.existing_run(connection, created.run_id))
        return KickoffTaken(run, created.created, created.held_applied)

    def _accept_create(
        self, connection: sqlite3.Connection, kickoff: Kickoff, at: datetime
    ) -> tuple[Created, RunView | None]:
        """What became of it, and the run as it was created; `None` where it existed."""
        when = self._when(at)
        created = intake.accept_create(connection, kickoff, now=at, when=when)
        if not created.created:
            return created, None
        webhooks.release_held(
            connection, None, created.run_id, now=at, when=when, rules=self._rules, known=self._run_fields
        )
        return created, reading.existing_run(connection, created.run_id)

    async def accept_update(self, update: Update, at: datetime) -> UpdateOutcome:
        unit: Alike[tuple[Update, When], UpdateOutcome] = Alike(intake.accept_updates, (update, self._when(at)))
        return await self._writer.run(unit)

    async def accept_webhook(self, event: WebhookEvent, at: datetime) -> WebhookTaken:
        when = self._when(at)
        return await self._writer.run(
            lambda connection: webhooks.accept_webhook(
                connection, event, now=at, when=when, rules=self._rules, known=self._run_fields
            )
        )

    def _when(self, at: datetime) -> When:
        return When.of(at, self._linger_seconds)

    # Outbox

    async def claim(self, at: datetime, *, only_creates: bool = False) -> Claim | None:
        company = at + timedelta(seconds=self._linger_seconds)
        return await self._writer.run(
            lambda connection: delivery.claim(connection, at, company_until=company, only_creates=only_creates)
        )

    async def next_due(self, *, only_creates: bool = False) -> datetime | None:
        return _due(await self._reader.run(lambda connection: delivery.next_due(connection, only_creates=only_creates)))

    async def settle(self, settlement: Settlement, at: datetime) -> Sequence[Sequence[datetime]]:
        return await self._writer.run(lambda connection: delivery.settle(connection, settlement, at))

    async def begin_call(self, method: str, at: datetime) -> int:
        return await self._writer.run(lambda connection: delivery.begin_call(connection, method, at))

    async def end_call(self, settlement: Settlement, records: int, at: datetime) -> None:
        await self._writer.run(lambda connection: delivery.end_call(connection, settlement, records, at))

    async def bind_base(self, base_id: str, at: datetime) -> None:
        await self._writer.run(lambda connection: delivery.bind_base(connection, base_id, at))

    async def recover(self, at: datetime, longest_wait: timedelta = LONGEST_WAIT) -> int:
        longest_wait = self._longest(longest_wait)
        return await self._writer.run(lambda connection: delivery.recover(connection, at, longest_wait))

    async def recover_far(self, at: datetime, longest_wait: timedelta = LONGEST_WAIT) -> int:
        longest_wait = self._longest(longest_wait)
        return await self._writer.run(lambda connection: delivery.recover_far(connection, at, longest_wait))

    def _longest(self, wait: timedelta) -> timedelta:
        return max(wait, timedelta(seconds=self._linger_seconds))

    async def calls_this_month(self, at: datetime) -> int:
        return await self._reader.run(lambda connection: counting.calls_this_month(connection, at).total)

    async def keep_budget(self, monthly_calls: int, allowance: Allowance) -> None:
        await self._writer.run(lambda connection: delivery.keep_budget(connection, monthly_calls, allowance))

    async def last_rate_limited(self) -> datetime | None:
        last = await self._reader.run(delivery.last_rate_limited)
        return None if last is None else parse_iso(last)

    # Harvest

    async def claim_batch(self, at: datetime) -> BatchStep | None:
        return await self._writer.run(lambda connection: harvest.claim_batch(connection, at, self._rules))

    async def next_batch_due(self) -> datetime | None:
        return _due(await self._reader.run(lambda connection: harvest.next_batch_due(connection, self._rules)))

    async def taken_apify_runs(self, batch_id: int, since: datetime) -> frozenset[str]:
        return await self._reader.run(lambda connection: harvest.taken_apify_runs(connection, batch_id, since))

    async def apply_event(self, batch_id: int, event: BatchEvent, at: datetime) -> Batch:
        when = self._when(at)
        return await self._writer.run(
            lambda connection: harvest.apply_event(
                connection, batch_id, event, now=at, when=when, rules=self._rules, known=self._run_fields
            )
        )

    async def recover_batches(self, at: datetime) -> int:
        return await self._writer.run(lambda connection: harvest.recover_batches(connection, at, self._rules))

    async def last_answered(self) -> datetime | None:
        last = await self._reader.run(delivery.last_answered)
        return None if last is None else parse_iso(last)

    # Missing

    async def due_looks(self, at: datetime, limit: int) -> Sequence[str]:
        return await self._reader.run(lambda connection: missing.due_looks(connection, at, limit))

    async def next_look_due(self) -> datetime | None:
        return _due(await self._reader.run(missing.next_look_due))

    async def recover_looks(self, at: datetime) -> int:
        return await self._writer.run(lambda connection: missing.recover_looks(connection, at))

    async def settle_looks(self, found: Mapping[str, Sequence[Adoption]], at: datetime) -> Sequence[str]:
        return await self._writer.run(lambda connection: self._settle_looks(connection, found, at))

    def _settle_looks(
        self, connection: sqlite3.Connection, found: Mapping[str, Sequence[Adoption]], at: datetime
    ) -> Sequence[str]:
        when = self._when(at)
        adopted = [
            run_id
            for run_id, records in found.items()
            if missing.settle_look(connection, run_id, records, now=at, when=when)
        ]
        for run_id in adopted:
            webhooks.release_held(
                connection, None, run_id, now=at, when=when, rules=self._rules, known=self._run_fields
            )
        return adopted

    async def due_record_looks(self, at: datetime, limit: int) -> Sequence[LostRecord]:
        return await self._reader.run(lambda connection: missing.due_record_looks(connection, at, limit))

    async def settle_record_looks(self, found: Mapping[str, Sequence[str]], at: datetime) -> Mapping[str, str]:
        def settle(connection: sqlite3.Connection) -> Mapping[str, str]:
            linked = {one: missing.settle_record_look(connection, one, found[one], at) for one in found}
            return {run_id: record_id for run_id, record_id in linked.items() if record_id is not None}

        return await self._writer.run(settle)

    # Consistency

    async def begin_check(self) -> None:
        await self._writer.run(consistency.begin)

    async def delivered(self, record_ids: Sequence[str]) -> Mapping[str, Delivered]:
        return await self._reader.run(lambda connection: consistency.delivered(connection, record_ids))

    async def note_records(self, records: Sequence[SeenRecord], asked: Sequence[Doubt] = ()) -> None:
        await self._writer.run(lambda connection: consistency.note(connection, records, asked))

    async def gather_doubts(self, scope: CheckScope) -> None:
        await self._writer.run(lambda connection: consistency.gather_doubts(connection, scope))

    async def doubts(self, limit: int) -> Sequence[Doubt]:
        return await self._reader.run(lambda connection: consistency.doubts(connection, limit))

    async def finish_check(self, scope: CheckScope, *, repair: bool, at: datetime) -> CheckOutcome:
        return await self._writer.run(lambda connection: consistency.finish(connection, scope, repair=repair, at=at))

    async def keep_summary(self, summary: CheckSummary) -> None:
        await self._writer.run(lambda connection: consistency.keep_summary(connection, summary))

    async def last_check_at(self) -> datetime | None:
        at = await self._reader.run(consistency.last_check_at)
        return None if at is None else parse_iso(at)

    # Retention

    async def prune_messages(self, before: datetime, cursor: PruneCursor) -> Bite:
        return await self._writer.run(lambda connection: prune.prune_messages(connection, before, cursor))

    async def prune_calls(self, before: datetime) -> int:
        return await self._writer.run(lambda connection: prune.prune_calls(connection, before))

    async def prune_webhook_bodies(self, before: datetime) -> int:
        return await self._writer.run(lambda connection: prune.prune_webhook_bodies(connection, before))

    async def prune_idempotency_keys(self, before: datetime) -> int:
        return await self._writer.run(lambda connection: prune.prune_idempotency_keys(connection, before))

    async def free_bytes(self) -> int:
        return await self._reader.run(prune.free_bytes)

    # Replay

    async def retry(self, message_id: int, at: datetime, *, who: str | None = None) -> MessageView | None:
        def revive(connection: sqlite3.Connection) -> MessageView | None:
            replay.retry(connection, message_id, at, who)
            return reading.message(connection, message_id)  # before the sync loop can take it

        return await self._writer.run(revive)

    async def retry_all(
        self, *, kind: str | None, run_id: str | None, since: datetime | None, at: datetime, who: str | None = None
    ) -> int:
        return await self._writer.run(
            lambda connection: replay.retry_all(connection, kind=kind, run_id=run_id, since=since, at=at, who=who)
        )

    async def resolve_error(
        self, error_id: int, *, note: str | None, discard: bool, at: datetime, who: str | None = None
    ) -> None:
        await self._writer.run(
            lambda connection: replay.resolve_error(connection, error_id, note=note, discard=discard, at=at, who=who)
        )

    async def decide(self, action: Action, at: datetime, *, who: str | None, note: str | None) -> None:
        await self._writer.run(lambda connection: replay.decide(connection, action, at, who, note=note))

    async def check(self) -> None:
        await self._writer.run(write_something)

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()  # last, for only then SQLite folds the WAL into the file: a copy of it has all


def _due(text: str | None) -> datetime | None:
    """A due time. One that no calendar has is a hand's, and as far ahead as can be, where it is looked for."""
    try:
        return None if text is None else parse_iso(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)


def write_something(connection: sqlite3.Connection) -> None:
    """Dirty a page, so that the commit needs room on the disk, and leave nothing behind."""
    connection.execute(INSERT_PROBE)
    connection.execute(DELETE_PROBE)
