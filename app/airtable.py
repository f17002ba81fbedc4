"""The destination: pyairtable sends what the codec made, and hands it what came back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import requests
from pyairtable import Api
from pyairtable.formulas import CREATED_TIME, DATETIME_PARSE, EQ, IS_AFTER, OR, RECORD_ID, Field
from requests.auth import AuthBase

from app.airtable_codec import (
    RECORDS_PER_PAGE,
    Record,
    cause_of,
    decode_described,
    decode_failure,
    decode_identity,
    decode_listed,
    decode_written,
    records_of,
)
from app.airtable_transport import LineAdapter
from app.clock import iso
from app.fields import RUN_ID
from app.logs import Redaction
from app.model import RECORDS_PER_CALL
from app.policy.delivery import Unknown
from app.table_threads import TableThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from pyairtable import Table

    from app.fields import Registry
    from app.model import Json
    from app.policy.asking import DescribeAnswer, Failure, IdentifyAnswer, ListAnswer
    from app.policy.delivery import Answer, Claim


class Destination(Protocol):
    """What the sync loop delivers to."""

    async def deliver(self, claim: Claim) -> Answer:
        """Send one request with all runs of `claim`. Never raises for what the other side does."""
        ...


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
        for scheme in ("https://", "http://"):
            api.session.mount(scheme, LineAdapter())
        return api.table(self.base_id, self.table)

    @property
    def total_seconds(self) -> float:
        return 2 * self.timeout_seconds


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
        self._total_seconds = access.total_seconds
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
        return decode_listed(answer.value) if isinstance(answer, _Body) else answer

    async def peek(self) -> ListAnswer:
        """One record, or none: whether the table can be read at all."""
        return await self._list({"max_records": 1, "page_size": 1})

    async def identify(self) -> IdentifyAnswer:
        """Whose token this is (needs no scope, and asks nothing of the base)."""
        answer = await self._ask(_whoami)
        return decode_identity(answer.value) if isinstance(answer, _Body) else answer

    async def describe(self) -> DescribeAnswer:
        """The table's real columns (needs the scope `schema.bases:read`)."""
        answer = await self._ask(lambda table: table.api.request("GET", table.base.urls.tables))
        return decode_described(answer.value, self._table) if isinstance(answer, _Body) else answer

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
            return Unknown(cause_of(self._redaction.text(f"{type(error).__name__}: {error}")))


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
