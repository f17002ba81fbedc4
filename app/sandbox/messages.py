"""What an emulator sees of HTTP: a request that came in whole, and the answer to it.

Plain values, so that an emulator is a pure function of a request and its own state. Nothing here knows of
sockets, of aiohttp, or of Airtable and Apify.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

from multidict import CIMultiDict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.model import Json


def _no_headers() -> Mapping[str, str]:
    return CIMultiDict()


def parse_json(body: bytes) -> Json:
    """Read a JSON body by RFC 8259. Raises `ValueError` for anything else, such as NaN or broken UTF-8."""

    def refuse(constant: str) -> Json:
        raise ValueError(f"{constant} is not JSON")

    try:
        value: Json = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    return value


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One request, its body read to the end.

    `path` is percent-decoded and has no query. `target` is path and query as they came: `segments` needs it,
    because a table name may hold an encoded slash, which `path` can no longer tell from a separator; and so
    does whoever limits the length of a URL. Header names are looked up in any case.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=_no_headers)
    body: bytes = b""
    target: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", CIMultiDict(self.headers))

    @property
    def segments(self) -> tuple[str, ...]:
        """The decoded parts of the path: `/v0/app1/Client%20Runs` is `("v0", "app1", "Client Runs")`."""
        if not self.target:
            return tuple(part for part in self.path.split("/") if part)
        return tuple(unquote(part) for part in self.target.partition("?")[0].split("/") if part)

    def param(self, name: str) -> str | None:
        """Find the first value of a query parameter, or None."""
        return next((value for key, value in self.query if key == name), None)

    @property
    def bearer(self) -> str | None:
        """The token of `Authorization: Bearer …`, or None."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    def json(self) -> Json:
        """Read the body as JSON. Raises `ValueError` if it is none."""
        return parse_json(self.body)


@dataclass(frozen=True, slots=True)
class WireResponse:
    """One answer. Content-Length and Date are the server's business."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=_no_headers)

    @classmethod
    def json(cls, status: int, value: Json, headers: Mapping[str, str] | None = None) -> WireResponse:
        """Make an answer whose body is `value` as UTF-8 JSON."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        # A lone surrogate, which JSON can carry and UTF-8 cannot, must not break the answer that quotes it.
        return cls(
            status,
            body.encode(errors="replace"),
            {"Content-Type": "application/json; charset=utf-8", **(headers or {})},
        )


class Backend(Protocol):
    """The logic of an emulator, run in the server's event loop: it answers at once, with no network I/O."""

    def __call__(self, request: WireRequest, /) -> WireResponse: ...
