"""One run's batches on the real store, and Apify's world on its own way: all events in any order, doubled and late.

Hypothesis plays both the harvest loop (which asks, and is answered late or not at all) and Apify (which runs, ends,
resurrects and tells). After every step the store is judged against what Apify really did.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.clock import iso, parse_iso
from app.config import DEFAULT_FIELDS
from app.fields import Change, load_fold
from app.model import BatchOrder, BatchState, Kickoff
from app.policy.harvest import (
    ENDED,
    ActorRun,
    Found,
    HarvestRules,
    LookFailed,
    Measured,
    NoneFound,
    Report,
    Started,
    StartLost,
    StartPostponed,
    StartRefused,
)
from app.policy.rollup import status_of
from app.store.protocol import BatchStep, WebhookEvent
from app.store.sqlite.batches import SELECT_BATCH, batch_of
from app.store.sqlite.opening import open_store
from tests.support.examples import examples
from tests.support.stores import put_empty_store

if TYPE_CHECKING:
    from app.policy.harvest import Batch, BatchEvent
    from app.store.sqlite.store import SqliteStore

RUN: Final = "job-client"
RULES: Final = HarvestRules(max_concurrent_runs=2, poll_interval_seconds=60, look_after_seconds=60, settle_seconds=12)
ENDS: Final = sorted(ENDED)


@dataclass
class WorldRun:
    """An actor run as it really is. `lives` are its ends: when, and how many items there were by then."""

    id: str
    token: str
    started_at: str
    status: str = "RUNNING"
    finished_at: str | None = None
    items: int = 0
    resurrected_at: list[str] = field(default_factory=list)

    def seen(self) -> ActorRun:
        return ActorRun(self.id, self.status, "actor", self.started_at, self.finished_at, f"dataset-{self.id}")

    def measured(self) -> Measured:
        return Measured(self.seen(), self.items, self.items / 8, 1.0)


@dataclass(frozen=True)
class Asked:
    """A step that is under way, and what Apify would have answered when it was asked."""

    step: BatchStep
    at: datetime
    then: BatchEvent | None


class BatchMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 5, 16, 9, 0, tzinfo=UTC)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "runs.db"
        put_empty_store(self.path)
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.store = self.runner.run(self._open())
        self.look = sqlite3.connect(self.path)
        self.look.row_factory = sqlite3.Row
        self.world: dict[str, WorldRun] = {}
        self.told: list[WebhookEvent] = []
        self.asked: list[Asked] = []
        self.before: dict[int, Batch] = {}

    async def _open(self) -> SqliteStore:
        opened = open_store(self.path, at=self.now, linger_seconds=0, run_fields=list(DEFAULT_FIELDS), rules=RULES)
        return await self.stack.enter_async_context(opened)

    def teardown(self) -> None:
        try:
            self._come_to_the_end()
        finally:
            self.look.close()
            self.runner.run(self.stack.aclose())
            self.runner.close()
            self.folder.cleanup()

    # What happens

    @initialize(batches=st.integers(1, 3))
    def kick_off(self, batches: int) -> None:
        orders = tuple(BatchOrder('{"same":1}', 2, "actor", f"token-{number}") for number in range(batches))
        kickoff = Kickoff("client", "job", Change({"status": "Running"}), orders)
        self.runner.run(self.store.accept_create(kickoff, self.now))

    @rule(seconds=st.sampled_from([0.001, 1, 5, 12, 60, 1000]))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def ask(self) -> None:
        """The harvest loop claims a step and sends its request."""
        step = self.runner.run(self.store.claim_batch(self.now))
        if step is not None:
            self.asked.append(Asked(step, self.now, self._answer(step)))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), stale=st.booleans())
    def a_look_is_answered(self, data: st.DataObject, *, stale: bool) -> None:
        asked = data.draw(st.sampled_from(self.asked), label="asked")
        if asked.step.due_in is BatchState.QUEUED:
            return
        answer = asked.then if stale else self._answer(asked.step, asked.at)
        self._apply(asked, answer or LookFailed("no answer"))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), how=st.sampled_from(["answered", "lost", "never came", "full", "refused"]))
    def a_start_is_answered(self, data: st.DataObject, how: str) -> None:
        asked = data.draw(st.sampled_from(self.asked), label="asked")
        if asked.step.due_in is not BatchState.QUEUED:
            return
        token = asked.step.batch.token or ""
        if how == "refused":
            self._apply(asked, StartRefused("not that input"))
        elif how == "full":
            self._apply(asked, StartPostponed("the plan is full"))
        elif how == "never came":
            self._apply(asked, StartLost("5xx"))
        else:
            run = self._start(token)
            self._apply(asked, Started(run.seen()) if how == "answered" else StartLost("dropped"))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def a_look_fails(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.asked), label="asked")
        if asked.step.due_in is not BatchState.QUEUED:
            self._apply(asked, LookFailed("no answer"))

    @precondition(lambda self: any(run.finished_at is None for run in self.world.values()))
    @rule(data=st.data(), status=st.sampled_from(ENDS), items=st.integers(0, 5))
    def a_run_ends(self, data: st.DataObject, status: str, items: int) -> None:
        live = [token for token, run in self.world.items() if run.finished_at is None]
        self._end(self.world[data.draw(st.sampled_from(live), label="run")], status, items)

    @precondition(lambda self: any(run.finished_at is not None for run in self.world.values()))
    @rule(data=st.data())
    def a_run_is_resurrected(self, data: st.DataObject) -> None:
        ended = [token for token, run in self.world.items() if run.finished_at is not None]
        run = self.world[data.draw(st.sampled_from(ended), label="run")]
        self._tick()
        run.status, run.finished_at = "RUNNING", None
        run.resurrected_at.append(iso(self.now))
        self._tell(run, "ACTOR.RUN.RESURRECTED")

    @precondition(lambda self: self.told)
    @rule(data=st.data(), by_another=st.booleans())
    def a_webhook_comes(self, data: st.DataObject, *, by_another: bool) -> None:
        """Any that was ever sent: the first time, again, or from a second webhook."""
        event = data.draw(st.sampled_from(self.told), label="webhook")
        self._deliver(replace(event, dispatch_id=f"{event.dispatch_id}-other") if by_another else event)

    @rule()
    def the_process_is_killed(self) -> None:
        """Starts that were under way have been sent, or have not: here they have not."""
        self.asked.clear()
        self.runner.run(self.store.recover_batches(self.now))

    @precondition(lambda self: any(one.step.due_in is BatchState.QUEUED for one in self.asked))
    @rule()
    def the_process_is_killed_after_its_starts_were_sent(self) -> None:
        for asked in self.asked:
            if asked.step.due_in is BatchState.QUEUED:
                self._start(asked.step.batch.token or "")
        self.the_process_is_killed()

    # What must stay true

    @invariant()
    def an_apify_run_a_batch_and_a_batch_an_apify_run(self) -> None:
        for batch in self._batches():
            if batch.apify_run_id is not None:
                assert self.world[batch.token or ""].id == batch.apify_run_id
        known = [one.apify_run_id for one in self._batches() if one.apify_run_id is not None]
        assert len(known) == len(set(known))

    @invariant()
    def an_end_is_taken_back_only_by_a_resurrection(self) -> None:
        for batch in self._batches():
            before = self.before.get(batch.id)
            if before is not None and before.outcome is not None and before.apify_run_id is not None:
                finished_at = before.finished_at or ""
                if batch.outcome is None:
                    assert any(at > finished_at for at in self.world[batch.token or ""].resurrected_at)
                else:
                    assert (batch.finished_at or "") >= finished_at
                    if batch.finished_at == finished_at:
                        assert batch.outcome is before.outcome
            self.before[batch.id] = batch

    @invariant()
    def every_batch_has_a_next_step_until_it_is_measured(self) -> None:
        under_way = {one.step.batch.id for one in self.asked}
        for batch in self._batches():
            settled = batch.state is BatchState.MEASURED or (
                batch.state is BatchState.FAILED and batch.apify_run_id is None
            )
            assert settled or batch.due_at is not None or batch.id in under_way, batch

    @invariant()
    def the_run_follows_from_its_batches_each_counted_once(self) -> None:
        batches = self._batches()
        if not batches:
            return
        fold = load_fold(self.look.execute("SELECT fields FROM runs").fetchone()["fields"])
        assert fold["status"] == status_of(batches)
        assert (fold.get("posts_harvested") or 0) == sum(one.items or 0 for one in batches)
        assert float(str(fold.get("apify_api_costs") or 0)) == sum(one.cost_usd or 0 for one in batches)
        named = str(fold.get("apify_run_ids") or "")
        assert named == ", ".join(one.apify_run_id for one in batches if one.apify_run_id is not None)
        submitted = sum(one.profiles or 0 for one in batches if one.apify_run_id is not None)
        assert (fold.get("profiles_submitted") or 0) == submitted

    @invariant()
    def no_more_at_once_than_allowed(self) -> None:
        active = (BatchState.STARTING, BatchState.UNKNOWN)
        starting = sum(one.state in active for one in self._batches())
        assert starting <= RULES.max_concurrent_runs

    # Apify's world

    def _tick(self) -> None:
        self.now += timedelta(milliseconds=1)

    def _start(self, token: str) -> WorldRun:
        assert token not in self.world, "a second run was started for one batch"
        self._tick()
        run = self.world[token] = WorldRun(f"run-{token}", token, iso(self.now))
        self._tell(run, "ACTOR.RUN.CREATED")
        return run

    def _end(self, run: WorldRun, status: str, items: int) -> None:
        self._tick()
        run.status, run.finished_at, run.items = status, iso(self.now), run.items + items
        self._tell(run, f"ACTOR.RUN.{status.replace('-', '_')}")

    def _tell(self, run: WorldRun, event: str) -> None:
        report = Report(run.seen(), iso(self.now), event)
        which = report.at if event.endswith("RESURRECTED") else run.finished_at
        self.told.append(
            WebhookEvent(
                event=event,
                body="{}",
                dispatch_id=f"dispatch-{len(self.told)}",
                event_key=f"{run.id} {event} {which}",
                report=report,
                run_id=RUN,
                batch_token=run.token,
            )
        )

    def _answer(self, step: BatchStep, at: datetime | None = None) -> BatchEvent | None:
        """What Apify says now to this step's question; a list that was begun at `at` may be answered later."""
        run = self.world.get(step.batch.token or "")
        if step.due_in is BatchState.QUEUED:
            return None
        if step.due_in is BatchState.UNKNOWN:
            return NoneFound(at or self.now) if run is None else Found(replace(run.seen(), status="READY"))
        assert run is not None
        if step.due_in is BatchState.RUNNING:
            return Report(run.seen(), iso(at or self.now))
        return run.measured()

    # The store

    def _apply(self, asked: Asked, event: BatchEvent) -> None:
        self.asked.remove(asked)
        self.runner.run(self.store.apply_event(asked.step.batch.id, event, self.now))

    def _deliver(self, event: WebhookEvent) -> None:
        self.runner.run(self.store.accept_webhook(event, self.now))

    def _batches(self) -> list[Batch]:
        return [batch_of(row) for row in self.look.execute(f"{SELECT_BATCH} ORDER BY number")]

    # The end

    def _come_to_the_end(self) -> None:
        """Once faults end, and each webhook has come at least once, all is as Apify has it."""
        for run in self.world.values():
            if run.finished_at is None:
                self._end(run, "SUCCEEDED", 1)
        for event in reversed(self.told):
            self._deliver(event)
        self.the_process_is_killed()
        for _ in range(200):
            self.now += timedelta(seconds=60)
            while (step := self.runner.run(self.store.claim_batch(self.now))) is not None:
                if step.due_in is BatchState.QUEUED:
                    started = self._start(step.batch.token or "")
                    self.asked.append(Asked(step, self.now, None))
                    self._apply(self.asked[-1], Started(started.seen()))
                    self._end(started, "SUCCEEDED", 1)
                else:
                    answer = self._answer(step)
                    assert answer is not None
                    self.asked.append(Asked(step, self.now, answer))
                    self._apply(self.asked[-1], answer)
        for batch in self._batches():
            if batch.apify_run_id is None:
                assert batch.state is BatchState.FAILED
                assert batch.token not in self.world
                continue
            run = self.world[batch.token or ""]
            assert batch.state is BatchState.MEASURED, batch
            assert (batch.items, batch.outcome, batch.finished_at) == (run.items, ENDED[run.status], run.finished_at)
            assert parse_iso(batch.measured_at or "") >= parse_iso(run.finished_at or "")
        self.the_run_follows_from_its_batches_each_counted_once()


TestBatchMachine = BatchMachine.TestCase
TestBatchMachine.settings = settings(
    max_examples=examples(40), stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
