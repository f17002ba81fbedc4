"""A start that was given up is not done later: what the kernel had not got out goes with its connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING

import pytest

from app.apify_client import Apify, ApifyAccess
from app.model import BatchState
from app.policy.harvest import Batch, StartLost
from app.sandbox.apify import TOKEN
from app.sandbox.apify_server import ApifyServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BATCH = Batch(1, "r", 1, BatchState.STARTING, "token", "actor", attempted_at="2026-05-16T09:00:00.000Z")
#: More than the small window of `full` takes, and less than the kernel does on our side. Packed, it is as long.
INPUT = f'"{Random(1).randbytes(10_000).hex()}"'  # noqa: S311 - nothing secret
_AT = datetime(2026, 5, 16, 9, 2, tzinfo=UTC)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextlib.contextmanager
def full() -> Iterator[tuple[str, socket.socket]]:
    """A listener that takes connections and, for now, little of what is sent: the rest waits in the sender's kernel."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_024)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", listener


@contextlib.asynccontextmanager
async def asking(api_url: str, timeout_seconds: float = 10.0) -> AsyncIterator[Apify]:
    apify = Apify(ApifyAccess(TOKEN, api_url, "", "", timeout_seconds))
    try:
        yield apify
    finally:
        await apify.close()


def arrives(listener: socket.socket) -> bytes:
    """All that comes when it reads after all, until the sender's kernel has no more, or breaks it off."""
    got = bytearray()
    with listener.accept()[0] as connection, contextlib.suppress(ConnectionResetError):
        connection.settimeout(10)
        while piece := connection.recv(1 << 16):
            got += piece
    return bytes(got)


def is_whole(request: bytes) -> bool:
    head, _, body = request.partition(b"\r\n\r\n")
    (length,) = (line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return len(body) == int(length)


@pytest.mark.parametrize("way", ["directly", "through a proxy"])
async def test_a_start_that_had_no_answer_in_time_never_arrives(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with full() as (url, listener):
        if way == "through a proxy":
            monkeypatch.setenv("http_proxy", url)
        async with asking(url if way == "directly" else "http://api.apify.test", 0.2) as apify:
            assert isinstance(await apify.start(BATCH, INPUT), StartLost)
            assert not is_whole(arrives(listener))


async def test_a_start_that_is_broken_off_never_arrives() -> None:
    """As the harvest loop does with one that takes too long."""
    with full() as (url, listener):
        async with asking(url) as apify:
            start = asyncio.create_task(apify.start(BATCH, INPUT))
            done, _ = await asyncio.wait({start}, timeout=0.2)  # long enough to have sent what can be sent
            assert not done
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            assert not is_whole(arrives(listener))


async def test_a_proxy_of_the_environment_is_asked_unless_the_environment_excepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ApifyServer() as proxy, ApifyServer() as server:
        elsewhere = server.url.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("http_proxy", proxy.url)
        async with asking(elsewhere) as apify:
            await apify.follow("by-proxy", _AT)
        monkeypatch.setenv("no_proxy", "localhost")
        async with asking(elsewhere) as apify:
            await apify.follow("directly", _AT)
    assert [one.path.rpartition("/")[2] for one in proxy.log] == ["by-proxy"]
    assert [one.path.rpartition("/")[2] for one in server.log] == ["directly"]
