"""What a request to the page says: its form, its filters, its place; lenient with addresses, strict with forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from app.errors import Malformed, NotFound, UnsupportedMediaType
from app.store.views import Slice, number_of
from app.web.guard import read_body

if TYPE_CHECKING:
    from enum import StrEnum

    from aiohttp import web

ROWS: Final = 50
#: Bytes, most of them for a note. Who sends a form is not known yet, and what is held for him is taken from others.
LONGEST_FORM: Final = 32 << 10


async def read_form(request: web.Request) -> dict[str, str]:
    """The fields of a form, each once (the last)."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("A form of this page is sent as application/x-www-form-urlencoded.")
    body = await read_body(request, LONGEST_FORM)
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict"))
    except ValueError:
        raise Malformed("This is no form of this page.") from None


def page_of_ours(path: str) -> str:
    """Where to go after the sign-in: a page of ours and nowhere else."""
    try:
        parts = urlsplit(path)
    except ValueError:  # it is no address at all
        return "/"
    ours = not parts.scheme and not parts.netloc and (parts.path == "/" or parts.path.startswith("/page/"))
    printable = path.isascii() and path.isprintable() and "\\" not in path and not path.startswith("//")
    return path if ours and printable else "/"


def id_of(request: web.Request) -> int:
    number = number_of(request.match_info["id"])
    if number is None:
        raise NotFound("There is nothing of this number.")
    return number


def text_of(request: web.Request, name: str) -> str | None:
    return request.query.get(name, "").strip() or None


def word_of(request: web.Request, name: str, known: type[StrEnum]) -> str | None:
    value = request.query.get(name)
    return value if value in [one.value for one in known] else None


def slice_of(request: web.Request) -> Slice:
    return Slice(ROWS, number_of(request.query.get("cursor", "")))
