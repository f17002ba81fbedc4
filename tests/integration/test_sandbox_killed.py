"""A process that embeds a sandbox with a journal is killed without warning, and nothing it answered is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp

from tests.support.airtable import TOKEN, Client

ROOT = Path(__file__).parents[2]
SERVE = """
import asyncio, sys
from pathlib import Path
from app.sandbox.wire import WireServer
from tests.support.airtable import Client

async def main():
    sandbox = Client(journal=Path(sys.argv[1])).sandbox
    async with WireServer(sandbox) as server:
        print(f"{server.url}/v0/{sandbox.schema.base_id}/{sandbox.schema.table_id}", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def write_until_killed(journal: Path, answers: int) -> list[str]:
    """Write from several sides at once, kill the process after so many answers, and tell which were answered."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, str(journal), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    answered: list[str] = []

    async def write(http: aiohttp.ClientSession, name: str) -> None:
        body = {"performUpsert": {"fieldsToMergeOn": ["Run ID"]}, "records": [{"fields": {"Run ID": name}}]}
        try:
            async with http.patch(url, json=body) as response:
                assert response.status == 200
                await response.read()
        except aiohttp.ClientError:
            return
        answered.append(name)
        if len(answered) == answers:
            process.send_signal(signal.SIGKILL)

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        await asyncio.gather(*(write(http, f"run{n}") for n in range(100)))
    assert await process.wait() == -signal.SIGKILL
    return answered


async def test_what_was_answered_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    answered = await write_until_killed(journal, answers=40)

    there = [str(record.fields["Run ID"]) for record in Client(journal=journal).sandbox.records()]

    assert set(answered) <= set(there)
    assert len(there) == len(set(there))
