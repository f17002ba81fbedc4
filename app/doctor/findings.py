"""What the doctor says: a line for each thing that it looked at, and what the whole of it comes to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: The name under which flaws of the configuration stand.
CONFIGURATION: Final = "configuration"


class Verdict(StrEnum):
    """`note`: no problem, or none that can be seen from here."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what to know or do about it."""

    name: str
    verdict: Verdict
    detail: str


def ok(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.OK, detail)


def note(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.NOTE, detail)


def problem(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.PROBLEM, detail)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """2 where the configuration is wrong, 1 for any other problem, else 0."""
        wrong = {one.name for one in self.findings if one.verdict is Verdict.PROBLEM}
        return 2 if CONFIGURATION in wrong else int(bool(wrong))

    def to_json(self) -> str:
        shown = [{"name": one.name, "verdict": one.verdict, "detail": one.detail} for one in self.findings]
        return json.dumps({"ok": self.exit_code == 0, "findings": shown}, ensure_ascii=False)

    def rows(self) -> list[tuple[str, str, str]]:
        return [(one.name, one.verdict, one.detail) for one in self.findings]
