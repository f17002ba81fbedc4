"""Apify's webhooks as values: read from the start of a run, and rendered into requests that carry an event.

The rules of the templates are those of Apify's documentation ("Webhook actions"). Pure; who sends the
requests, and when, is not known here.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.sandbox.apify_runs import Event, iso

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from app.model import Json

DISPATCH_ID_HEADER = "X-Apify-Webhook-Dispatch-Id"
DEFAULT_PAYLOAD_TEMPLATE = (
    '{"userId": {{userId}}, "createdAt": {{createdAt}}, "eventType": {{eventType}},'
    ' "eventData": {{eventData}}, "resource": {{resource}}}'
)
VARIABLES = frozenset({"userId", "createdAt", "eventType", "eventData", "resource", "globals"})

#: Either a whole JSON string, or a variable that stands outside of one.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\{\{\s*(?P<outside>[A-Za-z0-9_.]+)\s*\}\}')
_INSIDE = re.compile(r"\{\{([A-Za-z0-9_.]+)\}\}")
_EVENT_TYPES = frozenset(
    {*Event, *(event.replace(".RUN.", ".BUILD.") for event in Event if event is not Event.RESURRECTED)}
)


class WebhookRefusedError(ValueError):
    """What Apify would refuse in a webhook, in words for its caller."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """An ad-hoc webhook: it belongs to one run and is told of that run's events only."""

    id: str
    event_types: frozenset[str]
    request_url: str
    payload_template: str | None = None
    headers_template: str | None = None
    interpolates_strings: bool = False
    idempotency_key: str | None = None
    retries: bool = True


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An event, with the resource as it was at that moment."""

    event: Event
    at: datetime
    user_id: str
    event_data: Json
    resource: Json


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One event on its way to one webhook. Every attempt sends the same id, headers and body."""

    id: str
    webhook_id: str
    event: Event
    run_id: str | None
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    retries: bool = True


def decode_webhooks(encoded: str, new_id: Callable[[], str]) -> tuple[Webhook, ...]:
    """Read the `webhooks` parameter of a start: base64 of a JSON array. Raises `WebhookRefusedError`."""
    try:
        # What a query lost: `+` read as a blank, and padding.
        text = encoded.replace(" ", "+").rstrip("=")
        array: Json = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise WebhookRefusedError("Parameter webhooks must be a base64 encoded JSON array") from error
    if not isinstance(array, list):
        raise WebhookRefusedError("Parameter webhooks must be a base64 encoded JSON array")
    return tuple(_webhook(definition, new_id()) for definition in array)


def _webhook(definition: Json, webhook_id: str) -> Webhook:
    if not isinstance(definition, dict):
        raise WebhookRefusedError("Each webhook must be an object")
    events = definition.get("eventTypes")
    if not isinstance(events, list) or not events:
        raise WebhookRefusedError("Field eventTypes must be a non-empty array")
    for event in events:
        if event not in _EVENT_TYPES:
            raise WebhookRefusedError(f"Field eventTypes holds an unknown event: {event}")
    url = definition.get("requestUrl")
    if not isinstance(url, str) or urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
        raise WebhookRefusedError("Field requestUrl must be an absolute URL")
    webhook = Webhook(
        id=webhook_id,
        event_types=frozenset(str(event) for event in events),
        request_url=url,
        payload_template=_text(definition, "payloadTemplate"),
        headers_template=_text(definition, "headersTemplate"),
        interpolates_strings=definition.get("shouldInterpolateStrings") is True,
        idempotency_key=_text(definition, "idempotencyKey"),
        retries=definition.get("doNotRetry") is not True,
    )
    for template in (webhook.payload_template, webhook.headers_template):
        if template is not None:
            # A template is judged by rendering it with every variable unknown.
            render(template, dict.fromkeys(VARIABLES), interpolate=webhook.interpolates_strings)
    return webhook


def _text(definition: dict[str, Json], name: str) -> str | None:
    value = definition.get(name)
    if value is not None and not isinstance(value, str):
        raise WebhookRefusedError(f"Field {name} must be a string")
    return value


def render(template: str, variables: dict[str, Json], *, interpolate: bool) -> Json:
    """Fill a template. Raises `WebhookRefusedError` for an unknown variable, or if the result is not JSON.

    A variable outside of a string becomes its JSON value. Inside a string it is left as it is, unless
    `interpolate`: then a string that is nothing but the variable becomes its value, any other holds its text.
    """

    def fill(token: re.Match[str]) -> str:
        name = token["outside"]
        if name is not None:
            return _dump(_look_up(name, variables))
        return _fill_string(token[0], variables) if interpolate else token[0]

    try:
        value: Json = json.loads(_TOKEN.sub(fill, template))
    except ValueError as error:
        if isinstance(error, WebhookRefusedError):
            raise
        raise WebhookRefusedError(f"The template is not valid JSON: {error}") from error
    return value


def _fill_string(token: str, variables: dict[str, Json]) -> str:
    text = str(json.loads(token))
    whole = _INSIDE.fullmatch(text)
    if whole is not None:
        return _dump(_look_up(whole[1], variables))

    def as_text(inside: re.Match[str]) -> str:
        value = _look_up(inside[1], variables)
        return value if isinstance(value, str) else _dump(value)

    return _dump(_INSIDE.sub(as_text, text))


def _look_up(path: str, variables: dict[str, Json]) -> Json:
    root, *rest = path.split(".")
    if root not in VARIABLES:
        raise WebhookRefusedError(f"Invalid payload template variable: {path}")
    value = variables.get(root)
    for name in rest:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _dump(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def dispatch(webhook: Webhook, occurrence: Occurrence, dispatch_id: str, run_id: str | None) -> Dispatch:
    """Make the request that tells a webhook of an event, with the resource as it is now."""
    variables: dict[str, Json] = {
        "userId": occurrence.user_id,
        "createdAt": iso(occurrence.at),
        "eventType": occurrence.event.value,
        "eventData": occurrence.event_data,
        "resource": occurrence.resource,
        "globals": {"dateISO": iso(occurrence.at), "dateUnix": int(occurrence.at.timestamp())},
    }
    template = webhook.payload_template or DEFAULT_PAYLOAD_TEMPLATE
    payload = render(template, variables, interpolate=webhook.interpolates_strings)
    headers: dict[str, str] = {}
    if webhook.headers_template is not None:
        added = render(webhook.headers_template, variables, interpolate=webhook.interpolates_strings)
        if isinstance(added, dict):
            headers = {name: value for name, value in added.items() if isinstance(value, str)}
    system = {
        "Content-Type": "application/json",
        "X-Apify-Webhook": "true",
        DISPATCH_ID_HEADER: dispatch_id,
        "X-Apify-Request-Origin": "WEBHOOK",
    }
    # These are always Apify's own, whatever the template says.
    reserved = {"host", *(name.lower() for name in system)}
    headers = {name: value for name, value in headers.items() if name.lower() not in reserved} | system
    return Dispatch(
        id=dispatch_id,
        webhook_id=webhook.id,
        event=occurrence.event,
        run_id=run_id,
        url=webhook.request_url,
        headers=tuple(headers.items()),
        body=_dump(payload).encode(),
        retries=webhook.retries,
    )
