"""A sandbox with a journal is there again after its process was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.airtable import Client

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def client() -> Client:
    return Client()


# --- what survives ---


def test_what_was_answered_is_there_again_after_a_kill(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    before = Client(journal=journal)
    before.create({"Run ID": "a", "Start Time": "2025-10-07T07:00:00Z", "Total Posts Harvested": 1, "Checked": True})
    before.create({"Run ID": "b", "Apify API Costs": 0.5, "Status": "New"}, typecast=True)
    before.upsert({"Run ID": "a", "Client Name": "G"})
    before.call("DELETE", f"/{before.sandbox.insert({'Run ID': 'gone'}).id}")
    before.sandbox.remove_column("System Notes")

    after = Client(journal=journal, seed=99)

    assert after.sandbox.records() == before.sandbox.records()
    assert after.sandbox.schema == before.sandbox.schema
    assert type(after.cells()[0]["Total Posts Harvested"]) is int
    assert after.cells()[0]["Checked"] is True
    assert after.upsert({"Run ID": "b"}).at("createdRecords") == []
    assert after.create({"Status": "New"}).status == 200


def test_a_new_process_with_the_same_seed_makes_no_id_twice(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    for _ in range(3):
        Client(journal=journal).create({"Run ID": "a"}, {"Run ID": "b"})
    assert len({record.id for record in Client(journal=journal).sandbox.records()}) == 6


def test_a_line_that_a_kill_cut_short_is_dropped_and_the_journal_goes_on_after_it(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    before = Client(journal=journal)
    before.create({"Run ID": "a"})
    whole = journal.stat().st_size
    before.create({"Run ID": "b"})
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 1)

    after = Client(journal=journal)
    assert after.cells() == [{"Run ID": "a"}]
    assert journal.stat().st_size == whole
    after.create({"Run ID": "c"})
    assert [cells["Run ID"] for cells in Client(journal=journal).cells()] == ["a", "c"]


def test_a_journal_broken_in_the_middle_is_told_and_not_guessed_at(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    Client(journal=journal).create({"Run ID": "a"})
    journal.write_bytes(b"{\n" + journal.read_bytes())
    with pytest.raises(ValueError, match="line 1"):
        Client(journal=journal)


def test_a_write_that_the_journal_refuses_has_not_happened(tmp_path: Path) -> None:
    journal = tmp_path / "airtable.jsonl"
    client = Client(journal=journal)
    journal.unlink()
    journal.mkdir()
    with pytest.raises(OSError, match="directory"):
        client.create({"Run ID": "a"})
    assert client.cells() == []
