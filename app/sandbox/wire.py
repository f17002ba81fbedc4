"""The wire of the sandbox: an HTTP server on loopback that asks an emulator and misbehaves on demand.

It keeps a log of every request for tests to judge, without the `Authorization` header. It must not know what
is emulated: that is the backend's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web

from app.sandbox.faults import (
    Delay,
    Drop,
    Fault,
    Faults,
    Hang,
    Plan,
    Reply,
    Truncate,
    applied_late,
    applied_then_dropped,
    applied_then_hang,
    dropped,
    hung,
    mixture,
    odd_body,
    reply,
    server_error,
    slow,
    truncated,
)
from app.sandbox.messages import Backend, WireRequest, WireResponse, parse_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from app.model import Json

__all__ = [
    "Backend",
    "Delay",
    "Drop",
    "Fault",
    "Faults",
    "Hang",
    "LoggedRequest",
    "Plan",
    "Reply",
    "Truncate",
    "WireRequest",
    "WireResponse",
    "WireServer",
    "applied_late",
    "applied_then_dropped",
    "applied_then_hang",
    "dropped",
    "hung",
    "mixture",
    "odd_body",
    "parse_json",
    "reply",
    "server_error",
    "slow",
    "truncated",
]

#: A request line must be able to carry more than Airtable's 16,000 characters, so that the emulator can
#: refuse it.
MAX_REQUEST_LINE = 128 * 1024
#: Far above what an emulator takes: it refuses too large a body in its own words, this only bounds memory.
MAX_BODY = 64 * 1024 * 1024

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request as the server saw it; replaced in the log, never changed, as it is applied and answered.

    Times are those of the server's clock, in seconds. `applied` says that the backend got the request (it may
    have refused it); `status` and `answered_at` are None until an answer has been handed to the operating
    system whole.
    """

    number: int
    received_at: float
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    body: bytes
    fault: str | None = None
    applied: bool = False
    status: int | None = None
    answered_at: float | None = None

    def json(self) -> Json:
        """Read the body as JSON. Raises `ValueError` if it is none."""
        return parse_json(self.body)


class WireServer:
    """Serves one backend over HTTP on 127.0.0.1.

    `async with WireServer(backend) as server:` listens at `server.url`. The port is free to choose (0), and
    is kept over `stop()` and `start()`, so that an outage can be played. `latency` (seconds) is waited before
    each answer, after the request took effect. Every wait goes through `sleep`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        latency: float = 0.0,
        port: int = 0,
        log_limit: int = 100_000,
    ) -> None:
        self.backend = backend
        self.faults = faults if faults is not None else Faults()
        self.latency = latency
        self.port = port
        self.log: list[LoggedRequest] = []
        self._clock = clock
        self._sleep = sleep
        self._log_limit = log_limit
        self._numbers = 0
        self._changed = asyncio.Event()
        self._server: web.Server | None = None
        self._runner: web.ServerRunner | None = None
        self._effects: set[asyncio.Task[WireResponse | None]] = set()

    @property
    def url(self) -> str:
        """Where the server listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. Raises `OSError` if the port is taken."""
        if self._runner is not None:
            raise RuntimeError("the server is running already")
        # A handler ends with its connection; what a request does to the backend is shielded from that, as it
        # would be on a real server.
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            max_line_size=MAX_REQUEST_LINE,
            max_field_size=MAX_REQUEST_LINE,
        )
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
        except OSError:
            await runner.cleanup()
            raise
        self.port = runner.addresses[0][1]
        self._server, self._runner = server, runner

    async def stop(self) -> None:
        """Stop listening and cut every connection at once, hung ones too. Late effects are lost."""
        server, runner = self._server, self._runner
        if server is None or runner is None:
            return
        self._server = self._runner = None
        for site in runner.sites:
            await site.stop()
        effects = tuple(self._effects)
        for effect in effects:
            effect.cancel()
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
        await asyncio.gather(*effects, return_exceptions=True)

    async def wait_for(
        self,
        predicate: Callable[[list[LoggedRequest]], bool],
        timeout: float = 30.0,  # noqa: ASYNC109 - bounds a test's wait; nothing else needs to be cancelled
    ) -> list[LoggedRequest]:
        """Wait until the log satisfies `predicate`, and return it.

        Raises `TimeoutError` after `timeout` real seconds.
        """
        async with asyncio.timeout(timeout):
            while not predicate(self.log):
                await self._changed.wait()
        return self.log

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        body = await _read(http)
        if body is None:
            refusal = web.Response(status=413)
            refusal.force_close()
            return refusal
        target = http.raw_path
        path, query = unquote(target.partition("?")[0]), tuple(http.query.items())
        request = WireRequest(http.method, path, query, http.headers, body, target)
        fault = self.faults.choose(request)
        number = self._log_arrival(request, fault)
        effect = asyncio.create_task(self._take_effect(number, request, fault))
        self._effects.add(effect)
        effect.add_done_callback(self._effects.discard)
        real = await asyncio.shield(effect)
        if self.latency:
            await self._sleep(self.latency)
        match fault:
            case Fault(then=Hang()):
                await asyncio.Event().wait()
            case Fault(then=Drop()):
                return _cut(http)
            case Fault(then=Reply(status=status, body=body, headers=headers)):
                return await self._answer(number, http, WireResponse(status, body, headers))
            case Fault(then=Delay(seconds=seconds), apply=True):
                await self._sleep(seconds)
        assert real is not None
        if fault is not None and isinstance(fault.then, Truncate):
            return await _answer_half(http, real)
        return await self._answer(number, http, real)

    async def _take_effect(self, number: int, request: WireRequest, fault: Fault | None) -> WireResponse | None:
        """Give the request to the backend if and when the fault allows it; the backend's answer, or None."""
        if fault is not None and not fault.apply:
            if not isinstance(fault.then, Delay):
                return None
            await self._sleep(fault.then.seconds)
        try:
            return self.backend(request)
        except Exception:
            _logger.exception("the backend failed on %s %s", request.method, request.path)
            return WireResponse(500)
        finally:
            self._relog(number, lambda entry: replace(entry, applied=True))

    async def _answer(self, number: int, http: web.BaseRequest, answer: WireResponse) -> web.StreamResponse:
        response = web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        try:
            await response.prepare(http)
            await response.write_eof()
        except ConnectionError:
            return response  # the client has gone, and the log says so: no status
        now = self._clock()
        self._relog(number, lambda entry: replace(entry, status=answer.status, answered_at=now))
        return response

    def _log_arrival(self, request: WireRequest, fault: Fault | None) -> int:
        self._numbers += 1
        if len(self.log) >= self._log_limit:
            del self.log[: max(1, self._log_limit // 2)]
        self.log.append(
            LoggedRequest(
                number=self._numbers,
                received_at=self._clock(),
                method=request.method,
                path=request.path,
                query=request.query,
                body=request.body,
                fault=fault.name if fault is not None else None,
            )
        )
        self._wake()
        return self._numbers

    def _relog(self, number: int, change: Callable[[LoggedRequest], LoggedRequest]) -> None:
        """Put a changed entry in the place of its former self, if that has not been cut off or cleared."""
        place = number - self.log[0].number if self.log else -1
        if 0 <= place < len(self.log):
            self.log[place] = change(self.log[place])
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _read(http: web.BaseRequest) -> bytes | None:
    """Read the whole body; None if it is larger than the server wants to hold."""
    if http.headers.get("Expect", "").lower() == "100-continue" and http.transport is not None:
        http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # curl sends a large body only after this
    body = bytearray()
    async for chunk in http.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def _cut(http: web.BaseRequest) -> web.StreamResponse:
    """Close the connection without a word; aiohttp finds that it can send nothing more, and leaves it."""
    if http.transport is not None:
        http.transport.abort()
    return web.Response()


async def _answer_half(http: web.BaseRequest, answer: WireResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    try:
        await response.prepare(http)
        await response.write(answer.body[: len(answer.body) // 2])
    except ConnectionError:
        return response
    if http.transport is not None:
        http.transport.close()  # unlike abort(), sends what is buffered first
    return response
