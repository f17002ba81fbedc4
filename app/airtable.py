"""The destination: requests and answers as pure functions, pyairtable to send them.

Knows how Airtable speaks; knows nothing of the outbox, and decides nothing about trying again.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Final, Protocol, TypeVar

import requests
from pyairtable import Api
from pyairtable.formulas import CREATED_TIME, DATETIME_PARSE, EQ, IS_AFTER, OR, RECORD_ID, Field
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic import Field as Constraint
from requests.auth import AuthBase

from app.clock import iso, parse_http_date
from app.fields import RUN_ID, plain, shown
from app.logs import Redaction
from app.model import RECORDS_PER_CALL, ErrorKind
from app.policy.asking import Column, Described, FoundRecord, Identified, Listed
from app.policy.delivery import Denied, QuotaExhausted, RateLimited, Refused, Unknown, Written
from app.table_threads import TableThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from pyairtable import Table

    from app.fields import Registry
    from app.model import Json
    from app.policy.asking import DescribeAnswer, Failure, IdentifyAnswer, ListAnswer
    from app.policy.delivery import Answer, Claim

T = TypeVar("T")


class Destination(Protocol):
    """What the sync loop delivers to."""

    async def deliver(self, claim: Claim) -> Answer:
        """Send one request with all runs of `claim`. Never raises for what the other side does."""
        ...


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


#: What a record id looks like, and what is sent back to ask for the next page. Neither could be kept otherwise.
_RECORD_ID: Final = r"rec[A-Za-z0-9]{14}"
_RecordId = Annotated[str, Constraint(pattern=rf"^{_RECORD_ID}$")]
_Offset = Annotated[str, Constraint(pattern=r"^[!-~][ -~]{0,999}$")]


class _WrittenRecord(BaseModel):
    id: _RecordId
    fields: dict[str, object] = {}


class _WrittenRecords(BaseModel):
    records: list[_WrittenRecord]


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
    records: list[_FoundRecord]
    offset: _Offset | None = None


class _FoundRecord(BaseModel):
    id: _RecordId
    fields: dict[str, JsonValue] = {}


class _Choice(BaseModel):
    name: str


class _Options(BaseModel):
    choices: list[_Choice] = []


class _DescribedField(BaseModel):
    name: str
    type: str
    options: _Options | None = None

    def to_column(self) -> Column:
        return Column(self.name, self.type, tuple(one.name for one in self.options.choices) if self.options else ())


class _DescribedTable(BaseModel):
    id: str
    name: str
    fields: list[_DescribedField]


class _DescribedTables(BaseModel):
    tables: list[_DescribedTable]


class _Whoami(BaseModel):
    id: str
    scopes: list[str] | None = None


class _Told(BaseModel):
    body: _Whoami
    date: str | None = None


#: `Field "X" cannot accept the provided value`, `Unknown field name: "X"`
_NAMED_FIELD: Final = re.compile(r'(?:[Ff]ield|field name:) "([^"]+)"')
_NAMED_RECORD: Final = re.compile(rf"\b({_RECORD_ID})\b")
_GONE: Final = ("ROW_DOES_NOT_EXIST", "MODEL_ID_NOT_FOUND", "RECORD_NOT_FOUND")
_QUOTA: Final = "PUBLIC_API_BILLING_LIMIT_EXCEEDED"
_MOST_CAUSE: Final = 500
#: Airtable lists at most a hundred records a page (a documented limit).
RECORDS_PER_PAGE: Final = 100
#: Seconds. What asks for more is mistaken, or would overflow a date.
_LONGEST_RETRY_AFTER: Final = 3600.0


@dataclass(frozen=True, slots=True)
class AirtableError:
    """An error body, whichever of its shapes it came in."""

    type: str
    message: str

    def __str__(self) -> str:
        return _kept(f"{self.type}: {self.message}" if self.message else self.type)

    def without_secrets(self, redaction: Redaction) -> AirtableError:
        """To be called before the text is cut off, which would leave half of a secret."""
        return AirtableError(redaction.text(self.type), redaction.text(self.message))


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
    return AirtableError(f"HTTP {status}", body.decode(errors="replace").strip())


def _message(rest: Mapping[object, object]) -> str:
    message = rest.get("message")
    return message if isinstance(message, str) else ""


def _kept(text: str) -> str:
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
        case 429 if error.type == _QUOTA:
            return QuotaExhausted(cause)
        case 429:
            return RateLimited(cause)
        case 401 | 403:
            return Denied(status, cause)
        case 404 if error.type not in _GONE:
            return Denied(status, cause)
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
            return Unknown(f"Airtable answered {status} ({cause})", status, _retry_after(headers))
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


# Sending --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AirtableAccess:
    """Where the table is. `timeout_seconds` limits connecting and each wait for bytes; twice that, the whole call."""

    api_key: str = field(repr=False)
    endpoint_url: str
    base_id: str
    table: str
    timeout_seconds: float

    def open(self) -> Table:
        """A table with a session of its own. pyairtable would retry any method, creates included: never here."""
        seconds = max(1, round(self.timeout_seconds))
        api = Api(self.api_key, timeout=(seconds, seconds), retry_strategy=None, endpoint_url=self.endpoint_url)
        api.session.auth = _Bearer(self.api_key)
        api.session.hooks["response"].append(_refuse_no_yes)
        return api.table(self.base_id, self.table)


class _Bearer(AuthBase):
    """Set last, so that nothing that stands in a .netrc takes the place of our key."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


class _NoYes(Exception):
    """An answer that is no 2xx, whole."""

    def __init__(self, answer: requests.Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


def _refuse_no_yes(response: requests.Response, *_args: object, **_kwargs: object) -> None:
    """Called before a redirect is followed, which would make a listing of a write and send our key elsewhere.

    Only a 2xx is a yes. Of all else `requests` refuses 4xx and 5xx only, and pyairtable stumbles over their odd bodies.
    """
    if response.status_code // 100 != 2:  # noqa: PLR2004
        response.content  # noqa: B018  # read here, in a thread that may wait for it
        raise _NoYes(response)


def redaction_of(api_key: str) -> Redaction:
    """Cuts the key out of texts, also as errors quote it: an answer may repeat it, an error name the whole header."""
    return Redaction([api_key, repr(api_key)[1:-1], ascii(api_key)[1:-1]])


class Airtable:
    """Delivers claims through pyairtable, several at a time."""

    def __init__(self, access: AirtableAccess, registry: Registry) -> None:
        self._registry = registry
        self._table = access.table
        self._total_seconds = 2 * access.timeout_seconds
        self._threads = TableThreads(access.open)
        self._redaction = redaction_of(access.api_key)

    async def deliver(self, claim: Claim) -> Answer:
        records = records_of(claim, self._registry)
        answer = await self._ask(lambda table: _write(table, records, self._merge_on(claim)))
        return decode_written(claim, answer.value, self._registry) if isinstance(answer, _Body) else answer

    def _merge_on(self, claim: Claim) -> str | None:
        return self._registry[RUN_ID].column if claim.creating else None

    def close(self) -> None:
        self._threads.close()

    # Asking

    async def find(
        self, run_ids: Sequence[str], record_ids: Sequence[str] = (), offset: str | None = None
    ) -> ListAnswer:
        """A page of the records that carry one of these run ids, or are one of these."""
        column = self._registry[RUN_ID].column
        named = [EQ(Field(column), run_id) for run_id in run_ids]
        formula = OR(*named, *(EQ(RECORD_ID(), record_id) for record_id in record_ids))
        options: dict[str, object] = {"formula": str(formula), "page_size": RECORDS_PER_PAGE}
        return await self._list(options if offset is None else {**options, "offset": offset})

    async def list_since(self, since: datetime, columns: Sequence[str], offset: str | None) -> ListAnswer:
        """A page of the records that were created in Airtable after `since`, with these columns of theirs.

        Airtable refuses the whole page over one column that it does not have.
        """
        after = IS_AFTER(CREATED_TIME(), DATETIME_PARSE(iso(since)))
        options: dict[str, object] = {"formula": str(after), "page_size": RECORDS_PER_PAGE, "fields": list(columns)}
        return await self._list(options if offset is None else {**options, "offset": offset})

    async def _list(self, options: dict[str, object]) -> ListAnswer:
        answer = await self._ask(
            lambda table: table.api.request(
                "GET", table.urls.records, fallback=("POST", table.urls.records_post), options=options
            )
        )
        if not isinstance(answer, _Body):
            return answer
        try:
            page = _ListedRecords.model_validate(answer.value)
        except ValidationError as error:
            return Unknown(_senseless(error), 200)
        return Listed(tuple(FoundRecord(one.id, one.fields) for one in page.records), page.offset)

    async def peek(self) -> ListAnswer:
        """One record, or none: whether the table can be read at all."""
        return await self._list({"max_records": 1, "page_size": 1})

    async def identify(self) -> IdentifyAnswer:
        """Whose token this is (needs no scope, and asks nothing of the base)."""
        answer = await self._ask(_whoami)
        if not isinstance(answer, _Body):
            return answer
        try:
            told = _Told.model_validate(answer.value)
        except ValidationError as error:
            return Unknown(_senseless(error), 200)
        scopes = None if told.body.scopes is None else tuple(told.body.scopes)
        return Identified(told.body.id, scopes, parse_http_date(told.date))

    async def describe(self) -> DescribeAnswer:
        """The table's real columns (needs the scope `schema.bases:read`)."""
        answer = await self._ask(lambda table: table.api.request("GET", table.base.urls.tables))
        if not isinstance(answer, _Body):
            return answer
        try:
            tables = _DescribedTables.model_validate(answer.value).tables
        except ValidationError as error:
            return Unknown(_senseless(error), 200)
        ours = next((one for one in tables if self._table in {one.id, one.name}), None)
        columns = None if ours is None else tuple(one.to_column() for one in ours.fields)
        return Described(columns, tuple(one.name for one in tables))

    async def _ask(self, call: Callable[[Table], object]) -> _Body | Failure:
        """One request; its body, or what went wrong."""
        try:
            async with asyncio.timeout(self._total_seconds):
                return _Body(await self._threads.run(call))
        except TimeoutError:
            return Unknown(f"no whole answer within {self._total_seconds:g} s")
        except _NoYes as error:
            status, headers, body = error.answer.status_code, error.answer.headers, error.answer.content
            return decode_failure(status, headers, body, self._registry, self._redaction)
        except (requests.RequestException, ValueError, RecursionError) as error:
            return Unknown(_kept(self._redaction.text(f"{type(error).__name__}: {error}")))


@dataclass(frozen=True, slots=True)
class _Body:
    """A 2xx answer's JSON, whatever it is."""

    value: object


def _write(table: Table, records: Sequence[Record], merge_on: str | None) -> object:
    """One request: an upsert on `merge_on`, or an update by record id, which can create nothing."""
    if len(records) > RECORDS_PER_CALL:
        raise AssertionError("pyairtable would split the call, and a failing part would lose the others' ids")
    body: dict[str, Json] = {"records": [record.to_wire() for record in records]}
    if merge_on is not None:
        body["performUpsert"] = {"fieldsToMergeOn": [merge_on]}
    answer: object = table.api.request("PATCH", table.urls.records, json=body)
    return answer


def _whoami(table: Table) -> dict[str, object]:
    """The body, and the answer's own date, which pyairtable would keep to itself."""
    response = table.api.session.get(str(table.api.urls.whoami), timeout=table.api.timeout)
    return {"body": response.json(), "date": response.headers.get("Date")}
