"""How Airtable speaks: requests and answers as pure functions.

Sends nothing, knows nothing of the outbox, and decides nothing about trying again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic import Field as Constraint

from app.clock import parse_http_date
from app.fields import RUN_ID, plain, shown
from app.model import RECORDS_PER_CALL, ErrorKind
from app.policy.asking import Column, Described, FoundRecord, Identified, Listed
from app.policy.delivery import Denied, QuotaExhausted, RateLimited, Refused, Unknown, Written

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.fields import Registry
    from app.logs import Redaction
    from app.model import Json
    from app.policy.asking import DescribeAnswer, Failure, IdentifyAnswer, ListAnswer
    from app.policy.delivery import Answer, Claim

# Requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a request: without an `id` it is matched on the run id, and created if there is none."""

    cells: Mapping[str, Json]
    id: str | None = None

    def to_wire(self) -> dict[str, Json]:
        wire: dict[str, Json] = {"fields": dict(self.cells)}
        return wire if self.id is None else {"id": self.id, **wire}


def records_of(claim: Claim, registry: Registry) -> list[Record]:
    """The records that `claim` writes: columns with the present values of the fields that wait."""
    records = []
    for run in claim.runs:
        cells: dict[str, Json] = {
            registry[name].column: plain(value) for name, value in run.values.items() if name in registry
        }
        if claim.creating:
            cells[registry[RUN_ID].column] = run.run_id
        records.append(Record(cells, None if claim.creating else run.record_id))
    return records


# Answers --------------------------------------------------------------------------------------------------------


#: Airtable lists at most a hundred records a page (a documented limit).
RECORDS_PER_PAGE: Final = 100
#: Of tables, of a table's fields, of a field's choices: no base comes near it.
_MOST_DESCRIBED: Final = 10_000

T = TypeVar("T")
# Each list has a bound and is read to its first flaw: pydantic would collect every one of them. Two kilobytes (2 MiB,
# unpacked) with 700,000 empty records took 690 MB and 7 s, with as many empty tables 2 GB and 15 s, on the loop. Now
# it is what their JSON takes: 53 MB, and 0.1 s in a thread.
_Page = Annotated[list[T], Constraint(max_length=RECORDS_PER_PAGE, fail_fast=True)]
_Request = Annotated[list[T], Constraint(max_length=RECORDS_PER_CALL, fail_fast=True)]
_Part = Annotated[list[T], Constraint(max_length=_MOST_DESCRIBED, fail_fast=True)]

#: What a record id looks like, and what is sent back to ask for the next page. Neither could be kept otherwise.
_RECORD_ID: Final = r"rec[A-Za-z0-9]{14}"
_RecordId = Annotated[str, Constraint(pattern=rf"^{_RECORD_ID}$")]
_Offset = Annotated[str, Constraint(pattern=r"^[!-~][ -~]{0,999}$")]


class _WrittenRecord(BaseModel):
    id: _RecordId
    fields: dict[str, object] = {}


class _WrittenRecords(BaseModel):
    records: _Request[_WrittenRecord]


def decode_written(claim: Claim, answer: object, registry: Registry) -> Answer:
    """The record ids in a 2xx answer: of a create by the run id that it carries, of an update by itself."""
    try:
        records = _WrittenRecords.model_validate(answer).records
    except ValidationError as error:
        return Unknown(_senseless(error), 200)
    if claim.creating:
        column = registry[RUN_ID].column
        return Written({run_id: one.id for one in records if isinstance(run_id := one.fields.get(column), str)})
    answered = {one.id for one in records}
    return Written({run.run_id: run.record_id for run in claim.runs if run.record_id and run.record_id in answered})


def _senseless(error: ValidationError) -> str:
    return f"Airtable's answer makes no sense: {error.errors(include_url=False)[0]['msg']}"


class _ListedRecords(BaseModel):
    records: _Page[_FoundRecord]
    offset: _Offset | None = None


class _FoundRecord(BaseModel):
    id: _RecordId
    fields: dict[str, JsonValue] = {}


class _Choice(BaseModel):
    name: str


class _Options(BaseModel):
    choices: _Part[_Choice] = []


class _DescribedField(BaseModel):
    name: str
    type: str
    options: _Options | None = None

    def to_column(self) -> Column:
        return Column(self.name, self.type, tuple(one.name for one in self.options.choices) if self.options else ())


class _DescribedTable(BaseModel):
    id: str
    name: str
    fields: _Part[_DescribedField]


class _DescribedTables(BaseModel):
    tables: _Part[_DescribedTable]


class _Whoami(BaseModel):
    id: str
    scopes: _Part[str] | None = None


class _Told(BaseModel):
    body: _Whoami
    date: str | None = None


def decode_listed(answer: object) -> ListAnswer:
    """A page of records."""
    try:
        page = _ListedRecords.model_validate(answer)
    except ValidationError as error:
        return Unknown(_senseless(error), 200)
    return Listed(tuple(FoundRecord(one.id, one.fields) for one in page.records), page.offset)


def decode_identity(answer: object) -> IdentifyAnswer:
    """Whose token it is: `body` as Airtable sent it, and the `date` of its answer."""
    try:
        told = _Told.model_validate(answer)
    except ValidationError as error:
        return Unknown(_senseless(error), 200)
    scopes = None if told.body.scopes is None else tuple(told.body.scopes)
    return Identified(told.body.id, scopes, parse_http_date(told.date))


def decode_described(answer: object, table: str) -> DescribeAnswer:
    """The columns of `table`, an id or a name; `None` where the base has no such table."""
    try:
        tables = _DescribedTables.model_validate(answer).tables
    except ValidationError as error:
        return Unknown(_senseless(error), 200)
    ours = next((one for one in tables if table in {one.id, one.name}), None)
    columns = None if ours is None else tuple(one.to_column() for one in ours.fields)
    return Described(columns, tuple(one.name for one in tables))


# Refusals -------------------------------------------------------------------------------------------------------


#: `Field "X" cannot accept the provided value`, `Unknown field name: "X"`
_NAMED_FIELD: Final = re.compile(r'(?:[Ff]ield|field name:) "([^"]+)"')
_NAMED_RECORD: Final = re.compile(rf"\b({_RECORD_ID})\b")
#: The token, the account, the base, the table or the way to them is at fault, and no record.
_OF_THE_ACCESS: Final = (401, 402, 403, 404, 407)
_GONE: Final = ("ROW_DOES_NOT_EXIST", "MODEL_ID_NOT_FOUND", "RECORD_NOT_FOUND")
_QUOTA: Final = "PUBLIC_API_BILLING_LIMIT_EXCEEDED"
_MOST_CAUSE: Final = 500
#: Seconds. What asks for more is mistaken, or would overflow a date.
_LONGEST_RETRY_AFTER: Final = 3600.0


@dataclass(frozen=True, slots=True)
class AirtableError:
    """An error body, whichever of its shapes it came in; one in none of them is some stranger's on the way."""

    type: str
    message: str
    of_airtable: bool = True

    def __str__(self) -> str:
        return cause_of(f"{self.type}: {self.message}" if self.message else self.type)

    def without_secrets(self, redaction: Redaction) -> AirtableError:
        """To be called before the text is cut off, which would leave half of a secret."""
        return replace(self, type=redaction.text(self.type), message=redaction.text(self.message))


def decode_error_body(body: bytes, status: int) -> AirtableError:
    """Airtable answers with `{"error": {type, message}}`, `{"error": "TYPE"}` or `{"errors": [{error, message}]}`."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        match answer.get("error") or answer.get("errors"):
            case {"type": str(kind), **rest} if kind:
                return AirtableError(kind, _message(rest))
            case str(kind) if kind:
                return AirtableError(kind, "")
            case [{"error": str(kind), **rest}, *_] if kind:
                return AirtableError(kind, _message(rest))
    return AirtableError(f"HTTP {status}", body.decode(errors="replace").strip(), of_airtable=False)


def _message(rest: Mapping[object, object]) -> str:
    message = rest.get("message")
    return message if isinstance(message, str) else ""


def cause_of(text: str) -> str:
    """A cause as it can be kept: not long, and without half of a surrogate pair, which is no Unicode."""
    return text[:_MOST_CAUSE].encode(errors="replace").decode()


def decode_failure(
    status: int, headers: Mapping[str, str], body: bytes, registry: Registry, redaction: Redaction
) -> Failure:
    """What anything but a 2xx means (Airtable's documented errors, in each shape that they are known to come in)."""
    if status < HTTPStatus.BAD_REQUEST:
        return _elsewhere(status, redaction.text(headers.get("Location", "")))
    return _decode_error(status, headers, decode_error_body(body, status).without_secrets(redaction), registry)


def _elsewhere(status: int, location: str) -> Denied | Unknown:
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return Unknown(f"an answer with the status {status}, which is none of Airtable's", status)
    return Denied(status, f"not Airtable, but a redirect to {shown(location, 200)}: check [airtable] endpoint_url")


def _decode_error(status: int, headers: Mapping[str, str], error: AirtableError, registry: Registry) -> Failure:
    cause = str(error)
    match status:
        case 429:
            return QuotaExhausted(cause) if error.type == _QUOTA else RateLimited(cause)
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
            return Unknown(f"Airtable answered {status} ({cause})", status, _retry_after(headers))
        case 413 | 422:  # of the request itself, whoever says it: another try would meet the same
            return _refusal(status, error, registry)
        case _ if not error.of_airtable:
            return Unknown(f"an answer that is not Airtable's, from something on the way to it ({cause})", status)
        case _ if status in _OF_THE_ACCESS and error.type not in _GONE:
            return Denied(status, cause)
        case _:
            return _refusal(status, error, registry)


def _refusal(status: int, error: AirtableError, registry: Registry) -> Refused:
    field = _NAMED_FIELD.search(error.message)
    record = _NAMED_RECORD.search(error.message)
    kind = ErrorKind.REJECTED
    if error.type in _GONE:
        kind = ErrorKind.RECORD_DELETED
    elif "multiple records" in error.message.lower() or "more than one record" in error.message.lower():
        kind = ErrorKind.DUPLICATE_RECORD
    return Refused(
        status=status,
        cause=str(error),
        kind=kind,
        record_id=record[1] if record else None,
        field=registry.name_of(field[1]) if field else None,
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, in the one form that Airtable is known to send; a date is left to our own back-off."""
    value = headers.get("Retry-After", "")
    return min(float(value), _LONGEST_RETRY_AFTER) if value.isdecimal() else None
