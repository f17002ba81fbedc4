"""The main job in front of your eyes: the real service against the sandbox, over HTTP, from kickoff to Airtable.

It plays the company's process: one job over three clients, batches, updates, and the slips that happened in real
life. Then it checks what landed, as a sceptic would, and says where to look.
"""

from __future__ import annotations

import asyncio
import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import aiohttp
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from app.config import Secrets
from app.fields import RUN_ID
from app.sandbox.apify_account import Timing
from app.sandbox.embedded import Sandbox, embedded
from app.service import running
from app.show import make_table
from app.store.views import ErrorView, RunView, Stats

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from app.config import Settings
    from app.model import Json
    from app.service import Service

JOB: Final = "251007-070457"
CLIENTS: Final[Mapping[str, str]] = {
    "Guy-Wilson": "Guy Wilson",
    "Dean-Hobin": "Dean Hobin",
    "Ana-Petrov": "Ana Petrov",
}
#: Clients whose posts are harvested, and how many profiles each of their batches has.
BATCHES: Final[Mapping[str, tuple[int, ...]]] = {"Guy-Wilson": (4, 3), "Dean-Hobin": (5,)}
POSTS_PER_PROFILE: Final = 3
BURST: Final = 200
_DEADLINE_SECONDS: Final = 90.0

_RUN = TypeAdapter(RunView)
_STATS = TypeAdapter(Stats)
_ERRORS = TypeAdapter(dict[str, list[ErrorView] | None])


@dataclass
class Caller:
    """The company's process, as far as this service sees it."""

    http: aiohttp.ClientSession
    url: str
    updates: int = 0
    creates: int = 0
    findings: list[str] = field(default_factory=list)

    async def call(self, method: str, path: str, body: Json = None) -> tuple[int, bytes]:
        async with self.http.request(method, self.url + path, json=body) as answer:
            return answer.status, await answer.read()

    async def kick_off(self, client_id: str, *, again: bool = False) -> None:
        body: dict[str, Json] = {"client_id": client_id, "client_name": CLIENTS[client_id], "job_id": JOB}
        if not again:
            body["batches"] = [
                {
                    "input": {"profiles": [f"https://www.linkedin.com/in/{client_id}-{n}" for n in range(size)]},
                    "profiles": size,
                }
                for size in BATCHES.get(client_id, ())
            ]
            self.creates += 1
        status, _ = await self.call("POST", "/runs", body)
        self.expect(status == (200 if again else 201), f"kickoff of {client_id} answered {status}")

    async def update(self, run_id: str, body: Json) -> None:
        status, _ = await self.call("PATCH", f"/runs/{run_id}", body)
        self.expect(status == 202, f"update of {run_id} answered {status}")  # noqa: PLR2004
        self.updates += 1

    async def run(self, run_id: str) -> RunView:
        return _RUN.validate_json((await self.call("GET", f"/runs/{run_id}"))[1])

    async def stats(self) -> Stats:
        return _STATS.validate_json((await self.call("GET", "/stats"))[1])

    async def missing(self) -> list[ErrorView]:
        return (
            _ERRORS.validate_json((await self.call("GET", "/errors?kind=missing_record&state=open"))[1])["errors"] or []
        )

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.findings.append(otherwise)


async def run_demo(settings: Settings, store_path: Path, console: Console | None = None) -> bool:
    """Play the job; whether everything was as it should be."""
    console = console or Console(soft_wrap=True)
    _remove_store(store_path)
    settings = settings.model_copy(
        update={
            "store": settings.store.model_copy(update={"path": str(store_path)}),
            "server": settings.server.model_copy(update={"host": "127.0.0.1", "port": 0}),
            "apify": settings.apify.model_copy(update={"settle_seconds": 1.5, "poll_interval_seconds": 5.0}),
        }
    )
    async with embedded(settings, Secrets()) as sandbox:
        sandbox.apify.sandbox.timing = Timing(settle=1.0, item_lag=0.5)
        async with running(sandbox.settings, sandbox.secrets) as service, aiohttp.ClientSession() as http:
            caller = Caller(http, service.url)
            console.print(f"The service listens at {service.url}; Airtable and Apify are emulators on this machine.\n")
            await _play(caller, console)
            await _until_settled(caller, service, console)
            await _judge(caller, sandbox)
            await _report(caller, sandbox, console, store_path)
    return not caller.findings


def _remove_store(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


async def _play(caller: Caller, console: Console) -> None:
    console.print(f"[bold]1. Kickoff[/] of job {JOB} for {len(CLIENTS)} clients, {_batch_count()} batches to harvest")
    for client_id in CLIENTS:
        await caller.kick_off(client_id)
    console.print("[bold]2. The same kickoff again[/], as a retrying caller sends it: nothing is created twice")
    await caller.kick_off("Guy-Wilson", again=True)
    console.print("[bold]3. An update for a run that nobody kicked off[/]: the client's name was forgotten")
    await caller.update(JOB, {"add": {"posts_scored": 7}})
    console.print(f"[bold]4. A burst[/] of {BURST} updates, faster than Airtable's 5 requests a second would take them")
    columns = (TextColumn("  updates accepted"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task("", total=BURST)
        clients = list(CLIENTS)
        for number in range(BURST):
            line = f"scored batch {number + 1}"
            change: Json = {"add": {"posts_scored": 1, "total_tokens_used": 10}, "append": {"progress_log": line}}
            await caller.update(f"{JOB}-{clients[number % len(clients)]}", change)
            progress.advance(task)
    await caller.update(f"{JOB}-Ana-Petrov", {"set": {"status": "No Leads To Score"}})


async def _until_settled(caller: Caller, service: Service, console: Console) -> None:
    console.print(
        "[bold]5. Apify harvests[/], its webhooks come back, the figures settle and everything goes to Airtable"
    )
    seen: dict[tuple[str, int], str] = {}
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            while True:
                runs = [await caller.run(f"{JOB}-{client_id}") for client_id in CLIENTS]
                for run in runs:
                    for batch in run.batches:
                        if seen.get((run.run_id, batch.number)) != batch.state:
                            seen[run.run_id, batch.number] = batch.state
                            figures = f": {batch.items} posts, ${batch.cost_usd}" if batch.state == "measured" else ""
                            console.print(
                                f"  {run.client_id}, batch {batch.number}: {batch.state}{figures}", highlight=False
                            )
                if all(batch.state == "measured" for run in runs for batch in run.batches):
                    await service.sync.until_idle()
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        caller.findings.append(f"not everything settled within {_DEADLINE_SECONDS:g} s")


async def _judge(caller: Caller, sandbox: Sandbox) -> None:
    records = {
        str(record.fields[sandbox.settings.fields[RUN_ID].column]): record for record in sandbox.airtable.records()
    }
    caller.expect(len(sandbox.airtable.records()) == len(CLIENTS), "Airtable does not hold one record for each client")
    for place, (client_id, name) in enumerate(CLIENTS.items()):
        run = await caller.run(f"{JOB}-{client_id}")
        record = records.get(run.run_id)
        if record is None:
            caller.findings.append(f"{run.run_id} is not in Airtable")
            continue
        differing = [name for name, value in run.fields.items() if _cell(sandbox, record.fields, name) != value]
        caller.expect(not differing, f"{run.run_id}: {', '.join(differing)} in Airtable differ from what was accepted")
        posts = sum(size * POSTS_PER_PROFILE for size in BATCHES.get(client_id, ()))
        status = "Completed" if client_id in BATCHES else "No Leads To Score"
        scored = len(range(place, BURST, len(CLIENTS)))
        caller.expect(run.status == status, f"{run.run_id} is {run.status}, not {status}")
        caller.expect(run.fields.get("posts_harvested", 0) == posts, f"{run.run_id}: {posts} posts should be harvested")
        caller.expect(run.fields["posts_scored"] == scored, f"{run.run_id}: {scored} posts should be scored")
        caller.expect(run.client_name == name, f"{run.run_id} has another client's name")
    missing = await caller.missing()
    caller.expect([one.run_id for one in missing] == [JOB], "the missing record is not one open error")
    caller.expect(all(one.updates_held == 1 for one in missing), "the update of the missing run is not held")
    caller.expect(sum(sandbox.apify.sandbox.starts.values()) == _batch_count(), "a batch was not started exactly once")
    caller.expect(sandbox.airtable.calls.rate_limited == 0, "Airtable had to refuse requests")
    caller.expect(most_in_a_second(sandbox) <= sandbox.settings.airtable.requests_per_second, "the limit was passed")


def _cell(sandbox: Sandbox, cells: Mapping[str, Json], name: str) -> Json:
    return cells.get(sandbox.settings.fields[name].column)


def _batch_count() -> int:
    return sum(len(sizes) for sizes in BATCHES.values())


def most_in_a_second(sandbox: Sandbox) -> int:
    """The largest number of requests that Airtable got in any one second."""
    times = sorted(request.received_at for request in sandbox.airtable_server.log)
    return max((bisect.bisect_left(times, at + 1.0) - place for place, at in enumerate(times)), default=0)


async def _report(caller: Caller, sandbox: Sandbox, console: Console, store_path: Path) -> None:
    shown = ("run_id", "status", "posts_harvested", "apify_api_costs", "posts_scored")
    rows = [[_cell(sandbox, record.fields, name) for name in shown] for record in sandbox.airtable.records()]
    console.print()
    console.print(make_table("Airtable now", [sandbox.settings.fields[name].column for name in shown], rows))
    errors = [
        (one.run_id, one.updates_held, ", ".join(one.similar_runs), one.message) for one in await caller.missing()
    ]
    console.print(make_table("Open missing-record errors", ("run", "held", "was meant?", "what"), errors))
    stats = await caller.stats()
    calls = len(sandbox.airtable_server.log)
    naive = caller.creates + 2 * caller.updates
    console.print(
        f"{calls} Airtable calls, at most {most_in_a_second(sandbox)} in any second, "
        f"{sandbox.airtable.calls.rate_limited} refused; the naive way (a look-up and a write for each update) "
        f"needs {naive}.",
        highlight=False,
    )
    console.print(
        f"\nThe store is [bold]{store_path}[/] ({stats.runs} runs). Look inside with\n"
        f"  sqlite3 -readonly -box {store_path} 'select * from missing_records'\n"
        f"  RUNRECORDS_STORE__PATH={store_path} .venv/bin/runrecords runs show {JOB}-Guy-Wilson",
        highlight=False,
    )
    for finding in caller.findings:
        console.print(f"[red bold]NOT AS IT SHOULD BE:[/] {finding}", highlight=False)
    if not caller.findings:
        console.print("\n[green bold]All as it should be.[/]")
