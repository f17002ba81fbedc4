"""The service as a process: signals, exit codes, what survives, and who may write the store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tests.support.process import afresh, command, environment, free_port, run, served, serving
from tests.support.watching import meddle, rows

if TYPE_CHECKING:
    import pytest

RUN = {"client_id": "Guy-Wilson", "job_id": "251007-070457"}
RUN_ID = "251007-070457-Guy-Wilson"


async def test_sigterm_and_sigint_end_it_with_0_and_no_traceback(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        async with served(tmp_path) as service:
            await service.call("POST", "/runs", RUN)
            assert await service.end(number) == 0
            log = "".join(service.lines)
            assert "Traceback" not in log
            assert '"event": "service.stopped"' in log


async def test_what_was_answered_survives_kill_9_and_reaches_airtable_once(tmp_path: Path) -> None:
    port = free_port()
    async with served(tmp_path, port=port) as service:
        await service.call("POST", "/runs", RUN)
        accepted = 0
        with contextlib.suppress(aiohttp.ClientError):
            for number in range(100):
                update = {"add": {"posts_scored": 1}}
                status, _ = await service.call("PATCH", f"/runs/{RUN_ID}", update, {"Idempotency-Key": f"n-{number}"})
                assert status == 202
                accepted += 1
                if number == 50:
                    service.process.send_signal(signal.SIGKILL)
        assert await service.ended() == -signal.SIGKILL
    assert accepted > 50
    async with served(tmp_path, port=port) as service:
        for number in range(100):  # the caller does not know what arrived, and sends all again
            update = {"add": {"posts_scored": 1}}
            await service.call("PATCH", f"/runs/{RUN_ID}", update, {"Idempotency-Key": f"n-{number}"})
        async with asyncio.timeout(30):
            while (run := (await service.call("GET", f"/runs/{RUN_ID}"))[1])["sync"] != "synced":  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # another process has no event to wait for
    fields = run["fields"]
    assert isinstance(fields, dict)
    assert fields["posts_scored"] == 100


async def test_a_second_process_on_the_same_store_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path):
        second = await command(tmp_path, "serve", "--sandbox", port=free_port())
    assert second.code == 1
    assert "another process writes" in second.err


async def test_a_link_to_a_store_is_that_store(tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "runs.db").symlink_to(tmp_path / "runs.db")
    async with served(tmp_path):
        second = await command(tmp_path / "linked", "serve", "--sandbox", port=free_port())
        migrating = await command(tmp_path / "linked", "migrate")
    assert (second.code, migrating.code) == (1, 1)
    assert "another process writes" in second.err


async def test_it_starts_in_an_empty_folder_with_nothing_set(tmp_path: Path) -> None:
    """As `make run` does on a bare clone: the folder of the store is not there yet."""
    port = free_port()
    own = environment(tmp_path / "data" / "deep", port)
    async with serving(afresh, ("serve", "--sandbox"), own, port) as service:
        status, _ = await service.call("POST", "/runs", RUN)
        assert status == 201
        assert await service.end(signal.SIGTERM) == 0


async def test_without_standard_streams_it_serves_and_loses_its_log(tmp_path: Path) -> None:
    port = free_port()
    closed = f"exec {sys.executable} -m app serve --sandbox <&- >&- 2>&-"
    process = await asyncio.create_subprocess_exec("sh", "-c", closed, env=environment(tmp_path, port))
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as http:
            while True:
                assert process.returncode is None
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    async with http.post(f"http://127.0.0.1:{port}/runs", json=RUN) as answer:
                        assert answer.status == 201
                        break
                await asyncio.sleep(0.05)  # nothing is said that could be waited for
        if (numbers := Path(f"/proc/{process.pid}/fd")).exists():  # Linux: no file of ours has their numbers
            assert [(numbers / str(number)).readlink() for number in range(3)] == [Path(os.devnull)] * 3
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_exposure_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    ended = await command(tmp_path / "data", "serve", "--sandbox", port=free_port(), RUNRECORDS_SERVER__HOST="0.0.0.0")  # noqa: S104
    assert ended.code == 2
    assert "INTERNAL_API_TOKEN" in ended.err
    assert not (tmp_path / "data").exists()


async def test_a_half_sent_body_does_not_keep_a_stop_waiting(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        _, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
        writer.write(
            b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        await writer.drain()
        await service.call("GET", "/healthz")
        began = asyncio.get_running_loop().time()
        assert await service.end(signal.SIGTERM) == 0
        assert asyncio.get_running_loop().time() - began < 15  # the limit of a stop is 20 s
        writer.close()


async def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        (tmp_path / "other").mkdir()
        port = int(service.url.rpartition(":")[2])
        second = await command(tmp_path / "other", "serve", "--sandbox", port=port)
    assert second.code == 2
    assert "cannot listen" in second.err
    assert "Traceback" not in second.err


async def test_serve_without_a_base_names_both_ways_out(tmp_path: Path) -> None:
    ended = await command(tmp_path, "serve", port=free_port())
    assert ended.code == 2
    assert "base_id" in ended.err
    assert "AIRTABLE_API_KEY" in ended.err
    assert "--sandbox" in ended.err


async def test_it_refuses_to_listen_beyond_this_machine_without_tokens(tmp_path: Path) -> None:
    ended = await command(tmp_path, "serve", "--sandbox", port=free_port(), RUNRECORDS_SERVER__HOST="0.0.0.0")  # noqa: S104
    assert ended.code == 2
    assert "INTERNAL_API_TOKEN and APIFY_WEBHOOK_SECRET" in ended.err


async def test_a_store_of_the_sandbox_refuses_a_real_base(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        await service.end(signal.SIGTERM)
    real = {"RUNRECORDS_AIRTABLE__BASE_ID": "appSomeOtherBase1", "AIRTABLE_API_KEY": "pat"}
    ended = await command(tmp_path, "serve", port=free_port(), **real)
    assert ended.code == 1
    assert "belongs to base" in ended.err


async def test_a_later_signal_ends_it_at_once(tmp_path: Path) -> None:
    """A request that never ends would keep the first one waiting."""
    async with served(tmp_path) as service:
        _, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
        writer.write(
            b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        )
        await writer.drain()
        await service.call("GET", "/healthz")
        service.process.send_signal(signal.SIGTERM)
        await service.said("process.stopping")
        service.process.send_signal(signal.SIGTERM)  # within half a second: the same request
        await asyncio.sleep(0.6)
        assert service.process.returncode is None
        assert await service.end(signal.SIGTERM) == 128 + signal.SIGTERM
        writer.close()


async def test_the_demo_ends_well_and_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    ended = await run(afresh, ("demo",), environment(tmp_path, 1))
    assert ended.code == 0, ended.out + ended.err
    assert "All as it should be." in ended.out
    assert "251007-070457-Guy-Wilson" in ended.out
    assert "missing_records" in ended.out
    assert ended.err == ""


async def test_a_loop_that_dies_ends_the_process_with_1_instead_of_serving_on(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        broken = (
            "CREATE TRIGGER broken BEFORE INSERT ON airtable_calls BEGIN SELECT RAISE (ABORT, 'broken by hand'); END"
        )
        meddle(tmp_path / "runs.db", broken)
        await service.call("POST", "/runs", RUN)
        assert await service.ended() == 1
        log = "".join(service.lines)
    assert '"event": "loop.died"' in log
    assert "broken by hand" in log
    kept = rows(tmp_path / "runs.db", "SELECT run_id, state FROM outbox")
    assert kept == [(RUN_ID, "pending")]
