"""A server whose answer never ends: now and then a byte, of a head or a body that is far from whole."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator


_UNFINISHED_BODY: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"


@contextlib.asynccontextmanager
async def dripping(
    head: bytes = _UNFINISHED_BODY, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Its address, and what is set whenever somebody hangs up on it; `head` comes at once."""
    hung_up = asyncio.Event()

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        hung_up.set()

    async with await asyncio.start_server(drip, "127.0.0.1", 0, ssl=tls) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{'http' if tls is None else 'https'}://{host}:{port}", hung_up
