"""What a store can do: whole units of work. Times and ids come in as arguments; no connection or cursor goes out.

SQLite is the embedded default (`app.store.sqlite`); a store on another database is judged by the same tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from app.fields import Fold
    from app.model import Action, BatchState, Kickoff, Update, UpdateOutcome, WebhookTaken
    from app.policy.budget import Allowance
    from app.policy.delivery import Claim, Settlement
    from app.policy.harvest import Batch, BatchEvent, Report
    from app.store.views import (
        ActivityStep,
        CheckFinding,
        CheckSummary,
        Counts,
        DecisionFilter,
        DecisionView,
        ErrorFilter,
        ErrorView,
        HowFar,
        KickoffTaken,
        MessageFilter,
        MessageView,
        NoRun,
        Page,
        RunFilter,
        RunSummary,
        RunView,
        Slice,
        Stats,
    )

#: No run waits longer than this for its next send, unless it was configured to.
LONGEST_WAIT: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A webhook, decoded. `report` is `None` for events that say nothing of an actor run (TEST, builds).

    `event_key` is equal for two webhooks about one event of one Apify run. `run_id` and `batch_token` are what its
    payload or URL named; nothing says that they exist.
    """

    event: str
    body: str
    dispatch_id: str | None = None
    event_key: str | None = None
    report: Report | None = None
    run_id: str | None = None
    batch_token: str | None = None


@dataclass(frozen=True, slots=True)
class BatchStep:
    """A batch whose next step is due, the state it was due in, and its input as JSON text."""

    batch: Batch
    due_in: BatchState
    run_input: str


@dataclass(frozen=True, slots=True)
class Adoption:
    """A record found in Airtable for a run that nobody kicked off here, and the values of its cells."""

    record_id: str
    values: Fold


@dataclass(frozen=True, slots=True)
class LostRecord:
    """A run whose record was deleted in Airtable, and which record that was."""

    run_id: str
    record_id: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a run's record in Airtable should hold, as far as messages of ours named it."""

    run_id: str
    values: Fold


@dataclass(frozen=True, slots=True)
class SeenRecord:
    """A record that a consistency check read, and the fields of it that are not what was delivered."""

    record_id: str
    run_id: str | None
    client_id: str | None = None
    drifted: tuple[str, ...] = ()
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Doubt:
    """A record that a check has to ask for by its id and its run's before it may say anything about it."""

    record_id: str
    run_id: str | None


@dataclass(frozen=True, slots=True)
class CheckScope:
    """What a check speaks about: records created after `since`, runs with nothing on its way since `quiet_before`.

    `whole` is false where columns were left out: then nothing is known of the fields in them.
    """

    since: datetime
    quiet_before: datetime
    whole: bool = True


@dataclass(frozen=True, slots=True)
class PruneCursor:
    """The last delivered message that a pruning has looked at."""

    delivered_at: str = ""
    message_id: int = 0


@dataclass(frozen=True, slots=True)
class Bite:
    """How many messages one bite removed, and where the next one starts; `None` at the end."""

    removed: int
    next: PruneCursor | None


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """Findings by kind, the first thousand of them, and the errors and messages that followed."""

    found: Mapping[str, int]
    findings: Sequence[CheckFinding]
    opened: int
    resolved: int
    repaired: int


class Intake(Protocol):
    """Taking in. What returned is committed, and survives a power cut.

    Every unit raises `StoreUnavailable` when nothing could be kept.
    """

    async def accept_create(self, kickoff: Kickoff, at: datetime) -> KickoffTaken:
        """Create a run, or find that it exists: the only unit that creates one.

        Raises:
            Conflict: another job and client make the same run id.
            IdempotencyKeyReused: the key came with another kickoff before.
        """
        ...

    async def accept_update(self, update: Update, at: datetime) -> UpdateOutcome:
        """Queue an update, or hold it where the run does not exist.

        Raises:
            IdempotencyKeyReused: the key came with another update of this run before.
        """
        ...

    async def accept_webhook(self, event: WebhookEvent, at: datetime) -> WebhookTaken: ...


class Outbox(Protocol):
    """Delivering."""

    async def claim(self, at: datetime, *, only_creates: bool = False) -> Claim | None:
        """The runs that are due longest, marked as being sent; `None` when none is due.

        Where there is room, runs that linger for company go along. `only_creates`: none whose record is there already.
        """
        ...

    async def next_due(self, *, only_creates: bool = False) -> datetime | None:
        """When the next run is due; `None` when nothing waits."""
        ...

    async def settle(self, settlement: Settlement, at: datetime) -> Sequence[Sequence[datetime]]:
        """Keep what became of a call; for each record that it delivered, when its messages had been accepted."""
        ...

    async def begin_call(self, method: str, at: datetime) -> int:
        """Count a request that is no delivery, before it is sent; its id."""
        ...

    async def end_call(self, settlement: Settlement, records: int, at: datetime) -> None: ...

    async def bind_base(self, base_id: str, at: datetime) -> None:
        """Tie the store to its base; raises `StoreError` if it is tied to another."""
        ...

    async def recover(self, at: datetime, longest_wait: timedelta = LONGEST_WAIT) -> int:
        """Take back what a stopped process was sending; the number of messages.

        What would wait for nothing is due at once, and what `recover_far` finds.
        """
        ...

    async def recover_far(self, at: datetime, longest_wait: timedelta = LONGEST_WAIT) -> int:
        """What would wait longer than anything does is due at once: the clock was set back. How many runs that are."""
        ...

    async def calls_this_month(self, at: datetime) -> int:
        """Requests since the first of the month, 00:00 UTC."""
        ...

    async def keep_budget(self, monthly_calls: int, allowance: Allowance) -> None:
        """Keep what was decided, so that whoever looks at what waits sees why."""
        ...

    async def last_rate_limited(self) -> datetime | None:
        """When Airtable last answered that it was asked too often, of the latest calls."""
        ...

    async def last_answered(self) -> datetime | None:
        """When the last answer of Airtable was kept."""
        ...


class Harvest(Protocol):
    """Following the batches."""

    async def claim_batch(self, at: datetime) -> BatchStep | None:
        """The batch that is due longest; a queued one is marked as starting before this returns.

        What would wait longer than anything does is due at once: the clock was set back.
        """
        ...

    async def next_batch_due(self) -> datetime | None: ...

    async def taken_apify_runs(self, batch_id: int, since: datetime) -> frozenset[str]: ...

    async def apply_event(self, batch_id: int, event: BatchEvent, at: datetime) -> Batch: ...

    async def recover_batches(self, at: datetime) -> int: ...


class Missing(Protocol):
    """Looking for runs that nobody kicked off here."""

    async def due_looks(self, at: datetime, limit: int) -> Sequence[str]:
        """Missing run ids whose look is due, longest due first, with those due soon; none before one is due."""
        ...

    async def next_look_due(self) -> datetime | None:
        """When the next look of either kind is due."""
        ...

    async def recover_looks(self, at: datetime) -> int:
        """Looks that would wait longer than any does are due at once: the clock was set back. How many those are."""
        ...

    async def settle_looks(self, found: Mapping[str, Sequence[Adoption]], at: datetime) -> Sequence[str]:
        """Adopt each run of which exactly one record was found, look for the others later; the ids of the adopted."""
        ...

    async def due_record_looks(self, at: datetime, limit: int) -> Sequence[LostRecord]:
        """Runs whose deleted record is to be looked for under another id, because a person retried their messages."""
        ...

    async def settle_record_looks(self, found: Mapping[str, Sequence[str]], at: datetime) -> Mapping[str, str]:
        """Link each run whose record is gone to the only free one of those found; which, by run id.

        All that waits for the runs is due then.
        """
        ...


class Consistency(Protocol):
    """Comparing with what Airtable has. What a check sees is kept here, never in memory."""

    async def begin_check(self) -> None:
        """Forget what an earlier check saw."""
        ...

    async def delivered(self, record_ids: Sequence[str]) -> Mapping[str, Delivered]:
        """By record id, of those that are records of runs here."""
        ...

    async def note_records(self, records: Sequence[SeenRecord], asked: Sequence[Doubt] = ()) -> None:
        """Keep what was read; `asked`: it is all that there is of these."""
        ...

    async def gather_doubts(self, scope: CheckScope) -> None:
        """The listing is complete: note what it leaves in doubt."""
        ...

    async def doubts(self, limit: int) -> Sequence[Doubt]:
        """Some of those that were not asked for yet."""
        ...

    async def finish_check(self, scope: CheckScope, *, repair: bool, at: datetime) -> CheckOutcome:
        """Everything was read: open an error for each new finding, resolve what is no longer seen.

        With `repair`, a message for each drifted run delivers its present values again.
        """
        ...

    async def keep_summary(self, summary: CheckSummary) -> None: ...

    async def last_check_at(self) -> datetime | None:
        """When the last check ended; of a store without one, when it was first used."""
        ...


class Retention(Protocol):
    """Removing what is past its days, a few hundred rows at a time, so that ingest goes on in between."""

    async def prune_messages(self, before: datetime, cursor: PruneCursor) -> Bite:
        """Remove updates that were delivered before then; creates stay, and what goes leaves its trace."""
        ...

    async def prune_calls(self, before: datetime) -> int:
        """Remove calls; how many, 0 at the end. What they counted for their day stays."""
        ...

    async def prune_webhook_bodies(self, before: datetime) -> int:
        """Empty the bodies of webhooks that are not held; how many, 0 at the end."""
        ...

    async def prune_idempotency_keys(self, before: datetime) -> int: ...

    async def free_bytes(self) -> int:
        """Space inside the file that is free for later rows."""
        ...


class Replay(Protocol):
    """What a person decides."""

    async def retry(self, message_id: int, at: datetime, *, who: str | None = None) -> MessageView | None:
        """The message, pending again; `who` decided it, where that is known.

        Raises `NotFound`, or `Conflict` if it is not dead.
        """
        ...

    async def retry_all(
        self, *, kind: str | None, run_id: str | None, since: datetime | None, at: datetime, who: str | None = None
    ) -> int:
        """How many there were; of one kind of error, of one run, set aside since then."""
        ...

    async def resolve_error(
        self, error_id: int, *, note: str | None, discard: bool, at: datetime, who: str | None = None
    ) -> None:
        """Raises `NotFound`, or `Conflict` if the error is resolved already."""
        ...

    async def decide(self, action: Action, at: datetime, *, who: str | None, note: str | None) -> None:
        """Write down what a person decided that changes nothing in the store by itself."""
        ...


class Reading(Protocol):
    """Looking."""

    async def run(self, run_id: str) -> RunView | None: ...

    async def no_run(self, run_id: str) -> NoRun:
        """What is known of a run that does not exist."""
        ...

    async def runs(self, chosen: RunFilter, part: Slice) -> Page[RunSummary]: ...

    async def message(self, message_id: int) -> MessageView | None: ...

    async def messages(self, chosen: MessageFilter, part: Slice) -> Page[MessageView]: ...

    async def error(self, error_id: int) -> ErrorView | None: ...

    async def errors(self, chosen: ErrorFilter, part: Slice) -> Page[ErrorView]: ...

    async def stats(self, at: datetime) -> Stats: ...

    async def counts(self, at: datetime) -> Counts: ...

    async def decisions(self, chosen: DecisionFilter, part: Slice) -> Page[DecisionView]: ...

    async def activity(self, since: datetime, step: timedelta, count: int) -> Sequence[ActivityStep]:
        """`count` steps from `since` on, each as long as `step`."""
        ...

    async def check_progress(self, since: datetime) -> HowFar: ...

    async def backup(self, to: Path) -> None:
        """Write a copy that can be opened as a store; raises `FileExistsError`."""
        ...


class Store(Intake, Outbox, Harvest, Missing, Consistency, Retention, Replay, Reading, Protocol):
    async def check(self) -> None:
        """Raises `StoreUnavailable` when a commit would fail now."""
        ...

    async def close(self) -> None: ...
