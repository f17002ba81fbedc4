"""The use cases: create a run, update a run, take a webhook. Everything that is accepted passes here.

`Intake.create_run` is the single creation point: nothing else calls the store's `accept_create`.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from app.clock import iso
from app.errors import Flaw, Invalid, Malformed
from app.fields import CLIENT_NAME, Change
from app.logs import get_logger
from app.model import (
    ID_PATTERN,
    MAX_ID,
    MAX_RUN_ID,
    BatchOrder,
    Duplicate,
    ErrorKind,
    Held,
    Idempotency,
    Kickoff,
    Queued,
    RunStatus,
    Update,
    WebhookOutcome,
    flaw_of_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from app.clock import Clock
    from app.fields import Registry, Value
    from app.meters import Meters
    from app.model import Json, OpenError, UpdateOutcome, WebhookTaken
    from app.store.protocol import Intake as IntakeStore
    from app.store.protocol import WebhookEvent
    from app.store.views import KickoffTaken

log = get_logger(__name__)

MOST_BATCHES: Final = 500
MOST_KEY: Final = 255
MOST_PROFILES: Final = 1_000_000


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


#: Described here, checked by `flaw_of_id`, which says more.
_Id = Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID, "pattern": ID_PATTERN})]


def _whole(value: object) -> object:
    """JSON has one kind of number: `3.0` is the integer 3 (JSON Schema 2020-12, as the registry's integers)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class BatchRequest(Request):
    """One actor run: its input, how many profiles are in it, and the actor where it is not the configured one."""

    input: JsonValue
    profiles: Annotated[int, Field(ge=0, le=MOST_PROFILES), BeforeValidator(_whole)] | None = None
    actor_id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.~-]+$")] | None = None


class KickoffRequest(Request):
    """A run to create. Without a `job_id` each call is a new job, named by the second (`YYMMDD-HHMMSS`, UTC)."""

    client_id: _Id
    client_name: str | None = None
    job_id: _Id | None = None
    fields: dict[str, JsonValue] = {}
    batches: Annotated[list[BatchRequest], Field(max_length=MOST_BATCHES)] = []


class UpdateRequest(Request):
    """What to change: values to `set`, numbers to `add`, lines to `append`. At least one of them."""

    set: dict[str, JsonValue] = {}
    add: dict[str, JsonValue] = {}
    append: dict[str, JsonValue] = {}


class Intake:
    def __init__(
        self,
        store: IntakeStore,
        registry: Registry,
        clock: Clock,
        *,
        new_token: Callable[[], str],
        actor_id: str,
        on_work: Callable[[], None],
        on_missing: Callable[[], None],
        meters: Meters,
    ) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._new_token = new_token
        self._actor_id = actor_id
        self._on_work = on_work
        self._on_missing = on_missing
        self._meters = meters

    async def create_run(self, request: KickoffRequest, idempotency_key: str | None) -> KickoffTaken:
        """Create the run, or find that it exists.

        Raises:
            Invalid: an id, a field or a batch is not as it should be.
            Conflict, IdempotencyKeyReused, StoreUnavailable: as the store says.
        """
        now = self._clock.now()
        _check_ids(request)
        change = self._first_values(request, now)
        kickoff = Kickoff(
            client_id=request.client_id,
            job_id=request.job_id,
            change=change,
            batches=self._batches(request),
            idempotency=_idempotency(idempotency_key, _canonical(request.model_dump())),
        )
        taken = await self._store.accept_create(kickoff, now)
        self._on_work()
        if taken.created:
            log.info("run.created", run_id=taken.run_id, batches=len(kickoff.batches))
        else:
            log.info("run.existed", run_id=taken.run_id)
        if taken.held_applied:
            log.warning("run.created_late", run_id=taken.run_id, held_applied=taken.held_applied)
        return taken

    async def update_run(self, run_id: str, request: UpdateRequest, idempotency_key: str | None) -> UpdateOutcome:
        """Queue the update, or hold it where the run does not exist.

        Raises:
            Invalid: the run id, a field or a value is not as it should be.
            IdempotencyKeyReused, StoreUnavailable: as the store says.
        """
        _check_run_id(run_id)
        change = self._registry.check_change(set_=request.set, add=request.add, append=request.append)
        update = Update(run_id, change, _idempotency(idempotency_key, change.to_json()))
        outcome = await self._store.accept_update(update, self._clock.now())
        match outcome:
            case Held():
                self._meters.updated("held")
                _log_missing(run_id, outcome.error)
                self._on_missing()
            case Duplicate():
                self._meters.updated("duplicate")
            case Queued():
                self._meters.updated("queued")
                self._on_work()
        return outcome

    async def take_webhook(self, event: WebhookEvent) -> WebhookTaken:
        """Keep the webhook and apply it to its batch, hold it, or find that it says nothing new."""
        taken = await self._store.accept_webhook(event, self._clock.now())
        log.info("webhook.taken", webhook=event.event, outcome=taken.outcome, run_id=taken.run_id, detail=taken.detail)
        if taken.error is not None and taken.error.kind is ErrorKind.MISSING_RECORD and event.run_id is not None:
            _log_missing(event.run_id, taken.error)
            self._on_missing()
        elif taken.error is not None:
            log.error("webhook.unmatched", detail=taken.error.message, error_id=taken.error.id)
        elif taken.outcome is not WebhookOutcome.DUPLICATE:
            self._on_work()
        return taken

    def _first_values(self, request: KickoffRequest, now: datetime) -> Change:
        """The fields of the kickoff; a status and a start time where it gives none and the registry has them."""
        fields: dict[str, Json] = dict(request.fields)
        if request.client_name is not None:
            if fields.get(CLIENT_NAME, request.client_name) != request.client_name:
                raise Invalid.because([Flaw("/fields/client_name", "the kickoff gives two different client names")])
            fields[CLIENT_NAME] = request.client_name
        change = self._registry.check_new(fields)
        defaults: dict[str, Value] = {"status": RunStatus.RUNNING.value, "start_time": iso(now)}
        known = {name: value for name, value in defaults.items() if name in self._registry}
        return Change({**known, **change.set}, append=change.append)

    def _batches(self, request: KickoffRequest) -> tuple[BatchOrder, ...]:
        orders = []
        for place, batch in enumerate(request.batches):
            actor_id = batch.actor_id or self._actor_id
            if not actor_id:
                missing = "no actor to run: give actor_id, or set [apify] actor_id"
                raise Invalid.because([Flaw(f"/batches/{place}/actor_id", missing)])
            orders.append(BatchOrder(_input(batch, place), batch.profiles, actor_id, self._new_token()))
        return tuple(orders)


def _canonical(value: JsonValue) -> str:
    """Raises `ValueError` where it holds a number that JSON cannot write."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _input(batch: BatchRequest, place: int) -> str:
    try:
        return _canonical(batch.input)
    except ValueError:
        flaw = Flaw(f"/batches/{place}/input", "the input holds a number that JSON cannot write (NaN or infinite)")
        raise Invalid.because([flaw]) from None


def _check_ids(request: KickoffRequest) -> None:
    flaws = []
    if (flaw := flaw_of_id("client_id", request.client_id)) is not None:
        flaws.append(Flaw("/client_id", flaw))
    if request.job_id is not None:
        if (flaw := flaw_of_id("job_id", request.job_id)) is not None:
            flaws.append(Flaw("/job_id", flaw))
        elif request.job_id.endswith(f"-{request.client_id}"):
            detail = (
                f"'job_id' ends with the client's id already: send {request.job_id[: -len(request.client_id) - 1]!r}"
            )
            flaws.append(Flaw("/job_id", detail))
    if flaws:
        raise Invalid.because(flaws)


def _check_run_id(run_id: str) -> None:
    """Any id that a kickoff could have made may be held; others are a slip that no kickoff will mend."""
    if (flaw := flaw_of_id("run_id", run_id, MAX_RUN_ID)) is not None:
        raise Invalid.because([Flaw("", f"{flaw}; a run id is <job_id>-<client_id>, like 251007-070457-Guy-Wilson")])


def _idempotency(key: str | None, request: str) -> Idempotency | None:
    """Raises `Malformed` where the key is not 1 to 255 printable ASCII characters."""
    if key is None:
        return None
    if not 0 < len(key) <= MOST_KEY or not key.isascii() or not key.isprintable():
        raise Malformed(f"Idempotency-Key takes 1 to {MOST_KEY} printable ASCII characters")
    return Idempotency(key, hashlib.sha256(request.encode()).hexdigest())


def _log_missing(run_id: str, error: OpenError) -> None:
    log.error(
        "missing_record",
        reason="the kickoff did not create a record for this run; its updates are held",
        run_id=run_id,
        error_id=error.id,
        times=error.count,
        similar_runs=list(error.similar_runs),
    )
