"""What a caller has given up never reaches Airtable afterwards, and keeps neither a thread nor a connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from app.airtable import Airtable, AirtableAccess
from app.airtable_transport import GivenUp, Line
from app.policy.delivery import Unknown, Written
from tests.support.certificates import make_certificate, needs_openssl
from tests.support.dripping import dripping
from tests.support.harness import AIRTABLE_KEY
from tests.support.partitioned import NOT_PERMITTED, TIMEOUTS
from tests.support.spawning import spawned
from tests.support.table_threads import airtable_threads, all_end
from tests.support.writes import POSTS, write_posts

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from tests.support.harness import Harness

    #: As the standard library gives it, of IPv4.
    AddressInfo = list[tuple[int, int, int, str, tuple[str, int]]]


def airtable_at(url: str, house: Harness, timeout_seconds: float) -> Airtable:
    base_id = house.airtable.schema.base_id
    return Airtable(
        AirtableAccess(AIRTABLE_KEY, url, base_id, "Client Run Results", timeout_seconds), house.settings.registry()
    )


# What would be sent late ----------------------------------------------------------------------------------------


async def test_a_write_that_a_cut_network_kept_back_does_not_land_after_a_newer_one() -> None:
    """Neither when its caller gives up nor when its thread does."""
    async with spawned((), os.environ, module="tests.support.partitioned") as process:
        out, err = await process.communicate()
    assert out, err
    told = json.loads(out)
    if NOT_PERMITTED in told:
        pytest.skip(f"a process may have no network of its own here: {told[NOT_PERMITTED]}")
    each = len(TIMEOUTS)
    assert told["answers"] == [["Written"] * each, ["Unknown"] * each, ["Written"] * each]
    assert told["values"] == [2] * each


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """One that takes no connection and refuses none: its backlog is full."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            one = sockets.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.fixture(params=["a look-up that takes long", "a first address that is silent"])
def released(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The first connection to Airtable takes longer than its caller waits: for this, or for one of two addresses."""
    look_up: Callable[..., AddressInfo] = socket.getaddrinfo  # type: ignore[assignment]
    gate = threading.Event()
    first = iter([True])

    def getaddrinfo(*asked: object, **more: object) -> AddressInfo:
        found = look_up(*asked, **more)
        if not threading.current_thread().name.startswith("airtable-") or not next(first, False):
            return found
        if "look-up" not in request.param:
            return [(*found[0][:4], silent), *found]
        gate.wait(30)
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with silent_address() as silent:
        yield gate


async def test_a_write_whose_way_took_too_long_is_not_sent_after_a_newer_one(
    quick_house: Harness, released: threading.Event
) -> None:
    others = airtable_threads()
    record_id = quick_house.airtable.insert({"Run ID": "a-run"}).id
    airtable = airtable_at(quick_house.airtable_server.url, quick_house, 0.2)
    assert isinstance(await write_posts(airtable, record_id, 1), Unknown)
    assert isinstance(await write_posts(airtable, record_id, 2), Written)
    threads = airtable_threads() - others
    assert len(threads) == 2
    released.set()
    airtable.close()
    await all_end(threads)
    assert [record.fields[POSTS] for record in quick_house.airtable.records()] == [2]
    assert len(quick_house.airtable_server.log) == 1


# What would be waited for ---------------------------------------------------------------------------------------


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(HEAD + b"X: ", id="a head"),
        pytest.param(HEAD + b"Content-Length: 100000\r\n\r\n", id="a body"),
        pytest.param(HEAD + b"Connection: close\r\n\r\n", id="the last body of a connection"),
    ],
)
async def test_who_gives_up_an_answer_that_drips_hangs_up_on_it(quick_house: Harness, head: bytes) -> None:
    """It would keep a thread and a connection for as long as the other side liked."""
    await assert_hung_up(quick_house, head)


@needs_openssl
async def test_who_gives_up_an_answer_over_tls_hangs_up_on_it(
    quick_house: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, tls = make_certificate(quick_house.folder)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    await assert_hung_up(quick_house, HEAD, tls, timeout_seconds=0.5)  # the handshake takes its time


async def assert_hung_up(
    house: Harness, head: bytes, tls: ssl.SSLContext | None = None, *, timeout_seconds: float = 0.1
) -> None:
    others = airtable_threads()
    async with dripping(head, tls) as (url, hung_up):
        airtable = airtable_at(url, house, timeout_seconds)
        assert isinstance(await airtable.peek(), Unknown)
        threads = airtable_threads() - others
        assert threads
        await asyncio.wait_for(hung_up.wait(), 20)
        airtable.close()
        await all_end(threads)


# The line -------------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_leads_nowhere() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line = Line()
        line.cut()
        with line, pytest.raises(GivenUp):
            line.lead_over(ours)
        ours.send(b"nothing was done to it")


def test_what_waits_on_a_line_that_is_cut_ends() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Line() as line:
        line.lead_over(ours)
        cutting = threading.Timer(0.05, line.cut)
        cutting.start()
        assert ours.recv(1) == b""
        cutting.join()
        with pytest.raises(BrokenPipeError):
            ours.send(b"more")


def test_a_cut_that_comes_when_the_call_is_over_leaves_the_connection_to_the_next() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with Line() as line:
            line.lead_over(ours)
        line.cut()
        with Line() as following:
            following.lead_over(ours)
            ours.send(b"x")
        assert theirs.recv(1) == b"x"
