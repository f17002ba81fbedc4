"""Where errors become answers: every problem leaves as `application/problem+json` (RFC 9457), in one shape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, get_args

from aiohttp import web
from pydantic import BaseModel

from app.errors import (
    MOST_FLAWS,
    Flaw,
    Forbidden,
    Invalid,
    Malformed,
    MethodNotAllowed,
    NotFound,
    Problem,
    TooLarge,
    did_you_mean,
)
from app.fields import pointed, shown
from app.logs import get_logger

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler
    from pydantic import ValidationError

    from app.model import Json

log = get_logger(__name__)

CONTENT_TYPE: Final = "application/problem+json"
REQUEST_ID: Final = web.RequestKey("request_id", str)
REQUEST_ID_HEADER: Final = "X-Request-ID"
#: For what nobody foresaw. It says nothing of what was stored: that may have been done before it failed.
OURS: Final = "An error of ours: it is in the log under this request id."


def problem_answer(problem: Problem, request_id: str) -> web.Response:
    body: dict[str, Json] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.flaws:
        body["errors"] = [{"pointer": flaw.pointer, "detail": flaw.detail} for flaw in problem.flaws]
    return web.Response(
        status=problem.status,
        body=json.dumps(body, ensure_ascii=False).encode("utf-8", errors="backslashreplace"),
        content_type=CONTENT_TYPE,
        headers={**problem.headers, REQUEST_ID_HEADER: request_id},
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into an answer; what nobody foresaw is logged whole and shown without its insides."""
    request_id = request[REQUEST_ID]
    try:
        return await handler(request)
    except Problem as problem:
        return problem_answer(problem, request_id)
    except web.HTTPException as error:
        answer = problem_answer(_from_aiohttp(error), request_id)
        if "Allow" in error.headers:  # RFC 9110: a 405 says what the address takes
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except Exception:
        log.exception("http.failed", path=request.path, method=request.method)
        return problem_answer(Problem(OURS), request_id)


def _from_aiohttp(error: web.HTTPException) -> Problem:
    if isinstance(error, web.HTTPNotFound):
        return NotFound("there is nothing at this address: GET /docs shows the calls")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(f"this address takes {', '.join(sorted(error.allowed_methods))}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return TooLarge("send less at once: [server] max_body_bytes is the limit")
    if isinstance(error, web.HTTPForbidden):
        return Forbidden(error.text or "not allowed")
    return Malformed(error.reason)


def flaws_of(error: ValidationError, model: type[BaseModel]) -> Problem:
    """What is wrong with a body: 400 where it is no JSON, else 422 with its flaws and where they are."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    found: list[Flaw] = []
    for one in problems[:MOST_FLAWS]:
        pointer = "".join(f"/{pointed(str(part))}" for part in one["loc"])
        if one["type"] == "json_invalid":
            return Malformed(f"the body is not JSON: {one['msg'].removeprefix('Invalid JSON: ')}")
        if one["type"] == "extra_forbidden":
            name = str(one["loc"][-1])
            found.append(
                Flaw(pointer, f"{shown(name)} is not known here{did_you_mean(name, _names(model, one['loc'][:-1]))}")
            )
        else:
            found.append(Flaw(pointer, f"{pointer or 'the body'}: {one['msg']}"))
    return Invalid.because(found, more=len(problems) - len(found))


def _names(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The members that the part of a body at `path` may have: of the model itself, or of the one its list holds."""
    for step in path:
        if isinstance(step, str):
            held = model.model_fields[step].annotation
            model = next((one for one in get_args(held) if isinstance(one, type) and issubclass(one, BaseModel)), model)
    return list(model.model_fields)
