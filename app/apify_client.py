"""The source's other half: actor runs started, looked for, followed and measured with apify-client.

Starts go through a client with no retries, because Apify has no key that would make a second one harmless; reads
through one that retries. A start carries its batch's token in the User-Agent, which Apify keeps with the run, so that
a start whose answer was lost is known again for certain. How the requests go out is `app.apify_transport`.
"""

from __future__ import annotations

import json
import logging
import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from string import ascii_letters, digits
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, TypeVar, get_args
from urllib.parse import urlencode

import httpx2
from apify_client import ApifyClientAsync
from apify_client.errors import ApifyApiError, NotFoundError, RateLimitError, ServerError
from pydantic import ValidationError

from app.apify import BATCH_PARAMETER, RUN_PARAMETER
from app.apify_transport import LARGEST_ANSWER, BoundedClient, NotApifys, TooLong
from app.clock import iso, parse_iso
from app.fields import MAX_DECIMAL, MAX_INTEGER, readable
from app.logs import REDACTED
from app.policy.harvest import (
    ENDED,
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
    looked_through_since,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from datetime import datetime

    from apify_client._models import Run, RunListItem
    from apify_client.types import WebhooksList

    from app.policy.harvest import Batch

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
#: Items are as long as their actor makes them. Few are asked for: Apify's count lags by seconds, not by thousands.
_PAGE_OF_ITEMS: Final = 100
#: How often as long the JSON of an input may be when somebody writes it anew: each character by its number.
_MOST_GROWTH: Final = 6
#: In the User-Agent of a start, before the token of its batch.
_MARK: Final = "run-records-batch/"
_READ_RETRIES: Final = 3
#: Ours and Apify's clocks may differ: a nameless run that is a little older than the attempt may still be its.
CLOCK_MARGIN: Final = timedelta(seconds=120)


class Source(Protocol):
    """What the harvest loop works with. None of these raises for what the other side does."""

    async def start(self, batch: Batch, run_input: str) -> StartAnswer: ...

    async def find(self, batch: Batch, run_input: str, taken: Collection[str], at: datetime) -> FindAnswer: ...

    async def follow(self, apify_run_id: str, at: datetime) -> FollowAnswer: ...

    async def measure(self, apify_run_id: str) -> MeasureAnswer: ...


@dataclass(frozen=True, slots=True)
class ApifyAccess:
    """`public_url` is where Apify reaches our webhook; without one a run's end is found by asking."""

    token: str = field(repr=False)
    api_url: str
    public_url: str
    webhook_secret: str = field(repr=False)
    timeout_seconds: float = 30.0


class Apify:
    def __init__(self, access: ApifyAccess) -> None:
        _keep_urls_out_of_logs()
        self._access = access
        self._starts = client_with(access, _StartClient(timeout_seconds=access.timeout_seconds, retries=0))
        self._reads = client_with(access, BoundedClient(timeout_seconds=access.timeout_seconds, retries=_READ_RETRIES))

    async def close(self) -> None:
        for client in (self._starts, self._reads):
            await client.http_client.aclose()

    # Start

    async def start(self, batch: Batch, run_input: str) -> StartAnswer:
        """Send exactly one start. Only Apify itself is believed that it was not done: any other answer is none."""
        _starting.set(batch.token or "")
        try:
            run = await self._starts.actor(batch.actor_id or "").start(
                run_input=run_input.encode(), content_type="application/json", webhooks=webhooks_of(batch, self._access)
            )
            return Started(_actor_run(run))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return StartPostponed(f"Apify cannot be reached: {self.told(error)}")
        except RateLimitError as error:
            return StartPostponed(f"Apify asks for a pause: {self.told(error)}")
        except ServerError as error:
            return StartLost(f"Apify answered {error.status_code} to the start")
        except ApifyApiError as error:
            return _refused_start(error, self.told(error))
        except Exception as error:  # noqa: BLE001 - whatever apify-client makes of an odd answer, the run may exist
            return StartLost(f"the start's answer was lost: {self.told(error)}")

    # Find

    async def find(self, batch: Batch, run_input: str, taken: Collection[str], at: datetime) -> FindAnswer:
        """Look through all of the actor's runs of the attempt's time for the one that this batch's start made.

        Certain is the one whose User-Agent names the batch, whatever the clocks say. Should Apify have kept none, it
        is one since the attempt with this very input that no other batch is or has marked.
        """
        assert batch.attempted_at is not None, "only a batch that was tried is looked for"
        nameless_since = parse_iso(batch.attempted_at) - CLOCK_MARGIN
        mark = _mark_of(batch)
        nameless: list[RunListItem] = []
        try:
            async for run in self._runs_since(batch.actor_id or "", looked_through_since(batch, at)):
                user_agent = run.meta.user_agent or ""
                if mark in user_agent:
                    return Found(_listed_run(run))
                if run.started_at >= nameless_since and run.id not in taken and _MARK not in user_agent:
                    nameless.append(run)
            for run in nameless:
                if await self._has_input(run, run_input):
                    return Found(_listed_run(run))
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is known that was not known before
            return LookFailed(f"Apify's runs could not be listed: {self.told(error)}")
        return NoneFound(at)

    async def _runs_since(self, actor_id: str, since: datetime) -> AsyncIterator[RunListItem]:
        """Every run that started since then, oldest first: page by page until one is empty."""
        seen = 0
        while True:
            page = (
                await self._reads.actor(actor_id).runs().list(started_after=since, desc=False, limit=_PAGE, offset=seen)
            )
            if not page.items:
                return
            seen += len(page.items)
            for run in page.items:
                yield run

    async def _has_input(self, run: RunListItem, run_input: str) -> bool:
        """Whether the run was started with this input. What cannot be one that we sent is another's, whatever it is."""
        ours = run_input.encode()
        try:
            record = await self._reads.key_value_store(run.default_key_value_store_id).get_record_as_bytes("INPUT")
        except TooLong:
            if len(ours) * _MOST_GROWTH <= LARGEST_ANSWER:
                return False
            raise
        if record is None or record["value"].count(b",") > ours.count(b","):  # so it takes no longer to read than ours
            return False
        return record["value"] == ours or _is_json_of(record["value"], json.loads(ours))

    # Follow

    async def follow(self, apify_run_id: str, at: datetime) -> FollowAnswer:
        """The run as it is now."""
        try:
            run = await self._reads.run(apify_run_id).get()
            return Vanished() if run is None else Report(_actor_run(run), iso(at))
        except Exception as error:  # noqa: BLE001 - as above
            return LookFailed(f"Apify could not be asked about run {apify_run_id}: {self.told(error)}")

    # Measure

    async def measure(self, apify_run_id: str) -> MeasureAnswer:
        """The figures of a run that has ended; call it when Apify has had time to settle them."""
        try:
            run = await self._reads.run(apify_run_id).get()
            if run is None:
                return Vanished()
            items = await self._count_items(run.default_dataset_id) if run.status in ENDED else None
            cost_usd = _sensible(run.usage_total_usd, MAX_DECIMAL)
            return Measured(_actor_run(run), items=items, cost_usd=cost_usd, duration_seconds=_duration(run))
        except Exception as error:  # noqa: BLE001 - as above
            return LookFailed(f"Apify could not be asked for the figures of run {apify_run_id}: {self.told(error)}")

    async def _count_items(self, dataset_id: str) -> int | None:
        """The exact number: Apify's own count lags, so what lies beyond it is asked for until a page is empty."""
        dataset = self._reads.dataset(dataset_id)
        shown = await dataset.get()
        count = None if shown is None else _sensible(shown.item_count, MAX_INTEGER)
        if count is None:
            return None
        while True:
            page = await dataset.list_items(offset=count, limit=_PAGE_OF_ITEMS)
            if not page.items:
                return count
            count += len(page.items)

    def told(self, error: Exception) -> str:
        """What went wrong, without the request: its URL and headers hold secrets, which an answer may repeat."""
        if isinstance(error, ApifyApiError):
            said = f"{error.type or error.status_code}: {error.message}"
        elif isinstance(error, NotApifys):
            said = str(error)
        elif isinstance(error, ValidationError):
            said = _misfit(error)
        else:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
        for secret in (self._access.token, self._access.webhook_secret):
            said = said.replace(secret, REDACTED) if secret else said
        return readable(_ENCODED.sub(REDACTED, _beginning(said))[:_MOST_CAUSE])


_MOST_CAUSE: Final = 300
#: Characters. What is looked through for what looks like webhooks, which takes 2.5 s of 16 MiB.
_MOST_LOOKED_THROUGH: Final = 10_000
#: Of an answer that is not what was asked for, every flaw would be written out, and all that it is of: for 20 s, of one
#: of 16 MB.
_MOST_FLAWS: Final = 100


def _misfit(error: ValidationError) -> str:
    if error.error_count() > _MOST_FLAWS:
        return f"the answer is no {error.title}"
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"the answer is no {error.title}: {'.'.join(map(str, first['loc']))}: {first['msg']}"


#: What a start's webhooks look like in its URL: base64, and longer than any id.
_ENCODED: Final = re.compile(r"[A-Za-z0-9+/=_%-]{80,}")
_ENCODED_CHARACTERS: Final = ascii_letters + digits + "+/=_%-"


def _beginning(said: str) -> str:
    """Without the part of a word that is left where it is cut: of webhooks it may be too short to be told as such."""
    if len(said) <= _MOST_LOOKED_THROUGH:
        return said
    return said[:_MOST_LOOKED_THROUGH].rstrip(_ENCODED_CHARACTERS)


def client_with(access: ApifyAccess, http_client: BoundedClient) -> ApifyClientAsync:
    return ApifyClientAsync.with_custom_http_client(access.token, api_url=access.api_url, http_client=http_client)


#: The token of the batch whose start this task sends.
_starting: ContextVar[str] = ContextVar("starting")


def _mark_of(batch: Batch) -> str:
    return f"{_MARK}{batch.token};"


class _StartClient(BoundedClient):
    """Signs each request with the batch that it starts."""

    async def send_request(
        self,
        *,
        method: str,
        url: str,
        headers: dict[str, str],
        content: bytes | AsyncIterator[bytes] | None,
        timeout: float | None,  # noqa: ASYNC109 - apify-client's own signature
        stream: bool,
    ) -> httpx2.Response:
        signed = {**headers, "User-Agent": f"{headers.get('User-Agent', '')}; {_MARK}{_starting.get()};"}
        return await super().send_request(
            method=method, url=url, headers=signed, content=content, timeout=timeout, stream=stream
        )


class _OnlyTrouble(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING


_ONLY_TROUBLE: Final = _OnlyTrouble()
#: Below a warning these tell each request's URL, which holds the headers of our webhooks, or its headers.
_TALKATIVE: Final = (
    "apify_client",
    "httpx2",
    *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")),
)


def _keep_urls_out_of_logs() -> None:
    """At any level that is set: a filter of the logger itself is asked before every handler."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_ONLY_TROUBLE)


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


def _refused_start(error: ApifyApiError, said: str) -> StartAnswer:
    """A start that Apify did not do. The error's type decides before the status: sources differ on that."""
    if error.type in _FULL:
        return StartPostponed(f"Apify's plan is full: {said}")
    if error.status_code in {401, 402, 403}:
        return StartPostponed(f"Apify does not let us start: {said}")
    if error.status_code == 408:  # noqa: PLR2004
        return StartLost(f"the start's answer was lost: {said}")
    if isinstance(error, NotFoundError):
        return StartRefused(f"Apify knows no such actor: {said}")
    return StartRefused(f"Apify refuses the input: {said}")


def _is_json_of(text: bytes, value: object) -> bool:
    try:
        return bool(json.loads(text) == value)
    except (ValueError, RecursionError):
        return False


def _actor_run(run: Run) -> ActorRun:
    return ActorRun(
        id=readable(run.id),
        status=readable(str(run.status)),
        actor_id=readable(run.act_id),
        started_at=iso(run.started_at),
        finished_at=iso(run.finished_at) if run.finished_at else None,
        dataset_id=readable(run.default_dataset_id),
        status_message=None if run.status_message is None else readable(run.status_message),
    )


def _listed_run(run: RunListItem) -> ActorRun:
    """A listed run, as one that has begun: how it stands is asked next."""
    return ActorRun(
        id=readable(run.id),
        status="READY",
        actor_id=readable(run.act_id),
        started_at=iso(run.started_at),
        dataset_id=readable(run.default_dataset_id),
    )


def _duration(run: Run) -> float | None:
    told = run.stats.run_time_secs
    if told is None and run.finished_at is not None:
        told = (run.finished_at - run.started_at).total_seconds()
    return _sensible(told, MAX_DECIMAL)


NumberT = TypeVar("NumberT", int, float)


def _sensible(figure: NumberT | None, most: int) -> NumberT | None:
    """A figure that makes no sense (below zero, endless, not a number) says as much as one that was not told."""
    return figure if figure is not None and 0 <= figure <= most else None
