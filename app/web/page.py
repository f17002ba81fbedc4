"""The page, for people: whether all is well, what is not, and what may be done about it.

Every handler here answers with HTML, behind a session; `/` and what begins with `/page/` is the page, and no part of
the contract for programs. What is done here is done by a form of this session, from this origin, and kept with a name.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import aiohttp_jinja2
from aiohttp import web
from jinja2 import FileSystemLoader, StrictUndefined
from yarl import URL

from app import __version__
from app.errors import Conflict, Forbidden, Malformed, NotFound, Problem
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
from app.web.guard import Bearer
from app.web.page_requests import ROWS, id_of, page_of_ours, read_form, slice_of, text_of, word_of
from app.web.session import Attempts, Session, Sessions, clean_name, is_form_of
from app.web.showing import FILTERS
from app.web.verdict import concerns, headline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from app.clock import Clock
    from app.store.protocol import Reading, Replay
    from app.web.handlers import Check
    from app.web.verdict import Standing

log = get_logger(__name__)

HERE: Final = Path(__file__).parent
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

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: browsers would then say "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

#: What was done, by the word that an address carries: nothing of an address is shown as it stands.
DONE: Final[Mapping[str, str]] = {
    "retried": "It will be sent again when its turn comes.",
    "all_retried": "They will be sent again when their turn comes.",
    "resolved": "The error is resolved.",
    "checking": "The check has begun.",
}


def set_up_templates(application: web.Application) -> None:
    aiohttp_jinja2.setup(
        application,
        loader=FileSystemLoader(HERE / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        filters=FILTERS,
    )


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
        self._sessions = sessions
        self._attempts = Attempts(clock)
        self._activity = Activity(reading)
        self._this_machine = Bearer((), "INTERNAL_API_TOKEN")
        self._check = check
        self._checking: asyncio.Task[None] | None = None
        self._standing = standing
        self._statuses = statuses
        self._public = urlsplit(public_url)
        self._on_work = on_work

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.get("/", self._seen(self.overview)),
            web.get("/page/runs", self._seen(self.runs)),
            web.get("/page/runs/{run_id}", self._seen(self.run)),
            web.get("/page/errors", self._seen(self.errors)),
            web.get("/page/errors/{id}", self._seen(self.error)),
            web.post("/page/errors/{id}/resolve", self._done(self.resolve)),
            web.get("/page/outbox", self._seen(self.outbox)),
            web.get("/page/outbox/retry", self._seen(self.ask_retry_all)),
            web.post("/page/outbox/retry", self._done(self.retry_all)),
            web.get("/page/outbox/{id}", self._seen(self.message)),
            web.post("/page/outbox/{id}/retry", self._done(self.retry)),
            web.get("/page/check", self._seen(self.check)),
            web.post("/page/check", self._done(self.begin_check)),
            web.get("/page/sign-in", self._plain(self.ask_who)),
            web.post("/page/sign-in", self._plain(self.sign_in)),
            web.post("/page/sign-out", self._done(self.sign_out)),
            web.get("/page/static/{name}", self._plain(self.static)),
            web.get("/page/{rest:.*}", self._plain(self.nothing)),
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
        return self._html(
            request,
            session,
            "overview.html",
            origin=self._public.geturl() or f"{request.scheme}://{request.host}",
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
        return self._html(
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
        return self._html(request, session, "run.html", run=run, waiting=waiting.rows)

    async def errors(self, request: web.Request, session: Session) -> web.Response:
        chosen = ErrorFilter(
            kind=word_of(request, "kind", ErrorKind),
            state=word_of(request, "state", ErrorState),
            run_id=text_of(request, "run_id"),
            client_id=text_of(request, "client_id"),
        )
        page = await self._reading.errors(chosen, slice_of(request))
        return self._html(
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
        return self._html(
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
        return self._html(
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
        return self._html(request, session, "message.html", message=message, decisions=decisions.rows)

    async def ask_retry_all(self, request: web.Request, session: Session) -> web.Response:
        counts = await self._reading.counts(self._clock.now())
        return self._html(request, session, "retry_all.html", dead=counts.dead, kinds=list(ErrorKind))

    async def check(self, request: web.Request, session: Session) -> web.Response:
        counts = await self._reading.counts(self._clock.now())
        asked = await self._reading.decisions(DecisionFilter(action=Action.CHECK), Slice(ROWS_AT_A_GLANCE))
        standing = self._standing()
        last = counts.last_check
        return self._html(request, session, "check.html", last=last, asked=asked.rows, standing=standing)

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

    # Sessions

    async def ask_who(self, request: web.Request) -> web.Response:
        wanted = page_of_ours(request.query.get("next", "/"))
        if not self._sessions.needs_token:
            self._this_machine.check(request)
        elif self._session(request) is not None:  # browsers keep a strict cookie back when a link leads here
            return _see_other(wanted)
        return self._sign_in_form(request, wanted=wanted)

    async def sign_in(self, request: web.Request) -> web.Response:
        self._check_origin(request)
        if not self._sessions.needs_token:
            self._this_machine.check(request)
        form = await read_form(request)
        wanted, name, peer = page_of_ours(form.get("next", "/")), clean_name(form.get("name", "")), request.remote or ""
        if (wait := self._attempts.wait(peer)) > 0.0:
            trouble = f"Too many tries: the next one counts in {math.ceil(wait)} s."
            answer = self._sign_in_form(request, wanted=wanted, name=name, trouble=trouble, status=429)
            answer.headers["Retry-After"] = str(math.ceil(wait))
            return answer
        cookie = self._sessions.open(form.get("token", ""), name)
        if cookie is None:
            self._attempts.failed(peer)
            log.warning("page.sign_in_failed", peer=peer)
            return self._sign_in_form(request, wanted=wanted, name=name, trouble="This is not the token.", status=403)
        self._attempts.succeeded(peer)
        log.info("page.signed_in", who=name, peer=peer)
        answer = _see_other(wanted)
        self._keep(request, answer, cookie)
        return answer

    async def sign_out(self, _request: web.Request, session: Session, _form: Mapping[str, str]) -> str:
        self._sessions.end(session)
        log.info("page.signed_out", who=session.name)
        return "/page/sign-in"

    def _sign_in_form(
        self, request: web.Request, *, wanted: str, name: str = "", trouble: str | None = None, status: int = 200
    ) -> web.Response:
        answer = self._html(request, None, "sign_in.html", wanted=wanted, name=name, trouble=trouble)
        answer.set_status(status)
        return answer

    def _keep(self, request: web.Request, answer: web.Response, cookie: str) -> None:
        name, secure = self._cookie(request)
        answer.set_cookie(name, cookie, path="/", httponly=True, samesite="Strict", secure=secure)

    def _session(self, request: web.Request) -> Session | None:
        return self._sessions.read(request.cookies.get(self._cookie(request)[0]))

    def _cookie(self, request: web.Request) -> tuple[str, bool]:
        """The cookie's name, and whether it goes over TLS only: browsers hold `__Host-` to that, and to this host."""
        secure = request.scheme == "https" or self._public.scheme == "https"
        return ("__Host-runrecords" if secure else "runrecords"), secure

    def _check_origin(self, request: web.Request) -> None:
        """A form comes from a page of ours: browsers say so with every POST. Raises `Forbidden`."""
        origin = urlsplit(request.headers.get("Origin", ""))
        ours = {request.host} | ({self._public.netloc} if self._public.netloc else set())
        if origin.scheme not in {"http", "https"} or origin.netloc not in ours:
            raise Forbidden("This form does not come from this page.")
        if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise Forbidden("This form does not come from this page.")

    # Around every handler

    def _seen(self, show: Callable[[web.Request, Session], Awaitable[web.Response]]) -> _Handler:
        """Show it to who has a session; ask the others to sign in."""

        async def handler(request: web.Request) -> web.Response:
            session = self._session(request)
            if self._sessions.needs_token:
                if session is None:
                    return _see_other(URL("/page/sign-in").with_query(next=request.path_qs))
                return await show(request, session)
            self._this_machine.check(request)
            if session is not None:
                return await show(request, session)
            cookie = self._sessions.open("", "")
            session = self._sessions.read(cookie)
            assert cookie is not None
            assert session is not None
            answer = await show(request, session)
            self._keep(request, answer, cookie)
            return answer

        return self._plain(handler)

    def _done(self, do: Callable[[web.Request, Session, Mapping[str, str]], Awaitable[str]]) -> _Handler:
        """Do what a form of this session asks for, and show what came of it."""

        async def handler(request: web.Request) -> web.Response:
            self._check_origin(request)
            if not self._sessions.needs_token:
                self._this_machine.check(request)
            session = self._session(request)
            if session is None:
                raise Forbidden("Your session has ended: sign in and do it again.")
            form = await read_form(request)
            if not is_form_of(session, form.get("csrf", "")):
                raise Forbidden("This form is of another session: go back, reload the page and do it again.")
            return _see_other(await do(request, session, form))

        return self._plain(handler)

    def _plain(self, handler: _Handler) -> _Handler:
        """With the headers of a page; a problem is a page too."""

        async def wrapped(request: web.Request) -> web.Response:
            try:
                answer = await handler(request)
            except Problem as problem:
                answer = self._html(request, None, "problem.html", problem=problem)
                answer.set_status(problem.status)
            for name, value in HEADERS.items():
                answer.headers.setdefault(name, value)
            return answer

        return wrapped

    def _html(self, request: web.Request, session: Session | None, template: str, **shown: object) -> web.Response:
        context = {
            "session": session,
            "needs_token": self._sessions.needs_token,
            "now": self._clock.now(),
            "version": __version__,
            "done": DONE.get(request.query.get("done", "")),
            "path": request.path,
            "asked": request.query,
            **shown,
        }
        return aiohttp_jinja2.render_template(template, request, context)

    async def nothing(self, _request: web.Request) -> web.Response:
        raise NotFound("There is no page at this address.")

    async def static(self, request: web.Request) -> web.Response:
        """The style sheet, the script and the icon: nothing else, whatever the name says."""
        kind = STATIC.get(request.match_info["name"])
        if kind is None:
            raise NotFound("There is no such file.")
        answer = web.Response(body=(HERE / "static" / request.match_info["name"]).read_bytes(), content_type=kind)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


STATIC: Final[Mapping[str, str]] = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}

if TYPE_CHECKING:
    _Handler = Callable[[web.Request], Awaitable[web.Response]]


def _see_other(to: str | URL) -> web.Response:
    return web.Response(status=303, headers={"Location": str(to)})


def _said_step(step: timedelta) -> str:
    minutes = int(step.total_seconds() // 60)
    return f"{minutes} minutes" if minutes < 60 else f"{minutes // 60} hours"  # noqa: PLR2004
