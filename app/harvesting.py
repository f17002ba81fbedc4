"""The harvest put together: Apify's client and the loop that steps batches with it.

Apart from the rest, because a service without an Apify token need not load apify-client: a third of a second, and
memory for hundreds of models.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from app.apify_client import Apify, ApifyAccess
from app.config import is_loopback_url
from app.harvest import HarvestLoop
from app.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.clock import Clock
    from app.config import Secrets, Settings
    from app.store.protocol import Harvest

log = get_logger(__name__)


@contextlib.asynccontextmanager
async def harvest_loop(
    settings: Settings, secrets: Secrets, own_url: str, store: Harvest, clock: Clock, *, on_work: Callable[[], None]
) -> AsyncIterator[HarvestLoop]:
    """The loop, which has taken up what a stop left under way, and is yet to run. `own_url` is where we listen."""
    apify = Apify(_access(settings, secrets, own_url))
    try:
        loop = HarvestLoop(store, apify, clock, shutdown_seconds=settings.sync.shutdown_seconds, on_work=on_work)
        await loop.recover()
        yield loop
    finally:
        await apify.close()


def _access(settings: Settings, secrets: Secrets, own_url: str) -> ApifyAccess:
    """Apify reaches us at `public_url`; a sandbox on this machine, where we listen."""
    public_url = settings.server.public_url or (own_url if is_loopback_url(settings.apify.api_url) else "")
    if not public_url:
        log.warning("harvest.no_webhooks", reason="[server] public_url is not set: ends of runs are found by polling")
    return ApifyAccess(
        token=secrets.apify_token,
        api_url=settings.apify.api_url,
        public_url=public_url,
        webhook_secret=secrets.webhook_secrets[0] if secrets.webhook_secrets else "",
    )
