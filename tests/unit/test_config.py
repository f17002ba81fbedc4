"""Settings: the file, the environment over it, and every slip named with what to do."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest

from app.config import (
    DEFAULT_FIELDS,
    Secrets,
    ServerSettings,
    Settings,
    check_destination,
    check_exposure,
    load_settings,
)
from app.errors import ConfigError

HERE = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("RUNRECORDS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "given.toml"
    path.write_text(text)
    return load_settings(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value)


# Where settings come from ---------------------------------------------------------------------------------------


def test_without_a_file_every_setting_has_its_default() -> None:
    settings = load_settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
    assert settings.airtable.requests_per_second == 5
    assert settings.sync.rate_limit_pause_seconds == 30
    assert list(settings.registry()) == list(DEFAULT_FIELDS)


def test_the_files_in_the_repository_say_the_defaults_and_every_key() -> None:
    text = (HERE / "config.toml").read_text()
    assert load_settings(HERE / "config.toml").model_dump() == load_settings().model_dump()
    given = tomllib.loads(text)
    for name in ("server", "store", "airtable", "apify", "sync"):
        section = type(getattr(Settings(), name))
        assert set(given[name]) == set(section.model_fields), name


def test_the_default_fields_cover_the_columns_that_the_client_gave() -> None:
    columns = json.loads((HERE / "tests/samples/client-run-results-columns.json").read_text())["columns"]
    written = {field.column for field in load_settings().registry().values()}
    assert written <= set(columns)
    formulas = {name for name, kind in columns.items() if "formula" in json.dumps(kind).lower()}
    assert not written & formulas
    assert set(columns) - formulas == written


def test_the_file_in_the_folder_is_taken_where_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 9000\n")
    assert load_settings().server.port == 9000


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNRECORDS_STORE__PATH", "/from/environment.db")
    monkeypatch.setenv("RUNRECORDS_AIRTABLE__REQUESTS_PER_SECOND", "2")
    settings = load(tmp_path, '[store]\npath = "from/file.db"\n[airtable]\nbase_id = "appX"\n')
    assert settings.store.path == "/from/environment.db"
    assert (settings.airtable.requests_per_second, settings.airtable.base_id) == (2, "appX")


def test_a_column_is_renamed_in_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNRECORDS_FIELDS__POSTS_HARVESTED__COLUMN", "Posts")
    settings = load_settings(HERE / "config.toml")
    assert settings.fields["posts_harvested"].column == "Posts"
    assert len(settings.fields) == len(DEFAULT_FIELDS)


# Slips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[server]\nprot = 1\n", "[server] prot is not a setting; did you mean 'port'?"),
        ("[servers]\nport = 1\n", "[servers] is not a setting; did you mean 'server'?"),
        ("[airtable]\nweather = 1\n", "[airtable] weather is not a setting"),
        ("[server]\nport = 70000\n", "[server] port: "),
        ("[server]\nport = 'x'\n", "not 'x'"),
        ("[airtable]\nrequests_per_second = 0\n", "[airtable] requests_per_second: "),
        ("[airtable]\ntimeout_seconds = inf\n", "[airtable] timeout_seconds: "),
        ("[airtable]\nendpoint_url = 'api.airtable.com'\n", "is not an http or https URL, not 'api.airtable.com'"),
        ("[apify]\napi_url = 'ftp://x'\n", "is not an http or https URL"),
        ("[sync]\nmax_attempts = 0\n", "[sync] max_attempts: "),
        ("[fields.run_id]\ncolumn = 'Run ID'\ntype = 'txt'\n", "[fields.run_id] type: "),
        ("[fields.run_id]\ncolum = 'Run ID'\ntype = 'text'\n", "did you mean 'column'?"),
    ],
)
def test_a_slip_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(tmp_path, text)


def test_every_slip_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNRECORDS_SEVRER__PORT", "1")
    told = refusal(tmp_path, "[server]\nport = -1\nhots = 'x'\n").splitlines()
    assert len(told) == 3
    assert "RUNRECORDS_SEVRER__PORT sets [sevrer], which is not a section; did you mean 'server'?" in told


def test_an_unknown_key_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNRECORDS_STORE__PAHT", "x")
    with pytest.raises(ConfigError, match="did you mean 'path'"):
        load_settings()


def test_a_file_that_is_not_there_or_not_toml_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration at"):
        load_settings(tmp_path / "none.toml")
    assert "is not TOML" in refusal(tmp_path, "[server")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path)


FIELDS = """
[fields.run_id]
column = "Run ID"
type = "text"
[fields.client_id]
column = "Client ID"
type = "text"
[fields.client_name]
column = "Client Name"
type = "text"
"""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", ""),
        ("[fields.Posts]\ncolumn = 'P'\ntype = 'integer'\n", "[fields.Posts]: a field's name has lower-case letters"),
        ("[fields.posts]\ncolumn = 'Run ID'\ntype = 'integer'\n", "is the column of 'run_id' already"),
        ("[fields.mood]\ncolumn = 'Mood'\ntype = 'select'\n", "a select has some, other types have none"),
        (
            "[fields.mood]\ncolumn = 'Mood'\ntype = 'text'\noptions = ['x']\n",
            "a select has some, other types have none",
        ),
    ],
)
def test_a_registry_is_whole_and_unambiguous(tmp_path: Path, more: str, told: str) -> None:
    if told:
        assert told in refusal(tmp_path, FIELDS + more)
    else:
        assert list(load(tmp_path, FIELDS + more).registry()) == ["run_id", "client_id", "client_name"]


def test_the_fields_that_name_a_run_are_texts_and_never_missing(tmp_path: Path) -> None:
    assert "[fields.client_name] is missing" in refusal(tmp_path, FIELDS.replace("fields.client_name", "fields.nick"))
    integer = FIELDS.replace('column = "Run ID"\ntype = "text"', 'column = "Run ID"\ntype = "integer"')
    assert "[fields.run_id] type: has to be 'text'" in refusal(tmp_path, integer)


# Secrets --------------------------------------------------------------------------------------------------------


def test_secrets_come_from_the_environment_and_may_be_two_while_one_is_rotated() -> None:
    secrets = Secrets.from_environment(
        {"AIRTABLE_API_KEY": " pat ", "INTERNAL_API_TOKEN": "new, old", "APIFY_WEBHOOK_SECRET": "one,"}
    )
    assert secrets.internal_tokens == ("new", "old")
    assert secrets.webhook_secrets == ("one",)
    assert secrets.all() == ("pat", "one", "new", "old")
    with pytest.raises(ConfigError, match="holds 3 values"):
        Secrets.from_environment({"INTERNAL_API_TOKEN": "a,b,c"})


@pytest.mark.parametrize("name", ["AIRTABLE_API_KEY", "APIFY_TOKEN", "APIFY_WEBHOOK_SECRET", "INTERNAL_API_TOKEN"])
@pytest.mark.parametrize("value", ["pat\nword", "pat word", "pat\tword", "pat\x00word", "p\xe4tword", "\ud800word"])
def test_a_secret_that_fits_no_header_is_refused_without_being_told(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Secrets.from_environment({name: value})
    assert name in str(caught.value)
    assert "word" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_secrets_do_not_show_themselves() -> None:
    assert "pat" not in repr(Secrets("pat", "tok", ("x",), ("y",)))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.7"])
def test_this_machine_alone_needs_no_tokens(host: str) -> None:
    check_exposure(Settings(server=ServerSettings(host=host)), Secrets())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "example.com", "10.0.0.1"])  # noqa: S104
def test_others_are_not_let_in_without_tokens(host: str) -> None:
    settings = Settings(server=ServerSettings(host=host))
    with pytest.raises(ConfigError, match="INTERNAL_API_TOKEN and APIFY_WEBHOOK_SECRET"):
        check_exposure(settings, Secrets())
    with pytest.raises(ConfigError, match="set APIFY_WEBHOOK_SECRET in the"):
        check_exposure(settings, Secrets(internal_tokens=("x",)))
    check_exposure(settings, Secrets(internal_tokens=("x",), webhook_secrets=("y",)))


def test_serving_without_a_base_names_both_ways_out() -> None:
    with pytest.raises(ConfigError) as caught:
        check_destination(Settings(), Secrets())
    told = str(caught.value)
    assert "base_id" in told
    assert "AIRTABLE_API_KEY" in told
    assert "serve --sandbox" in told
