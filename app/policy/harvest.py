"""How a batch moves through its states, and what its run shows for it. Pure: events and times come in, rows go out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from app.clock import iso
from app.fields import Change
from app.model import BatchState, RunStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from app.fields import Value

#: Apify's statuses of a run that has ended, and what they are here (documented list).
ENDED: Final[Mapping[str, BatchState]] = {
    "SUCCEEDED": BatchState.SUCCEEDED,
    "FAILED": BatchState.FAILED,
    "TIMED-OUT": BatchState.TIMED_OUT,
    "ABORTED": BatchState.ABORTED,
}
RESURRECTED: Final = "ACTOR.RUN.RESURRECTED"
_BEFORE_START: Final = (BatchState.QUEUED, BatchState.STARTING, BatchState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ActorRun:
    """What Apify said of one actor run: by webhook as it was when the event fired, by polling as it is."""

    id: str
    status: str
    actor_id: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    dataset_id: str | None = None
    status_message: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """An `ActorRun` and where it is from: `event` and `at` of a webhook, or fresh from the API."""

    run: ActorRun
    at: str
    event: str | None = None

    @property
    def is_fresh(self) -> bool:
        return self.event is None


@dataclass(frozen=True, slots=True)
class Batch:
    """A row of `batches`, without its input. `outcome` is how it ended, `None` while it has not."""

    id: int
    run_id: str
    number: int
    state: BatchState
    token: str | None = None
    actor_id: str | None = None
    profiles: int | None = None
    outcome: BatchState | None = None
    cause: str | None = None
    apify_run_id: str | None = None
    apify_status: str | None = None
    dataset_id: str | None = None
    items: int | None = None
    cost_usd: float | None = None
    duration_seconds: float | None = None
    status_message: str | None = None
    attempts: int = 0
    polls: int = 0
    due_at: str | None = None
    attempted_at: str | None = None
    started_at: str | None = None
    reopened_at: str | None = None
    finished_at: str | None = None
    measured_at: str | None = None
    last_webhook_at: str | None = None

    @property
    def was_ordered(self) -> bool:
        """It came with a kickoff; others start runs of their own and tell us of them by webhook."""
        return self.token is not None


@dataclass(frozen=True, slots=True)
class HarvestRules:
    """`[apify]` of the configuration. Seconds."""

    max_concurrent_runs: int
    poll_interval_seconds: float
    look_after_seconds: float
    settle_seconds: float


def reported(batch: Batch, report: Report, *, at: datetime, rules: HarvestRules) -> Batch:
    """`batch` after `report`; the same batch if the report is old news."""
    outcome = ENDED.get(report.run.status)
    if outcome is None:
        return _still_running(batch, report, at, rules)
    return _ended(batch, report, outcome, at, rules)


def _still_running(batch: Batch, report: Report, at: datetime, rules: HarvestRules) -> Batch:
    run = report.run
    if batch.outcome is not None:
        resurrected = report.is_fresh or (
            report.event == RESURRECTED and (batch.finished_at is None or report.at > batch.finished_at)
        )
        if not resurrected:
            return batch
        batch = replace(
            batch, outcome=None, cause=None, finished_at=None, measured_at=None, reopened_at=report.at, polls=0
        )
    elif report.event == RESURRECTED and (batch.reopened_at is None or report.at > batch.reopened_at):
        batch = replace(batch, reopened_at=report.at)
    return replace(
        batch,
        state=BatchState.RUNNING,
        apify_run_id=run.id,
        apify_status=run.status,
        actor_id=batch.actor_id or run.actor_id,
        dataset_id=run.dataset_id or batch.dataset_id,
        started_at=batch.started_at or run.started_at or iso(at),
        due_at=iso(at + poll_interval(batch.polls, rules)),
        cause=None,
    )


def _ended(batch: Batch, report: Report, outcome: BatchState, at: datetime, rules: HarvestRules) -> Batch:
    run = report.run
    finished_at = run.finished_at or report.at
    from_before_its_resurrection = batch.reopened_at is not None and finished_at <= batch.reopened_at
    if from_before_its_resurrection and not report.is_fresh:
        return batch
    ended_again = run.finished_at is not None and run.finished_at > (batch.finished_at or "")
    if batch.outcome is not None and not ended_again:
        return batch
    return replace(
        batch,
        state=outcome,
        outcome=outcome,
        apify_run_id=run.id,
        apify_status=run.status,
        actor_id=batch.actor_id or run.actor_id,
        dataset_id=run.dataset_id or batch.dataset_id,
        started_at=batch.started_at or run.started_at or iso(at),
        finished_at=finished_at,
        measured_at=None,
        status_message=run.status_message or batch.status_message,
        cause=None if outcome is BatchState.SUCCEEDED else run.status_message or f"Apify says {run.status}",
        due_at=iso(at + timedelta(seconds=rules.settle_seconds)),
        polls=0,
    )


#: Each look without news doubles the wait until the next, up to this many times the first.
_LONGEST_POLL_FACTOR: Final = 16


def poll_interval(polls: int, rules: HarvestRules) -> timedelta:
    return timedelta(seconds=rules.poll_interval_seconds * min(2**polls, _LONGEST_POLL_FACTOR))


# What a run shows for its batches -------------------------------------------------------------------------------


def rollup(batches: Sequence[Batch]) -> dict[str, Value]:
    """The run's figures and status as they follow from its batches, each counted once.

    Keys are names of fields; a figure that is not known yet has no key. The status and end follow from the batches
    that the kickoff ordered: a run without any keeps what its caller sets.
    """
    values: dict[str, Value] = {}
    profiles = [one.profiles for one in batches if one.profiles is not None]
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
    before: Sequence[Batch], after: Sequence[Batch], *, known: Sequence[str], status_is_ours: bool
) -> Change:
    """The update of the run that a step of its batches asks for: what changed, and a line for each new failure."""
    old, new = rollup(before), rollup(after)
    changed = {name: value for name, value in new.items() if name in known and (name not in old or old[name] != value)}
    if not status_is_ours:
        changed.pop("status", None)
    failed_before = {one.id for one in before if _has_failed(one)}
    lines = tuple(_failure_line(one) for one in after if _has_failed(one) and one.id not in failed_before)
    append = {"error_details": lines} if lines and "error_details" in known else {}
    return Change(set=changed, append=append)


def _has_failed(batch: Batch) -> bool:
    return batch.outcome is not None and batch.outcome is not BatchState.SUCCEEDED


def _failure_line(batch: Batch) -> str:
    which = f"Apify run {batch.apify_run_id}" if batch.apify_run_id else "never started"
    how = (batch.outcome or batch.state).replace("_", " ")
    return f"Batch {batch.number} ({which}) {how}: {batch.cause or 'no reason given'}"
