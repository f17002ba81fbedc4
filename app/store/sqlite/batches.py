"""The rows of batches: a batch's row moves on, and its run's figures follow as an ordinary update."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

from app.model import BatchState, Source
from app.policy.harvest import Batch
from app.policy.rollup import new_failure, run_change
from app.store.sqlite.intake import When, change_run

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

COLUMNS: Final = tuple(one.name for one in fields(Batch))
SELECT_BATCH = f"SELECT {', '.join(COLUMNS)} FROM batches"
BATCH_BY_ID = f"{SELECT_BATCH} WHERE id = ?"
BATCHES_OF_RUN = f"{SELECT_BATCH} WHERE run_id = ? ORDER BY number"
#: A batch keeps its name. To write it again would cost more than it says: SQLite would look through all webhooks for
#: those that refer to its id, as if that could change.
NAME: Final = ("id", "run_id", "number", "token")
UPDATE_BATCH = f"UPDATE batches SET {', '.join(f'{one} = :{one}' for one in COLUMNS if one not in NAME)} WHERE id = :id"
SELECT_STATUS_BY = "SELECT status_by FROM runs WHERE run_id = ?"


def batch_of(row: sqlite3.Row) -> Batch:
    values = dict(zip(COLUMNS, row, strict=True))
    values["state"] = BatchState(values["state"])
    values["outcome"] = BatchState(values["outcome"]) if values["outcome"] else None
    return Batch(**values)


def batches_of(connection: sqlite3.Connection, run_id: str) -> list[Batch]:
    return [batch_of(row) for row in connection.execute(BATCHES_OF_RUN, (run_id,))]


def move_batch(connection: sqlite3.Connection, batch: Batch, moved: Batch, known: Sequence[str], when: When) -> None:
    """Write a batch's next state, and queue what it changes in its run."""
    run = RunChanged(connection, batch.run_id)
    run.move(connection, batch, moved)
    run.show(connection, known, when)


class RunChanged:
    """A run whose batches move on, some of them often: it is rolled up once, and none of their failures is lost."""

    def __init__(self, connection: sqlite3.Connection, run_id: str) -> None:
        self._run_id = run_id
        self._before = batches_of(connection, run_id)
        self._now = {one.id: one for one in self._before}
        self._failures: list[str] = []

    def move(self, connection: sqlite3.Connection, batch: Batch, moved: Batch) -> None:
        connection.execute(UPDATE_BATCH, {name: getattr(moved, name) for name in COLUMNS})
        self._failures += new_failure(batch, moved)
        self._now[moved.id] = moved

    def show(self, connection: sqlite3.Connection, known: Sequence[str], when: When) -> None:
        """Queue what has changed in the run."""
        status_by = connection.execute(SELECT_STATUS_BY, (self._run_id,)).fetchone()["status_by"]
        change = run_change(
            self._before,
            list(self._now.values()),
            failures=self._failures,
            known=known,
            status_is_ours=status_by == "batches",
        )
        if change.names():
            change_run(connection, self._run_id, change, Source.HARVEST, when)
