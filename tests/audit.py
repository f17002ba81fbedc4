"""`make audit`: asks whether a vulnerability is known of anything that the service runs on (requirements.lock).

Exits 1 where one is, 0 where none is. Where nobody can be asked it says so and exits 0; no answer is never taken for a
good one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass

COMMAND = (
    sys.executable, "-m", "pip_audit", "--requirement", "requirements.lock", "--require-hashes", "--disable-pip",
    "--progress-spinner", "off", "--format", "json", "--timeout", "10",
)  # fmt: skip
_UNREACHABLE = re.compile(
    r"ConnectionError|Could not connect|ConnectTimeout|ReadTimeout|NameResolutionError|ProxyError"
)


@dataclass(frozen=True)
class Verdict:
    text: str
    code: int


def judge(code: int, out: str, err: str) -> Verdict:
    """What pip-audit's exit code and words come to. It passes over what the index does not know and calls that good."""
    try:
        dependencies = json.loads(out)["dependencies"]
    except (ValueError, KeyError):
        if _UNREACHABLE.search(err):
            return Verdict(
                "audit: skipped, for the service that knows of vulnerabilities cannot be reached from here", 0
            )
        return Verdict(f"audit: pip-audit failed ({code})\n{err.strip()}", 1)
    found = [
        f"{one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in dependencies
        for flaw in one.get("vulns", ())
    ]
    unknown = [one["name"] for one in dependencies if "skip_reason" in one]
    if found:
        return Verdict("\n".join(["audit: known vulnerabilities", *found]), 1)
    if len(unknown) == len(dependencies):
        return Verdict("audit: skipped, for this package index tells nothing of vulnerabilities", 0)
    if unknown:
        return Verdict(f"audit: nothing could be learnt of {', '.join(unknown)}", 1)
    return Verdict(f"audit: no vulnerability is known of the {len(dependencies)} packages of requirements.lock", 0)


def main() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    verdict = judge(done.returncode, done.stdout, done.stderr)
    print(verdict.text)  # noqa: T201
    sys.exit(verdict.code)


if __name__ == "__main__":
    main()
