"""Runs the sections that were asked for, prints their tables, and writes them into docs/performance.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench import backlog, delivery, ingest, peers
from tests.bench.frame import Form, Options
from tests.bench.machine import NoDisk, busy, describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.frame import Section

PAGE: Final = Path(__file__).parents[2] / "docs" / "performance.md"
#: Each has a pair of marks in the page, between which its tables stand.
SECTIONS: Final[Mapping[str, Section]] = {
    "ingest": ingest.measure,
    "peers": peers.measure,
    "delivery": delivery.measure,
    "backlog": backlog.measure,
}


def main() -> int:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="runrecords-bench-", dir=asked.folder) as folder:
        try:
            machine = describe(Path(folder))
        except NoDisk as error:
            print(error, file=sys.stderr)
            return 2
        print(machine, flush=True)
        for name in asked.only:
            part = Path(folder) / name
            part.mkdir()
            before = busy()
            tables = asyncio.run(SECTIONS[name](Options(part, asked.form)))
            measured = (
                f"Measured on {machine}; load {before:.0f} before and {busy():.0f} after it; the {asked.form} form."
            )
            text = "\n\n".join([measured, *(table.markdown() for table in tables)])
            print(f"\n{text}", flush=True)
            if asked.form is not Form.QUICK:
                PAGE.write_text(filled(PAGE.read_text("utf-8"), name, text), "utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), help=f"comma-separated: {','.join(SECTIONS)}")
    parser.add_argument(
        "--quick",
        dest="form",
        action="store_const",
        const=Form.QUICK,
        default=Form.FULL,
        help="few short rounds; docs/performance.md stays as it is",
    )
    parser.add_argument(
        "--short",
        dest="form",
        action="store_const",
        const=Form.SHORT,
        help="fewer rounds and smaller stores, in some twenty minutes",
    )
    parser.add_argument("--folder", type=Path, help="where to make the files, on the disk that is to be measured")
    return parser.parse_args()


def _sections(text: str) -> Sequence[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    return names


def filled(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of section `name`."""
    begin, end = f"<!-- bench {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{PAGE} has no {begin} with its {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    raise SystemExit(main())
