"""How often a missing run is looked for: soon at first, then ever less."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

FIRST_PAUSE: Final = timedelta(minutes=1)
LONGEST_PAUSE: Final = timedelta(hours=24)
_LONGEST_AFTER_REFUSAL: Final = timedelta(hours=1)
_MOST_DOUBLINGS: Final = 12  # more would overflow, and are longer than the longest pause


def look_pause(looks: int) -> timedelta:
    """The pause after a look that found nothing, when there were `looks` before it."""
    return min(_doubled(looks), LONGEST_PAUSE)


def refused_pause(refusals: int) -> timedelta:
    """The pause when Airtable did not tell, as it had not `refusals` times in a row before."""
    return min(_doubled(refusals), _LONGEST_AFTER_REFUSAL)


def _doubled(times: int) -> timedelta:
    return FIRST_PAUSE * (1 << min(times, _MOST_DOUBLINGS))
