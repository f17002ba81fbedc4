"""The threads that talk to Airtable, as one sees them from outside."""

from __future__ import annotations

import asyncio
import threading


def airtable_threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name.startswith("airtable-")}


async def all_end(threads: set[threading.Thread]) -> None:
    for one in threads:
        await asyncio.to_thread(one.join, 10)
        assert not one.is_alive()
