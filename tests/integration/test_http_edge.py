"""The outermost edge: what is no HTTP, connections without end, bodies without end, and pages of large rows."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import resource
import socket
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from app.store.sqlite.reading import MOST_OF_A_DETAIL, MOST_OF_A_PAGE
from app.web.edge import Edge, EdgeLimits
from tests.support.harness import Harness, harness
from tests.support.watching import raw_request, rows, send_raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.model import Json

GUY = b'{"client_id": "Guy"}'
JOB_GUY = b'{"client_id": "Guy", "job_id": "j"}'


@contextlib.asynccontextmanager
async def limited(folder: Path, limits: EdgeLimits, **server: Json) -> AsyncIterator[Harness]:
    async with harness(folder, server=server) as house:
        house.sources = replace(house.sources, limits=limits)
        async with house.running():
            yield house


@contextlib.asynccontextmanager
async def connections(
    house: Harness, count: int = 1
) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    assert house.service is not None
    parts = urlsplit(house.service.url)
    made: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        for _ in range(count):
            made.append(await asyncio.open_connection(parts.hostname, parts.port))  # noqa: PERF401
        yield made
    finally:
        for _, writer in made:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def next_answer(reader: asyncio.StreamReader) -> tuple[list[str], bytes]:
    """The lines of its head, and its body."""
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        length = next(int(line.split(":")[1]) for line in head if line.startswith("Content-Length"))
        return head, await reader.readexactly(length)


async def answered(reader: asyncio.StreamReader) -> tuple[int, dict[str, Json]]:
    head, body = await next_answer(reader)
    return int(head[0].split()[1]), json.loads(body)


async def test_what_is_no_http_is_a_problem_with_an_id_and_one_line_in_the_log(
    house: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.running() as service:
        for request in (
            b"NONSENSE\r\n\r\n",
            b"GET /runs HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            raw_request(b"GET", b"/runs", x="y" * 20_000),
            raw_request(b"GET", b"/" + b"y" * 20_000),
            raw_request(b"G ET", b"/runs"),
            b"GET /runs HTTP/1.1\r\nAuthorization Bearer told-to-nobody\r\n\r\n",  # what the parser stumbles over
            b"GET /runs?token=told-to-nobody\x01 HTTP/1.1\r\n\r\n",
            raw_request(b"POST", b"/runs", content_length="-5"),
            raw_request(b"POST", b"/runs", transfer_encoding="chunked"),
        ):
            with capture_logs() as logs:
                answer = await send_raw(service.url, request)
            assert answer.status == 400, request[:40]
            assert (answer.header("Content-Type") or "").startswith("application/problem+json"), request[:40]
            assert answer.json()["type"] == "urn:runrecords:problem:malformed"
            assert answer.header("X-Request-ID") == answer.json()["request_id"]
            assert len(answer.body) < 1_000
            assert [entry["event"] for entry in logs] == ["http.refused"], request[:40]
            assert "exc_info" not in logs[0]
            assert "told-to-nobody" not in answer.body + str(logs), request[:40]
    assert [record for record in caplog.records if record.name.startswith("aiohttp")] == []


async def test_a_packed_body_is_refused_unread_and_its_connection_goes_on(
    house: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it is what it says it is or not, and whoever sends it: nothing of it is unpacked or told to the log."""
    cases = (
        (raw_request(b"POST", b"/runs", GUY, content_encoding="gzip"), 415),
        (raw_request(b"POST", b"/runs", gzip.compress(GUY), content_encoding="gzip"), 415),
        (raw_request(b"POST", b"/runs", GUY, content_encoding="br"), 415),
        (raw_request(b"POST", b"/runs", GUY, content_encoding="gzip", authorization=""), 401),
        (raw_request(b"GET", b"/healthz", GUY, content_encoding="gzip"), 200),
    )
    async with house.running():
        for request, status in cases:
            end = request.index(b"\r\n\r\n") + 4
            async with connections(house) as [(reader, writer)]:
                with capture_logs() as logs:
                    writer.write(request[:end])
                    await writer.drain()
                    head, body = await next_answer(reader)
                    assert int(head[0].split()[1]) == status, request
                    writer.write(request[end:] + raw_request(b"GET", b"/healthz"))
                    assert (await next_answer(reader))[0][0].split()[1] == "200"
            assert [entry["log_level"] for entry in logs if entry["event"] == "http.answered"] == ["info"] * 2
            if status == 415:
                assert json.loads(body)["type"] == "urn:runrecords:problem:unsupported-encoding"
                assert "Accept-Encoding: identity" in head
        assert (await house.call("POST", "/runs", GUY, headers={"Content-Encoding": "Identity"})).status == 201
        assert rows(house.store_path, "SELECT count(*) FROM runs") == [(1,)]
    assert [record for record in caplog.records if record.name.startswith("aiohttp")] == []


async def test_an_idle_connection_and_a_head_without_end_are_closed_in_time(tmp_path: Path) -> None:
    async with limited(tmp_path, EdgeLimits(idle_seconds=0.2)) as house, connections(house, 2) as made:
        (silent, _), (dribbling, writer) = made
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        async with asyncio.timeout(30):
            assert await silent.read() == b""
            assert await dribbling.read() == b""


def test_half_of_the_files_are_left_to_the_store_and_the_clients() -> None:
    edge = Edge(EdgeLimits(connections=10**9), str)
    assert edge._most == resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


async def test_a_full_house_makes_room_by_closing_who_idles_longest(tmp_path: Path) -> None:
    async with limited(tmp_path, EdgeLimits(connections=4, spared_seconds=0.05)) as house:
        async with connections(house, 20) as made:  # the kernel takes them all; the service four at a time
            async with connections(house) as [(reader, writer)]:
                writer.write(raw_request(b"GET", b"/healthz"))
                assert (await answered(reader))[0] == 200
            async with asyncio.timeout(30):
                assert await made[0][0].read() == b""
                assert await made[15][0].read() == b""
        assert (await house.call("GET", "/healthz")).status == 200


async def test_a_request_under_way_is_never_closed_to_make_room(tmp_path: Path) -> None:
    request = raw_request(b"POST", b"/runs", GUY)
    async with (
        limited(tmp_path, EdgeLimits(connections=1, spared_seconds=0.01)) as house,
        connections(house, 2) as [(busy, sender), (waiting, other)],
    ):
        sender.write(request[:-5])
        await sender.drain()
        other.write(raw_request(b"GET", b"/healthz"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting.readuntil(b"\r\n\r\n"), 0.3)
        sender.write(request[-5:])
        assert (await answered(busy))[0] == 201
        assert (await answered(waiting))[0] == 200  # `busy` idles now, and made room


async def test_while_others_wait_an_answer_is_the_last_of_its_connection_and_says_so(tmp_path: Path) -> None:
    request = raw_request(b"GET", b"/healthz")
    async with (
        limited(tmp_path, EdgeLimits(connections=1, spared_seconds=60)) as house,
        connections(house) as [(first, sender)],
    ):
        for _ in range(2):  # nobody waits: it goes on
            sender.write(request)
            head, _ = await next_answer(first)
            assert "Connection: close" not in head
        async with connections(house) as [(second, other)]:
            other.write(request)
            sender.write(request)
            head, _ = await next_answer(first)
            assert "Connection: close" in head
            assert (await answered(second))[0] == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux gives such a client up")
async def test_who_takes_nothing_of_his_answer_is_given_up_for_the_next(tmp_path: Path) -> None:
    """What the kernel has no room for waits in the service, and would keep his connection open for ever."""
    limits = EdgeLimits(connections=1, idle_seconds=0.2, spared_seconds=600)
    async with limited(tmp_path, limits, max_body_bytes=10_000_000) as house:
        assert house.service is not None
        lines = json.dumps({"append": {"progress_log": ["x" * 90_000] * 80}}).encode()
        for request in (raw_request(b"POST", b"/runs", JOB_GUY), raw_request(b"PATCH", b"/runs/j-Guy", lines)):
            assert (await send_raw(house.service.url, request)).status in {201, 202}
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", urlsplit(house.service.url).port))
            stuck.sendall(raw_request(b"GET", b"/outbox"))
            async with connections(house) as [(reader, writer)]:
                writer.write(raw_request(b"GET", b"/healthz"))
                assert (await answered(reader))[0] == 200


async def test_more_bodies_than_may_wait_are_503_with_the_time_to_come_again(tmp_path: Path) -> None:
    limits = EdgeLimits(waiting_bytes=3_000)
    body = GUY.ljust(2_000)
    request = raw_request(b"POST", b"/runs", body)
    async with (
        limited(tmp_path, limits, max_body_bytes=2_000) as house,
        connections(house) as [(reader, writer)],
    ):
        assert house.service is not None
        writer.write(request[:-5])
        await writer.drain()
        async with asyncio.timeout(30):
            while (refused := await house.call("POST", "/runs", body)).status == 201:  # noqa: ASYNC110  # not seen yet
                await asyncio.sleep(0.01)
        assert refused.status == 503
        assert refused.headers["Retry-After"] == "2"
        assert refused.json()["type"] == "urn:runrecords:problem:overloaded"
        writer.write(request[-5:])
        assert (await answered(reader))[0] == 201
        for _ in range(3):  # what they held was given back, whatever became of them
            assert (await house.call("POST", "/runs", body)).status == 201
            assert (await house.call("POST", "/runs", b"{".ljust(2_000))).status == 400
            assert (await house.call("POST", "/runs", body.ljust(2_001))).status == 413


@pytest.mark.parametrize(
    ("length", "status"), [(b"Content-Length: 1048576", 413), (b"Transfer-Encoding: chunked", 400)]
)
async def test_a_form_that_a_stranger_begins_takes_no_room_from_the_bodies_of_callers(
    tmp_path: Path, length: bytes, status: int
) -> None:
    form = raw_request(
        b"POST", b"/page/sign-in", content_type="application/x-www-form-urlencoded", origin="http://localhost"
    )
    async with limited(tmp_path, EdgeLimits(waiting_bytes=5 << 20)) as house, connections(house, 6) as strangers:
        for reader, writer in strangers:
            writer.write(form.replace(b"Content-Length: 0", length))
            head, _ = await next_answer(reader)
            assert head[0].split()[1] == str(status)
        assert (await house.call("POST", "/runs", GUY.ljust(1 << 20))).status == 201


async def test_a_body_without_end_is_refused_and_its_connection_ended(tmp_path: Path) -> None:
    async with (
        limited(tmp_path, EdgeLimits(lingering_seconds=0.1), max_body_bytes=100_000) as house,
        connections(house) as [(reader, writer)],
    ):
        head = raw_request(b"POST", b"/runs").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        writer.write(head)

        async def send_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
                    await writer.drain()

        sending = asyncio.create_task(send_on())
        assert (await answered(reader))[0] == 413
        async with asyncio.timeout(30):
            await sending  # it ends, because the connection does
        assert rows(house.store_path, "SELECT count(*) FROM runs") == [(0,)]


async def test_who_waits_to_be_asked_for_a_body_is_asked_when_nothing_stands_against_it(tmp_path: Path) -> None:
    async with (
        limited(tmp_path, EdgeLimits(), max_body_bytes=2_000) as house,
        connections(house, 4) as [(reader, writer), *others],
    ):
        head = raw_request(b"POST", b"/runs", expect="100-continue", content_length=str(len(JOB_GUY)))
        for status in (201, 200):  # the connection goes on
            writer.write(head)
            async with asyncio.timeout(30):
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(JOB_GUY)
            assert (await answered(reader))[0] == status
        for (refused, to), status, sent in (
            (others[0], 413, raw_request(b"POST", b"/runs", expect="100-continue", content_length="2001")),
            (
                others[1],
                401,
                raw_request(b"POST", b"/runs", expect="100-Continue", content_length="9", authorization=""),
            ),
            (
                others[2],
                415,
                raw_request(b"POST", b"/runs", expect="100-continue", content_length="9", content_encoding="br"),
            ),
        ):
            to.write(sent)
            lines, _ = await next_answer(refused)
            assert int(lines[0].split()[1]) == status
            assert "Connection: close" in lines  # whether it comes all the same is not known


async def test_an_expectation_that_nobody_knows_is_ignored(house: Harness) -> None:
    async with house.running() as service:
        assert (await send_raw(service.url, raw_request(b"POST", b"/runs", JOB_GUY, expect="200-maybe"))).status == 201
        assert (await send_raw(service.url, raw_request(b"GET", b"/runs", expect="200-maybe"))).status == 200


async def test_a_page_of_large_rows_is_a_short_one_and_the_next_goes_on(house: Harness) -> None:
    async with house.running():
        run_id = await house.kick_off()
        requests: list[list[Json]] = [["x" * 90_000] * 4 for _ in range(7)]
        requests.append(["x" * 100_000] * 10)  # larger than a page by itself
        for lines in requests:
            answer = await house.call("PATCH", f"/runs/{run_id}", {"append": {"progress_log": lines}})
            assert answer.status == 202, answer.text
        pages: list[list[Json]] = []
        cursor: Json = ""
        while cursor is not None:
            answer = await house.call("GET", f"/outbox?limit=100{cursor and f'&cursor={cursor}'}")
            assert len(answer.text) < MOST_OF_A_PAGE * 1.2
            found = answer.json()["messages"]
            assert isinstance(found, list)
            pages.append([one["id"] for one in found if isinstance(one, dict)])
            cursor = answer.json()["next_cursor"]
        assert pages == [[9], [8, 7], [6, 5], [4, 3], [2, 1]]
        shown = await house.call("GET", f"/runs/{run_id}")
        timeline = shown.json()["timeline"]
        assert isinstance(timeline, list)
        longest = max((str(one["detail"]) for one in timeline if isinstance(one, dict)), key=len)
        assert (len(longest), longest[-2:]) == (MOST_OF_A_DETAIL + 1, "x…")
