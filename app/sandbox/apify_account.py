"""What one Apify account of the sandbox holds, and what happens in it as time passes.

Runs are started, live by their plans, and fire their webhooks; a test takes a hand in all of it. Pure logic over an
injected clock. It must not know of HTTP, nor who delivers the dispatches that it hands out.
"""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from app.sandbox.apify_answers import Actor, ApiError, User
from app.sandbox.apify_runs import (
    ActorRunInput,
    Dataset,
    Event,
    RunOptions,
    RunStatus,
    SandboxRun,
    harvest,
)
from app.sandbox.apify_webhooks import Dispatch, Occurrence, Webhook, dispatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from random import Random

    from app.model import Json
    from app.sandbox.apify_runs import Refusal, Script

#: The Actor of the demo: it plays a harvester of LinkedIn posts.
HARVESTER = Actor(id="hRv3sterL1nk3dPst", username="sandbox", name="linkedin-posts")
ID_LENGTH = 17
_ALPHANUMERICS = string.ascii_letters + string.digits


@dataclass(slots=True)
class Limits:
    """What the account may do; None is without limit. Apify answers a full account with 402, or with 403.

    The rates count by the sandbox's clock: where that stands still, so does the second that they count in.
    """

    memory_mbytes: int | None = None
    concurrent_runs: int | None = None
    status: int = 402
    requests_per_second: int | None = 60
    starts_per_second: int | None = 400


@dataclass(slots=True)
class Timing:
    """How late Apify is, in seconds.

    Cost and stats settle `settle` after the end; an item count lags by `item_lag` behind a push; a run appears in
    listings `listing_lag` after its start.
    """

    settle: float = 10.0
    item_lag: float = 5.0
    listing_lag: float = 0.0
    aborting: float = 0.0
    aborting_gracefully: float = 30.0
    timing_out: float = 0.0


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a start asks for."""

    actor: Actor
    body: bytes
    content_type: str
    value: Json
    options: RunOptions
    webhooks: Sequence[Webhook] = ()
    user_agent: str = ""


class ApifyAccount:
    """One account. `script` decides what each run does, `refuses` which inputs no Actor takes."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        random: Random,
        actors: Sequence[Actor] = (HARVESTER,),
        script: Script = harvest,
        refuses: Refusal | None = None,
        limits: Limits | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.now = now
        self.script = script
        self.refuses = refuses
        self.limits = limits if limits is not None else Limits()
        self.timing = timing if timing is not None else Timing()
        self.actors = tuple(actors)
        #: How many starts each Actor (by id) has accepted. Deleting a run takes none back.
        self.starts: Counter[str] = Counter()
        #: Called after everything that may have fired a webhook, or changed when the next thing is due.
        self.on_change: Callable[[], None] | None = None
        self._random = random
        self.born = now()
        self.user = User(self.new_id(), "sandbox-user")
        self._runs: dict[str, SandboxRun] = {}
        #: The runs that have not ended, so that time passes cheaply over a long history.
        self._live: dict[str, SandboxRun] = {}
        #: The run that a dataset or a store belongs to.
        self._owners: dict[str, SandboxRun] = {}
        self._webhooks: dict[str, tuple[Webhook, ...]] = {}
        self._idempotency_keys: set[str] = set()
        self._outgoing: list[Dispatch] = []

    # What a test or a demo does to it.

    @property
    def runs(self) -> tuple[SandboxRun, ...]:
        """Every run that has not been deleted, in the order of the starts."""
        return tuple(self._runs.values())

    def run(self, run_id: str) -> SandboxRun:
        """Give the run as it is now. Raises `KeyError` if there is none."""
        self.tick()
        return self._runs[run_id]

    def finish(
        self,
        run_id: str,
        status: RunStatus = RunStatus.SUCCEEDED,
        *,
        items: Sequence[Json] = (),
        cost_usd: float = 0.0,
        message: str | None = None,
    ) -> None:
        """End a run now, whatever was planned for it. Raises `ValueError` if it has ended."""
        run = self.run(run_id)
        if run.is_terminal:
            raise ValueError(f"run {run_id} has ended: {run.status}")
        # A life that was planned to last no time has done all of its work by now.
        run.plan = replace(run.plan, items=items, cost_usd=cost_usd, message=message, lasts_seconds=0.0)
        self._fire(run, run.end(status, self.now()))

    def delete_run(self, run_id: str) -> None:
        """Remove a run with its storages, as the plan's retention does."""
        run = self._runs.pop(run_id)
        self._live.pop(run_id, None)
        for storage_id in (run.dataset.id, run.store_id):
            del self._owners[storage_id]
        del self._webhooks[run_id]

    def send_test_webhook(self, url: str, headers_template: str | None = None) -> None:
        """Dispatch what the Test button of Apify's console sends."""
        webhook = Webhook(self.new_id(), frozenset({Event.TEST}), url, headers_template=headers_template)
        resource: dict[str, Json] = {"joke": "a dummy payload"}
        occurrence = Occurrence(Event.TEST, self.now(), self.user.id, None, resource)
        self._outgoing.append(dispatch(webhook, occurrence, self.new_id(), None))
        self._tell()

    # Its time.

    def tick(self) -> None:
        """Let every run do what is due by now."""
        now, winding_down = self.now(), timedelta(seconds=self.timing.timing_out)
        moving = [run for run in self._live.values() if (at := run.due()) is not None and at <= now]
        happened = [(at, event, run) for run in moving for event, at in run.advance(now, winding_down)]
        for at, event, run in sorted(happened, key=lambda one: one[0]):
            self._fire(run, [(event, at)])
        if moving:
            self._tell()

    def next_due(self) -> datetime | None:
        """When something happens next by itself, or None."""
        return min((at for run in self._live.values() if (at := run.due()) is not None), default=None)

    def take_dispatches(self) -> list[Dispatch]:
        """Hand out the webhooks that fired since the last call, in the order of their events."""
        taken, self._outgoing = self._outgoing, []
        return taken

    def new_id(self) -> str:
        return "".join(self._random.choices(_ALPHANUMERICS, k=ID_LENGTH))

    # What its API asks for.

    def start(self, asked: RunRequest) -> SandboxRun:
        """Start a run. Raises `ApiError` when the Actor refuses the input or the account is full."""
        if self.refuses is not None and (reason := self.refuses(asked.value)) is not None:
            raise ApiError(400, "invalid-input", f"Input is not valid: {reason}")
        self._check_limits(asked.options.memory_mbytes)
        now, run_id = self.now(), self.new_id()
        run = SandboxRun(
            id=run_id,
            actor_id=asked.actor.id,
            user_id=self.user.id,
            options=asked.options,
            input_body=asked.body,
            input_content_type=asked.content_type,
            input_value=asked.value,
            started_at=now,
            build_id=self.new_id(),
            build_number="0.0.1",
            dataset=Dataset(self.new_id(), now),
            store_id=self.new_id(),
            queue_id=self.new_id(),
            plan=self.script(
                ActorRunInput(run_id, asked.actor.id, asked.body, asked.content_type, asked.value, asked.options, 0)
            ),
            user_agent=asked.user_agent,
        )
        self._runs[run_id] = self._live[run_id] = run
        self._owners[run.dataset.id] = self._owners[run.store_id] = run
        self._webhooks[run_id] = self._unseen(asked.webhooks)
        self.starts[asked.actor.id] += 1
        self._fire(run, [(Event.CREATED, now)])
        return run

    def abort(self, run_id: str, *, gracefully: bool = False) -> None:
        """Abort a run that is on its way. For any other this does nothing, as Apify documents it."""
        run = self.run(run_id)
        if run.status in {RunStatus.READY, RunStatus.RUNNING}:
            seconds = self.timing.aborting_gracefully if gracefully else self.timing.aborting
            self._fire(run, run.wind_down(RunStatus.ABORTING, self.now(), timedelta(seconds=seconds)))

    def resurrect(self, run_id: str, options: RunOptions | None = None) -> None:
        """Run a finished run again. Raises `ApiError` if it has not finished, or the account is full."""
        run = self.run(run_id)
        if not run.is_terminal:
            raise ApiError(400, "invalid-request", "Only finished Actor runs can be resurrected")
        options = options if options is not None else run.options
        self._check_limits(options.memory_mbytes)
        given = ActorRunInput(
            run_id,
            run.actor_id,
            run.input_body,
            run.input_content_type,
            run.input_value,
            options,
            run.life + 1,
        )
        self._live[run_id] = run
        self._fire(run, run.resurrect(self.script(given), options, self.now()))

    def _unseen(self, webhooks: Sequence[Webhook]) -> tuple[Webhook, ...]:
        """Leave out each webhook whose idempotency key this user has used before."""
        kept: list[Webhook] = []
        for webhook in webhooks:
            key = webhook.idempotency_key
            if key is None or key not in self._idempotency_keys:
                kept.append(webhook)
            if key is not None:
                self._idempotency_keys.add(key)
        return tuple(kept)

    def _check_limits(self, memory_mbytes: int) -> None:
        active = self._live.values()
        most = self.limits.concurrent_runs
        if most is not None and len(active) >= most:
            raise ApiError(
                self.limits.status,
                "concurrent-runs-limit-exceeded",
                f"You have reached the limit of {most} concurrent Actor runs.",
            )
        most = self.limits.memory_mbytes
        used = sum(run.options.memory_mbytes for run in active)
        if most is not None and used + memory_mbytes > most:
            raise ApiError(
                self.limits.status,
                "actor-memory-limit-exceeded",
                f"By launching this job you will exceed the memory limit of {most}MB for all your Actor runs "
                f"and builds (currently used: {used}MB, requested: {memory_mbytes}MB).",
            )

    def _fire(self, run: SandboxRun, events: Sequence[tuple[Event, datetime]]) -> None:
        """Dispatch events to the webhooks of their run, each with the run as it was at that time."""
        if run.is_terminal:
            self._live.pop(run.id, None)
        for event, at in events:
            occurrence = Occurrence(
                event,
                at,
                run.user_id,
                {"actorId": run.actor_id, "actorRunId": run.id},
                run.as_object(at, timedelta(seconds=self.timing.settle)),
            )
            self._outgoing.extend(
                dispatch(webhook, occurrence, self.new_id(), run.id)
                for webhook in self._webhooks.get(run.id, ())
                if event in webhook.event_types
            )
        self._tell()

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change()
