"""What a store shows: plain rows for answers, tables and pages. Times are UTC ISO 8601 text with milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # noqa: TC003  # answers are written from these types at run time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

from pydantic import Field, JsonValue

from app.model import BatchState, ErrorKind, ErrorState, MessageKind, MessageState, Resolution, Source, SyncState

if TYPE_CHECKING:
    from enum import StrEnum

    from pydantic.fields import FieldInfo

T = TypeVar("T")


def _one_of(words: type[StrEnum]) -> FieldInfo:
    """Words as the store keeps them, described as the few that they are."""
    info: FieldInfo = Field(json_schema_extra={"enum": [word.value for word in words]})
    return info


Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
SyncWord = Annotated[str, _one_of(SyncState)]
BatchWord = Annotated[str, _one_of(BatchState)]
KindOfError = Annotated[str, _one_of(ErrorKind)]
StateOfError = Annotated[str, _one_of(ErrorState)]
ResolutionWord = Annotated[str, _one_of(Resolution)]
KindOfMessage = Annotated[str, _one_of(MessageKind)]
StateOfMessage = Annotated[str, _one_of(MessageState)]
SourceWord = Annotated[str, _one_of(Source)]

DEFAULT_LIMIT = 50
MAX_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Rows, newest first, and where the next page starts; no cursor on the last one."""

    rows: Sequence[T]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Slice:
    """`limit` rows that are older than the row `before` (an id); from the newest where there is none."""

    limit: int = DEFAULT_LIMIT
    before: int | None = None


#: SQLite's integers have 63 bits; 18 digits always fit.
_MOST_DIGITS = 18


def number_of(text: str) -> int | None:
    """An id, a cursor or a limit as an address writes it; `None` where no row can have such a number."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None


@dataclass(frozen=True, slots=True)
class RunFilter:
    client_id: str | None = None
    job_id: str | None = None
    status: str | None = None
    sync: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorFilter:
    kind: str | None = None
    state: str | None = None
    run_id: str | None = None
    client_id: str | None = None


@dataclass(frozen=True, slots=True)
class MessageFilter:
    """`undelivered`: pending, sending or dead. `since`: delivered, set aside or else accepted then or later."""

    state: str | None = None
    run_id: str | None = None
    kind: str | None = None
    undelivered: bool = False
    since: str | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    run_id: str
    job_id: str
    client_id: str
    client_name: str | None
    status: str | None
    sync: SyncWord
    airtable_record_id: str | None
    created_at: Time
    changed_at: Time


@dataclass(frozen=True, slots=True)
class BatchView:
    number: int
    state: BatchWord
    outcome: str | None
    cause: str | None
    actor_id: str | None
    apify_run_id: str | None
    apify_status: str | None
    dataset_id: str | None
    profiles: int | None
    items: int | None
    cost_usd: float | None
    duration_seconds: float | None
    status_message: str | None
    attempts: int
    started_at: Time | None
    finished_at: Time | None
    measured_at: Time | None


@dataclass(frozen=True, slots=True)
class ErrorView:
    """`count` says how often it happened while open, `updates_held` how many updates wait for its run."""

    id: int
    kind: KindOfError
    state: StateOfError
    run_id: str | None
    client_id: str | None
    message: str
    cause: str | None
    similar_runs: Sequence[str]
    count: int
    updates_held: int
    first_at: Time
    last_at: Time
    resolved_at: Time | None
    resolution: ResolutionWord | None
    note: str | None


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    at: Time
    what: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class RunView:
    """`fields` is the fold of all that was accepted; `timeline` is its latest part when there is much of it."""

    run_id: str
    job_id: str
    client_id: str
    client_name: str | None
    status: str | None
    sync: SyncWord
    airtable_record_id: str | None
    origin: str
    created_at: Time
    changed_at: Time
    fields: Mapping[str, JsonValue]
    batches: Sequence[BatchView]
    errors: Sequence[ErrorView]
    timeline: Sequence[TimelineEntry]


@dataclass(frozen=True, slots=True)
class KickoffTaken:
    """What became of a kickoff, and its run: as it was created, or, where it existed, as it stands now.

    `created` is false where it existed; `held_applied` counts the held updates that it set free.
    """

    run: RunView
    created: bool
    held_applied: int = 0

    @property
    def run_id(self) -> str:
        return self.run.run_id


@dataclass(frozen=True, slots=True)
class NoRun:
    """A run that nobody kicked off, and what is known of it where something named it all the same."""

    run_id: str
    errors: Sequence[ErrorView] = ()
    timeline: Sequence[TimelineEntry] = ()

    def __str__(self) -> str:
        """That it does not exist; the open error, what it holds, and which runs were probably meant."""
        text = f"there is no run {self.run_id!r}: runs are created at kickoff only (POST /runs)"
        for error in self.errors:
            if (error.kind, error.state) == ("missing_record", "open"):
                text += f". Error {error.id} (missing_record) is open and holds {error.updates_held} updates until then"
                if error.similar_runs:
                    text += f"; was it {' or '.join(error.similar_runs)}?"
        return text


@dataclass(frozen=True, slots=True)
class MessageView:
    """`waits_for` says what holds it, where it is not delivered."""

    id: int
    run_id: str
    kind: KindOfMessage
    state: StateOfMessage
    source: SourceWord
    fields: Sequence[str]
    change: Mapping[str, JsonValue]
    attempts: int
    waits_for: str | None
    accepted_at: Time
    delivered_at: Time | None
    dead_at: Time | None
    call_id: int | None
    error_id: int | None


@dataclass(frozen=True, slots=True)
class CallCounts:
    """Requests to Airtable since the first of the month, 00:00 UTC, by how they ended.

    `forecast` is what they come to at the month's end, `budget` `[airtable] monthly_call_budget` (0: none is set).
    `state` is how the service keeps to it: `ample`, `stretched` (updates wait for company), `reserved` (updates wait
    for the next month) or `spent` (all do).
    """

    total: int
    by_outcome: Mapping[str, int] = field(default_factory=dict)
    forecast: int = 0
    budget: int = 0
    state: str = "ample"
    updates_wait_until: str | None = None


@dataclass(frozen=True, slots=True)
class CreationStats:
    """One day (UTC). `success_rate` is delivered over delivered and failed; nothing before either happened."""

    day: str
    created: int
    already_existed: int
    failed: int
    success_rate: float | None


@dataclass(frozen=True, slots=True)
class CheckSummary:
    """A consistency check that came to an end. With `trouble` it could not finish, and changed nothing.

    `found` counts findings by kind of error; `opened` and `resolved` count errors, `repaired` the messages queued.
    `columns_left_out` are those of the registry that the table lacks: nothing was compared in them.
    """

    started_at: Time
    finished_at: Time
    since: Time
    trouble: str | None
    pages: int
    records: int
    calls: int
    found: Mapping[str, int]
    opened: int
    resolved: int
    repaired: int
    columns_left_out: Sequence[str]


@dataclass(frozen=True, slots=True)
class CheckFinding:
    error_id: int
    kind: KindOfError
    run_id: str | None
    record_id: str
    cause: str
    first_at: Time
    is_new: bool


@dataclass(frozen=True, slots=True)
class CheckReport(CheckSummary):
    """What a check tells whoever asked for it: with its findings, the first thousand of them."""

    findings: Sequence[CheckFinding] = ()


@dataclass(frozen=True, slots=True)
class HowFar:
    """How far something long has come: records read of those that should be there, bytes copied of those there are."""

    seen: int
    expected: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a pruning removed. Without a time before which, that kind is kept for good.

    `free_bytes` is the space that is now free inside the store's file: later rows fill it before the file grows.
    """

    started_at: Time
    finished_at: Time
    delivered_before: Time | None
    keys_before: Time | None
    messages: int
    calls: int
    webhook_bodies: int
    idempotency_keys: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """How the store stands. `creation_success_rate` is over all days."""

    runs: int
    pending: int
    dead: int
    held: int
    oldest_pending_at: Time | None
    oldest_pending_seconds: float | None
    creation_success_rate: float | None
    creations: Sequence[CreationStats]
    open_errors: Mapping[str, int]
    calls_this_month: CallCounts
    last_check: CheckSummary | None


@dataclass(frozen=True, slots=True)
class DecisionFilter:
    """About one message, one error, or of one kind."""

    action: str | None = None
    message_id: int | None = None
    error_id: int | None = None


@dataclass(frozen=True, slots=True)
class DecisionView:
    """What a person decided; `who` where they said who they are."""

    id: int
    at: str
    action: str
    who: str | None
    run_id: str | None
    message_id: int | None
    error_id: int | None
    note: str | None


@dataclass(frozen=True, slots=True)
class ActivityStep:
    """What happened from `start` to the next step: messages accepted, delivered, and set aside (and not retried since).

    The delays, from acceptance to Airtable, are of the step's latest deliveries; none where nothing was delivered.
    """

    start: str
    accepted: int
    delivered: int
    dead: int
    median_delay_seconds: float | None
    slowest_delay_seconds: float | None


@dataclass(frozen=True, slots=True)
class Counts:
    """What the metrics are made of. `created` and `already_existed` only grow; the rest is as it stands.

    `file_bytes` are the sizes of the `database` and of its `wal`.
    """

    runs: int
    created: int
    already_existed: int
    creations_delivered: int
    creations_failed: int
    pending: int
    dead: int
    oldest_pending_seconds: float | None
    held: int
    open_errors: Mapping[str, int]
    batches: Mapping[str, int]
    calls_this_month: CallCounts
    last_check: CheckSummary | None
    file_bytes: Mapping[str, int]
