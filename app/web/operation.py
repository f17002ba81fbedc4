"""What a call is described by: its address, who may call, what it takes, every answer, and examples of it.

`contract.py` describes each call so; routes and `/openapi.json` are made from it. Nothing here handles a request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from aiohttp import web

from app import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.typedefs import Handler
    from pydantic import BaseModel, TypeAdapter

    from app.errors import Problem
    from app.model import Json


class Access(StrEnum):
    """Who may call: anybody, holders of the internal token, or of the webhooks' secret."""

    OPEN = "open"
    INTERNAL = "internal"
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    place: str
    """`path`, `query` or `header`."""
    schema: Mapping[str, Json]
    description: str
    example: Json = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer: JSON of a shape, or else text of a content type."""

    description: str
    shape: TypeAdapter[object] | None = None
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Example:
    """A request that the tests really send, in the order of this page, and the status that answers it then."""

    name: str
    status: int
    body: Json = None
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `bodies`: it takes JSON of one of these; `body_optional`: or none. `problems` beside those of all."""

    method: str
    path: str
    id: str
    tag: str
    summary: str
    access: Access
    answers: Mapping[int, Answer]
    description: str = ""
    bodies: tuple[type[BaseModel], ...] = ()
    body_optional: bool = False
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[type[Problem], ...] = ()
    examples: tuple[Example, ...] = ()

    def served_by(self, handler: Handler) -> web.RouteDef:
        return web.get(self.path, handler) if self.method == "GET" else web.route(self.method, self.path, handler)

    def all_problems(self) -> tuple[type[Problem], ...]:
        """Every problem that it can answer."""
        found: list[type[Problem]] = [errors.Malformed]
        if self.access is not Access.OPEN:
            found += [errors.Unauthorized, errors.Forbidden, *_UNAVAILABLE]
        if self.bodies:
            found += [errors.TooSlow, errors.TooLarge, errors.UnsupportedEncoding, errors.Overloaded]
        return tuple(dict.fromkeys([*found, *self.problems, errors.Problem]))


_UNAVAILABLE: Final = (errors.StoreUnavailable, errors.Stopping)
