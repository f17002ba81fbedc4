"""What templates say with: times, ages, numbers, and what others wrote, made safe to show."""

from __future__ import annotations

import json
import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from jinja2 import pass_context
from markupsafe import Markup

from app.clock import parse_iso
from app.web.charts import said_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jinja2.runtime import Context
    from pydantic import JsonValue

#: Characters of one value that a page shows; the whole of it is in the API's answer.
_MOST_SHOWN: Final = 20_000


def said(value: object) -> Markup:
    """What somebody else wrote: escaped, apart from its neighbours' direction, and with nothing invisible in it."""
    text = "" if value is None else str(value)
    if len(text) > _MOST_SHOWN:
        text = "…" + text[-_MOST_SHOWN:]
    return Markup("<bdi>%s</bdi>") % "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char in "\n\t" or not unicodedata.category(char).startswith("C"):
        return char
    return f"⟨U+{ord(char):04X}⟩"


@pass_context
def when(context: Context, text: str | None) -> Markup:
    """A time by its age, with the time itself beside it for who points at it; a dash where there is none."""
    if not text:
        return Markup('<span class="none">&ndash;</span>')
    at, now = parse_iso(text), context["now"]
    assert isinstance(now, datetime)
    return Markup('<time datetime="%s" title="%s UTC">%s</time>') % (text, clock_time(text), age(at, now))


def clock_time(text: str) -> str:
    return f"{parse_iso(text):%Y-%m-%d %H:%M:%S}"


def age(at: datetime, now: datetime) -> str:
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1.0:
        return "now"
    span = said_seconds(abs(seconds) // 1)
    return f"{span.replace('.0', '')} ago" if seconds > 0 else f"in {span.replace('.0', '')}"


def words(text: str) -> str:
    """A word of ours for people: `missing_record` is `missing record`."""
    return text.replace("_", " ")


def part(text: str) -> str:
    """One segment of a path."""
    return quote(text, safe="")


def query(values: Mapping[str, object]) -> str:
    """The query of a link: what is set."""
    return urlencode({name: value for name, value in values.items() if value not in {None, ""}})


def compact(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FILTERS: Final[Mapping[str, Callable[..., str]]] = {
    "said": said,
    "when": when,
    "clock_time": clock_time,
    "words": words,
    "part": part,
    "query": query,
    "compact": compact,
    "span": said_seconds,
}
