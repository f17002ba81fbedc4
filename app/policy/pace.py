"""How fast to go: the limit of a base, the rests that it asks for, and how it behaves as a whole."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from app.policy.delivery import Denied, QuotaExhausted, RateLimited, Refused, Unknown, Written

if TYPE_CHECKING:
    from app.policy.delivery import Answer, RetryRules

#: Requests are spaced over a little more than a second: what leaves in order may arrive bunched.
WINDOW_SECONDS: Final = 1.04
#: Beyond the documented 30 s, because ours start when the refusal arrives and theirs when it leaves.
_PAUSE_MARGIN_SECONDS: Final = 0.5
#: Calls in a row without a sound answer, from different runs, before the whole base is given a rest.
_FAILURES_BEFORE_REST: Final = 3
_LONGEST_REST_SECONDS: Final = 60.0


@dataclass(slots=True)
class RequestWindow:
    """A strict sliding window over one base's requests, and the rests that the base asked for.

    Written by hand: the kept limiters are leaky buckets (aiolimiter), which let twice the limit through in some
    second, or keep time by a clock of their own. Times are monotonic seconds.
    """

    per_second: int
    _sent: deque[float] = field(default_factory=deque)
    _rests_until: float = float("-inf")

    def delay(self, now: float) -> float:
        """Seconds until one more request may leave; 0 when it may now."""
        free_at = self._sent[0] + WINDOW_SECONDS if len(self._sent) >= self.per_second else now
        return max(0.0, free_at - now, self._rests_until - now)

    def take(self, now: float) -> None:
        """Count a request that leaves now."""
        if len(self._sent) >= self.per_second:
            self._sent.popleft()
        self._sent.append(now)

    def fill(self, now: float) -> None:
        """Count as many requests as a second holds: what an unclean stop may have sent just before."""
        self._sent = deque([now] * self.per_second)

    def rest(self, now: float, seconds: float) -> None:
        """Let nothing leave for `seconds`; a longer rest that was asked for before stands."""
        self._rests_until = max(self._rests_until, now + seconds)

    def rests_for(self, now: float) -> float:
        return max(0.0, self._rests_until - now)


@dataclass(frozen=True, slots=True)
class PauseRules:
    rate_limit_pause_seconds: float
    quota_pause_seconds: float


@dataclass(slots=True)
class BaseHealth:
    """How the base as a whole behaves, from one answer to the next. Rests grow while nobody gets a sound answer."""

    failures: int = 0
    trouble: str | None = None

    def rest_after(self, answer: Answer, pauses: PauseRules, rules: RetryRules) -> float:
        """Seconds for which nothing should be sent to this base after `answer`."""
        match answer:
            case Written() | Refused():
                self.failures, self.trouble = 0, None
                return 0.0
            case RateLimited():
                return pauses.rate_limit_pause_seconds + _PAUSE_MARGIN_SECONDS
            case QuotaExhausted(cause):
                self.trouble = f"Airtable's monthly calls are used up: {cause}"
                return pauses.quota_pause_seconds
            case Denied(status, cause):
                self.failures += 1
                self.trouble = f"Airtable denies access ({status}): {cause}"
                return self._growing(self.failures, rules)
            case Unknown(cause, _, retry_after):
                self.failures += 1
                asked = min(retry_after or 0.0, _LONGEST_REST_SECONDS)
                if self.failures < _FAILURES_BEFORE_REST:
                    return asked
                self.trouble = f"Airtable has not answered soundly {self.failures} times in a row: {cause}"
                return max(asked, self._growing(self.failures - _FAILURES_BEFORE_REST + 1, rules))

    def _growing(self, failures: int, rules: RetryRules) -> float:
        return min(rules.backoff_base_seconds * 2.0 ** min(failures - 1, 62), _LONGEST_REST_SECONDS)
