"""A service stepped by hand, what persons do in Airtable, and what has to come of it: the delivery machine's world.

It judges each request as it leaves: whether it was allowed to, and whether it says what is true.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import requests
from structlog.testing import capture_logs

from app.sandbox.airtable_store import Change as TableChange
from app.sandbox.messages import WireResponse
from tests.support.expected import Expected
from tests.support.house_by_hand import GIVEN_UP_AFTER, SYNC, HouseByHand
from tests.support.truths import COLUMN, TRUTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app.model import Json
    from app.sandbox.airtable_store import Record
    from tests.support.expected import Cells, Told
    from tests.support.house_by_hand import Flight


def _others(answer: WireResponse) -> WireResponse:
    body = json.loads(answer.body)
    for record in body.get("records", []):
        record["fields"] = {"Run ID": "another"}
        record["id"] = "recAnother0000000"
    return WireResponse.json(200, body)


def _fewer(answer: WireResponse) -> WireResponse:
    body = json.loads(answer.body)
    body["records"] = body.get("records", [])[1:]
    return WireResponse.json(200, body)


#: What is done to a good answer.
SPOILED: Final[Mapping[str, Callable[[WireResponse], WireResponse]]] = {"fewer": _fewer, "others": _others}
CARRIED_BY: Final = "SELECT call_id FROM runs WHERE run_id = ?"
LOST: Final = requests.ConnectionError("cut off")
LATE: Final = requests.ReadTimeout("too late")


#: What Airtable never says in such a shape.
STRANGERS: Final = 408


class World:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.logs = capture_logs()
        self.logged = self.logs.__enter__()
        self.house = HouseByHand(self.folder)
        self.model = Expected()
        self.told: list[Told] = []
        self.sent: list[float] = []  # when requests left, monotonic
        self.rests_until = 0.0
        self.late: list[Flight] = []
        self.stale: set[tuple[str, str]] = set()  # cells that an overtaken request wrote over
        self.by_hand: set[str] = set()  # records that a person made
        self.deleted: list[Record] = []
        self.doubled: set[str] = set()
        self.gone: set[str] = set()
        self.renamed = False
        self.was_renamed = False
        self.set_since_it_sent = False
        self.set_since_its_limit = False
        self.looking_for: list[str] = []

    def look_for_the_missing(self) -> None:
        self.looking_for = self.house.begin_look()
        if self.house.look is not None and self.house.look.done():
            self.house.look = None

    def rename_column(self) -> None:
        """A person does, or takes it back."""
        self.renamed, self.was_renamed = not self.renamed, True
        old, new = (COLUMN, "Posts") if self.renamed else ("Posts", COLUMN)
        self.house.airtable.rename_column(old, new)

    def judge(self) -> None:
        for truth in TRUTHS:
            truth(self)

    def cells(self) -> dict[str, Cells]:
        return {run_id: dict(run.cells) for run_id, run in self.model.runs.items()}

    def step(self) -> tuple[Flight | None, float | None]:
        flight, delay = self.house.step()
        if flight is not None:
            self.judge_departure(flight, self.cells())
        return flight, delay

    def pass_time(self, seconds: float) -> None:
        """Requests that are on their way for too long are given up when their time has come."""
        clock = self.house.clock
        end = clock.monotonic() + seconds
        for flight in sorted(self.house.flights, key=lambda one: one.left_at):
            if flight.left_at + GIVEN_UP_AFTER <= end:
                clock.pass_time(max(0.0, flight.left_at + GIVEN_UP_AFTER - clock.monotonic()))
                self.end(flight, LATE, applied=False)
        clock.pass_time(max(0.0, end - clock.monotonic()))

    def reopen(self) -> None:
        """What the service knows of the base's limits it knows by the wall clock, which may have been set."""
        self.house.kill()
        if self.set_since_it_sent:
            self.sent.clear()
        if self.set_since_its_limit:
            self.rests_until = 0.0
        self.house.open()

    def records(self, run_id: str) -> list[str]:
        return [one.id for one in self.house.airtable.records() if one.fields.get("Run ID") == run_id]

    def delete(self, record_id: str) -> None:
        """By hand. What is still on its way for it stays lost, or it would come back."""
        run_id = next(str(one.fields["Run ID"]) for one in self.house.airtable.records() if one.id == record_id)
        self.deleted.append(self.house.airtable._store.records[record_id])
        self.gone.add(run_id)
        self.house.airtable.delete(record_id)

    def restore(self, record: Record) -> None:
        """A person restores from the bin what is nowhere else."""
        if not self.records(str(self.house.airtable._plain(record).fields["Run ID"])):
            self.deleted.remove(record)
            self.house.airtable._store.commit(TableChange(put=(record,)))

    def apply(self, flight: Flight, *, late: bool = False) -> WireResponse:
        """Let the base take a request, and note the cells in which an overtaken one leaves an old value."""
        answer = self.house.airtable(flight.way.request)
        if flight.is_write and answer.status == 200:
            for written, (_, cells) in zip(json.loads(answer.body)["records"], flight.records, strict=True):
                run = self.model.runs[str(written["fields"]["Run ID"])]
                for column, value in cells.items():
                    self.stale.discard((written["id"], column))
                    if late and value != run.cells.get(self.house.registry.name_of(column) or ""):
                        self.stale.add((written["id"], column))
        return answer

    def end(self, flight: Flight, how: object, *, applied: bool = True) -> None:
        """Let a request end: `well`, with a spoiled answer, or with one that says nothing of what was done."""
        table = {record.id: dict(record.fields) for record in self.house.airtable.records()}
        answer = self.apply(flight) if applied else None
        ending: object = how
        if isinstance(how, str):
            assert answer is not None
            spoil = SPOILED.get(how) if answer.status == 200 else None
            ending = answer if spoil is None else spoil(answer) if flight.is_write else LOST
        assert isinstance(ending, WireResponse | requests.RequestException)
        sending = self._messages(flight)
        told_apart = self.house.sync._health.is_sound and len(flight.runs) == 1
        self.house.end(flight, ending)
        self._judge_settled(
            flight, sending, ending, named=how != "others", first_named=how != "fewer", told_apart=told_apart
        )
        if isinstance(ending, requests.ReadTimeout) and not applied and flight.is_write:
            self.late.append(flight)
        if isinstance(ending, WireResponse) and ending.status == 429 and b"BILLING" not in ending.body:
            self.rests_until = self.house.clock.monotonic() + 30.0
            self.set_since_its_limit = False
        if not flight.is_write:
            self._note_adoptions(table if ending is answer and answer.status == 200 else {})

    def _messages(self, flight: Flight) -> dict[int, tuple[str, str, int]]:
        """What rides in a request: by its id the run, state and attempts of each message."""
        riding = "SELECT id, run_id, state, attempts FROM outbox WHERE call_id = ?"
        (call_id,) = {one for run in flight.runs[:1] for (one,) in self.house.rows(CARRIED_BY, run)} or {0}
        rows = self.house.rows(riding, int(str(call_id)))
        return {int(str(id_)): (str(run), str(state), int(str(tries))) for id_, run, state, tries in rows}

    def _judge_settled(
        self,
        flight: Flight,
        before: Mapping[int, tuple[str, str, int]],
        ending: WireResponse | requests.RequestException,
        *,
        named: bool,
        first_named: bool,
        told_apart: bool,
    ) -> None:
        """A 2xx delivers whom it names; a refusal of all or an outage gives the attempt back; the rest costs it.

        A stranger's no costs it where it is said to one run alone.
        """
        status = ending.status if isinstance(ending, WireResponse) and ending.body != b"<html>" else None
        for message_id, (run_id, _, attempts) in before.items():
            ((state, after),) = self.house.rows("SELECT state, attempts FROM outbox WHERE id = ?", message_id)
            if status == STRANGERS and told_apart:
                assert (state, after) == ("dead" if attempts >= SYNC.max_attempts else "pending", attempts)
            elif status in {None, 401, 403, STRANGERS, 429, 502, 503, 504}:
                assert (state, after) == ("pending", attempts - 1)
            elif status in {404, 422}:
                assert state == "dead" or (state, after) == ("pending", attempts - 1)
            elif status == 200 and ending.body.startswith(b'{"records":[{') and named:  # type: ignore[union-attr]
                is_named = first_named or run_id != flight.runs[0]
                assert (state == "delivered") == is_named, run_id
            else:
                assert (state, after) == ("dead" if attempts >= SYNC.max_attempts else "pending", attempts)

    def _note_adoptions(self, table: Mapping[str, Mapping[str, Json]]) -> None:
        """A look was answered: exactly those are adopted that are missing, and of which one free record was seen."""
        owned = {str(one) for (one,) in self.house.rows("SELECT airtable_record_id FROM runs WHERE origin = 'kickoff'")}
        owned |= {str(run.adopted_from) for run in self.model.runs.values()}
        for run_id in self.looking_for:
            seen = [one for one, cells in table.items() if cells.get("Run ID") == run_id]
            if len(seen) == 1 and seen[0] not in owned and self.model.is_missing(run_id):
                cells = {self.house.registry.name_of(column): value for column, value in table[seen[0]].items()}
                values: Cells = {name: value for name, value in cells.items() if name and isinstance(value, str | int)}
                self.model.adopt(run_id, seen[0], values, self.house.clock.now())
        adopted = {str(one) for (one,) in self.house.rows("SELECT run_id FROM runs WHERE origin = 'adopted'")}
        assert adopted == {run.run_id for run in self.model.runs.values() if run.adopted_from}

    def judge_departure(self, flight: Flight, cells: Mapping[str, Cells]) -> None:
        """A request has left: was it allowed to, and does it say what is true?"""
        now = self.house.clock.monotonic()
        assert now >= self.rests_until - 0.01, "the base was to rest"
        self.sent = [one for one in self.sent if one > now - 1.0] + [now]
        assert len(self.sent) <= 5, "never more than five in a second"
        self.set_since_it_sent = False
        if not flight.is_write:
            assert flight.way.request.method == "GET"
            assert self.looking_for
            return
        assert 1 <= len(flight.records) <= 10
        runs = [self._run_of(flight, record_id, written) for record_id, written in flight.records]
        assert len(runs) == len(set(runs))
        flight.runs = tuple(runs)
        on_the_way = [run_id for one in self.house.flights if one is not flight for run_id in one.runs]
        assert not set(runs) & set(on_the_way), "never two requests for one run"
        for run_id, (_, written) in zip(runs, flight.records, strict=True):
            sending = "SELECT fields FROM outbox WHERE run_id = ? AND state = 'sending'"
            wanted = {name for (names,) in self.house.rows(sending, run_id) for name in json.loads(str(names))}
            names = {self.house.registry.name_of(column) for column in written}
            assert names == wanted, "what waits, and nothing else"
            expected = cells[run_id]
            for column, value in written.items():
                assert value == expected.get(self.house.registry.name_of(column) or ""), (run_id, column)

    def _run_of(self, flight: Flight, record_id: str | None, written: Mapping[str, Json]) -> str:
        known = self.house.pairs("SELECT run_id, airtable_record_id FROM runs")
        if flight.is_upsert:
            run_id = str(written["Run ID"])
            assert record_id is None
            assert known[run_id] is None, "created once"
            assert written["Client ID"], "an upsert carries the create"
            return run_id
        (run_id,) = (str(one) for one, its in known.items() if its == record_id)
        return run_id

    # The end

    def come_to_the_end(self) -> None:
        for flight in list(self.house.flights):
            self.end(flight, "well")
        self._drain()
        assert self.house.rows("SELECT run_id FROM runs WHERE due_at IS NOT NULL") == []  # a truth says what is due
        self.judge()
        self._mend()
        self.house.wait_for(self.house.store.retry_all(kind=None, run_id=None, since=None, at=self.house.clock.now()))
        self._drain()
        assert self.house.rows("SELECT run_id FROM runs WHERE sync <> 'synced' OR due_at IS NOT NULL") == []
        assert self.house.rows("SELECT DISTINCT state FROM outbox") in ([], [("delivered",)])
        self.judge()
        records = self.house.pairs("SELECT run_id, airtable_record_id FROM runs")
        assert {run_id: self.records(run_id) for run_id in self.model.runs} == {
            str(run_id): [record_id] for run_id, record_id in records.items()
        }
        for run_id in self.model.runs:
            assert not self.model.is_missing(run_id)

    def _drain(self) -> None:
        """All goes well for days, in which every run that is missing is looked for too."""
        end = self.house.clock.monotonic() + 4 * 86_400
        for _ in range(2000):
            if self.house.look is None:
                self.look_for_the_missing()
            flight, delay = self.step()
            if flight is not None:
                self.end(flight, "well")
                continue
            if self.house.look is not None and delay is None:
                continue
            if self.house.clock.monotonic() > end:
                return
            look_due = self.house.wait_for(self.house.store.next_look_due())
            looks = None if look_due is None else (look_due - self.house.clock.now()).total_seconds()
            waits = [one for one in (delay, None if self.house.look else looks) if one is not None]
            if not waits:
                return
            self.pass_time(max(0.001, min(waits)))
        raise AssertionError("it never comes to rest")

    def _mend(self) -> None:
        """A person undoes what persons did: columns named as before, one record a run, and that is the one known."""
        if self.renamed:
            self.rename_column()
        known = self.house.pairs("SELECT run_id, airtable_record_id FROM runs")
        for run_id in {str(one.fields["Run ID"]) for one in self.house.airtable.records()} | set(map(str, known)):
            here = self.records(run_id)
            kept = known.get(run_id) or next(iter(here), None)
            for record_id in here:
                if record_id != kept:
                    self.delete(record_id)
            for record in [one for one in self.deleted if one.id == kept]:
                self.restore(record)

    def close(self) -> None:
        self.house.close()
        self.logs.__exit__(None, None, None)
        shutil.rmtree(self.folder)
