"""How often a property is tried: little in the quick suite, often in `make soak`."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> int:
    """`count` by hypothesis' own measure (100 where a test says nothing), as the profile in use scales it."""
    return max(1, count * settings.default.max_examples // 100)  # type: ignore[union-attr]
