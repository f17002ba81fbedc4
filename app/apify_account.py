"""What Apify says of a token and an actor, asked once for a person. Knows nothing of batches and runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.apify_client import Apify, client_with
from app.apify_transport import BoundedClient

if TYPE_CHECKING:
    from datetime import datetime

    from apify_client import ApifyClientAsync

    from app.apify_client import ApifyAccess


@dataclass(frozen=True, slots=True)
class AccountSeen:
    """What Apify said of a token and an actor: each trouble is a text for a person, `None` where there is none.

    `date` is Apify's clock at its first answer.
    """

    user: str | None = None
    token_trouble: str | None = None
    actor_trouble: str | None = None
    date: datetime | None = None


async def look_at_account(access: ApifyAccess, actor_id: str) -> AccountSeen:
    """Ask once who the token is, and once for the actor if it is named. Never raises for what the other side does."""
    apify = Apify(access)
    bounded = BoundedClient(timeout_seconds=access.timeout_seconds, retries=0)
    client = client_with(access, bounded)
    try:
        user = await client.user().get()
        if user is None:
            return AccountSeen(token_trouble="Apify knows no user of this token", date=bounded.first_date)  # noqa: S106 - a text
        actor_trouble = await _actor_trouble(client, actor_id, apify) if actor_id else None
        return AccountSeen(user=user.username, actor_trouble=actor_trouble, date=bounded.first_date)
    except Exception as error:  # noqa: BLE001 - whatever it is, a person is to read it
        return AccountSeen(token_trouble=apify.told(error), date=bounded.first_date)
    finally:
        await bounded.aclose()
        await apify.close()


async def _actor_trouble(client: ApifyClientAsync, actor_id: str, apify: Apify) -> str | None:
    try:
        found = await client.actor(actor_id).get()
    except Exception as error:  # noqa: BLE001 - as above
        return apify.told(error)
    return None if found is not None else f"Apify knows no actor {actor_id!r} that this token may see"
