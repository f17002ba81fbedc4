"""Who is at the page: signed cookies, the tokens of their forms, and how often a sign-in may be tried.

A cookie holds a name, an id and an end, signed by a key that is derived from the token that was typed. The token is
nowhere in it, and taking a token away ends the sessions that it opened. Knows nothing of pages and requests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.clock import Clock

SESSION_SECONDS: Final = 12 * 3600
MOST_NAME: Final = 60
#: Cookies of ours are far shorter; what is longer is not looked at.
_MOST_COOKIE: Final = 2_000
_SALT: Final = b"run-records page session"


@dataclass(frozen=True, slots=True)
class Session:
    """`expires_at` is Unix time. `csrf` goes into each form of this session, and no other session's form has it."""

    id: str
    name: str
    expires_at: int
    csrf: str


class Sessions:
    """Opens, reads and ends sessions. Without tokens (possible only on loopback) one is open for whoever comes."""

    def __init__(self, tokens: Sequence[str], clock: Clock, new_token: Callable[[], str]) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._clock = clock
        self._new_token = new_token
        self._own_key = new_token()
        self._ended: dict[str, int] = {}

    @property
    def needs_token(self) -> bool:
        return bool(self._tokens)

    @cached_property
    def _keys(self) -> list[bytes]:
        # Slow on purpose: a cookie must not be a quick way to try tokens.
        return [
            hashlib.scrypt(token, salt=_SALT, n=2**14, r=8, p=1, dklen=32)
            for token in self._tokens or [self._own_key.encode()]
        ]

    def open(self, token: str, name: str) -> str | None:
        """The cookie of a new session; `None` where the token is not ours."""
        offered = token.strip().encode("utf-8", errors="surrogatepass")
        # Every token is compared, so that the time tells nothing of which one was close.
        matches = [hmac.compare_digest(offered, one) for one in self._tokens]
        if self._tokens and not any(matches):
            return None
        key = self._keys[matches.index(True) if matches else 0]
        body = _text(json.dumps([self._new_token(), name, self._now() + SESSION_SECONDS]).encode())
        return f"{body}.{_sign(key, 'session', body)}"

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; `None` where it is not ours, has expired or was ended."""
        if not cookie or len(cookie) > _MOST_COOKIE or not cookie.isascii():
            return None
        body, _, signature = cookie.partition(".")
        key = next((one for one in self._keys if hmac.compare_digest(_sign(one, "session", body), signature)), None)
        if key is None:
            return None
        session_id, name, expires_at = json.loads(base64.urlsafe_b64decode(body + "=="))
        if expires_at <= self._now() or session_id in self._ended:
            return None
        return Session(session_id, name, expires_at, _sign(key, "form", session_id))

    def end(self, session: Session) -> None:
        """From now on its cookie opens nothing here, whoever kept a copy; a restart forgets that."""
        self._ended = {one: until for one, until in self._ended.items() if until > self._now()}
        self._ended[session.id] = session.expires_at

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def is_form_of(session: Session, csrf: str) -> bool:
    """Whether a form carries this session's own token."""
    return hmac.compare_digest(session.csrf.encode(), csrf.encode("utf-8", errors="surrogatepass"))


def clean_name(name: str) -> str:
    """A name for the record: on one line, without what controls how text is shown, and not long."""
    kept = "".join(" " if char.isspace() else char for char in name if _is_shown(char))
    return " ".join(kept.split())[:MOST_NAME]


def _is_shown(char: str) -> bool:
    return char.isspace() or not unicodedata.category(char).startswith("C")


def _sign(key: bytes, purpose: str, body: str) -> str:
    return _text(hmac.digest(key, f"{purpose} {body}".encode(), "sha256"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")  # which browsers would have to quote


@dataclass(slots=True)
class Attempts:
    """Failed sign-ins by where they came from: after a few, each next one has to wait, twice as long every time."""

    clock: Clock
    _failures: dict[str, tuple[int, float]] = field(default_factory=dict)

    def wait(self, peer: str) -> float:
        """Seconds until this peer may try again; 0 when it may now."""
        _, until = self._failures.get(peer, (0, 0.0))
        return max(0.0, until - self.clock.monotonic())

    def failed(self, peer: str) -> None:
        count = self._failures.pop(peer, (0, 0.0))[0] + 1
        pause = min(2.0 ** (count - FREE_ATTEMPTS), LONGEST_PAUSE) if count >= FREE_ATTEMPTS else 0.0
        self._failures[peer] = (count, self.clock.monotonic() + pause)
        if len(self._failures) > _MOST_PEERS:
            del self._failures[next(iter(self._failures))]

    def succeeded(self, peer: str) -> None:
        self._failures.pop(peer, None)


#: Slips of a person that cost nothing.
FREE_ATTEMPTS: Final = 5
LONGEST_PAUSE: Final = 60.0
_MOST_PEERS: Final = 1_000
