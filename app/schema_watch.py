"""Looks at the real table's schema once the service has started, and again until it fits the registry.

Acceptance and start never wait for it. While it does not fit, the service is not ready, and goes on accepting and
syncing what it can. It asks through the sync loop, so that it keeps to the base's limit: first of all at the start,
later behind real work. Once the schema fits it is looked at again when a refusal makes it doubtful.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from app.logs import get_logger
from app.policy.asking import Described
from app.policy.delivery import Denied
from app.policy.schema import SchemaFlaw, may_be_schema, schema_flaws

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.clock import Clock
    from app.fields import Registry
    from app.policy.asking import DescribeAnswer, Failure

log = get_logger(__name__)

#: While there are flaws, or refusals that may mean one: soon enough for whoever mends the base, and 288 calls a day.
LOOK_AGAIN_SECONDS: Final = 300.0
#: While the base cannot be described the pause doubles from the first to the second of these.
FIRST_PAUSE_SECONDS: Final = 30.0
LONGEST_PAUSE_SECONDS: Final = 3600.0


class SchemaWatch:
    """`describe` asks Airtable through the sync loop, and never raises; its argument: whether before real work."""

    def __init__(
        self, describe: Callable[[bool], Awaitable[DescribeAnswer]], registry: Registry, table: str, clock: Clock
    ) -> None:
        self._describe = describe
        self._registry = registry
        self._table = table
        self._clock = clock
        self._flaws: tuple[SchemaFlaw, ...] = ()
        self._asked = False
        self._doubt = asyncio.Event()

    @property
    def flaws(self) -> tuple[SchemaFlaw, ...]:
        """What was wrong at the last look that succeeded; nothing before the first."""
        return self._flaws

    @property
    def troubles(self) -> tuple[str, ...]:
        """Why not all that is accepted may fit, for `/readyz`. A base that does not tell its columns is no reason."""
        if not self._asked:
            return ("the table's columns are not compared with [fields.*] yet: Airtable has not answered",)
        return tuple(flaw.detail for flaw in self._flaws)

    def suspect(self, cause: str) -> None:
        """Airtable refused a record for this: look again, if the schema may be what has changed."""
        if may_be_schema(cause):
            self._doubt.set()

    async def run(self) -> None:
        """Look until the schema fits, and again at each doubt, until cancelled. Raises what nobody foresees."""
        while True:
            await self._look_until_fine()
            fitted_at = self._clock.monotonic()
            await self._doubt.wait()
            await self._clock.sleep(max(0.0, fitted_at + LOOK_AGAIN_SECONDS - self._clock.monotonic()))

    async def _look_until_fine(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            self._doubt.clear()
            answer = await self._describe(not self._asked)
            self._asked = True
            if isinstance(answer, Described):
                self._note(answer)
                if not self._flaws:
                    return
                pause = FIRST_PAUSE_SECONDS
                await self._clock.sleep(LOOK_AGAIN_SECONDS)
            else:
                log.warning("schema.not_described", reason=_reason(answer), again_in_seconds=pause)
                await self._clock.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _note(self, described: Described) -> None:
        """Log what is new, and the end of it all; what was said before is not said again."""
        before = self._flaws
        self._flaws = schema_flaws(self._registry, described.columns, table=self._table, tables=described.tables)
        for flaw in self._flaws:
            if flaw not in before:
                log.error("schema.flaw", field=flaw.field, column=flaw.column, detail=flaw.detail)
        if not self._flaws:
            log.info("schema.fits", fields=len(self._registry), mended=len(before))


def _reason(failure: Failure) -> str:
    scope = "; the token needs the scope schema.bases:read" if isinstance(failure, Denied) else ""
    return f"{failure.cause}{scope}: until the base can be described, its columns are not checked"
