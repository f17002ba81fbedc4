"""Whether all is well, in plain sentences: a pure function from what is counted to what needs eyes.

What is said here must not change with every second, because screen readers speak it whenever it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from app.policy.budget import BudgetState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from app.store.views import CallCounts, Counts

#: A message that waits longer than this waits for more than its turn: the longest ordinary rest is half a minute.
LONG_WAIT_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How the loops stand at this moment."""

    trouble: str | None
    rests_for_seconds: float
    schema_flaws: Sequence[str]
    is_checking: bool


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing that is not well: what it is, what follows from it, and where to go."""

    text: str
    advice: str
    link: str


#: Each kind of open error, for one and for many, and what to do about it.
_ERRORS: Final[Mapping[str, tuple[str, str, str]]] = {
    "missing_record": (
        "{} run is missing: its kickoff did not create a record",
        "{} runs are missing: their kickoff did not create a record",
        "The updates are held. See what was probably meant, and send the kickoff.",
    ),
    "unmatched_webhook": (
        "{} webhook of Apify belongs to no known run",
        "{} webhooks of Apify belong to no known run",
        "Held until the batch is known.",
    ),
    "duplicate_record": (
        "{} run has more than one record in Airtable",
        "{} runs have more than one record in Airtable",
        "Delete the wrong ones there.",
    ),
    "rejected": (
        "{} refusal by Airtable is open",
        "{} refusals by Airtable are open",
        "Mend the cause, then retry what was set aside.",
    ),
    "record_deleted": (
        "{} record was deleted in Airtable",
        "{} records were deleted in Airtable",
        "Restore from Airtable's trash, or resolve the error.",
    ),
    "drift": (
        "{} record differs from what was delivered",
        "{} records differ from what was delivered",
        "Changed in Airtable by somebody: deliver again, or resolve.",
    ),
    "unknown_record": (
        "{} record in Airtable belongs to no known run",
        "{} records in Airtable belong to no known run",
        "Made by hand, or by another program.",
    ),
}


def concerns(counts: Counts, standing: Standing) -> list[Concern]:
    """What is not well, missing records first; nothing where all is."""
    return [
        *_of_errors(counts),
        *_of_messages(counts),
        *_of_loops(standing),
        *_of_budget(counts.calls_this_month),
        *_of_check(counts),
    ]


def _of_errors(counts: Counts) -> Iterator[Concern]:
    kinds = [*_ERRORS, *(kind for kind in counts.open_errors if kind not in _ERRORS)]
    for kind in kinds:
        if number := counts.open_errors.get(kind, 0):
            one, many, advice = _ERRORS.get(kind, (f"Errors of the kind {kind}: {{}}",) * 2 + ("See what they are.",))
            text = (one if number == 1 else many).format(f"{number:,}")
            yield Concern(text, advice, f"/page/errors?kind={kind}&state=open")


def _of_messages(counts: Counts) -> Iterator[Concern]:
    if counts.dead:
        text = "1 message was set aside" if counts.dead == 1 else f"{counts.dead:,} messages were set aside"
        yield Concern(text, "Not sent again until somebody retries.", "/page/outbox?state=dead")
    if (counts.oldest_pending_seconds or 0.0) > LONG_WAIT_SECONDS:
        yield Concern(
            f"a message has waited for more than {LONG_WAIT_SECONDS / 60:.0f} minutes",
            "See what it waits for.",
            "/page/outbox?state=pending",
        )


def _of_loops(standing: Standing) -> Iterator[Concern]:
    if standing.trouble:
        yield Concern("nothing reaches Airtable", standing.trouble, "/page/outbox?state=pending")
    for flaw in standing.schema_flaws:
        yield Concern("the table in Airtable does not fit the registry", flaw, "/page/check")


def _of_budget(calls: CallCounts) -> Iterator[Concern]:
    if calls.state in {BudgetState.RESERVED, BudgetState.SPENT}:
        what = "all that is accepted waits" if calls.state == BudgetState.SPENT else "updates wait"
        until = f" until {calls.updates_wait_until[:10]}" if calls.updates_wait_until else ""
        yield Concern(
            "this month's Airtable calls are used up",
            f"{calls.total:,} of {calls.budget:,}: {what}{until}, or for a higher [airtable] monthly_call_budget.",
            "/page/outbox",
        )


def _of_check(counts: Counts) -> Iterator[Concern]:
    if counts.last_check is not None and counts.last_check.trouble:
        yield Concern("the last check against Airtable could not finish", counts.last_check.trouble, "/page/check")


def headline(found: Sequence[Concern]) -> str:
    if not found:
        return "All is well"
    return "One thing needs eyes" if len(found) == 1 else f"{len(found)} things need eyes"
