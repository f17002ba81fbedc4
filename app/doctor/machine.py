"""The store and the machine: the database file, the process that writes it, what waits in it, the disk, SQLite itself.

Writes nothing, and asks nobody but the service on this machine.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import aiohttp
from pydantic import BaseModel, ValidationError

from app.clock import Clock, SystemClock
from app.doctor.findings import Finding, note, ok, problem
from app.errors import StoreError
from app.store.sqlite.connection import WAL_LIMIT_BYTES
from app.store.sqlite.examine import examine, has_wal_reset_bug, is_written, sqlite_version
from app.store.sqlite.opening import open_reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from app.config import Settings
    from app.store.views import Counts

LEAST_FREE_BYTES: Final = 500 * 10**6
#: A message that waits longer than this waits for something that is broken.
MOST_PENDING_SECONDS: Final = 900.0
_LONGEST_CALL_SECONDS: Final = 10.0


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


@dataclass(frozen=True, slots=True)
class Instruments:
    """What it measures with; tests bring their own."""

    clock: Clock = field(default_factory=SystemClock)
    free_bytes: Callable[[Path], int] = _free_bytes
    has_wal_reset_bug: Callable[[], bool] = has_wal_reset_bug


def of_sqlite(instruments: Instruments) -> Finding:
    name, version = "SQLite", sqlite_version()
    if instruments.has_wal_reset_bug():
        return note(
            name,
            f"{version} can corrupt a database that two connections write at once (the WAL-reset bug, mended in "
            "3.51.3, 3.50.7 and 3.44.6). This service has one writing connection, which avoids it: let no other "
            "program write",
        )
    return ok(name, f"{version} is free of the WAL-reset bug")


def of_file(path: Path) -> Finding:
    name = "database"
    if not path.exists():
        return note(name, f"there is none at {path} yet: the first start makes it")
    seen = examine(path)
    if seen.damage is not None:
        return problem(
            name, f"{path} is damaged ({seen.damage}): stop the service, keep a copy of the file, and restore a backup"
        )
    if seen.refusal is not None:
        return problem(name, seen.refusal)
    if seen.missing:
        return note(
            name, f"{path} is sound, and older: the next start (or 'migrate') applies {', '.join(seen.missing)}"
        )
    if seen.wal_bytes > WAL_LIMIT_BYTES:
        return note(
            name,
            f"{path} is sound, but its WAL has grown to {seen.wal_bytes / 10**6:.0f} MB: something reads the store for "
            "long (a backup, or a shell in an open transaction) and keeps it from being copied back",
        )
    return ok(name, f"{path} is sound, schema version {seen.version}")


_SERVICE: Final = "service"


def of_lock(path: Path) -> Finding:
    try:
        running = is_written(path)
    except StoreError as error:
        return problem(_SERVICE, str(error))
    return ok(_SERVICE, "one process writes the store") if running else note(_SERVICE, "none runs on this store")


class _Readiness(BaseModel):
    status: str
    reasons: list[str]


async def of_service(settings: Settings) -> Finding:
    """What the process that writes the store says of itself."""
    url = f"{settings.server.local_url}/readyz"
    timeout = aiohttp.ClientTimeout(total=_LONGEST_CALL_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as answer:
            said = _Readiness.model_validate_json(await answer.read())
    except (aiohttp.ClientError, TimeoutError, ValidationError):
        return problem(
            _SERVICE,
            f"a process writes the store, and does not answer at {url}: is [server] port its port, or does it hang?",
        )
    if said.status == "ready":
        return ok(_SERVICE, "one process writes the store, and is ready")
    return problem(_SERVICE, f"it runs and is {said.status}: {'; '.join(said.reasons)}")


def of_disk(path: Path, instruments: Instruments) -> Finding:
    name = "free disk"
    folder = next(one for one in path.absolute().parents if one.exists())
    free = instruments.free_bytes(folder)
    shown = f"{free / 10**9:.1f} GB at {folder}"
    if free < LEAST_FREE_BYTES:
        return problem(name, f"only {shown}: make room, because nothing can be accepted once it is full")
    return ok(name, shown)


async def of_store(path: Path, clock: Clock) -> list[Finding]:
    """What waits and what is open."""
    async with open_reading(path) as store:
        counts = await store.counts(clock.now())
    return [_of_pending(counts), _of_dead(counts), _of_errors(counts)]


def _of_pending(counts: Counts) -> Finding:
    name = "waiting messages"
    age = counts.oldest_pending_seconds
    if age is None:
        return ok(name, "none")
    shown = f"{counts.pending}, the oldest for {timedelta(seconds=round(age))}"
    if age > MOST_PENDING_SECONDS:
        return problem(name, f"{shown}: 'outbox list --state pending' says what each waits for")
    return ok(name, shown)


def _of_dead(counts: Counts) -> Finding:
    name = "dead messages"
    if counts.dead:
        return problem(name, f"{counts.dead}: 'outbox list --state dead' says why; mend that, then 'outbox retry'")
    return ok(name, "none")


def _of_errors(counts: Counts) -> Finding:
    name = "open errors"
    if counts.open_errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.open_errors.items()))
        return problem(name, f"{kinds}: 'errors list --state open' says what to do")
    return ok(name, "none")
