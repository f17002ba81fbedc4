"""What can go wrong, with its HTTP status and advice. One class a kind; nothing here knows HTTP's machinery.

The members are those of RFC 9457 (problem details): `type` is stable and meant for programs, `detail` says to a
person what to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TYPE_PREFIX = "urn:runrecords:problem:"
#: Flaws of one request that are told; the others are counted, so that no request makes us write a book.
MOST_FLAWS = 20
#: Characters of a word that a hint is looked for: no longer one was meant for a name of ours.
_MOST_HINTED = 100


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong with a request: where (a JSON pointer, RFC 6901) and what to change."""

    pointer: str
    detail: str


class Problem(Exception):
    """Something to tell a caller. Subclasses fix `status`, `slug` and `title`."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    #: Headers that its answer carries besides.
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, *, flaws: Iterable[Flaw] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.flaws = tuple(flaws)

    @property
    def type(self) -> str:
        return TYPE_PREFIX + self.slug


class Malformed(Problem):
    status, slug, title = 400, "malformed", "The request cannot be read"


class Unauthorized(Problem):
    status, slug, title = 401, "unauthorized", "A valid bearer token is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(Problem):
    status, slug, title = 403, "forbidden", "Not from here"


class NotFound(Problem):
    status, slug, title = 404, "not-found", "There is no such thing"


class MethodNotAllowed(Problem):
    status, slug, title = 405, "method-not-allowed", "This address does not take this method"


class TooSlow(Problem):
    status, slug, title = 408, "too-slow", "The request took too long to arrive"


class Conflict(Problem):
    status, slug, title = 409, "conflict", "It is not in a state for that"


class TooLarge(Problem):
    status, slug, title = 413, "too-large", "The request is too large"


class UnsupportedMediaType(Problem):
    status, slug, title = 415, "unsupported-media-type", "The body must be JSON"


class UnsupportedEncoding(Problem):
    """RFC 9110, 15.5.16: `Accept-Encoding` says what would have been taken."""

    status, slug, title = 415, "unsupported-encoding", "The body must not be packed"
    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}


class Invalid(Problem):
    status, slug, title = 422, "invalid", "The request asks for something impossible"

    @classmethod
    def because(cls, flaws: Iterable[Flaw], more: int = 0) -> Invalid:
        """Of `flaws`, the first `MOST_FLAWS` are told; the others, and `more` that nobody wrote down, are counted."""
        found = tuple(flaws)
        told, more = found[:MOST_FLAWS], more + len(found[MOST_FLAWS:])
        if more:
            told = (*told, Flaw("", f"and {more:,} more"))
        return cls("; ".join(flaw.detail for flaw in told), flaws=told)


class IdempotencyKeyReused(Problem):
    status, slug, title = 422, "idempotency-key-reused", "The Idempotency-Key belongs to another request"


class Overloaded(Problem):
    status, slug, title = 503, "overloaded", "Too much waits already"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}


class Stopping(Problem):
    status, slug, title = 503, "stopping", "The service is stopping"


class StoreUnavailable(Problem):
    """The store could not commit: nothing was kept, so the caller should send again."""

    status, slug, title = 503, "store-unavailable", "The request could not be stored"


class ConfigError(Exception):
    """A setting is wrong, missing or unknown; the text says which, and what to change."""


class StoreError(Exception):
    """The database cannot be used as it is (foreign, newer, changed, damaged); the text says what to do."""


class StoreLocked(StoreError):
    """Another process writes the store."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The closest known word as a question to end a sentence with, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6) if len(word) <= _MOST_HINTED else ()
    return f"; did you mean {close[0]!r}?" if close else ""
