"""How apify-client's requests go out and what may come back: one answer, of Apify itself, bounded in size and time.

Knows nothing of batches and runs. It uses the httpx2 transport: with apify-client's default one a process that stops
after a failed request may die of SIGABRT or SIGSEGV (measured with impit 0.15.1: 5 and 14 of 30; with httpx2 0 of 30).
apify-client's own httpx2 client bounds neither an answer's size nor its time, unpacks whatever is packed and follows
redirects, a start's included; so this is one that does not.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from datetime import timedelta
from http.cookiejar import CookieJar, DefaultCookiePolicy
from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Final

import httpx2
from apify_client.http_clients import HttpClientAsync

from app.clock import parse_http_date

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

#: Bytes. A page of 1,000 runs is half a megabyte (the emulator's, of the documented shape), an input as long as its
#: kickoff was (1 MiB, unless `max_body_bytes` says more); a page of items, of which few are asked for, may be longest.
LARGEST_ANSWER: Final = 16 << 20
#: Reckoned by its commas, which a value after the first needs: what is read takes far more memory and time than bytes,
#: and a model's complaints most (measured: 0.25 GB and 0.45 s for 50,000 empty runs, 0.85 GB and 1.5 s for 200,000). A
#: page of 1,000 runs has 14,000.
#: A record is an input, of as many values as its caller gave it, and no model reads it.
MOST_VALUES: Final = 100_000
#: Only this may be elsewhere: Apify documents a 302 for the record of a key-value store, to where it is kept.
_RECORD: Final = "/records/"


class NotApifys(Exception):
    """An answer that Apify does not give; the text says what it is."""


class TooLong(NotApifys):
    """An answer of more than `LARGEST_ANSWER`, to a request that was done."""


class BoundedClient(HttpClientAsync):
    """`timeout_seconds` limits connecting and each wait for bytes; twice that, a whole request."""

    def __init__(self, *, timeout_seconds: float, retries: int) -> None:
        limit = timedelta(seconds=timeout_seconds)
        super().__init__(
            max_retries=retries, timeout_short=limit, timeout_medium=limit, timeout_long=limit, timeout_max=limit
        )
        self._total_seconds = 2 * timeout_seconds
        #: Apify's clock at its first answer.
        self.first_date: datetime | None = None
        self._client = httpx2.AsyncClient(
            headers={"Accept-Encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is taken, so none is sent
            timeout=timeout_seconds,
        )

    def is_timeout_error(self, exc: Exception) -> bool:
        return super().is_timeout_error(exc) or isinstance(exc, httpx2.TimeoutException)

    def is_retryable_transport_error(self, exc: Exception) -> bool:
        """What the network did; what an answer is stays what it is."""
        return isinstance(exc, httpx2.TransportError) and not isinstance(
            exc, (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def send_request(
        self,
        *,
        method: str,
        url: str,
        headers: dict[str, str],
        content: bytes | AsyncIterator[bytes] | None,
        timeout: float | None,  # noqa: ASYNC109 - apify-client's own signature
        stream: bool,
    ) -> httpx2.Response:
        """The whole answer.

        Raises:
            NotApifys: it is packed, too long, of too many values, too slow, or somebody else's.
            httpx2.TransportError: there is none.
        """
        del timeout, stream  # there is one for all, and nothing that we ask for is worth a stream
        request = self._client.build_request(
            method, url, headers=headers, content=content, extensions={"trace": _leave_nothing_behind}
        )
        is_record = method == "GET" and _RECORD in request.url.path
        try:
            async with asyncio.timeout(self._total_seconds):
                answer = await self._client.send(request, stream=True)
                if answer.next_request is not None and is_record:
                    await answer.aclose()
                    answer = await self._client.send(answer.next_request, stream=True)
                self.first_date = self.first_date or parse_http_date(answer.headers.get("Date"))
                return await _whole(answer, is_record=is_record)
        except TimeoutError:
            raise NotApifys(f"an answer that took more than {self._total_seconds:g} s") from None


async def _leave_nothing_behind(event: str, info: Mapping[str, Any]) -> None:
    """Closed, a connection takes with it what the kernel has not got out yet.

    Else the kernel goes on sending it for minutes: a start that was given up while the network was away would be done
    after a look had found none of it.
    """
    if event.endswith("connect_tcp.complete"):
        info["return_value"].get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _AT_ONCE)


#: On, and no seconds: what is unsent is thrown away, and the other side told so (tcp(7), socket(7)).
_AT_ONCE: Final = struct.pack("ii", 1, 0)


async def _whole(answer: httpx2.Response, *, is_record: bool) -> httpx2.Response:
    done = answer.is_success
    try:
        if 300 <= answer.status_code < 400:  # noqa: PLR2004
            raise _strangers(answer)
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise NotApifys("an answer that is packed, which was not asked for")
        body = bytearray()
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > LARGEST_ANSWER:
                kind = TooLong if done else NotApifys
                raise kind(f"an answer of more than {LARGEST_ANSWER >> 20} MiB")
    finally:
        await answer.aclose()
    if not (done and is_record):
        _check(answer, body)
    whole = httpx2.Response(answer.status_code, headers=answer.headers, content=bytes(body), request=answer.request)
    whole.encoding = "utf-8"  # documented; a charset that the answer names could be a way to pack it too
    return whole


def _check(answer: httpx2.Response, body: bytearray) -> None:
    if body.count(b",") > MOST_VALUES:
        raise NotApifys(f"an answer of more than {MOST_VALUES:,} values")
    is_apifys = _is_json(body) if answer.is_success else _is_error(body) or answer.is_server_error
    if not is_apifys:
        raise _strangers(answer, body)


def _strangers(answer: httpx2.Response, body: bytearray | None = None) -> NotApifys:
    said = f": {body.decode(errors='replace')}" if body else ""
    return NotApifys(
        f"what answers there says {answer.status_code}, as Apify does not: check [apify] api_url, and any proxy{said}"
    )


_JSON: Final = re.compile(rb"\s*[{\[]")
#: Apify's errors have a type of such words, and a message (documented); a proxy's page or another API's error has none.
_ERROR_TYPE: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def _is_json(body: bytearray) -> bool:
    return _JSON.match(body) is not None


def _is_error(body: bytearray) -> bool:
    """Whether it is one of Apify itself, which alone knows that something is not there, or was not done."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return False
    error = told.get("error") if isinstance(told, dict) else None
    if not isinstance(error, dict):
        return False
    kind, message = error.get("type"), error.get("message")
    return isinstance(kind, str) and _ERROR_TYPE.fullmatch(kind) is not None and isinstance(message, str)
