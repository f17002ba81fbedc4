"""The store against a small model: whatever comes in whatever order, every record ends as the fold of its updates."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.fields import Change
from app.model import Duplicate, Held, Idempotency, Kickoff, Queued, Update, run_id_of
from app.policy.delivery import (
    Answer,
    Claim,
    Denied,
    QuotaExhausted,
    RateLimited,
    Refused,
    RetryRules,
    Unknown,
    Written,
    settle,
)
from tests.support.examples import examples
from tests.support.stores import AT, Desk, open_desk

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")
Cells: TypeAlias = dict[str, str | int]

JOB = "251007-070457"
CLIENTS = st.sampled_from(["Ann", "Bob", "Cas", "Dee"])
RULES = RetryRules(max_attempts=2, backoff_base_seconds=1.0, backoff_max_seconds=4.0)
CHANGES = st.builds(
    Change,
    set=st.fixed_dictionaries({}, optional={"apify_status": st.sampled_from(["READY", "DONE"])}),
    add=st.fixed_dictionaries({"posts_harvested": st.integers(1, 9)}),
    append=st.fixed_dictionaries({"progress_log": st.sampled_from([("x",), ("y", "z"), ("",)])}),
)
#: Answers after which the base is as it was before.
NOTHING_WRITTEN: list[Answer] = [
    RateLimited("slow down"),
    QuotaExhausted("no more"),
    Denied(403, "no"),
    Refused(422, "no"),
    Refused(422, "no", field="apify_status"),
    Unknown("no connection"),
    Unknown("broken", 500),
]


@dataclass
class Expected:
    """A run as it has to be: its cells, and how many messages were accepted for it."""

    cells: Cells
    messages: int = 1

    def apply(self, change: Change) -> None:
        self.messages += 1
        for name, value in change.set.items():
            self.cells[name] = str(value)
        for name, number in change.add.items():
            self.cells[name] = int(self.cells.get(name, 0)) + int(number)
        for name, lines in change.append.items():
            before = [str(self.cells[name])] if name in self.cells else []
            self.cells[name] = "\n".join([*before, *lines])


@dataclass
class Base:
    """Airtable: records by id. An upsert finds its record by run id, an update knows the record's id."""

    records: dict[str, Cells] = field(default_factory=dict)

    def write(self, claim: Claim) -> Written:
        record_ids: dict[str, str] = {}
        for run in claim.runs:
            found = [one for one, cells in self.records.items() if cells["run_id"] == run.run_id]
            if claim.creating:
                assert run.record_id is None
                record_id = found[0] if found else f"rec{len(self.records)}"
                self.records.setdefault(record_id, {"run_id": run.run_id})
            else:
                assert found == [run.record_id], "an update goes to the one record of its run"
                record_id = found[0]
            for name, value in run.values.items():
                assert isinstance(value, str | int)
                self.records[record_id][name] = value
            record_ids[run.run_id] = record_id
        return Written(record_ids)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.now = AT
        self.base = Base()
        self.runs: dict[str, Expected] = {}
        self.held: dict[str, list[Change]] = defaultdict(list)
        self.open_errors: dict[str, tuple[int, int]] = {}
        self.in_flight: list[Claim] = []
        self.keys = 0
        self.opened = contextlib.AsyncExitStack()
        self.desk = self.open()

    # Machinery

    def wait_for(self, coroutine: Coroutine[None, None, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def open(self) -> Desk:
        self.desk = self.wait_for(self.opened.enter_async_context(open_desk(self.folder / "runs.db", self.now)))
        self.eyes = sqlite3.connect(f"file:{self.desk.path}?mode=ro", uri=True)
        return self.desk

    def close(self) -> None:
        self.eyes.close()
        self.wait_for(self.opened.aclose())
        self.opened = contextlib.AsyncExitStack()

    def settle(self, claim: Claim, answer: Answer) -> None:
        settlement = settle(claim, answer, at=self.now, rules=RULES, random=random.Random(1))  # noqa: S311
        self.wait_for(self.desk.store.settle(settlement, self.now))

    # What callers do

    @rule(client=CLIENTS)
    def kick_off(self, client: str) -> None:
        run_id = run_id_of(JOB, client)
        kickoff = Kickoff(client, JOB, Change(set={"client_name": client}))
        created = self.wait_for(self.desk.store.accept_create(kickoff, self.now))
        assert created.created == (run_id not in self.runs)
        if not created.created:
            return
        run = Expected({"run_id": run_id, "client_id": client, "client_name": client})
        held = self.held.pop(run_id, [])
        assert created.held_applied == len(held)
        for change in held:
            run.apply(change)
        self.runs[run_id] = run
        self.open_errors.pop(run_id, None)

    @rule(client=CLIENTS, change=CHANGES, twice=st.booleans())
    def update(self, client: str, change: Change, twice: bool) -> None:
        run_id = run_id_of(JOB, client)
        self.keys += 1
        update = Update(run_id, change, Idempotency(f"k{self.keys}", "digest"))
        outcome = self.wait_for(self.desk.store.accept_update(update, self.now))
        if run_id in self.runs:
            assert isinstance(outcome, Queued)
            self.runs[run_id].apply(change)
        else:
            assert isinstance(outcome, Held)
            _, times = self.open_errors.get(run_id, (0, 0))
            self.open_errors[run_id] = (outcome.error.id, times + 1)
            self.held[run_id].append(change)
        if twice:
            assert self.wait_for(self.desk.store.accept_update(update, self.now)) == Duplicate(run_id)

    # What the sync loop and Airtable do

    @rule()
    def claim(self) -> None:
        claim = self.wait_for(self.desk.store.claim(self.now))
        if claim is None:
            return
        assert 0 < len(claim.runs) <= 10
        busy = {run.run_id for one in self.in_flight for run in one.runs}
        for run in claim.runs:
            assert run.run_id not in busy, "never two calls for one run"
            assert run.messages
            assert (run.record_id is None) == claim.creating
            if claim.creating:
                assert {"run_id", "client_id"} <= run.values.keys(), "an update never goes before its create"
            expected = self.runs[run.run_id].cells
            assert run.values == {name: expected[name] for name in run.values}
        self.in_flight.append(claim)

    @precondition(lambda self: self.in_flight)
    @rule(which=st.randoms(use_true_random=False), answer=st.sampled_from(NOTHING_WRITTEN))
    def answer_badly(self, which: random.Random, answer: Answer) -> None:
        self.settle(self.in_flight.pop(which.randrange(len(self.in_flight))), answer)

    @precondition(lambda self: self.in_flight)
    @rule(which=st.randoms(use_true_random=False), lost=st.sampled_from(["nothing", "all", "some"]))
    def write(self, which: random.Random, lost: str) -> None:
        """The base writes, and the answer comes, is lost, or forgets some of the records."""
        claim = self.in_flight.pop(which.randrange(len(self.in_flight)))
        written = self.base.write(claim)
        if lost == "all":
            self.settle(claim, Unknown("timeout"))
        else:
            named = list(written.record_ids.items())
            self.settle(claim, Written(dict(named[::2] if lost == "some" else named)))

    @rule(seconds=st.sampled_from([0.5, 2, 5]))
    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(written=st.booleans())
    def restart(self, written: bool) -> None:
        """The process dies with calls in flight, which may have been written."""
        for claim in self.in_flight:
            if written:
                self.base.write(claim)
        self.in_flight.clear()
        self.close()
        self.open()
        self.wait_for(self.desk.store.recover(self.now))

    # What a person does

    @rule(client=CLIENTS | st.none())
    def retry_dead(self, client: str | None) -> None:
        run_id = client and run_id_of(JOB, client)
        self.wait_for(self.desk.store.retry_all(kind=None, run_id=run_id, since=None, at=self.now))

    @precondition(lambda self: self.open_errors)
    @rule(which=st.randoms(use_true_random=False), discard=st.booleans())
    def resolve(self, which: random.Random, discard: bool) -> None:
        run_id = which.choice(sorted(self.open_errors))
        error_id, _ = self.open_errors.pop(run_id)
        self.wait_for(self.desk.store.resolve_error(error_id, note=None, discard=discard, at=self.now))
        if discard:
            self.held[run_id] = []  # what an error of the same run held, which was resolved before it, too

    # What always holds

    def seen(self, sql: str) -> list[tuple[str | int, ...]]:
        return self.eyes.execute(sql).fetchall()

    def counts(self, sql: str) -> dict[str, int]:
        return dict(self.eyes.execute(sql).fetchall())

    @invariant()
    def no_update_is_on_its_way_before_its_create(self) -> None:
        alone = """
            SELECT u.id FROM outbox AS u JOIN runs AS r USING (run_id)
            WHERE u.kind = 'update' AND u.state = 'sending' AND r.airtable_record_id IS NULL AND NOT EXISTS (
                SELECT 1 FROM outbox AS c WHERE c.run_id = u.run_id AND c.kind = 'create' AND c.call_id = u.call_id
                AND c.state = 'sending')
        """
        assert self.seen(alone) == []

    @invariant()
    def nothing_is_lost(self) -> None:
        kept = self.counts("SELECT run_id, count(*) FROM outbox GROUP BY run_id")
        assert kept == {run_id: run.messages for run_id, run in self.runs.items()}
        held = self.counts("SELECT run_id, count(*) FROM held_updates WHERE state = 'held' GROUP BY run_id")
        assert held == {run_id: len(changes) for run_id, changes in self.held.items() if changes}

    @invariant()
    def what_can_be_sent_is_due_and_nothing_else(self) -> None:
        sendable = """
            SELECT run_id FROM runs AS r WHERE EXISTS (
                SELECT 1 FROM outbox AS m WHERE m.run_id = r.run_id AND m.state IN ('pending', 'sending'))
            AND NOT EXISTS (
                SELECT 1 FROM outbox AS c WHERE c.run_id = r.run_id AND c.kind = 'create' AND c.state = 'dead')
            ORDER BY run_id
        """
        assert self.seen("SELECT run_id FROM runs WHERE due_at IS NOT NULL ORDER BY run_id") == self.seen(sendable)
        in_flight = sorted((run.run_id,) for claim in self.in_flight for run in claim.runs)
        assert self.seen("SELECT run_id FROM runs WHERE call_id IS NOT NULL ORDER BY run_id") == in_flight

    @invariant()
    def how_a_run_stands_follows_from_its_messages(self) -> None:
        wrong = """
            SELECT r.run_id, r.sync FROM runs AS r WHERE r.sync <> (
                SELECT CASE WHEN sum(m.state = 'dead') > 0 THEN 'failed'
                    WHEN sum(m.state <> 'delivered') > 0 THEN 'pending' ELSE 'synced' END
                FROM outbox AS m WHERE m.run_id = r.run_id)
        """
        assert self.seen(wrong) == []

    @invariant()
    def errors_are_as_expected(self) -> None:
        missing = "SELECT run_id, id, count FROM errors WHERE kind = 'missing_record' AND state = 'open'"
        assert {run_id: (id_, times) for run_id, id_, times in self.seen(missing)} == self.open_errors
        orphans = """
            SELECT 1 FROM outbox AS m LEFT JOIN errors AS e ON e.id = m.error_id
            WHERE m.state = 'dead' AND coalesce(e.state, '') <> 'open'
        """
        assert self.seen(orphans) == []

    @invariant()
    def every_run_shows_its_fold(self) -> None:
        for run_id, expected in self.runs.items():
            run = self.wait_for(self.desk.store.run(run_id))
            assert run is not None
            assert run.fields == expected.cells

    def teardown(self) -> None:
        """The faults end: everything converges, and each run has one record."""
        try:
            for lost in self.in_flight:
                self.settle(lost, Unknown("no connection"))
            self.now += timedelta(hours=1)
            self.wait_for(self.desk.store.retry_all(kind=None, run_id=None, since=None, at=self.now))
            for _ in range(100):
                claim = self.wait_for(self.desk.store.claim(self.now))
                if claim is None:
                    break
                self.settle(claim, self.base.write(claim))
            assert self.seen("SELECT id FROM outbox WHERE state <> 'delivered'") == []
            assert self.wait_for(self.desk.store.next_due()) is None
            cells = sorted(self.base.records.values(), key=lambda record: str(record["run_id"]))
            assert cells == [self.runs[run_id].cells for run_id in sorted(self.runs)]
        finally:
            self.close()
            self.loop.close()
            shutil.rmtree(self.folder)


StoreMachine.TestCase.settings = settings(
    max_examples=examples(40), stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStore = StoreMachine.TestCase
