"""The contract as an OpenAPI 3.1 document, from the calls' descriptions, their types and the registry.

The types are those that validate and answer. It holds nothing of its own that could go stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from app import __version__, errors
from app.fields import IDENTITY, MAX_DECIMAL, MAX_INTEGER, MAX_TEXT, NUMERIC, Field, FieldType
from app.web.operation import Access
from app.web.problems import CONTENT_TYPE, REQUEST_ID_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pydantic.json_schema import JsonSchemaMode

    from app.errors import Problem
    from app.fields import Registry
    from app.model import Json
    from app.web.operation import Answer, Example, Operation, Parameter

Object = dict[str, "Json"]

_ABOUT: Final = (
    "One Airtable record per client run: created once by a kickoff, changed by updates, nothing lost. Bodies and "
    "answers are JSON; errors are problem details (RFC 9457) whose `type` is stable. What was answered with 2xx is on "
    "disk. A call may be sent again after 408, 5xx or no answer: with an `Idempotency-Key` it counts once."
)


def make_document(operations: Iterable[Operation], registry: Registry) -> Object:
    """The document for these calls, with the names and types of this registry's fields."""
    operations = list(operations)
    schemas = _Schemas(operations, registry)
    paths: dict[str, Json] = {}
    for one in operations:
        path = paths.setdefault(one.path, {})
        assert isinstance(path, dict)
        path[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Run Records",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(one.tag for one in operations)],
        "paths": paths,
        "components": {
            "schemas": schemas.all,
            "parameters": {"RequestId": _REQUEST_ID_PARAMETER},
            "headers": {"RequestId": _REQUEST_ID},
            "securitySchemes": {
                Access.INTERNAL.value: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "INTERNAL_API_TOKEN. Where none is set, only this machine may call, without one.",
                },
                Access.WEBHOOK.value: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "APIFY_WEBHOOK_SECRET, as the headers template of a webhook sends it.",
                },
            },
        },
    }


_REQUEST_ID: Final[Object] = {
    "description": "Names the request in the answer and in the log",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
}
_REQUEST_ID_PARAMETER: Final[Object] = {
    "name": REQUEST_ID_HEADER,
    "in": "header",
    "description": "A name for this request, of at most 64 letters, digits, `.`, `_` and `-`; another is replaced",
    "schema": {"type": "string"},
}


def _operation(one: Operation, schemas: _Schemas) -> Object:
    described: Object = {"operationId": one.id, "tags": [one.tag], "summary": one.summary}
    if one.description:
        described["description"] = one.description
    described["parameters"] = [
        *(_parameter(parameter) for parameter in one.parameters),
        {"$ref": "#/components/parameters/RequestId"},
    ]
    if one.bodies:
        described["requestBody"] = _body(one, schemas)
    described["responses"] = _responses(one, schemas)
    described["security"] = [] if one.access is Access.OPEN else [{one.access.value: []}]
    return described


def _parameter(one: Parameter) -> Object:
    described: Object = {
        "name": one.name,
        "in": one.place,
        "description": one.description,
        "schema": dict(one.schema),
    }
    if one.place == "path":
        described["required"] = True
    if one.example is not None:
        described["example"] = one.example
    return described


def _body(one: Operation, schemas: _Schemas) -> Object:
    media: Object = {"schema": _any_of([schemas.ref(body) for body in one.bodies])}
    examples: Object = {
        _key(example): {"summary": example.name, "value": example.body}
        for example in one.examples
        if example.body is not None and example.status not in _REFUSED
    }
    if examples:
        media["examples"] = examples
    return {"required": not one.body_optional, "content": {"application/json": media}}


#: An example that is refused for its body shows what not to send: it is in no document.
_REFUSED: Final = (400, 422)


def _key(example: Example) -> str:
    return example.name.replace(" ", "-")


def _responses(one: Operation, schemas: _Schemas) -> Object:
    answers: Object = {str(status): _answer(answer, schemas) for status, answer in one.answers.items()}
    by_status: dict[int, list[type[Problem]]] = {}
    for problem in one.all_problems():
        by_status.setdefault(problem.status, []).append(problem)
    for status, problems in sorted(by_status.items()):
        key, described = str(status), _problem_answer(problems, schemas)
        if status in one.answers:  # a call that answers with a status of its own besides
            known = answers[key]
            assert isinstance(known, dict)
            assert isinstance(known["content"], dict)
            assert isinstance(described["content"], dict)
            known["content"] |= described["content"]
        else:
            answers[key] = described
    return answers


def _answer(answer: Answer, schemas: _Schemas) -> Object:
    schema: Object = {"type": "object"} if answer.content_type == "application/json" else {"type": "string"}
    if answer.shape is not None:
        schema = schemas.ref(answer.shape)
    return {
        "description": answer.description,
        "headers": {REQUEST_ID_HEADER: {"$ref": "#/components/headers/RequestId"}},
        "content": {answer.content_type: {"schema": schema}},
    }


def _problem_answer(problems: Sequence[type[Problem]], schemas: _Schemas) -> Object:
    headers: Object = {REQUEST_ID_HEADER: {"$ref": "#/components/headers/RequestId"}}
    for problem in problems:
        for name, text in problem.headers.items():
            headers[name] = {"schema": {"type": "string"}, "example": text}
    return {
        "description": ", or: ".join(problem.title for problem in problems),
        "headers": headers,
        "content": {CONTENT_TYPE: {"schema": _any_of([schemas.problem(problem) for problem in problems])}},
    }


def _any_of(schemas: Sequence[Object]) -> Object:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


# Schemas --------------------------------------------------------------------------------------------------------


class _Plain(GenerateJsonSchema):
    """Without titles that only repeat the names of members."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        return False


class _Schemas:
    """The schemas of everything that the calls take and answer, and where each is."""

    def __init__(self, operations: Sequence[Operation], registry: Registry) -> None:
        bodies = {body for one in operations for body in one.bodies}
        shapes = [answer.shape for one in operations for answer in one.answers.values() if answer.shape is not None]
        asked: list[tuple[object, JsonSchemaMode, TypeAdapter[object]]] = [
            (body, "validation", TypeAdapter(body)) for body in sorted(bodies, key=lambda body: body.__name__)
        ]
        asked += [(id(shape), "serialization", shape) for shape in shapes]
        refs, definitions = TypeAdapter.json_schemas(
            asked,
            ref_template="#/components/schemas/{model}",
            schema_generator=_Plain,
        )
        self._refs: dict[object, Object] = {key: schema for (key, _), schema in refs.items()}
        self.all: dict[str, Json] = dict(definitions["$defs"])
        self.all["Problem"] = _PROBLEM
        self._describe_fields(registry)
        self._describe_webhooks()

    def ref(self, of: type | TypeAdapter[object]) -> Object:
        return self._refs[of if isinstance(of, type) else id(of)]

    def problem(self, problem: type[Problem]) -> Object:
        name = f"{problem.__name__}Problem" if problem is not errors.Problem else "InternalProblem"
        self.all.setdefault(
            name,
            {
                "title": problem.title,
                "allOf": [{"$ref": "#/components/schemas/Problem"}],
                "properties": {
                    "type": {"const": errors.TYPE_PREFIX + problem.slug},
                    "status": {"const": problem.status},
                },
            },
        )
        return {"$ref": f"#/components/schemas/{name}"}

    def _describe_fields(self, registry: Registry) -> None:
        """Name the fields that each part may name, and what they take: the registry is in no type."""
        fields = list(registry.values())
        free = [one for one in fields if one.name not in IDENTITY]
        logs = [one for one in free if one.type is FieldType.LOG]
        others = [one for one in free if one.type is not FieldType.LOG]
        self._of_fields("KickoffRequest", "fields", free, _first)
        self._of_fields("UpdateRequest", "set", others, _settable)
        self._of_fields("UpdateRequest", "add", [one for one in free if one.type in NUMERIC], _value)
        self._of_fields("UpdateRequest", "append", logs, _lines)
        self._schema("UpdateRequest")["anyOf"] = [
            {"required": [part], "properties": {part: {"minProperties": 1}}} for part in ("set", "add", "append")
        ]
        for shown in ("RunView", "RunCreated"):
            self._of_fields(shown, "fields", fields, _settable)
            self._member(shown, "fields")["additionalProperties"] = True  # those of an earlier configuration

    def _of_fields(self, schema: str, member: str, fields: Sequence[Field], take: Callable[[Field], Object]) -> None:
        described = self._member(schema, member)
        described["additionalProperties"] = False
        described["properties"] = {
            one.name: {**take(one), "description": f"{one.type.value}: the column {one.column!r}"} for one in fields
        }

    def _describe_webhooks(self) -> None:
        """Only events of actor runs have to say more than their name."""
        self._member("RunWebhook", "eventType")["pattern"] = r"^ACTOR\.RUN\."
        self._member("AnyWebhook", "eventType")["pattern"] = r"^(?!ACTOR\.RUN\.)"
        self._schema("RunWebhook")["anyOf"] = [
            {
                "required": ["resource"],
                "properties": {
                    "resource": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
                },
            },
            {
                "required": ["eventData"],
                "properties": {
                    "eventData": {
                        "type": "object",
                        "required": ["actorRunId"],
                        "properties": {"actorRunId": {"type": "string"}},
                    }
                },
            },
        ]

    def _schema(self, name: str) -> Object:
        schema = self.all[name]
        assert isinstance(schema, dict)
        return schema

    def _member(self, schema: str, member: str) -> Object:
        members = self._schema(schema)["properties"]
        assert isinstance(members, dict)
        described = members[member]
        assert isinstance(described, dict)
        return described


_PROBLEM: Final[Object] = {
    "type": "object",
    "description": "What went wrong (RFC 9457): `type` is stable, for programs; `detail` says what to change.",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string", "description": "the request's name in the log"},
        "errors": {
            "type": "array",
            "description": "each flaw of the request, and where it is (a JSON pointer, RFC 6901)",
            "items": {
                "type": "object",
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
                "required": ["pointer", "detail"],
            },
        },
    },
    "required": ["type", "title", "status", "detail", "request_id"],
}

_TEXT: Final[Object] = {"type": "string", "maxLength": MAX_TEXT}


def _value(one: Field) -> Object:
    """What `Field.check` takes, but null."""
    match one.type:
        case FieldType.TEXT | FieldType.LOG:
            return dict(_TEXT)
        case FieldType.INTEGER:
            return {"type": "integer", "minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}
        case FieldType.DECIMAL:
            return {"type": "number", "minimum": -MAX_DECIMAL, "maximum": MAX_DECIMAL}
        case FieldType.DATETIME:
            return {"type": "string", "format": "date-time"}
        case FieldType.SELECT:
            return {"type": "string", "enum": list(one.options)}


def _settable(one: Field) -> Object:
    return {"anyOf": [_value(one), {"type": "null"}]}


def _lines(_one: Field) -> Object:
    return {"anyOf": [dict(_TEXT), {"type": "array", "items": dict(_TEXT)}]}


def _first(one: Field) -> Object:
    return {"anyOf": [_lines(one), {"type": "null"}]} if one.type is FieldType.LOG else _settable(one)
