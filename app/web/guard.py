"""Who may call, and how much: request ids, bearer tokens, body limits. Closed unless opened."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from app.errors import Forbidden, Malformed, TooSlow, Unauthorized, UnsupportedEncoding, UnsupportedMediaType
from app.logs import get_logger
from app.web.edge import EDGE, waits_to_be_asked
from app.web.problems import REQUEST_ID, REQUEST_ID_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp.typedefs import Handler, Middleware

log = get_logger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "::1")


def request_ids(new_id: Callable[[], str]) -> Middleware:
    """Name each request (the caller's `X-Request-ID` where it is one), say so in the answer, and log how it went."""

    @web.middleware
    async def named(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_id()
        request[REQUEST_ID] = request_id
        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            answer = await handler(request)
            answer.headers[REQUEST_ID_HEADER] = request_id
            resource = request.match_info.route.resource
            log.info(
                "http.answered",
                method=request.method,
                route=resource.canonical if resource else "none",
                status=answer.status,
                ms=round((time.perf_counter() - started) * 1000, 1),
            )
        return answer

    return named


class Bearer:
    """Checks `Authorization: Bearer …` against the tokens in constant time.

    Without tokens (possible only on loopback) anybody on this machine may call, but no web page: the Host has to be
    this machine's name, so that a name of the page's own cannot be pointed here, and so has the Origin, which a
    browser says with whatever a page sends elsewhere.
    """

    def __init__(self, tokens: Sequence[str], name: str) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._name = name

    def check(self, request: web.Request) -> None:
        """Raises `Unauthorized`, or `Forbidden` for a foreign Host or Origin where no token is set."""
        if not self._tokens:
            if _host_of(request) not in _LOOPBACK_HOSTS or not _is_of_this_machine(request.headers.get("Origin")):
                raise Forbidden(f"without {self._name} only this machine may call, by the name localhost")
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        offered = given.strip().encode("utf-8", errors="surrogateescape") if scheme.lower() == "bearer" else b""
        # Every token is compared, so that the time tells nothing of which one was close.
        matches = [hmac.compare_digest(offered, token) for token in self._tokens]
        if not any(matches):
            raise Unauthorized(f"send Authorization: Bearer followed by {self._name}")


def _host_of(request: web.Request) -> str | None:
    """The host that it is for; `None` where it names nothing that could be one."""
    try:
        return request.url.host
    except ValueError:
        return None


def _is_of_this_machine(origin: str | None) -> bool:
    """Whether `Origin` is missing (no browser, or a page of ours reading) or a page of this machine's own."""
    if origin is None:
        return True
    try:
        return urlsplit(origin).hostname in _LOOPBACK_HOSTS
    except ValueError:
        return False


async def read_body(request: web.Request, most: int | None = None) -> bytes:
    """The whole body; of `most` bytes at the most, and of a length that is said beforehand, where that is given.

    Who waits to be asked for it (RFC 9110, 10.1.1) is asked when nothing else is against it.

    Raises:
        UnsupportedEncoding: it is packed.
        Overloaded: too much waits already.
        TooSlow: it took longer than the edge allows.
        Malformed: it broke off. Too large a body raises aiohttp's own error.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedEncoding("send the body as it is, without Content-Encoding")
    edge = request.app[EDGE]
    length = request.content_length
    if length is None and most is not None:
        raise Malformed("say how long the body is: send Content-Length")
    limit = request.client_max_size if most is None else min(most, request.client_max_size)
    length = limit if length is None else length
    if length > limit:
        raise web.HTTPRequestEntityTooLarge(limit, length)
    edge.hold(request, length)
    seconds = edge.limits.body_seconds
    try:
        if request.content.is_eof():  # it came with the head, as small ones do: no timer is worth its while
            return await request.read()
        if waits_to_be_asked(request):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(seconds):
            return await request.read()
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {seconds:g} s") from None
    except (web.RequestPayloadError, ConnectionError):
        raise Malformed("the body broke off") from None


def check_json(request: web.Request) -> None:
    """A web form cannot say `application/json` across origins: asking for it keeps strangers' pages out."""
    if request.content_type != "application/json":
        raise UnsupportedMediaType("send Content-Type: application/json")
