"""`/openapi.json` and `/docs`: the contract for programs and for people, the second written from the first.

The page is whole in itself: no script, no request to anywhere, one style whose hash its policy names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Final

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from app.web import contract

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app.model import Json

_TEMPLATES: Final = "templates"
#: Longest list of words that a type shows.
_MOST_WORDS: Final = 12


class Docs:
    """Each is made once, when it is first asked for: the contract does not change while the service runs."""

    def __init__(self, make_document: Callable[[], Mapping[str, Json]]) -> None:
        self._make_document = make_document

    @cached_property
    def _document(self) -> Mapping[str, Json]:
        return self._make_document()

    @cached_property
    def _json(self) -> bytes:
        return json.dumps(self._document, ensure_ascii=False, indent=1).encode()

    @cached_property
    def _page(self) -> tuple[str, Mapping[str, str]]:
        """The page and its headers."""
        style = resources.files("app.web").joinpath(_TEMPLATES, "docs.css").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        return _render(self._document, style), {
            "Content-Security-Policy": (
                f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'"
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    def routes(self) -> list[web.RouteDef]:
        return [contract.OPENAPI.served_by(self.contract), contract.DOCS.served_by(self.page)]

    async def contract(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._json, content_type="application/json")

    async def page(self, _request: web.Request) -> web.Response:
        text, headers = self._page
        return web.Response(text=text, content_type="text/html", headers=headers)


def _render(document: Mapping[str, Json], style: str) -> str:
    environment = Environment(
        loader=PackageLoader("app.web", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["type"] = type_words
    environment.filters["last"] = lambda ref: str(ref).rpartition("/")[2]
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False, indent=2)
    environment.filters["code"] = _code
    # The style is a file of ours and has to reach the page byte for byte: its hash is in the policy.
    return environment.get_template("docs.html").render(document=document, style=Markup(style))  # noqa: S704


def _code(text: str) -> Markup:
    """Text with its `code` marked as such; everything else of it is escaped."""
    parts = text.split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(part) if place % 2 else Markup("{}").format(part)
        for place, part in enumerate(parts)
    )


def type_words(schema: Mapping[str, Json]) -> str:
    """What a schema takes, in a few words."""
    ref, choices, words = schema.get("$ref"), schema.get("anyOf"), schema.get("enum")
    if isinstance(ref, str):
        return ref.rpartition("/")[2]
    if isinstance(choices, list):
        return " or ".join(dict.fromkeys(type_words(one) for one in choices if isinstance(one, dict)))
    if isinstance(words, list):
        shown = ", ".join(str(word) for word in words[:_MOST_WORDS])
        return f"one of {shown}" + (", …" if len(words) > _MOST_WORDS else "")
    return json.dumps(schema["const"]) if "const" in schema else _kind(schema)


def _kind(schema: Mapping[str, Json]) -> str:
    kind, items = str(schema.get("type", "any JSON")), schema.get("items")
    if kind == "array":
        return f"list of {type_words(items) if isinstance(items, dict) else 'any JSON'}"
    return "time (ISO 8601 with an offset)" if schema.get("format") == "date-time" else kind + _bounds(schema)


def _bounds(schema: Mapping[str, Json]) -> str:
    least, most, longest = schema.get("minimum"), schema.get("maximum"), schema.get("maxLength")
    if isinstance(least, int | float) and isinstance(most, int | float):
        return f", {least:,} to {most:,}"
    return f", at most {longest:,} characters" if isinstance(longest, int) else ""
