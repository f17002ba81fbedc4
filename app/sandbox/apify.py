"""The Apify sandbox: a backend that answers `/v2` as Apify does.

It reads requests and words answers; what they do to the account is `apify_account`'s. It must not know who carries
its requests. `waitForFinish` is answered at once, with the run as it is: a backend does not wait, clients ask again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from app.sandbox import apify_answers as answers
from app.sandbox.apify_account import HARVESTER, ApifyAccount, Limits, RunRequest, Timing
from app.sandbox.apify_answers import Actor, ApiError, not_found
from app.sandbox.apify_runs import RunOptions, SandboxRun, harvest
from app.sandbox.apify_webhooks import WebhookRefusedError, decode_webhooks
from app.sandbox.messages import WireRequest, WireResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from random import Random

    from app.model import Json
    from app.sandbox.apify_runs import Refusal, Script

TOKEN = "apify_api_sandbox"  # noqa: S105 - opens nothing but a sandbox
#: Base64 of an empty array.
_NO_WEBHOOKS = "W10="


class ApifySandbox(ApifyAccount):
    """One account behind Apify's API: call it with a request."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        random: Random,
        token: str = TOKEN,
        actors: Sequence[Actor] = (HARVESTER,),
        script: Script = harvest,
        refuses: Refusal | None = None,
        limits: Limits | None = None,
        timing: Timing | None = None,
    ) -> None:
        super().__init__(
            now=now,
            random=random,
            actors=actors,
            script=script,
            refuses=refuses,
            limits=limits,
            timing=timing,
        )
        self.token = token
        self._recent: dict[str, deque[datetime]] = {}

    def __call__(self, request: WireRequest, /) -> WireResponse:
        self.tick()
        try:
            self._authorize(request)
            version, *path = request.segments or ("",)
            if version != "v2" or not path:
                raise _no_endpoint()
            if not self._within_rate(request.method, path):
                return answers.rate_limited()
            answer = self._route(request, path)
        except ApiError as error:
            answer = error.as_answer()
        return replace(answer, body=b"") if request.method == "HEAD" else answer

    def _authorize(self, request: WireRequest) -> None:
        if request.bearer is None:
            raise ApiError(401, "token-not-provided", "Authentication token was not provided")
        if request.bearer != self.token:
            raise ApiError(401, "user-or-token-not-found", "User was not found or authentication token is not valid")

    def _within_rate(self, method: str, path: Sequence[str]) -> bool:
        """Count a request against the limit of its resource, in the last second."""
        starts = method == "POST" and path[-1] == "runs"
        limit = self.limits.starts_per_second if starts else self.limits.requests_per_second
        if limit is None:
            return True
        recent = self._recent.setdefault("starts" if starts else "/".join(path[:2]), deque())
        now = self.now()
        while recent and recent[0] <= now - timedelta(seconds=1):
            recent.popleft()
        if len(recent) >= limit:
            return False
        recent.append(now)
        return True

    def _route(  # noqa: C901, PLR0911, PLR0912 - a table of routes, a line or two each
        self, request: WireRequest, path: Sequence[str]
    ) -> WireResponse:
        method = "GET" if request.method == "HEAD" else request.method
        match method, *path:
            case ["POST", "acts" | "actors", actor, "runs"]:
                return self._run_answer(self.start(self._asked(request, self._actor(actor))), 201)
            case ["GET", "acts" | "actors", actor]:
                found = self._actor(actor)
                own = [run for run in self.runs if run.actor_id == found.id]
                return answers.data(answers.actor_object(found, self.user, self.born, own))
            case ["GET", "acts" | "actors", actor, "runs"]:
                return self._list(request, self._actor(actor))
            case ["GET", "actor-runs"]:
                return self._list(request, None)
            case ["GET", "actor-runs", run]:
                return self._run_answer(self._find_run(run))
            case ["DELETE", "actor-runs", run]:
                self.delete_run(self._find_run(run).id)
                return WireResponse(204)
            case ["POST", "actor-runs", run, "abort"]:
                self.abort(self._find_run(run).id, gracefully=answers.flag(request, "gracefully"))
                return self._run_answer(self._find_run(run))
            case ["POST", "actor-runs", run, "resurrect"]:
                options = answers.run_options(request, self._find_run(run).options)
                self.resurrect(run, options)
                return self._run_answer(self._find_run(run))
            case ["GET", "actor-runs", run, "log"] | ["GET", "logs", run]:
                return answers.run_log(self._find_run(run))
            case ["GET", "actor-runs", run, "dataset", *rest]:
                return self._dataset(request, self._find_run(run), rest)
            case ["GET", "actor-runs", run, "key-value-store", *rest]:
                return self._store(request, self._find_run(run), rest)
            case ["GET", "datasets", dataset, *rest]:
                return self._dataset(request, self._owner("Dataset", dataset), rest)
            case ["GET", "key-value-stores", store, *rest]:
                return self._store(request, self._owner("Key-value Store", store), rest)
            case ["GET", "users", "me"]:
                limits = self.limits
                return answers.data(answers.user_object(self.user, limits.concurrent_runs, limits.memory_mbytes))
            case _:
                raise _no_endpoint()

    def _asked(self, request: WireRequest, actor: Actor) -> RunRequest:
        body = answers.body_of(request)
        content_type = request.headers.get("Content-Type", "application/json; charset=utf-8")
        try:
            webhooks = decode_webhooks(request.param("webhooks") or _NO_WEBHOOKS, self.new_id)
        except WebhookRefusedError as error:
            raise ApiError(400, "invalid-parameter", str(error)) from error
        return RunRequest(
            actor=actor,
            body=body,
            content_type=content_type,
            value=answers.input_value(body, content_type),
            options=answers.run_options(request, RunOptions()),
            webhooks=webhooks,
            user_agent=request.headers.get("User-Agent", ""),
        )

    def _list(self, request: WireRequest, actor: Actor | None) -> WireResponse:
        offset = answers.number(request, "offset") or 0
        limit = min(answers.number(request, "limit") or answers.MAX_LISTED, answers.MAX_LISTED)
        statuses = {status for status in (request.param("status") or "").split(",") if status}
        after, before = answers.moment(request, "startedAfter"), answers.moment(request, "startedBefore")
        shown_by = self.now() - timedelta(seconds=self.timing.listing_lag)
        matching = [
            run
            for run in self.runs
            if (actor is None or run.actor_id == actor.id)
            and (not statuses or run.status in statuses)
            and (after is None or run.started_at >= after)
            and (before is None or run.started_at <= before)
            and run.started_at <= shown_by
        ]
        if answers.flag(request, "desc"):
            matching.reverse()
        now, settles = self.now(), timedelta(seconds=self.timing.settle)
        items: list[Json] = [run.as_list_item(now, settles) for run in matching[offset : offset + limit]]
        return answers.page_of_runs(request, matching, items, offset, limit)

    def _dataset(self, request: WireRequest, run: SandboxRun, rest: Sequence[str]) -> WireResponse:
        count = run.dataset.item_count(self.now(), timedelta(seconds=self.timing.item_lag))
        match rest:
            case []:
                return answers.data(answers.dataset_object(run, count))
            case ["items"]:
                return answers.dataset_items(request, run.dataset, count)
            case _:
                raise _no_endpoint()

    def _store(self, request: WireRequest, run: SandboxRun, rest: Sequence[str]) -> WireResponse:
        match rest:
            case []:
                return answers.data(answers.store_object(run))
            case ["keys"]:
                url = f"https://api.apify.com/v2/key-value-stores/{run.store_id}/records/INPUT"
                return answers.data(answers.input_key(run, url))
            case ["records", "INPUT"] if run.input_body:
                return answers.input_record(request, run)
            case ["records", _]:
                raise not_found("Record")
            case _:
                raise _no_endpoint()

    def _actor(self, text: str) -> Actor:
        for actor in self.actors:
            if actor.is_named(text):
                return actor
        raise not_found("Actor")

    def _find_run(self, run_id: str) -> SandboxRun:
        run = self._runs.get(run_id)
        if run is None:
            raise not_found("Actor run")
        return run

    def _owner(self, what: str, storage_id: str) -> SandboxRun:
        run = self._owners.get(storage_id)
        if run is None:
            raise not_found(what)
        return run

    def _run_answer(self, run: SandboxRun, status: int = 200) -> WireResponse:
        return answers.data(run.as_object(self.now(), timedelta(seconds=self.timing.settle)), status)


def _no_endpoint() -> ApiError:
    return ApiError(404, "page-not-found", "There is no API endpoint at this URL")
