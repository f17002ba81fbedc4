"""The network between the real client and the emulator, held in the hand: a test says what becomes of a request.

Only the sockets are replaced. Above are the real pyairtable and `requests`, below is the real emulator; a request stays
where it is until the test answers it, cuts it off, or lets it come late.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

import requests
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from app.airtable import AirtableAccess
from app.sandbox.hand_clock import HandClock
from app.sandbox.messages import WireRequest, WireResponse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pyairtable import Table

URL = "http://airtable.test"
#: Nobody answered: a test that is stuck should say so, and not hang.
_STUCK_SECONDS = 60.0


class JumpingClock(HandClock):
    """A clock moved by hand whose wall time can be set, as people and time servers do. The monotonic time stays."""

    _set_by = timedelta()

    def now(self) -> datetime:
        return super().now() + self._set_by

    def jump(self, seconds: float) -> None:
        self._set_by += timedelta(seconds=seconds)


@dataclass(eq=False)
class OnItsWay:
    """A request that has left, whose sender waits in a thread of its own."""

    request: WireRequest
    _sent: requests.PreparedRequest
    _reply: Future[requests.Response] = field(default_factory=Future)

    def answer(self, response: WireResponse) -> None:
        answer = requests.Response()
        answer.status_code = response.status
        answer.raw = HTTPResponse(BytesIO(response.body), preload_content=False)
        answer.headers.update(response.headers)
        answer.request = self._sent
        answer.url = self._sent.url or ""
        self._reply.set_result(answer)

    def fail(self, error: requests.RequestException) -> None:
        self._reply.set_exception(error)


class HandWire(BaseAdapter):
    """Stands where `requests` would open a socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._left: asyncio.Queue[OnItsWay] = asyncio.Queue()

    async def left(self) -> OnItsWay:
        """The next request that has left."""
        async with asyncio.timeout(_STUCK_SECONDS):
            return await self._left.get()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float, float] | tuple[float, None] | None = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        del stream, timeout, verify, cert, proxies
        one = OnItsWay(_read(request), request)
        self._loop.call_soon_threadsafe(self._left.put_nowait, one)
        return one._reply.result(_STUCK_SECONDS)

    def close(self) -> None:
        pass


def _read(sent: requests.PreparedRequest) -> WireRequest:
    parts = urlsplit(sent.url or "")
    body = sent.body or b""
    return WireRequest(
        sent.method or "",
        unquote(parts.path),
        tuple(parse_qsl(parts.query, keep_blank_values=True)),
        sent.headers,
        body.encode() if isinstance(body, str) else bytes(body),
        parts.path + (f"?{parts.query}" if parts.query else ""),
    )


@dataclass(frozen=True, slots=True)
class AccessByHand(AirtableAccess):
    """Where the table is: at the end of a wire that is held in the hand."""

    wire: HandWire = field(kw_only=True, repr=False)

    def open(self) -> Table:
        table = AirtableAccess.open(self)
        table.api.session.mount(URL, self.wire)
        return table
