"""`runrecords prune`, through a running service and without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.process import command, free_port, served
from tests.support.watching import meddle, rows

if TYPE_CHECKING:
    from pathlib import Path

RUN = {"client_id": "Guy-Wilson", "job_id": "251007-070457"}
LONG_AGO = "2020-01-01T00:00:00.000Z"
TOKEN = {"INTERNAL_API_TOKEN": "a-token-of-the-tests"}


async def test_what_is_past_its_days_goes_beside_a_running_service_and_without_one(tmp_path: Path) -> None:
    port = free_port()
    auth = {"Authorization": "Bearer a-token-of-the-tests", "Idempotency-Key": "k"}
    async with served(tmp_path, port=port, **TOKEN) as service:
        await service.call("POST", "/runs", RUN, auth)
        await service.said("sync.delivered")
        assert rows(tmp_path / "runs.db", "SELECT key FROM idempotency_keys") == [("k",)]
        meddle(tmp_path / "runs.db", "UPDATE idempotency_keys SET accepted_at = ?", LONG_AGO)
        through = await command(tmp_path, "prune", "--json", port=port, **TOKEN)
        assert through.code == 0, through.err
        report = json.loads(through.out)
        assert (report["idempotency_keys"], report["messages"], report["calls"]) == (1, 0, 0)
    meddle(tmp_path / "runs.db", "UPDATE airtable_calls SET started_at = ?", LONG_AGO)
    alone = await command(tmp_path, "prune", port=port)
    assert alone.code == 0, alone.err
    assert "Pruned" in alone.out
    assert rows(tmp_path / "runs.db", "SELECT count(*) FROM airtable_calls") == [(0,)]
