"""The commands, as a person or a script calls them, beside a running service and without one."""

from __future__ import annotations

import json
import shlex
import signal
import sqlite3
from typing import TYPE_CHECKING

import typer.main
from typer.core import TyperCommand, TyperGroup

from app import cli
from tests.support.process import Ended, command, free_port, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


RUN = {"client_id": "Guy-Wilson", "job_id": "251007-070457", "fields": {"system_notes": "[bold]as written[/]"}}
RUN_ID = "251007-070457-Guy-Wilson"


async def test_commands_look_and_change_beside_a_running_service(tmp_path: Path) -> None:
    port = free_port()
    token = {"INTERNAL_API_TOKEN": "a-token-of-the-tests"}
    auth = {"Authorization": "Bearer a-token-of-the-tests"}
    async with served(tmp_path, port=port, **token) as service:
        await service.call("POST", "/runs", RUN, auth)
        await service.call("PATCH", "/runs/251007-070457", {"add": {"posts_scored": 1}}, auth)
        listed = await command(tmp_path, "runs", "list", "--json", port=port)
        assert [run["run_id"] for run in json.loads(listed.out)["runs"]] == [RUN_ID]
        shown = await command(tmp_path, "runs", "show", RUN_ID, port=port)
        assert "[bold]as written[/]" in shown.out
        assert "create accepted" in shown.out
        troubled = await command(tmp_path, "status", port=port)
        assert troubled.code == 1
        assert "missing_record" in troubled.out
        resolved = await command(tmp_path, "errors", "resolve", "1", "--note", "mended", "--json", port=port, **token)
        assert resolved.code == 0, resolved.err
        assert json.loads(resolved.out)["resolution"] == "by_hand"
        again = await command(tmp_path, "errors", "resolve", "1", port=port, **token)
        assert again.code == 1
        assert "resolved already" in again.err
        refused = await command(tmp_path, "errors", "resolve", "1", port=port, INTERNAL_API_TOKEN="another")
        assert refused.code == 1
        assert "Bearer" in refused.err
        well = await command(tmp_path, "status", port=port)
        assert well.code == 0


async def test_without_a_service_a_command_opens_the_store_itself(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        await service.call("PATCH", "/runs/251007-070457", {"add": {"posts_scored": 1}})
        await service.end(signal.SIGTERM)
    resolved = await command(tmp_path, "errors", "resolve", "1", "--discard")
    assert resolved.code == 0, resolved.err
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        assert connection.execute("SELECT state FROM held_updates").fetchall() == [("discarded",)]
    connection.close()
    retried = await command(tmp_path, "outbox", "retry", "--since", "2h", "--json")
    assert json.loads(retried.out) == {"retried": 0}


async def test_a_backup_is_a_store(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        await service.call("POST", "/runs", RUN)
        copied = await command(tmp_path, "backup", str(tmp_path / "copy.db"))
        assert copied.code == 0, copied.err
        again = await command(tmp_path, "backup", str(tmp_path / "copy.db"))
        assert again.code == 2
        assert "never writes over" in again.err
    shown = await command(tmp_path, "runs", "list", "--json", RUNRECORDS_STORE__PATH=str(tmp_path / "copy.db"))
    assert [run["run_id"] for run in json.loads(shown.out)["runs"]] == [RUN_ID]


async def test_wrong_usage_and_configuration_exit_2_and_say_what_to_change(tmp_path: Path) -> None:
    assert (await command(tmp_path, "runs", "list", "--sync", "nearly")).code == 2
    assert (await command(tmp_path, "nonsense")).code == 2
    assert (await command(tmp_path, "runs", "list", "--config", str(tmp_path / "none.toml"))).code == 2
    (tmp_path / "bad.toml").write_text("[store]\npth = 1\n[sync]\nmax_attempts = 'many'\n")
    ended = await command(tmp_path, "status", "--config", str(tmp_path / "bad.toml"))
    assert ended.code == 2
    assert "did you mean 'path'" in ended.err
    assert "max_attempts" in ended.err
    mixed = await command(tmp_path, "outbox", "retry", "1", "--since", "soon")
    assert mixed.code == 2


async def test_a_missing_store_or_run_exits_1(tmp_path: Path) -> None:
    missing = await command(tmp_path, "runs", "list")
    assert missing.code == 1
    assert "there is no store" in missing.err
    assert (await command(tmp_path, "migrate")).code == 0
    unknown = await command(tmp_path, "runs", "show", "251007-070457-Nobody")
    assert unknown.code == 1
    assert "there is no run" in unknown.err
    empty = await command(tmp_path, "runs", "list")
    assert "no runs yet" in empty.out


def test_every_command_teaches_with_examples_that_parse() -> None:
    taught = 0
    for words, command_ in leaves(typer.main.get_group(cli.app), ()):
        examples = [line.removeprefix("  runrecords ") for line in (command_.epilog or "").splitlines()[2:]]
        assert examples, words
        for example in examples:
            given = shlex.split(example)
            assert tuple(given[: len(words)]) == words
            command_.make_context(" ".join(words), given[len(words) :])  # raises on wrong usage, and runs nothing
            taught += 1
        for option in command_.params:
            assert getattr(option, "help", None), (words, option.name)
    assert taught > 20


def leaves(group: TyperGroup, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    for name, one in group.commands.items():
        if isinstance(one, TyperGroup):
            yield from leaves(one, (*words, name))
        else:
            assert isinstance(one, TyperCommand)
            yield (*words, name), one


async def test_a_narrow_terminal_breaks_no_name_of_a_run(tmp_path: Path) -> None:
    wrong = "251007-070457-Guy-Wilson-Guy-Wilson"
    async with served(tmp_path) as service:
        await service.call("PATCH", f"/runs/{wrong}", {"add": {"posts_scored": 1}})
        for columns in ("70", "80", "160"):
            listed = await command(tmp_path, "errors", "list", COLUMNS=columns)
            assert wrong in listed.out
            assert max(len(line) for line in listed.out.splitlines()) <= int(columns)


async def test_alive_asks_the_service_and_nothing_else(tmp_path: Path) -> None:
    port = free_port()
    async with served(tmp_path, port=port, INTERNAL_API_TOKEN="a-token-of-the-tests") as service:
        await service.call("PATCH", "/runs/251007-070457", {"add": {"posts_scored": 1}})
        assert await command(tmp_path, "status", "--alive", port=port) == Ended(0, "alive\n", "")
        plain = await command(tmp_path, "runs", "list", port=port, FORCE_COLOR="", TERM="xterm-256color")
        assert "\x1b" not in plain.out  # no terminal, no colours
    dead = await command(tmp_path, "status", "--alive", port=port)
    assert dead.code == 1
    assert "nothing answers" in dead.err


async def test_help_names_every_command(tmp_path: Path) -> None:
    shown = await command(tmp_path, "--help")
    for name in (
        "serve",
        "demo",
        "migrate",
        "doctor",
        "status",
        "runs",
        "errors",
        "outbox",
        "check",
        "backup",
        "prune",
    ):
        assert name in shown.out
