"""A PostgreSQL server of Debian's, for as long as a block runs: made anew, on the same disk, with its own defaults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_READY_SECONDS: Final = 30.0
#: Debian's package makes this user; the server refuses to run as root.
_USER: Final = "postgres"


class NoPostgres(Exception):
    """It is not installed, or does not start; the text says which."""


def _program(name: str) -> str:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(installed[-1]) if installed else shutil.which(name)
    if found is None:
        raise NoPostgres("PostgreSQL is not installed (Debian: apt-get install --no-install-recommends postgresql)")
    return found


@contextlib.asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[str]:
    """Its connection string.

    Raises:
        NoPostgres: there is none here.
    """
    initdb, server = _program("initdb"), _program("postgres")
    folder.mkdir()
    user = _USER if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
        for above in folder.parents[:2]:  # ours alone until now
            above.chmod(0o711)
    data, port = folder / "data", free_port()
    log = folder.with_suffix(".log").open("wb")
    made = await asyncio.create_subprocess_exec(
        initdb, "-D", str(data), "-A", "trust", "-U", "bench", user=user, stdout=log, stderr=log, cwd=folder
    )
    if await made.wait() != 0:
        raise NoPostgres(f"initdb failed: {folder.with_suffix('.log').read_text('utf-8')[-500:]}")
    process = await asyncio.create_subprocess_exec(
        server, "-D", str(data), "-p", str(port), "-k", "", "-h", "127.0.0.1",
        user=user, stdout=log, stderr=log, cwd=folder,
    )  # fmt: skip
    log.close()
    try:
        await _listening(process, port)
        yield f"host=127.0.0.1 port={port} user=bench dbname=postgres"
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await process.wait()


async def _listening(process: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(_READY_SECONDS):
        while process.returncode is None:
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.1)
    raise NoPostgres("the server ended at once")
