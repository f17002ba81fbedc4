"""`make licences`: writes docs/licences.md, the licence of everything that the service runs on (requirements.lock)."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
#: They ask for nothing of those who run the service, or only that changes to the library itself are passed on (MPL).
WELCOME = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0",
    "Unlicense",
}  # fmt: skip
_SPELLINGS = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The MIT License (MIT)": "MIT",
    "The Unlicense (Unlicense)": "Unlicense",
}


def runtime_packages() -> list[str]:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return sorted(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))


def licence(package: str) -> str | None:
    """As the package itself says, in the words of SPDX where they are known; `None`: it is not for this machine."""
    try:
        said = metadata(package)
    except PackageNotFoundError:
        return None
    classifiers = [
        one.rpartition(" :: ")[2] for one in said.get_all("Classifier") or [] if one.startswith("License ::")
    ]
    first = str(said["License-Expression"] or " OR ".join(classifiers) or said["License"] or "unknown").splitlines()[0]
    return " OR ".join(_SPELLINGS.get(one, one) for one in first.split(" OR "))


def is_welcome(named: str) -> bool:
    """One of several to choose from has to be, and each of those that hold together."""
    choices = [re.findall(r"[A-Za-z0-9.-]+", one) for one in re.split(r"\s+OR\s+", named)]
    return any(all(word in WELCOME or word == "AND" for word in choice) for choice in choices)


def page() -> str:
    rows = [f"| {name} | {named} |" for name in runtime_packages() if (named := licence(name)) is not None]
    head = [
        "# Licences",
        "",
        "Run Records is under the MIT licence. It runs on these packages, pinned in `requirements.lock`; `make",
        "licences` writes this page, and a test refuses a licence that asks more than these do.",
        "",
        "| package | licence |",
        "|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
