"""Two levels of health: alive (the process answers), ready (it can accept and sync), with reasons.

A table that does not fit the registry, or was not looked at yet, makes it `syncing: false`: not all that is accepted
can reach Airtable. What can still goes there, and `accepting` stays true: the outbox keeps the rest.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from app import __version__
from app.errors import Problem
from app.web import contract, shapes
from app.web.shapes import Alive, Readiness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp import web

    from app.clock import Clock

#: A store shows that it takes something by a commit, which whoever comes here must not have at will.
STORE_CHECK_SECONDS: Final = 1.0


class Health:
    """The open calls. `check_store` raises a `Problem` where the store takes nothing."""

    def __init__(
        self,
        check_store: Callable[[], Awaitable[None]],
        clock: Clock,
        *,
        sync_trouble: Callable[[], str | None],
        schema_troubles: Callable[[], Sequence[str]],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._check_store = check_store
        self._clock = clock
        self._sync_trouble = sync_trouble
        self._schema_troubles = schema_troubles
        self._is_stopping = is_stopping
        self._checking = asyncio.Lock()
        self._checked_at: float | None = None
        self._last_trouble: str | None = None

    def routes(self) -> list[web.RouteDef]:
        return [contract.HEALTHZ.served_by(self.alive), contract.READYZ.served_by(self.ready)]

    async def alive(self, _request: web.Request) -> web.Response:
        return shapes.ALIVE.answer(Alive("alive", __version__))

    async def ready(self, _request: web.Request) -> web.Response:
        accepting = [reason for reason in (await self._store_trouble(), self._stopping()) if reason]
        syncing = [trouble] if (trouble := self._sync_trouble()) else []
        syncing += self._schema_troubles()
        wrong = accepting + syncing
        ready = Readiness("not ready" if wrong else "ready", not accepting, not syncing, wrong)
        return shapes.READINESS.answer(ready, status=503 if wrong else 200)

    async def _store_trouble(self) -> str | None:
        """As it was a second ago at the most, however many ask."""
        async with self._checking:
            if self._checked_at is None or self._clock.monotonic() - self._checked_at >= STORE_CHECK_SECONDS:
                try:
                    await self._check_store()
                    self._last_trouble = None
                except Problem as problem:
                    self._last_trouble = problem.detail
                self._checked_at = self._clock.monotonic()
            return self._last_trouble

    def _stopping(self) -> str | None:
        return "the service is stopping" if self._is_stopping() else None
