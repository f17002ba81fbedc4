"""The source's other half: actor runs started, looked for, followed and measured with apify-client.

Starts go through a client with no retries, because Apify has no key that would make a second one harmless; reads
through one that retries. Both use the httpx2 transport: with the default one a process that stops after a failed
request may die of SIGABRT or SIGSEGV (measured with impit 0.15.1: 5 and 14 of 30; with httpx2 0 of 30).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, TypeVar, get_args
from urllib.parse import urlencode

import httpx2
from apify_client import ApifyClientAsync
from apify_client.errors import ApifyApiError, ApifyClientError, NotFoundError, RateLimitError, ServerError
from apify_client.http_clients import Httpx2HttpClientAsync

from app.apify import BATCH_PARAMETER, RUN_PARAMETER
from app.clock import iso
from app.policy.harvest import (
    ActorRun,
    Found,
    LookFailed,
    Measured,
    NoneFound,
    Report,
    Started,
    StartLost,
    StartPostponed,
    StartRefused,
    Vanished,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection
    from datetime import datetime

    from apify_client._models import Run, RunListItem
    from apify_client.types import WebhooksList

    from app.policy.harvest import Batch

T = TypeVar("T")

StartAnswer: TypeAlias = Started | StartLost | StartPostponed | StartRefused
FindAnswer: TypeAlias = Found | NoneFound | LookFailed
FollowAnswer: TypeAlias = Report | Vanished | LookFailed
MeasureAnswer: TypeAlias = Measured | Vanished | LookFailed

RunEvent: TypeAlias = Literal[
    "ACTOR.RUN.CREATED",
    "ACTOR.RUN.SUCCEEDED",
    "ACTOR.RUN.FAILED",
    "ACTOR.RUN.ABORTED",
    "ACTOR.RUN.TIMED_OUT",
    "ACTOR.RUN.RESURRECTED",
]
#: All that our webhooks tell us: the start, every end, and a run that goes on after its end.
EVENTS: Final[tuple[RunEvent, ...]] = get_args(RunEvent)
#: Apify's words for a full plan, with whatever status they come.
_FULL: Final = ("actor-memory-limit-exceeded", "concurrent-runs-limit-exceeded")
_PAGE: Final = 1_000
_READ_RETRIES: Final = 3
#: Ours and Apify's clocks may differ: a run that is a little older than the attempt may still be its.
CLOCK_MARGIN: Final = timedelta(seconds=120)


class Source(Protocol):
    """What the harvest loop works with. None of these raises for what the other side does."""

    async def start(self, batch: Batch, run_input: str) -> StartAnswer: ...

    async def find(
        self, batch: Batch, run_input: str, attempted_at: datetime, taken: Collection[str]
    ) -> FindAnswer: ...

    async def follow(self, apify_run_id: str, at: datetime) -> FollowAnswer: ...

    async def measure(self, apify_run_id: str) -> MeasureAnswer: ...


@dataclass(frozen=True, slots=True)
class ApifyAccess:
    """`public_url` is where Apify reaches our webhook; without one a run's end is found by asking."""

    token: str
    api_url: str
    public_url: str
    webhook_secret: str
    timeout_seconds: float = 30.0


class Apify:
    def __init__(self, access: ApifyAccess) -> None:
        self._access = access
        self._starts = _client(access, retries=0)
        self._reads = _client(access, retries=_READ_RETRIES)

    async def close(self) -> None:
        for client in (self._starts, self._reads):
            await client.http_client.aclose()

    # Start

    async def start(self, batch: Batch, run_input: str) -> StartAnswer:
        """Send exactly one start."""
        actor = self._starts.actor(batch.actor_id or "")
        start = actor.start(
            run_input=run_input.encode(), content_type="application/json", webhooks=webhooks_of(batch, self._access)
        )
        try:
            return Started(_actor_run(await self._within(start)))
        except httpx2.ConnectError as error:
            return StartPostponed(f"Apify cannot be reached: {_short(error)}")
        except RateLimitError as error:
            return StartPostponed(f"Apify asks for a pause: {_short(error)}")
        except ServerError as error:
            return StartLost(f"Apify answered {error.status_code} to the start")
        except ApifyApiError as error:
            return _refused_start(error)
        except (httpx2.HTTPError, ApifyClientError, TimeoutError, ValueError) as error:
            return StartLost(f"the start's answer was lost: {_short(error)}")

    # Find

    async def find(self, batch: Batch, run_input: str, attempted_at: datetime, taken: Collection[str]) -> FindAnswer:
        """Look through all of the actor's runs since the attempt for one with this very input that nobody has."""
        wanted = json.loads(run_input)
        try:
            for run in await self._runs_since(batch.actor_id or "", attempted_at - CLOCK_MARGIN):
                if run.id in taken:
                    continue
                record = await self._within(
                    self._reads.key_value_store(run.default_key_value_store_id).get_record("INPUT")
                )
                if record is not None and record["value"] == wanted:
                    return Found(_listed_run(run))
        except _TROUBLE as error:
            return LookFailed(f"Apify's runs could not be listed: {_short(error)}")
        return NoneFound()

    async def _runs_since(self, actor_id: str, since: datetime) -> list[RunListItem]:
        """Every run that started since then, oldest first: page by page until one is empty."""
        runs: list[RunListItem] = []
        while True:
            page = await self._within(
                self._reads.actor(actor_id).runs().list(started_after=since, desc=False, limit=_PAGE, offset=len(runs))
            )
            if not page.items:
                return runs
            runs += page.items

    # Follow

    async def follow(self, apify_run_id: str, at: datetime) -> FollowAnswer:
        """The run as it is now."""
        try:
            run = await self._within(self._reads.run(apify_run_id).get())
        except _TROUBLE as error:
            return LookFailed(f"Apify could not be asked about run {apify_run_id}: {_short(error)}")
        return Vanished() if run is None else Report(_actor_run(run), iso(at))

    # Measure

    async def measure(self, apify_run_id: str) -> MeasureAnswer:
        """The figures of a run that has ended; call it when Apify has had time to settle them."""
        try:
            run = await self._within(self._reads.run(apify_run_id).get())
            if run is None:
                return Vanished()
            items = await self._count_items(run.default_dataset_id)
        except _TROUBLE as error:
            return LookFailed(f"Apify could not be asked for the figures of run {apify_run_id}: {_short(error)}")
        return Measured(
            items=items,
            cost_usd=run.usage_total_usd,
            duration_seconds=_duration(run),
            status_message=run.status_message,
        )

    async def _count_items(self, dataset_id: str) -> int | None:
        """The exact number: Apify's own count lags, so what lies beyond it is asked for until a page is empty."""
        dataset = self._reads.dataset(dataset_id)
        shown = await self._within(dataset.get())
        if shown is None:
            return None
        count = shown.item_count
        while True:
            page = await self._within(dataset.list_items(offset=count, limit=_PAGE))
            if not page.items:
                return count
            count += len(page.items)

    async def _within(self, call: Awaitable[T]) -> T:
        """httpx2 limits each wait for bytes, not the call: this does."""
        async with asyncio.timeout(2 * self._access.timeout_seconds):
            return await call


#: What a read may raise: the wire, Apify's errors, answers that make no sense (`ValueError`, `KeyError`).
_TROUBLE: Final = (httpx2.HTTPError, ApifyClientError, TimeoutError, ValueError, KeyError)


def _client(access: ApifyAccess, *, retries: int) -> ApifyClientAsync:
    limit = timedelta(seconds=access.timeout_seconds)
    http = Httpx2HttpClientAsync(
        max_retries=retries, timeout_short=limit, timeout_medium=limit, timeout_long=limit, timeout_max=limit
    )
    return ApifyClientAsync.with_custom_http_client(access.token, api_url=access.api_url, http_client=http)


def webhooks_of(batch: Batch, access: ApifyAccess) -> WebhooksList | None:
    """The ad-hoc webhook of a start: its URL names the run and the batch, a header carries the secret."""
    if not access.public_url:
        return None
    query = urlencode({RUN_PARAMETER: batch.run_id, BATCH_PARAMETER: batch.token or ""})
    headers = {"Authorization": f"Bearer {access.webhook_secret}"} if access.webhook_secret else {}
    webhook = {
        "event_types": list(EVENTS),
        "request_url": f"{access.public_url.rstrip('/')}/webhooks/apify?{query}",
        "headers_template": json.dumps(headers),
    }
    return [webhook]  # type: ignore[return-value]  # apify-client does not export the type of this very dict


def _refused_start(error: ApifyApiError) -> StartAnswer:
    """A start that was answered and not done. The error's type decides before the status: sources differ on that."""
    said = _short(error)
    if error.type in _FULL:
        return StartPostponed(f"Apify's plan is full: {said}")
    if error.status_code in {401, 402, 403}:
        return StartPostponed(f"Apify does not let us start: {said}")
    if error.status_code == 408:  # noqa: PLR2004
        return StartLost(f"the start's answer was lost: {said}")
    if isinstance(error, NotFoundError):
        return StartRefused(f"Apify knows no such actor: {said}")
    return StartRefused(f"Apify refuses the input: {said}")


def _actor_run(run: Run) -> ActorRun:
    return ActorRun(
        id=run.id,
        status=str(run.status),
        actor_id=run.act_id,
        started_at=iso(run.started_at),
        finished_at=iso(run.finished_at) if run.finished_at else None,
        dataset_id=run.default_dataset_id,
        status_message=run.status_message,
    )


def _listed_run(run: RunListItem) -> ActorRun:
    """A listed run, as one that has begun: how it stands is asked next."""
    return ActorRun(
        id=run.id,
        status="READY",
        actor_id=run.act_id,
        started_at=iso(run.started_at),
        dataset_id=run.default_dataset_id,
    )


def _duration(run: Run) -> float | None:
    if run.stats.run_time_secs is not None:
        return run.stats.run_time_secs
    return (run.finished_at - run.started_at).total_seconds() if run.finished_at else None


_MOST_CAUSE: Final = 300


def _short(error: Exception) -> str:
    """What went wrong, without the request: its URL and headers hold secrets."""
    if isinstance(error, ApifyApiError):
        return f"{error.type or error.status_code}: {error.message}"[:_MOST_CAUSE]
    return f"{type(error).__name__}: {error}".rstrip(": ")[:_MOST_CAUSE]
