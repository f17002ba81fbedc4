"""What is sent together, what an answer means for each message, and when to try again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

from app.model import RECORDS_PER_CALL, CallOutcome, ErrorKind

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping

    from app.fields import Fold
    from app.policy.asking import AskedAnswer

# What is sent ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that is on its way: the fields that it wants delivered, and how often it was sent (this time too)."""

    id: int
    fields: tuple[str, ...]
    attempts: int


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """All that waits for one run, folded into one write: the present values of the fields that its messages name."""

    run_id: str
    record_id: str | None
    share: int
    failures: int
    messages: tuple[Waiting, ...]
    values: Fold


@dataclass(frozen=True, slots=True)
class Claim:
    """One request to be: up to ten runs, all to be created or all to be updated."""

    call_id: int
    creating: bool
    runs: tuple[ClaimedRun, ...]


# What came back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """2xx: the record id of each run that the answer names."""

    record_ids: Mapping[str, str]
    status: int = 200


@dataclass(frozen=True, slots=True)
class Refused:
    """422 and its like: nothing of the request was written, because of (at least) one record."""

    status: int
    cause: str
    kind: ErrorKind = ErrorKind.REJECTED
    record_id: str | None = None
    field: str | None = None


@dataclass(frozen=True, slots=True)
class RateLimited:
    cause: str
    status: int = 429


@dataclass(frozen=True, slots=True)
class QuotaExhausted:
    cause: str
    status: int = 429


@dataclass(frozen=True, slots=True)
class Denied:
    """The base, the table or the token is not what it should be: no record is to blame."""

    status: int
    cause: str


_GATEWAYS: Final = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer, a 5xx, or an answer that makes no sense: it may have been written or not."""

    cause: str
    status: int | None = None
    retry_after: float | None = None

    @property
    def is_outage(self) -> bool:
        """No answer that can be read, or a gateway's: no message is to wear out over it."""
        return self.status is None or self.status in _GATEWAYS or self.is_strangers

    @property
    def is_strangers(self) -> bool:
        """A no that is not Airtable's own: something on the way to it says so, to this request or to all."""
        return self.status is not None and HTTPStatus.BAD_REQUEST <= self.status < HTTPStatus.INTERNAL_SERVER_ERROR


Answer: TypeAlias = Written | Refused | RateLimited | QuotaExhausted | Denied | Unknown


# What it means --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetAside:
    """Messages that die, and the error that says why."""

    kind: ErrorKind
    message: str
    cause: str
    message_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunSettlement:
    """What becomes of one claimed run. Messages that are neither delivered nor set aside wait again until `due_at`."""

    run_id: str
    due_at: datetime
    delivered: bool = False
    record_id: str | None = None
    dead: SetAside | None = None
    give_back: bool = False
    failures: int = 0
    share: int = RECORDS_PER_CALL


@dataclass(frozen=True, slots=True)
class Settlement:
    call_id: int
    outcome: CallOutcome
    status: int | None
    error: str | None
    runs: tuple[RunSettlement, ...]


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How long to go on: `[sync]` of the configuration. Seconds."""

    max_attempts: int
    backoff_base_seconds: float
    backoff_max_seconds: float

    def backoff(self, failures: int, random: random.Random) -> timedelta:
        """Twice as long after each failure up to the limit, spread over its upper half so that runs part ways."""
        longest = min(self.backoff_base_seconds * 2.0 ** min(failures - 1, 62), self.backoff_max_seconds)
        return timedelta(seconds=longest * random.uniform(0.5, 1.0))


def settled_call(call_id: int, answer: Answer | AskedAnswer, runs: tuple[RunSettlement, ...] = ()) -> Settlement:
    """How a call ended, with what became of the runs that it carried."""
    outcome, error = CallOutcome.OK, None
    match answer:
        case Refused(_, cause):
            outcome, error = CallOutcome.REFUSED, cause
        case RateLimited(cause):
            outcome, error = CallOutcome.RATE_LIMITED, cause
        case QuotaExhausted(cause):
            outcome, error = CallOutcome.QUOTA, cause
        case Denied(_, cause):
            outcome, error = CallOutcome.DENIED, cause
        case Unknown(cause):
            outcome, error = CallOutcome.UNKNOWN, cause
    return Settlement(call_id, outcome, answer.status, error, runs)


def settle(
    claim: Claim,
    answer: Answer,
    *,
    at: datetime,
    rules: RetryRules,
    random: random.Random,
    base_was_sound: bool = False,
) -> Settlement:
    """What `answer` means for each run of `claim`; `base_was_sound` says so of the base's last answer before it."""
    runs: list[RunSettlement]
    match answer:
        case Written():
            runs = [_written(run, answer, at, rules, random) for run in claim.runs]
        case Refused():
            runs = _refused(claim, answer, at)
        case RateLimited() | QuotaExhausted() | Denied():
            runs = [_not_tried(run, at) for run in claim.runs]
        case Unknown():
            told_apart = base_was_sound and len(claim.runs) == 1
            runs = [_unknown(run, answer, at, rules, random, told_apart=told_apart) for run in claim.runs]
    return settled_call(claim.call_id, answer, tuple(runs))


def _written(run: ClaimedRun, answer: Written, at: datetime, rules: RetryRules, random: random.Random) -> RunSettlement:
    record_id = answer.record_ids.get(run.run_id)
    if record_id is None:
        lost = Unknown("the answer does not name this run's record", answer.status)
        return _unknown(run, lost, at, rules, random)
    return RunSettlement(run.run_id, at, delivered=True, record_id=record_id)


def _refused(claim: Claim, answer: Refused, at: datetime) -> list[RunSettlement]:
    """Set the bad run aside when it is known; otherwise let each share its next call with fewer, until it is."""
    bad = _culprit(claim, answer)
    if bad is not None:
        return [_set_aside(run, answer, at) if run is bad else _not_tried(run, at) for run in claim.runs]
    share = max(one for one in SHARES if one < len(claim.runs))
    return [RunSettlement(run.run_id, at, give_back=True, failures=run.failures, share=share) for run in claim.runs]


#: How many runs a call may carry: all ten, and after each refusal fewer, down to one.
SHARES: Final = (1, 2, 5, RECORDS_PER_CALL)


def _culprit(claim: Claim, answer: Refused) -> ClaimedRun | None:
    if len(claim.runs) == 1:
        return claim.runs[0]
    if answer.record_id is not None:
        return next((run for run in claim.runs if run.record_id == answer.record_id), None)
    if answer.field is not None:
        writing = [run for run in claim.runs if answer.field in run.values]
        return writing[0] if len(writing) == 1 else None
    return None


def _set_aside(run: ClaimedRun, answer: Refused, at: datetime) -> RunSettlement:
    """Only the messages that touch the refused field die, where the refusal names one; the others go again at once."""
    touching = tuple(message.id for message in run.messages if answer.field in message.fields)
    message_ids = touching or tuple(message.id for message in run.messages)
    dead = SetAside(answer.kind, SET_ASIDE_MESSAGES[answer.kind], answer.cause, message_ids)
    return RunSettlement(run.run_id, at, dead=dead, give_back=True)


SET_ASIDE_MESSAGES: Final[Mapping[ErrorKind, str]] = {
    ErrorKind.REJECTED: "Airtable refused this record: mend the cause, then retry its messages",
    ErrorKind.RECORD_DELETED: (
        "Its record was deleted in Airtable, and nothing recreates it: restore it from the trash there, or make one "
        "record with this Run ID by hand; then 'outbox retry --kind record_deleted' finds it"
    ),
    ErrorKind.DUPLICATE_RECORD: "Airtable holds several records with this Run ID: keep one, then retry",
}


def _not_tried(run: ClaimedRun, at: datetime) -> RunSettlement:
    return RunSettlement(run.run_id, at, give_back=True, failures=run.failures, share=run.share)


def _unknown(
    run: ClaimedRun,
    answer: Unknown,
    at: datetime,
    rules: RetryRules,
    random: random.Random,
    *,
    told_apart: bool = False,
) -> RunSettlement:
    """Go on later. What Airtable itself did not get done counts; an outage does not, or a long one would kill all.

    A stranger's no is an outage until it is said to this run alone (`told_apart`) and not to what went before it.
    """
    failures = run.failures + 1
    wait = rules.backoff(failures, random)
    if answer.retry_after is not None:
        wait = max(wait, timedelta(seconds=answer.retry_after))
    # A 500 may be one record's doing, and so may a stranger's no: after two of them it goes with fewer, so that it
    # cannot hold up its neighbours.
    poisoned = failures > 1 and (answer.status == HTTPStatus.INTERNAL_SERVER_ERROR or answer.is_strangers)
    share = max((one for one in SHARES if one < run.share), default=1) if poisoned else run.share
    if answer.is_outage and not (answer.is_strangers and told_apart):
        return RunSettlement(run.run_id, at + wait, give_back=True, failures=failures, share=share)
    worn_out = tuple(message.id for message in run.messages if message.attempts >= rules.max_attempts)
    dead = None
    if worn_out:
        tries = max(message.attempts for message in run.messages)
        mend = "mend what refuses it on its way, then retry" if answer.is_strangers else "retry when Airtable answers"
        dead = SetAside(ErrorKind.REJECTED, f"Given up after {tries} attempts: {mend}", answer.cause, worn_out)
    return RunSettlement(run.run_id, at + wait, dead=dead, failures=failures, share=share)


def fields_to_send(messages: Iterable[Waiting], fold: Fold) -> Fold:
    """The present value of every field that waits; a field that the fold lost counts as cleared."""
    names = dict.fromkeys(name for message in messages for name in message.fields)
    return {name: fold.get(name) for name in names}
