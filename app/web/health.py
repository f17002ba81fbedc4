"""Two levels of health: alive (the process answers), ready (it can accept and sync), with reasons.

A table that does not fit the registry, or was not looked at yet, makes it `syncing: false`: not all that is accepted
can reach Airtable. What can still goes there, and `accepting` stays true: the outbox keeps the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app import __version__
from app.errors import Problem
from app.web import contract, shapes
from app.web.shapes import Alive, Readiness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp import web


@dataclass(frozen=True, slots=True)
class Health:
    """The open calls. `check_store` raises a `Problem` where the store does not answer."""

    check_store: Callable[[], Awaitable[None]]
    sync_trouble: Callable[[], str | None]
    schema_troubles: Callable[[], Sequence[str]]
    is_stopping: Callable[[], bool]

    def routes(self) -> list[web.RouteDef]:
        return [contract.HEALTHZ.served_by(self.alive), contract.READYZ.served_by(self.ready)]

    async def alive(self, _request: web.Request) -> web.Response:
        return shapes.ALIVE.answer(Alive("alive", __version__))

    async def ready(self, _request: web.Request) -> web.Response:
        accepting = [reason for reason in (await self._store_trouble(), self._stopping()) if reason]
        syncing = [trouble] if (trouble := self.sync_trouble()) else []
        syncing += self.schema_troubles()
        wrong = accepting + syncing
        ready = Readiness("not ready" if wrong else "ready", not accepting, not syncing, wrong)
        return shapes.READINESS.answer(ready, status=503 if wrong else 200)

    async def _store_trouble(self) -> str | None:
        try:
            await self.check_store()
        except Problem as problem:
            return problem.detail
        return None

    def _stopping(self) -> str | None:
        return "the service is stopping" if self.is_stopping() else None
