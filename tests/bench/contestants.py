"""The servers that take part: the service as it is, and the same with one part exchanged.

All of them are `runrecords serve` with its whole stack: routes, middleware, logs, bearer tokens. So a ratio says what
the exchanged part costs, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar
from unittest.mock import patch

from aiohttp import web

from app import cli
from app.fields import Change, check_sums, dump, fold, load_fold
from app.model import (
    Duplicate,
    Kickoff,
    MessageKind,
    Queued,
    Source,
    Update,
    UpdateOutcome,
    WebhookOutcome,
    WebhookTaken,
    run_id_of,
)
from app.store.sqlite import intake
from app.store.sqlite.connection import (
    GroupCommit,
    Reader,
    Unit,
    UnitConnection,
    _commit_together,
    _Done,
    connect_writing,
)
from app.store.sqlite.store import SqliteStore
from app.store.views import KickoffTaken, RunView
from app.web.guard import read_body
from app.web.handlers import Calls

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from app.policy.harvest import HarvestRules
    from app.store.protocol import WebhookEvent
    from app.store.sqlite.intake import When

T = TypeVar("T")


class Kind(StrEnum):
    SERVICE = "service"
    #: The service with `synchronous=NORMAL`, which promises nothing at a power cut.
    NORMAL = "normal"
    #: Handlers that read the body and answer.
    BARE = "bare"
    #: Handlers that check all that can be checked without a store, and keep nothing.
    CHECKED = "checked"
    #: A transaction a request, a statement a hop, through aiosqlite.
    TRANSACTION = "transaction"
    #: A transaction a request, in one hop: what the service would be without its group commit.
    DIRECT = "direct"


class BareCalls(Calls):
    """Reads the body, and answers as if all were well."""

    async def create_run(self, request: web.Request) -> web.Response:
        await read_body(request)
        return web.json_response({"outcome": "created"}, status=201)

    async def update_run(self, request: web.Request) -> web.Response:
        await read_body(request)
        return web.json_response(
            {"outcome": "queued", "run_id": request.match_info["run_id"], "message_id": 1}, status=202
        )

    async def take_webhook(self, request: web.Request) -> web.Response:
        await read_body(request)
        return web.json_response({"outcome": "queued", "run_id": None, "detail": None})


class NothingKept(SqliteStore):
    """Says yes to all, and keeps nothing."""

    async def accept_create(self, kickoff: Kickoff, at: datetime) -> KickoffTaken:  # noqa: ARG002
        job_id, client_id, then = kickoff.job_id or "", kickoff.client_id, "2026-05-16T09:20:00.000Z"
        run_id = run_id_of(job_id, client_id)
        run = RunView(
            run_id, job_id, client_id, client_id, "Running", "pending", None, "kickoff", then, then,
            {"run_id": run_id, "client_id": client_id, "status": "Running"}, (), (), (),
        )  # fmt: skip
        return KickoffTaken(run, created=True)

    async def accept_update(self, update: Update, at: datetime) -> UpdateOutcome:  # noqa: ARG002
        return Queued(update.run_id, 1)

    async def accept_webhook(self, event: WebhookEvent, at: datetime) -> WebhookTaken:  # noqa: ARG002
        return WebhookTaken(WebhookOutcome.QUEUED, event.run_id)


class OneByOne(GroupCommit):
    """A transaction for each unit, in the order of their coming."""

    def __init__(self, connection: UnitConnection, check_files: Callable[[], None]) -> None:
        super().__init__(connection, check_files)
        self.connection = connection
        self.turn = asyncio.Lock()

    async def run(self, unit: Unit[T]) -> T:
        async with self.turn:
            (outcome,) = await self.connection.run(partial(_commit_together, [unit], self._check_files))
        if isinstance(outcome, _Done):
            return outcome.result  # type: ignore[return-value]
        raise outcome


SELECT_FOLD: Final = "SELECT fields FROM runs WHERE run_id = ?"


class StatementsThroughAiosqlite(SqliteStore):
    """Updates as a plain aiosqlite program writes them: the statements of the service, each awaited."""

    def __init__(self, writer: OneByOne, reader: Reader, *, linger_seconds: float, run_fields: Sequence[str],
                 rules: HarvestRules) -> None:  # fmt: skip
        super().__init__(writer, reader, linger_seconds=linger_seconds, run_fields=run_fields, rules=rules)
        self._one_by_one = writer

    async def accept_update(self, update: Update, at: datetime) -> UpdateOutcome:
        async with self._one_by_one.turn:
            connection = self._one_by_one.connection
            await connection.execute("BEGIN IMMEDIATE")
            try:
                outcome = await self._accept_update(connection, update, self._when(at))
            except BaseException:
                await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")
            return outcome

    async def _accept_update(self, connection: UnitConnection, update: Update, when: When) -> UpdateOutcome:
        key, change = update.idempotency, update.change
        if key is not None:
            known = await connection.execute(intake.SELECT_KEY, (update.run_id, key.key))
            if await known.fetchone() is not None:
                return Duplicate(update.run_id)
        run = await (await connection.execute(SELECT_FOLD, (update.run_id,))).fetchone()
        assert run is not None
        values = fold(load_fold(run["fields"]), change)
        check_sums(values, change)
        by_caller = "caller" if "status" in change.set else None
        kept = {"fields": dump(values), "at": when.at, "status_by": by_caller, "due_at": when.due_at,
                "run_id": update.run_id}  # fmt: skip
        await connection.execute(intake.UPDATE_FOLD, kept)
        message = await connection.execute(intake.INSERT_MESSAGE, _message(update, change, when))
        if key is not None:
            remembered = (update.run_id, key.key, key.digest, update.run_id, when.at)
            await connection.execute(intake.INSERT_KEY, remembered)
        return Queued(update.run_id, message.lastrowid or 0)


def _message(update: Update, change: Change, when: When) -> tuple[str, ...]:
    return (update.run_id, MessageKind.UPDATE, Source.CALLER, dump(change.names()), change.to_json(), when.at)


def _not_synced(path: Path) -> sqlite3.Connection:
    connection = connect_writing(path)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


#: What takes the place of what, by kind.
_EXCHANGED: Final[Mapping[Kind, Mapping[str, object]]] = {
    Kind.SERVICE: {},
    Kind.NORMAL: {"app.store.sqlite.opening.connect_writing": _not_synced},
    Kind.BARE: {"app.service.Calls": BareCalls},
    Kind.CHECKED: {
        "app.store.sqlite.opening.SqliteStore": NothingKept,
        "app.service.Service.wake": lambda _service: None,  # nothing was kept, so there is nothing to look for
    },
    Kind.TRANSACTION: {
        "app.store.sqlite.opening.SqliteStore": StatementsThroughAiosqlite,
        "app.store.sqlite.opening.GroupCommit": OneByOne,
    },
    Kind.DIRECT: {"app.store.sqlite.opening.GroupCommit": OneByOne},
}


def main() -> None:
    kind = Kind(sys.argv[1])
    sys.argv = ["runrecords", "serve"]
    with contextlib.ExitStack() as stack:
        for name, other in _EXCHANGED[kind].items():
            stack.enter_context(patch(name, other))
        cli.main()


if __name__ == "__main__":
    main()
