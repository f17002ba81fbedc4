"""No room for the store while it serves: refused with the reason, nothing by halves, and on again with room."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import signal
import subprocess
from typing import TYPE_CHECKING, Protocol

import aiohttp
import pytest

from app.clock import SystemClock
from app.errors import StoreError
from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.wire import WireServer
from app.store.sqlite.opening import open_store
from tests.support.forks import Fork, forking
from tests.support.harness import environment_for, make_airtable
from tests.support.load import Load, held, kept
from tests.support.stores import AT, HARVEST, JOB, open_desk
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.model import Json


class Room(Protocol):
    """What can be taken from the service, and given back."""

    def take(self, service: Fork) -> None: ...

    def give(self, service: Fork) -> None: ...


class SmallDisk:
    """A file system of its own, which something else fills up."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def take(self, service: Fork) -> None:
        assert service.pid
        self.fill()

    def fill(self) -> None:
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def give(self, service: Fork) -> None:
        assert service.pid
        self.give_back()

    def give_back(self) -> None:
        self._ballast.unlink()


class FileLimit:
    """The process may let no file grow beyond the WAL, its log neither: what a quota looks like, without privileges."""

    def take(self, service: Fork) -> None:
        size = (service.log.parent / "runs.db-wal").stat().st_size
        _, hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (size, hard))

    def give(self, service: Fork) -> None:
        _, hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["a full disk", "a limit"])
async def test_without_room_nothing_is_answered_for_and_with_room_it_goes_on(tmp_path: Path, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        room = stack.enter_context(small_disk(tmp_path)) if kind == "a full disk" else FileLimit()
        await fill_and_empty(tmp_path, room)


@pytest.mark.parametrize("there", [False, True])
async def test_a_start_without_room_says_so_and_keeps_what_is_there(tmp_path: Path, *, there: bool) -> None:
    path = tmp_path / "runs.db"
    with small_disk(tmp_path) as disk:
        if there:
            async with open_desk(path) as desk:
                await desk.kick_off()
        disk.fill()
        with pytest.raises(StoreError, match="its disk has room"):
            await opened(path)
        disk.give_back()
        assert await opened(path) == there


async def opened(path: Path) -> bool:
    """Whether the store, which can be opened, has our run."""
    async with open_store(path, at=AT, linger_seconds=0.0, run_fields=(), rules=HARVEST) as store:
        return await store.run(f"{JOB}-Guy") is not None


async def fill_and_empty(folder: Path, room: Room) -> None:
    airtable = make_airtable(SystemClock())
    airtable.limits = NO_LIMITS
    store = folder / "runs.db"
    async with WireServer(airtable) as wire, forking() as forks, aiohttp.ClientSession() as http:
        settings = environment_for(airtable, wire)
        service = await forks.serve(folder, settings)
        assert await service.listening()
        room.take(service)
        await readiness(http, service, accepting=False)  # though nobody has asked for anything
        room.give(service)
        await readiness(http, service, accepting=True)
        load = Load(service.url, random.Random(1))  # noqa: S311 - the same callers in every run
        calling = asyncio.create_task(load.run(4))
        await answered(load, 30)
        room.take(service)
        ready = await readiness(http, service, accepting=False)
        assert "Nothing was stored" in str(ready["reasons"])
        assert "full" in str(ready["reasons"]) or "I/O" in str(ready["reasons"])
        told = len(load.ledger.told)
        room.give(service)
        await readiness(http, service, accepting=True)
        await answered(load, 30)
        assert len(load.ledger.told) > told
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
        waiting = "SELECT count(*) FROM outbox WHERE delivered_at IS NULL"
        await until(lambda: rows(store, waiting) == [(0,)], timeout=60)
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
    assert load.refused > 0
    assert rows(store, "PRAGMA integrity_check") == [("ok",)]
    load.ledger.judge(kept(store), held(store))
    assert '"loop.died"' not in service.said()
    assert len(airtable.records()) == len(kept(store))


async def answered(load: Load, more: int) -> None:
    enough = len(load.ledger.told) + more
    await until(lambda: len(load.ledger.told) >= enough, timeout=60)


async def readiness(http: aiohttp.ClientSession, service: Fork, *, accepting: bool) -> dict[str, Json]:
    """Ask until it says so; it may take a few commits until there is no room left within the files."""
    async with asyncio.timeout(30):
        while True:
            async with http.get(f"{service.url}/readyz") as answer:
                ready: dict[str, Json] = await answer.json()
                if ready["accepting"] is accepting:
                    return ready
            await asyncio.sleep(0.01)
