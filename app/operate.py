"""What a person changes from the command line: through the running service, or in the store where none runs."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import aiohttp
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.clock import SystemClock, iso
from app.errors import NotFound, Problem, StoreLocked
from app.pruning import Pruning
from app.service import check_once, retention_rules
from app.store.sqlite.opening import open_store
from app.store.views import CheckReport, ErrorView, MessageView, PruneReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from app.config import Secrets, Settings
    from app.model import ErrorKind, Json
    from app.store.protocol import Store

T = TypeVar("T")

_SECONDS = 30.0


class Operator(Protocol):
    async def retry(self, message_id: int) -> MessageView: ...

    async def retry_all(self, *, kind: ErrorKind | None, run_id: str | None, since: datetime | None) -> int: ...

    async def resolve_error(self, error_id: int, *, note: str | None, discard: bool) -> ErrorView: ...

    async def check(self, *, repair: bool) -> CheckReport: ...

    async def prune(self) -> PruneReport: ...


@contextlib.asynccontextmanager
async def open_operator(settings: Settings, secrets: Secrets) -> AsyncIterator[Operator]:
    """The store itself if nobody holds it, else the service that does.

    Raises:
        StoreError: the store cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(
                open_store(
                    Path(settings.store.path),
                    at=datetime.now(UTC),
                    linger_seconds=settings.airtable.linger_seconds,
                    run_fields=list(settings.fields),
                    rules=settings.harvest_rules(),
                )
            )
        except StoreLocked:
            http = await stack.enter_async_context(aiohttp.ClientSession())
            yield ServiceOperator(http, settings, secrets)
        else:
            yield StoreOperator(store, settings, secrets)


class StoreOperator:
    def __init__(self, store: Store, settings: Settings, secrets: Secrets) -> None:
        self._store = store
        self._settings = settings
        self._secrets = secrets

    async def retry(self, message_id: int) -> MessageView:
        return _found(await self._store.retry(message_id, datetime.now(UTC)))

    async def retry_all(self, *, kind: ErrorKind | None, run_id: str | None, since: datetime | None) -> int:
        return await self._store.retry_all(kind=kind, run_id=run_id, since=since, at=datetime.now(UTC))

    async def resolve_error(self, error_id: int, *, note: str | None, discard: bool) -> ErrorView:
        await self._store.resolve_error(error_id, note=note, discard=discard, at=datetime.now(UTC))
        return _found(await self._store.error(error_id))

    async def check(self, *, repair: bool) -> CheckReport:
        return await check_once(self._settings, self._secrets, self._store, repair=repair)

    async def prune(self) -> PruneReport:
        return await Pruning(self._store, SystemClock(), retention_rules(self._settings)).prune()


def _found(row: T | None) -> T:
    if row is None:
        raise NotFound("it is gone")
    return row


class _Retried(BaseModel):
    retried: int


class _Told(BaseModel):
    detail: str


_MESSAGE = TypeAdapter(MessageView)
_ERROR = TypeAdapter(ErrorView)
_RETRIED = TypeAdapter(_Retried)
_CHECK = TypeAdapter(CheckReport)
_PRUNED = TypeAdapter(PruneReport)


class ServiceOperator:
    """The same over HTTP, where `[server]` says that the service listens."""

    def __init__(self, http: aiohttp.ClientSession, settings: Settings, secrets: Secrets) -> None:
        self._url = settings.server.local_url
        self._http = http
        self._headers = {"Authorization": f"Bearer {secrets.internal_tokens[0]}"} if secrets.internal_tokens else {}

    async def retry(self, message_id: int) -> MessageView:
        return await self._post(f"/outbox/{message_id}/retry", {}, _MESSAGE)

    async def retry_all(self, *, kind: ErrorKind | None, run_id: str | None, since: datetime | None) -> int:
        asked: dict[str, Json] = {"kind": kind, "run_id": run_id, "since": iso(since) if since else None}
        return (await self._post("/outbox/retry", asked, _RETRIED)).retried

    async def resolve_error(self, error_id: int, *, note: str | None, discard: bool) -> ErrorView:
        return await self._post(f"/errors/{error_id}/resolve", {"note": note, "discard": discard}, _ERROR)

    async def check(self, *, repair: bool) -> CheckReport:
        """However long it takes: a large table, within the limit and behind real work."""
        return await self._post("/check", {"repair": "drift" if repair else None}, _CHECK, seconds=None)

    async def prune(self) -> PruneReport:
        """However long it takes: beside the work, a store that was never pruned takes a while."""
        return await self._post("/prune", {}, _PRUNED, seconds=None)

    async def _post(
        self, path: str, body: Mapping[str, Json], answer: TypeAdapter[T], *, seconds: float | None = _SECONDS
    ) -> T:
        timeout = aiohttp.ClientTimeout(total=seconds, connect=_SECONDS)
        try:
            async with self._http.post(self._url + path, json=body, headers=self._headers, timeout=timeout) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Problem(
                f"the service that holds the store does not answer at {self._url} ({error}): is [server] port its port?"
            ) from error
        try:
            if response.ok:
                return answer.validate_json(text)
            raise Problem(_Told.model_validate_json(text).detail)
        except ValidationError as error:
            raise Problem(f"what answers at {self._url} is not this service ({response.status})") from error
