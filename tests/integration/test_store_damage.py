"""Stores that are broken: refused before anything is touched, with what to do, rather than opened with a part gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import subprocess
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from app.errors import StoreError, StoreUnavailable
from app.store.sqlite import connection as connection_module
from app.store.sqlite.connection import connect_reading, connect_writing
from app.store.sqlite.examine import examine
from app.store.sqlite.files import refuse_losses
from app.store.sqlite.opening import open_reading
from tests.support.process import command, free_port
from tests.support.stores import JOB, Desk, adding, open_desk, setting

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


def rewritten_for_big_endian(file: Path) -> None:
    """The same WAL as a machine of the other byte order writes it, its sums reckoned word for word."""
    content = bytearray(file.read_bytes())
    frame_size = 24 + int.from_bytes(content[8:12], "big")
    content[:4] = (0x377F0683).to_bytes(4, "big")

    def sums_over(words: bytearray, sums: tuple[int, int]) -> tuple[int, int]:
        first, second = sums
        for one, other in struct.iter_unpack(">2I", words):
            first = (first + one + second) & 0xFFFFFFFF
            second = (second + other + first) & 0xFFFFFFFF
        return first, second

    sums = sums_over(content[:24], (0, 0))
    struct.pack_into(">2I", content, 24, *sums)
    for start in range(32, len(content) - frame_size + 1, frame_size):
        sums = sums_over(content[start : start + 8] + content[start + 24 : start + frame_size], sums)
        struct.pack_into(">2I", content, start + 16, *sums)
    file.write_bytes(content)


async def test_a_wal_of_the_other_byte_order_is_read_as_well(killed: Path) -> None:
    rewritten_for_big_endian(wal(killed))
    refuse_losses(killed)
    with contextlib.closing(sqlite3.connect(killed)) as connection:  # SQLite itself finds all of it
        assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (3 + UPDATES,)


async def test_a_tear_in_what_was_copied_back_loses_what_comes_after_it(tmp_path: Path) -> None:
    def count(path: Path) -> int:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            rows: int = connection.execute("SELECT count(*) FROM numbers").fetchone()[0]
            return rows

    path = tmp_path / "runs.db"
    with contextlib.closing(connect_writing(path)) as writer, contextlib.closing(connect_reading(path)) as reader:
        writer.execute("CREATE TABLE numbers (number)")
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        writer.execute("INSERT INTO numbers VALUES (1)")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM numbers").fetchall()
        writer.execute("INSERT INTO numbers VALUES (2)")
        copied_back = writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert 0 < copied_back[2] < copied_back[1]
        killed, torn = copied(path, tmp_path / "killed"), copied(path, tmp_path / "torn")
    refuse_losses(killed)
    assert count(killed) == 2
    with wal(torn).open("r+b") as file:
        file.seek(100)  # within the first frame
        file.write(b"\xa5")
    with pytest.raises(StoreError, match="damaged or cut off"):
        refuse_losses(torn)
    assert count(torn) == 0  # what SQLite itself would have found


async def test_a_large_wal_is_read_a_part_at_a_time_and_to_its_last_page(tmp_path: Path) -> None:
    with contextlib.closing(connect_writing(tmp_path / "runs.db")) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE large (content)")
        for _ in range(16):
            connection.execute("INSERT INTO large VALUES (randomblob(1000000))")
        large = copied(tmp_path / "runs.db", tmp_path / "killed")
    assert wal(large).stat().st_size > 16_000_000
    tracemalloc.start()
    try:
        refuse_losses(large)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4_000_000
    with wal(large).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(StoreError, match="1 of the pages"):
        refuse_losses(large)


async def test_a_wal_that_grew_beside_a_long_reader_is_cut_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "WAL_LIMIT_BYTES", 200_000)
    async with open_desk(tmp_path / "runs.db") as desk:
        await desk.kick_off("Guy")
        with contextlib.closing(sqlite3.connect(desk.path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM runs").fetchone()
            for _ in range(40):
                await desk.update(setting(RUN, note="x" * 90_000))
            assert wal(desk.path).stat().st_size > 4_000_000
        for _ in range(2):  # one that copies it back, and one that begins it anew
            await desk.update(adding(RUN, posts_harvested=1))
        assert wal(desk.path).stat().st_size <= 200_000


async def test_a_stop_leaves_all_in_one_file(stopped: Path) -> None:
    assert not wal(stopped).exists()


# A folder that takes nothing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """A folder or a file. Permissions stop nobody who is root, a read-only mount does."""
    if os.geteuid():
        mode = path.stat().st_mode
        path.chmod(mode & ~0o222)
        yield
        path.chmod(mode)
        return
    try:
        subprocess.run(["mount", "--bind", path, path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


async def test_a_folder_that_takes_nothing_is_told_at_the_start(stopped: Path) -> None:
    before = contents(stopped)
    with read_only(stopped.parent):
        with pytest.raises(StoreError, match="its folder has to be writable"):
            async with open_desk(stopped):
                pass
        assert contents(stopped) == before


async def test_a_database_that_takes_nothing_is_told_at_the_start(stopped: Path) -> None:
    """Its folder takes the lock and the WAL: only a write finds it out."""
    before = stopped.read_bytes()
    with read_only(stopped):
        with pytest.raises(StoreError, match="check its folder's permissions"):
            async with open_desk(stopped):
                pass
        assert stopped.read_bytes() == before


async def test_a_journal_of_the_sandbox_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    with read_only(tmp_path):
        ended = await command(tmp_path, "serve", "--sandbox", port=free_port())
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "cannot be opened (" in ended.err
    assert "its folder has to be writable" in ended.err
    journal = tmp_path / "runs.db.sandbox-airtable.jsonl"
    journal.write_text("{}\nDear diary\n{}\n")
    ended = await command(tmp_path, "serve", "--sandbox", port=free_port())
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert f"line 2 of {journal}" in ended.err


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
