"""The calls, each described once: its address, who may call, what it takes and every answer it can give.

Routes are made from these descriptions and `/openapi.json` is written from them, so a call that is served is
described, and the other way round. Nothing here handles a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app import errors
from app.apify import BATCH_PARAMETER, DISPATCH_HEADER, RUN_PARAMETER, AnyWebhook, RunWebhook
from app.intake import MOST_KEY, KickoffRequest, UpdateRequest
from app.model import ID_PATTERN, MAX_RUN_ID, ErrorKind, ErrorState, MessageKind, MessageState, SyncState
from app.store.views import DEFAULT_LIMIT, MAX_LIMIT
from app.web import shapes
from app.web.operation import Access, Answer, Example, Operation, Parameter

if TYPE_CHECKING:
    from enum import StrEnum

    from app.model import Json

IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
OPENAPI_PATH: Final = "/openapi.json"
_BODY: Final = (errors.UnsupportedMediaType, errors.Invalid)


def _json(description: str, shape: shapes.Shape[shapes.T]) -> Answer:
    return Answer(description, shape.adapter)  # type: ignore[arg-type]  # only its schema is wanted


# Parameters -----------------------------------------------------------------------------------------------------

RUN_ID: Final[dict[str, Json]] = {"type": "string", "minLength": 1, "maxLength": MAX_RUN_ID, "pattern": ID_PATTERN}
_EXAMPLE_RUN: Final = "251007-070457-Guy-Wilson"
_RUN_ID: Final = Parameter("run_id", "path", RUN_ID, "`<job_id>-<client_id>`", _EXAMPLE_RUN)
_ID: Final = Parameter(
    "id", "path", {"type": "integer", "minimum": 1, "maximum": 10**18 - 1}, "Its id, as a listing shows it", 1
)
_KEY: Final = Parameter(
    IDEMPOTENCY_HEADER,
    "header",
    {"type": "string", "minLength": 1, "maxLength": MOST_KEY, "pattern": "^[ -~]*[!-~][ -~]*$"},
    "Names this request: sent again with the same key and body it counts once; with another body it is refused",
    "scored-1",
)
_PAGING: Final = (
    Parameter(
        "limit",
        "query",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "Rows of a page at most; fewer come where they are large",
    ),
    Parameter("cursor", "query", {"type": "string", "pattern": "^[0-9]{1,18}$"}, "`next_cursor` of the page before"),
)


def _filter(name: str, description: str, words: type[StrEnum] | None = None) -> Parameter:
    schema: dict[str, Json] = {"type": "string"}
    if words is not None:
        schema["enum"] = [word.value for word in words]
    return Parameter(name, "query", schema, description)


# The calls ------------------------------------------------------------------------------------------------------

CREATE_RUN: Final = Operation(
    "POST",
    "/runs",
    "createRun",
    "Runs",
    "Kick off a run",
    Access.INTERNAL,
    {
        201: _json("The run was created", shapes.RUN_CREATED),
        200: _json("It existed already: nothing was written", shapes.RUN_CREATED),
    },
    description=(
        "The only call that creates a run, and with it its record in Airtable. Without a `job_id` each call is a new "
        "job: the next second that is free for this client. Updates that were held for the run follow its creation."
    ),
    bodies=(KickoffRequest,),
    parameters=(_KEY,),
    problems=(*_BODY, errors.Conflict, errors.IdempotencyKeyReused),
    examples=(
        Example("a run", 201, {"client_id": "Guy-Wilson", "client_name": "Guy Wilson", "job_id": "251007-070457"}),
        Example("the same again", 200, {"client_id": "Guy-Wilson", "job_id": "251007-070457"}),
        Example(
            "with a batch to harvest",
            201,
            {
                "client_id": "Dean-Hobin",
                "job_id": "251007-070457",
                "fields": {"system_notes": "first run of this client"},
                "batches": [
                    {
                        "input": {"targetUrls": ["https://www.linkedin.com/in/example"]},
                        "profiles": 1,
                        "actor_id": "example~post-harvester",
                    }
                ],
            },
        ),
        Example("a misspelt field", 422, {"client_id": "Ana-Petrov", "fields": {"statsu": "Running"}}),
    ),
)
UPDATE_RUN: Final = Operation(
    "PATCH",
    "/runs/{run_id}",
    "updateRun",
    "Runs",
    "Update a run",
    Access.INTERNAL,
    {
        202: _json(
            "Stored: it goes to Airtable (`queued`), waits for the kickoff (`held`), or came before",
            shapes.UPDATE_TAKEN,
        )
    },
    description=(
        "`set` gives values, `add` adds to numbers, `append` adds lines to logs: at least one of them, and no field in "
        "both `set` and `add`. An update of a run that nobody kicked off is held and opens a `missing_record` error; "
        "it never creates the run."
    ),
    bodies=(UpdateRequest,),
    parameters=(_RUN_ID, _KEY),
    problems=(*_BODY, errors.IdempotencyKeyReused),
    examples=(
        Example(
            "figures and a line of the log",
            202,
            {"add": {"posts_scored": 12}, "append": {"progress_log": "scored 12 posts"}},
            path={"run_id": _EXAMPLE_RUN},
            headers={IDEMPOTENCY_HEADER: "scored-1"},
        ),
        Example(
            "a status",
            202,
            {"set": {"status": "No Leads To Score", "end_time": "2025-10-07T07:31:12Z"}},
            path={"run_id": _EXAMPLE_RUN},
        ),
        Example(
            "a run that nobody kicked off",
            202,
            {"add": {"posts_scored": 3}},
            path={"run_id": "251007-070457-Guy-Wilson-Guy-Wilson"},
        ),
        Example("nothing to change", 422, {}, path={"run_id": _EXAMPLE_RUN}),
    ),
)
LIST_RUNS: Final = Operation(
    "GET",
    "/runs",
    "listRuns",
    "Runs",
    "List runs",
    Access.INTERNAL,
    {200: _json("A page", shapes.RUN_PAGE)},
    parameters=(
        _filter("client_id", "Runs of this client"),
        _filter("job_id", "Runs of this job"),
        _filter("status", "Runs with this status"),
        _filter("sync", "How they stand towards Airtable", SyncState),
        *_PAGING,
    ),
    problems=(errors.Invalid,),
    examples=(Example("of one job", 200, query={"job_id": "251007-070457", "limit": "10"}),),
)
SHOW_RUN: Final = Operation(
    "GET",
    "/runs/{run_id}",
    "showRun",
    "Runs",
    "Show a run",
    Access.INTERNAL,
    {200: _json("Its fields, batches and errors, and the latest of what happened to it", shapes.RUN)},
    parameters=(_RUN_ID,),
    problems=(errors.NotFound, errors.Invalid),
    examples=(
        Example("a run", 200, path={"run_id": _EXAMPLE_RUN}),
        Example("one that is not there", 404, path={"run_id": "251007-070457-Nobody"}),
    ),
)
LIST_ERRORS: Final = Operation(
    "GET",
    "/errors",
    "listErrors",
    "Errors",
    "List errors",
    Access.INTERNAL,
    {200: _json("A page", shapes.ERROR_PAGE)},
    parameters=(
        _filter("kind", "Errors of this kind", ErrorKind),
        _filter("state", "Errors in this state", ErrorState),
        _filter("run_id", "Errors of this run"),
        _filter("client_id", "Errors of this client"),
        *_PAGING,
    ),
    problems=(errors.Invalid,),
    examples=(Example("missing records", 200, query={"kind": "missing_record", "state": "open"}),),
)
RESOLVE_ERROR: Final = Operation(
    "POST",
    "/errors/{id}/resolve",
    "resolveError",
    "Errors",
    "Resolve an error by hand",
    Access.INTERNAL,
    {200: _json("The error, resolved", shapes.ERROR)},
    description="What it holds stays held, and still follows a kickoff that comes, unless `discard` is true.",
    bodies=(shapes.ResolveRequest,),
    body_optional=True,
    parameters=(_ID,),
    problems=(*_BODY, errors.NotFound, errors.Conflict),
    examples=(
        Example("with a note", 200, {"note": "a doubled client name; mended in the caller"}, path={"id": "1"}),
        Example("resolved already", 409, {}, path={"id": "1"}),
    ),
)
LIST_MESSAGES: Final = Operation(
    "GET",
    "/outbox",
    "listMessages",
    "Outbox",
    "List messages",
    Access.INTERNAL,
    {200: _json("A page", shapes.MESSAGE_PAGE)},
    parameters=(
        _filter("state", "Messages in this state", MessageState),
        _filter("run_id", "Messages of this run"),
        _filter("kind", "Creations, or updates", MessageKind),
        *_PAGING,
    ),
    problems=(errors.Invalid,),
    examples=(Example("set aside", 200, query={"state": "dead"}),),
)
RETRY_MESSAGES: Final = Operation(
    "POST",
    "/outbox/retry",
    "retryMessages",
    "Outbox",
    "Send again what was set aside",
    Access.INTERNAL,
    {200: _json("How many are pending again", shapes.RETRIED)},
    bodies=(shapes.RetryRequest,),
    body_optional=True,
    problems=_BODY,
    examples=(Example("what was rejected", 200, {"kind": "rejected", "since": "2025-10-07T07:00:00Z"}),),
)
RETRY_MESSAGE: Final = Operation(
    "POST",
    "/outbox/{id}/retry",
    "retryMessage",
    "Outbox",
    "Send one message again",
    Access.INTERNAL,
    {200: _json("The message, pending again", shapes.MESSAGE)},
    bodies=(shapes.NothingRequest,),
    body_optional=True,
    parameters=(_ID,),
    problems=(*_BODY, errors.NotFound, errors.Conflict),
    examples=(Example("one that is not dead", 409, path={"id": "1"}),),
)
CHECK: Final = Operation(
    "POST",
    "/check",
    "check",
    "Looking",
    "Compare with Airtable now",
    Access.INTERNAL,
    {200: _json("The report, when it is done", shapes.CHECK)},
    bodies=(shapes.CheckRequest,),
    body_optional=True,
    problems=(*_BODY, errors.Conflict),
    examples=(Example("look only", 200), Example("deliver again what drifted", 200, {"repair": "drift"})),
)
PRUNE: Final = Operation(
    "POST",
    "/prune",
    "prune",
    "Looking",
    "Remove what is past its days now",
    Access.INTERNAL,
    {200: _json("The report, when it is done", shapes.PRUNED)},
    description=(
        "`[retention]` says how many days: delivered updates, calls to Airtable, bodies of webhooks, idempotency keys. "
        "Runs, their creates, errors and held updates stay. The service does so by itself once a day."
    ),
    bodies=(shapes.NothingRequest,),
    body_optional=True,
    problems=(*_BODY, errors.Conflict),
    examples=(Example("now", 200),),
)
STATS: Final = Operation(
    "GET",
    "/stats",
    "stats",
    "Looking",
    "Counts",
    Access.INTERNAL,
    {200: _json("The counts", shapes.STATS)},
    problems=(errors.Invalid,),
    examples=(Example("the counts", 200),),
)
TAKE_WEBHOOK: Final = Operation(
    "POST",
    "/webhooks/apify",
    "takeWebhook",
    "Webhooks",
    "Take a webhook of Apify",
    Access.WEBHOOK,
    {200: _json("Stored, or nothing new", shapes.WEBHOOK_ANSWER)},
    description=(
        "Apify's default payload, or a template that names the run by `jobRunId` and `clientId`. The content type may "
        "be any. The same dispatch, or the same event by another dispatch, counts once."
    ),
    bodies=(RunWebhook, AnyWebhook),
    parameters=(
        Parameter(RUN_PARAMETER, "query", {"anyOf": [RUN_ID, {"const": ""}]}, "The run that it is about", _EXAMPLE_RUN),
        Parameter(BATCH_PARAMETER, "query", {"type": "string"}, "The token of the batch, in webhooks of our own"),
        Parameter(
            DISPATCH_HEADER,
            "header",
            {"type": "string", "maxLength": MAX_RUN_ID, "pattern": "^[ -~]*$"},
            "The same over the retries of one dispatch",
        ),
    ),
    examples=(
        Example(
            "the end of a run",
            200,
            {
                "eventType": "ACTOR.RUN.SUCCEEDED",
                "createdAt": "2025-10-07T07:31:12.000Z",
                "eventData": {"actorId": "fW4MyDhgwtMLrB987", "actorRunId": "uPBN9qaKd2iLs5naZ"},
                "resource": {"id": "uPBN9qaKd2iLs5naZ", "status": "SUCCEEDED", "defaultDatasetId": "wmKPijuyDnPZAPRMk"},
                "jobRunId": "251007-070457",
                "clientId": "Guy-Wilson",
            },
        ),
        Example("a test", 200, {"eventType": "TEST", "eventData": None}),
        Example("not a webhook", 400, {"event": "ACTOR.RUN.SUCCEEDED"}),
    ),
)
HEALTHZ: Final = Operation(
    "GET",
    "/healthz",
    "alive",
    "Looking",
    "Is it alive?",
    Access.OPEN,
    {200: _json("It answers", shapes.ALIVE)},
    examples=(Example("alive", 200),),
)
READYZ: Final = Operation(
    "GET",
    "/readyz",
    "ready",
    "Looking",
    "Can it accept and sync?",
    Access.OPEN,
    {200: _json("Both", shapes.READINESS), 503: _json("Not both, for these reasons", shapes.READINESS)},
    examples=(Example("ready", 200),),
)
METRICS: Final = Operation(
    "GET",
    "/metrics",
    "metrics",
    "Looking",
    "Counts for Prometheus",
    Access.INTERNAL,
    {200: Answer("The metrics, in Prometheus' text format", content_type="text/plain")},
    examples=(Example("a scrape", 200),),
)
OPENAPI: Final = Operation(
    "GET",
    OPENAPI_PATH,
    "contract",
    "Looking",
    "This description, for programs",
    Access.OPEN,
    {200: Answer("OpenAPI 3.1")},
    examples=(Example("for programs", 200),),
)
DOCS: Final = Operation(
    "GET",
    "/docs",
    "docs",
    "Looking",
    "This description, for people",
    Access.OPEN,
    {200: Answer("A page", content_type="text/html")},
    examples=(Example("for people", 200),),
)

#: In the order of the page.
OPERATIONS: Final = (
    CREATE_RUN,
    UPDATE_RUN,
    LIST_RUNS,
    SHOW_RUN,
    TAKE_WEBHOOK,
    LIST_ERRORS,
    RESOLVE_ERROR,
    LIST_MESSAGES,
    RETRY_MESSAGE,
    RETRY_MESSAGES,
    CHECK,
    PRUNE,
    STATS,
    HEALTHZ,
    READYZ,
    METRICS,
    OPENAPI,
    DOCS,
)
