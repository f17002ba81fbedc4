"""`doctor`: each check where all is well and where it is not, against the sandboxes over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import random
import stat
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from app.clock import SystemClock
from app.config import Secrets
from app.doctor import machine
from app.doctor.diagnose import diagnose, flaw_of_public_url
from app.doctor.findings import Diagnosis, Verdict
from app.doctor.machine import Instruments
from app.sandbox.airtable import READ, SCHEMA, WRITE
from app.sandbox.airtable_errors import quota_exceeded
from app.sandbox.airtable_limits import NO_LIMITS, Limits
from app.sandbox.airtable_schema import FieldType
from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER
from app.sandbox.apify_server import ApifyServer
from app.sandbox.embedded import AIRTABLE_TOKEN, BASE_ID
from app.sandbox.wire import odd_body, server_error
from app.store.sqlite.examine import has_wal_reset_bug
from tests.support.harness import AIRTABLE_KEY, INTERNAL_TOKEN, WEBHOOK_SECRET, Harness, harness
from tests.support.process import command, free_port, served
from tests.support.watching import meddle, rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECRETS = Secrets(AIRTABLE_KEY, TOKEN, (WEBHOOK_SECRET,), (INTERNAL_TOKEN,))


class ShiftedClock(SystemClock):
    """A machine whose clock is wrong."""

    def __init__(self, seconds: float) -> None:
        self._shift = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return super().now() + self._shift


@dataclass
class Practice:
    """A service that is not running, its sandboxes, and a doctor to call."""

    house: Harness
    apify: ApifyServer
    settings: dict[str, dict[str, str | int | float]]
    secrets: Secrets = SECRETS
    instruments: Instruments = field(default_factory=lambda: Instruments(has_wal_reset_bug=lambda: False))
    said: list[str] = field(default_factory=list)

    async def call(self) -> Diagnosis:
        config = self.house.folder / "config.toml"
        lines = [
            line
            for section, values in self.settings.items()
            for line in (f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
        ]
        config.write_text("\n".join(lines), encoding="utf-8")
        diagnosis = await diagnose(config, self.secrets, self.instruments)
        self.said += [diagnosis.to_json(), str(diagnosis.rows()), repr(diagnosis)]
        return diagnosis

    async def problem(self) -> tuple[str, str]:
        """The only problem there is: what, and what to do."""
        diagnosis = await self.call()
        ((name, detail),) = [(one.name, one.detail) for one in diagnosis.findings if one.verdict is Verdict.PROBLEM]
        assert diagnosis.exit_code == (2 if name == "configuration" else 1)
        return name, detail


def verdicts(diagnosis: Diagnosis) -> dict[str, str]:
    return {one.name: one.verdict.value for one in diagnosis.findings}


def detail(diagnosis: Diagnosis, name: str) -> str:
    return next(one.detail for one in diagnosis.findings if one.name == name)


@pytest.fixture
async def practice(tmp_path: Path) -> AsyncIterator[Practice]:
    """All is well: a store that was served once, a base, an account; the doctor's words are searched for secrets."""
    sandbox = ApifySandbox(now=lambda: datetime.now(UTC), random=random.Random(7))  # noqa: S311 - the same ids in every run
    async with ApifyServer(sandbox) as apify, harness(tmp_path) as house:
        house.settings = house.settings.model_copy(
            update={"server": house.settings.server.model_copy(update={"port": free_port()})}
        )
        async with house.running():
            await house.kick_off()
            await house.synced()
        settings: dict[str, dict[str, str | int | float]] = {
            "server": {"port": house.settings.server.port, "public_url": "https://runs.example.com"},
            "store": {"path": str(house.store_path)},
            "airtable": {
                "endpoint_url": house.airtable_server.url,
                "base_id": house.airtable.schema.base_id,
                "timeout_seconds": 1.0,
            },
            "apify": {"api_url": apify.url, "actor_id": HARVESTER.id},
        }
        house.airtable.limits = NO_LIMITS  # so that a test can call as often as it likes
        made = Practice(house, apify, settings)
        yield made
        secrets = made.secrets.all()
        assert made.said
        assert not [secret for secret in secrets for text in made.said if secret in text]


async def test_where_all_is_well_it_says_ok_to_everything_for_five_calls(practice: Practice) -> None:
    before = len(practice.house.airtable_server.log)
    diagnosis = await practice.call()
    assert verdicts(diagnosis) == {
        "configuration": "ok",
        "public_url": "ok",
        "secrets": "ok",
        "Airtable token": "ok",
        "Airtable base": "ok",
        "Airtable columns": "ok",
        "Apify token": "ok",
        "Apify actor": "ok",
        "database": "ok",
        "SQLite": "ok",
        "service": "note",
        "free disk": "ok",
        "clock": "ok",
        "waiting messages": "ok",
        "dead messages": "ok",
        "open errors": "ok",
    }
    assert diagnosis.exit_code == 0
    assert len(practice.house.airtable_server.log) - before == 3
    assert len(practice.apify.log) == 2
    assert {request.method for request in practice.house.airtable_server.log[before:]} == {"GET"}


# Airtable


async def test_a_bad_token_is_refused_and_nothing_more_is_asked(practice: Practice) -> None:
    practice.secrets = replace(SECRETS, airtable_api_key="patNotInForceAnyMore")
    before = len(practice.house.airtable_server.log)
    name, what = await practice.problem()
    assert name == "Airtable token"
    assert "refused (401" in what
    assert "AIRTABLE_API_KEY" in what
    assert len(practice.house.airtable_server.log) - before == 1


@pytest.mark.parametrize(
    ("kept", "lacking"), [((READ, SCHEMA), WRITE), ((READ, WRITE), SCHEMA), ((WRITE, SCHEMA), READ)]
)
async def test_a_missing_scope_is_named(practice: Practice, kept: tuple[str, ...], lacking: str) -> None:
    practice.house.airtable.scopes = kept
    diagnosis = await practice.call()
    assert diagnosis.exit_code == 1
    assert verdicts(diagnosis)["Airtable token"] == "problem"
    assert f"lacks {lacking}:" in detail(diagnosis, "Airtable token")
    assert verdicts(diagnosis)["Airtable columns"] == ("problem" if lacking == SCHEMA else "ok")
    assert verdicts(diagnosis)["Airtable base"] == ("problem" if lacking == READ else "ok")


async def test_a_token_whose_scopes_airtable_does_not_name_is_valid_and_it_says_what_is_known(
    practice: Practice,
) -> None:
    """So it is with personal access tokens."""
    practice.house.airtable_server.faults.add(odd_body(b'{"id": "usrSomebody"}'), path_contains="whoami")
    diagnosis = await practice.call()
    assert diagnosis.exit_code == 0
    assert "OAuth tokens only" in detail(diagnosis, "Airtable token")
    assert WRITE in detail(diagnosis, "Airtable token")


async def test_an_unknown_base_or_table_is_said(practice: Practice) -> None:
    practice.settings["airtable"]["base_id"] = "appSomeOtherBase1"
    diagnosis = await practice.call()
    assert verdicts(diagnosis)["Airtable base"] == verdicts(diagnosis)["Airtable columns"] == "problem"
    assert "appSomeOtherBase1" in detail(diagnosis, "Airtable base")
    assert "[airtable] base_id" in detail(diagnosis, "Airtable base")
    practice.settings["airtable"] |= {"base_id": practice.house.airtable.schema.base_id, "table": "Client Runs Results"}
    assert "did you mean 'Client Run Results'?" in detail(await practice.call(), "Airtable columns")


async def test_each_flaw_of_the_schema_has_a_line_of_its_own(practice: Practice) -> None:
    practice.house.airtable.rename_column("Total Posts Harvested", "Total Posts Harvestd")
    practice.house.airtable.change_type("Total Tokens Used", FieldType.FORMULA)
    practice.house.airtable.remove_option("Status", "Failed")
    diagnosis = await practice.call()
    flaws = [one.detail for one in diagnosis.findings if one.name == "Airtable columns"]
    assert len(flaws) == 3
    assert "lacks the option 'Failed'" in flaws[0]
    assert "did you mean 'Total Posts Harvestd'?" in flaws[1]
    assert "is a formula" in flaws[2]


async def test_airtable_that_cannot_be_reached_or_is_used_up_is_said(practice: Practice) -> None:
    practice.house.airtable_server.faults.add(quota_exceeded(), path_contains="/Client Run Results")
    name, what = await practice.problem()
    assert name == "Airtable base"
    assert "BILLING_LIMIT" in what
    practice.house.airtable_server.faults.add(server_error(502), path_contains="whoami")
    assert (await practice.problem())[0] == "Airtable token"
    await practice.house.airtable_server.stop()
    name, what = await practice.problem()
    assert name == "Airtable token"
    assert "endpoint_url" in what


async def test_a_secret_that_the_other_side_repeats_is_cut_out(practice: Practice) -> None:
    told = json.dumps({"error": {"type": "ODD", "message": f"not with {AIRTABLE_KEY} or {INTERNAL_TOKEN}"}})
    practice.house.airtable_server.faults.add(odd_body(told.encode(), 422), path_contains="whoami")
    name, what = await practice.problem()
    assert name == "Airtable token"
    assert "not with [redacted] or [redacted]" in what


# Apify


async def test_a_bad_token_of_apify_is_said(practice: Practice) -> None:
    practice.secrets = replace(SECRETS, apify_token="apify_api_NotInForceAnyMore")
    name, what = await practice.problem()
    assert name == "Apify token"
    assert "user-or-token-not-found" in what


async def test_an_unknown_actor_is_said(practice: Practice) -> None:
    practice.settings["apify"]["actor_id"] = "somebody~else"
    name, what = await practice.problem()
    assert name == "Apify actor"
    assert "'somebody~else'" in what
    assert "[apify] actor_id" in what


async def test_apify_out_of_order_is_said_and_retried_by_nobody(practice: Practice) -> None:
    practice.apify.faults.add(server_error(500), times=None)
    assert (await practice.problem())[0] == "Apify token"
    assert len(practice.apify.log) == 1
    practice.apify.faults.clear()
    await practice.apify.stop()
    assert (await practice.problem())[0] == "Apify token"
    await practice.apify.start()


async def test_no_token_and_no_actor_are_no_problem(practice: Practice) -> None:
    practice.settings["apify"]["actor_id"] = ""
    assert verdicts(await practice.call())["Apify actor"] == "note"
    practice.secrets = replace(SECRETS, apify_token="")
    diagnosis = await practice.call()
    assert verdicts(diagnosis)["Apify token"] == "note"
    assert diagnosis.exit_code == 0


# How Apify reaches us


@pytest.mark.parametrize(
    ("url", "flaw"),
    [
        ("https://runs.example.com", None),
        ("https://runs.example.com:8443/harvest/", None),
        ("https://93.184.215.14", None),
        ("http://runs.example.com", "https://"),
        ("runs.example.com", "https://"),
        ("https://runs.example.com/webhooks/apify", "path"),
        ("https://runs.example.com/webhooks/apify/", "path"),
        ("https://runs.example.com//x", "path"),
        ("https://runs.example.com/?secret=1", "? or #"),
        ("https://runs.example.com/#x", "? or #"),
        ("https://me:hunter2@runs.example.com", "user name"),
        ("https://localhost:8080", "cannot reach"),
        ("https://127.0.0.1", "cannot reach"),
        ("https://[::1]:8080", "cannot reach"),
        ("https://10.1.2.3", "cannot reach"),
        ("https://runs", "cannot reach"),
        ("https://", "cannot reach"),
        ("https://[broken", "not a URL"),
        ("https://runs.example.com:port", "not a URL"),
    ],
)
def test_a_public_url_is_judged_by_its_form(url: str, flaw: str | None) -> None:
    found = flaw_of_public_url(url, apify_is_local=False)
    assert (found is None) == (flaw is None), found
    assert flaw is None or flaw in (found or "")
    assert "hunter2" not in (found or "")


def test_a_sandbox_on_this_machine_may_use_plain_http() -> None:
    assert flaw_of_public_url("http://127.0.0.1:8080", apify_is_local=True) is None
    assert flaw_of_public_url("ftp://127.0.0.1:8080", apify_is_local=True) is not None


async def test_a_public_url_out_of_form_and_missing_secrets_are_said(practice: Practice) -> None:
    practice.settings["server"]["public_url"] = "https://runs.example.com/webhooks/apify"
    assert (await practice.problem())[0] == "public_url"
    practice.settings["server"]["public_url"] = "https://runs.example.com"
    practice.secrets = replace(SECRETS, webhook_secrets=())
    name, what = await practice.problem()
    assert name == "secrets"
    assert "APIFY_WEBHOOK_SECRET" in what
    assert "INTERNAL_API_TOKEN" not in what


# The store and the machine


async def test_a_store_that_is_not_there_yet_is_no_problem(practice: Practice) -> None:
    path = practice.house.folder / "new" / "runs.db"
    practice.settings["store"]["path"] = str(path)
    diagnosis = await practice.call()
    assert verdicts(diagnosis)["database"] == "note"
    assert diagnosis.exit_code == 0
    assert not path.parent.exists()


async def test_a_wal_that_cannot_be_copied_back_is_noted(practice: Practice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "WAL_LIMIT_BYTES", 1_000)
    async with practice.house.running():
        diagnosis = await practice.call()
    assert verdicts(diagnosis)["database"] == "note"
    assert "reads the store for long" in detail(diagnosis, "database")


async def test_a_damaged_database_is_said(practice: Practice) -> None:
    copy = practice.house.folder / "copy.db"
    content = bytearray(practice.house.store_path.read_bytes())
    ((page,),) = rows(practice.house.store_path, "SELECT rootpage FROM sqlite_master WHERE name = 'errors_by_run'")
    assert isinstance(page, int)  # nothing else that the doctor reads is kept on it
    content[(page - 1) * 4096 : page * 4096] = os.urandom(4096)
    copy.write_bytes(content)
    practice.settings["store"]["path"] = str(copy)
    name, what = await practice.problem()
    assert name == "database"
    assert "is damaged" in what
    assert "restore a backup" in what
    copy.write_bytes(b"SQLite format 3\0" + os.urandom(5_000))
    assert "is damaged" in (await practice.problem())[1]
    copy.write_text("no database at all")
    assert "is damaged" in (await practice.problem())[1]


async def test_a_newer_schema_and_another_programs_file_are_said(practice: Practice) -> None:
    copy = practice.house.folder / "copy.db"
    copy.write_bytes(practice.house.store_path.read_bytes())
    meddle(copy, "INSERT INTO schema_migrations VALUES (9999, '9999_later', 'x', '2030-01-01T00:00:00.000Z')")
    practice.settings["store"]["path"] = str(copy)
    name, what = await practice.problem()
    assert name == "database"
    assert "a newer version" in what
    meddle(copy, "PRAGMA application_id = 7")
    assert "another program" in (await practice.problem())[1]


async def test_an_older_schema_is_brought_up_by_the_next_start(practice: Practice) -> None:
    empty = practice.house.folder / "empty.db"
    meddle(empty, "VACUUM")
    practice.settings["store"]["path"] = str(empty)
    diagnosis = await practice.call()
    assert verdicts(diagnosis)["database"] == "note"
    assert "0001_outbox" in detail(diagnosis, "database")
    assert diagnosis.exit_code == 0


async def test_a_full_disk_is_said(practice: Practice) -> None:
    practice.instruments = replace(practice.instruments, free_bytes=lambda _: 499_000_000)
    name, what = await practice.problem()
    assert name == "free disk"
    assert "only 0.5 GB" in what


@pytest.mark.parametrize(("seconds", "side"), [(45, "ahead of"), (-3600, "behind")])
async def test_a_skewed_clock_is_said(practice: Practice, seconds: float, side: str) -> None:
    practice.instruments = replace(practice.instruments, clock=ShiftedClock(seconds))
    name, what = await practice.problem()
    assert name == "clock"
    assert f"{side} Airtable's" in what
    practice.house.airtable_server.faults.add(server_error(502), path_contains="whoami", times=None)
    assert f"{side} Apify's" in detail(await practice.call(), "clock")


async def test_a_clock_that_nobody_can_be_asked_about_is_said_to_be_unjudged(practice: Practice) -> None:
    await practice.house.airtable_server.stop()
    practice.secrets = replace(SECRETS, apify_token="")
    diagnosis = await practice.call()
    assert verdicts(diagnosis)["clock"] == "note"
    assert "could not be judged" in detail(diagnosis, "clock")


async def test_a_small_skew_is_none(practice: Practice) -> None:
    practice.instruments = replace(practice.instruments, clock=ShiftedClock(-20))
    assert verdicts(await practice.call())["clock"] == "ok"


@pytest.mark.parametrize(
    ("version", "bug"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
)
def test_the_versions_with_the_wal_reset_bug_are_known(version: tuple[int, int, int], bug: bool) -> None:
    assert has_wal_reset_bug(version) is bug


async def test_a_sqlite_with_the_bug_is_a_note_that_says_what_avoids_it(practice: Practice) -> None:
    practice.instruments = replace(practice.instruments, has_wal_reset_bug=lambda: True)
    diagnosis = await practice.call()
    assert verdicts(diagnosis)["SQLite"] == "note"
    assert "one writing connection" in detail(diagnosis, "SQLite")
    assert diagnosis.exit_code == 0


async def test_what_waits_too_long_what_is_dead_and_what_is_open_are_said(practice: Practice) -> None:
    house = practice.house
    await house.airtable_server.stop()
    async with house.running():
        await house.kick_off("Dean")
    await house.airtable_server.start()
    diagnosis = await practice.call()
    assert verdicts(diagnosis)["waiting messages"] == "ok"
    practice.instruments = replace(practice.instruments, clock=ShiftedClock(901))
    assert "the oldest for 0:15" in detail(await practice.call(), "waiting messages")
    assert verdicts(await practice.call())["waiting messages"] == "problem"
    practice.instruments = replace(practice.instruments, clock=SystemClock())
    async with house.running():
        await house.synced()
        await house.call("PATCH", "/runs/251007-070457", {"set": {"posts_scored": 1}})
        house.airtable.remove_option("Status", "Failed")
        await house.call("PATCH", "/runs/251007-070457-Dean", {"set": {"status": "Failed"}})
        await until(lambda: rows(house.store_path, "SELECT count(*) FROM outbox WHERE state = 'dead'") == [(1,)])
    house.airtable.add_option("Status", "Failed")
    diagnosis = await practice.call()
    assert diagnosis.exit_code == 1
    assert detail(diagnosis, "dead messages").startswith("1: ")
    assert "1 missing_record, 1 rejected" in detail(diagnosis, "open errors")


async def test_it_writes_nothing_to_the_store(practice: Practice) -> None:
    path = practice.house.store_path
    before, seen = path.read_bytes(), path.stat()
    await practice.call()
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == seen.st_mtime_ns
    path.chmod(stat.S_IRUSR)
    assert (await practice.call()).exit_code == 0


# Beside a running service


async def test_beside_a_running_service_it_says_how_that_is(practice: Practice) -> None:
    async with practice.house.running():
        diagnosis = await practice.call()
        assert diagnosis.exit_code == 0, diagnosis.rows()
        assert detail(diagnosis, "service") == "one process writes the store, and is ready"
        practice.house.airtable.scopes = (READ, SCHEMA)
        await practice.house.kick_off("Dean")
        service = practice.house.service
        assert service is not None
        await until(lambda: service.sync.trouble is not None)
        diagnosis = await practice.call()
        assert "denies access" in detail(diagnosis, "service")
        assert verdicts(diagnosis)["service"] == "problem"


async def test_a_process_that_holds_the_store_and_does_not_answer_is_said(practice: Practice) -> None:
    practice.settings["server"]["port"] = free_port()
    async with practice.house.running():
        name, what = await practice.problem()
    assert name == "service"
    assert "[server] port" in what


async def test_it_never_makes_a_sixth_request_in_a_second_of_a_busy_service(practice: Practice) -> None:
    house = practice.house
    house.airtable.limits = Limits()
    async with house.running():
        house.airtable_server.log.clear()
        await asyncio.gather(*(house.kick_off(f"client{number}", "260101-000000") for number in range(60)))
        diagnosis = await practice.call()
        await house.synced()
    assert verdicts(diagnosis)["Airtable base"] == "ok"
    statuses = {request.status for request in house.airtable_server.log}
    assert statuses == {200}


async def test_a_service_that_is_never_quiet_is_not_disturbed(
    practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.doctor.outside._LONGEST_WAIT_SECONDS", 0.1)
    async with practice.house.running():
        await practice.house.kick_off("Dean")
        await practice.house.synced()
        diagnosis = await practice.call()
    assert verdicts(diagnosis)["Airtable base"] == "note"
    assert "not asked" in detail(diagnosis, "Airtable base")


# As a command


async def test_the_command_works_beside_a_real_service_and_prints_json_without_a_secret(tmp_path: Path) -> None:
    port = free_port()
    tokens = {"INTERNAL_API_TOKEN": "a-token-of-the-tests", "APIFY_WEBHOOK_SECRET": "a-secret-of-the-tests"}
    async with served(tmp_path, port=port, **tokens) as service:
        sandbox = json.loads(await service.said("sandbox.started"))
        more = {
            **tokens,
            "AIRTABLE_API_KEY": AIRTABLE_TOKEN,
            "APIFY_TOKEN": TOKEN,
            "RUNRECORDS_AIRTABLE__ENDPOINT_URL": sandbox["airtable"],
            "RUNRECORDS_AIRTABLE__BASE_ID": BASE_ID,
            "RUNRECORDS_APIFY__API_URL": sandbox["apify"],
            "RUNRECORDS_APIFY__ACTOR_ID": HARVESTER.id,
        }
        well = await command(tmp_path, "doctor", "--json", port=port, **more)
        assert well.code == 0, well.out + well.err
        said = json.loads(well.out)
        assert said["ok"] is True
        assert {one["verdict"] for one in said["findings"]} <= {"ok", "note"}
        more["APIFY_TOKEN"] = "apify_api_NotInForceAnyMore"
        ill = await command(tmp_path, "doctor", port=port, **more)
        assert ill.code == 1
        assert "problem" in ill.out
        for secret in (*tokens.values(), TOKEN, more["APIFY_TOKEN"]):
            assert secret not in well.out + well.err + ill.out + ill.err


async def test_beside_a_sandbox_it_says_what_a_real_base_takes(tmp_path: Path) -> None:
    port = free_port()
    async with served(tmp_path, port=port):
        told = await command(tmp_path, "doctor", "--json", port=port)
        (found,) = [one for one in json.loads(told.out)["findings"] if one["name"] == "configuration"]
        assert found["verdict"] == "note"
        assert "serve --sandbox" in found["detail"]
        assert "base_id" in found["detail"]
        assert told.code in {0, 1}, told.out  # nothing is wrong with the configuration
    alone = await command(tmp_path, "doctor", "--json")
    assert alone.code == 2, alone.out


async def test_something_else_at_the_endpoint_is_not_taken_for_a_bad_token(practice: Practice) -> None:
    practice.house.airtable_server.faults.add(odd_body(b"moved", 301), times=None)
    name, detail = await practice.problem()
    assert name == "Airtable token"
    assert "endpoint_url" in detail
    assert "AIRTABLE_API_KEY" not in detail


async def test_a_wrong_configuration_exits_2_and_is_said_in_json_too(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[store]\npth = 1\n[sync]\nmax_attempts = 'many'\n")
    ended = await command(tmp_path, "doctor", "--json", "--config", str(tmp_path / "bad.toml"))
    assert ended.code == 2
    said = json.loads(ended.out)
    assert said["ok"] is False
    assert [one["name"] for one in said["findings"]] == ["configuration"] * 2
    assert "did you mean 'path'" in ended.out
    nowhere = await command(tmp_path, "doctor")
    assert nowhere.code == 2
    assert "--sandbox" in nowhere.out
    assert "database" in nowhere.out
