"""Cuts the network while writes are on their way, in a process with a network of its own; tells how Airtable ends.

What the kernel does with a connection that its program has closed is the matter here, so nothing of it is imitated.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import socket
import struct
from pathlib import Path
from typing import Final

from app.airtable import Airtable, AirtableAccess
from app.clock import SystemClock
from app.config import Settings
from app.sandbox.wire import WireServer
from tests.support.harness import AIRTABLE_KEY, make_airtable
from tests.support.watching import until
from tests.support.writes import POSTS, write_posts

#: What is said where a process may have no network of its own.
NOT_PERMITTED: Final = "not permitted"
#: Limits of a call, in seconds: with one its caller gives up, with the other its thread finds that nothing comes.
TIMEOUTS: Final = (0.4, 1.0)

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def _enter_a_network_of_our_own() -> None:
    """Raises OSError where that is not permitted, or (as by AppArmor) only in name."""
    wanted = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWUSER | _CLONE_NEWNET
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(wanted):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _set_loopback(up=True)


def _set_loopback(*, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP if up else 0))


def _is_anything_unsent() -> bool:
    """Whether the kernel holds what the other side of some connection has not acknowledged (proc_net_tcp)."""
    lines = Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[4].split(":")[0] != "00000000" for line in lines)


async def _partition() -> dict[str, object]:
    clock = SystemClock()
    sandbox = make_airtable(clock)
    ids = [sandbox.insert({"Run ID": f"run-{number}"}).id for number, _ in enumerate(TIMEOUTS)]
    async with WireServer(sandbox, clock=clock.monotonic, sleep=clock.sleep) as server:
        airtables = [
            Airtable(
                AirtableAccess(AIRTABLE_KEY, server.url, sandbox.schema.base_id, "Client Run Results", seconds),
                Settings().registry(),
            )
            for seconds in TIMEOUTS
        ]

        async def write(posts: int) -> list[str]:
            writes = (write_posts(airtable, id_, posts) for airtable, id_ in zip(airtables, ids, strict=True))
            return [type(answer).__name__ for answer in await asyncio.gather(*writes)]

        answers = [await write(0)]  # over connections that the next ones use again
        _set_loopback(up=False)
        answers.append(await write(1))
        _set_loopback(up=True)
        answers.append(await write(2))
        await until(lambda: not _is_anything_unsent())
        for airtable in airtables:
            await airtable.peek()  # what has come before this has been read
            airtable.close()
    return {"answers": answers, "values": [record.fields.get(POSTS) for record in sandbox.records()]}


def main() -> None:
    try:
        _enter_a_network_of_our_own()
    except (OSError, AttributeError) as error:
        print(json.dumps({NOT_PERMITTED: str(error)}))  # noqa: T201
        return
    print(json.dumps(asyncio.run(_partition())))  # noqa: T201
