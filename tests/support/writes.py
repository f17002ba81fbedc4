"""One write through the real client, past the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.policy.delivery import Claim, ClaimedRun, Waiting

if TYPE_CHECKING:
    from app.airtable import Airtable
    from app.policy.delivery import Answer

#: What `write_posts` writes.
POSTS = "Total Posts Harvested"


async def write_posts(airtable: Airtable, record_id: str, posts: int) -> Answer:
    """Set one cell of a record, which tells later which write was the last."""
    run = ClaimedRun("a-run", record_id, 10, 0, (Waiting(1, ("posts_harvested",), 1),), {"posts_harvested": posts})
    return await airtable.deliver(Claim(1, False, (run,)))
