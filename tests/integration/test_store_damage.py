"""Stores that are broken: refused before anything is touched, with what to do, rather than opened with a part gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from app.errors import StoreError, StoreUnavailable
from app.store.sqlite.examine import examine
from app.store.sqlite.opening import open_reading
from tests.support.stores import JOB, Desk, adding, open_desk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RUN = f"{JOB}-Guy"
UPDATES = 30


async def fill(desk: Desk) -> None:
    for client in ("Guy", "Ann", "Bob"):
        await desk.kick_off(client)
    for _ in range(UPDATES):
        await desk.update(adding(RUN, posts_harvested=1))


def copied(path: Path, to: Path) -> Path:
    """The files as a kill would leave them now."""
    to.mkdir()
    for file in path.parent.glob("runs.db*"):
        if file.suffix != ".lock":
            shutil.copy(file, to)
    return to / path.name


@pytest.fixture
async def stopped(tmp_path: Path) -> Path:
    async with open_desk(tmp_path / "runs.db") as desk:
        await fill(desk)
    return tmp_path / "runs.db"


@pytest.fixture
async def killed(tmp_path: Path) -> Path:
    async with open_desk(tmp_path / "runs.db") as desk:
        await fill(desk)
        return copied(desk.path, tmp_path / "killed")


def contents(path: Path) -> dict[str, bytes]:
    """The database and its WAL, by name."""
    return {file.name: file.read_bytes() for file in path.parent.glob("runs.db*") if file.suffix in {".db", ".db-wal"}}


def wal(path: Path) -> Path:
    return path.with_name("runs.db-wal")


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8 * 4096 : 20 * 4096] = b"\xa5" * (12 * 4096)
    path.write_bytes(content)


def last_page_overwritten(path: Path) -> None:
    """Nothing that is read at a start stands there."""
    content = bytearray(path.read_bytes())
    content[-4096:] = b"\xa5" * 4096
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def no_database(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 10_000)


@pytest.mark.parametrize("harm", [overwritten, last_page_overwritten, cut_in_half, no_database])
async def test_a_broken_database_is_refused_and_left_as_it_is(stopped: Path, harm: Callable[[Path], None]) -> None:
    harm(stopped)
    before = contents(stopped)
    with pytest.raises(StoreError, match=r"runs\.db (is damaged|cannot be used as a database).*restore a backup"):
        async with open_desk(stopped):
            pass
    assert contents(stopped) == before
    assert not stopped.with_name("runs.db-shm").exists()
    assert examine(stopped).damage


def wal_overwritten(path: Path) -> None:
    content = bytearray(wal(path).read_bytes())
    content[len(content) // 2] ^= 1
    wal(path).write_bytes(content)


def wal_cut(path: Path) -> None:
    cut_in_half(wal(path))


def wal_deleted(path: Path) -> None:
    wal(path).unlink()


def database_deleted(path: Path) -> None:
    path.unlink()


def database_emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [wal_overwritten, wal_cut, wal_deleted, database_deleted, database_emptied])
async def test_files_that_lack_what_was_committed_are_refused_and_left_as_they_are(
    killed: Path, harm: Callable[[Path], None]
) -> None:
    """SQLite itself would open each of them, with the last commits or all of them gone."""
    harm(killed)
    before = contents(killed)
    for _ in range(2):  # what tells of the loss outlives the refusal
        with pytest.raises(StoreError, match=r"runs\.db.*(move|restore)"):
            async with open_desk(killed):
                pass
        if killed.exists():
            with pytest.raises(StoreError, match="move"):
                async with open_reading(killed):
                    pass
            assert "move" in (examine(killed).refusal or "")
    assert contents(killed) == before


async def test_what_the_refusal_advises_leads_on(killed: Path) -> None:
    wal_overwritten(killed)
    killed.with_name("runs.db-shm").rename(killed.with_name("kept-shm"))
    async with open_desk(killed) as desk:
        assert desk.rows("PRAGMA integrity_check") == [("ok",)]


async def test_what_a_kill_leaves_is_no_damage(killed: Path) -> None:
    async with open_desk(killed) as desk:
        assert desk.cell("SELECT count(*) FROM outbox") == 3 + UPDATES


async def test_a_stop_leaves_all_in_one_file(stopped: Path) -> None:
    assert not wal(stopped).exists()


# A folder that takes nothing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Permissions stop nobody who is root, a read-only mount does."""
    if os.geteuid():
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    try:
        subprocess.run(["mount", "--bind", folder, folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_folder_that_takes_nothing_is_told_at_the_start(stopped: Path) -> None:
    before = contents(stopped)
    with read_only(stopped.parent):
        with pytest.raises(StoreError, match="its folder has to be writable"):
            async with open_desk(stopped):
                pass
        assert contents(stopped) == before


# Under a running service ----------------------------------------------------------------------------------------


def moved(path: Path) -> Path:
    kept = path.with_name("moved.db")
    path.rename(kept)
    return kept


def replaced(path: Path) -> Path:
    kept = moved(path)
    shutil.copy(kept, path)
    return kept


@pytest.mark.parametrize("leave", [moved, replaced])
@pytest.mark.parametrize("name", ["runs.db", "runs.db-wal"])
async def test_nothing_is_answered_for_a_file_that_is_not_there_any_more(
    tmp_path: Path, leave: Callable[[Path], Path], name: str
) -> None:
    async with open_desk(tmp_path / "runs.db") as desk:
        await fill(desk)
        file = desk.path.with_name(name)
        kept = leave(file)
        with pytest.raises(StoreUnavailable, match="moved, deleted or replaced"):
            await desk.update(adding(RUN, posts_harvested=1))
        with pytest.raises(StoreUnavailable, match="Put it back"):
            await desk.store.check()
        kept.rename(file)  # put back: it goes on without a restart
        await desk.store.check()
        await desk.update(adding(RUN, posts_harvested=1))
        assert desk.cell("SELECT count(*) FROM outbox") == 3 + UPDATES + 1


async def test_a_store_deleted_during_a_commit_is_not_answered_for(tmp_path: Path) -> None:
    async with open_desk(tmp_path / "runs.db") as desk:
        await fill(desk)
        writer = desk.store._writer
        with pytest.raises(StoreUnavailable, match="moved, deleted or replaced"):
            await writer.run(lambda _: desk.path.unlink())
