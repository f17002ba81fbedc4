"""How the commands show things: tables for people, as wide as the terminal; JSON for programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING

from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from app.store.views import CheckReport, ErrorView, MessageView, NoRun, Page, PruneReport, RunSummary, RunView, Stats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from app.model import Json
    from app.store.views import CallCounts, HowFar, TimelineEntry

_STYLES = {
    "synced": "green",
    "delivered": "green",
    "resolved": "green",
    "pending": "yellow",
    "sending": "yellow",
    "failed": "red",
    "dead": "red",
    "open": "red",
    "ok": "green",
    "note": "yellow",
    "problem": "red",
}


def make_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table in which nothing is taken for markup: what callers wrote is shown as they wrote it."""
    table = Table(title=title, title_justify="left", header_style="bold")
    cells = [[_cell(value) for value in row] for row in rows]
    # The name of a row and its time are not broken as long as there is room for them.
    longest = max((len(row[0]) for row in cells), default=0)
    for place, column in enumerate(columns):
        whole = column.endswith("(UTC)") or (place == 0 and longest <= _WIDEST_NAME)
        table.add_column(column, overflow="fold", no_wrap=whole)
    for row in cells:
        table.add_row(*row)
    return table


_WIDEST_NAME = 32
#: Columns of a terminal on which a run's name has a column of its own.
_ROOM_FOR_NAMES = 100
_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)\.\d{3}Z")


def _cell(value: object) -> Text:
    text = "" if value is None else _ISO_TIME.sub(r"\1 \2", str(value))
    return Text(text, style=_STYLES.get(text, ""))


class Shower:
    def __init__(self, *, as_json: bool, console: Console | None = None) -> None:
        self._as_json = as_json
        self._console = console or Console()

    def stats(self, stats: Stats) -> None:
        if self._as_json:
            self._json(TypeAdapter(Stats).dump_json(stats))
            return
        rate = stats.creation_success_rate
        rows: list[tuple[str, object]] = [
            ("runs", stats.runs),
            ("messages waiting", stats.pending),
            ("waiting since", stats.oldest_pending_at or "-"),
            ("messages set aside", stats.dead),
            ("updates held", stats.held),
            ("creations delivered", "-" if rate is None else f"{rate:.1%}"),
            ("Airtable calls this month", stats.calls_this_month.total),
            ("at this pace, by its end", stats.calls_this_month.forecast),
        ]
        if stats.calls_this_month.budget:
            rows.append(("budget of calls", _budget(stats.calls_this_month)))
        rows += [(f"open errors: {kind}", count) for kind, count in sorted(stats.open_errors.items())]
        self._console.print(make_table(None, ("what", "now"), rows))

    def runs(self, page: Page[RunSummary]) -> None:
        if self._as_json:
            self._json_page("runs", TypeAdapter(list[RunSummary]).dump_json(list(page.rows)), page.next_cursor)
            return
        rows = [(one.run_id, one.status, one.sync, one.airtable_record_id, one.changed_at) for one in page.rows]
        self._table(None, ("run", "status", "sync", "record", "changed"), rows, "no runs yet: POST /runs creates one")
        self._more(page.next_cursor)

    def run(self, run: RunView) -> None:
        if self._as_json:
            self._json(TypeAdapter(RunView).dump_json(run))
            return
        values = [(name, _last_lines(value)) for name, value in run.fields.items()]
        about = [("sync", run.sync), ("Airtable record", run.airtable_record_id), *values]
        self._console.print(make_table(run.run_id, ("field", "value"), about))
        if run.batches:
            batches = [
                (one.number, one.state, one.outcome, one.apify_run_id, one.items, one.cost_usd, one.cause)
                for one in run.batches
            ]
            columns = ("batch", "state", "outcome", "Apify run", "items", "cost $", "cause")
            self._console.print(make_table("Batches", columns, batches))
        self._happened(run.errors, run.timeline)

    def no_run(self, missing: NoRun) -> None:
        if self._as_json:
            self._json(TypeAdapter(NoRun).dump_json(missing))
        else:
            self._happened(missing.errors, missing.timeline)

    def _happened(self, errors: Sequence[ErrorView], timeline: Sequence[TimelineEntry]) -> None:
        if errors:
            self._errors("Errors", errors)
        if timeline:
            rows = [(one.at, one.what, one.detail) for one in timeline]
            self._console.print(make_table("What happened", ("at (UTC)", "what", "detail"), rows))

    def errors(self, page: Page[ErrorView]) -> None:
        if self._as_json:
            self._json_page("errors", TypeAdapter(list[ErrorView]).dump_json(list(page.rows)), page.next_cursor)
            return
        if page.rows:
            self._errors(None, page.rows)
        else:
            self._console.print("no errors")
        self._more(page.next_cursor)

    def error(self, error: ErrorView) -> None:
        if self._as_json:
            self._json(TypeAdapter(ErrorView).dump_json(error))
        else:
            self._errors(None, [error])

    def _errors(self, title: str | None, errors: Sequence[ErrorView]) -> None:
        rows = [(one.id, one.state, one.kind, one.run_id, _what(one)) for one in errors]
        self._about_runs(title, ("id", "state", "kind", "run", "what"), rows)

    def messages(self, page: Page[MessageView]) -> None:
        if self._as_json:
            self._json_page("messages", TypeAdapter(list[MessageView]).dump_json(list(page.rows)), page.next_cursor)
            return
        if page.rows:
            self._about_runs(None, _MESSAGE_COLUMNS, [_message_row(one) for one in page.rows])
        else:
            self._console.print("no messages")
        self._more(page.next_cursor)

    def message(self, message: MessageView) -> None:
        if self._as_json:
            self._json(TypeAdapter(MessageView).dump_json(message))
        else:
            self._about_runs(None, _MESSAGE_COLUMNS, [_message_row(message)])

    def retried(self, count: int) -> None:
        if self._as_json:
            self._json(json.dumps({"retried": count}).encode())
        else:
            self._console.print(f"{count} messages wait to be sent again")

    def report(self, report: CheckReport) -> None:
        if self._as_json:
            self._json(TypeAdapter(CheckReport).dump_json(report))
            return
        rows: list[tuple[str, object]] = [
            ("began", report.started_at),
            ("ended", report.finished_at),
            ("records since", report.since),
            ("pages read", report.pages),
            ("records read", report.records),
            ("Airtable calls", report.calls),
        ]
        rows += [(f"found: {kind}", count) for kind, count in report.found.items()]
        rows += [("opened", report.opened), ("resolved", report.resolved), ("repairs queued", report.repaired)]
        rows += [("left out: no such column", column) for column in report.columns_left_out]
        self._console.print(make_table("Consistency with Airtable", ("what", "now"), rows))
        if report.findings:
            found = [(one.error_id, one.kind, one.run_id, one.cause) for one in report.findings]
            self._console.print(make_table("Findings", ("error", "kind", "run", "cause"), found))
        hidden = sum(report.found.values()) - len(report.findings)
        if hidden:
            self._console.print(f"and {hidden} more: errors list")
        if report.trouble is not None:
            text = f"the check could not finish, and changed nothing: {report.trouble}"
            self._console.print(text, markup=False, highlight=False)
        elif not report.found:
            but = (
                ", as far as it has the columns: 'doctor' names those that it lacks" if report.columns_left_out else ""
            )
            self._console.print(f"Airtable has what was delivered{but}")

    def pruned(self, report: PruneReport) -> None:
        if self._as_json:
            self._json(TypeAdapter(PruneReport).dump_json(report))
            return
        kept = "kept for good"
        rows: list[tuple[str, str, int]] = [
            ("delivered updates", report.delivered_before or kept, report.messages),
            ("calls to Airtable", report.delivered_before or kept, report.calls),
            ("bodies of webhooks", report.delivered_before or kept, report.webhook_bodies),
            ("idempotency keys", report.keys_before or kept, report.idempotency_keys),
        ]
        self._console.print(make_table("Pruned", ("what", "from before (UTC)", "removed"), rows))
        self._console.print(f"{report.free_bytes / 1e6:,.1f} MB of the file are free for what comes")

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A bar on a terminal that says that it goes on; nothing elsewhere."""
        if self._as_json or not self._console.is_terminal:
            yield
            return
        with Progress(console=self._console, transient=True) as bar:
            bar.add_task(what, total=None)
            yield

    @contextlib.asynccontextmanager
    async def progressing(self, what: str, look: Callable[[], Awaitable[HowFar]]) -> AsyncIterator[None]:
        """A bar on a terminal that follows what takes long; nothing elsewhere."""
        if self._as_json or not self._console.is_terminal:
            yield
            return
        with Progress(console=self._console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            following = asyncio.create_task(_follow(bar, task, look))
            try:
                yield
            finally:
                following.cancel()
                await asyncio.wait([following])

    def diagnosis(self, body: str, rows: Sequence[Sequence[object]]) -> None:
        if self._as_json:
            self._json(body.encode())
        else:
            self._console.print(make_table(None, ("what", "is", "detail"), rows))

    def _table(
        self, title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]], when_empty: str
    ) -> None:
        self._console.print(make_table(title, columns, rows) if rows else when_empty, markup=False)

    def _about_runs(self, title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table with a run in each row, ending with `what`: where the run's name would be broken, it stands there."""
        if self._console.width < _ROOM_FOR_NAMES:
            place = columns.index("run")
            columns = (*columns[:place], *columns[place + 1 :])
            rows = [
                (*row[:place], *row[place + 1 : -1], "\n".join(str(one) for one in (row[place], row[-1]) if one))
                for row in rows
            ]
        self._console.print(make_table(title, columns, rows))

    def _more(self, next_cursor: str | None) -> None:
        if next_cursor is not None:
            self._console.print(f"there is more: --cursor {next_cursor}")

    def _json_page(self, name: str, rows: bytes, next_cursor: str | None) -> None:
        value: dict[str, Json] = {name: json.loads(rows), "next_cursor": next_cursor}
        self._json(json.dumps(value, ensure_ascii=False).encode())

    def _json(self, body: bytes) -> None:
        self._console.file.write(body.decode() + "\n")


def _budget(calls: CallCounts) -> str:
    waiting = {
        "stretched": "updates wait for company",
        "reserved": "the rest is kept for creates and errors: updates wait",
        "spent": "used up: everything waits",
    }
    held = waiting.get(calls.state)
    return f"{calls.budget}" + (f": {held} until {calls.updates_wait_until}" if held else "")


_LOOK_SECONDS = 0.5


async def _follow(bar: Progress, task: TaskID, look: Callable[[], Awaitable[HowFar]]) -> None:
    while True:
        seen = await look()
        bar.update(task, completed=seen.seen, total=max(seen.seen, seen.expected) or None)
        await asyncio.sleep(_LOOK_SECONDS)


def _what(error: ErrorView) -> str:
    """What was said, what it means, since when, what waits for it, and how it ended."""
    times = "once" if error.count == 1 else f"{error.count} times"
    held = f", holds {error.updates_held}" if error.updates_held else ""
    parts = [one for one in (error.cause, error.message, f"{times} since {error.first_at}{held}") if one]
    if len(error.similar_runs) > 1:
        parts.append(f"or was it {', '.join(error.similar_runs[1:])}?")
    if error.resolution:
        parts.append(f"{error.resolution} at {error.resolved_at}" + (f": {error.note}" if error.note else ""))
    elif error.note:
        parts.append(error.note)
    return "\n".join(parts)


_LOG_LINES = 5


def _last_lines(value: Json) -> Json:
    """A log's last lines: the whole of it is in the JSON."""
    lines = value.splitlines() if isinstance(value, str) else []
    if len(lines) <= _LOG_LINES:
        return value
    return "\n".join([f"… {len(lines) - _LOG_LINES} lines before", *lines[-_LOG_LINES:]])


_MESSAGE_COLUMNS = ("id", "state", "run", "accepted (UTC)", "what")


def _message_row(message: MessageView) -> tuple[object, ...]:
    what = f"{message.kind} of {', '.join(message.fields)}"
    if message.waits_for:
        what += f"\n{message.waits_for}"
    return (message.id, message.state, message.run_id, message.accepted_at, what)
