"""The batch loop: start, look for, follow and measure actor runs, each step when it is due.

It decides nothing: what a step's answer means for the batch is `policy.harvest`, and the store applies it to the
batch as it is by then, because a webhook may have been faster.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from app.clock import Clock, seconds_until, wait_until_set
from app.errors import StoreUnavailable
from app.logs import get_logger
from app.model import BatchState
from app.policy.harvest import LookFailed, StartLost, StartPostponed, StartRefused, Vanished, looked_through_since

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from app.apify_client import Source
    from app.policy.harvest import Batch, BatchEvent
    from app.store.protocol import BatchStep, Harvest

log = get_logger(__name__)

#: Steps under way at once; starts are limited further by `max_concurrent_runs`.
MOST_STEPS: Final = 8
_STORE_AGAIN_SECONDS: Final = 1.0
#: How long a start's answer is waited for, and the many of a look; past that nothing is known.
START_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 300.0


class HarvestLoop:
    def __init__(
        self,
        store: Harvest,
        source: Source,
        clock: Clock,
        *,
        shutdown_seconds: float,
        on_work: Callable[[], None],
    ) -> None:
        self._store = store
        self._source = source
        self._clock = clock
        self._shutdown_seconds = shutdown_seconds
        self._on_work = on_work
        self._steps: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False

    def wake(self) -> None:
        """There is (or may be) a batch to step: look at once."""
        self._wake.set()

    async def recover(self) -> None:
        recovered = await self._store.recover_batches(self._clock.now())
        if recovered:
            log.warning("harvest.recovered", batches=recovered)

    async def run(self) -> None:
        """Step batches until `stop`, then let the steps under way end."""
        try:
            while not self._stopping:
                self._wake.clear()
                delay = await self.run_once()
                if delay != 0.0:
                    await wait_until_set(self._wake, self._clock, delay)
        finally:
            await self._land()

    def stop(self) -> None:
        """Begin no more steps; `run` returns once those under way have ended, or their limit has passed."""
        self._stopping = True
        self.wake()

    async def run_once(self) -> float | None:
        """Begin at most one step; seconds until there may be more to do, `None` when only a wake can tell."""
        if len(self._steps) >= MOST_STEPS:
            return None
        now = self._clock.now()
        try:
            step = await self._store.claim_batch(now)
            due = await self._store.next_batch_due() if step is None else None
        except StoreUnavailable as error:  # it passes: the disk is full, say, or a person holds the database
            log.error("harvest.not_claimed", reason=error.detail)  # noqa: TRY400
            return _STORE_AGAIN_SECONDS
        if step is None:
            return seconds_until(due, self._clock.now())
        task = asyncio.create_task(self._take(step), name=f"batch-{step.batch.id}")
        self._steps.add(task)
        task.add_done_callback(self._ended)
        return 0.0

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A step that could not even be written down as failed is lost: its batch goes on with a webhook or a start."""
        self._steps.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("harvest.step_lost", step=task.get_name(), exc_info=error)
        self.wake()

    async def _land(self) -> None:
        if not self._steps:
            return
        _, late = await asyncio.wait(self._steps, timeout=self._shutdown_seconds)
        if late:
            log.warning("harvest.left_under_way", steps=len(late))
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _take(self, step: BatchStep) -> None:
        """Do a step and write down what it brought. What no rule foresees is the trouble of this batch alone."""
        batch = step.batch
        try:
            event = await self._answer(step)
            moved = await self._apply(batch.id, event)
        except Exception as error:
            log.exception("harvest.step_failed", run_id=batch.run_id, batch=batch.number, due_in=step.due_in)
            event = _failed(step, f"what Apify answered could not be taken ({type(error).__name__})")
            moved = await self._apply(batch.id, event)
        told = log.warning if isinstance(event, _TROUBLE) else log.info
        told(
            "harvest.stepped",
            run_id=batch.run_id,
            batch=batch.number,
            step=type(event).__name__,
            state=moved.state,
            apify_run_id=moved.apify_run_id,
            cause=moved.cause,
        )
        self._on_work()

    async def _answer(self, step: BatchStep) -> BatchEvent:
        limit = START_SECONDS if step.due_in is BatchState.QUEUED else LOOK_SECONDS
        try:
            return await self._within(limit, self._ask(step))
        except TimeoutError:
            return _failed(step, f"Apify gave no answer within {limit:.0f} s")
        except StoreUnavailable as error:
            return _failed(step, f"the store does not say which runs are taken: {error.detail}")

    async def _apply(self, batch_id: int, event: BatchEvent) -> Batch:
        """What Apify answered must not be forgotten: a full disk, say, is waited out."""
        while True:
            try:
                return await self._store.apply_event(batch_id, event, self._clock.now())
            except StoreUnavailable as error:
                log.error("harvest.not_applied", batch_id=batch_id, reason=error.detail)  # noqa: TRY400
                await self._clock.sleep(_STORE_AGAIN_SECONDS)

    async def _within(self, seconds: float, ask: Coroutine[None, None, BatchEvent]) -> BatchEvent:
        """The answer; raises `TimeoutError` where there is none by then."""
        asking = asyncio.create_task(ask)
        limit: asyncio.Task[None] = asyncio.create_task(self._sleep(seconds))
        try:
            await asyncio.wait({asking, limit}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise TimeoutError
            return asking.result()
        finally:
            asking.cancel()
            limit.cancel()
            await asyncio.gather(asking, limit, return_exceptions=True)

    async def _sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    async def _ask(self, step: BatchStep) -> BatchEvent:
        """The step that is due in this state, done."""
        batch = step.batch
        now = self._clock.now()
        match step.due_in:
            case BatchState.QUEUED:
                return await self._source.start(batch, step.run_input)
            case BatchState.UNKNOWN:
                taken = await self._store.taken_apify_runs(batch.id, looked_through_since(batch, now))
                return await self._source.find(batch, step.run_input, taken, now)
            case BatchState.RUNNING:
                return await self._source.follow(_run_of(batch), now)
            case BatchState.SUCCEEDED | BatchState.FAILED | BatchState.TIMED_OUT | BatchState.ABORTED:
                return await self._source.measure(_run_of(batch))
            case BatchState.STARTING | BatchState.MEASURED:
                raise AssertionError(f"batch {batch.id} is {batch.state}: it is never due")


def _failed(step: BatchStep, cause: str) -> StartLost | LookFailed:
    return StartLost(cause) if step.due_in is BatchState.QUEUED else LookFailed(cause)


def _run_of(batch: Batch) -> str:
    assert batch.apify_run_id is not None, "the schema says so, and a batch that never started is never measured"
    return batch.apify_run_id


_TROUBLE: Final = (StartLost, StartPostponed, StartRefused, LookFailed, Vanished)
