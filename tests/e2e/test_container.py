"""The container, as far as it can be judged without an engine: its build's steps, its files, its hardening."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml

from app.config import load_settings
from tests.support.process import free_port

ROOT = Path(__file__).parent.parent.parent


def instructions(stage: int) -> list[tuple[str, str]]:
    """The instructions of one stage, as (word, rest), with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    starts = [place for place, line in enumerate(lines) if line.startswith("FROM")] + [len(lines)]
    chosen = lines[starts[stage] : starts[stage + 1]]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in chosen)]


def test_the_image_is_pinned_runs_without_rights_and_says_how_it_is() -> None:
    build, final = instructions(0), instructions(1)
    images = {rest.split()[0] for stage in (build, final) for word, rest in stage if word == "FROM"}
    assert len(images) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", images.pop())
    said = dict(final)
    assert said["USER"] == "10001:10001"
    assert said["HEALTHCHECK"].endswith('CMD ["runrecords", "status", "--alive"]')
    assert not [rest for word, rest in final if word == "RUN"]
    assert not [rest for word, rest in build + final if word == "ARG"]
    settings = dict(one.split("=", 1) for word, rest in final if word == "ENV" for one in rest.split())
    assert not [name for name in settings if "TOKEN" in name or "KEY" in name or "SECRET" in name]
    (install,) = [rest for word, rest in build if word == "RUN" and "pip install" in rest]
    assert "--no-deps --require-hashes -r /src/requirements.lock" in install


def test_only_what_is_copied_reaches_the_builder() -> None:
    sources = [shlex.split(rest)[0] for word, rest in instructions(0) if word == "COPY"]
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == set(sources)
    assert "*" in lines
    assert all((ROOT / source).exists() for source in sources)


def test_the_composition_hardens_both_services_and_copies_the_store_that_is_served() -> None:
    composition = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    for service in composition["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "environment" not in service
        assert service["env_file"] == ".env"
        assert "data:/data" in service["volumes"]
    assert all(not re.search(r":latest$|^[^:]+$", one["image"]) for one in [composition["services"]["litestream"]])
    assert composition["services"]["litestream"]["profiles"] == ["litestream"]  # never by accident: see operations.md
    served = composition["services"]["runrecords"]
    assert int(served["stop_grace_period"].removesuffix("s")) > load_settings().sync.shutdown_seconds
    streamed = (ROOT / "litestream.yml").read_text(encoding="utf-8")
    (database,) = yaml.safe_load(streamed)["dbs"]
    settings = dict(one.split("=", 1) for word, rest in instructions(1) if word == "ENV" for one in rest.split())
    assert database["path"] == settings["RUNRECORDS_STORE__PATH"]
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    known = set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)\}", streamed)) <= known
    assert {"AIRTABLE_API_KEY", "APIFY_TOKEN", "INTERNAL_API_TOKEN", "APIFY_WEBHOOK_SECRET"} <= known
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_the_steps_of_the_build_make_a_service_that_runs_from_a_clean_folder(tmp_path: Path) -> None:
    """The RUN and COPY lines of the Dockerfile, with the image's folders below one of the test's own."""

    def here(text: str) -> str:
        return re.sub(r"(?<![\w.])/(opt|src|data)\b", lambda found: f"{tmp_path}/{found[1]}", text)

    clean = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    clean |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
    for word, rest in instructions(0):
        if word == "COPY":
            source, to = shlex.split(here(rest))
            target = Path(to) / source if to.endswith("/") else Path(to)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, target)
        elif word == "RUN":
            step = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", here(rest), env=clean, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            said, _ = await step.communicate()
            assert step.returncode == 0, f"{rest}\n{said.decode()}"
    built = {one: one.stat().st_mtime_ns for one in (tmp_path / "opt").rglob("*")}
    settings = {
        name: here(value)
        for word, rest in instructions(1)
        if word == "ENV"
        for name, _, value in (one.partition("=") for one in rest.split())
    }
    port = free_port()
    own = {
        **settings,
        "RUNRECORDS_SERVER__PORT": str(port),
        "INTERNAL_API_TOKEN": "a-token",
        "APIFY_WEBHOOK_SECRET": "b",
    }
    tool = tmp_path / "opt" / "run-records" / "venv" / "bin" / "runrecords"
    service = await asyncio.create_subprocess_exec(
        tool, "serve", "--sandbox", cwd=tmp_path / "data", env=own, stderr=asyncio.subprocess.PIPE
    )
    assert service.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"service.started" not in await service.stderr.readline():
                assert service.returncode is None
        alive = await asyncio.create_subprocess_exec(tool, "status", "--alive", cwd=tmp_path / "data", env=own)
        assert await alive.wait() == 0
        service.send_signal(signal.SIGTERM)
        await service.communicate()
        assert service.returncode == 0
        dead = await asyncio.create_subprocess_exec(tool, "status", "--alive", cwd=tmp_path / "data", env=own)
        assert await dead.wait() == 1
    finally:
        if service.returncode is None:
            service.kill()
            await service.communicate()
    # A read-only file system takes nothing from it: all that it wrote is in the volume.
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "opt").rglob("*")} == built
    assert (tmp_path / "data" / "runrecords.db").exists()
