"""What the schema itself refuses of errors and of a check's repairs."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.support.shell import AT, LATER, Shell

if TYPE_CHECKING:
    from pathlib import Path

INSERT = (
    "INSERT {or_} INTO errors (kind, run_id, message, cause, first_at, last_at, found_record_id) "
    "VALUES (?, ?, 'x', ?, ?, ?, ?)"
)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "runs.db")


def found(
    shell: Shell, kind: str, record_id: str | None, run_id: str = "run", cause: str | None = None, or_: str = ""
) -> None:
    shell.do(INSERT.format(or_=or_), kind, run_id, cause, AT, AT, record_id)


@pytest.mark.parametrize("or_", ["", "OR REPLACE", "OR ABORT"])
def test_a_finding_is_open_once(shell: Shell, or_: str) -> None:
    """Of a run by its kind, a refusal also by its cause, and a stranger's record by its own id."""
    once = [
        ("drift", "rec1", "run", None),
        ("record_deleted", "rec1", "run", None),
        ("duplicate_record", None, "run", None),
        ("rejected", None, "run", "no"),
        ("unknown_record", "rec1", "run", None),
    ]
    others = [
        ("drift", "rec1", "other", None),
        ("record_deleted", "rec1", "other", None),
        ("duplicate_record", None, "other", None),
        ("rejected", None, "run", "never"),
        ("rejected", None, "other", "no"),
        ("unknown_record", "rec2", "run", None),
    ]
    for one in (*once, *others):
        found(shell, *one)
    before = shell.dump()
    for kind, record_id, run_id, cause in once:
        elsewhere = record_id if kind == "unknown_record" else "rec9"
        with pytest.raises(sqlite3.IntegrityError, match="open already"):
            found(shell, kind, elsewhere, run_id, cause, or_)
    assert shell.dump() == before
    shell.do("UPDATE errors SET state = 'resolved', resolved_at = ?, resolution = 'by_hand'", LATER)
    for one in once:
        found(shell, *one, or_)


def test_an_error_cannot_become_or_stop_being_a_finding(shell: Shell) -> None:
    found(shell, "drift", "rec1")
    found(shell, "drift", None, "other")
    for record_id, error_id in (("rec2", 1), (None, 1), ("rec2", 2)):
        with pytest.raises(sqlite3.IntegrityError, match="keeps what it is about"):
            shell.do("UPDATE errors SET found_record_id = ? WHERE id = ?", record_id, error_id)
    shell.do("UPDATE errors SET cause = 'it drifted further', count = 2 WHERE id = 1")


def test_a_repair_is_an_update_like_any_other(shell: Shell) -> None:
    """It needs the create of its run: a check can create nothing."""
    with pytest.raises(sqlite3.IntegrityError):
        shell.do(
            "INSERT INTO outbox (run_id, kind, source, fields, change, accepted_at) "
            "VALUES ('run', 'update', 'repair', '[]', '{}', ?)",
            AT,
        )
