"""What a run shows for its batches: figures, status and failures, as they follow from them, each counted once."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from app.fields import Change
from app.model import BatchState, RunStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.fields import Value
    from app.policy.harvest import Batch


def rollup(batches: Sequence[Batch]) -> dict[str, Value]:
    """The run's figures and status as they follow from its batches, each counted once.

    Keys are names of fields; a figure that is not known yet has no key. Profiles are submitted once Apify has a run of
    them. The status and end follow from the batches that the kickoff ordered: a run without any keeps what its caller
    sets.
    """
    values: dict[str, Value] = {}
    batches = sorted(batches, key=lambda one: one.number)
    profiles = [one.profiles for one in batches if one.profiles is not None and one.apify_run_id is not None]
    items = [one.items for one in batches if one.items is not None]
    costs = [Decimal(repr(one.cost_usd)) for one in batches if one.cost_usd is not None]
    apify_runs = [one.apify_run_id for one in batches if one.apify_run_id is not None]
    webhooks = [one.last_webhook_at for one in batches if one.last_webhook_at is not None]
    if profiles:
        values["profiles_submitted"] = sum(profiles)
    if items:
        values["posts_harvested"] = sum(items)
    if costs:
        values["apify_api_costs"] = sum(costs, Decimal(0))
    if apify_runs:
        values["apify_run_ids"] = ", ".join(apify_runs)
        values["apify_status"] = _apify_status(batches)
    if webhooks:
        values["last_webhook"] = max(webhooks)
    ordered = [one for one in batches if one.was_ordered]
    if ordered:
        values["status"] = status_of(ordered)
        ended = all(one.outcome is not None for one in ordered)
        values["end_time"] = max((one.finished_at or "" for one in ordered), default="") or None if ended else None
    return values


def status_of(batches: Sequence[Batch]) -> RunStatus:
    if any(one.outcome is None for one in batches):
        return RunStatus.RUNNING
    succeeded = sum(one.outcome is BatchState.SUCCEEDED for one in batches)
    if succeeded == len(batches):
        return RunStatus.COMPLETED
    return RunStatus.COMPLETED_WITH_ERRORS if succeeded else RunStatus.FAILED


def _apify_status(batches: Sequence[Batch]) -> str:
    """The one status, or how many batches have each: `RUNNING 1, SUCCEEDED 2`."""
    statuses = [one.apify_status for one in batches if one.apify_status is not None]
    kinds = sorted(set(statuses))
    return kinds[0] if len(kinds) == 1 else ", ".join(f"{kind} {statuses.count(kind)}" for kind in kinds)


def run_change(
    before: Sequence[Batch],
    after: Sequence[Batch],
    *,
    failures: Sequence[str],
    known: Sequence[str],
    status_is_ours: bool,
) -> Change:
    """The update of the run that steps of its batches ask for: what changed, and the lines of what failed meanwhile."""
    old, new = rollup(before), rollup(after)
    changed = {name: value for name, value in new.items() if name in known and (name not in old or old[name] != value)}
    if not status_is_ours:
        changed.pop("status", None)
    append = {"error_details": tuple(failures)} if failures and "error_details" in known else {}
    return Change(set=changed, append=append)


def new_failure(before: Batch, after: Batch) -> tuple[str, ...]:
    """The line for a batch that has failed in this step, if it has: it stays true whatever becomes of the batch."""
    return (_failure_line(after),) if _has_failed(after) and not _has_failed(before) else ()


def _has_failed(batch: Batch) -> bool:
    return batch.outcome is not None and batch.outcome is not BatchState.SUCCEEDED


def _failure_line(batch: Batch) -> str:
    which = f"Apify run {batch.apify_run_id}" if batch.apify_run_id else "never started"
    how = (batch.outcome or batch.state).replace("_", " ")
    return f"Batch {batch.number} ({which}) {how}: {batch.cause or 'no reason given'}"
