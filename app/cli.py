"""The commands: `runrecords COMMAND`, or `python -m app COMMAND`.

Commands that only look open the store read-only, beside a running service or without one. Those that change something
go through the running service, because one process writes a store; without one they open it themselves.
Exit codes: 0 all well, 1 a problem was found or hit, 2 wrong usage or configuration.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

import typer

from app.clock import iso, parse_iso
from app.config import DEFAULT_PATH, Secrets, Settings, load_settings
from app.errors import ConfigError, NotFound, Problem, StoreError
from app.logs import configure_logs
from app.model import ErrorKind, ErrorState, MessageKind, MessageState, SyncState
from app.policy.budget import BudgetState
from app.show import Shower
from app.store.sqlite.opening import hold_lock, make_folder, open_reading, prepare
from app.store.sqlite.store import SqliteReading, backup_progress
from app.store.views import MAX_LIMIT, CheckReport, ErrorFilter, MessageFilter, RunFilter, Slice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from app.operate import Operator

T = TypeVar("T")

PROBLEM = 1
WRONG_USAGE = 2
_ALIVE_SECONDS: Final = 5.0
#: SQLite's ids have 63 bits.
MOST_ID = 2**63 - 1

app = typer.Typer(
    help="One Airtable record per client run: created once, updated in order, nothing lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
runs_app = typer.Typer(
    short_help="The runs, or one with all that happened.",
    help="The runs, newest first (runs list), or one with all that happened to it (runs show).",
)
errors_app = typer.Typer(
    short_help="What needs eyes; resolving it.",
    help="What needs eyes: missing records, refused updates and the like; and resolving it.",
)
outbox_app = typer.Typer(
    short_help="What is on its way; sending it again.",
    help="What is on its way to Airtable, what was set aside and why; and sending that again.",
)
app.add_typer(runs_app, name="runs")
app.add_typer(errors_app, name="errors")
app.add_typer(outbox_app, name="outbox")

Config = Annotated[Path | None, typer.Option("--config", help=f"The configuration file (default: {DEFAULT_PATH}).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Limit = Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Rows to show.")]
Cursor = Annotated[int | None, typer.Option(min=0, max=MOST_ID, help="Go on where the last page ended.")]


def examples(*lines: str) -> str:
    """The end of a command's help: lines as a person types them, not wrapped."""
    return "\n".join(["\b", "Examples:", *(f"  runrecords {line}" for line in lines)])


def main() -> NoReturn:
    """Run the command; errors of ours end as one line on standard error and an exit code."""
    _open_closed_streams()
    try:
        app(standalone_mode=True)
    except ConfigError as error:
        _fail(str(error), WRONG_USAGE)
    except StoreError as error:
        _fail(str(error), PROBLEM)
    except Problem as problem:
        _fail(problem.detail, PROBLEM)
    except FileExistsError as error:
        _fail(str(error), WRONG_USAGE)
    sys.exit(0)


def _open_closed_streams() -> None:
    """Lead to nowhere the standard streams that whoever starts us has closed (`2>&-`).

    The next file to be opened would get their number, and what writes to standard error without asking write to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for as long as we live


def _fail(text: str, code: int) -> NoReturn:
    for line in text.splitlines():
        typer.echo(f"runrecords: {line}", err=True)
    sys.exit(code)


# The service ----------------------------------------------------------------------------------------------------


@app.command(
    short_help="Accept runs and updates, carry them to Airtable.",
    epilog=examples("serve", "serve --sandbox", "serve --config /etc/runrecords.toml"),
)
def serve(
    config: Config = None,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Deliver to the embedded emulators, not to Airtable.")
    ] = False,
) -> None:
    """Accept runs and updates, and carry them to Airtable, until SIGTERM or Ctrl-C.

    Needs [airtable] base_id and AIRTABLE_API_KEY; with --sandbox it needs nothing.
    """
    gc.disable()  # `process` turns it on again when all is loaded: looking through that for garbage takes a tenth of it
    from app import process  # noqa: PLC0415  # only serve and demo need the clients, which take a second to import

    settings, secrets = load_settings(config), Secrets.from_environment()
    configure_logs(secrets.all())
    if sandbox:
        process.run(process.serve_sandbox(settings, secrets, settings.sandbox_journal))
    process.run(process.serve(settings, secrets))


@app.command(short_help="Show the main job against the sandbox.", epilog=examples("demo"))
def demo(config: Config = None) -> None:
    """Run the main job end to end against the sandbox, print what landed and what is held, and end.

    Uses a store of its own (data/demo.db), made anew each time. Exits 1 if anything is not as it should be.
    """
    from app.sandbox.demo import run_demo  # noqa: PLC0415

    settings = load_settings(config)
    configure_logs((), quiet=True)
    all_well = asyncio.run(run_demo(settings, Path("data/demo.db")))
    raise typer.Exit(0 if all_well else PROBLEM)


@app.command(short_help="Bring the store to this version.", epilog=examples("migrate"))
def migrate(config: Config = None) -> None:
    """Bring the store's schema to this version (serve does so by itself)."""
    settings = load_settings(config)
    path = Path(settings.store.path)
    make_folder(path)
    with hold_lock(path):
        applied = prepare(path, datetime.now(UTC))
    typer.echo(f"{path}: " + (f"applied {', '.join(applied)}" if applied else "up to date"))


@app.command(short_help="Copy the store while it is in use.", epilog=examples("backup /backups/runs.db"))
def backup(
    to: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")], config: Config = None
) -> None:
    """Write a copy of the store that can be opened as one, while the service goes on."""
    settings = load_settings(config)
    shower = Shower(as_json=False)

    async def copying(store: SqliteReading) -> None:
        async with shower.progressing(f"writing {to.name}", lambda: backup_progress(Path(settings.store.path), to)):
            await store.backup(to)

    _read(settings, copying)
    typer.echo(f"{settings.store.path} is backed up to {to}")


# Looking --------------------------------------------------------------------------------------------------------


@app.command(short_help="Whether all is well.", epilog=examples("status", "status --json", "status --alive"))
def status(
    config: Config = None,
    as_json: Json = False,
    alive: Annotated[bool, typer.Option("--alive", help="Only whether the service answers here, and no more.")] = False,
) -> None:
    """Whether all is well: what waits, what is set aside, which errors are open. Exits 1 if something needs eyes."""
    settings = load_settings(config)
    if alive:
        _check_alive(settings)
        return
    stats = _read(settings, lambda store: store.stats(datetime.now(UTC)))
    Shower(as_json=as_json).stats(stats)
    if stats.dead or stats.open_errors or stats.calls_this_month.state in {BudgetState.RESERVED, BudgetState.SPENT}:
        raise typer.Exit(PROBLEM)


@app.command(short_help="Whether all that it needs is in order.", epilog=examples("doctor", "doctor --json"))
def doctor(config: Config = None, as_json: Json = False) -> None:
    """Whether all that the service needs is in order: tokens, base, columns, actor, store, machine; and what to do.

    Works beside a running service or without one. Exits 1 if anything is wrong, 2 if the configuration is.
    """
    from app.doctor.diagnose import diagnose  # noqa: PLC0415  # it asks with the clients, which take a second to import

    secrets = Secrets.from_environment()
    configure_logs(secrets.all(), quiet=True)
    diagnosis = asyncio.run(diagnose(config, secrets))
    Shower(as_json=as_json).diagnosis(diagnosis.to_json(), diagnosis.rows())
    raise typer.Exit(diagnosis.exit_code)


@runs_app.command(
    "list",
    epilog=examples("runs list", "runs list --client Guy-Wilson --sync failed", "runs list --job 251007-070457 --json"),
)
def runs_list(
    config: Config = None,
    as_json: Json = False,
    client_id: Annotated[str | None, typer.Option("--client", help="Only runs of this client.")] = None,
    job_id: Annotated[str | None, typer.Option("--job", help="Only runs of this job.")] = None,
    run_status: Annotated[str | None, typer.Option("--status", help="Only runs with this status.")] = None,
    sync: Annotated[SyncState | None, typer.Option(help="Only runs that stand like this towards Airtable.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> None:
    """The runs, newest first."""
    chosen = RunFilter(client_id, job_id, run_status, sync.value if sync else None)
    page = _read(load_settings(config), lambda store: store.runs(chosen, Slice(limit, cursor)))
    Shower(as_json=as_json).runs(page)


@runs_app.command("show", epilog=examples("runs show 251007-070457-Guy-Wilson"))
def runs_show(
    run_id: Annotated[str, typer.Argument(help="<job_id>-<client_id>")], config: Config = None, as_json: Json = False
) -> None:
    """One run: its fields, batches and errors, and all that happened to it, in order.

    Of a run that nobody kicked off it shows what named it and what waits for it, and exits 1.
    """
    run = _read(load_settings(config), lambda store: store.run(run_id))
    if run is None:
        missing = _read(load_settings(config), lambda store: store.no_run(run_id))
        Shower(as_json=as_json).no_run(missing)
        raise NotFound(str(missing))
    Shower(as_json=as_json).run(run)


@errors_app.command(
    "list", epilog=examples("errors list --state open", "errors list --kind missing_record --client Guy-Wilson")
)
def errors_list(
    config: Config = None,
    as_json: Json = False,
    kind: Annotated[ErrorKind | None, typer.Option(help="Only errors of this kind.")] = None,
    state: Annotated[ErrorState | None, typer.Option(help="Only errors in this state.")] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="Only errors of this run.")] = None,
    client_id: Annotated[str | None, typer.Option("--client", help="Only errors of this client.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> None:
    """The errors, newest first."""
    chosen = ErrorFilter(kind.value if kind else None, state.value if state else None, run_id, client_id)
    page = _read(load_settings(config), lambda store: store.errors(chosen, Slice(limit, cursor)))
    Shower(as_json=as_json).errors(page)


@outbox_app.command(
    "list",
    epilog=examples(
        "outbox list --undelivered",
        "outbox list --kind create --state dead --since 1d",
        "outbox list --run 251007-070457-Guy-Wilson",
    ),
)
def outbox_list(
    config: Config = None,
    as_json: Json = False,
    state: Annotated[MessageState | None, typer.Option(help="Only messages in this state.")] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="Only messages of this run.")] = None,
    kind: Annotated[MessageKind | None, typer.Option(help="Only creates, or only updates.")] = None,
    undelivered: Annotated[bool, typer.Option("--undelivered", help="Only what is not yet in Airtable.")] = False,
    since: Annotated[
        str | None,
        typer.Option(help="Delivered, set aside or else accepted in the last 2h, or since an ISO time."),
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> None:
    """The messages, newest first, each with what it waits for."""
    start = _since(since)
    chosen = MessageFilter(
        state=state.value if state else None,
        run_id=run_id,
        kind=kind.value if kind else None,
        undelivered=undelivered,
        since=iso(start) if start else None,
    )
    page = _read(load_settings(config), lambda store: store.messages(chosen, Slice(limit, cursor)))
    Shower(as_json=as_json).messages(page)


# Changing -------------------------------------------------------------------------------------------------------


@errors_app.command(
    "resolve", epilog=examples("errors resolve 1 --note 'the option is back'", "errors resolve 2 --discard")
)
def errors_resolve(
    error_id: Annotated[int, typer.Argument(min=1, max=MOST_ID, help="The error's id.")],
    config: Config = None,
    as_json: Json = False,
    note: Annotated[str | None, typer.Option(help="How it was dealt with.")] = None,
    discard: Annotated[bool, typer.Option("--discard", help="Throw away the updates that it holds.")] = False,
) -> None:
    """Close an error by hand. What it holds stays held, and still follows a kickoff that comes, unless discarded."""
    error = _operate(config, lambda operator: operator.resolve_error(error_id, note=note, discard=discard))
    Shower(as_json=as_json).error(error)


@outbox_app.command("retry", epilog=examples("outbox retry 4", "outbox retry --kind rejected --since 2h"))
def outbox_retry(
    message_id: Annotated[
        int | None, typer.Argument(min=1, max=MOST_ID, help="One message; without it, all that the options name.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
    kind: Annotated[ErrorKind | None, typer.Option(help="Messages set aside by this kind of error.")] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="Messages of this run.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Set aside in the last 30m, 2h or 7d, or since an ISO time.")
    ] = None,
) -> None:
    """Send dead messages again: one by its id, or all that the options name."""
    shower = Shower(as_json=as_json)
    if message_id is not None:
        if kind or run_id or since:
            raise ConfigError("give a message's id, or --kind, --run and --since, not both")
        shower.message(_operate(config, lambda operator: operator.retry(message_id)))
        return
    start = _since(since)
    shower.retried(_operate(config, lambda operator: operator.retry_all(kind=kind, run_id=run_id, since=start)))


_SPAN = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _since(text: str | None) -> datetime | None:
    """`2h` before now, or an ISO time. Raises `ConfigError`."""
    if text is None:
        return None
    if (span := _SPAN.fullmatch(text)) is not None:
        return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
    try:
        return parse_iso(text)
    except ValueError as error:
        raise ConfigError("--since takes 30m, 2h or 7d, or an ISO 8601 time with an offset") from error


class Repair(StrEnum):
    DRIFT = "drift"


@app.command(
    short_help="Compare Airtable with what was delivered.",
    epilog=examples("check", "check --repair drift", "check --json"),
)
def check(
    config: Config = None,
    as_json: Json = False,
    repair: Annotated[Repair | None, typer.Option(help="Deliver our values of drifted fields again.")] = None,
) -> None:
    """Compare Airtable with what was delivered, now. Exits 1 if anything is found, or could not be compared.

    Findings are kept as errors; nothing is created, and nothing changed without --repair.
    """
    from app.operate import open_operator  # noqa: PLC0415

    shower = Shower(as_json=as_json)
    settings, secrets = load_settings(config), Secrets.from_environment()
    configure_logs(secrets.all(), quiet=True)  # the report says it all
    since = datetime.now(UTC) - timedelta(days=settings.consistency.window_days)

    async def checking() -> CheckReport:
        async with (
            open_operator(settings, secrets) as operator,
            open_reading(Path(settings.store.path)) as store,
            shower.progressing("reading Airtable", lambda: store.check_progress(since)),
        ):
            return await operator.check(repair=repair is not None)

    report = asyncio.run(checking())
    shower.report(report)
    if report.found or report.columns_left_out or report.trouble is not None:
        raise typer.Exit(PROBLEM)


@app.command(short_help="Remove what is past its days.", epilog=examples("prune"))
def prune(config: Config = None, as_json: Json = False) -> None:
    """Remove what is past its days ([retention]), now: the service does so by itself once a day.

    Delivered updates, calls, bodies of webhooks and idempotency keys. Runs, creates, errors and held updates stay.
    """
    shower = Shower(as_json=as_json)
    configure_logs((), quiet=True)  # the report says it all
    with shower.working("pruning"):
        report = _operate(config, lambda operator: operator.prune())
    shower.pruned(report)


# How ------------------------------------------------------------------------------------------------------------


def _read(settings: Settings, look: Callable[[SqliteReading], Awaitable[T]]) -> T:
    async def reading() -> T:
        async with open_reading(Path(settings.store.path)) as store:
            return await look(store)

    return asyncio.run(reading())


def _check_alive(settings: Settings) -> None:
    """Ask `/healthz`, as a container's health check does all the time: without the clients, which take a second."""
    address = urlsplit(settings.server.local_url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=_ALIVE_SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse().status
    except (OSError, HTTPException) as error:
        raise Problem(f"nothing answers at {settings.server.local_url}: {error}") from error
    finally:
        connection.close()
    if answer != HTTPStatus.OK:
        raise Problem(f"what answers at {settings.server.local_url} is not this service ({answer})")
    typer.echo("alive")


def _operate(config: Path | None, change: Callable[[Operator], Coroutine[None, None, T]]) -> T:
    from app.operate import open_operator  # noqa: PLC0415

    async def operating() -> T:
        settings, secrets = load_settings(config), Secrets.from_environment()
        async with open_operator(settings, secrets) as operator:
            return await change(operator)

    return asyncio.run(operating())
