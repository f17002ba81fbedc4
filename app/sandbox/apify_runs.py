"""The life of an Actor run in the Apify sandbox: what it was given, what it will do, and what it has become.

Plain state that moves only when it is told the time. It must not know of HTTP, of webhooks, or of any clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.model import Json


class RunStatus(StrEnum):
    """The statuses of Apify's API. Its events spell the third end `TIMED_OUT`, its statuses `TIMED-OUT`."""

    READY = "READY"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMING_OUT = "TIMING-OUT"
    TIMED_OUT = "TIMED-OUT"
    ABORTING = "ABORTING"
    ABORTED = "ABORTED"

    @property
    def is_terminal(self) -> bool:
        return self in _END_EVENTS


class Event(StrEnum):
    """What a webhook can be told of."""

    CREATED = "ACTOR.RUN.CREATED"
    SUCCEEDED = "ACTOR.RUN.SUCCEEDED"
    FAILED = "ACTOR.RUN.FAILED"
    ABORTED = "ACTOR.RUN.ABORTED"
    TIMED_OUT = "ACTOR.RUN.TIMED_OUT"
    RESURRECTED = "ACTOR.RUN.RESURRECTED"
    TEST = "TEST"


_END_EVENTS = {
    RunStatus.SUCCEEDED: Event.SUCCEEDED,
    RunStatus.FAILED: Event.FAILED,
    RunStatus.ABORTED: Event.ABORTED,
    RunStatus.TIMED_OUT: Event.TIMED_OUT,
}
#: A run that winds down goes through one of these to its end.
_WINDS_DOWN_TO = {RunStatus.ABORTING: RunStatus.ABORTED, RunStatus.TIMING_OUT: RunStatus.TIMED_OUT}

BYTES_PER_MBYTE = 1_048_576


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a start may set. `timeout_secs` 0 is no time-out."""

    build: str = "latest"
    timeout_secs: int = 3600
    memory_mbytes: int = 1024
    max_items: int | None = None
    max_total_charge_usd: float | None = None


@dataclass(frozen=True, slots=True)
class ActorRunInput:
    """What a script decides by. `value` is the input as JSON, None when there is none or it is not JSON.

    `life` is 0 for the run as started, and one more for each resurrection.
    """

    run_id: str
    actor_id: str
    body: bytes
    content_type: str
    value: Json
    options: RunOptions
    life: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, in this life.

    It is READY for `waits_seconds`, RUNNING for `lasts_seconds` (None: until somebody ends it), and ends as
    `outcome` with these items and this cost in US dollars. Until the figures settle, the run shows
    `early_cost_usd`; Apify's field is nullable, and so is this.
    """

    outcome: RunStatus = RunStatus.SUCCEEDED
    lasts_seconds: float | None = 1.0
    waits_seconds: float = 0.0
    items: Sequence[Json] = ()
    cost_usd: float = 0.0
    early_cost_usd: float | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        if not self.outcome.is_terminal:
            raise ValueError(f"a run cannot end as {self.outcome}")


Script: TypeAlias = "Callable[[ActorRunInput], Plan]"
#: Says what is wrong with an input (its value as JSON), or None if the Actor takes it.
Refusal: TypeAlias = "Callable[[Json], str | None]"


@dataclass(slots=True)
class Dataset:
    """Items in the order they were pushed. Its item count is written late, as Apify's is."""

    id: str
    created_at: datetime
    items: list[Json] = field(default_factory=list)
    modified_at: datetime | None = None
    _last_push: int = 0

    def push(self, items: Sequence[Json], at: datetime) -> None:
        if items:
            self.items.extend(items)
            self.modified_at = at
            self._last_push = len(items)

    def item_count(self, at: datetime, lag: timedelta) -> int:
        """Count as Apify does: for `lag` after a push, half of that push is missing."""
        if self.modified_at is None or at >= self.modified_at + lag:
            return len(self.items)
        return len(self.items) - (self._last_push + 1) // 2


@dataclass(slots=True)
class SandboxRun:
    """One run with the storages that belong to it. `began_at` is the start of its present life."""

    id: str
    actor_id: str
    user_id: str
    options: RunOptions
    input_body: bytes
    input_content_type: str
    input_value: Json
    started_at: datetime
    build_id: str
    build_number: str
    dataset: Dataset
    store_id: str
    queue_id: str
    plan: Plan
    user_agent: str = ""
    status: RunStatus = RunStatus.READY
    began_at: datetime = field(init=False)
    finished_at: datetime | None = None
    winds_down_until: datetime | None = None
    life: int = 0
    run_seconds: float = 0.0
    cost_usd: float = 0.0
    early_cost_usd: float | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        self.began_at = self.started_at
        self.early_cost_usd = self.plan.early_cost_usd

    @property
    def is_terminal(self) -> bool:
        return self.status.is_terminal

    def due(self) -> datetime | None:
        """When this run changes next by itself, or None."""
        if self.winds_down_until is not None:
            return self.winds_down_until
        running_at = self.began_at + timedelta(seconds=self.plan.waits_seconds)
        if self.status is RunStatus.READY:
            return running_at
        if self.status is RunStatus.RUNNING:
            ends = [s for s in (self.plan.lasts_seconds, self.options.timeout_secs or None) if s is not None]
            return running_at + timedelta(seconds=min(ends)) if ends else None
        return None

    def advance(self, now: datetime, winding_down: timedelta) -> list[tuple[Event, datetime]]:
        """Do all that is due by `now`, each thing as of when it was due; return the events that follow.

        `winding_down` is how long a run that timed out is TIMING-OUT.
        """
        events: list[tuple[Event, datetime]] = []
        while (due := self.due()) is not None and due <= now:
            events.extend(self._step(due, winding_down))
        return events

    def _step(self, at: datetime, winding_down: timedelta) -> list[tuple[Event, datetime]]:
        if self.status in _WINDS_DOWN_TO:
            return self.end(_WINDS_DOWN_TO[self.status], at)
        if self.status is RunStatus.READY:
            self.status = RunStatus.RUNNING
            return []
        lasts, limit = self.plan.lasts_seconds, self.options.timeout_secs
        if limit and (lasts is None or limit < lasts):
            return self.wind_down(RunStatus.TIMING_OUT, at, winding_down)
        return self.end(self.plan.outcome, at)

    def wind_down(self, status: RunStatus, at: datetime, takes: timedelta) -> list[tuple[Event, datetime]]:
        """Begin to abort or to time out; when that takes no time, the run is at its end."""
        if takes <= timedelta():
            return self.end(_WINDS_DOWN_TO[status], at)
        self.status, self.winds_down_until = status, at + takes
        return []

    def end(self, status: RunStatus, at: datetime) -> list[tuple[Event, datetime]]:
        """End this life. A run cut short has made the share of its items and cost that its time allowed."""
        running_at = self.began_at + timedelta(seconds=self.plan.waits_seconds)
        ran = max(0.0, (at - running_at).total_seconds())
        lasts = self.plan.lasts_seconds
        share = 0.0 if lasts is None else 1.0 if ran >= lasts else ran / lasts
        made = round(len(self.plan.items) * share)
        self.dataset.push(self.plan.items[:made], at)
        self.cost_usd = round(self.cost_usd + self.plan.cost_usd * share, 6)
        self.run_seconds += ran
        self.status, self.finished_at, self.winds_down_until = status, at, None
        self.message = self.plan.message
        return [(_END_EVENTS[status], at)]

    def resurrect(self, plan: Plan, options: RunOptions, at: datetime) -> list[tuple[Event, datetime]]:
        """Run again by a new plan, with the same storages. The start time stays that of the first life."""
        self.early_cost_usd = None if plan.early_cost_usd is None else self.cost_usd + plan.early_cost_usd
        self.plan, self.options = plan, options
        self.life += 1
        self.status, self.began_at, self.finished_at, self.message = RunStatus.RUNNING, at, None, None
        return [(Event.RESURRECTED, at)]

    def usage_usd(self, at: datetime, settles: timedelta) -> float | None:
        """Give the cost as Apify shows it: preliminary until `settles` after the end."""
        if self.finished_at is not None and at >= self.finished_at + settles:
            return self.cost_usd
        return self.early_cost_usd

    def as_object(self, at: datetime, settles: timedelta) -> dict[str, Json]:
        """Give the run as `GET /v2/actor-runs/{id}` does, and as a webhook's `resource` carries it."""
        options: dict[str, Json] = {
            "build": self.options.build,
            "timeoutSecs": self.options.timeout_secs,
            "memoryMbytes": self.options.memory_mbytes,
            "diskMbytes": self.options.memory_mbytes * 2,
        }
        if self.options.max_items is not None:
            options["maxItems"] = self.options.max_items
        if self.options.max_total_charge_usd is not None:
            options["maxTotalChargeUsd"] = self.options.max_total_charge_usd
        return {
            "id": self.id,
            "actId": self.actor_id,
            "userId": self.user_id,
            "startedAt": iso(self.started_at),
            "finishedAt": iso(self.finished_at) if self.finished_at else None,
            "status": self.status.value,
            "statusMessage": self.message,
            "isStatusMessageTerminal": self.is_terminal if self.message else None,
            "meta": {"origin": "API", "userAgent": self.user_agent},
            "stats": self._stats(at, settles),
            "options": options,
            "buildId": self.build_id,
            "buildNumber": self.build_number,
            "exitCode": _EXIT_CODES.get(self.status),
            "defaultKeyValueStoreId": self.store_id,
            "defaultDatasetId": self.dataset.id,
            "defaultRequestQueueId": self.queue_id,
            "generalAccess": "FOLLOW_USER_SETTING",
            "isContainerServerReady": False,
            "usageTotalUsd": self.usage_usd(at, settles),
        }

    def as_list_item(self, at: datetime, settles: timedelta) -> dict[str, Json]:
        """Give the shorter form of listings. Here the cost is a number even while it is not known."""
        whole = self.as_object(at, settles)
        item = {key: whole[key] for key in _LIST_KEYS}
        item["usageTotalUsd"] = self.usage_usd(at, settles) or 0.0
        return item

    def _stats(self, at: datetime, settles: timedelta) -> dict[str, Json]:
        settled = self.finished_at is not None and at >= self.finished_at + settles
        running = self.status is RunStatus.RUNNING
        seconds = self.run_seconds
        if self.finished_at is None and not self.status.is_terminal:
            seconds += max(0.0, (at - self.began_at).total_seconds() - self.plan.waits_seconds)
        if not settled:
            # The last heartbeat before the end is what the early figures are made of.
            seconds = float(int(seconds))
        memory = self.options.memory_mbytes * BYTES_PER_MBYTE
        return {
            "inputBodyLen": len(self.input_body),
            "restartCount": 0,
            "resurrectCount": self.life,
            "memAvgBytes": memory * 0.25,
            "memMaxBytes": memory // 2,
            "memCurrentBytes": memory // 4 if running else 0,
            "cpuAvgUsage": 33.75,
            "cpuMaxUsage": 169.65,
            "cpuCurrentUsage": 30.0 if running else 0,
            "netRxBytes": 65_536 * len(self.dataset.items),
            "netTxBytes": 4_096 * len(self.dataset.items),
            "durationMillis": round(seconds * 1000),
            "runTimeSecs": round(seconds, 3),
            "metamorph": 0,
            "computeUnits": round(self.options.memory_mbytes / 1024 * seconds / 3600, 6),
        }


_EXIT_CODES: dict[RunStatus, Json] = {RunStatus.SUCCEEDED: 0, RunStatus.FAILED: 1}
_LIST_KEYS = (
    "id",
    "actId",
    "userId",
    "status",
    "startedAt",
    "finishedAt",
    "buildId",
    "buildNumber",
    "meta",
    "usageTotalUsd",
    "defaultKeyValueStoreId",
    "defaultDatasetId",
    "defaultRequestQueueId",
)


def iso(at: datetime) -> str:
    """Write a time as Apify does: UTC, milliseconds, `Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def harvest(run: ActorRunInput) -> Plan:
    """Play a post harvester, the default script: three posts for each profile in the input, in a second.

    The profiles are those of the first list in the input. The cost is a start fee and a price per post.
    """
    profiles: list[Json] = []
    if isinstance(run.value, dict):
        profiles = next((value for value in run.value.values() if isinstance(value, list)), [])
    items: list[Json] = [
        {
            "profile": profile,
            "postUrl": f"https://www.linkedin.com/feed/update/urn:li:activity:{7_000_000 + place * 3 + post}",
            "text": f"Post {post + 1} of profile {place + 1}",
            "likes": 5 * post + place,
        }
        for place, profile in enumerate(profiles)
        for post in range(3)
    ]
    if run.options.max_items is not None:
        items = items[: run.options.max_items]
    cost = round(0.01 + 0.002 * len(items), 6)
    return Plan(items=items, cost_usd=cost, early_cost_usd=0.01, message=f"Harvested {len(items)} posts")
