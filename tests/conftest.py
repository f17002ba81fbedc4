from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.harness import Harness, QuickClock, harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


#: How many examples a property is tried with, in percent (see `examples`): `--hypothesis-profile soak` tries many.
settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("soak", max_examples=1_000, deadline=None)
settings.load_profile("quick")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Harness]:
    """The service and its sandbox, not started yet."""
    async with harness(tmp_path) as made:
        yield made


@pytest.fixture
async def served(house: Harness) -> AsyncIterator[Harness]:
    """The same, running."""
    async with house.running():
        yield house


@pytest.fixture
async def quick_house(tmp_path: Path) -> AsyncIterator[Harness]:
    """The service in a time that runs quickly: for what waits its due second, and does not judge how long that took."""
    async with harness(tmp_path, clock=QuickClock(5), airtable={"timeout_seconds": 0.5}) as made:
        yield made
