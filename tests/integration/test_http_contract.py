"""`/openapi.json` and `/docs`: what is described is what is served, and what is answered is as described."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from openapi_spec_validator import OpenAPIV31SpecValidator

from app import service as composition
from app.fields import IDENTITY, NUMERIC, FieldType
from app.model import ID_PATTERN, flaw_of_id
from app.web.application import make_application
from app.web.contract import OPERATIONS
from tests.support.contract import at, document_of, flaws_of, send

if TYPE_CHECKING:
    import pytest
    from aiohttp import web

    from tests.support.harness import Harness


async def test_the_document_is_open_and_valid_openapi(served: Harness) -> None:
    document = await document_of(served)
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0"


async def test_every_route_is_described_and_everything_described_is_a_route(
    house: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own addresses belong to the page; all else that is served is part of the contract."""
    made: list[web.Application] = []

    def watched(*given: object, **named: object) -> web.Application:
        made.append(make_application(*given, **named))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(composition, "make_application", watched)
    async with house.running():
        document = await document_of(house)
    served = {
        (route.method, route.resource.canonical)
        for route in made[0].router.routes()
        if route.resource is not None
        and route.method != "HEAD"
        and not route.handler.__module__.startswith("app.web.page")
    }
    paths = document["paths"]
    assert isinstance(paths, dict)
    described = {(method.upper(), path) for path, calls in paths.items() if isinstance(calls, dict) for method in calls}
    assert served == described


async def test_every_example_is_answered_as_it_says(served: Harness) -> None:
    document = await document_of(served)
    for operation in OPERATIONS:
        assert operation.examples, operation.id
        for example in operation.examples:
            answer = await send(served, operation, example)
            assert answer.status == example.status, (operation.id, example.name, answer.text)
            assert flaws_of(document, operation, answer) == [], (operation.id, example.name, answer.text)
            body = at(document, "paths", operation.path, operation.method.lower(), "requestBody")
            if example.body is not None and example.status not in {400, 422}:
                assert isinstance(body, dict)
                assert example.body in [
                    at(one, "value")
                    for one in at(body, "content", "application/json", "examples").values()  # type: ignore[union-attr]
                ]


async def test_a_closed_call_is_described_as_closed_and_refuses_as_it_says(served: Harness) -> None:
    document = await document_of(served)
    for operation in OPERATIONS:
        security = at(document, "paths", operation.path, operation.method.lower(), "security")
        path = re.sub(r"\{\w+\}", "1", operation.path)
        answer = await served.call(operation.method, path, token=None)
        assert (answer.status == 401) is bool(security), operation.id
        assert flaws_of(document, operation, answer) == [], operation.id


async def test_the_fields_of_the_registry_are_named_with_what_they_take(served: Harness) -> None:
    document = await document_of(served)
    registry = served.settings.registry()
    free = {name for name in registry if name not in IDENTITY}
    logs = {name for name in free if registry[name].type is FieldType.LOG}
    numbers = {name for name in free if registry[name].type in NUMERIC}
    for schema, part, names in (
        ("KickoffRequest", "fields", free),
        ("UpdateRequest", "set", free - logs),
        ("UpdateRequest", "add", numbers),
        ("UpdateRequest", "append", logs),
    ):
        described = at(document, "components", "schemas", schema, "properties", part)
        assert isinstance(described, dict)
        assert isinstance(described["properties"], dict)
        assert (set(described["properties"]), described["additionalProperties"]) == (names, False), (schema, part)
    status = at(document, "components", "schemas", "UpdateRequest", "properties", "set", "properties", "status")
    assert list(registry["status"].options) in [at(one, "enum") for one in at(status, "anyOf")]  # type: ignore[union-attr]


async def test_the_page_of_the_contract_is_whole_and_asks_nothing_of_anybody(served: Harness) -> None:
    answer = await served.call("GET", "/docs", token=None)
    assert answer.status == 200
    for operation in OPERATIONS:
        assert f'id="{operation.id}"' in answer.text
        assert operation.path in answer.text
    for name in served.settings.registry():
        assert f"<code>{name}</code>" in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"<script|<img|<link|\son\w+=|\sstyle=|@import|url\(", answer.text)
    links = re.findall(r'(?:href|src|action)="([^"]*)"', answer.text)
    assert links
    anchors = set(re.findall(r'id="([^"]+)"', answer.text))
    assert [link for link in links if link != "/openapi.json" and link.removeprefix("#") not in anchors] == []


def test_the_described_form_of_an_id_is_never_narrower_than_what_is_taken_and_the_same_in_ascii() -> None:
    pattern = re.compile(ID_PATTERN)
    for number in [*range(0xD800), *range(0xE000, 0x30000)]:
        for tried in (chr(number), f"a{chr(number)}b"):
            taken = flaw_of_id("client_id", unicodedata.normalize("NFC", tried)) is None
            described = pattern.search(tried) is not None
            assert described if taken else not described or number > 0xA9, (hex(number), tried)
