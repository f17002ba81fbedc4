"""`runrecords doctor`: whether everything that the service needs is in order, a line each: ok, or what to do.

It works beside a running service or without one, writes nothing to the store, and asks Airtable and Apify a few things
once. Whatever it says has the secrets cut out.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.config import DEFAULT_PATH, check_destination, check_exposure, is_loopback_url, load_settings
from app.doctor.findings import CONFIGURATION, Diagnosis, Finding, Verdict, note, ok, problem
from app.doctor.machine import Instruments, of_disk, of_file, of_lock, of_service, of_sqlite, of_store
from app.doctor.outside import ask_airtable, ask_apify, of_apify, of_clock
from app.errors import ConfigError, StoreError
from app.logs import Redaction
from app.store.sqlite.examine import is_written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.config import Secrets, Settings


async def diagnose(config: Path | None, secrets: Secrets, instruments: Instruments | None = None) -> Diagnosis:
    """All checks. Never raises for what it finds."""
    try:
        settings = load_settings(config)
    except ConfigError as error:
        found = [problem(CONFIGURATION, line) for line in str(error).splitlines()]
    else:
        found = [
            *_configuration(config, settings, secrets),
            *_reaching_us(settings, secrets),
            *await _all_else(settings, secrets, instruments or Instruments()),
        ]
    clean = Redaction(secrets.all())
    return Diagnosis(tuple(Finding(one.name, one.verdict, clean.text(one.detail)) for one in found))


async def _all_else(settings: Settings, secrets: Secrets, instruments: Instruments) -> list[Finding]:
    """Airtable, Apify, the store and the machine."""
    path = Path(settings.store.path)
    file = of_file(path)
    running = of_lock(path)
    stored = await of_store(path, instruments.clock) if file.verdict is Verdict.OK else []
    airtable = await ask_airtable(settings, secrets, path if running.verdict is Verdict.OK else None, instruments.clock)
    apify = await ask_apify(settings, secrets)
    return [
        *airtable.findings,
        *of_apify(settings, apify),
        file,
        of_sqlite(instruments),
        running if running.verdict is not Verdict.OK else await of_service(settings),
        of_disk(path, instruments),
        of_clock(airtable, apify, instruments.clock),
        *stored,
    ]


# Configuration --------------------------------------------------------------------------------------------------


def _configuration(config: Path | None, settings: Settings, secrets: Secrets) -> Iterator[Finding]:
    flaws = []
    for check in (check_exposure, check_destination):
        try:
            check(settings, secrets)
        except ConfigError as error:
            flaws.append(problem(CONFIGURATION, str(error)))
    if not settings.airtable.base_id and _serves_sandbox(settings):
        flaws[-1] = note(
            CONFIGURATION,
            "no base is set, and the service on this store is 'serve --sandbox': it delivers to emulators, and needs "
            "none. For a real base stop it, set [airtable] base_id, AIRTABLE_API_KEY and another [store] path, "
            "and ask again",
        )
    if flaws:
        yield from flaws
        return
    airtable = settings.airtable
    yield ok(
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
            yield note("public_url", "[server] public_url is not set: ends of Apify runs are found by asking only")
        return
    flaw = flaw_of_public_url(url, apify_is_local=is_loopback_url(settings.apify.api_url))
    yield problem("public_url", f"[server] public_url {flaw}") if flaw else ok("public_url", "in form")
    missing = [
        name
        for name, values in (
            ("APIFY_WEBHOOK_SECRET", secrets.webhook_secrets),
            ("INTERNAL_API_TOKEN", secrets.internal_tokens),
        )
        if not values
    ]
    if missing and not is_loopback_url(url):
        yield problem("secrets", f"others can reach the service at public_url: set {' and '.join(missing)}")
    else:
        yield ok("secrets", "callers and webhooks need theirs")


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
