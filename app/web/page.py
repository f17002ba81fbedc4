"""The page, for people: whether all is well, what is not, and what may be done about it.

Every handler here answers with HTML, behind a session; `/` and what begins with `/page/` is the page, and no part of
the contract for programs. What is done here is done by a form of this session, from this origin, and kept with a name.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from aiohttp import web

from app.errors import Conflict, Malformed, NotFound, Problem
from app.logs import get_logger
from app.model import Action, ErrorKind, ErrorState, MessageKind, MessageState, SyncState
from app.store.views import (
    DecisionFilter,
    ErrorFilter,
    MessageFilter,
    RunFilter,
    Slice,
)
from app.web.activity import Activity
from app.web.charts import delay_chart, flow_chart
from app.web.page_frame import Frame
from app.web.page_requests import ROWS, id_of, slice_of, text_of, word_of
from app.web.verdict import concerns, headline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from app.clock import Clock
    from app.store.protocol import Reading, Replay
    from app.web.handlers import Check
    from app.web.session import Session, Sessions
    from app.web.verdict import Standing

log = get_logger(__name__)

ROWS_AT_A_GLANCE: Final = 10
MOST_NOTE: Final = 2_000

#: Spans of the plots, and the length and number of their steps.
SPANS: Final[Mapping[str, tuple[str, timedelta, int]]] = {
    "1h": ("hour", timedelta(minutes=2), 30),
    "6h": ("6 hours", timedelta(minutes=10), 36),
    "24h": ("24 hours", timedelta(minutes=30), 48),
    "7d": ("7 days", timedelta(hours=4), 42),
}
USUAL_SPAN: Final = "6h"


class Page:
    def __init__(
        self,
        reading: Reading,
        replay: Replay,
        clock: Clock,
        *,
        sessions: Sessions,
        check: Check,
        standing: Callable[[], Standing],
        statuses: Sequence[str],
        public_url: str,
        on_work: Callable[[], None],
    ) -> None:
        self._reading = reading
        self._replay = replay
        self._clock = clock
        self._frame = Frame(sessions, clock, public_url)
        self._activity = Activity(reading)
        self._check = check
        self._checking: asyncio.Task[None] | None = None
        self._standing = standing
        self._statuses = statuses
        self._on_work = on_work

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.get("/", self._frame.seen(self.overview)),
            web.get("/page/runs", self._frame.seen(self.runs)),
            web.get("/page/runs/{run_id}", self._frame.seen(self.run)),
            web.get("/page/errors", self._frame.seen(self.errors)),
            web.get("/page/errors/{id}", self._frame.seen(self.error)),
            web.post("/page/errors/{id}/resolve", self._frame.done(self.resolve)),
            web.get("/page/outbox", self._frame.seen(self.outbox)),
            web.get("/page/outbox/retry", self._frame.seen(self.ask_retry_all)),
            web.post("/page/outbox/retry", self._frame.done(self.retry_all)),
            web.get("/page/outbox/{id}", self._frame.seen(self.message)),
            web.post("/page/outbox/{id}/retry", self._frame.done(self.retry)),
            web.get("/page/check", self._frame.seen(self.check)),
            web.post("/page/check", self._frame.done(self.begin_check)),
            *self._frame.routes(),
        ]

    # Looking

    async def overview(self, request: web.Request, session: Session) -> web.Response:
        now = self._clock.now()
        span = request.query.get("span", USUAL_SPAN)
        name, step, count = SPANS.get(span, SPANS[USUAL_SPAN])
        counts = await self._reading.counts(now)
        steps = await self._activity.steps(now, step, count)
        glance = Slice(ROWS_AT_A_GLANCE)
        missing = ErrorFilter(kind=ErrorKind.MISSING_RECORD, state=ErrorState.OPEN)
        found = concerns(counts, self._standing())
        return self._frame.html(
            request,
            session,
            "overview.html",
            origin=self._frame.address_of(request),
            headline=headline(found),
            concerns=found,
            counts=counts,
            missing=(await self._reading.errors(missing, glance)).rows,
            runs=(await self._reading.runs(RunFilter(), glance)).rows,
            span=span if span in SPANS else USUAL_SPAN,
            spans=SPANS,
            steps=steps,
            step=step,
            flow=flow_chart(steps, f"Messages in each {_said_step(step)} of the last {name}"),
            delay=delay_chart(steps, f"Time from acceptance to Airtable over the last {name}"),
        )

    async def runs(self, request: web.Request, session: Session) -> web.Response:
        chosen = RunFilter(
            client_id=text_of(request, "client_id"),
            job_id=text_of(request, "job_id"),
            status=text_of(request, "status"),
            sync=word_of(request, "sync", SyncState),
        )
        page = await self._reading.runs(chosen, slice_of(request))
        return self._frame.html(
            request,
            session,
            "runs.html",
            page=page,
            chosen=asdict(chosen),
            statuses=self._statuses,
            syncs=list(SyncState),
        )

    async def run(self, request: web.Request, session: Session) -> web.Response:
        run_id = request.match_info["run_id"]
        run = await self._reading.run(run_id)
        if run is None:
            raise NotFound("There is no run of this name: runs are created at kickoff only.")
        waiting = await self._reading.messages(MessageFilter(run_id=run_id, undelivered=True), Slice(ROWS))
        return self._frame.html(request, session, "run.html", run=run, waiting=waiting.rows)

    async def errors(self, request: web.Request, session: Session) -> web.Response:
        chosen = ErrorFilter(
            kind=word_of(request, "kind", ErrorKind),
            state=word_of(request, "state", ErrorState),
            run_id=text_of(request, "run_id"),
            client_id=text_of(request, "client_id"),
        )
        page = await self._reading.errors(chosen, slice_of(request))
        return self._frame.html(
            request,
            session,
            "errors.html",
            page=page,
            chosen=asdict(chosen),
            kinds=list(ErrorKind),
            states=list(ErrorState),
        )

    async def error(self, request: web.Request, session: Session) -> web.Response:
        error = await self._reading.error(id_of(request))
        if error is None:
            raise NotFound("There is no error of this number.")
        decisions = await self._reading.decisions(DecisionFilter(error_id=error.id), Slice(ROWS))
        return self._frame.html(
            request,
            session,
            "error.html",
            error=error,
            has_run=error.run_id is not None and await self._reading.run(error.run_id) is not None,
            decisions=decisions.rows,
            most_note=MOST_NOTE,
        )

    async def outbox(self, request: web.Request, session: Session) -> web.Response:
        chosen = MessageFilter(
            state=word_of(request, "state", MessageState),
            kind=word_of(request, "kind", MessageKind),
            run_id=text_of(request, "run_id"),
            undelivered=not request.query.get("state"),
        )
        page = await self._reading.messages(chosen, slice_of(request))
        kept = {"state": request.query.get("state") or None, "kind": chosen.kind, "run_id": chosen.run_id}
        return self._frame.html(
            request,
            session,
            "outbox.html",
            page=page,
            chosen=kept,
            undelivered=chosen.undelivered,
            states=list(MessageState),
            kinds=list(MessageKind),
        )

    async def message(self, request: web.Request, session: Session) -> web.Response:
        message = await self._reading.message(id_of(request))
        if message is None:
            raise NotFound("There is no message of this number: delivered ones are removed after a while.")
        decisions = await self._reading.decisions(DecisionFilter(message_id=message.id), Slice(ROWS))
        return self._frame.html(request, session, "message.html", message=message, decisions=decisions.rows)

    async def ask_retry_all(self, request: web.Request, session: Session) -> web.Response:
        counts = await self._reading.counts(self._clock.now())
        return self._frame.html(request, session, "retry_all.html", dead=counts.dead, kinds=list(ErrorKind))

    async def check(self, request: web.Request, session: Session) -> web.Response:
        counts = await self._reading.counts(self._clock.now())
        asked = await self._reading.decisions(DecisionFilter(action=Action.CHECK), Slice(ROWS_AT_A_GLANCE))
        standing = self._standing()
        last = counts.last_check
        return self._frame.html(request, session, "check.html", last=last, asked=asked.rows, standing=standing)

    # Doing

    async def resolve(self, request: web.Request, session: Session, form: Mapping[str, str]) -> str:
        error_id = id_of(request)
        note, discard = form.get("note", "").strip() or None, form.get("discard") == "yes"
        if note is not None and len(note) > MOST_NOTE:
            raise Malformed(f"A note has {MOST_NOTE:,} characters at the most.")
        await self._replay.resolve_error(
            error_id, note=note, discard=discard, at=self._clock.now(), who=session.name or None
        )
        log.info("page.error_resolved", error_id=error_id, who=session.name, discard=discard)
        return f"/page/errors/{error_id}?done=resolved"

    async def retry(self, request: web.Request, session: Session, _form: Mapping[str, str]) -> str:
        message_id = id_of(request)
        await self._replay.retry(message_id, self._clock.now(), who=session.name or None)
        self._on_work()
        log.info("page.message_retried", message_id=message_id, who=session.name)
        return f"/page/outbox/{message_id}?done=retried"

    async def retry_all(self, _request: web.Request, session: Session, form: Mapping[str, str]) -> str:
        kind = form.get("kind") or None
        retried = await self._replay.retry_all(
            kind=kind, run_id=None, since=None, at=self._clock.now(), who=session.name or None
        )
        self._on_work()
        log.info("page.messages_retried", messages=retried, kind=kind, who=session.name)
        return "/page/outbox?done=all_retried"

    async def begin_check(self, _request: web.Request, session: Session, form: Mapping[str, str]) -> str:
        """Begin a check; it may take long, and the page shows how it went."""
        if self._standing().is_checking:
            raise Conflict("A check is under way already: its result will show here.")
        repair = form.get("repair") == "yes"
        note = "with repair of what drifted" if repair else None
        await self._replay.decide(Action.CHECK, self._clock.now(), who=session.name or None, note=note)
        log.info("page.check_begun", who=session.name, repair=repair)
        self._checking = asyncio.create_task(self._run_check(repair=repair), name="check-from-the-page")
        await asyncio.sleep(0)  # so that it is under way when the page shows it
        return "/page/check?done=checking"

    async def _run_check(self, *, repair: bool) -> None:
        try:
            await self._check(repair=repair)
        except Problem as problem:
            log.warning("page.check_ended", reason=problem.detail)


def _said_step(step: timedelta) -> str:
    minutes = int(step.total_seconds() // 60)
    return f"{minutes} minutes" if minutes < 60 else f"{minutes // 60} hours"  # noqa: PLR2004
