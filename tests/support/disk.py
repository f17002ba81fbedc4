"""A disk that loses power: records what SQLite writes and syncs, and gives what any power cut may have left of it.

SQLite's own file layer is wrapped with `ctypes` in a process of a test, below anything that the program could notice;
its table of methods is documented at https://www.sqlite.org/c3ref/io_methods.html. What is written after a file's last
sync may be there, be missing or be torn when the power comes back, in any mixture.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from ctypes import _CFunctionType as _Function

Kind = Literal["write", "sync", "truncate", "delete"]
_KINDS: Final[tuple[Kind, ...]] = ("write", "sync", "truncate", "delete")
#: kind, length of the file's name, offset or size, length of the data
_HEAD: Final = struct.Struct("<BHQI")


@dataclass(frozen=True)
class Act:
    """One thing done to a file. `place` is a write's offset, or the size after a truncation."""

    kind: Kind
    name: str
    place: int = 0
    data: bytes = b""


def read_acts(journal: bytes) -> Iterator[tuple[int, Act]]:
    """The acts of a journal, each with the journal's length up to its end."""
    at = 0
    while at + _HEAD.size <= len(journal):
        kind, name_length, place, length = _HEAD.unpack_from(journal, at)
        end = at + _HEAD.size + name_length + length
        if end > len(journal):
            return  # the process was killed in the middle of it
        name = journal[at + _HEAD.size : at + _HEAD.size + name_length].decode()
        yield end, Act(_KINDS[kind], name, place, journal[end - length : end])
        at = end


# What is left -------------------------------------------------------------------------------------------------------

_SECTOR: Final = 512
#: The index of the WAL is never synced and always written whole: how old the one that a cut leaves can be.
_INDEXES_KEPT: Final = 50


@dataclass
class Disk:
    """The files as their syncs left them, and for each what was done since then."""

    synced: dict[str, bytearray] = field(default_factory=dict)
    waiting: dict[str, list[Act]] = field(default_factory=dict)

    def do(self, act: Act) -> None:
        if act.kind == "sync":
            for done in self.waiting.pop(act.name, []):
                _apply(self.synced.setdefault(act.name, bytearray()), done)
        elif act.kind == "delete":
            self.synced.pop(act.name, None)
            self.waiting.pop(act.name, None)
        else:
            waiting = self.waiting.setdefault(act.name, [])
            waiting.append(act)
            if act.name.endswith("-shm"):
                del waiting[:-_INDEXES_KEPT]

    def after_power_cut(self, rng: random.Random) -> dict[str, bytes]:
        """The files as a power cut may leave them: of what was not synced all, nothing, the first or some, and torn."""
        left: dict[str, bytes] = {}
        for name in {*self.synced, *self.waiting}:
            content = bytearray(self.synced.get(name, b""))
            waiting = self.waiting.get(name, [])
            fate = rng.choice(("none", "all", "beginning", "some"))
            some = rng.random()
            until = rng.randrange(len(waiting) + 1)
            for number, act in enumerate(waiting):
                if (
                    fate == "all"
                    or (fate == "beginning" and number < until)
                    or (fate == "some" and rng.random() < some)
                ):
                    _apply(content, act)
                elif (fate == "beginning" and number == until) or (fate == "some" and rng.random() < 0.2):
                    _apply(content, _torn(act, rng))
            left[name] = bytes(content)
        return left


def _torn(act: Act, rng: random.Random) -> Act:
    """Some of its sectors, and one byte of them flipped."""
    if act.kind != "write" or not act.data:
        return act
    data = bytearray(act.data[: rng.randrange(len(act.data) // _SECTOR + 1) * _SECTOR])
    if data and rng.random() < 0.5:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return Act("write", act.name, act.place, bytes(data))


def _apply(content: bytearray, act: Act) -> None:
    if act.kind == "truncate":
        del content[act.place :]
        return
    if len(content) < act.place + len(act.data):
        content.extend(bytes(act.place + len(act.data) - len(content)))
    content[act.place : act.place + len(act.data)] = act.data


# Recording ----------------------------------------------------------------------------------------------------------

#: Of the index of the WAL, what says how far the WAL goes.
_INDEX_LENGTH: Final = 136
_POINTER: Final = ctypes.c_void_p
# A name stays a pointer: SQLite goes on reading what stands behind it.
_OPEN: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER)
_DELETE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int)
_WRITE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int, ctypes.c_int64)
_TRUNCATE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int64)
_SYNC: Final = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int)


class _FileLayer(ctypes.Structure):
    """The head of `sqlite3_vfs`, up to what is wrapped here."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("longest_path", ctypes.c_int),
        ("next", _POINTER),
        ("name", ctypes.c_char_p),
        ("own", _POINTER),
        ("open", _POINTER),
        ("delete", _POINTER),
    )


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, version 3."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("close", _POINTER),
        ("read", _POINTER),
        ("write", _POINTER),
        ("truncate", _POINTER),
        ("sync", _POINTER),
        ("others", _POINTER * 13),
    )


class Recorder:
    """Stands between SQLite and its files. To be kept for as long as the process lives."""

    def __init__(self, journal: int) -> None:
        self._journal = journal
        self._names: dict[int, str] = {}  # by the address of SQLite's own structure
        self._paths: dict[str, str] = {}
        self._tables: dict[int, _Methods] = {}
        self._kept: list[object] = []  # functions that C code calls
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_FileLayer)
        layer = library.sqlite3_vfs_find(None).contents
        self._open, self._delete = _OPEN(layer.open), _DELETE(layer.delete)
        layer.open, layer.delete = self._keep(_OPEN(self._on_open)), self._keep(_DELETE(self._on_delete))

    def _keep(self, function: _Function) -> int:
        self._kept.append(function)
        return ctypes.cast(function, _POINTER).value or 0

    def _note(self, kind: Kind, name: str, place: int = 0, data: bytes = b"") -> None:
        known = name.encode()
        os.write(self._journal, _HEAD.pack(_KINDS.index(kind), len(known), place, len(data)) + known + data)

    def _note_index(self, name: str) -> None:
        """SQLite shares the index of the WAL through memory, which the machine writes down whenever it likes."""
        if name.endswith("-wal"):
            index = Path(f"{self._paths[name.removesuffix('-wal')]}-shm")
            if index.exists():
                self._note("write", index.name, 0, index.read_bytes()[:_INDEX_LENGTH])

    def _on_open(self, layer: int, name: int | None, file: int, flags: int, out_flags: int) -> int:
        code = self._open(layer, name, file, flags, out_flags)
        if code == 0 and name is not None:
            path = os.fsdecode(ctypes.string_at(name))
            self._names[file] = PurePath(path).name
            self._paths[PurePath(path).name] = path
            methods = ctypes.cast(file, ctypes.POINTER(_POINTER))
            original = methods[0]
            if original not in self._tables:
                self._tables[original] = self._wrapped(original)
            methods[0] = ctypes.addressof(self._tables[original])
        return int(code)

    def _on_delete(self, layer: int, name: int, sync_folder: int) -> int:
        self._note("delete", PurePath(os.fsdecode(ctypes.string_at(name))).name)
        return int(self._delete(layer, name, sync_folder))

    def _wrapped(self, original: int) -> _Methods:
        table = _Methods.from_buffer_copy(_Methods.from_address(original))
        write, truncate, sync = _WRITE(table.write), _TRUNCATE(table.truncate), _SYNC(table.sync)

        def on_write(file: int, data: int, length: int, place: int) -> int:
            self._note_index(self._names[file])
            self._note("write", self._names[file], place, ctypes.string_at(data, length))
            return int(write(file, data, length, place))

        def on_truncate(file: int, size: int) -> int:
            self._note("truncate", self._names[file], size)
            return int(truncate(file, size))

        def on_sync(file: int, flags: int) -> int:
            code = sync(file, flags)
            if code == 0:
                self._note("sync", self._names[file])
            return int(code)

        table.write, table.truncate = self._keep(_WRITE(on_write)), self._keep(_TRUNCATE(on_truncate))
        table.sync = self._keep(_SYNC(on_sync))
        return table


def record_writes(journal: Path) -> Recorder:
    """Write down, from now on, all that SQLite does to files in this process."""
    return Recorder(os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
