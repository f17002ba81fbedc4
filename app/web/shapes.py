"""What goes over the wire as JSON: bodies that callers send, and answers.

The same types validate, answer and are described in `/openapi.json`: none of the three can say something else.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  # answers are written from these types at run time
from dataclasses import dataclass, fields
from typing import Annotated, Generic, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, Field, TypeAdapter

from app.intake import Request
from app.model import ErrorKind, OpenError, WebhookOutcome  # noqa: TC001
from app.store.views import (
    CheckReport,
    ErrorView,
    KickoffTaken,
    MessageView,
    PruneReport,
    RunSummary,
    RunView,
    Stats,
)

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

# Asked ----------------------------------------------------------------------------------------------------------


class NothingRequest(Request):
    """Nothing to say: no body, or `{}`."""


class ResolveRequest(Request):
    """How an error was dealt with; `discard` throws away what it holds."""

    note: Annotated[str, Field(max_length=2_000)] | None = None
    discard: bool = False


class RetryRequest(Request):
    """Which dead messages to send again: of this kind of error, of this run, set aside since this time."""

    kind: ErrorKind | None = None
    run_id: str | None = None
    since: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None


class CheckRequest(Request):
    """A consistency check; `repair` delivers again what drifted."""

    repair: Literal["drift"] | None = None


# Answered -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunCreated(RunView):
    """The run; `created` is false where it existed before."""

    created: bool

    @staticmethod
    def of(taken: KickoffTaken) -> RunCreated:
        run = {one.name: getattr(taken.run, one.name) for one in fields(RunView)}
        return RunCreated(**run, created=taken.created)


@dataclass(frozen=True, slots=True)
class UpdateTaken:
    """What became of an update: `message_id` where it was queued, `error` where it is held."""

    outcome: Literal["queued", "duplicate", "held"]
    run_id: str
    message_id: int | None = None
    error: OpenError | None = None


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What became of a webhook; `error` where it is held."""

    outcome: WebhookOutcome
    run_id: str | None
    detail: str | None
    error: OpenError | None = None


@dataclass(frozen=True, slots=True)
class RunPage:
    """Runs, newest first; `next_cursor` is null on the last page. A page of large rows is a short one."""

    runs: Sequence[RunSummary]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """Errors, newest first; `next_cursor` is null on the last page. A page of large rows is a short one."""

    errors: Sequence[ErrorView]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Messages, newest first; `next_cursor` is null on the last page. A page of large rows is a short one."""

    messages: Sequence[MessageView]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Retried:
    """How many messages are pending again."""

    retried: int


@dataclass(frozen=True, slots=True)
class Alive:
    status: Literal["alive"]
    version: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """`accepting`: what is sent here is stored. `syncing`: it reaches Airtable. `reasons`: what stands against it."""

    status: Literal["ready", "not ready"]
    accepting: bool
    syncing: bool
    reasons: Sequence[str]


class Shape(Generic[T]):
    """One kind of JSON answer. A `sparse` one leaves members out that have their default."""

    def __init__(self, of: type[T], *, sparse: bool = False) -> None:
        self.adapter = TypeAdapter(of)
        self._sparse = sparse

    def answer(self, value: T, *, status: int = 200) -> web.Response:
        body = self.adapter.dump_json(value, exclude_defaults=self._sparse)
        return web.Response(status=status, body=body, content_type="application/json")


RUN = Shape(RunView)
RUN_CREATED = Shape(RunCreated)
RUN_PAGE = Shape(RunPage)
UPDATE_TAKEN = Shape(UpdateTaken, sparse=True)
ERROR = Shape(ErrorView)
ERROR_PAGE = Shape(ErrorPage)
MESSAGE = Shape(MessageView)
MESSAGE_PAGE = Shape(MessagePage)
RETRIED = Shape(Retried)
CHECK = Shape(CheckReport)
PRUNED = Shape(PruneReport)
STATS = Shape(Stats)
WEBHOOK_ANSWER = Shape(WebhookAnswer, sparse=True)
ALIVE = Shape(Alive)
READINESS = Shape(Readiness)
