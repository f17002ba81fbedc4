"""Airtable and Apify: tokens, scopes, base, columns and actor, each asked once, and their clocks beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from app.airtable import Airtable, AirtableAccess
from app.apify_account import AccountSeen, look_at_account
from app.apify_client import ApifyAccess
from app.doctor.findings import Finding, note, ok, problem
from app.policy.asking import Described, Identified, Listed
from app.policy.delivery import Denied
from app.policy.schema import schema_flaws
from app.store.sqlite.examine import calls_since

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.clock import Clock
    from app.config import Secrets, Settings
    from app.policy.asking import Failure, IdentifyAnswer

#: What the service asks of a token (Airtable's names).
NEEDED_SCOPES: Final = ("data.records:read", "data.records:write", "schema.bases:read")
MOST_SKEW_SECONDS: Final = 30.0
_LONGEST_CALL_SECONDS: Final = 10.0
#: Beside a running service its calls count into the same second: ours wait for one in which it sends nothing.
_QUIET_SECONDS: Final = 1.1
_LONGEST_WAIT_SECONDS: Final = 20.0
_A_LOOK: Final = 0.25


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of asking Airtable; `date` is its clock at `at`."""

    findings: list[Finding]
    date: datetime | None = None
    at: datetime | None = None


async def ask_airtable(settings: Settings, secrets: Secrets, busy_store: Path | None, clock: Clock) -> Heard:
    """`busy_store` is that of a running service, whose calls count into the same second as ours."""
    if not (secrets.airtable_api_key and settings.airtable.base_id):
        return Heard([note("Airtable", "not asked: the configuration names no base, or no token for it")])
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
            return Heard([*findings, note("Airtable base", "not asked: the token comes first")])
        if busy_store is not None and not await _is_quiet(busy_store, clock):
            busy = "not asked: the running service uses all of its rate, so it is reachable; see its log"
            return Heard([*findings, note("Airtable base", busy)], identity.date, at)
        findings += [await _of_base(settings, airtable), *await _of_schema(settings, airtable)]
        return Heard(findings, identity.date, at)
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
            return ok(
                name,
                f"valid ({user_id}). Airtable names the scopes of OAuth tokens only: reading and describing are tried "
                f"below; that it has {NEEDED_SCOPES[1]} shows with the first delivery",
            )
        case Identified(user_id, scopes):
            missing = [scope for scope in NEEDED_SCOPES if scope not in (scopes or ())]
            if missing:
                return problem(name, f"lacks {' and '.join(missing)}: add them at https://airtable.com/create/tokens")
            return ok(name, f"valid ({user_id}), with {', '.join(NEEDED_SCOPES)}")
        case Denied(401 | 403 as status, cause):
            return problem(name, f"refused ({status} {cause}): set AIRTABLE_API_KEY to a token that is in force")
        case _:
            return problem(name, f"Airtable cannot be asked at [airtable] endpoint_url: {answer.cause}")


async def _of_base(settings: Settings, airtable: Airtable) -> Finding:
    name = "Airtable base"
    asked = settings.airtable
    answer = await airtable.peek()
    if isinstance(answer, Listed):
        return ok(name, f"table {asked.table!r} of base {asked.base_id} can be read")
    if isinstance(answer, Denied):
        return problem(
            name,
            f"table {asked.table!r} of base {asked.base_id} cannot be read ({answer.cause}): correct [airtable] "
            "base_id and table, and see that the token has this base and data.records:read",
        )
    return problem(name, answer.cause)


async def _of_schema(settings: Settings, airtable: Airtable) -> list[Finding]:
    name = "Airtable columns"
    answer = await airtable.describe()
    if not isinstance(answer, Described):
        return [problem(name, _not_described(answer))]
    registry = settings.registry()
    flaws = schema_flaws(registry, answer.columns, table=settings.airtable.table, tables=answer.tables)
    if not flaws:
        return [ok(name, f"all {len(registry)} fields of the configuration fit")]
    return [problem(name, flaw.detail) for flaw in flaws]


def _not_described(answer: Failure) -> str:
    advice = ": give the token this base and schema.bases:read" if isinstance(answer, Denied) else ""
    return f"not compared with [fields.*], because the base cannot be described ({answer.cause}){advice}"


async def ask_apify(settings: Settings, secrets: Secrets) -> AccountSeen | None:
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


def of_apify(settings: Settings, seen: AccountSeen | None) -> Iterator[Finding]:
    if seen is None:
        yield note("Apify token", "APIFY_TOKEN is not set: batches wait until it is")
        return
    if seen.token_trouble is not None:
        yield problem("Apify token", f"{seen.token_trouble}: check APIFY_TOKEN, and [apify] api_url")
        yield note("Apify actor", "not asked: the token comes first")
        return
    yield ok("Apify token", f"valid ({seen.user})")
    if not settings.apify.actor_id:
        yield note("Apify actor", "[apify] actor_id is not set: each batch has to name its own")
    elif seen.actor_trouble is not None:
        yield problem("Apify actor", f"{seen.actor_trouble}: correct [apify] actor_id")
    else:
        yield ok("Apify actor", f"{settings.apify.actor_id} is there")


def of_clock(airtable: Heard, apify: AccountSeen | None, clock: Clock) -> Finding:
    """Ours against theirs. A `Date` has whole seconds, and the answer took its time: neither comes near the limit."""
    name = "clock"
    if airtable.date is not None and airtable.at is not None:
        whose, skew = "Airtable's", (airtable.at - airtable.date).total_seconds()
    elif apify is not None and apify.date is not None:
        whose, skew = "Apify's", (clock.now() - apify.date).total_seconds()
    else:
        return note(name, "could not be judged: neither Airtable nor Apify answered with its time")
    if abs(skew) > MOST_SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        return problem(name, f"{abs(skew):,.0f} s {side} {whose}: let this machine keep its time by NTP")
    return ok(name, f"within {MOST_SKEW_SECONDS:.0f} s of {whose}")
