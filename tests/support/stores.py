"""A real store in a temporary file, and short words for what tests of it say often."""

from __future__ import annotations

import contextlib
import functools
import random
import sqlite3
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from app.config import DEFAULT_FIELDS
from app.fields import Change
from app.model import Idempotency, Kickoff, Queued, Update
from app.policy.delivery import Claim, RetryRules, Written, settle
from app.policy.harvest import HarvestRules
from app.store.sqlite.opening import open_store, prepare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.fields import Number, Value
    from app.model import UpdateOutcome
    from app.policy.delivery import Answer
    from app.store.sqlite.store import SqliteStore

AT = datetime(2026, 5, 16, 9, 20, tzinfo=UTC)
JOB = "251007-070457"
RETRY = RetryRules(max_attempts=3, backoff_base_seconds=1.0, backoff_max_seconds=60.0)
HARVEST = HarvestRules(max_concurrent_runs=4, poll_interval_seconds=60.0, look_after_seconds=60.0, settle_seconds=12.0)


def later(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def kickoff(
    client_id: str = "Guy", job_id: str | None = JOB, *, key: Idempotency | None = None, **values: Value
) -> Kickoff:
    return Kickoff(client_id, job_id, Change(set=values), idempotency=key)


def setting(run_id: str, *, key: Idempotency | None = None, **values: Value) -> Update:
    return Update(run_id, Change(set=values), key)


def adding(run_id: str, *, key: Idempotency | None = None, **numbers: Number) -> Update:
    return Update(run_id, Change(add=numbers), key)


def written(claim: Claim) -> Written:
    """Airtable's yes to all of the claim: known records keep their ids."""
    return Written({run.run_id: run.record_id or f"rec-{run.run_id}" for run in claim.runs})


@dataclass
class Desk:
    """A store and its file."""

    store: SqliteStore
    path: Path

    async def kick_off(self, client_id: str = "Guy", at: datetime = AT, **values: Value) -> str:
        created = await self.store.accept_create(Kickoff(client_id, JOB, Change(set=values)), at)
        assert created.created
        return created.run_id

    async def update(self, update: Update, at: datetime = AT) -> int:
        outcome: UpdateOutcome = await self.store.accept_update(update, at)
        assert isinstance(outcome, Queued)
        return outcome.message_id

    async def claim(self, at: datetime = AT) -> Claim:
        claim = await self.store.claim(at)
        assert claim is not None
        return claim

    async def answer(self, claim: Claim, answer: Answer, at: datetime = AT, rules: RetryRules = RETRY) -> None:
        await self.store.settle(settle(claim, answer, at=at, rules=rules, random=random.Random(1)), at)  # noqa: S311

    async def deliver_all(self, at: datetime = AT) -> int:
        """Deliver what is due until nothing is; the number of calls."""
        calls = 0
        while (claim := await self.store.claim(at)) is not None:
            await self.answer(claim, written(claim), at)
            calls += 1
        return calls

    def rows(self, sql: str, *values: str | int) -> list[tuple[str | int | float | None, ...]]:
        """What another connection sees."""
        with contextlib.closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, values).fetchall()

    def cell(self, sql: str, *values: str | int) -> str | int | float | None:
        (row,) = self.rows(sql, *values)
        return row[0]

    def states(self, run_id: str) -> list[tuple[str | int | float | None, ...]]:
        return self.rows("SELECT kind, state, attempts FROM outbox WHERE run_id = ? ORDER BY id", run_id)


@functools.cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.db"
        prepare(path, AT)
        return path.read_bytes()


def put_empty_store(path: Path) -> None:
    """Put a store of this version where nothing of one is: making it takes longer than most tests of it."""
    if path.parent.is_dir() and not [*path.parent.glob(f"{path.name}*")]:
        path.write_bytes(_empty_store())


@contextlib.asynccontextmanager
async def open_desk(path: Path, at: datetime = AT, *, linger_seconds: float = 0.0) -> AsyncIterator[Desk]:
    put_empty_store(path)
    async with open_store(
        path, at=at, linger_seconds=linger_seconds, run_fields=tuple(DEFAULT_FIELDS), rules=HARVEST
    ) as store:
        yield Desk(store, path)
