"""The source: Apify's webhooks, decoded. Knows how Apify speaks; knows nothing of stores."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.clock import iso, parse_iso
from app.errors import Malformed
from app.model import MAX_RUN_ID, flaw_of_id, run_id_of
from app.policy.harvest import ENDED, RESURRECTED, ActorRun, Report
from app.store.protocol import WebhookEvent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

RUN_EVENTS: Final = "ACTOR.RUN."
#: Sent with each dispatch of a webhook, the same over its retries (documented).
DISPATCH_HEADER: Final = "X-Apify-Webhook-Dispatch-Id"
#: What our own webhooks' URLs carry.
RUN_PARAMETER: Final = "run"
BATCH_PARAMETER: Final = "batch"

_Id = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_-]+$")]
_Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
_Word = Annotated[str, Field(min_length=1, max_length=100)]


class _Lenient(BaseModel):
    """Apify may say more than we read, and says some of it only sometimes."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Resource(_Lenient):
    id: _Id | None = None
    act_id: Annotated[_Id | None, Field(alias="actId")] = None
    status: _Word | None = None
    status_message: Annotated[str | None, Field(alias="statusMessage")] = None
    started_at: Annotated[_Time | None, Field(alias="startedAt")] = None
    finished_at: Annotated[_Time | None, Field(alias="finishedAt")] = None
    dataset_id: Annotated[_Id | None, Field(alias="defaultDatasetId")] = None


class _EventData(_Lenient):
    actor_id: Annotated[_Id | None, Field(alias="actorId")] = None
    actor_run_id: Annotated[_Id | None, Field(alias="actorRunId")] = None


class AnyWebhook(_Lenient):
    event_type: Annotated[_Word, Field(alias="eventType")]


class RunWebhook(AnyWebhook):
    """The default payload, and what a payload template of ours or the caller's may add to it."""

    created_at: Annotated[_Time | None, Field(alias="createdAt")] = None
    event_data: Annotated[_EventData | None, Field(alias="eventData")] = None
    resource: _Resource | None = None
    job_run_id: Annotated[str | None, Field(alias="jobRunId")] = None
    client_id: Annotated[str | None, Field(alias="clientId")] = None


_WebhookT = TypeVar("_WebhookT", bound=AnyWebhook)

#: JSON can carry half of a surrogate pair, which is no character: what an actor says may be cut off within one. Whole
#: pairs are matched too, so that no half of theirs is. A backslash that an odd number of others precede begins none.
_HALF_PAIR: Final = re.compile(
    rb"(?<!\\)(?P<before>(?:\\\\)*+)"
    rb"(?:\\u(?i:d[89ab][\da-f]{2})\\u(?i:d[c-f][\da-f]{2})|(?P<half>\\u(?i:d[89a-f][\da-f]{2})))"
)
_NO_CHARACTER: Final = rb"\ufffd"
_ESCAPE: Final = rb"\u"


def decode_webhook(
    body: bytes, headers: Mapping[str, str], query: Mapping[str, str], *, received_at: datetime
) -> WebhookEvent:
    """The event in a webhook's request.

    Raises:
        Malformed: it is not what Apify sends, by default or by a template; the text says why.
    """
    text = body.decode("utf-8", errors="replace")
    if _ESCAPE in body:  # hardly any has one, and to look at each place of the others took a tenth of a webhook's time
        body = _HALF_PAIR.sub(lambda found: found["before"] + _NO_CHARACTER if found["half"] else found[0], body)
    event_type = _parse(AnyWebhook, body).event_type
    dispatch_id = headers.get(DISPATCH_HEADER) or None
    if dispatch_id is not None and not (dispatch_id.isascii() and len(dispatch_id) <= MAX_RUN_ID):
        raise Malformed(f"{DISPATCH_HEADER} takes at most {MAX_RUN_ID} ASCII characters")
    if not event_type.startswith(RUN_EVENTS):
        return WebhookEvent(event=event_type, body=text, dispatch_id=dispatch_id)
    payload = _parse(RunWebhook, body)
    run = _actor_run(payload)
    report = Report(run, _time(payload.created_at, "createdAt") or iso(received_at), event_type)
    return WebhookEvent(
        event=event_type,
        body=text,
        dispatch_id=dispatch_id,
        event_key=_event_key(event_type, report),
        report=report,
        run_id=_named_run(payload, query),
        batch_token=query.get(BATCH_PARAMETER) or None,
    )


def _parse(model: type[_WebhookT], body: bytes) -> _WebhookT:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Malformed(f"not an Apify webhook: {where + ': ' if where else ''}{first['msg']}") from None


def _actor_run(payload: RunWebhook) -> ActorRun:
    resource = payload.resource or _Resource()
    data = payload.event_data or _EventData()
    run_id = resource.id or data.actor_run_id
    if run_id is None:
        raise Malformed("not an Apify webhook: it names no Apify run (resource.id or eventData.actorRunId)")
    said = payload.event_type.removeprefix(RUN_EVENTS).replace("_", "-")
    # An event of an end is about that end, whatever snapshot of the run came with it.
    status = said if said in ENDED else resource.status or "READY"
    return ActorRun(
        id=run_id,
        status=status,
        actor_id=resource.act_id or data.actor_id,
        started_at=_time(resource.started_at, "resource.startedAt"),
        finished_at=_time(resource.finished_at, "resource.finishedAt"),
        dataset_id=resource.dataset_id,
        status_message=resource.status_message,
    )


def _event_key(event_type: str, report: Report) -> str:
    """One end of one run is one event; a resurrected run ends again, at another time."""
    which = report.at if event_type == RESURRECTED else report.run.finished_at
    return f"{report.run.id} {event_type} {which or ''}".rstrip()


def _named_run(payload: RunWebhook, query: Mapping[str, str]) -> str | None:
    """The run that the URL names, or the template's `jobRunId` and `clientId`; some templates give the whole run id."""
    named = query.get(RUN_PARAMETER)
    if not named and payload.job_run_id:
        client_id = payload.client_id
        whole = client_id is None or payload.job_run_id.endswith(f"-{client_id}")
        named = payload.job_run_id if whole or client_id is None else run_id_of(payload.job_run_id, client_id)
    if not named:
        return None
    if (flaw := flaw_of_id("run_id", named, MAX_RUN_ID)) is not None:
        raise Malformed(f"not a webhook of ours: {flaw}")
    return named


def _time(text: str | None, name: str) -> str | None:
    if text is None:
        return None
    try:
        return iso(parse_iso(text))
    except ValueError:
        raise Malformed(f"not an Apify webhook: {name} is not an ISO 8601 time with an offset") from None
