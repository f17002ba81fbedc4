"""The files of a store: whether they hold all that they held, and whether they are still the ones that were opened.

Reads bytes and never opens a database: what SQLite does when it opens one would wipe out the traces looked for here.
The layouts are those of https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, Final, Literal

from app.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

    Sums = tuple[int, int]

_WAL_HEADER: Final = struct.Struct(">8I")
_FRAME_HEADER: Final = struct.Struct(">6I")
_BIG_ENDIAN_SUMS: Final = 0x377F0683
#: The index of the WAL: twice the same header, which ends with sums of itself, then how far the WAL was copied back.
_INDEX_HEADER: Final = struct.Struct("=IIIBBHII8s8s8s")
_INDEX_SIZE: Final = 2 * _INDEX_HEADER.size + 4
_WORD: Final = 0xFFFFFFFF
#: Of a WAL so much is in memory at a time, or else one frame.
_READ_BYTES: Final = 1024 * 1024


def wal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def bytes_of(path: Path) -> dict[str, int]:
    """The sizes of the database and of its WAL."""
    return {"database": _size_of(path), "wal": _size_of(wal_of(path))}


def _size_of(file: Path) -> int:
    """0 where it is not: a clean stop deletes the WAL, and a person may move either away at any time."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-shm")


def refuse_losses(path: Path) -> None:
    """Refuse a store that lacks what its own files say was committed.

    SQLite takes a WAL to end where it is torn, and would open the store as if the rest had never been; and it throws
    the WAL of an empty file away. The index of the WAL counts frames only once they are synced, so that neither
    `kill -9` nor a power cut leaves it ahead of the WAL: what it counts and the WAL lacks was there, and was answered.

    Raises:
        StoreError: commits are missing; the text says what to do. Nothing was touched.
    """
    path = path.resolve()
    wal = wal_of(path)
    if _size_of(wal) > 0 and _size_of(path) == 0:
        raise StoreError(
            f"{path} is empty or not there, but {wal.name} beside it is: SQLite would throw away what that holds. Put "
            f"the database file back, or move {wal.name} away to begin a new store"
        )
    lost = _lost_frames(path)
    if lost:
        raise StoreError(
            f"{wal} is damaged or cut off: {lost} of the pages that were committed to it are missing. Restore it, or a "
            f"backup; to go on without what is lost, move {_index_of(path).name} away and start again"
        )


def _lost_frames(path: Path) -> int:
    """Frames that the index of the WAL has as committed and not yet copied back, and that the WAL does not have."""
    while True:
        index = _read_index(path)
        if index is None:
            return 0
        committed, copied, salts = index
        if committed <= copied:
            return 0
        whole: int | None = 0
        with contextlib.suppress(FileNotFoundError), wal_of(path).open("rb") as wal:
            whole = _whole_frames(wal, salts, committed)
        lost = 0 if whole is None else committed - max(whole, copied)
        if lost <= 0 or _read_index(path) == index:  # otherwise the service runs, and has moved on meanwhile
            return max(0, lost)


def _read_index(path: Path) -> tuple[int, int, bytes] | None:
    """Frames committed, frames copied back into the database, and the salts of their WAL; `None`: it is not sound."""
    try:
        with _index_of(path).open("rb") as file:
            content = file.read(_INDEX_SIZE)
    except FileNotFoundError:
        return None
    size = _INDEX_HEADER.size
    if len(content) < _INDEX_SIZE or content[:size] != content[size : 2 * size]:
        return None
    *_, committed, _pages, _frame_sums, salts, sums = _INDEX_HEADER.unpack_from(content)
    if struct.unpack("=2I", sums) != _sums(content[: size - 8], "=", (0, 0)):
        return None
    (copied,) = struct.unpack_from("=I", content, 2 * size)
    return committed, copied, salts


def _whole_frames(wal: BinaryIO, salts: bytes, enough: int) -> int | None:
    """Whole frames at the beginning of the WAL, looking at no more than `enough`; `None`: it is another WAL.

    None may be left out, not even those that were copied back: the first that is torn is where SQLite takes the WAL to
    end, whatever stands behind it.
    """
    head = wal.read(_WAL_HEADER.size)
    if len(head) < _WAL_HEADER.size:
        return 0
    magic, _version, page_size, _number, _salt, _salt_too, *header_sums = _WAL_HEADER.unpack(head)
    if head[16:24] != salts:
        return None
    order: Literal["little", "big"] = "big" if magic == _BIG_ENDIAN_SUMS else "little"
    sums = _sums(head[:24], ">" if order == "big" else "<", (0, 0))
    if sums != tuple(header_sums):
        return 0
    frame_size = _FRAME_HEADER.size + page_size
    # The sums are linear: what a frame adds is its own, and what came before it is carried over each in the same way.
    nothing = bytes(8 + page_size)
    (a, b), (c, d) = _sums(nothing, "<", (1, 0)), _sums(nothing, "<", (0, 1))
    whole = 0
    while whole < enough:
        most = min(max(1, _READ_BYTES // frame_size), enough - whole)
        frames = wal.read(most * frame_size)
        for number, (first, second) in enumerate(_sums_of_each(frames, frame_size, order)):
            sums = (a * sums[0] + c * sums[1] + first) & _WORD, (b * sums[0] + d * sums[1] + second) & _WORD
            start = number * frame_size
            if frames[start + 8 : start + _FRAME_HEADER.size] != salts + struct.pack(">2I", *sums):
                return whole
            whole += 1
        if len(frames) < most * frame_size:
            break
    return whole


def _sums_of_each(frames: bytes, frame_size: int, order: Literal["little", "big"]) -> Sequence[Sums]:
    """The sums of each whole frame by itself.

    They are computed side by side, in one number that has 64 bits for each frame: that is ten times as fast as one by
    one, and a WAL may be large.
    """
    count = len(frames) // frame_size
    pairs = memoryview(frames)[: count * frame_size].cast("Q")
    halves = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * count, "little")
    first = second = 0
    step = frame_size // 8
    for place in (0, *range(_FRAME_HEADER.size // 8, step)):
        both = int.from_bytes(pairs[place::step].tobytes(), order)
        lower, upper = both & halves, both >> 32 & halves
        one, other = (lower, upper) if order == "little" else (upper, lower)
        first = first + second + one & halves
        second = second + first + other & halves
    laid_out = struct.Struct(f"{'<' if order == 'little' else '>'}{count}Q")
    firsts, seconds = (laid_out.unpack(sums.to_bytes(laid_out.size, order)) for sums in (first, second))
    return list(zip(firsts, seconds, strict=True))


def _sums(content: bytes, order: str, sums: Sums) -> Sums:
    """SQLite's running check sums over pairs of words."""
    first, second = sums
    for one, other in struct.iter_unpack(f"{order}2I", content):
        first = (first + one + second) & _WORD
        second = (second + other + first) & _WORD
    return first, second


class OpenedFiles:
    """The database and its WAL as they were opened: SQLite goes on writing to them when they are moved or deleted."""

    def __init__(self, path: Path) -> None:
        resolved = path.resolve()
        self._known = {file: _identity(file) for file in (resolved, wal_of(resolved))}

    def check(self) -> None:
        """Raises `StoreUnavailable` where one of them is not at its place any more."""
        for file, known in self._known.items():
            if _identity(file) != known:
                raise StoreUnavailable(
                    f"Nothing was stored: {file} was moved, deleted or replaced while the service runs. Put it back as "
                    "it was, or stop the service, restore a backup and start it again."
                )


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
