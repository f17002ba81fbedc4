"""The frame of every page: who may see it, where a form may come from, and the headers of each answer.

The sign-in is here too, and the files that pages are made with. Knows nothing of what a page shows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import aiohttp_jinja2
from aiohttp import web
from jinja2 import FileSystemLoader, StrictUndefined
from yarl import URL

from app import __version__
from app.errors import Forbidden, NotFound, Problem
from app.logs import get_logger
from app.web.guard import Bearer
from app.web.page_requests import page_of_ours, read_form
from app.web.session import Attempts, Session, Sessions, clean_name, is_form_of
from app.web.showing import FILTERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from app.clock import Clock

    _Handler = Callable[[web.Request], Awaitable[web.Response]]

log = get_logger(__name__)

HERE: Final = Path(__file__).parent

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

STATIC: Final[Mapping[str, str]] = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
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


class Frame:
    def __init__(self, sessions: Sessions, clock: Clock, public_url: str) -> None:
        self._sessions = sessions
        self._clock = clock
        self._public = urlsplit(public_url)
        self._attempts = Attempts(clock)
        self._this_machine = Bearer((), "INTERNAL_API_TOKEN")

    def routes(self) -> list[web.AbstractRouteDef]:
        """The sign-in, the files, and the answer where there is no page: they come last."""
        return [
            web.get("/page/sign-in", self._plain(self.ask_who)),
            web.post("/page/sign-in", self._plain(self.sign_in)),
            web.post("/page/sign-out", self.done(self.sign_out)),
            web.get("/page/static/{name}", self._plain(self.static)),
            web.get("/page/{rest:.*}", self._plain(self.nothing)),
        ]

    def address_of(self, request: web.Request) -> str:
        """How callers reach the service, as far as is known here."""
        return self._public.geturl() or f"{request.scheme}://{request.host}"

    # The sign-in

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
        answer = self.html(request, None, "sign_in.html", wanted=wanted, name=name, trouble=trouble)
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
        ours = {request.host} | ({self._public.netloc} if self._public.netloc else set())
        scheme, _, host = request.headers.get("Origin", "").partition("://")
        is_of_ours = scheme in {"http", "https"} and host in ours
        if not is_of_ours or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise Forbidden("This form does not come from this page.")

    # Around every handler

    def seen(self, show: Callable[[web.Request, Session], Awaitable[web.Response]]) -> _Handler:
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

    def done(self, do: Callable[[web.Request, Session, Mapping[str, str]], Awaitable[str]]) -> _Handler:
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
                answer = self.html(request, None, "problem.html", problem=problem)
                answer.set_status(problem.status)
            for name, value in HEADERS.items():
                answer.headers.setdefault(name, value)
            return answer

        return wrapped

    def html(self, request: web.Request, session: Session | None, template: str, **shown: object) -> web.Response:
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


def _see_other(to: str | URL) -> web.Response:
    return web.Response(status=303, headers={"Location": str(to)})
