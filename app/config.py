"""Settings: `config.toml`, overlaid by `RUNRECORDS_<SECTION>__<KEY>`; secrets from the environment only.

Every key has a working default, so that a file need only say what differs. What is wrong is said all at once.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from app import fields
from app.errors import ConfigError, did_you_mean
from app.fields import REQUIRED, FieldType, Registry
from app.policy.delivery import RetryRules
from app.policy.harvest import HarvestRules
from app.policy.pace import PauseRules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

ENV_PREFIX: Final = "RUNRECORDS_"
DEFAULT_PATH: Final = "config.toml"

_A_YEAR: Final = 366 * 86_400
Seconds = Annotated[float, Field(gt=0, le=_A_YEAR)]
Count = Annotated[int, Field(gt=0)]
SecondsOrNone = Annotated[float, Field(ge=0, le=_A_YEAR)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    public_url: str = ""
    max_body_bytes: Count = 1_048_576

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def local_url(self) -> str:
        """Where commands on this machine reach the service, if it runs."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class StoreSettings(Section):
    path: str = "data/runrecords.db"


class AirtableSettings(Section):
    endpoint_url: str = "https://api.airtable.com"
    base_id: Annotated[str, Field(pattern=r"^(app[A-Za-z0-9]+)?$")] = ""
    table: str = "Client Run Results"
    requests_per_second: Annotated[int, Field(ge=1, le=50)] = 5
    timeout_seconds: Seconds = 30.0
    monthly_call_budget: Annotated[int, Field(ge=0)] = 0
    linger_seconds: SecondsOrNone = 0.0

    @field_validator("endpoint_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return _checked_url(url)


class ApifySettings(Section):
    api_url: str = "https://api.apify.com"
    actor_id: str = ""
    max_concurrent_runs: Count = 8
    poll_interval_seconds: Seconds = 60.0
    look_after_seconds: Seconds = 60.0
    settle_seconds: SecondsOrNone = 12.0

    @field_validator("api_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return _checked_url(url)


class SyncSettings(Section):
    max_attempts: Count = 100
    backoff_base_seconds: Seconds = 1.0
    backoff_max_seconds: Seconds = 900.0
    rate_limit_pause_seconds: Seconds = 30.0
    quota_pause_seconds: Seconds = 3600.0
    shutdown_seconds: Seconds = 20.0


class ConsistencySettings(Section):
    interval_seconds: SecondsOrNone = 21_600.0
    window_days: Annotated[int, Field(ge=1, le=3650)] = 14
    grace_seconds: SecondsOrNone = 300.0


class RetentionSettings(Section):
    delivered_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    idempotency_days: Annotated[int, Field(ge=0, le=36_500)] = 30


class FieldSettings(Section):
    column: Annotated[str, Field(min_length=1)]
    type: FieldType
    options: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("holds a password: secrets stand in the environment only")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("is not an http or https URL")
    return url.rstrip("/")


def _text(column: str) -> FieldSettings:
    return FieldSettings(column=column, type=FieldType.TEXT)


def _log(column: str) -> FieldSettings:
    return FieldSettings(column=column, type=FieldType.LOG)


def _integer(column: str) -> FieldSettings:
    return FieldSettings(column=column, type=FieldType.INTEGER)


def _decimal(column: str) -> FieldSettings:
    return FieldSettings(column=column, type=FieldType.DECIMAL)


def _datetime(column: str) -> FieldSettings:
    return FieldSettings(column=column, type=FieldType.DATETIME)


STATUSES: Final = ("Running", "Completed", "Failed", "No Leads To Score", "Completed with Errors")

#: The columns that client run records live in; formula columns are not among them, because they are never written.
DEFAULT_FIELDS: Final[Mapping[str, FieldSettings]] = {
    "run_id": _text("Run ID"),
    "client_id": _text("Client ID"),
    "client_name": _text("Client Name"),
    "status": FieldSettings(column="Status", type=FieldType.SELECT, options=STATUSES),
    "start_time": _datetime("Start Time"),
    "end_time": _datetime("End Time"),
    "progress_log": _log("Progress Log"),
    "system_notes": _log("System Notes"),
    "error_details": _log("Error Details"),
    "profiles_submitted": _integer("Profiles Submitted for Post Harvesting"),
    "posts_harvested": _integer("Total Posts Harvested"),
    "apify_run_ids": _text("Apify Run ID"),
    "apify_status": _text("Apify Status"),
    "apify_api_costs": _decimal("Apify API Costs"),
    "last_webhook": _datetime("Last Webhook"),
    "profiles_examined": _integer("Profiles Examined for Scoring"),
    "profiles_scored": _integer("Profiles Successfully Scored"),
    "profile_scoring_tokens": _integer("Profile Scoring Tokens"),
    "posts_examined": _integer("Posts Examined for Scoring"),
    "posts_scored": _integer("Posts Successfully Scored"),
    "post_scoring_tokens": _integer("Post Scoring Tokens"),
    "total_tokens_used": _integer("Total Tokens Used"),
    "total_api_cost": _decimal("Total API Cost"),
}


class Settings(BaseSettings):
    """All of `config.toml`; the environment wins over what the file says."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=False
    )

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    airtable: AirtableSettings = AirtableSettings()
    apify: ApifySettings = ApifySettings()
    sync: SyncSettings = SyncSettings()
    consistency: ConsistencySettings = ConsistencySettings()
    retention: RetentionSettings = RetentionSettings()
    fields: dict[str, FieldSettings] = Field(default_factory=lambda: dict(DEFAULT_FIELDS))

    @property
    def sandbox_journal(self) -> Path:
        """Where the emulated Airtable of `serve --sandbox` keeps its records: beside the store."""
        return Path(f"{self.store.path}.sandbox-airtable.jsonl")

    def registry(self) -> Registry:
        return Registry([fields.Field(name, one.column, one.type, one.options) for name, one in self.fields.items()])

    def retry_rules(self) -> RetryRules:
        sync = self.sync
        return RetryRules(sync.max_attempts, sync.backoff_base_seconds, sync.backoff_max_seconds)

    def pause_rules(self) -> PauseRules:
        return PauseRules(self.sync.rate_limit_pause_seconds, self.sync.quota_pause_seconds)

    def harvest_rules(self) -> HarvestRules:
        apify = self.apify
        return HarvestRules(
            max_concurrent_runs=apify.max_concurrent_runs,
            poll_interval_seconds=apify.poll_interval_seconds,
            look_after_seconds=apify.look_after_seconds,
            settle_seconds=apify.settle_seconds,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What must appear nowhere. Two values at once where callers rotate theirs."""

    airtable_api_key: str = ""
    apify_token: str = ""
    webhook_secrets: tuple[str, ...] = ()
    internal_tokens: tuple[str, ...] = ()

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> Secrets:
        """What is set there, without white space around it.

        Raises:
            ConfigError: a value could not be sent in a header, or there are too many; the variable is named only.
        """
        return Secrets(
            airtable_api_key=_secret("AIRTABLE_API_KEY", environment.get("AIRTABLE_API_KEY", "")),
            apify_token=_secret("APIFY_TOKEN", environment.get("APIFY_TOKEN", "")),
            webhook_secrets=_rotating("APIFY_WEBHOOK_SECRET", environment),
            internal_tokens=_rotating("INTERNAL_API_TOKEN", environment),
        )

    def all(self) -> tuple[str, ...]:
        given = (self.airtable_api_key, self.apify_token, *self.webhook_secrets, *self.internal_tokens)
        return tuple(secret for secret in given if secret)


_MOST_SECRETS: Final = 2


_SENDABLE: Final = re.compile(r"[!-~]*")


def _secret(name: str, value: str) -> str:
    value = value.strip()
    if not _SENDABLE.fullmatch(value):
        raise ConfigError(f"{name} holds white space, control or non-ASCII characters: see that it was pasted whole")
    return value


def _rotating(name: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    values = tuple(_secret(name, value) for value in environment.get(name, "").split(",") if value.strip())
    if len(values) > _MOST_SECRETS:
        raise ConfigError(f"{name} holds {len(values)} values: at most two, comma-separated, while one is rotated")
    return values


def load_settings(path: Path | None = None) -> Settings:
    """Settings from `path`, or from `config.toml` here if there is one, under the environment.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown or its value impossible; every flaw is named.
    """
    given = _read_toml(path)
    flaws = _unknown_sections_of_environment(os.environ)
    try:
        settings = _settings_over(given)
    except ValidationError as error:
        flaws += [_flaw(one) for one in error.errors(include_url=False)]
    else:
        flaws += _flaws_of_fields(settings)
        if not flaws:
            return settings
    raise ConfigError("\n".join(dict.fromkeys(flaws)))


def _settings_over(given: dict[str, object]) -> Settings:
    class Given(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return env_settings, InitSettingsSource(settings_cls, init_kwargs=given)

    return Given()


def _read_toml(path: Path | None) -> dict[str, object]:
    file = path or Path(DEFAULT_PATH)
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path is None:
            return {}
        raise ConfigError(f"there is no configuration at {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def _unknown_sections_of_environment(environment: Mapping[str, str]) -> list[str]:
    sections = list(Settings.model_fields)
    flaws = []
    for name in environment:
        if name.startswith(ENV_PREFIX):
            section = name.removeprefix(ENV_PREFIX).split("__")[0].lower()
            if section not in sections:
                flaws.append(f"{name} sets [{section}], which is not a section{did_you_mean(section, sections)}")
    return flaws


def _flaw(error: ErrorDetails) -> str:
    place = [str(part) for part in error["loc"]]
    where = f"[{'.'.join(place[:-1])}] {place[-1]}" if len(place) > 1 else f"[{place[0]}]"
    if error["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        return f"{where} is not a setting{did_you_mean(place[-1], known)}"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}, not {error['input']!r}"


def _known_keys(section: list[str]) -> list[str]:
    if not section:
        return list(Settings.model_fields)
    if section[0] == "fields":
        return list(FieldSettings.model_fields)
    annotation = Settings.model_fields[section[0]].annotation
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, Section) else []


_FIELD_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def _flaws_of_fields(settings: Settings) -> list[str]:
    flaws = [
        f"[fields.{name}] is missing: every registry has {', '.join(REQUIRED)}"
        for name in REQUIRED
        if name not in settings.fields
    ]
    columns: dict[str, str] = {}
    for name, one in settings.fields.items():
        if not _FIELD_NAME.fullmatch(name):
            flaws.append(f"[fields.{name}]: a field's name has lower-case letters, digits and _")
        if name in REQUIRED and one.type is not FieldType.TEXT:
            flaws.append(f"[fields.{name}] type: has to be 'text'")
        if (one.type is FieldType.SELECT) != bool(one.options):
            flaws.append(f"[fields.{name}] options: a select has some, other types have none")
        if one.column in columns:
            flaws.append(f"[fields.{name}] column: {one.column!r} is the column of {columns[one.column]!r} already")
        columns[one.column] = name
    return flaws


def check_exposure(settings: Settings, secrets: Secrets) -> None:
    """Refuse to listen beyond this machine without tokens.

    Raises:
        ConfigError: a token is missing, and which.
    """
    if settings.server.is_loopback:
        return
    missing = [
        name
        for name, values in (
            ("INTERNAL_API_TOKEN", secrets.internal_tokens),
            ("APIFY_WEBHOOK_SECRET", secrets.webhook_secrets),
        )
        if not values
    ]
    if missing:
        raise ConfigError(
            f"[server] host is {settings.server.host!r}, which others can reach: set {' and '.join(missing)} in the "
            "environment, or listen on 127.0.0.1"
        )


def check_destination(settings: Settings, secrets: Secrets) -> None:
    """Refuse to serve without a base to deliver to.

    Raises:
        ConfigError: what is missing, and both ways out.
    """
    missing = []
    if not settings.airtable.base_id:
        missing.append("[airtable] base_id (or RUNRECORDS_AIRTABLE__BASE_ID)")
    if not secrets.airtable_api_key:
        missing.append("AIRTABLE_API_KEY in the environment")
    if missing:
        raise ConfigError(
            f"no base to deliver to: set {' and '.join(missing)}, or try it without an account: serve --sandbox"
        )
