"""The machine, named by what matters here and by nothing else: its cores, and how fast its disk keeps a promise."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_SYNCS: Final = 200
_BLOCK: Final = b"x" * 4096
#: No disk is as fast as this: what answers so keeps nothing.
_MEMORY_MS: Final = 0.02


class NoDisk(Exception):
    """The folder is in memory: what is measured there says nothing of a disk."""


def fsync_ms(folder: Path) -> float:
    """The median time of an fdatasync after 4 KiB more of a file, in milliseconds."""
    path = folder / "fsync"
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        taken = []
        for _ in range(_SYNCS):
            os.write(file, _BLOCK)
            began = time.perf_counter()
            os.fdatasync(file)
            taken.append(time.perf_counter() - began)
    finally:
        os.close(file)
        path.unlink()
    return statistics.median(taken) * 1000


def busy() -> float:
    """How many tasks ran or wanted to, on average over the last minute: more than the cores, and all figures suffer."""
    return os.getloadavg()[0]


def describe(folder: Path) -> str:
    """Raises `NoDisk` where `folder` stands on none."""
    milliseconds = fsync_ms(folder)
    if milliseconds < _MEMORY_MS:
        raise NoDisk(f"{folder} seems to be in memory: give --folder on the disk that is to be measured")
    return f"{os.cpu_count()} cores; an fdatasync after 4 KiB takes {milliseconds:.2f} ms"
