"""What schemathesis is told about this contract: the few rules that a JSON Schema cannot say.

Data that fit the schema have to be accepted, but for these rules. Everything else is schemathesis' own.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import TYPE_CHECKING, Final

import schemathesis
from openapi_schema_validator import OAS31Validator
from schemathesis.generation.modes import GenerationMode

from app.web.contract import IDEMPOTENCY_HEADER
from tests.support.contract import at

if TYPE_CHECKING:
    from schemathesis import APIOperation, CheckContext, HookContext, Response
    from schemathesis import Case as CaseOf

    Case = CaseOf[APIOperation]  # type: ignore[type-arg]  # what it is made of is nothing to these checks

#: Each is part of an answer's `detail`, and of a description in the contract.
BEYOND_A_SCHEMA: Final = (
    "this Idempotency-Key came with another request before",
    "letters, digits and . _ - ' @ + inside",  # of which characters beyond ASCII are letters
    "composed form",
    "'job_id' ends with the client's id already",
    "two different client names",
    "is named under both 'set' and 'add'",
    "the sum would be",
)
_REFUSED: Final = (400, 422)
_EXAMPLE_KEY: Final = "scored-1"
_kickoffs = itertools.count(1)


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, object]) -> None:  # noqa: ARG001
    """Let most good data in: one key for all requests, and letters that are none, would keep nearly all of them out."""
    if not _is_meant_well(case):
        return
    if case.headers.get(IDEMPOTENCY_HEADER) == _EXAMPLE_KEY:
        case.headers[IDEMPOTENCY_HEADER] = case.id
    if case.method == "POST" and case.path == "/runs" and isinstance(case.body, dict):
        if next(_kickoffs) % 2:  # a new job: generated ids are mostly those of the examples
            case.body.pop("job_id", None)
        for name in ("client_id", "job_id"):
            if isinstance(word := case.body.get(name), str):
                case.body[name] = re.sub(r"[^\w.'@+-]", "x", unicodedata.normalize("NFC", word))[:100]


@schemathesis.check
def what_fits_the_schema_is_refused_only_for_a_rule_beyond_it(
    ctx: CheckContext,  # noqa: ARG001
    response: Response,
    case: Case,
) -> None:
    if _is_meant_well(case) and response.status_code in _REFUSED and _body_fits(case):
        detail = response.json()["detail"]
        assert any(rule in detail for rule in BEYOND_A_SCHEMA), f"refused although it fits the schema: {detail}"


@schemathesis.check
def every_answer_names_its_request(ctx: CheckContext, response: Response, case: Case) -> None:  # noqa: ARG001
    assert "x-request-id" in {name.lower() for name in response.headers}, "an answer without X-Request-ID"
    if response.status_code in range(400, 500):
        kind = response.headers["content-type"][0]
        assert kind.startswith("application/problem+json"), f"a {response.status_code} as {kind}"


def _is_meant_well(case: Case) -> bool:
    return case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE


def _body_fits(case: Case) -> bool:
    """Whether the body is as the document says: values that are carried over from answers need not be."""
    document = dict(case.operation.schema.raw_schema)
    body = at(document, "paths", case.path, case.method.lower(), "requestBody", "content", "application/json", "schema")
    if not isinstance(body, dict):
        return True
    validator = OAS31Validator({**document, **body}, format_checker=OAS31Validator.FORMAT_CHECKER)
    return bool(validator.is_valid(case.body))
