"""How fast to go: the limit of a base, the rests that it asks for, and how it behaves as a whole."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from app.policy.asking import Described, Listed
from app.policy.delivery import Denied, QuotaExhausted, RateLimited, Refused, Unknown, Written

if TYPE_CHECKING:
    from app.policy.asking import AskedAnswer
    from app.policy.delivery import Answer, RetryRules

#: The limit is per second; the rest covers the way of a request that was quicker than the quickest we timed.
WINDOW_SECONDS: Final = 1.04
#: A request without an answer may still be on its way: it is counted for this much longer than a second.
UNANSWERED_SECONDS: Final = 1.0
#: Sound answers whose times tell how long the base takes at the least: a minute's at the full rate, so that a machine
#: or a network that is busy for some seconds, and then no more, does not send six in one. And how many of them it takes
#: to tell: the first ones met new connections, and by their times a request would seem to have arrived long before.
_TIMED: Final = 300
_TELLING: Final = 8
#: Beyond the documented 30 s, because ours start when the refusal arrives and theirs when it leaves.
_PAUSE_MARGIN_SECONDS: Final = 0.5
#: Calls in a row without a sound answer before the whole base is given a rest.
_FAILURES_BEFORE_REST: Final = 3
_LONGEST_REST_SECONDS: Final = 60.0


@dataclass(slots=True, eq=False)
class Departure:
    """A request that left. Until `counts_until` the base may count it into the second that begins now."""

    left_at: float
    counts_until: float


@dataclass(slots=True)
class RequestWindow:
    """A strict sliding window over one base's requests, and the rests that the base asked for.

    The base counts arrivals, and we see only departures and answers: a request that met a new connection or a busy
    machine arrives late, and five more after it would be too many. So each is counted from the latest moment at which
    it can have arrived, which is its answer less the time that the base takes at the least. That time is the quickest
    that was seen lately. Only a request that is quicker on its way than that one, by more than `WINDOW_SECONDS` allows
    for, can be one too many.

    Written by hand: the kept limiters are leaky buckets (aiolimiter), which let twice the limit through in some
    second, or keep time by a clock of their own, and none looks at answers. Times are monotonic seconds.
    """

    per_second: int
    _departures: list[Departure] = field(default_factory=list)
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMED))
    _rests_until: float = float("-inf")

    def delay(self, now: float) -> float:
        """Seconds until one more request may leave; 0 when it may now."""
        counting = sorted((one.counts_until for one in self._departures), reverse=True)
        free_at = counting[self.per_second - 1] if len(counting) >= self.per_second else now
        return max(0.0, free_at - now, self._rests_until - now)

    def leave(self, now: float) -> Departure:
        """Count a request that leaves now."""
        self._departures = [one for one in self._departures if one.counts_until > now]
        departure = Departure(now, now + WINDOW_SECONDS + UNANSWERED_SECONDS)
        self._departures.append(departure)
        return departure

    def answered(self, departure: Departure, now: float, *, soundly: bool) -> None:
        """Learn from the answer when the request arrived at the latest; a refusal tells nothing of the base's pace."""
        at_the_least = min(self._took) if len(self._took) >= _TELLING else 0.0
        arrived_by = max(departure.left_at, now - at_the_least)
        departure.counts_until = arrived_by + WINDOW_SECONDS
        if departure not in self._departures:  # it was given up for arrived long ago
            self._departures.append(departure)
        if soundly:
            self._took.append(now - departure.left_at)

    def fill(self, now: float) -> None:
        """Count as many requests as a second holds: what we may have sent just before a restart."""
        self._departures = [Departure(now, now + WINDOW_SECONDS) for _ in range(self.per_second)]

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
    _failed_alone: str | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the last answer was a sound one."""
        return self.failures == 0

    def rest_after(
        self, answer: Answer | AskedAnswer, pauses: PauseRules, rules: RetryRules, *, alone: str | None = None
    ) -> float:
        """Seconds for which nothing should be sent to this base after `answer`.

        `alone` is the run that the request was for, if it was for one: what a stranger says to it again and again may
        be said to it alone. It waits by itself, and no other run for it.
        """
        again = (
            isinstance(answer, Unknown) and answer.is_strangers and alone is not None and alone == self._failed_alone
        )
        self._failed_alone = alone if isinstance(answer, Unknown) else None
        match answer:
            case Written() | Refused() | Listed() | Described():
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
                own = 0.0 if again else self._growing(self.failures - _FAILURES_BEFORE_REST + 1, rules)
                return max(asked, own)

    def _growing(self, failures: int, rules: RetryRules) -> float:
        return min(rules.backoff_base_seconds * 2.0 ** min(failures - 1, 62), _LONGEST_REST_SECONDS)
