"""How a batch moves through its states, and what its run shows for it. Pure: events and times come in, rows go out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from app.clock import iso, parse_iso
from app.model import BatchState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


#: Apify's statuses of a run that has ended, and what they are here (documented list).
ENDED: Final[Mapping[str, BatchState]] = {
    "SUCCEEDED": BatchState.SUCCEEDED,
    "FAILED": BatchState.FAILED,
    "TIMED-OUT": BatchState.TIMED_OUT,
    "ABORTED": BatchState.ABORTED,
}
CREATED: Final = "ACTOR.RUN.CREATED"
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


# What can happen to a batch -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """Apify answered the start."""

    run: ActorRun


@dataclass(frozen=True, slots=True)
class StartLost:
    """The start was sent and its answer lost: the run may exist."""

    cause: str


@dataclass(frozen=True, slots=True)
class StartPostponed:
    """The start did not happen for a reason that passes (a full plan, no connection): it costs no attempt."""

    cause: str


@dataclass(frozen=True, slots=True)
class StartRefused:
    """Apify will not run this, however often it is asked."""

    cause: str


@dataclass(frozen=True, slots=True)
class Found:
    """A look at Apify's runs found the one that a lost start had made."""

    run: ActorRun


@dataclass(frozen=True, slots=True)
class NoneFound:
    """A complete list of the actor's runs since the attempt, begun at `listed_at`, holds none that is this batch's."""

    listed_at: datetime


@dataclass(frozen=True, slots=True)
class LookFailed:
    """Apify could not be asked: nothing is known that was not known before."""

    cause: str


@dataclass(frozen=True, slots=True)
class Vanished:
    """Apify no longer has the run (deleted by its retention, or by hand)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The run and its figures as they are now; `cost_usd` stays `None` as long as Apify has not settled it."""

    run: ActorRun
    items: int | None
    cost_usd: float | None
    duration_seconds: float | None


BatchEvent: TypeAlias = (
    Report | Started | StartLost | StartPostponed | StartRefused | Found | NoneFound | LookFailed | Vanished | Measured
)


def after(batch: Batch, event: BatchEvent, *, at: datetime, rules: HarvestRules) -> Batch:
    """`batch` after a step of the harvest loop brought `event`, with its next step due if it has one."""
    moved = _moved(batch, event, at, rules)
    if moved.due_at is None and has_next_step(moved):
        return replace(moved, due_at=iso(at + poll_interval(moved.polls, rules)))
    return moved


def has_next_step(batch: Batch) -> bool:
    """Whether there is something left to ask Apify: not once it is measured, or failed without ever being a run."""
    return batch.state is not BatchState.MEASURED and (batch.outcome is None or batch.apify_run_id is not None)


def _moved(  # noqa: PLR0911 - a table of events, a line or two each
    batch: Batch, event: BatchEvent, at: datetime, rules: HarvestRules
) -> Batch:
    match event:
        case Report():
            return reported(batch, event, at=at, rules=rules)
        case Started(run):
            return reported(batch, Report(run, iso(at), CREATED), at=at, rules=rules)
        case Found(run):
            found = reported(batch, Report(run, iso(at), CREATED), at=at, rules=rules)
            return found if found is batch else replace(found, due_at=iso(at))  # how it stands is asked at once
        case Measured():
            return _measured(batch, event, at, rules)
        case Vanished():
            return _vanished(batch, at)
        case LookFailed(cause):
            return _look_failed(batch, cause, at, rules)
        case NoneFound():
            return _none_found(batch, event, at, rules) if batch.state is BatchState.UNKNOWN else batch
        case StartLost() | StartPostponed() | StartRefused():
            return _not_started(batch, event, at, rules) if batch.state in _BEFORE_START else batch


def _not_started(
    batch: Batch, event: StartLost | StartPostponed | StartRefused, at: datetime, rules: HarvestRules
) -> Batch:
    match event:
        case StartLost(cause):
            return replace(batch, state=BatchState.UNKNOWN, cause=cause, polls=0, due_at=iso(at + first_look(rules)))
        case StartPostponed(cause):
            return replace(
                batch,
                state=BatchState.QUEUED,
                cause=cause,
                attempts=max(0, batch.attempts - 1),
                polls=batch.polls + 1,
                due_at=iso(at + poll_interval(batch.polls, rules)),
            )
        case StartRefused(cause):
            return replace(
                batch,
                state=BatchState.FAILED,
                outcome=BatchState.FAILED,
                cause=cause,
                finished_at=iso(at),
                due_at=None,
            )


#: A lost start is looked for this soon; most are found then, and the rest when it is certain that there is none.
_FIRST_LOOK_SECONDS: Final = 5.0


def first_look(rules: HarvestRules) -> timedelta:
    return timedelta(seconds=min(_FIRST_LOOK_SECONDS, rules.look_after_seconds))


#: How far ahead of Apify's clock ours may have been at an attempt.
_LOOK_BACK: Final = timedelta(days=1)


def looked_through_since(batch: Batch, at: datetime) -> datetime:
    """A run that started before then is not the batch's, whatever the clocks said at its attempt and say now."""
    assert batch.attempted_at is not None, "only a batch that was tried is looked for"
    return min(parse_iso(batch.attempted_at), at) - _LOOK_BACK


def _none_found(batch: Batch, event: NoneFound, at: datetime, rules: HarvestRules) -> Batch:
    """A list shows a run late: only one begun `look_after_seconds` past the attempt proves that there is none."""
    assert batch.attempted_at is not None, "only a batch that was tried is looked for"
    certain_at = parse_iso(batch.attempted_at) + timedelta(seconds=rules.look_after_seconds)
    if event.listed_at < certain_at:
        soon = at + timedelta(seconds=rules.look_after_seconds)  # the attempt is ahead where the clock was set back
        return replace(batch, due_at=iso(min(max(certain_at, at), soon)))
    return replace(batch, state=BatchState.QUEUED, cause=None, polls=0, due_at=iso(at))


def _look_failed(batch: Batch, cause: str, at: datetime, rules: HarvestRules) -> Batch:
    if not has_next_step(batch):
        return batch
    return replace(
        batch,
        polls=batch.polls + 1,
        cause=cause if batch.outcome is None else batch.cause,  # why it failed outlives that nobody could be asked
        due_at=iso(at + poll_interval(batch.polls, rules)),
    )


#: Times that the figures are asked for before a cost that Apify never settles is left open.
MOST_MEASURES: Final = 5


def _measured(batch: Batch, event: Measured, at: datetime, rules: HarvestRules) -> Batch:
    if batch.outcome is None or not has_next_step(batch):
        return batch
    outcome = ENDED.get(event.run.status)
    if outcome is None:
        return _still_running(_reopened(batch, batch.finished_at), Report(event.run, iso(at)), at, rules)
    if _is_from_before_its_resurrection(batch, event.run.finished_at):
        return batch
    if _ended_again(batch, event.run):
        return _ended(batch, Report(event.run, iso(at)), outcome, at, rules)
    if event.cost_usd is None and batch.polls + 1 < MOST_MEASURES:
        again = iso(at + timedelta(seconds=max(rules.settle_seconds, 1.0)))
        return replace(batch, polls=batch.polls + 1, due_at=again)
    return replace(
        batch,
        state=BatchState.MEASURED,
        measured_at=iso(at),
        items=event.items,
        cost_usd=event.cost_usd,
        duration_seconds=event.duration_seconds,
        status_message=event.run.status_message or batch.status_message,
        due_at=None,
        polls=0,
    )


def _vanished(batch: Batch, at: datetime) -> Batch:
    """What is gone cannot be measured: the batch ends with what is known of it."""
    if batch.apify_run_id is None or not has_next_step(batch):
        return batch
    gone = f"Apify no longer has run {batch.apify_run_id}: its figures are unknown"
    return replace(
        batch,
        state=BatchState.MEASURED,
        outcome=batch.outcome or BatchState.FAILED,
        cause=f"{batch.cause}; {gone}" if batch.outcome is not None and batch.cause else gone,
        finished_at=batch.finished_at or iso(at),
        measured_at=iso(at),
        due_at=None,
    )


def reported(batch: Batch, report: Report, *, at: datetime, rules: HarvestRules) -> Batch:
    """`batch` after `report`; the same batch if the report is old news, or about another run than this one is."""
    if batch.apify_run_id not in {None, report.run.id}:
        return batch
    outcome = ENDED.get(report.run.status)
    if outcome is None:
        return _running(batch, report, at, rules)
    if _is_from_before_its_resurrection(batch, report.run.finished_at or report.at):
        return batch
    if batch.outcome is None or batch.apify_run_id is None or _ended_again(batch, report.run):
        return _ended(batch, report, outcome, at, rules)
    return batch


def _running(batch: Batch, report: Report, at: datetime, rules: HarvestRules) -> Batch:
    if batch.apify_run_id is None:
        return _still_running(replace(batch, outcome=None, finished_at=None), report, at, rules)
    if batch.outcome is not None:
        # A look that was under way when the end was reported says `RUNNING` too: only Apify's word takes an end back.
        resurrected = report.event == RESURRECTED and report.at > (batch.finished_at or "")
        return _still_running(_reopened(batch, report.at), report, at, rules) if resurrected else batch
    if report.event == RESURRECTED:
        # Its first end is still on its way to us, and late by now.
        batch = replace(batch, reopened_at=max(report.at, batch.reopened_at or ""))
    return batch if report.event == CREATED else _still_running(batch, report, at, rules)


def _reopened(batch: Batch, reopened_at: str | None) -> Batch:
    return replace(
        batch, outcome=None, cause=None, finished_at=None, measured_at=None, reopened_at=reopened_at, polls=0
    )


def _still_running(batch: Batch, report: Report, at: datetime, rules: HarvestRules) -> Batch:
    run = report.run
    polls = batch.polls + 1 if report.is_fresh else 0
    return replace(
        batch,
        state=BatchState.RUNNING,
        apify_run_id=run.id,
        apify_status=run.status,
        actor_id=batch.actor_id or run.actor_id,
        dataset_id=run.dataset_id or batch.dataset_id,
        started_at=batch.started_at or run.started_at or iso(at),
        due_at=iso(at + poll_interval(polls, rules)),
        polls=polls,
        cause=None,
    )


def _is_from_before_its_resurrection(batch: Batch, finished_at: str | None) -> bool:
    return batch.reopened_at is not None and finished_at is not None and finished_at <= batch.reopened_at


def _ended_again(batch: Batch, run: ActorRun) -> bool:
    return run.finished_at is not None and run.finished_at > (batch.finished_at or "")


def _ended(batch: Batch, report: Report, outcome: BatchState, at: datetime, rules: HarvestRules) -> Batch:
    run = report.run
    return replace(
        batch,
        state=outcome,
        outcome=outcome,
        apify_run_id=run.id,
        apify_status=run.status,
        actor_id=batch.actor_id or run.actor_id,
        dataset_id=run.dataset_id or batch.dataset_id,
        started_at=batch.started_at or run.started_at or iso(at),
        finished_at=run.finished_at or report.at,
        measured_at=None,
        status_message=run.status_message or batch.status_message,
        cause=None if outcome is BatchState.SUCCEEDED else run.status_message or f"Apify says {run.status}",
        due_at=iso(at + timedelta(seconds=rules.settle_seconds)),
        polls=0,
    )


#: Each look without news doubles the wait until the next, up to this many times the first.
_LONGEST_POLL_FACTOR: Final = 16
#: However short the waits are: a clock is set right by seconds every day.
_SHORTEST_BOUND_SECONDS: Final = 3600.0


def poll_interval(polls: int, rules: HarvestRules) -> timedelta:
    return timedelta(seconds=rules.poll_interval_seconds * min(2**polls, _LONGEST_POLL_FACTOR))


def longest_wait(rules: HarvestRules) -> timedelta:
    """No step of a batch is further ahead than this."""
    seconds = max(rules.look_after_seconds, rules.settle_seconds, rules.poll_interval_seconds * _LONGEST_POLL_FACTOR)
    return timedelta(seconds=max(seconds, _SHORTEST_BOUND_SECONDS))
