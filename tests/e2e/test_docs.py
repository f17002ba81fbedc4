"""The documents, taken at their word: their commands are run, their links followed."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.process import environment, free_port, served
from tests.support.watching import rows

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOKENS = {"INTERNAL_API_TOKEN": "internal-token-of-the-tests", "APIFY_WEBHOOK_SECRET": "webhook-secret-of-the-tests"}
#: What other tests do in their way: the targets of make, and what needs an account at Airtable.
DONE_ELSEWHERE = ("make ", "export AIRTABLE_API_KEY=")
BLOCK = re.compile(r"^(?:#+ ([^\n]+)|```(\w+)\n(.*?)^```)$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    heading: str
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    found, heading = [], ""
    for one in re.finditer(
        r"^(?:#+ ([^\n]+)|```(\w+)\n(.*?)^```)$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        if one[1]:
            heading = one[1]
        else:
            found.append(Block(heading, one[2], one[3]))
    return found


def script(document: Path, *headings: str) -> str:
    """The shell blocks below these headings, or all of them, in their order."""
    chosen = [one for one in blocks(document) if one.language == "sh" and (one.heading in headings or not headings)]
    return "\n".join(one.text for one in chosen if not one.text.startswith(DONE_ELSEWHERE))


@dataclass
class Desk:
    """A folder to run the documents' commands in, as after `make install`, and a service where one is needed."""

    folder: Path
    port: int

    async def run(self, *command: str) -> str:
        own = environment(self.folder, self.port, **TOKENS)
        del own["RUNRECORDS_STORE__PATH"], own["RUNRECORDS_SERVER__PORT"]
        own |= {"PATH": f"{self.folder / 'bin'}:{own['PATH']}", "PYTHONPATH": str(ROOT), "URL": self.url}
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.folder, env=own, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode == 0, (out + err).decode()
        return out.decode()

    async def shell(self, text: str) -> str:
        return await self.run(
            "bash", "-euo", "pipefail", "-c", text.replace("http://127.0.0.1:8080", self.url).replace(".venv/bin/", "")
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        return self.folder / "data" / "runrecords.db"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "runrecords"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m app "$@"\n', encoding="utf-8")
    tool.chmod(0o755)
    return Desk(tmp_path, free_port())


SELECT_FIELDS = "SELECT client_id, fields FROM runs"


async def test_what_the_guide_for_callers_says_works_as_it_stands(desk: Desk) -> None:
    more = {**TOKENS, "RUNRECORDS_STORE__PATH": str(desk.store)}
    guide = ROOT / "docs" / "integrating.md"
    (python,) = (one.text for one in blocks(guide) if one.language == "python")
    async with served(desk.folder, port=desk.port, **more):
        shown = await desk.shell(script(guide))
        assert '"run_id":"251007-070457-Guy-Wilson"' in shown.replace('": ', '":')
        assert '"outcome":"queued"' in shown.replace('": ', '":')
        assert await desk.run(sys.executable, "-c", python) == "251007-070457-Dean-Hobin queued\n"
    known = {client_id: json.loads(str(fields)) for client_id, fields in rows(desk.store, SELECT_FIELDS)}
    assert known["Guy-Wilson"]["posts_scored"] == 12
    assert known["Dean-Hobin"]["status"] == "Completed"
    assert rows(desk.store, "SELECT apify_run_id FROM batches") == [("HG7ML7M8z78YcAPEB",)]


async def test_the_calls_of_the_readme_work_without_a_token_on_this_machine(desk: Desk) -> None:
    async with served(desk.folder, port=desk.port, RUNRECORDS_STORE__PATH=str(desk.store)):
        shown = await desk.shell(script(ROOT / "README.md"))
        assert '"outcome": "held"' in shown.replace('":"', '": "')
        assert "Was 251007-070457-Guy-Wilson meant?" in re.sub(r"[\s│┃]+", " ", shown)
    assert rows(desk.store, "SELECT count(*) FROM outbox WHERE kind = 'update'") == [(1,)]


async def test_a_backup_is_restored_as_the_operations_manual_says(desk: Desk) -> None:
    manual = ROOT / "docs" / "operations.md"
    more = {**TOKENS, "RUNRECORDS_STORE__PATH": str(desk.store)}
    auth = {"Authorization": f"Bearer {TOKENS['INTERNAL_API_TOKEN']}"}
    run_id = "251007-070457-Guy-Wilson"
    async with served(desk.folder, port=desk.port, **more) as service:
        await service.call("POST", "/runs", {"client_id": "Guy-Wilson", "job_id": "251007-070457"}, auth)
        assert "ok\n" in await desk.shell(script(manual, "Back up"))
        await service.call("POST", "/runs", {"client_id": "Dean-Hobin", "job_id": "251007-070457"}, auth)
        assert await service.end(signal.SIGTERM) == 0
    assert "251007-070457-Guy" in await desk.shell(script(manual, "Restore"))
    assert rows(desk.store, "SELECT run_id FROM runs") == [(run_id,)]
    assert rows(desk.folder / "set-aside" / "runrecords.db", "SELECT count(*) FROM runs") == [(2,)]
    airtable = "runrecords.db.sandbox-airtable.jsonl"  # which is not on this machine, outside of the sandbox
    (desk.folder / "set-aside" / airtable).rename(desk.folder / "data" / airtable)
    async with served(desk.folder, port=desk.port, **more) as service:
        # What was kicked off after the backup is not known here; it is in Airtable, and is adopted from there.
        status, held = await service.call("PATCH", "/runs/251007-070457-Dean-Hobin", {"add": {"posts_scored": 1}}, auth)
        assert (status, held["outcome"]) == (202, "held")
        await service.said("run.adopted")


def test_every_shell_command_of_the_documents_is_run_or_known_to_be_done_elsewhere() -> None:
    for document in DOCUMENTS:
        for one in blocks(document):
            if one.language == "sh" and document.name not in {"README.md", "integrating.md"}:
                assert document.name == "operations.md", (document.name, one.heading)
                assert one.heading in {"Back up", "Restore"}, one.heading


def test_every_link_inside_the_documents_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
            if not re.match(r"https?:", target):
                file, _, heading = target.partition("#")
                leads_to = document.parent / file if file else document
                assert leads_to.exists(), (document.name, target)
                if heading:
                    titles = re.findall(r"^#+ (.+)$", leads_to.read_text(encoding="utf-8"), re.MULTILINE)
                    assert heading in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in titles}, target
