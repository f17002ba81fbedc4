"""Serves in a forked child for each line of standard input, and says how the child ended.

It is forked itself (`tests.support.spawning`), so that nothing is imported twice; each child ends as an interpreter of
its own does. A line is a `ServeOrder` as JSON; the answers are `pid N` and `code N` (negative: the signal that killed
it). What is special about a child is done to its `sqlite3` here, and nothing of it stands in the program.
"""

from __future__ import annotations

import faulthandler
import functools
import io
import json
import os
import signal
import socket
import sqlite3
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from app import process
from app.config import Secrets, load_settings
from app.logs import configure_logs
from tests.support.disk import record_writes

if TYPE_CHECKING:
    from collections.abc import Sequence

Place = Literal["before", "after", "before its commit", "after its commit"]


@dataclass(frozen=True)
class Crash:
    """Where a child kills itself: the `count`th time that it runs what begins like one of these, on any connection."""

    statements: tuple[str, ...]
    place: Place
    count: int = 1


@dataclass(frozen=True)
class ServeOrder:
    """`log` is the file that gets the child's standard error; `writes` the one that gets all it does to its disk.

    `nameless` are hosts whose name is looked up without end. Where it is `signalled_late`, signals come when all is
    closed and said.
    """

    environment: dict[str, str]
    log: str
    crash: Crash | None = None
    writes: str | None = None
    nameless: tuple[str, ...] = ()
    signalled_late: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServeOrder:
        parts = json.loads(text)
        if crash := parts.pop("crash"):
            crash = Crash(tuple(crash["statements"]), crash["place"], crash["count"])
        return cls(**{**parts, "crash": crash})


class Killing(sqlite3.Connection):
    """A connection that kills its process as a `Crash` says."""

    crash: Crash
    left: int

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        is_it = sql.startswith(self.crash.statements)
        if is_it:
            Killing.left -= 1
            self._at("before")
        committing = sql == "COMMIT"
        if committing:
            self._at("before its commit")
        cursor = super().execute(sql, *values)  # type: ignore[arg-type]
        if is_it:
            self._at("after")
        if committing:
            self._at("after its commit")
        return cursor

    def _at(self, place: Place) -> None:
        if Killing.left <= 0 and place == self.crash.place:
            os.kill(os.getpid(), signal.SIGKILL)


def look_up_without_end(hosts: Sequence[str]) -> None:
    """As a resolver does whose name servers do not answer: there is no way to end it from without."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str | bytes, *more: int, **named: int) -> object:
        name = host.decode() if isinstance(host, bytes) else host
        if name in hosts:
            print(f"looking up {name}", file=sys.stderr, flush=True)  # noqa: T201
            threading.Event().wait()
        return look_up(host, *more, **named)

    socket.getaddrinfo = getaddrinfo  # type: ignore[assignment]


class LateSignals(io.StringIO):
    """Stands in for standard output, whose flush is among the last things that a service does."""

    def flush(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)


def serve(order: ServeOrder) -> NoReturn:
    os.environ.update(order.environment)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stderr.fileno())
    faulthandler.register(signal.SIGUSR1)  # who waits in vain for our end learns where we are
    if order.crash is not None:
        Killing.crash, Killing.left = order.crash, order.crash.count
        sqlite3.connect = functools.partial(sqlite3.connect, factory=Killing)  # type: ignore[assignment]
    look_up_without_end(order.nameless)
    if order.signalled_late:
        sys.stdout = LateSignals()
    _recorder = record_writes(Path(order.writes)) if order.writes is not None else None  # lives as long as we do
    secrets = Secrets.from_environment()
    configure_logs(secrets.all())
    process.run(process.serve(load_settings(None), secrets))


def main() -> None:
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            serve(ServeOrder.from_json(line))
        print("pid", child, flush=True)  # noqa: T201
        _, status = os.waitpid(child, 0)
        print("code", os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201
