"""The contract as tests see it: what `/openapi.json` says, and whether an answer is as it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from openapi_schema_validator import OAS31Validator

from app.web.operation import Access
from tests.support.harness import INTERNAL_TOKEN, WEBHOOK_SECRET

if TYPE_CHECKING:
    from app.model import Json
    from app.web.operation import Example, Operation
    from tests.support.harness import Answered, Harness

TOKENS = {Access.OPEN: None, Access.INTERNAL: INTERNAL_TOKEN, Access.WEBHOOK: WEBHOOK_SECRET}


async def document_of(house: Harness) -> dict[str, Json]:
    answer = await house.call("GET", "/openapi.json", token=None)
    assert answer.status == 200, answer.text
    return answer.json()


async def send(house: Harness, operation: Operation, example: Example) -> Answered:
    path = operation.path
    for name, value in example.path.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    query = f"?{urlencode(example.query)}" if example.query else ""
    return await house.call(
        operation.method, path + query, example.body, token=TOKENS[operation.access], headers=example.headers
    )


def flaws_of(document: dict[str, Json], operation: Operation, answer: Answered) -> list[str]:
    """What in an answer is not as the document says; a member that it does not describe is a flaw too."""
    described = at(document, "paths", operation.path, operation.method.lower(), "responses", str(answer.status))
    if described is None:
        return [f"{answer.status} is not described: {answer.text[:200]}"]
    kind = answer.headers["Content-Type"].partition(";")[0]
    schema = at(described, "content", kind, "schema")
    if schema is None:
        return [f"{kind} is not described for {answer.status}"]
    headers = at(described, "headers")
    assert isinstance(headers, dict)
    flaws = [f"the header {name} is missing" for name in headers if name not in answer.headers]
    if kind.endswith("json"):
        whole = {**_closed(document), **_closed({"it": schema})["it"]}  # type: ignore[dict-item]
        validator = OAS31Validator(whole, format_checker=OAS31Validator.FORMAT_CHECKER)
        flaws += [f"{error.json_path}: {error.message}" for error in validator.iter_errors(json.loads(answer.text))]
    return flaws


def at(value: Json, *steps: str) -> Json:
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _closed(value: dict[str, Json]) -> dict[str, Json]:
    """The same schemas, with no members but those that are described."""
    closed: dict[str, Json] = {name: _closed(one) if isinstance(one, dict) else one for name, one in value.items()}
    if "properties" in closed and "allOf" not in closed:
        closed.setdefault("additionalProperties", False)
    return closed
