"""What has to come of it: a small model of runs, held updates, webhooks and errors, apart from how the service does it.

It knows names of fields and the words of the contract, and nothing of stores, messages, calls or Airtable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

from app.clock import iso

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from app.model import Json

Cells: TypeAlias = dict[str, "str | int | None"]
MISSING, UNMATCHED = "missing_record", "unmatched_webhook"


@dataclass(frozen=True)
class Change:
    """An update as a caller sends it."""

    set: Mapping[str, str | int | None] = field(default_factory=dict)
    add: Mapping[str, int] = field(default_factory=dict)
    append: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def body(self) -> dict[str, dict[str, Json]]:
        lines: dict[str, Json] = {name: list(one) for name, one in self.append.items()}
        return {"set": dict(self.set), "add": dict(self.add), "append": lines}

    def apply(self, cells: Cells) -> None:
        cells.update(self.set)
        for name, number in self.add.items():
            before = cells.get(name)
            cells[name] = number + (before if isinstance(before, int) else 0)
        for name, lines in self.append.items():
            before = cells.get(name)
            cells[name] = "\n".join([*([before] if isinstance(before, str) else []), *lines])


@dataclass(frozen=True)
class Told:
    """A webhook: one event of one Apify run, and what its URL names. `ended` is when the run did, if it did."""

    apify_run: str
    status: str
    ended: str | None
    run_id: str | None
    token: str | None
    dispatch: str

    @property
    def key(self) -> str:
        return f"{self.apify_run} {self.status} {self.ended}"


@dataclass(eq=False)
class Batch:
    """`token` is `None` where others started it and a webhook told of it."""

    token: str | None
    profiles: int | None = None
    apify_run: str | None = None
    status: str | None = None
    ended: str | None = None
    told_at: str | None = None

    @property
    def is_done(self) -> bool:
        return self.ended is not None

    def hear(self, told: Told, at: str) -> bool:
        """Whether it was news."""
        self.told_at = at
        if told.ended is None:
            is_news = self.apify_run is None
            if is_news:
                self.apify_run, self.status = told.apify_run, told.status
            return is_news
        is_news = not self.is_done
        self.apify_run = told.apify_run
        if is_news:
            self.status, self.ended = told.status, told.ended
        return is_news


@dataclass
class Run:
    run_id: str
    cells: Cells
    status_by_caller: bool = False
    messages: int = 0  # of the kickoff and of callers
    batches: list[Batch] = field(default_factory=list)
    adopted_from: str | None = None

    def apply(self, change: Change) -> None:
        self.messages += 1
        self.status_by_caller |= "status" in change.set
        change.apply(self.cells)

    def hear(self, batch: Batch, told: Told, at: str) -> bool:
        """What the run shows for its batches follows from them; whether it was news."""
        status, failed = self._status(), [one for one in self.batches if _failed(one)]
        is_news = batch.hear(told, at)
        known = [one for one in self.batches if one.apify_run is not None]
        self.cells["apify_run_ids"] = ", ".join(one.apify_run or "" for one in known)
        words = sorted(one.status or "" for one in known)
        one_word = len(set(words)) == 1
        self.cells["apify_status"] = (
            words[0] if one_word else ", ".join(f"{word} {words.count(word)}" for word in sorted(set(words)))
        )
        profiles = [one.profiles for one in known if one.profiles is not None]
        if profiles:
            self.cells["profiles_submitted"] = sum(profiles)
        self.cells["last_webhook"] = max(one.told_at for one in self.batches if one.told_at is not None)
        ordered = [one for one in self.batches if one.token is not None]
        if ordered:
            done = all(one.is_done for one in ordered)
            if done or "end_time" in self.cells:
                self.cells["end_time"] = max(one.ended or "" for one in ordered) if done else None
        if self._status() != status and not self.status_by_caller:
            self.cells["status"] = self._status()
        for number, one in enumerate(self.batches, start=1):
            if _failed(one) and one not in failed:
                line = f"Batch {number} (Apify run {one.apify_run}) failed: Apify says FAILED"
                Change(append={"error_details": (line,)}).apply(self.cells)
        return is_news

    def _status(self) -> str | None:
        ordered = [one for one in self.batches if one.token is not None]
        if not ordered:
            return None
        if not all(one.is_done for one in ordered):
            return "Running"
        good = sum(one.status == "SUCCEEDED" for one in ordered)
        return "Completed" if good == len(ordered) else "Completed with Errors" if good else "Failed"


def _failed(batch: Batch) -> bool:
    return batch.is_done and batch.status != "SUCCEEDED"


@dataclass
class Error:
    """A missing record or an unmatched webhook; `about` is a run id or an Apify run."""

    kind: str
    about: str
    count: int = 0
    resolution: str | None = None


@dataclass
class Expected:
    """All that was accepted. Ids of errors are those that the service gave."""

    runs: dict[str, Run] = field(default_factory=dict)
    held: list[tuple[int, str, Change]] = field(default_factory=list)
    held_told: list[tuple[int, Told]] = field(default_factory=list)
    errors: dict[int, Error] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[object, str]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    dispatched: set[str] = field(default_factory=set)

    # Callers

    def known(self, scope: str, key: str | None, request: object) -> str | None:
        """What becomes of a request with this key: `same` as before, `another`, or nothing is known of it."""
        before = self.keys.get((scope, key)) if key is not None else None
        if before is None:
            return None
        return "same" if before[0] == request else "another"

    def remember(self, scope: str, key: str | None, request: object, run_id: str) -> None:
        if key is not None:
            self.keys[scope, key] = (request, run_id)

    def free_job(self, client: str, now: datetime) -> str:
        while f"{now:%y%m%d-%H%M%S}-{client}" in self.runs:
            now += timedelta(seconds=1)
        return f"{now:%y%m%d-%H%M%S}"

    def kick_off(self, run: Run, at: datetime) -> int:
        """A new run, and what waited for it; how many updates that were."""
        run.messages = 1
        self.runs[run.run_id] = run
        return self._follow(run, at, "created_late")

    def adopt(self, run_id: str, record_id: str, cells: Cells, at: datetime) -> None:
        run = self.runs[run_id] = Run(run_id, cells, adopted_from=record_id)
        self._follow(run, at, "adopted")

    def _follow(self, run: Run, at: datetime, resolution: str) -> int:
        mine = [change for _, run_id, change in self.held if run_id == run.run_id]
        self.held = [one for one in self.held if one[1] != run.run_id]
        for change in mine:
            run.apply(change)
        for error in self._open(MISSING, run.run_id):
            error.resolution = resolution
        self._release(run, None, at)
        return len(mine)

    def hold(self, error_id: int, run_id: str, change: Change) -> None:
        self._count(error_id, MISSING, run_id)
        self.held.append((error_id, run_id, change))

    # Webhooks

    def tell(self, told: Told, at: datetime, error_id: int | None) -> str:
        """Take a webhook; its outcome. `error_id` is that of the service where it held it."""
        if told.dispatch in self.dispatched:
            return "duplicate"
        self.dispatched.add(told.dispatch)
        if told.key in self.told:
            return "duplicate"
        self.told.add(told.key)
        found = self._find(told, told.run_id)
        if found is None:
            assert error_id is not None, "held without an error"
            missing = told.run_id is not None and told.run_id not in self.runs
            self._count(error_id, *((MISSING, told.run_id or "") if missing else (UNMATCHED, told.apify_run)))
            self.held_told.append((error_id, told))
            return "held"
        run, batch = found
        before = batch.apify_run
        is_news = run.hear(batch, told, iso(at))
        if batch.apify_run != before:
            self._release(run, batch.apify_run, at)
        return "queued" if is_news else "ignored"

    def _find(self, told: Told, run_id: str | None) -> tuple[Run, Batch] | None:
        every = [(run, batch) for run in self.runs.values() for batch in run.batches]
        for run, batch in every:
            if batch.apify_run == told.apify_run:
                return run, batch
        if told.token is not None:
            return next(
                ((run, batch) for run, batch in every if batch.token == told.token and batch.apify_run is None), None
            )
        if run_id is None or run_id not in self.runs:
            return None
        self.runs[run_id].batches.append(Batch(None))
        return self.runs[run_id], self.runs[run_id].batches[-1]

    def _release(self, run: Run, apify_run: str | None, at: datetime) -> None:
        """What waited for this run to exist, or for a batch of it to turn out to be this Apify run."""
        matched = []
        for one in list(self.held_told):
            _, told = one
            is_run = told.run_id == run.run_id and told.token is None
            if not (is_run or told.apify_run == apify_run):
                continue
            found = self._find(told, run.run_id)
            if found is None:
                continue
            self.held_told.remove(one)
            before = found[1].apify_run
            found[0].hear(found[1], told, iso(at))
            for error in self._open(UNMATCHED, told.apify_run):
                error.resolution = "matched"
            if found[1].apify_run != before:
                matched.append(told.apify_run)
        for becomes in matched:
            self._release(run, becomes, at)

    # Errors

    def resolve(self, error_id: int, *, discard: bool) -> None:
        if error_id in self.errors:
            self.errors[error_id].resolution = "by_hand"
        if discard:
            about = [one.about for id_, one in self.errors.items() if id_ == error_id and one.kind == MISSING]
            self.held = [one for one in self.held if one[1] not in about]  # whichever error of the run held it
            self.held_told = [one for one in self.held_told if one[0] != error_id]

    def is_missing(self, run_id: str) -> bool:
        """Whether an open error says so."""
        return bool(self._open(MISSING, run_id))

    def _count(self, error_id: int, kind: str, about: str) -> None:
        error = self.errors.setdefault(error_id, Error(kind, about))
        assert (error.kind, error.about, error.resolution) == (kind, about, None)
        assert self._open(kind, about) == [error], "one open error for one cause"
        error.count += 1

    def _open(self, kind: str, about: str) -> list[Error]:
        wanted = (kind, about, None)
        return [one for one in self.errors.values() if (one.kind, one.about, one.resolution) == wanted]
