from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.harness import Harness, harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Harness]:
    """The service and its sandbox, not started yet."""
    async with harness(tmp_path) as made:
        yield made
