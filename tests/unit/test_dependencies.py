"""What the service runs on: its licences are known and harmless, and no answer about its flaws is not a good one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.audit import judge
from tests.licences import PAGE, is_welcome, licence, runtime_packages

ROOT = Path(__file__).parents[2]

FLAW = {"id": "PYSEC-2026-1", "fix_versions": ["2.0"]}
CLEAN = {"name": "one", "version": "1.0", "vulns": []}
FLAWED = {"name": "other", "version": "1.0", "vulns": [FLAW]}
UNKNOWN = {"name": "third", "skip_reason": "not found"}


def test_every_licence_is_on_the_page_and_asks_for_nothing() -> None:
    page = PAGE.read_text(encoding="utf-8")
    licences = {name: named for name in runtime_packages() if (named := licence(name)) is not None}
    assert len(licences) > 20
    for name, named in licences.items():
        assert f"| {name} | {named} |" in page, "run `make licences`"
        assert is_welcome(named), f"{name} is under {named}"
    listed = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    assert set(listed) <= set(runtime_packages()), "run `make licences`"


@pytest.mark.parametrize("named", ["GPL-3.0-only", "MIT AND LGPL-2.1", "unknown", "Other/Proprietary License"])
def test_a_licence_that_asks_more_is_noticed(named: str) -> None:
    assert not is_welcome(named)
    assert is_welcome(f"{named} OR MIT")


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([CLEAN], 0, "no vulnerability is known of the 1 packages"),
        ([CLEAN, FLAWED], 1, "other 1.0: PYSEC-2026-1, mended in 2.0"),
        ([UNKNOWN, FLAWED], 1, "PYSEC-2026-1"),
        ([UNKNOWN, UNKNOWN], 0, "skipped"),
        ([UNKNOWN, CLEAN], 1, "nothing could be learnt of third"),
    ],
)
def test_the_audit_tells_a_flaw_from_no_answer(dependencies: list[object], code: int, said: str) -> None:
    verdict = judge(0, json.dumps({"dependencies": dependencies}), "")
    assert verdict.code == code
    assert said in verdict.text


def test_an_audit_that_cannot_ask_is_skipped_and_one_that_breaks_fails() -> None:
    unreachable = judge(1, "", "requests.exceptions.ConnectionError: Max retries exceeded")
    assert (unreachable.code, "skipped" in unreachable.text) == (0, True)
    assert judge(1, "", "requirements.lock: a hash is missing").code == 1


def test_an_install_takes_what_the_lock_names_and_looks_for_nothing_newer() -> None:
    """pip 23 fetched the newest pydantic for a dependency's `pydantic[email]`, and refused it for lack of a hash."""
    commands = [
        line for name in ("Makefile", "Dockerfile")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "pip install" in line and ".lock" in line
    ]  # fmt: skip
    assert len(commands) == 3
    assert all("--no-deps --require-hashes -r" in command for command in commands)


def test_what_the_lock_names_is_whole() -> None:
    """Nothing else is installed, so what another package needs and the lock lacks is missing here."""
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock", "requirements-bench.lock"])
def test_a_lock_pins_each_package_by_hash_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    pins = [pin for pin in re.split(r"\n(?=\S)", text) if not pin.startswith("#")]
    assert len(pins) > 20
    assert all(re.match(r"[\w.-]+==\S+ ", pin) and "--hash=sha256:" in pin for pin in pins)
    assert "://" not in text
