"""How much Airtable takes: the rate per base, the calls of a month, the size of requests.

The clock is handed in with each question, so that a test can let 30 seconds pass at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.sandbox import airtable_errors as errors

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Limits:
    """Airtable's documented limits; None switches one off. A month's calls and a base's records depend on the plan."""

    requests_per_second: int | None = 5
    penalty_seconds: float = 30.0
    monthly_calls: int | None = None
    records: int | None = None
    body_bytes: int | None = 16 * 1024 * 1024
    url_characters: int | None = 16_000
    iterator_seconds: float | None = None


#: For tests that are about something else.
NO_LIMITS = Limits(requests_per_second=None, body_bytes=None, url_characters=None)


class RateLimit:
    """At most so many requests in any one second, by a window that slides; then none for the time of the penalty."""

    def __init__(self) -> None:
        self._taken: deque[float] = deque()
        self._refused_until: float | None = None

    def take(self, at: float, limits: Limits) -> None:
        """Let a request pass that came `at` this monotonic time, or raise `Refusal`."""
        if self._refused_until is not None:
            if at < self._refused_until:
                raise errors.rate_limit_reached()
            self._refused_until = None
        if limits.requests_per_second is None:
            return
        while self._taken and at - self._taken[0] >= 1.0:
            self._taken.popleft()
        if len(self._taken) >= limits.requests_per_second:
            self.refuse_until(at + limits.penalty_seconds)
            raise errors.rate_limit_reached()
        self._taken.append(at)

    def refuse_until(self, at: float) -> None:
        self._refused_until = at
        self._taken.clear()


@dataclass(slots=True)
class Calls:
    """What came in, counted. `month` may be set by hand: it is what the monthly quota is measured by."""

    month: int = 0
    """Calls of the record API let through in this calendar month (UTC)."""
    records: int = 0
    """Calls of the record API let through in all."""
    meta: int = 0
    rate_limited: int = 0
    over_quota: int = 0
    _counted: tuple[int, int] = (0, 0)

    def take(self, now: datetime, limits: Limits) -> None:
        """Count a call of the record API, or raise `Refusal` if the month's calls are used up."""
        this_month = (now.year, now.month)
        if self._counted != this_month:
            self.month = self.month if self._counted == (0, 0) else 0
            self._counted = this_month
        if limits.monthly_calls is not None and self.month >= limits.monthly_calls:
            self.over_quota += 1
            raise errors.billing_limit_exceeded()
        self.month += 1
        self.records += 1
