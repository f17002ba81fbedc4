"""The calls: each reads its request, hands it to a use case or the store, and writes the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from app.apify import decode_webhook
from app.clock import parse_iso
from app.errors import MOST_FLAWS, Flaw, Invalid, NotFound, did_you_mean
from app.intake import KickoffRequest, UpdateRequest
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
    MessageFilter,
    RunFilter,
    RunView,
    Slice,
    number_of,
)
from app.web import contract, shapes
from app.web.guard import Bearer, check_json, read_body
from app.web.problems import flaws_of
from app.web.shapes import (
    CheckRequest,
    ErrorPage,
    MessagePage,
    NothingRequest,
    ResolveRequest,
    Retried,
    RetryRequest,
    RunCreated,
    RunPage,
    UpdateTaken,
    WebhookAnswer,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from aiohttp import web

    from app.clock import Clock
    from app.intake import Intake
    from app.model import UpdateOutcome
    from app.store.protocol import Reading, Replay
    from app.store.views import PruneReport

ModelT = TypeVar("ModelT", bound=BaseModel)


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
        prune: Callable[[], Awaitable[PruneReport]],
        on_work: Callable[[], None],
    ) -> None:
        self._intake = intake
        self._reading = reading
        self._replay = replay
        self._clock = clock
        self._internal = internal
        self._webhook = webhook
        self._check = check
        self._prune = prune
        self._on_work = on_work

    def routes(self) -> list[web.RouteDef]:
        return [
            contract.CREATE_RUN.served_by(self.create_run),
            contract.LIST_RUNS.served_by(self.list_runs),
            contract.SHOW_RUN.served_by(self.show_run),
            contract.UPDATE_RUN.served_by(self.update_run),
            contract.LIST_ERRORS.served_by(self.list_errors),
            contract.RESOLVE_ERROR.served_by(self.resolve_error),
            contract.LIST_MESSAGES.served_by(self.list_messages),
            contract.RETRY_MESSAGES.served_by(self.retry_messages),
            contract.RETRY_MESSAGE.served_by(self.retry_message),
            contract.CHECK.served_by(self.check),
            contract.PRUNE.served_by(self.prune),
            contract.STATS.served_by(self.stats),
            contract.TAKE_WEBHOOK.served_by(self.take_webhook),
        ]

    # Runs

    async def create_run(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = await _body(request, KickoffRequest)
        taken = await self._intake.create_run(asked, request.headers.get(contract.IDEMPOTENCY_HEADER))
        return shapes.RUN_CREATED.answer(RunCreated.of(taken), status=201 if taken.created else 200)

    async def update_run(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = await _body(request, UpdateRequest)
        run_id = request.match_info["run_id"]
        outcome = await self._intake.update_run(run_id, asked, request.headers.get(contract.IDEMPOTENCY_HEADER))
        return shapes.UPDATE_TAKEN.answer(_taken(run_id, outcome), status=202)

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
        return shapes.RUN_PAGE.answer(RunPage(page.rows, page.next_cursor))

    async def show_run(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        _Query(request, paged=False)
        return shapes.RUN.answer(await self._existing_run(request.match_info["run_id"]))

    async def _existing_run(self, run_id: str) -> RunView:
        run = await self._reading.run(run_id)
        if run is None:
            raise NotFound(str(await self._reading.no_run(run_id)))
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
        return shapes.ERROR_PAGE.answer(ErrorPage(page.rows, page.next_cursor))

    async def resolve_error(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        error_id = _id(request)
        asked = await _body(request, ResolveRequest, optional=True)
        await self._replay.resolve_error(error_id, note=asked.note, discard=asked.discard, at=self._clock.now())
        return shapes.ERROR.answer(_found(await self._reading.error(error_id)))

    # Outbox

    async def list_messages(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = _Query(request, "state", "run_id", "kind")
        chosen = MessageFilter(
            state=asked.word("state", MessageState), run_id=asked.text("run_id"), kind=asked.word("kind", MessageKind)
        )
        page = await self._reading.messages(chosen, asked.slice())
        return shapes.MESSAGE_PAGE.answer(MessagePage(page.rows, page.next_cursor))

    async def retry_message(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        message_id = _id(request)
        await _body(request, NothingRequest, optional=True)
        message = _found(await self._replay.retry(message_id, self._clock.now()))
        self._on_work()
        return shapes.MESSAGE.answer(message)

    async def retry_messages(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = await _body(request, RetryRequest, optional=True)
        retried = await self._replay.retry_all(
            kind=asked.kind, run_id=asked.run_id, since=_since(asked.since), at=self._clock.now()
        )
        self._on_work()
        return shapes.RETRIED.answer(Retried(retried))

    # The rest

    async def check(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        asked = await _body(request, CheckRequest, optional=True)
        return shapes.CHECK.answer(await self._check(repair=asked.repair is not None))

    async def prune(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        await _body(request, NothingRequest, optional=True)
        return shapes.PRUNED.answer(await self._prune())

    async def stats(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        _Query(request, paged=False)
        return shapes.STATS.answer(await self._reading.stats(self._clock.now()))

    async def take_webhook(self, request: web.Request) -> web.Response:
        self._webhook.check(request)
        body = await read_body(request)
        event = decode_webhook(body, request.headers, request.query, received_at=self._clock.now())
        taken = await self._intake.take_webhook(event)
        answer = WebhookAnswer(taken.outcome, taken.run_id, taken.detail, taken.error)
        return shapes.WEBHOOK_ANSWER.answer(answer)


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
    if (number := number_of(text)) is None:
        raise NotFound(f"{text[:40]!r} is no id: ids are whole numbers")
    return number


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
        if (number := number_of(value)) is None:
            raise Invalid.because([Flaw("", f"{name!r} takes {'next_cursor' if name == 'cursor' else 'a number'}")])
        return number


FoundT = TypeVar("FoundT")


def _found(row: FoundT | None) -> FoundT:
    assert row is not None, "rows are never deleted between a change and its answer"
    return row


def _taken(run_id: str, outcome: UpdateOutcome) -> UpdateTaken:
    match outcome:
        case Queued():
            return UpdateTaken("queued", run_id, message_id=outcome.message_id)
        case Duplicate():
            return UpdateTaken("duplicate", run_id)
        case Held():
            return UpdateTaken("held", run_id, error=outcome.error)
