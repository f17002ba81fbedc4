"""What is asked of Airtable beside deliveries, and what the answers say. Cells are by column, as Airtable has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from app.policy.delivery import Denied, QuotaExhausted, RateLimited, Refused, Unknown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from app.model import Json


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record as Airtable has it; empty cells are missing."""

    id: str
    cells: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of records; `offset` asks for the next one, `None` on the last."""

    records: tuple[FoundRecord, ...]
    offset: str | None = None
    status: int = 200


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the real table: its type in Airtable's words, and a select's options."""

    name: str
    type: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Described:
    """The table's real schema, `None` where the base has no such table; and the names of the tables that it has."""

    columns: tuple[Column, ...] | None
    tables: tuple[str, ...] = ()
    status: int = 200


@dataclass(frozen=True, slots=True)
class Identified:
    """Whose token it is. Airtable names the scopes of some kinds of token only; `date` is its clock at the answer."""

    user_id: str
    scopes: tuple[str, ...] | None
    date: datetime | None
    status: int = 200


Failure: TypeAlias = Refused | RateLimited | QuotaExhausted | Denied | Unknown
ListAnswer: TypeAlias = Listed | Failure
DescribeAnswer: TypeAlias = Described | Failure
IdentifyAnswer: TypeAlias = Identified | Failure
AskedAnswer: TypeAlias = Listed | Described | Failure


#: Half a million records at a hundred a page: no plan of Airtable lets a base hold more (a documented limit).
MOST_PAGES: Final = 5_000


class Paging:
    """The way from page to page of one listing, which has an end: calls are counted, and others wait for theirs."""

    def __init__(self) -> None:
        self._offsets: set[str] = set()

    def checked(self, page: ListAnswer) -> ListAnswer:
        """The page; or no answer that makes sense, where it leads to one that was read or cannot be.

        One without records may lead on: whether Airtable sends any, of records that were deleted meanwhile, is unknown.
        """
        if not isinstance(page, Listed) or page.offset is None:
            return page
        if page.offset in self._offsets:
            return Unknown("a page that one is to follow that was read already", page.status)
        if len(self._offsets) + 1 >= MOST_PAGES:
            return Unknown(f"more than the {MOST_PAGES:,} pages that a base can fill", page.status)
        self._offsets.add(page.offset)
        return page
