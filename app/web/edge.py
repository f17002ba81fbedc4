"""The outermost edge: how many connections, how long they may idle, how much may wait; and what is no HTTP at all.

aiohttp closes idle connections and half-sent heads (`keepalive_timeout`), and ends what goes on being sent after its
answer (`lingering_time`). It has no cap on connections (asyncio goes on accepting until no file is left, and then logs
without end), none on what all bodies together hold, and answers what it cannot parse by itself, as plain text and with
a traceback in the log. Those three are here, and nothing else: an accept loop, a count of bytes, one override.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import select
import socket
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion11, web

from app.errors import Malformed, Overloaded, Problem
from app.logs import get_logger
from app.web.problems import OURS, problem_answer

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket
    from collections.abc import AsyncIterator, Callable

    from aiohttp.typedefs import Handler, Middleware

log = get_logger(__name__)

_HELD_BYTES: Final = web.RequestKey("held_bytes", int)
#: How often a full house is looked through for somebody idle.
_LOOK_SECONDS: Final = 0.05
#: How often the log says that no connection can be taken.
_SAY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What the edge lets in. Memory is bounded by `connections` heads and answers, and `waiting_bytes` of bodies.

    `idle_seconds` is for a connection without a request and for a head to arrive. Newcomers to a full house wait in the
    kernel's queue. While any do, each answer is the last of its connection and says so, and who has idled longest has
    to go, if for `spared_seconds`.
    """

    connections: int = 500
    idle_seconds: float = 75.0
    spared_seconds: float = 2.0
    body_seconds: float = 30.0
    lingering_seconds: float = 10.0
    waiting_bytes: int = 64 * 1024 * 1024


class Edge:
    def __init__(self, limits: EdgeLimits, new_id: Callable[[], str]) -> None:
        self.limits = limits
        self._new_id = new_id
        # The store, Airtable and Apify need files too.
        self._most = max(1, min(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._open = 0
        self._left = asyncio.Event()
        self._listener: socket.socket | None = None
        self._idle: OrderedDict[_Connection, float] = OrderedDict()
        self._waiting_bytes = 0

    @contextlib.asynccontextmanager
    async def accepting(self, server: web.Server, listener: socket.socket) -> AsyncIterator[None]:
        """Accept connections for as long as the block runs."""
        listener.setblocking(False)
        self._listener = listener
        accepting = asyncio.create_task(self._accept(server, listener), name="accept")
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])

    async def _accept(self, server: web.Server, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        said = -_SAY_SECONDS
        while True:
            while self._open >= self._most:
                await self._make_room()
            try:
                connection, _ = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # gone before it was ours
            except OSError as error:  # no file or memory is left
                if loop.time() - said >= _SAY_SECONDS:
                    said = loop.time()
                    log.warning("edge.cannot_accept", reason=error.strerror, open=self._open)
                await self._make_room()
                continue
            with contextlib.suppress(OSError):
                _give_up_stuck_answers(connection, self.limits.idle_seconds)
                await loop.connect_accepted_socket(lambda: _Connection(self, server), connection)

    async def _make_room(self) -> None:
        """End who idles longest, if for long enough, and wait a little for somebody to leave."""
        self._left.clear()
        now = asyncio.get_running_loop().time()
        longest, since = next(iter(self._idle.items()), (None, now))
        if longest is not None and now - since >= self.limits.spared_seconds:
            if longest.has_sent():  # under load it is we who have not come to it yet
                self._idle[longest] = now
                self._idle.move_to_end(longest)
            else:
                longest.end()
        with contextlib.suppress(TimeoutError):  # no wait_for: before Python 3.12 it may swallow the stop
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._left.wait()

    # What connections and requests tell

    def came(self, connection: _Connection) -> None:
        self._open += 1
        self._idle[connection] = asyncio.get_running_loop().time()

    def went(self, connection: _Connection) -> None:
        self._open -= 1
        self._idle.pop(connection, None)
        self._left.set()

    def middleware(self) -> Middleware:
        @web.middleware
        async def attended(request: web.Request, handler: Handler) -> web.StreamResponse:
            """A connection whose request is being answered is not idle; what its body held is given back after it."""
            connection = request.protocol
            request[_HELD_BYTES] = 0
            if isinstance(connection, _Connection):
                self._idle.pop(connection, None)
            try:
                answer = await handler(request)
                if self._is_crowded() or (waits_to_be_asked(request) and not request.content.is_eof()):
                    answer.force_close()
                return answer
            finally:
                self._waiting_bytes -= request[_HELD_BYTES]
                if isinstance(connection, _Connection) and connection.transport is not None:
                    self._idle[connection] = asyncio.get_running_loop().time()

        return attended

    def _is_crowded(self) -> bool:
        """Whether somebody waits for one of the connections to end."""
        return self._open >= self._most and self._listener is not None and _has_input(self._listener)

    def hold(self, request: web.Request, length: int) -> None:
        """Count a body of `length` bytes as waiting until its request is answered.

        Raises:
            Overloaded: too much waits already.
        """
        if self._waiting_bytes + length > max(self.limits.waiting_bytes, length):
            raise Overloaded("too many bodies wait to be stored: send it again in a moment")
        self._waiting_bytes += length
        request[_HELD_BYTES] += length

    def refuse(self, status: int, error: BaseException | None, reason: str | None) -> web.Response:
        """The answer to what never became a request, or to what failed beneath the application."""
        request_id = self._new_id()
        if status >= web.HTTPInternalServerError.status_code:
            log.error("http.failed", request_id=request_id, exc_info=error)
            problem = Problem(OURS)
        else:
            said = _QUOTED.split(reason or "it is not HTTP", maxsplit=1)[0].strip()
            log.info("http.refused", request_id=request_id, status=status, reason=type(error).__name__)
            problem = Malformed(f"this cannot be read as an HTTP request: {said}")
        return problem_answer(problem, request_id)


def waits_to_be_asked(request: web.Request) -> bool:
    """Whether its body comes once it is asked for; otherwise it may come or not."""
    return request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue"


async def ask_for_no_body(_request: web.Request) -> None:
    """In the place of aiohttp's answer to `Expect`.

    It would ask for every body before anything is known of the request, and refuse all other expectations beneath the
    application, where nobody names and logs a request. They may be ignored as well (RFC 9110, 10.1.1). Where there is
    no such address or method it does so still: there it takes no word of ours.
    """


EDGE: Final = web.AppKey("edge", Edge)
#: Where the parser begins to quote what it read: that may hold a token.
_QUOTED: Final = re.compile(r"[:'\"\n]")


class _Connection(web.RequestHandler):
    __slots__ = ("_edge",)

    def __init__(self, edge: Edge, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # as the runner does to have none
            keepalive_timeout=edge.limits.idle_seconds,
            lingering_time=edge.limits.lingering_seconds,
            auto_decompress=False,  # aiohttp logs whatever cannot be unpacked, with a traceback, whoever sent it
        )
        self._edge = edge

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._edge.came(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._edge.went(self)

    def has_sent(self) -> bool:
        """Whether something came that was not read yet."""
        return self.transport is not None and _has_input(self.transport.get_extra_info("socket"))

    def end(self) -> None:
        """Close it at once, whatever its client has not read yet."""
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        answer = self._edge.refuse(status, exc, message)
        answer.force_close()
        return answer


def _has_input(one: socket.socket | TransportSocket) -> bool:
    """Whether a read, or an accept, would not wait."""
    looking = select.poll()
    looking.register(one.fileno(), select.POLLIN)
    return bool(looking.poll(0))


def _give_up_stuck_answers(connection: socket.socket, seconds: float) -> None:
    """Let the kernel drop a client that takes none of its answer for so long."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1_000))
