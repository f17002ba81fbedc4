"""How to make the month's calls last: what has been spent, what that comes to, and who may spend what is left.

Calls are spent along a straight line through the month (UTC). Below it nothing changes. Once the forecast passes it,
ordinary updates wait until the line has caught up, and all that comes meanwhile rides along in the same calls: the
linger grows by itself, and by no more than is needed. The last twentieth is for creates and look-ups of missing runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import Final

#: The share of the month's calls that is kept for creates and errors.
RESERVED_SHARE: Final = 0.05
#: The first day counts as a whole one: what is spent in its first hours says little of the month.
_FIRST: Final = timedelta(days=1)


class BudgetState(StrEnum):
    """Who may spend a call: all; updates when their time comes; creates and look-ups only; nobody this month."""

    AMPLE = "ample"
    STRETCHED = "stretched"
    RESERVED = "reserved"
    SPENT = "spent"


@dataclass(frozen=True, slots=True)
class Allowance:
    """Who may spend calls now, and until when updates wait otherwise."""

    state: BudgetState = BudgetState.AMPLE
    updates_wait_until: datetime | None = None

    @property
    def updates_wait(self) -> bool:
        return self.updates_wait_until is not None

    @property
    def shortage(self) -> str | None:
        """What is held back until the month turns, for a person; `None` while everything gets its turn."""
        if self.updates_wait_until is None or self.state is BudgetState.STRETCHED:
            return None
        until = f"{self.updates_wait_until:%Y-%m-%d} or a higher [airtable] monthly_call_budget"
        if self.state is BudgetState.SPENT:
            return f"the month's calls are used up: nothing is sent until {until}"
        return f"what is left of the month's calls is kept for creates and errors: updates wait until {until}"


def month_of(at: datetime) -> datetime:
    """The first of its month, 00:00 UTC."""
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(at: datetime) -> datetime:
    return month_of(month_of(at) + timedelta(days=31))


def forecast(used: int, at: datetime) -> int:
    """The calls at the month's end if the rest of it goes as what has passed."""
    start = month_of(at)
    return round(used * ((next_month(at) - start) / max(at - start, _FIRST)))


def allowance(budget: int, used: int, at: datetime) -> Allowance:
    """Who may spend the next call, after `used` of this month's `budget`; a budget of 0 is none."""
    if not budget:
        return Allowance()
    start, end = month_of(at), next_month(at)
    if used >= budget:
        return Allowance(BudgetState.SPENT, end)
    ordinary = budget - ceil(RESERVED_SHARE * budget)
    if used >= ordinary:
        return Allowance(BudgetState.RESERVED, end)
    until = start + (end - start) * ((used + 1) / ordinary)
    if until <= max(at, start + _FIRST):
        return Allowance()
    return Allowance(BudgetState.STRETCHED, min(until, end))
