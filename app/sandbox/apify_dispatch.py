"""Delivers the webhooks of the Apify sandbox: retries as Apify does, and goes wrong on demand.

It keeps a log of every dispatch that tests can await. It must not know of runs, only of requests to send.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

import aiohttp

from app.sandbox.apify_webhooks import DISPATCH_ID_HEADER, Dispatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import datetime

    from app.sandbox.apify_runs import Event

#: Retries after a failure, and the wait before the first of them; each further wait is twice as long.
MAX_RETRIES = 11
FIRST_RETRY_SECONDS = 60.0
ATTEMPT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep it until it is released by hand."""


@dataclass(frozen=True, slots=True)
class Lose:
    """Never deliver it."""


@dataclass(frozen=True, slots=True)
class Double:
    """Deliver it twice, one after the other: with the same dispatch id, or as a second webhook would."""

    same_dispatch: bool = True


@dataclass(frozen=True, slots=True)
class Late:
    """Deliver it `seconds` late, by the dispatcher's sleep."""

    seconds: float


Treatment: TypeAlias = Hold | Lose | Double | Late


class DispatchState(StrEnum):
    WAITING = "waiting"
    HELD = "held"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    FAILED = "failed"
    LOST = "lost"

    @property
    def is_settled(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self in {self.HELD, self.DELIVERED, self.FAILED, self.LOST}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request: the status it got, or why it got none."""

    at: datetime
    status: int | None
    error: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004 - any 2xx


@dataclass(slots=True)
class DispatchRecord:
    """One line of the log: a dispatch and what became of it so far."""

    dispatch: Dispatch
    state: DispatchState = DispatchState.WAITING
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def event(self) -> Event:
        return self.dispatch.event

    @property
    def run_id(self) -> str | None:
        return self.dispatch.run_id


@dataclass(slots=True)
class _Rule:
    treatment: Treatment
    event: Event | None
    run_id: str | None
    left: int | None

    def take(self, dispatch: Dispatch) -> bool:
        fits = self.event in {None, dispatch.event} and self.run_id in {None, dispatch.run_id}
        if self.left == 0 or not fits:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Dispatcher:
    """Posts dispatches in the background, each in a task of its own: one may overtake another, as with Apify.

    `retry_factor` scales the waits between attempts (1.0: Apify's minutes); every wait goes through `sleep`.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        retry_factor: float = 1.0,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        self.log: list[DispatchRecord] = []
        self._now = now
        self._new_id = new_id
        self._sleep = sleep
        self._retry_factor = retry_factor
        self._attempt_seconds = attempt_seconds
        self._rules: list[_Rule] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._attempt_seconds))

    async def stop(self) -> None:
        """Cut what is under way, and close every connection. What was not delivered stays in the log."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def treat(
        self,
        treatment: Treatment,
        *,
        event: Event | None = None,
        run_id: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Treat the next `times` dispatches that match like this (None: all); the first that fits wins."""
        self._rules.append(_Rule(treatment, event, run_id, times))

    def treat_well(self) -> None:
        """Forget every treatment. What is held stays held."""
        self._rules.clear()

    def send(self, dispatch: Dispatch) -> None:
        """Take a dispatch on: it is logged now, and delivered as the treatments say."""
        treatment = next((rule.treatment for rule in self._rules if rule.take(dispatch)), None)
        record = self._note(DispatchRecord(dispatch))
        match treatment:
            case Hold():
                self._set(record, DispatchState.HELD)
            case Lose():
                self._set(record, DispatchState.LOST)
            case Late(seconds):
                self._spawn(self._deliver_late(record, seconds))
            case Double(same_dispatch):
                again = dispatch if same_dispatch else self._as_second_webhook(dispatch)
                self._spawn(self._deliver_both(record, self._note(DispatchRecord(again))))
            case None:
                self._spawn(self._deliver(record))

    async def release(self, *records: DispatchRecord) -> None:
        """Deliver held dispatches one after the other, in the order given (none given: as they were held).

        Returns when each has had its first attempt. Raises `ValueError` for a dispatch that is not held.
        """
        chosen = records or tuple(record for record in self.log if record.state is DispatchState.HELD)
        for record in chosen:
            if record.state is not DispatchState.HELD:
                raise ValueError(f"dispatch {record.dispatch.id} is {record.state}, not held")
        for record in chosen:
            self._set(record, DispatchState.WAITING)
        for record in chosen:
            await self._attempt(record)
            if not record.state.is_settled:
                self._spawn(self._deliver(record, first=False))

    async def wait_for(
        self, predicate: Callable[[list[DispatchRecord]], bool], *, within: float = 10.0
    ) -> list[DispatchRecord]:
        """Wait until the log satisfies `predicate`. Raises `TimeoutError` after `within` real seconds."""
        async with asyncio.timeout(within):
            while not predicate(self.log):
                await self._changed.wait()
        return self.log

    async def settled(self, event: Event, run_id: str | None = None, *, within: float = 10.0) -> DispatchRecord:
        """Wait until a dispatch of this event is delivered, given up, held or lost, and return it."""

        def found(log: list[DispatchRecord]) -> list[DispatchRecord]:
            return [r for r in log if r.event is event and r.state.is_settled and run_id in {None, r.run_id}]

        return found(await self.wait_for(lambda log: bool(found(log)), within=within))[0]

    def _as_second_webhook(self, dispatch: Dispatch) -> Dispatch:
        new_id = self._new_id()
        headers = dict(dispatch.headers) | {DISPATCH_ID_HEADER: new_id}
        return replace(dispatch, id=new_id, webhook_id=self._new_id(), headers=tuple(headers.items()))

    async def _deliver_late(self, record: DispatchRecord, seconds: float) -> None:
        await self._sleep(seconds)
        await self._deliver(record)

    async def _deliver_both(self, first: DispatchRecord, second: DispatchRecord) -> None:
        await self._attempt(first)
        await self._attempt(second)
        for record in (first, second):
            if not record.state.is_settled:
                self._spawn(self._deliver(record, first=False))

    async def _deliver(self, record: DispatchRecord, *, first: bool = True) -> None:
        if first:
            await self._attempt(record)
        while not record.state.is_settled:
            retries = len(record.attempts) - 1
            await self._sleep(FIRST_RETRY_SECONDS * 2**retries * self._retry_factor)
            await self._attempt(record)

    async def _attempt(self, record: DispatchRecord) -> None:
        attempt = await self._post(record.dispatch)
        record.attempts.append(attempt)
        if attempt.succeeded:
            self._set(record, DispatchState.DELIVERED)
        elif record.dispatch.retries and len(record.attempts) <= MAX_RETRIES:
            self._set(record, DispatchState.RETRYING)
        else:
            self._set(record, DispatchState.FAILED)

    async def _post(self, dispatch: Dispatch) -> Attempt:
        if self._session is None:
            raise RuntimeError("the dispatcher is not running")
        try:
            async with self._session.post(
                dispatch.url, data=dispatch.body, headers=dict(dispatch.headers), allow_redirects=False
            ) as answer:
                await answer.read()
                return Attempt(self._now(), answer.status)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return Attempt(self._now(), None, f"{type(error).__name__}: {error}")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, record: DispatchRecord) -> DispatchRecord:
        self.log.append(record)
        self._wake()
        return record

    def _set(self, record: DispatchRecord, state: DispatchState) -> None:
        record.state = state
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
