"""Both emulators inside this process, and the settings that point the service at them instead of the real thing."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from app.errors import StoreError
from app.fields import FieldType
from app.sandbox.airtable import AirtableSandbox
from app.sandbox.airtable_schema import Ids, schema_from_columns
from app.sandbox.apify import TOKEN as APIFY_TOKEN
from app.sandbox.apify import ApifySandbox
from app.sandbox.apify_account import HARVESTER
from app.sandbox.apify_server import ApifyServer
from app.sandbox.wire import WireServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from app.config import Secrets, Settings
    from app.model import Json

#: Not an id that Airtable gives out: a store that was filled here refuses to deliver anywhere else, and the reverse.
BASE_ID: Final = "appSandbox0000000"
AIRTABLE_TOKEN: Final = "sandbox"  # noqa: S105  # opens nothing but the emulator in this process

_COLUMN_TYPES: Final[Mapping[FieldType, Json]] = {
    FieldType.TEXT: "singleLineText",
    FieldType.LOG: "multilineText",
    FieldType.INTEGER: "number",
    FieldType.DECIMAL: "currency",
    FieldType.DATETIME: "dateTime",
}
#: Columns that the real table computes; they are there so that writing one would be refused here too.
_FORMULAS: Final = ("Duration", "Profile Scoring Success Rate", "Post Scoring Success Rate", "Success Rate")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The emulators, and settings and secrets with which the service talks to them and to nothing else."""

    airtable: AirtableSandbox
    airtable_server: WireServer
    apify: ApifyServer
    settings: Settings
    secrets: Secrets


@contextlib.asynccontextmanager
async def embedded(settings: Settings, secrets: Secrets, *, journal: Path | None = None) -> AsyncIterator[Sandbox]:
    """The emulators on loopback for as long as the block runs; Airtable's records are kept in `journal`.

    Raises:
        StoreError: the journal cannot be used.
    """
    airtable = _airtable(settings, journal)
    apify_sandbox = ApifySandbox(now=lambda: datetime.now(UTC), random=random.SystemRandom())
    async with WireServer(airtable) as airtable_server, ApifyServer(apify_sandbox) as apify:
        to_airtable = {"endpoint_url": airtable_server.url, "base_id": BASE_ID}
        to_apify = {"api_url": apify.url, "actor_id": settings.apify.actor_id or HARVESTER.id}
        pointed = settings.model_copy(
            update={
                "airtable": settings.airtable.model_copy(update=to_airtable),
                "apify": settings.apify.model_copy(update=to_apify),
            }
        )
        tokens = replace(secrets, airtable_api_key=AIRTABLE_TOKEN, apify_token=APIFY_TOKEN)
        yield Sandbox(airtable, airtable_server, apify, pointed, tokens)


def _airtable(settings: Settings, journal: Path | None) -> AirtableSandbox:
    ids = Ids(random.SystemRandom())
    schema = schema_from_columns(settings.airtable.table, _columns(settings), ids, base_id=BASE_ID)
    try:
        return AirtableSandbox(schema, token=AIRTABLE_TOKEN, ids=ids, journal=journal)
    except OSError as error:
        raise StoreError(f"{journal} cannot be opened ({error.strerror}): its folder has to be writable") from error
    except ValueError as error:
        raise StoreError(f"{error}: put it back as it was, or begin anew without it and without the store") from error


def _columns(settings: Settings) -> dict[str, Json]:
    columns: dict[str, Json] = {
        one.column: {"singleSelect": list(one.options)} if one.type is FieldType.SELECT else _COLUMN_TYPES[one.type]
        for one in settings.fields.values()
    }
    return {**columns, **dict.fromkeys(_FORMULAS, "formula")}
