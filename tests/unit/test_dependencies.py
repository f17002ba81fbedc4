"""What the service runs on: its licences are known and harmless, and no answer about its flaws is not a good one."""

from __future__ import annotations

import json

import pytest

from tests.audit import judge
from tests.licences import PAGE, is_welcome, licence, runtime_packages

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
