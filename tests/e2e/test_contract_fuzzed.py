"""schemathesis reads `/openapi.json` and sends what it allows and what it forbids, over a real socket.

Whatever comes: no answer that the contract does not describe, no 5xx, nothing forbidden that is taken.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.sandbox.airtable_limits import NO_LIMITS
from tests.support.harness import INTERNAL_TOKEN, WEBHOOK_SECRET, harness
from tests.support.watching import rows

if TYPE_CHECKING:
    from app.model import Json

ROOT = Path(__file__).parents[2]


async def fuzz(folder: Path, *more: str, seed: int) -> dict[str, Json]:
    """Run schemathesis by every check against the service; what it counted."""
    report = folder / "report.json"
    async with harness(folder, airtable={"requests_per_second": 50}) as house:
        house.airtable.limits = NO_LIMITS
        async with house.running() as service:
            process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("schemathesis"),
                "--config-file", str(ROOT / "tests/support/schemathesis.toml"),
                "run", f"{service.url}/openapi.json", "--no-color", "--generation-database", "none",
                "--seed", str(seed), "--report", "json", "--report-json-path", str(report), *more,
                cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                env={
                    **os.environ, "PYTHONPATH": str(ROOT),
                    "INTERNAL_API_TOKEN": INTERNAL_TOKEN, "APIFY_WEBHOOK_SECRET": WEBHOOK_SECRET,
                },
            )  # fmt: skip
            try:
                told, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert process.returncode == 0, f"seed {seed}\n{told.decode()}"
            await house.synced()
            # It reached the store, and what it left there is in Airtable, a record a run.
            known = {run_id for (run_id,) in rows(house.store_path, "SELECT run_id FROM runs")}
            assert len(known) > 3
            assert set(house.records()) == known
    answer: dict[str, Json] = json.loads(report.read_text())
    return answer


async def test_no_request_gets_an_answer_that_the_contract_does_not_describe(tmp_path: Path) -> None:
    report = await fuzz(tmp_path, "--max-examples", "15", "--phases", "examples,fuzzing", seed=1)
    counted = report["test_cases"]
    assert isinstance(counted, dict)
    assert isinstance(counted["generated"], int)
    assert counted["generated"] > 200


@pytest.mark.soak
@pytest.mark.timeout(3_600)
async def test_ten_thousand_requests_get_no_answer_that_the_contract_does_not_describe(tmp_path: Path) -> None:
    generated = 0
    for seed in range(1, 20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        counted = (await fuzz(folder, "--max-examples", "100", seed=seed))["test_cases"]
        assert isinstance(counted, dict)
        assert isinstance(counted["generated"], int)
        generated += counted["generated"]
        if generated >= 10_000:
            return
    raise AssertionError(f"only {generated} cases")
