"""The whole way of an update, by a machine: callers, webhooks, the sync loop, the wire, restarts, clocks and persons.

Hypothesis interleaves them in any order, on the real store and the real client over a wire that is held in the hand
(`tests.support.house_by_hand`), against a small model (`tests.support.expected`). After every step the store, the table
and what was sent are judged; in the end the faults cease, a person mends what persons broke, and all has to be equal.

A failing example is printed as the steps that lead to it, with `@reproduce_failure`. `make soak` plays many more.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.apify import decode_webhook
from app.clock import iso
from app.errors import IdempotencyKeyReused
from app.intake import BatchRequest, KickoffRequest, UpdateRequest
from app.model import Duplicate, Held, Queued
from app.sandbox.airtable_errors import ErrorForms, RateLimitForm, billing_limit_exceeded, forbidden, rate_limit_reached
from app.sandbox.messages import WireResponse
from tests.support.examples import examples
from tests.support.expected import Batch, Change, Run, Told
from tests.support.world import LATE, LOST, SPOILED, World

if TYPE_CHECKING:
    from app.model import Json
    from tests.support.house_by_hand import Flight

JOB: Final = "251007-070457"
CLIENTS: Final = ["Ann", "Bob", "Cas", "Dee", "Eve"]
KEYS = st.none() | st.sampled_from(["key-1", "key-2", "key-3"])
CHANGES = st.builds(
    Change,
    set=st.fixed_dictionaries(
        {},
        optional={
            "client_name": st.sampled_from(["Guy", "Guy Wilson", None]),
            "status": st.sampled_from(["Running", "No Leads To Score"]),
        },
    ),
    add=st.fixed_dictionaries({}, optional={"posts_scored": st.integers(-5, 9)}),
    append=st.fixed_dictionaries({"progress_log": st.sampled_from([("x",), ("y", "z"), ("",)])}),
)


def no(status: int, retry_after: str | None = None) -> WireResponse:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return WireResponse(status, b"<html>The server is unavailable.</html>", headers)


def odd(body: bytes, status: int = 200) -> WireResponse:
    return WireResponse(status, body, {"Content-Type": "application/json"})


#: What the sender hears although the base did what it was asked to.
APPLIED_BADLY = [
    LOST,
    LATE,
    no(500),
    no(502),
    no(503, "7"),
    odd(b"{}"),
    odd(b"null"),
    odd(b"5"),
    odd(b"<html>"),
    *SPOILED,
    *SPOILED,
]
RATE_LIMITED: Final = [
    rate_limit_reached().response(ErrorForms(rate_limit=RateLimitForm.OBJECT)),
    rate_limit_reached().response(ErrorForms(rate_limit=RateLimitForm.LIST)),
    odd(b"null", 429),
]
#: What the sender hears where the base did nothing.
NOT_APPLIED = [
    LOST,
    LATE,
    no(500),
    no(503, "20"),
    no(408),
    odd(b"{}"),
    odd(b"<html>"),
    *RATE_LIMITED,
    billing_limit_exceeded().response(ErrorForms()),
    forbidden().response(ErrorForms()),
]


@dataclass(frozen=True)
class Fate:
    """What becomes of a request: whether the base did it, and what its sender hears."""

    applied: bool
    heard: object


WELL: Final = Fate(applied=True, heard="well")
BAD_FATES = st.sampled_from(
    [
        *(Fate(applied=True, heard=heard) for heard in APPLIED_BADLY),
        *(Fate(applied=False, heard=heard) for heard in NOT_APPLIED),
    ]
)
FATES = st.just(WELL) | st.just(WELL) | BAD_FATES


@dataclass
class Steps:
    """How many steps were played, of all machines."""

    count: int = 0


STEPS = Steps()


class DeliveryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    # Callers

    @initialize(batches=st.lists(st.lists(st.sampled_from([2, None]), max_size=2), min_size=1, max_size=len(CLIENTS)))
    def it_begins(self, batches: list[list[int | None]]) -> None:
        for client, ordered in zip(CLIENTS, batches, strict=False):
            self.kick_off(client, JOB, None, ordered, None)

    @rule(
        client=st.sampled_from(CLIENTS),
        job=st.sampled_from([JOB, JOB, JOB, None]),
        key=KEYS,
        batches=st.lists(st.sampled_from([2, None]), max_size=2),
        status=st.sampled_from([None, None, "Completed"]),
    )
    def kick_off(
        self, client: str, job: str | None, key: str | None, batches: list[int | None], status: str | None
    ) -> None:
        request = KickoffRequest(
            client_id=client,
            client_name=f"{client} the first",
            job_id=job,
            fields={"status": status} if status else {},
            batches=[BatchRequest(input={"urls": []}, profiles=profiles) for profiles in batches],
        )
        model, now = self.world.model, self.world.house.clock.now()
        first_token = self.world.house._tokens + 1
        known = model.known("POST /runs", key, request.model_dump())
        if known == "another":
            with pytest.raises(IdempotencyKeyReused):
                self.world.house.wait_for(self.world.house.intake.create_run(request, key))
            return
        created = self.world.house.wait_for(self.world.house.intake.create_run(request, key))
        if known == "same":
            assert (created.created, created.run_id) == (False, model.keys["POST /runs", str(key)][1])
            return
        run_id = f"{job or model.free_job(client, now)}-{client}"
        assert created.run_id == run_id
        assert created.created == (run_id not in model.runs)
        model.remember("POST /runs", key, request.model_dump(), run_id)
        ordered = [Batch(f"token-{first_token + place}", profiles) for place, profiles in enumerate(batches)]
        if not created.created:
            run = model.runs[run_id]
            if run.adopted_from and not any(one.token for one in run.batches):
                run.batches += ordered
            return
        run = Run(
            run_id,
            {
                "run_id": run_id,
                "client_id": client,
                "client_name": f"{client} the first",
                "status": status or "Running",
                "start_time": iso(now),
            },
            status_by_caller=status is not None,
            batches=ordered,
        )
        assert created.held_applied == model.kick_off(run, now)

    @rule(data=st.data(), changes=st.lists(st.tuples(CHANGES, KEYS), min_size=2, max_size=5))
    def updates(self, data: st.DataObject, changes: list[tuple[Change, str | None]]) -> None:
        for change, key in changes:
            self._update(self._any_run(data), change, key, "nothing")

    @rule(data=st.data(), change=CHANGES, key=KEYS, beside=st.sampled_from(["before", "after"]))
    def an_update_at_the_moment_of_a_claim(
        self, data: st.DataObject, change: Change, key: str | None, beside: str
    ) -> None:
        self._update(self._any_run(data), change, key, beside)

    def _update(self, run_id: str, change: Change, key: str | None, beside: str) -> None:
        model, request = self.world.model, UpdateRequest.model_validate(change.body())
        known = model.known(run_id, key, change.body())
        if known == "another":
            with pytest.raises(IdempotencyKeyReused):
                self.world.house.wait_for(self.world.house.intake.update_run(run_id, request, key))
            return
        logged = len(self.world.logged)
        before = self.world.cells()
        updating = self.world.house.intake.update_run(run_id, request, key)
        flight: Flight | None = None
        if beside == "nothing":
            outcome = self.world.house.wait_for(updating)
        else:
            flight, outcome = self.world.house.step_beside(updating, first=beside == "before")
        if known == "same":
            assert outcome == Duplicate(run_id)
        elif run_id in model.runs:
            assert isinstance(outcome, Queued)
            model.runs[run_id].apply(change)
        else:
            assert isinstance(outcome, Held)
            model.hold(outcome.error.id, run_id, change)
            assert outcome.error.count == model.errors[outcome.error.id].count
            loud = [one for one in self.world.logged[logged:] if one["event"] == "missing_record"]
            assert [one["log_level"] for one in loud] == ["error"]
        if known is None:
            model.remember(run_id, key, change.body(), run_id)
        if flight is not None:
            self.world.judge_departure(flight, before if beside == "after" else self.world.cells())

    # Apify

    @rule(
        data=st.data(),
        about=st.sampled_from(["ordered", "ordered", "another", "own", "wrong", "nobody"]),
        ends=st.sampled_from([None, "SUCCEEDED", "FAILED"]),
    )
    def apify_tells(self, data: st.DataObject, about: str, ends: str | None) -> None:
        """Of a batch that we ordered, of another run under its token (a start that was lost was made again), of a run
        that others started, under a wrong token, or of nothing we know.
        """
        ordered = [(run, one) for run in self.world.model.runs.values() for one in run.batches if one.token is not None]
        number = data.draw(st.integers(1, 3), label="number")
        run_id: str | None
        token: str | None
        if about in {"ordered", "another", "wrong"} and ordered:
            run, batch = data.draw(st.sampled_from(ordered), label="batch")
            apify_run, run_id = f"{'other' if about == 'another' else 'run'}-{batch.token}", run.run_id
            token = f"wrong-{number}" if about == "wrong" else batch.token
        elif about == "own":
            own = next((one.run_id for one in self.world.told if one.apify_run == f"own-{number}" and one.run_id), None)
            apify_run, run_id, token = f"own-{number}", own or self._any_run(data), None
        else:
            apify_run, run_id, token = f"own-{number}", None, None
        earlier = [one for one in self.world.told if one.apify_run == apify_run and one.ended]
        status, ended = ends or "RUNNING", None
        if ends is not None:
            status, ended = (
                (earlier[0].status, earlier[0].ended) if earlier else (ends, iso(self.world.house.clock.now()))
            )
        told = Told(apify_run, status, ended, run_id, token, f"dispatch-{len(self.world.told)}")
        self.world.told.append(told)
        self._tell(told)

    @precondition(lambda self: self.world.told)
    @rule(data=st.data())
    def apify_tells_again(self, data: st.DataObject) -> None:
        self._tell(data.draw(st.sampled_from(self.world.told), label="webhook"))

    def _tell(self, told: Told) -> None:
        event = f"ACTOR.RUN.{told.status if told.ended else 'CREATED'}"
        resource = {"id": told.apify_run, "status": told.status, "finishedAt": told.ended}
        body = json.dumps({"eventType": event, "createdAt": "2026-05-16T09:00:00.000Z", "resource": resource}).encode()
        query = {name: value for name, value in (("run", told.run_id), ("batch", told.token)) if value is not None}
        now = self.world.house.clock.now()
        decoded = decode_webhook(body, {"X-Apify-Webhook-Dispatch-Id": told.dispatch}, query, received_at=now)
        taken = self.world.house.wait_for(self.world.house.intake.take_webhook(decoded))
        error_id = taken.error.id if taken.error is not None else None
        assert taken.outcome == self.world.model.tell(told, now, error_id)

    # The sync loop and the wire

    @rule(times=st.integers(1, 3))
    def send(self, times: int) -> None:
        for _ in range(times):
            self.world.step()

    @rule(fates=st.lists(FATES, min_size=3, max_size=9), patience=st.sampled_from([2.0, 0.0, 40.0, 4000.0]))
    def send_and_hear(self, fates: list[Fate], patience: float) -> None:
        """Requests one after another, each with its fate; between them it waits as long as it has to, if not longer."""
        for fate in fates:
            flight, delay = self.world.step()
            if flight is not None:
                self.world.end(flight, fate.heard, applied=fate.applied)
            elif delay is not None and delay <= patience:
                self.world.pass_time(delay)

    @rule(fates=st.lists(BAD_FATES, min_size=2, max_size=8))
    def all_goes_wrong_for_a_while(self, fates: list[Fate]) -> None:
        self.send_and_hear(fates, 4000.0)

    @precondition(lambda self: self.world.house.flights)
    @rule(data=st.data(), fate=FATES)
    def hear(self, data: st.DataObject, fate: Fate) -> None:
        number = data.draw(st.integers(0, len(self.world.house.flights) - 1), label="request")
        self.world.end(self.world.house.flights[number], fate.heard, applied=fate.applied)

    @precondition(lambda self: self.world.house.look is None)
    @rule()
    def look_for_the_missing(self) -> None:
        self.world.look_for_the_missing()

    @precondition(lambda self: self.world.late)
    @rule(data=st.data())
    def what_was_late_arrives(self, data: st.DataObject) -> None:
        """It may write an old value over a newer one: Airtable has no versions, and this is the one known gap."""
        flight = data.draw(st.sampled_from(self.world.late), label="late")
        self.world.late.remove(flight)
        names = {str(cells.get("Run ID")) for _, cells in flight.records}
        if not (flight.is_upsert and names & self.world.gone):  # or it would bring back what a person has deleted
            self.world.apply(flight, late=True)

    @rule(sends=st.integers(0, 2), fate=st.sampled_from(["done", "lost", "late"]))
    def the_process_is_killed(self, sends: int, fate: str) -> None:
        for _ in range(sends):
            self.world.step()
        for flight in self.world.house.flights:
            if fate == "done":
                self.world.apply(flight)
            elif fate == "late" and flight.is_write:
                self.world.late.append(flight)
        self.world.reopen()

    @precondition(lambda self: self.world.model.runs)
    @rule(data=st.data(), killed_after=st.sampled_from([None, 1, 4]), wait=st.sampled_from([0.0, 0.4, 0.9]))
    def a_burst(self, data: st.DataObject, killed_after: int | None, wait: float) -> None:
        """More than a second may carry, and perhaps a restart in the midst of it."""
        run_id = data.draw(st.sampled_from(sorted(self.world.model.runs)), label="run")
        for number in range(7):
            self._update(run_id, Change(add={"posts_examined": 1}), None, "nothing")
            flight, _ = self.world.step()
            if flight is not None:
                self.world.end(flight, "well")
            if number == killed_after:
                self.world.reopen()
                self.world.pass_time(wait)

    @precondition(lambda self: self.world.model.runs)
    @rule(data=st.data(), how=st.sampled_from(RATE_LIMITED), wait=st.sampled_from([0.0, 1.0, 25.0]), kill=st.booleans())
    def it_is_told_to_slow_down(self, data: st.DataObject, how: WireResponse, wait: float, kill: bool) -> None:
        """All that was sent is refused, and there is more to send: perhaps by a process that was not there then."""
        for run_id in data.draw(st.lists(st.sampled_from(sorted(self.world.model.runs)), max_size=3), label="runs"):
            self._update(run_id, Change(add={"posts_examined": 1}), None, "nothing")
            self.world.step()
        for flight in list(self.world.house.flights):
            self.world.end(flight, how, applied=False)
        if kill:
            self.world.reopen()
        self.world.pass_time(wait)
        self.world.step()

    # Time

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.1, 5, 31, 700, 4000]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(seconds=st.sampled_from([-86_400, -3600, -2, 2, 3600, 86_400]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.world.house.clock.jump(seconds)
        self.world.set_since_it_sent = self.world.set_since_its_limit = True

    # Persons

    @rule(
        data=st.data(),
        cells=st.fixed_dictionaries({}, optional={"Progress Log": st.just("by hand"), "Client Name": st.just("Hand")}),
        times=st.integers(1, 2),
    )
    def a_person_makes_a_record(self, data: st.DataObject, cells: dict[str, Json], times: int) -> None:
        run_id = self._any_run(data)
        for _ in range(times):
            self.world.by_hand.add(self.world.house.airtable.insert({"Run ID": run_id, **cells}).id)
        if len(self.world.records(run_id)) > 1:
            self.world.doubled.add(run_id)

    @precondition(lambda self: self.world.house.airtable._store.records and len(self.world.model.runs) > 1)
    @rule(data=st.data(), change=CHANGES)
    def a_record_is_deleted_just_before_all_are_written(self, data: st.DataObject, change: Change) -> None:
        self.world.delete(data.draw(st.sampled_from(sorted(self.world.house.airtable._store.records)), label="record"))
        for run_id in list(self.world.model.runs):
            self._update(run_id, change, None, "nothing")
        self.send_and_hear([WELL] * 4, 40.0)

    @rule(client=st.sampled_from(CLIENTS), change=CHANGES, times=st.integers(0, 2))
    def a_missing_run_is_looked_for(self, client: str, change: Change, times: int) -> None:
        """And found, or not, or more than once."""
        run_id = f"{JOB}-{client}"
        self._update(run_id, change, None, "nothing")
        if run_id in self.world.model.runs or self.world.house.look is not None:
            return
        for _ in range(times):
            self.world.by_hand.add(self.world.house.airtable.insert({"Run ID": run_id}).id)
        if len(self.world.records(run_id)) > 1:
            self.world.doubled.add(run_id)
        self.world.look_for_the_missing()
        self.send_and_hear([WELL] * 4, 40.0)

    @rule(data=st.data(), what=st.sampled_from(["delete a record", "restore one", "rename a column"]))
    def a_person_meddles_with_the_table(self, data: st.DataObject, what: str) -> None:
        records = sorted(self.world.house.airtable._store.records)
        if what == "delete a record" and records:
            self.world.delete(data.draw(st.sampled_from(records), label="record"))
        elif what == "restore one" and self.world.deleted:
            self.world.restore(data.draw(st.sampled_from(self.world.deleted), label="record"))
        elif what == "rename a column":
            self.world.rename_column()

    @rule(data=st.data(), discard=st.booleans())
    def a_person_resolves_an_error(self, data: st.DataObject, discard: bool) -> None:
        errors = [
            int(str(one)) for (one,) in self.world.house.rows("SELECT id FROM errors WHERE state = 'open' ORDER BY id")
        ]
        if errors:
            error_id = data.draw(st.sampled_from(errors), label="error")
            self.world.house.wait_for(
                self.world.house.store.resolve_error(
                    error_id, note=None, discard=discard, at=self.world.house.clock.now()
                )
            )
            self.world.model.resolve(error_id, discard=discard)

    @rule(data=st.data(), which=st.sampled_from(["all", "run", "kind", "one"]))
    def a_person_retries(self, data: st.DataObject, which: str) -> None:
        dead = self.world.house.rows(
            "SELECT m.id, m.run_id, e.kind FROM outbox AS m JOIN errors AS e ON e.id = m.error_id ORDER BY m.id"
        )
        if not dead:
            return
        message_id, run_id, kind = data.draw(st.sampled_from(dead), label="message")
        store, now = self.world.house.store, self.world.house.clock.now()
        if which == "one":
            shown = self.world.house.wait_for(store.retry(int(str(message_id)), now))
            assert shown is not None
            assert shown.state == "pending"
            return
        chosen = {"run": str(run_id) if which == "run" else None, "kind": str(kind) if which == "kind" else None}
        retried = self.world.house.wait_for(
            store.retry_all(kind=chosen["kind"], run_id=chosen["run"], since=None, at=now)
        )
        expected = [one for one in dead if chosen["run"] in {None, one[1]} and chosen["kind"] in {None, one[2]}]
        assert retried == len(expected)

    def _any_run(self, data: st.DataObject) -> str:
        usual = [f"{JOB}-{client}" for client in CLIENTS]
        others = [run_id for run_id in self.world.model.runs if run_id not in usual]
        return data.draw(st.sampled_from([*usual, *others]), label="run")

    # What always holds, and how it ends

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        STEPS.count += 1
        self.world.judge()

    def teardown(self) -> None:
        try:
            self.world.come_to_the_end()
        finally:
            self.world.close()


def play(times: int, steps: int) -> None:
    """Let Hypothesis play; say how fast it was."""
    began, before = time.monotonic(), STEPS.count
    run_state_machine_as_test(
        DeliveryMachine,
        settings=settings(
            max_examples=times,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    took = time.monotonic() - began
    print(f"{STEPS.count - before} steps in {took:.1f} s: {(STEPS.count - before) / took * 60:.0f} a minute")  # noqa: T201


@pytest.mark.timeout(7200)  # thousands of examples in `make soak`; a house that is stuck says so by itself
def test_whatever_happens_in_whatever_order_airtable_ends_as_the_fold() -> None:
    play(examples(100), 40)
