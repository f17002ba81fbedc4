"""The calls: each reads its request, hands it to a use case or the store, and writes the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeVar

from aiohttp import web
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from app.apify import decode_webhook
from app.clock import parse_iso
from app.errors import MOST_FLAWS, Flaw, Invalid, NotFound, did_you_mean
from app.intake import KickoffRequest, Request, UpdateRequest
from app.model import (
    Duplicate,
    ErrorKind,
    ErrorState,
    Held,
    MessageKind,
    MessageState,
    Queued,
    SyncState,
)
from app.store.views import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    CheckReport,
    ErrorFilter,
    ErrorView,
    MessageFilter,
    MessageView,
    RunFilter,
    RunSummary,
    RunView,
    Slice,
    Stats,
)
from app.web.guard import Bearer, check_json, read_body
from app.web.problems import flaws_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from app.clock import Clock
    from app.intake import Intake
    from app.model import Json, OpenError
    from app.store.protocol import Reading, Replay

IDEMPOTENCY_HEADER = "Idempotency-Key"

ModelT = TypeVar("ModelT", bound=BaseModel)


class ResolveRequest(Request):
    """How an error was dealt with; `discard` throws away what it holds."""

    note: Annotated[str, Field(max_length=2_000)] | None = None
    discard: bool = False


class RetryRequest(Request):
    """Which dead messages to send again: of this kind of error, of this run, set aside since this time."""

    kind: ErrorKind | None = None
    run_id: str | None = None
    since: str | None = None


class CheckRequest(Request):
    """A consistency check; `repair` delivers again what drifted."""

    repair: Literal["drift"] | None = None


class Check(Protocol):
    """Run a consistency check to its end; one at a time."""

    async def __call__(self, *, repair: bool) -> CheckReport: ...


class Calls:
    """The handlers of the internal calls and of the webhook, over the use cases and the store."""

    def __init__(
        self,
        intake: Intake,
        reading: Reading,
        replay: Replay,
        clock: Clock,
        *,
        internal: Bearer,
        webhook: Bearer,
        check: Check,
        on_work: Callable[[], None],
    ) -> None:
        self._intake = intake
        self._reading = reading
        self._replay = replay
        self._clock = clock
        self._internal = internal
        self._webhook = webhook
        self._check = check
        self._on_work = on_work

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/runs", self.create_run),
            web.get("/runs", self.list_runs),
            web.get("/runs/{run_id}", self.show_run),
            web.patch("/runs/{run_id}", self.update_run),
            web.get("/errors", self.list_errors),
            web.post("/errors/{id}/resolve", self.resolve_error),
            web.get("/outbox", self.list_messages),
            web.post("/outbox/retry", self.retry_messages),
            web.post("/outbox/{id}/retry", self.retry_message),
            web.post("/check", self.check),
            web.get("/stats", self.stats),
            web.post("/webhooks/apify", self.take_webhook),
        ]

    # Runs

    async def create_run(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = await _body(request, KickoffRequest)
        created = await self._intake.create_run(asked, request.headers.get(IDEMPOTENCY_HEADER))
        run = await self._existing_run(created.run_id)
        body = b'{"created":' + (b"true," if created.created else b"false,") + _RUN.dump_json(run)[1:]
        return _answer(body, status=201 if created.created else 200)

    async def update_run(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = await _body(request, UpdateRequest)
        run_id = request.match_info["run_id"]
        outcome = await self._intake.update_run(run_id, asked, request.headers.get(IDEMPOTENCY_HEADER))
        match outcome:
            case Queued():
                return _json({"outcome": "queued", "run_id": run_id, "message_id": outcome.message_id}, status=202)
            case Duplicate():
                return _json({"outcome": "duplicate", "run_id": run_id}, status=202)
            case Held():
                return _json({"outcome": "held", "run_id": run_id, "error": _error(outcome.error)}, status=202)

    async def list_runs(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = _Query(request, "client_id", "job_id", "status", "sync")
        chosen = RunFilter(
            client_id=asked.text("client_id"),
            job_id=asked.text("job_id"),
            status=asked.text("status"),
            sync=asked.word("sync", SyncState),
        )
        page = await self._reading.runs(chosen, asked.slice())
        return _page("runs", _RUNS.dump_json(list(page.rows)), page.next_cursor)

    async def show_run(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        _Query(request, paged=False)
        return _answer(_RUN.dump_json(await self._existing_run(request.match_info["run_id"])))

    async def _existing_run(self, run_id: str) -> RunView:
        run = await self._reading.run(run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id!r}: runs are created at kickoff only (POST /runs)")
        return run

    # Errors

    async def list_errors(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = _Query(request, "kind", "state", "run_id", "client_id")
        chosen = ErrorFilter(
            kind=asked.word("kind", ErrorKind),
            state=asked.word("state", ErrorState),
            run_id=asked.text("run_id"),
            client_id=asked.text("client_id"),
        )
        page = await self._reading.errors(chosen, asked.slice())
        return _page("errors", _ERRORS.dump_json(list(page.rows)), page.next_cursor)

    async def resolve_error(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        error_id = _id(request)
        asked = await _body(request, ResolveRequest, optional=True)
        await self._replay.resolve_error(error_id, note=asked.note, discard=asked.discard, at=self._clock.now())
        return _answer(_ERROR.dump_json(_found(await self._reading.error(error_id))))

    # Outbox

    async def list_messages(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = _Query(request, "state", "run_id", "kind")
        chosen = MessageFilter(
            state=asked.word("state", MessageState), run_id=asked.text("run_id"), kind=asked.word("kind", MessageKind)
        )
        page = await self._reading.messages(chosen, asked.slice())
        return _page("messages", _MESSAGES.dump_json(list(page.rows)), page.next_cursor)

    async def retry_message(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        message_id = _id(request)
        await _body(request, Request, optional=True)
        message = _found(await self._replay.retry(message_id, self._clock.now()))
        self._on_work()
        return _answer(_MESSAGE.dump_json(message))

    async def retry_messages(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = await _body(request, RetryRequest, optional=True)
        retried = await self._replay.retry_all(
            kind=asked.kind, run_id=asked.run_id, since=_since(asked.since), at=self._clock.now()
        )
        self._on_work()
        return _json({"retried": retried})

    # The rest

    async def check(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = await _body(request, CheckRequest, optional=True)
        return _answer(_CHECK.dump_json(await self._check(repair=asked.repair is not None)))

    async def stats(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        _Query(request, paged=False)
        return _answer(_STATS.dump_json(await self._reading.stats(self._clock.now())))

    async def take_webhook(self, request: web.Request) -> web.Response:
        self._webhook.check(request)
        body = await read_body(request)
        event = decode_webhook(body, request.headers, request.query, received_at=self._clock.now())
        taken = await self._intake.take_webhook(event)
        answer: dict[str, Json] = {"outcome": taken.outcome.value, "run_id": taken.run_id, "detail": taken.detail}
        if taken.error is not None:
            answer["error"] = _error(taken.error)
        return _json(answer)


# Requests -------------------------------------------------------------------------------------------------------


async def _body(request: web.Request, model: type[ModelT], *, optional: bool = False) -> ModelT:
    """The body as `model`; an empty one means `{}` where it is optional."""
    body = await read_body(request)
    if optional and not body:
        body = b"{}"
    else:
        check_json(request)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise flaws_of(error, model) from None


def _id(request: web.Request) -> int:
    text = request.match_info["id"]
    if not text.isascii() or not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise NotFound(f"{text[:40]!r} is no id: ids are whole numbers")
    return int(text)


#: SQLite's integers have 63 bits; 18 digits always fit.
_MOST_DIGITS = 18


def _since(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_iso(text)
    except ValueError:
        detail = "'since' takes an ISO 8601 time with an offset, like '2026-05-16T09:20:00Z'"
        raise Invalid.because([Flaw("/since", detail)]) from None


class _Query:
    """The parameters of a listing: only known ones, each once."""

    def __init__(self, request: web.Request, *names: str, paged: bool = True) -> None:
        self._given = request.query
        known = [*names, "limit", "cursor"] if paged else list(names)
        unknown = [name for name in self._given if name not in known]
        flaws = [
            Flaw("", f"{name[:40]!r} is not a parameter here{did_you_mean(name, known)}")
            for name in unknown[:MOST_FLAWS]
        ]
        flaws += [Flaw("", f"{name!r} is given twice") for name in known if len(self._given.getall(name, ())) > 1]
        if flaws:
            raise Invalid.because(flaws, more=len(unknown[MOST_FLAWS:]))

    def text(self, name: str) -> str | None:
        return self._given.get(name)

    def word(
        self, name: str, words: type[SyncState | ErrorKind | ErrorState | MessageKind | MessageState]
    ) -> str | None:
        value = self._given.get(name)
        known = [word.value for word in words]
        if value is None or value in known:
            return value
        raise Invalid.because([Flaw("", f"{name!r} takes one of {', '.join(known)}{did_you_mean(value, known)}")])

    def slice(self) -> Slice:
        limit, cursor = self._number("limit"), self._number("cursor")
        if limit is not None and not 0 < limit <= MAX_LIMIT:
            raise Invalid.because([Flaw("", f"'limit' is between 1 and {MAX_LIMIT}")])
        return Slice(DEFAULT_LIMIT if limit is None else limit, cursor)

    def _number(self, name: str) -> int | None:
        value = self._given.get(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdecimal() or len(value) > _MOST_DIGITS:
            raise Invalid.because([Flaw("", f"{name!r} takes {'next_cursor' if name == 'cursor' else 'a number'}")])
        return int(value)


# Answers --------------------------------------------------------------------------------------------------------

_RUN = TypeAdapter(RunView)
_RUNS = TypeAdapter(list[RunSummary])
_ERROR = TypeAdapter(ErrorView)
_ERRORS = TypeAdapter(list[ErrorView])
_MESSAGE = TypeAdapter(MessageView)
_MESSAGES = TypeAdapter(list[MessageView])
_STATS = TypeAdapter(Stats)
_CHECK = TypeAdapter(CheckReport)

FoundT = TypeVar("FoundT")


def _found(row: FoundT | None) -> FoundT:
    assert row is not None, "rows are never deleted between a change and its answer"
    return row


def _answer(body: bytes, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


def _json(value: Mapping[str, Json], *, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)


def _page(name: str, rows: bytes, next_cursor: str | None) -> web.Response:
    cursor = b"null" if next_cursor is None else b'"' + next_cursor.encode() + b'"'
    return _answer(b'{"' + name.encode() + b'":' + rows + b',"next_cursor":' + cursor + b"}")


def _error(error: OpenError) -> dict[str, Json]:
    return {
        "id": error.id,
        "kind": error.kind.value,
        "message": error.message,
        "similar_runs": list(error.similar_runs),
        "count": error.count,
    }
