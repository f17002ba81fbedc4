"""Serves in a forked child for each line of standard input, and says how the child ended.

A line is the child's environment as JSON; the answers are `pid N` and `code N` (negative: the signal that killed it).
The imports, which take two seconds, are done once; each child ends as an interpreter of its own does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from app import process
from app.config import Secrets, load_settings
from app.logs import configure_logs


def main() -> None:
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            os.environ.update(json.loads(line))
            secrets = Secrets.from_environment()
            configure_logs(secrets.all())
            sys.exit(asyncio.run(process.serve(load_settings(None), secrets)))
        print("pid", child, flush=True)  # noqa: T201
        _, status = os.waitpid(child, 0)
        print("code", os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
