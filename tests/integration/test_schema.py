"""The schema alone keeps create before update: shown with the stdlib's `sqlite3`, as in a person's shell."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.support.shell import AT, LATER, Shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = "251007-Guy"
OTHER = "251007-Ann"
ADOPTED = "251007-Eve"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    opened = Shell(tmp_path / "by-hand.db")
    yield opened
    opened.connection.close()


def refuses(shell: Shell, why: str, sql: str, *values: str | int | None) -> None:
    """The statement fails for that reason, and leaves every row as it was."""
    before = shell.dump()
    with pytest.raises(sqlite3.IntegrityError, match=why):
        shell.do(sql, *values)
    assert shell.dump() == before


def test_the_shell_has_no_help_from_the_program(shell: Shell) -> None:
    assert shell.one("PRAGMA foreign_keys") == 0
    assert shell.one("PRAGMA recursive_triggers") == 0


def test_the_whole_way_of_a_run_is_legal(shell: Shell) -> None:
    create = shell.kick_off(RUN)
    update = shell.add_message(RUN, "update")
    shell.send(create)
    shell.send(update)
    shell.do("UPDATE outbox SET state = 'pending' WHERE id = ?", update)
    shell.do("UPDATE outbox SET state = 'pending' WHERE id = ?", create)
    shell.deliver_create(RUN)
    shell.send(update, 2)
    shell.set_aside(update)
    shell.do("UPDATE outbox SET state = 'pending', dead_at = NULL, error_id = NULL WHERE id = ?", update)
    shell.send(update, 3)
    shell.deliver(update)
    assert shell.one("SELECT count(*) FROM outbox WHERE state = 'delivered'") == 2
    assert shell.do("DELETE FROM outbox WHERE kind = 'update'") == 1


def test_an_adopted_run_takes_updates_without_a_create(shell: Shell) -> None:
    shell.add_run(ADOPTED, "adopted", "recEve")
    update = shell.add_message(ADOPTED, "update")
    shell.send(update)
    shell.deliver(update)
    assert shell.one("SELECT state FROM outbox") == "delivered"


# Create before update -------------------------------------------------------------------------------------------

INSERT = "INSERT {or_} INTO outbox (run_id, kind, source, fields, change, accepted_at) VALUES (?, ?, 'caller', ?, ?, ?)"
FORCES = ["", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ROLLBACK"]


@pytest.mark.parametrize("force", FORCES)
def test_a_message_of_no_run_is_refused(shell: Shell, force: str) -> None:
    insert = INSERT.format(or_=force)
    refuses(shell, r"a message needs its run|an update needs", insert, RUN, "update", "[]", "{}", AT)
    refuses(shell, "a message needs its run", insert, RUN, "create", "[]", "{}", AT)


@pytest.mark.parametrize("force", FORCES)
def test_an_update_without_the_create_of_its_run_is_refused(shell: Shell, force: str) -> None:
    shell.add_run(RUN)
    refuses(shell, "an update needs the create", INSERT.format(or_=force), RUN, "update", "[]", "{}", AT)


@pytest.mark.parametrize("force", FORCES)
def test_a_second_create_is_refused(shell: Shell, force: str) -> None:
    shell.kick_off(RUN)
    refuses(shell, "a run is created once", INSERT.format(or_=force), RUN, "create", "[]", "{}", AT)


@pytest.mark.parametrize("force", FORCES)
def test_a_create_of_an_adopted_run_is_refused(shell: Shell, force: str) -> None:
    shell.add_run(ADOPTED, "adopted", "recEve")
    refuses(shell, "a run is created once", INSERT.format(or_=force), ADOPTED, "create", "[]", "{}", AT)


def test_an_update_cannot_become_the_second_create_of_its_run(shell: Shell) -> None:
    shell.kick_off(RUN)
    shell.add_message(RUN, "update")
    refuses(shell, "keeps what was accepted", "UPDATE OR REPLACE outbox SET kind = 'create' WHERE kind = 'update'")


def test_an_adopted_run_cannot_be_turned_into_one_that_may_be_created(shell: Shell) -> None:
    shell.add_run(ADOPTED, "adopted", "recEve")
    refuses(shell, "keeps its name and origin", "UPDATE runs SET origin = 'kickoff'")


def test_an_upsert_cannot_turn_one_message_into_another(shell: Shell) -> None:
    shell.kick_off(RUN)
    upsert = INSERT.format(or_="") + " ON CONFLICT DO UPDATE SET kind = 'update'"
    refuses(shell, "a run is created once", upsert, RUN, "create", "[]", "{}", AT)


def test_a_row_cannot_be_put_in_the_place_of_a_create(shell: Shell) -> None:
    create = shell.kick_off(RUN)
    taking_its_place = (
        "INSERT OR REPLACE INTO outbox (id, run_id, kind, source, fields, change, accepted_at) "
        "VALUES (?, ?, 'update', 'caller', '[]', '{}', ?)"
    )
    refuses(shell, "this message exists already", taking_its_place, create, RUN, AT)


@pytest.mark.parametrize("column", ["id", "rowid", "_rowid_", "oid"])
def test_an_update_cannot_be_moved_onto_a_create(shell: Shell, column: str) -> None:
    create = shell.kick_off(RUN)
    update = shell.add_message(RUN, "update")
    onto = f"UPDATE OR REPLACE outbox SET {column} = ? WHERE id = ?"
    refuses(shell, "a message keeps its place", onto, create, update)


# On its way -----------------------------------------------------------------------------------------------------

SEND = "UPDATE {or_} outbox SET state = 'sending', call_id = ? WHERE id = ?"


@pytest.mark.parametrize("force", ["", "OR REPLACE", "OR IGNORE"])
@pytest.mark.parametrize("create_call", [None, 2], ids=["create waits", "create in another call"])
def test_an_update_is_not_sent_while_its_create_is_not_with_it(
    shell: Shell, create_call: int | None, force: str
) -> None:
    create = shell.kick_off(RUN)
    update = shell.add_message(RUN, "update")
    if create_call is not None:
        shell.send(create, create_call)
    refuses(shell, "sent with its create or after it", SEND.format(or_=force), 1, update)


def test_an_update_rides_with_its_create(shell: Shell) -> None:
    create = shell.kick_off(RUN)
    update = shell.add_message(RUN, "update")
    shell.send(create, 1)
    shell.send(update, 1)
    assert shell.one("SELECT count(*) FROM outbox WHERE state = 'sending'") == 2


def test_an_update_is_not_moved_to_a_call_without_its_create(shell: Shell) -> None:
    create = shell.kick_off(RUN)
    update = shell.add_message(RUN, "update")
    shell.send(create, 1)
    shell.send(update, 1)
    refuses(shell, "sent with its create or after it", "UPDATE outbox SET call_id = 2 WHERE id = ?", update)


@pytest.mark.parametrize(
    "away",
    [
        "state = 'pending'",
        "call_id = 2",
        f"state = 'dead', dead_at = '{LATER}', error_id = 1",
    ],
)
def test_a_create_does_not_leave_the_updates_that_ride_with_it(shell: Shell, away: str) -> None:
    create = shell.kick_off(RUN)
    update = shell.add_message(RUN, "update")
    shell.add_error("rejected", RUN)
    shell.send(create, 1)
    shell.send(update, 1)
    refuses(shell, "are taken back before it", f"UPDATE outbox SET {away} WHERE id = ?", create)


def test_a_known_record_id_is_not_forgotten(shell: Shell) -> None:
    shell.kick_off(RUN)
    shell.deliver_create(RUN)
    shell.send(shell.add_message(RUN, "update"))
    refuses(shell, "keeps its Airtable record", "UPDATE runs SET airtable_record_id = NULL")
    refuses(shell, "CHECK", "UPDATE runs SET airtable_record_id = ''")


def test_nothing_is_delivered_while_the_record_id_is_unknown(shell: Shell) -> None:
    create = shell.kick_off(RUN)
    shell.send(create)
    deliver = f"UPDATE outbox SET state = 'delivered', delivered_at = '{LATER}'"
    refuses(shell, "while the record id is unknown", deliver)


# States ---------------------------------------------------------------------------------------------------------

STATES = ("pending", "sending", "delivered", "dead")
LEGAL = {
    ("pending", "sending"),
    ("sending", "pending"),
    ("sending", "delivered"),
    ("sending", "dead"),
    ("dead", "pending"),
}


def update_in(shell: Shell, state: str) -> int:
    """An update of a synced run, brought to `state` on the legal way."""
    shell.kick_off(RUN)
    shell.deliver_create(RUN)
    update = shell.add_message(RUN, "update")
    if state != "pending":
        shell.send(update)
    if state == "delivered":
        shell.deliver(update)
    if state == "dead":
        shell.set_aside(update)
    return update


def move(shell: Shell, message_id: int, state: str) -> None:
    """Give `state` and the columns that belong to it, so that only the move itself can be refused."""
    error_id = shell.add_error("rejected", None) if state == "dead" else None
    shell.do(
        "UPDATE outbox SET state = ?, call_id = 9, delivered_at = ?, dead_at = ?, error_id = ? WHERE id = ?",
        state,
        LATER if state == "delivered" else None,
        LATER if state == "dead" else None,
        error_id,
        message_id,
    )


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_a_message_moves_only_as_the_states_say(shell: Shell, before: str, after: str) -> None:
    update = update_in(shell, before)
    if before == after or (before, after) in LEGAL:
        move(shell, update, after)
        assert shell.one("SELECT state FROM outbox WHERE id = ?", update) == after
    else:
        with pytest.raises(sqlite3.IntegrityError, match="a message goes pending, sending"):
            move(shell, update, after)


@pytest.mark.parametrize("state", ["sending", "delivered", "dead"])
def test_a_message_starts_as_pending(shell: Shell, state: str) -> None:
    shell.add_run(RUN)
    columns: dict[str, dict[str, str | int]] = {
        "sending": {"call_id": 1},
        "delivered": {"delivered_at": AT},
        "dead": {"dead_at": AT, "error_id": 1},
    }
    with pytest.raises(sqlite3.IntegrityError, match="a message starts as pending"):
        shell.add_message(RUN, "create", state=state, **columns[state])


@pytest.mark.parametrize(
    ("state", "flaw"),
    [
        ("pending", "delivered_at = '2026-05-16T09:20:00.000Z'"),
        ("pending", "dead_at = '2026-05-16T09:20:00.000Z'"),
        ("pending", "error_id = 1"),
        ("pending", "state = 'sending', call_id = NULL"),
        ("sending", "call_id = NULL"),
        ("sending", "state = 'delivered'"),
        ("sending", "state = 'dead'"),
        ("sending", "state = 'dead', dead_at = '2026-05-16T09:20:00.000Z'"),
        ("delivered", "delivered_at = NULL"),
        ("dead", "dead_at = NULL"),
        ("dead", "error_id = NULL"),
        ("dead", "state = 'pending'"),
        ("pending", "attempts = -1"),
        ("pending", "state = 'lost'"),
        ("pending", "source = 'nobody'"),
    ],
)
def test_a_state_is_bound_to_its_columns(shell: Shell, state: str, flaw: str) -> None:
    update = update_in(shell, state)
    with pytest.raises(sqlite3.IntegrityError, match=r"CHECK|a message goes"):
        shell.do(f"UPDATE outbox SET {flaw} WHERE id = ?", update)


@pytest.mark.parametrize("column", ["run_id", "kind", "fields", "change", "accepted_at"])
def test_a_message_keeps_what_was_accepted(shell: Shell, column: str) -> None:
    shell.kick_off(OTHER)
    update = update_in(shell, "pending")
    other = {
        "run_id": OTHER,
        "kind": "create",
        "fields": '["status"]',
        "change": '{"set":{}}',
        "accepted_at": LATER,
    }[column]
    refuses(shell, "keeps what was accepted", f"UPDATE OR IGNORE outbox SET {column} = ? WHERE id = ?", other, update)


# Nothing lost ---------------------------------------------------------------------------------------------------


def test_creates_and_what_is_not_delivered_are_not_deleted(shell: Shell) -> None:
    update = update_in(shell, "pending")
    refuses(shell, "creates are kept", "DELETE FROM outbox WHERE kind = 'create'")
    refuses(shell, "only what was delivered", "DELETE FROM outbox WHERE id = ?", update)
    shell.send(update)
    refuses(shell, "only what was delivered", "DELETE FROM outbox WHERE id = ?", update)
    shell.set_aside(update)
    refuses(shell, "only what was delivered", "DELETE FROM outbox WHERE id = ?", update)
    refuses(shell, "are kept|only what was delivered", "DELETE FROM outbox")


def test_ids_of_deleted_messages_are_not_given_again(shell: Shell) -> None:
    update = update_in(shell, "delivered")
    shell.do("DELETE FROM outbox WHERE id = ?", update)
    assert shell.add_message(RUN, "update") > update
