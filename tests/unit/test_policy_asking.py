"""Which pages of a listing lead on."""

from __future__ import annotations

from app.policy.asking import MOST_PAGES, FoundRecord, Listed, Paging
from app.policy.delivery import RateLimited, Unknown

RECORDS = (FoundRecord("rec00000000000001", {}),)


def test_pages_lead_on_to_the_last_whatever_comes_between_them() -> None:
    paging = Paging()
    for page in (Listed(RECORDS, "a"), RateLimited("later"), Listed((), "b"), Listed(RECORDS, "c"), Listed(())):
        assert paging.checked(page) is page


def test_a_page_that_leads_nowhere_makes_no_sense() -> None:
    paging = Paging()
    for offset in ("a", "b"):
        assert isinstance(paging.checked(Listed(RECORDS, offset)), Listed)
    for records in (RECORDS, ()):
        assert isinstance(paging.checked(Listed(records, "a")), Unknown)


def test_more_pages_than_a_base_can_fill_make_no_sense() -> None:
    paging = Paging()
    for number in range(MOST_PAGES - 1):
        records = RECORDS if number % 2 else ()
        assert isinstance(paging.checked(Listed(records, str(number))), Listed)
    assert isinstance(paging.checked(Listed(RECORDS, "another")), Unknown)
    assert isinstance(paging.checked(Listed(RECORDS)), Listed)
