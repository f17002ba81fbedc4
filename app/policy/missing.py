"""How often a missing run is looked for: soon at first, then ever less."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

FIRST_PAUSE: Final = timedelta(minutes=1)
LONGEST_PAUSE: Final = timedelta(hours=24)
_MOST_DOUBLINGS: Final = 12  # more would overflow, and are longer than the longest pause


def look_pause(looks: int) -> timedelta:
    """The pause after a look that found nothing, when there were `looks` before it."""
    doubled = FIRST_PAUSE * (1 << min(looks, _MOST_DOUBLINGS))
    return min(doubled, LONGEST_PAUSE)
