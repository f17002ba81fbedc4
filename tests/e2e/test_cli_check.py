"""`runrecords check`, through a running service and without one; and what a large table costs."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from rich.console import Console

from app.sandbox.airtable_limits import NO_LIMITS
from app.sandbox.embedded import AIRTABLE_TOKEN, BASE_ID
from app.sandbox.faults import hung
from app.show import Shower
from app.store.views import HowFar
from tests.support.checking import JOB, fill, spoil
from tests.support.harness import AIRTABLE_KEY, Harness, harness
from tests.support.process import command, environment, free_port, served
from tests.support.watching import rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.model import Json

RUN = {"client_id": "Guy-Wilson", "job_id": JOB}
RUN_ID = f"{JOB}-Guy-Wilson"
NO_GRACE = {"RUNRECORDS_CONSISTENCY__GRACE_SECONDS": "0"}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Harness]:
    """A store of 250 delivered runs and their base; the service is not running."""
    async with harness(tmp_path) as made:
        made.airtable.limits = NO_LIMITS
        async with made.running():
            pass
        fill(made, 250)
        yield made


def base_of(house: Harness) -> dict[str, str]:
    return {
        "RUNRECORDS_AIRTABLE__ENDPOINT_URL": house.airtable_server.url,
        "RUNRECORDS_AIRTABLE__BASE_ID": house.airtable.schema.base_id,
        "RUNRECORDS_AIRTABLE__REQUESTS_PER_SECOND": "50",
        "AIRTABLE_API_KEY": AIRTABLE_KEY,
        **NO_GRACE,
    }


async def test_beside_a_running_service_the_check_goes_through_it(tmp_path: Path) -> None:
    port = free_port()
    token = {"INTERNAL_API_TOKEN": "a-token-of-the-tests", **NO_GRACE}
    auth = {"Authorization": "Bearer a-token-of-the-tests"}
    room_for_a_hand = {"RUNRECORDS_AIRTABLE__REQUESTS_PER_SECOND": "2"}  # it counts at the base as well
    async with served(tmp_path, port=port, **token, **room_for_a_hand) as service:
        await service.call("POST", "/runs", RUN, auth)
        await service.said("sync.delivered")
        clean = await command(tmp_path, "check", port=port, **token)
        assert clean.code == 0, clean.err
        assert "Airtable has what was delivered" in clean.out
        await edit_by_hand(json.loads(await service.said("sandbox.started"))["airtable"], {"Status": "Failed"})
        found = await command(tmp_path, "check", port=port, **token)
        assert found.code == 1
        for word in ("drift", RUN_ID, "status: 'Running' here", "Findings"):
            assert word in found.out.replace("\n", " "), found.out
        repaired = await command(tmp_path, "check", "--repair", "drift", "--json", port=port, **token)
        assert repaired.code == 1
        report = json.loads(repaired.out)
        assert (report["found"], report["opened"], report["repaired"]) == ({"drift": 1}, 0, 1)
        await until(lambda: bool(rows(tmp_path / "runs.db", "SELECT 1 FROM errors WHERE resolution = 'repaired'")))
        again = await command(tmp_path, "check", "--json", port=port, **token)
        assert (again.code, json.loads(again.out)["found"]) == (0, {})


async def edit_by_hand(url: str, cells: dict[str, Json]) -> None:
    headers = {"Authorization": f"Bearer {AIRTABLE_TOKEN}"}
    async with aiohttp.ClientSession(f"{url}/v0/{BASE_ID}/", headers=headers) as http:
        async with http.get("Client Run Results") as listed:
            record = (await listed.json())["records"][0]["id"]
        async with http.patch(f"Client Run Results/{record}", json={"fields": cells}) as edited:
            assert edited.status == 200


async def test_a_second_check_at_the_same_service_is_refused_and_a_killed_service_ends_the_first(
    house: Harness,
) -> None:
    table = f"/v0/{house.airtable.schema.base_id}/"
    house.airtable_server.faults.add(hung(), times=None, method="GET", path_contains=table)
    port = free_port()
    patient = {**base_of(house), "RUNRECORDS_AIRTABLE__TIMEOUT_SECONDS": "60"}
    async with served(house.folder, words=("serve",), port=port, **patient):
        first = asyncio.create_task(command(house.folder, "check", port=port))
        await house.airtable_server.wait_for(
            lambda log: any("CREATED_TIME" in dict(one.query).get("filterByFormula", "") for one in log), timeout=30
        )
        second = await command(house.folder, "check", port=port)
        assert second.code == 1
        assert second.err.count("\n") == 1
        assert "under way" in second.err
        assert not first.done()
    assert (await first).code == 1
    assert "does not answer" in (await first).err


async def test_without_a_service_the_check_asks_airtable_itself_and_repairs(house: Harness) -> None:
    expected = spoil(house)
    ended = await command(house.folder, "check", "--repair", "drift", "--json", port=1, **base_of(house))
    assert ended.code == 1, ended.err
    report = json.loads(ended.out)
    assert sorted((one["kind"], one["run_id"]) for one in report["findings"]) == expected
    assert report["repaired"] == 1
    assert house.airtable.records()[10].fields["Total Posts Harvested"] == 10
    again = await command(house.folder, "check", "--json", port=1, **base_of(house))
    assert (again.code, len(json.loads(again.out)["findings"])) == (1, 3)
    assert json.loads((await command(house.folder, "status", "--json")).out)["last_check"]["calls"] == 5


async def test_without_a_service_what_a_killed_one_was_sending_is_delivered_first(house: Harness) -> None:
    house.airtable_server.faults.add(hung(), method="PATCH")
    async with served(house.folder, words=("serve",), port=free_port(), **base_of(house)) as service:
        await service.call("POST", "/runs", RUN)
        await house.airtable_server.wait_for(lambda log: any(one.method == "PATCH" for one in log))
    ended = await command(house.folder, "check", "--json", port=1, **base_of(house))
    assert (ended.code, json.loads(ended.out)["found"]) == (0, {}), ended.err
    assert RUN_ID in house.records()


async def test_without_a_service_and_without_a_base_it_says_what_to_set(house: Harness) -> None:
    ended = await command(house.folder, "check")
    assert ended.code == 2
    assert "base_id" in ended.err
    other = {**base_of(house), "RUNRECORDS_AIRTABLE__BASE_ID": "appSomeOtherBase1"}
    ended = await command(house.folder, "check", port=1, **other)
    assert ended.code == 1
    assert "belongs to base" in ended.err


async def test_a_check_that_cannot_finish_exits_1_and_says_why(house: Harness) -> None:
    house.airtable.scopes = ()
    ended = await command(house.folder, "check", port=1, **base_of(house))
    assert ended.code == 1
    assert "could not finish" in ended.out
    assert "INVALID_PERMISSIONS" in ended.out


async def test_a_bar_follows_a_check_on_a_terminal_and_nowhere_else() -> None:
    looked = asyncio.Event()

    async def look() -> HowFar:
        looked.set()
        return HowFar(seen=50, expected=200)

    shown = {}
    for terminal in (True, False):
        looked.clear()
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=80, _environ={})
        async with Shower(as_json=False, console=console).progressing("reading", look):
            if terminal:
                await looked.wait()
        shown[terminal] = screen.getvalue()
    assert "25%" in shown[True]
    assert shown[False] == ""


# What is asked for a large table ----------------------------------------------------------------------------------

#: The command, and then the most memory that its process ever had (`ru_maxrss` counts that of its parent too).
MEASURED = """
import sys
from app.cli import main
try:
    main()
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how much memory a process had")
async def test_20_000_records_are_checked_in_the_memory_that_200_need(tmp_path: Path) -> None:
    """The sandbox is in this process, so that the other one's memory is the check's alone."""
    note = "a line of some length that a person wrote by hand\n" * 4
    megabytes = []
    for count in (200, 20_000):
        (tmp_path / str(count)).mkdir()
        async with harness(tmp_path / str(count)) as house:
            house.airtable.limits = NO_LIMITS
            async with house.running():
                pass
            fill(house, count, note)
            expected = spoil(house) if count > 200 else []
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", MEASURED, "check", "--json", env=environment(house.folder, 1, **base_of(house)),
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, err = await process.communicate()
            report = json.loads(out)
            assert report["records"] == count + len(expected) // 4
            assert sorted((one["kind"], one["run_id"]) for one in report["findings"]) == expected
            (most,) = re.findall(rb"VmHWM:\s+(\d+) kB", err)
            megabytes.append(int(most) // 1024)
    assert megabytes[1] - megabytes[0] < 15, megabytes  # the records alone, as objects, are twice that
