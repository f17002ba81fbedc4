"""The wording of the Apify sandbox: its answers, its errors, and how it reads a query.

Shapes are those of Apify's API reference; apify-client's models must validate each of them. Pure functions of
plain values: nothing here holds state.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app.sandbox.apify_runs import RunOptions, iso
from app.sandbox.messages import WireResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.model import Json
    from app.sandbox.apify_runs import Dataset, SandboxRun
    from app.sandbox.messages import WireRequest

#: What Apify reports as the limit of a listing of items that asked for none.
NO_LIMIT = 999_999_999_999
MAX_LISTED = 1000
GZIP_MAGIC = b"\x1f\x8b"
MIN_MEMORY_MBYTES, MAX_MEMORY_MBYTES = 128, 32_768
_CONSOLE = "https://console.apify.com/storage"


@dataclass(frozen=True, slots=True)
class Actor:
    """An Actor that can be run. A path names it by its id, or as `username~name`."""

    id: str
    username: str
    name: str

    def is_named(self, text: str) -> bool:
        return text in {self.id, f"{self.username}~{self.name}", f"{self.username}/{self.name}"}


@dataclass(frozen=True, slots=True)
class User:
    id: str
    username: str


class ApiError(Exception):
    """A refusal in Apify's words."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def as_answer(self) -> WireResponse:
        return error_answer(self.status, self.kind, str(self))


def error_answer(status: int, kind: str, message: str) -> WireResponse:
    """Make an error as Apify sends it, also for the faults of a test."""
    return WireResponse.json(status, {"error": {"type": kind, "message": message}})


def rate_limited() -> WireResponse:
    """Make the answer to one request too many, also for the faults of a test."""
    return error_answer(429, "rate-limit-exceeded", "You have exceeded the rate limit of this API endpoint.")


def not_found(what: str) -> ApiError:
    return ApiError(404, "record-not-found", f"{what} was not found")


def data(value: Json, status: int = 200) -> WireResponse:
    return WireResponse.json(status, {"data": value})


def flag(request: WireRequest, name: str) -> bool:
    return request.param(name) in {"1", "true"}


def number(request: WireRequest, name: str, *, minimum: int = 0) -> int | None:
    """Read a whole number from the query, None if it is not there."""
    text = request.param(name)
    if text is None or text == "":
        return None
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise ApiError(400, "invalid-parameter", f"Parameter {name} must be a number, at least {minimum}")
    return value


def moment(request: WireRequest, name: str) -> datetime | None:
    """Read an ISO 8601 time from the query, None if it is not there. A time without an offset is UTC."""
    text = request.param(name)
    if not text:
        return None
    try:
        # A blank is a `+` that nobody encoded.
        at = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as error:
        raise ApiError(400, "invalid-parameter", f"Parameter {name} must be an ISO date") from error
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def run_options(request: WireRequest, default: RunOptions) -> RunOptions:
    """Read what a start or a resurrection sets, over `default`."""
    memory = number(request, "memory", minimum=MIN_MEMORY_MBYTES) or default.memory_mbytes
    if memory > MAX_MEMORY_MBYTES or memory & (memory - 1):
        raise ApiError(400, "invalid-parameter", f"Parameter memory must be a power of 2, at most {MAX_MEMORY_MBYTES}")
    timeout = number(request, "timeout")
    max_items = number(request, "maxItems", minimum=1)
    charge = request.param("maxTotalChargeUsd")
    try:
        max_charge = default.max_total_charge_usd if charge is None else float(charge)
    except ValueError as error:
        raise ApiError(400, "invalid-parameter", "Parameter maxTotalChargeUsd must be a number") from error
    return RunOptions(
        build=request.param("build") or default.build,
        timeout_secs=default.timeout_secs if timeout is None else timeout,
        memory_mbytes=memory,
        max_items=default.max_items if max_items is None else max_items,
        max_total_charge_usd=max_charge,
    )


def body_of(request: WireRequest) -> bytes:
    """Give the body without its content encoding. Servers that undo gzip themselves leave the header standing."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity" or (encoding == "gzip" and not request.body.startswith(GZIP_MAGIC)):
        return request.body
    if encoding != "gzip":
        raise ApiError(415, "unsupported-content-encoding", f"Content-Encoding {encoding} is not supported")
    try:
        return gzip.decompress(request.body)
    except (OSError, EOFError, zlib.error) as error:
        raise ApiError(400, "invalid-request", "The request body is not valid gzip") from error


def input_value(body: bytes, content_type: str) -> Json:
    """Read an input as JSON if it says that it is. Any other type is kept, and nothing here reads it."""
    if not body or not content_type.startswith("application/json"):
        return None
    try:
        value: Json = json.loads(body)
    except ValueError as error:
        raise ApiError(400, "run-input-body-not-valid-json", f"The input body is not valid JSON: {error}") from error
    return value


def page_of_runs(
    request: WireRequest, runs: Sequence[SandboxRun], items: Sequence[Json], offset: int, limit: int
) -> WireResponse:
    """Wrap a page as Apify's collections do. `runs` is all that matched, `items` the page's own."""
    return data(
        {
            "total": len(runs),
            "offset": offset,
            "limit": limit,
            "desc": flag(request, "desc"),
            "count": len(items),
            "items": list(items),
        }
    )


def actor_object(actor: Actor, user: User, born: datetime, runs: Sequence[SandboxRun]) -> dict[str, Json]:
    last = max((run.started_at for run in runs), default=None)
    return {
        "id": actor.id,
        "userId": user.id,
        "name": actor.name,
        "username": actor.username,
        "isPublic": False,
        "createdAt": iso(born),
        "modifiedAt": iso(born),
        "stats": {"totalRuns": len(runs), "lastRunStartedAt": iso(last) if last else None},
        "versions": [{"versionNumber": "0.0", "sourceType": "SOURCE_FILES", "buildTag": "latest"}],
        "defaultRunOptions": {"build": "latest", "timeoutSecs": 3600, "memoryMbytes": 1024},
    }


def user_object(user: User, max_runs: int | None, max_memory_mbytes: int | None) -> dict[str, Json]:
    return {
        "id": user.id,
        "username": user.username,
        "profile": {"name": user.username},
        "email": f"{user.username}@example.com",
        "isPaying": False,
        "plan": {
            "id": "SANDBOX",
            "maxConcurrentActorRuns": max_runs,
            "maxActorMemoryGbytes": None if max_memory_mbytes is None else max_memory_mbytes / 1024,
            "availableProxyGroups": {},
        },
    }


def dataset_object(run: SandboxRun, item_count: int) -> dict[str, Json]:
    dataset = run.dataset
    changed = iso(dataset.modified_at or dataset.created_at)
    return {
        "id": dataset.id,
        "name": None,
        "userId": run.user_id,
        "createdAt": iso(dataset.created_at),
        "modifiedAt": changed,
        "accessedAt": changed,
        "itemCount": item_count,
        "cleanItemCount": item_count,
        "actId": run.actor_id,
        "actRunId": run.id,
        "consoleUrl": f"{_CONSOLE}/datasets/{dataset.id}",
        "generalAccess": "FOLLOW_USER_SETTING",
        "stats": {"readCount": 0, "writeCount": item_count, "storageBytes": 256 * item_count},
    }


def store_object(run: SandboxRun) -> dict[str, Json]:
    started = iso(run.started_at)
    return {
        "id": run.store_id,
        "name": None,
        "userId": run.user_id,
        "createdAt": started,
        "modifiedAt": started,
        "accessedAt": started,
        "actId": run.actor_id,
        "actRunId": run.id,
        "consoleUrl": f"{_CONSOLE}/key-value-stores/{run.store_id}",
        "generalAccess": "FOLLOW_USER_SETTING",
        "stats": {"readCount": 0, "writeCount": 1, "storageBytes": len(run.input_body)},
    }


def dataset_items(request: WireRequest, dataset: Dataset, item_count: int) -> WireResponse:
    """Answer a page of items: a bare array, its place in `x-apify-pagination-*` headers.

    Those headers follow the item count, so they lag behind the items themselves, as Apify's do.
    """
    if request.param("format") not in {None, "json"}:
        raise ApiError(400, "invalid-parameter", "The sandbox gives items as json only")
    for name in ("unwind", "flatten", "view"):
        if request.param(name):
            raise ApiError(400, "invalid-parameter", f"The sandbox does not know the parameter {name}")
    offset = number(request, "offset") or 0
    limit = number(request, "limit") or NO_LIMIT
    stored = dataset.items[::-1] if flag(request, "desc") else dataset.items
    page = [_shaped(item, request) for item in stored[offset : offset + limit]]
    if flag(request, "clean") or flag(request, "skipEmpty"):
        page = [item for item in page if item not in ({}, [], None)]
    headers = {
        "x-apify-pagination-total": str(item_count),
        "x-apify-pagination-offset": str(offset),
        "x-apify-pagination-count": str(max(0, min(limit, item_count - offset))),
        "x-apify-pagination-limit": str(limit),
        "x-apify-pagination-desc": str(flag(request, "desc")).lower(),
    }
    return WireResponse.json(200, page, headers)


def _shaped(item: Json, request: WireRequest) -> Json:
    if not isinstance(item, dict):
        return item
    if flag(request, "clean") or flag(request, "skipHidden"):
        item = {name: value for name, value in item.items() if not name.startswith("#")}
    if fields := request.param("fields"):
        item = {name: item[name] for name in fields.split(",") if name in item}
    if omit := request.param("omit"):
        item = {name: value for name, value in item.items() if name not in omit.split(",")}
    return item


def input_record(request: WireRequest, run: SandboxRun) -> WireResponse:
    """Answer the stored INPUT with the content type that it came with."""
    headers = {"Content-Type": run.input_content_type or "application/octet-stream"}
    if flag(request, "attachment"):
        headers["Content-Disposition"] = "attachment"
    return WireResponse(200, run.input_body, headers)


def input_key(run: SandboxRun, public_url: str) -> dict[str, Json]:
    """List the keys of a store: INPUT, if the run was given one."""
    items: list[Json] = []
    if run.input_body:
        items.append({"key": "INPUT", "size": len(run.input_body), "recordPublicUrl": public_url})
    return {
        "items": items,
        "count": len(items),
        "limit": MAX_LISTED,
        "exclusiveStartKey": None,
        "isTruncated": False,
        "nextExclusiveStartKey": None,
    }


def run_log(run: SandboxRun) -> WireResponse:
    lines = [f"{iso(run.started_at)} ACTOR: Starting container."]
    if run.finished_at is not None:
        lines.append(f"{iso(run.finished_at)} ACTOR: {run.status}. {run.message or ''}".rstrip())
    return WireResponse(200, "\n".join([*lines, ""]).encode(), {"Content-Type": "text/plain; charset=utf-8"})
