"""`runrecords doctor`: whether everything that the service needs is in order, a line each: ok, or what to do.

It works beside a running service or without one, writes nothing to the store, and asks Airtable and Apify a few things
once. Whatever it says has the secrets cut out.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, ValidationError

from app.airtable import Airtable, AirtableAccess
from app.apify_client import AccountSeen, ApifyAccess, look_at_account
from app.clock import Clock, SystemClock
from app.config import DEFAULT_PATH, check_destination, check_exposure, is_loopback_url, load_settings
from app.errors import ConfigError, StoreError
from app.logs import Redaction
from app.policy.asking import Described, Identified, Listed
from app.policy.delivery import Denied
from app.policy.schema import schema_flaws
from app.store.sqlite.examine import calls_since, examine, has_wal_reset_bug, is_written, sqlite_version
from app.store.sqlite.opening import open_reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.config import Secrets, Settings
    from app.policy.asking import Failure, IdentifyAnswer
    from app.store.views import Counts

#: What the service asks of a token (Airtable's names).
NEEDED_SCOPES: Final = ("data.records:read", "data.records:write", "schema.bases:read")
MOST_SKEW_SECONDS: Final = 30.0
LEAST_FREE_BYTES: Final = 500 * 10**6
#: A message that waits longer than this waits for something that is broken.
MOST_PENDING_SECONDS: Final = 900.0
_LONGEST_CALL_SECONDS: Final = 10.0
#: Beside a running service its calls count into the same second: ours wait for one in which it sends nothing.
_QUIET_SECONDS: Final = 1.1
_LONGEST_WAIT_SECONDS: Final = 20.0
_A_LOOK: Final = 0.25


class Verdict(StrEnum):
    """`note`: no problem, or none that can be seen from here."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what to know or do about it."""

    name: str
    verdict: Verdict
    detail: str


def _ok(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.OK, detail)


def _note(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.NOTE, detail)


def _problem(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.PROBLEM, detail)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """2 where the configuration is wrong, 1 for any other problem, else 0."""
        wrong = {one.name for one in self.findings if one.verdict is Verdict.PROBLEM}
        return 2 if CONFIGURATION in wrong else int(bool(wrong))

    def to_json(self) -> str:
        shown = [{"name": one.name, "verdict": one.verdict, "detail": one.detail} for one in self.findings]
        return json.dumps({"ok": self.exit_code == 0, "findings": shown}, ensure_ascii=False)

    def rows(self) -> list[tuple[str, str, str]]:
        return [(one.name, one.verdict, one.detail) for one in self.findings]


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


@dataclass(frozen=True, slots=True)
class Instruments:
    """What it measures with; tests bring their own."""

    clock: Clock = field(default_factory=SystemClock)
    free_bytes: Callable[[Path], int] = _free_bytes
    has_wal_reset_bug: Callable[[], bool] = has_wal_reset_bug


CONFIGURATION: Final = "configuration"


async def diagnose(config: Path | None, secrets: Secrets, instruments: Instruments | None = None) -> Diagnosis:
    """All checks. Never raises for what it finds."""
    try:
        settings = load_settings(config)
    except ConfigError as error:
        found = [_problem(CONFIGURATION, line) for line in str(error).splitlines()]
    else:
        found = [
            *_configuration(config, settings, secrets),
            *_reaching_us(settings, secrets),
            *await _outside(settings, secrets, instruments or Instruments()),
        ]
    clean = Redaction(secrets.all())
    return Diagnosis(tuple(Finding(one.name, one.verdict, clean.text(one.detail)) for one in found))


# Configuration --------------------------------------------------------------------------------------------------


def _configuration(config: Path | None, settings: Settings, secrets: Secrets) -> Iterator[Finding]:
    flaws = []
    for check in (check_exposure, check_destination):
        try:
            check(settings, secrets)
        except ConfigError as error:
            flaws.append(_problem(CONFIGURATION, str(error)))
    if not settings.airtable.base_id and _serves_sandbox(settings):
        flaws[-1] = _note(
            CONFIGURATION,
            "no base is set, and the service on this store is 'serve --sandbox': it delivers to emulators, and needs "
            "none. For a real base stop it, set [airtable] base_id, AIRTABLE_API_KEY and another [store] path, "
            "and ask again",
        )
    if flaws:
        yield from flaws
        return
    airtable = settings.airtable
    yield _ok(
        CONFIGURATION,
        f"{config or DEFAULT_PATH} and the environment: base {airtable.base_id}, table {airtable.table!r}, "
        f"{len(settings.fields)} fields",
    )


def _serves_sandbox(settings: Settings) -> bool:
    """Whether a process writes the store, and the emulators have left their journal beside it."""
    try:
        return settings.sandbox_journal.exists() and is_written(Path(settings.store.path))
    except StoreError:
        return False


def _reaching_us(settings: Settings, secrets: Secrets) -> Iterator[Finding]:
    """How Apify reaches us, and what keeps others out. Only the form can be judged from here."""
    url = settings.server.public_url
    if not url:
        if secrets.apify_token and not is_loopback_url(settings.apify.api_url):
            yield _note("public_url", "[server] public_url is not set: ends of Apify runs are found by asking only")
        return
    flaw = flaw_of_public_url(url, apify_is_local=is_loopback_url(settings.apify.api_url))
    yield _problem("public_url", f"[server] public_url {flaw}") if flaw else _ok("public_url", "in form")
    missing = [
        name
        for name, values in (
            ("APIFY_WEBHOOK_SECRET", secrets.webhook_secrets),
            ("INTERNAL_API_TOKEN", secrets.internal_tokens),
        )
        if not values
    ]
    if missing and not is_loopback_url(url):
        yield _problem("secrets", f"others can reach the service at public_url: set {' and '.join(missing)}")
    else:
        yield _ok("secrets", "callers and webhooks need theirs")


def flaw_of_public_url(url: str, *, apify_is_local: bool) -> str | None:
    """Why Apify could not reach `<url>/webhooks/apify`, as far as the form tells. The URL itself is not repeated."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is not a URL: write https:// and the name that Apify reaches this service by"
    path = parts.path.rstrip("/")
    flaws = {
        "holds a user name or password: webhooks are let in by APIFY_WEBHOOK_SECRET, never by the URL": bool(
            parts.username or parts.password
        ),
        "has a ? or #: leave them out, the service adds what a webhook needs": bool(parts.query or parts.fragment),
        "has a path that does not belong there: the service adds /webhooks/apify itself": (
            "//" in path or path.endswith("/webhooks/apify")
        ),
        "has to begin with https://, because webhooks carry a secret": (
            parts.scheme != "https" and not (parts.scheme == "http" and apify_is_local)
        ),
        f"names {host!r}, which Apify cannot reach: give a public name": not apify_is_local and _is_private(host),
    }
    return next((flaw for flaw, is_so in flaws.items() if is_so), None)


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))


# Outside --------------------------------------------------------------------------------------------------------


async def _outside(settings: Settings, secrets: Secrets, instruments: Instruments) -> list[Finding]:
    """Airtable, Apify, the store and the machine."""
    path = Path(settings.store.path)
    file = _of_file(path)
    running = _running(path)
    stored = await _store(path, instruments.clock) if file.verdict is Verdict.OK else []
    airtable = await _airtable(settings, secrets, path if running.verdict is Verdict.OK else None, instruments.clock)
    apify = await _apify(settings, secrets)
    return [
        *airtable.findings,
        *_of_apify(settings, apify),
        file,
        _of_sqlite(instruments),
        running if running.verdict is not Verdict.OK else await _service(settings),
        _disk(path, instruments),
        _clock(airtable, apify, instruments.clock),
        *stored,
    ]


@dataclass(frozen=True, slots=True)
class _Heard:
    """What came of asking Airtable; `date` is its clock at `at`."""

    findings: list[Finding]
    date: datetime | None = None
    at: datetime | None = None


async def _airtable(settings: Settings, secrets: Secrets, busy_store: Path | None, clock: Clock) -> _Heard:
    """`busy_store` is that of a running service, whose calls count into the same second as ours."""
    if not (secrets.airtable_api_key and settings.airtable.base_id):
        return _Heard([_note("Airtable", "not asked: the configuration names no base, or no token for it")])
    airtable = Airtable(
        AirtableAccess(
            api_key=secrets.airtable_api_key,
            endpoint_url=settings.airtable.endpoint_url,
            base_id=settings.airtable.base_id,
            table=settings.airtable.table,
            timeout_seconds=min(settings.airtable.timeout_seconds, _LONGEST_CALL_SECONDS),
        ),
        settings.registry(),
    )
    try:
        identity = await airtable.identify()
        at = clock.now()
        findings = [_of_token(identity)]
        if not isinstance(identity, Identified):
            return _Heard([*findings, _note("Airtable base", "not asked: the token comes first")])
        if busy_store is not None and not await _is_quiet(busy_store, clock):
            busy = "not asked: the running service uses all of its rate, so it is reachable; see its log"
            return _Heard([*findings, _note("Airtable base", busy)], identity.date, at)
        findings += [await _of_base(settings, airtable), *await _of_schema(settings, airtable)]
        return _Heard(findings, identity.date, at)
    finally:
        airtable.close()


async def _is_quiet(path: Path, clock: Clock) -> bool:
    """Wait for a second in which the running service sends nothing to the base."""
    end = clock.monotonic() + _LONGEST_WAIT_SECONDS
    while calls_since(path, clock.now() - timedelta(seconds=_QUIET_SECONDS)):
        if clock.monotonic() > end:
            return False
        await clock.sleep(_A_LOOK)
    return True


def _of_token(answer: IdentifyAnswer) -> Finding:
    name = "Airtable token"
    match answer:
        case Identified(user_id, None):
            return _ok(
                name,
                f"valid ({user_id}). Airtable names the scopes of OAuth tokens only: reading and describing are tried "
                f"below; that it has {NEEDED_SCOPES[1]} shows with the first delivery",
            )
        case Identified(user_id, scopes):
            missing = [scope for scope in NEEDED_SCOPES if scope not in (scopes or ())]
            if missing:
                return _problem(name, f"lacks {' and '.join(missing)}: add them at https://airtable.com/create/tokens")
            return _ok(name, f"valid ({user_id}), with {', '.join(NEEDED_SCOPES)}")
        case Denied(401 | 403 as status, cause):
            return _problem(name, f"refused ({status} {cause}): set AIRTABLE_API_KEY to a token that is in force")
        case _:
            return _problem(name, f"Airtable cannot be asked at [airtable] endpoint_url: {answer.cause}")


async def _of_base(settings: Settings, airtable: Airtable) -> Finding:
    name = "Airtable base"
    asked = settings.airtable
    answer = await airtable.peek()
    if isinstance(answer, Listed):
        return _ok(name, f"table {asked.table!r} of base {asked.base_id} can be read")
    if isinstance(answer, Denied):
        return _problem(
            name,
            f"table {asked.table!r} of base {asked.base_id} cannot be read ({answer.cause}): correct [airtable] "
            "base_id and table, and see that the token has this base and data.records:read",
        )
    return _problem(name, answer.cause)


async def _of_schema(settings: Settings, airtable: Airtable) -> list[Finding]:
    name = "Airtable columns"
    answer = await airtable.describe()
    if not isinstance(answer, Described):
        return [_problem(name, _not_described(answer))]
    registry = settings.registry()
    flaws = schema_flaws(registry, answer.columns, table=settings.airtable.table, tables=answer.tables)
    if not flaws:
        return [_ok(name, f"all {len(registry)} fields of the configuration fit")]
    return [_problem(name, flaw.detail) for flaw in flaws]


def _not_described(answer: Failure) -> str:
    advice = ": give the token this base and schema.bases:read" if isinstance(answer, Denied) else ""
    return f"not compared with [fields.*], because the base cannot be described ({answer.cause}){advice}"


async def _apify(settings: Settings, secrets: Secrets) -> AccountSeen | None:
    if not secrets.apify_token:
        return None
    access = ApifyAccess(
        token=secrets.apify_token,
        api_url=settings.apify.api_url,
        public_url="",
        webhook_secret="",
        timeout_seconds=_LONGEST_CALL_SECONDS,
    )
    return await look_at_account(access, settings.apify.actor_id)


def _of_apify(settings: Settings, seen: AccountSeen | None) -> Iterator[Finding]:
    if seen is None:
        yield _note("Apify token", "APIFY_TOKEN is not set: batches wait until it is")
        return
    if seen.token_trouble is not None:
        yield _problem("Apify token", f"{seen.token_trouble}: check APIFY_TOKEN, and [apify] api_url")
        yield _note("Apify actor", "not asked: the token comes first")
        return
    yield _ok("Apify token", f"valid ({seen.user})")
    if not settings.apify.actor_id:
        yield _note("Apify actor", "[apify] actor_id is not set: each batch has to name its own")
    elif seen.actor_trouble is not None:
        yield _problem("Apify actor", f"{seen.actor_trouble}: correct [apify] actor_id")
    else:
        yield _ok("Apify actor", f"{settings.apify.actor_id} is there")


# The store and the machine --------------------------------------------------------------------------------------


def _of_sqlite(instruments: Instruments) -> Finding:
    name, version = "SQLite", sqlite_version()
    if instruments.has_wal_reset_bug():
        return _note(
            name,
            f"{version} can corrupt a database that two connections write at once (the WAL-reset bug, mended in "
            "3.51.3, 3.50.7 and 3.44.6). This service has one writing connection, which avoids it: let no other "
            "program write",
        )
    return _ok(name, f"{version} is free of the WAL-reset bug")


def _of_file(path: Path) -> Finding:
    name = "database"
    if not path.exists():
        return _note(name, f"there is none at {path} yet: the first start makes it")
    seen = examine(path)
    if seen.damage is not None:
        return _problem(
            name, f"{path} is damaged ({seen.damage}): stop the service, keep a copy of the file, and restore a backup"
        )
    if seen.refusal is not None:
        return _problem(name, seen.refusal)
    if seen.missing:
        return _note(
            name, f"{path} is sound, and older: the next start (or 'migrate') applies {', '.join(seen.missing)}"
        )
    return _ok(name, f"{path} is sound, schema version {seen.version}")


_SERVICE: Final = "service"


def _running(path: Path) -> Finding:
    try:
        running = is_written(path)
    except StoreError as error:
        return _problem(_SERVICE, str(error))
    return _ok(_SERVICE, "one process writes the store") if running else _note(_SERVICE, "none runs on this store")


class _Readiness(BaseModel):
    status: str
    reasons: list[str]


async def _service(settings: Settings) -> Finding:
    """What the process that writes the store says of itself."""
    url = f"{settings.server.local_url}/readyz"
    timeout = aiohttp.ClientTimeout(total=_LONGEST_CALL_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as answer:
            said = _Readiness.model_validate_json(await answer.read())
    except (aiohttp.ClientError, TimeoutError, ValidationError):
        return _problem(
            _SERVICE,
            f"a process writes the store, and does not answer at {url}: is [server] port its port, or does it hang?",
        )
    if said.status == "ready":
        return _ok(_SERVICE, "one process writes the store, and is ready")
    return _problem(_SERVICE, f"it runs and is {said.status}: {'; '.join(said.reasons)}")


def _disk(path: Path, instruments: Instruments) -> Finding:
    name = "free disk"
    folder = next(one for one in path.absolute().parents if one.exists())
    free = instruments.free_bytes(folder)
    shown = f"{free / 10**9:.1f} GB at {folder}"
    if free < LEAST_FREE_BYTES:
        return _problem(name, f"only {shown}: make room, because nothing can be accepted once it is full")
    return _ok(name, shown)


def _clock(airtable: _Heard, apify: AccountSeen | None, clock: Clock) -> Finding:
    """Ours against theirs. A `Date` has whole seconds, and the answer took its time: neither comes near the limit."""
    name = "clock"
    if airtable.date is not None and airtable.at is not None:
        whose, skew = "Airtable's", (airtable.at - airtable.date).total_seconds()
    elif apify is not None and apify.date is not None:
        whose, skew = "Apify's", (clock.now() - apify.date).total_seconds()
    else:
        return _note(name, "could not be judged: neither Airtable nor Apify answered with its time")
    if abs(skew) > MOST_SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        return _problem(name, f"{abs(skew):,.0f} s {side} {whose}: let this machine keep its time by NTP")
    return _ok(name, f"within {MOST_SKEW_SECONDS:.0f} s of {whose}")


async def _store(path: Path, clock: Clock) -> list[Finding]:
    """What waits and what is open."""
    async with open_reading(path) as store:
        counts = await store.counts(clock.now())
    return [_of_pending(counts), _of_dead(counts), _of_errors(counts)]


def _of_pending(counts: Counts) -> Finding:
    name = "waiting messages"
    age = counts.oldest_pending_seconds
    if age is None:
        return _ok(name, "none")
    shown = f"{counts.pending}, the oldest for {timedelta(seconds=round(age))}"
    if age > MOST_PENDING_SECONDS:
        return _problem(name, f"{shown}: 'outbox list --state pending' says what each waits for")
    return _ok(name, shown)


def _of_dead(counts: Counts) -> Finding:
    name = "dead messages"
    if counts.dead:
        return _problem(name, f"{counts.dead}: 'outbox list --state dead' says why; mend that, then 'outbox retry'")
    return _ok(name, "none")


def _of_errors(counts: Counts) -> Finding:
    name = "open errors"
    if counts.open_errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.open_errors.items()))
        return _problem(name, f"{kinds}: 'errors list --state open' says what to do")
    return _ok(name, "none")
