"""The sync loop: wait until something is due and the base may be asked, claim, deliver, settle.

It sleeps until a new message wakes it or the next due time comes, and never polls. Whatever it was sending when the
process ended is taken back at the next start and sent again: upserts and record ids make that safe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar

from app.clock import Clock, seconds_until, wait_until_set
from app.errors import StoreUnavailable
from app.logs import get_logger
from app.model import MessageKind
from app.policy.asking import AskedAnswer, Described, Listed
from app.policy.budget import Allowance, BudgetState, allowance, month_of
from app.policy.delivery import (
    Answer,
    Claim,
    Denied,
    RateLimited,
    Refused,
    RetryRules,
    Settlement,
    Unknown,
    Written,
    settle,
    settled_call,
)
from app.policy.pace import BaseHealth, Departure, PauseRules, RequestWindow
from app.store.protocol import LONGEST_WAIT

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import datetime

    from app.airtable import Destination
    from app.meters import Meters
    from app.store.protocol import Outbox

log = get_logger(__name__)

#: The method of a question to the meta API. That has a scope of its own and goes on when the month's calls are used
#: up: but for the rate, which it shares, its answers tell nothing of whether records can be written.
DESCRIBE: Final = "describe"
#: The method of a check's listing, which waits for the next month when calls are short.
LIST: Final = "list"
#: Requests under way at once: what a base that takes three seconds an answer needs to be kept at its limit.
MOST_IN_FLIGHT: Final = 16
#: While nobody gets a sound answer, one request at a time finds out whether that has changed.
_PROBES: Final = 1
_STORE_AGAIN_SECONDS: Final = 1.0
#: How often at most it is asked whether the clock was set back: the store is asked for it as for a write.
_RECOVER_FAR_SECONDS: Final = 60.0
#: For how long the base counts a request into its limit, which it goes on doing while we start again.
_BASE_COUNTS: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class SyncRules:
    requests_per_second: int
    retry: RetryRules
    pauses: PauseRules
    shutdown_seconds: float
    monthly_call_budget: int = 0


AskedT = TypeVar("AskedT", bound=AskedAnswer)


@dataclass(frozen=True, slots=True)
class _Question:
    method: str
    ask: Callable[[], Awaitable[AskedAnswer]]
    answer: asyncio.Future[AskedAnswer]

    def tell(self, answer: AskedAnswer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class SyncLoop:
    def __init__(
        self,
        store: Outbox,
        destination: Destination,
        clock: Clock,
        random: random.Random,
        rules: SyncRules,
        meters: Meters,
        *,
        on_refused: Callable[[str], None] = lambda _cause: None,
    ) -> None:
        """`on_refused` is told the cause of each delivery that Airtable refused."""
        self._store = store
        self._destination = destination
        self._clock = clock
        self._random = random
        self._rules = rules
        self._meters = meters
        self._window = RequestWindow(rules.requests_per_second)
        self._health = BaseHealth()
        self._store_trouble: str | None = None
        self._in_flight: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._questions: deque[_Question] = deque()
        self._allowance = Allowance()
        self._month: datetime | None = None
        self._calls_this_month = 0
        self._first_questions: deque[_Question] = deque()
        self._on_refused = on_refused
        self._stopping = False
        self._recover_far_at = 0.0
        self._longest_wait = max(LONGEST_WAIT, timedelta(seconds=rules.retry.backoff_max_seconds))

    def wake(self) -> None:
        """There is (or may be) something to do: look at once."""
        self._idle.clear()
        self._wake.set()

    async def until_idle(self) -> None:
        """Return when nothing waits and nothing is in flight."""
        await self._idle.wait()

    async def ask(self, method: str, question: Callable[[], Awaitable[AskedT]], *, before_work: bool = False) -> AskedT:
        """Ask Airtable something: within its limit, and when no record waits to be delivered, unless `before_work`."""
        answer: asyncio.Future[AskedAnswer] = asyncio.get_running_loop().create_future()
        waiting = self._first_questions if before_work else self._questions
        waiting.append(_Question(method, question, answer))
        self.wake()
        return await answer  # type: ignore[return-value]  # the answer to `question` is what it returns

    @property
    def trouble(self) -> str | None:
        """Why nothing reaches Airtable at the moment, for `/readyz`; `None` while it does."""
        return self._store_trouble or self._health.trouble

    @property
    def shortage(self) -> str | None:
        """What waits for the next month, because the month's calls are short; `None` while everything has its turn."""
        return self._allowance.shortage

    @property
    def rests_for(self) -> float:
        """Seconds for which the base is left alone."""
        return self._window.rests_for(self._clock.monotonic())

    async def recover(self) -> None:
        """Take back what a stopped process was sending, and keep to the pause that it was told to keep."""
        now = self._clock.now()
        taken_back = await self._store.recover(now, self._longest_wait)
        if taken_back:
            log.warning("sync.recovered", messages=taken_back)
        self._allowance = await self._decide(now)
        await self._store.keep_budget(self._rules.monthly_call_budget, self._allowance)
        answered_at = await self._store.last_answered()
        if taken_back or (answered_at is not None and now - answered_at < _BASE_COUNTS):
            self._window.fill(self._clock.monotonic())
        pause = self._rules.pauses.rate_limit_pause_seconds
        limited_at = await self._store.last_rate_limited()
        if limited_at is not None:
            left = pause - (now - limited_at).total_seconds()
            self._window.rest(self._clock.monotonic(), min(max(0.0, left), pause))  # the clock may have been set

    async def run(self) -> None:
        """Deliver until `stop`, then let what is in flight land. Raises what no rule foresees."""
        try:
            while not self._stopping:
                self._wake.clear()
                delay = await self.run_once()
                if delay is None and not self._in_flight and not self._wake.is_set():
                    self._idle.set()
                if delay != 0.0:
                    await wait_until_set(self._wake, self._clock, delay)
        finally:
            await self._land()

    def stop(self) -> None:
        """Claim nothing more; `run` returns once what is in flight is settled, or its limit has passed."""
        self._stopping = True
        self.wake()

    async def _land(self) -> None:
        if not self._in_flight:
            return
        _, late = await asyncio.wait(self._in_flight, timeout=self._rules.shutdown_seconds)
        if late:
            log.warning("sync.left_in_flight", calls=len(late))
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        self._raise_failures()

    async def run_once(self) -> float | None:
        """Start at most one request; seconds until there may be more to do, `None` when only a wake can tell."""
        self._raise_failures()
        rest = self._window.delay(self._clock.monotonic())
        if rest > 0.0:
            return rest
        if len(self._in_flight) >= (_PROBES if self._health.trouble else MOST_IN_FLIGHT):
            return None  # the end of one of them wakes the loop
        now = self._clock.now()
        try:
            allowed = await self._allow(now)
            claim = None
            if not self._first_questions and allowed.state is not BudgetState.SPENT:
                claim = await self._store.claim(now, only_creates=allowed.updates_wait)
            question = self._next_question(allowed) if claim is None else None
            delay = await self._until_due(allowed, now) if claim is None and question is None else 0.0
        except StoreUnavailable as error:  # it passes: the disk is full, say, or a person holds the database
            self._store_trouble = f"the store gives nothing out to send: {error.detail}"
            log.error("sync.not_claimed", reason=error.detail)  # noqa: TRY400
            return _STORE_AGAIN_SECONDS
        self._store_trouble = None
        if claim is not None:
            self._carry_in_flight(self._carry(claim, self._leave()))
        elif question is not None:
            self._carry_in_flight(self._put(question, self._leave()))
        return delay

    def _leave(self) -> Departure:
        self._calls_this_month += 1
        return self._window.leave(self._clock.monotonic())

    async def _allow(self, now: datetime) -> Allowance:
        """Who may spend the next call; what changes is kept and told. Raises `StoreUnavailable`."""
        allowed, before = await self._decide(now), self._allowance
        if allowed != before:
            await self._store.keep_budget(self._rules.monthly_call_budget, allowed)
            self._allowance = allowed
        if allowed.state is not before.state:
            told = log.warning if allowed.shortage else log.info
            told("sync.budget", state=allowed.state, calls=self._calls_this_month, reason=allowed.shortage)
        return allowed

    async def _decide(self, now: datetime) -> Allowance:
        if self._month != month_of(now):
            self._calls_this_month = await self._store.calls_this_month(now)
            self._month = month_of(now)
        return allowance(self._rules.monthly_call_budget, self._calls_this_month, now)

    async def _until_due(self, allowed: Allowance, now: datetime) -> float | None:
        """Seconds until something is due. What waits longer than anything does is due now: the clock was set back."""
        due = await self._next_due(allowed)
        if due is not None and self._clock.monotonic() >= self._recover_far_at:
            self._recover_far_at = self._clock.monotonic() + _RECOVER_FAR_SECONDS
            if await self._store.recover_far(now, self._longest_wait):
                return 0.0
        return seconds_until(due, self._clock.now())

    async def _next_due(self, allowed: Allowance) -> datetime | None:
        """When the next run is due, or a question, that may go then."""
        due = await self._store.next_due()
        if allowed.updates_wait_until is None:
            return due
        if due is None:
            return allowed.updates_wait_until if self._questions else None
        due = max(due, allowed.updates_wait_until)
        create_due = None if allowed.state is BudgetState.SPENT else await self._store.next_due(only_creates=True)
        return due if create_due is None else min(due, create_due)

    def _carry_in_flight(self, carrying: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(carrying, name="airtable-call")
        self._in_flight.add(task)
        task.add_done_callback(self._landed)

    def _next_question(self, allowed: Allowance) -> _Question | None:
        """The next one that may be asked. A check is told at once that calls are short, a look-up waits for more."""
        if self._first_questions:
            return self._first_questions.popleft()
        for question in list(self._questions):
            if allowed.state is BudgetState.SPENT and question.method not in {DESCRIBE, LIST}:
                continue
            self._questions.remove(question)
            if question.answer.done():  # whoever asked has gone
                continue
            if allowed.shortage is None or question.method != LIST:
                return question
            question.tell(Denied(HTTPStatus.TOO_MANY_REQUESTS, allowed.shortage))
        return None

    def _landed(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._in_flight.discard(task)
        self.wake()

    def _raise_failures(self) -> None:
        for task in self._in_flight:
            if task.done() and not task.cancelled():
                task.result()

    async def _carry(self, claim: Claim, departure: Departure) -> None:
        answer = await self._destination.deliver(claim)
        answered_at = self._clock.monotonic()
        self._window.answered(departure, answered_at, soundly=isinstance(answer, Written))
        at = self._clock.now()
        sound = self._health.is_sound
        settlement = settle(claim, answer, base_was_sound=sound, at=at, rules=self._rules.retry, random=self._random)
        self._note(answer, alone=claim.runs[0].run_id if len(claim.runs) == 1 else None)
        self._log(claim, settlement, answer, answered_at - departure.left_at)
        method = MessageKind.CREATE if claim.creating else MessageKind.UPDATE
        self._meters.called(method.value, settlement.status, answered_at - departure.left_at)
        if isinstance(answer, Refused):
            self._on_refused(answer.cause)
        while True:
            try:
                delivered = await self._store.settle(settlement, at)
            except StoreUnavailable as error:
                # The disk is full, say: what Airtable answered must not be forgotten, or it would be sent again.
                log.error("sync.not_settled", call_id=claim.call_id, reason=error.detail)  # noqa: TRY400
                await self._clock.sleep(_STORE_AGAIN_SECONDS)
            else:
                self._meters.delivered([[(at - one).total_seconds() for one in accepted] for accepted in delivered])
                return

    async def _put(self, question: _Question, departure: Departure) -> None:
        try:
            call_id = await self._store.begin_call(question.method, self._clock.now())
        except StoreUnavailable as error:  # what cannot be counted is not asked
            question.tell(Unknown(f"the call could not be counted: {error.detail}"))
            return
        answer = await question.ask()
        answered_at = self._clock.monotonic()
        self._window.answered(departure, answered_at, soundly=isinstance(answer, Listed | Described))
        if question.method != DESCRIBE or isinstance(answer, RateLimited):
            self._note(answer)
        settlement = settled_call(call_id, answer)
        self._meters.called(question.method, settlement.status, answered_at - departure.left_at)
        records = len(answer.records) if isinstance(answer, Listed) else 0
        try:
            await self._store.end_call(settlement, records, self._clock.now())
        except StoreUnavailable as error:  # it stays counted as under way, which is all that is lost
            log.error("sync.call_not_ended", call_id=call_id, reason=error.detail)  # noqa: TRY400
        log.info(
            "sync.asked",
            call_id=call_id,
            method=question.method,
            records=records,
            outcome=settlement.outcome,
            reason=settlement.error,
            seconds=round(answered_at - departure.left_at, 3),
        )
        question.tell(answer)

    def _note(self, answer: Answer | AskedAnswer, *, alone: str | None = None) -> None:
        before = self._health.trouble
        rest = self._health.rest_after(answer, self._rules.pauses, self._rules.retry, alone=alone)
        if rest > 0.0:
            self._window.rest(self._clock.monotonic(), rest)
        if self._health.trouble and self._health.trouble != before:
            log.error("sync.base_in_trouble", reason=self._health.trouble, rest_seconds=round(rest, 1))
        elif before and not self._health.trouble:
            log.info("sync.base_recovered")
        if isinstance(answer, RateLimited):
            log.warning("sync.rate_limited", rest_seconds=rest)

    def _log(self, claim: Claim, settlement: Settlement, answer: Answer, seconds: float) -> None:
        known = {
            "call_id": claim.call_id,
            "method": "create" if claim.creating else "update",
            "records": len(claim.runs),
            "messages": sum(len(run.messages) for run in claim.runs),
            "outcome": settlement.outcome,
            "status": settlement.status,
            "seconds": round(seconds, 3),
        }
        if isinstance(answer, Written):
            log.info("sync.delivered", **known)
        else:
            log.warning("sync.not_delivered", reason=settlement.error, **known)
        for run in settlement.runs:
            if run.dead is not None:
                log.error(
                    "sync.set_aside",
                    run_id=run.run_id,
                    kind=run.dead.kind,
                    message_ids=list(run.dead.message_ids),
                    cause=run.dead.cause,
                )
