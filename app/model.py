"""Runs, messages, batches and errors as plain data: no I/O, and no knowledge of who stores or sends them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from app.fields import Change

#: What a JSON text can say. Numbers are `int` or `float`; a decimal that must stay exact travels as `Decimal`
#: and becomes a float where it is written to the wire.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

#: Airtable writes at most ten records in one request (a documented limit).
RECORDS_PER_CALL: Final = 10


class MessageKind(StrEnum):
    CREATE = "create"
    UPDATE = "update"


class MessageState(StrEnum):
    PENDING = "pending"
    SENDING = "sending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Source(StrEnum):
    """Who asked for a message."""

    KICKOFF = "kickoff"
    CALLER = "caller"
    HARVEST = "harvest"
    REPAIR = "repair"


class CallOutcome(StrEnum):
    """How a request to Airtable ended."""

    IN_FLIGHT = "in_flight"
    OK = "ok"
    REFUSED = "refused"
    RATE_LIMITED = "rate_limited"
    QUOTA = "quota"
    DENIED = "denied"
    UNKNOWN = "unknown"
    INTERRUPTED = "interrupted"


class SyncState(StrEnum):
    """How a run stands towards Airtable: something waits, all delivered, or something was set aside."""

    PENDING = "pending"
    SYNCED = "synced"
    FAILED = "failed"


class ErrorKind(StrEnum):
    MISSING_RECORD = "missing_record"
    UNMATCHED_WEBHOOK = "unmatched_webhook"
    DUPLICATE_RECORD = "duplicate_record"
    REJECTED = "rejected"
    RECORD_DELETED = "record_deleted"
    DRIFT = "drift"
    UNKNOWN_RECORD = "unknown_record"


class ErrorState(StrEnum):
    OPEN = "open"
    RESOLVED = "resolved"


class Resolution(StrEnum):
    CREATED_LATE = "created_late"
    ADOPTED = "adopted"
    MATCHED = "matched"
    REPLAYED = "replayed"
    REPAIRED = "repaired"
    BY_HAND = "by_hand"
    GONE = "no_longer_seen"
    MERGED = "merged"  # by a migration, with another that said the same


class Action(StrEnum):
    """What a person decides: to send a message again, to close an error, to check now."""

    RETRY = "retry"
    RESOLVE = "resolve"
    CHECK = "check"


class BatchState(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    UNKNOWN = "unknown"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    ABORTED = "aborted"
    MEASURED = "measured"


class RunStatus(StrEnum):
    """The statuses that follow from a run's batches; a caller may set others of the select's options."""

    RUNNING = "Running"
    COMPLETED = "Completed"
    COMPLETED_WITH_ERRORS = "Completed with Errors"
    FAILED = "Failed"


# Names of runs --------------------------------------------------------------------------------------------------

#: Characters of a client id or job id; a run id is both and a dash.
MAX_ID: Final = 100
MAX_RUN_ID: Final = 2 * MAX_ID + 1
_ID = re.compile(r"\w(?:[\w.'@+-]*\w)?")
#: The same as far as every JSON Schema tool's regular expressions can say it: beyond ASCII, letters and other
#: characters are not told apart.
ID_PATTERN: Final = (
    r"^[^\u0000-/:-@\[-\^\u0060{-\u00a9\u2000-\u206f]"
    r"([^\u0000-&(-*,/:-?\[-\^\u0060{-\u00a9\u2000-\u206f]*"
    r"[^\u0000-/:-@\[-\^\u0060{-\u00a9\u2000-\u206f])?$"
)
JOB_ID_FORMAT: Final = "%y%m%d-%H%M%S"


def flaw_of_id(name: str, value: str, most: int = MAX_ID) -> str | None:
    """Why `value` cannot be an id of a client, job or run, or None. Ids stand in URLs, formulas and tables."""
    if not 0 < len(value) <= most:
        return f"{name!r} has 1 to {most} characters, this has {len(value)}"
    if not unicodedata.is_normalized("NFC", value):
        return f"{name!r} has to be in Unicode's composed form (NFC), so that one name is always one run"
    if not _ID.fullmatch(value):
        return f"{name!r} has letters, digits and . _ - ' @ + inside, and starts and ends with a letter, digit or _"
    return None


def run_id_of(job_id: str, client_id: str) -> str:
    return f"{job_id}-{client_id}"


# What callers ask for -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A caller's `Idempotency-Key`, and a digest of the request that it stands for."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """One actor run to start. `input` is JSON text; `token` is random and names the batch in its webhooks' URL."""

    input: str
    profiles: int | None
    actor_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Kickoff:
    """A run to create. Without a `job_id` the store takes the next free second for this client."""

    client_id: str
    job_id: str | None
    change: Change
    batches: tuple[BatchOrder, ...] = ()
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class Update:
    run_id: str
    change: Change
    idempotency: Idempotency | None = None


# What was decided -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Created:
    """`created` is false where the run existed; `held_applied` counts the held updates that it set free."""

    run_id: str
    created: bool
    held_applied: int = 0


@dataclass(frozen=True, slots=True)
class OpenError:
    """The error that an answer points at; `count` is how often it has happened."""

    id: int
    kind: ErrorKind
    message: str
    similar_runs: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Queued:
    run_id: str
    message_id: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    run_id: str


@dataclass(frozen=True, slots=True)
class Held:
    run_id: str
    error: OpenError


UpdateOutcome: TypeAlias = Queued | Duplicate | Held


class WebhookOutcome(StrEnum):
    QUEUED = "queued"
    DUPLICATE = "duplicate"
    HELD = "held"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class WebhookTaken:
    """What became of a webhook; `error` where it was held."""

    outcome: WebhookOutcome
    run_id: str | None = None
    detail: str | None = None
    error: OpenError | None = None
