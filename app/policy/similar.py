"""Which run a caller probably meant when he named one that does not exist.

Half of the missing records of the service that this one replaces came from wrong suffixes: the bare job id, the
client's name twice, another job of the same client.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST: Final = 5
_JOB_ID: Final = re.compile(r"\d{6}-\d{6}")


@dataclass(frozen=True, slots=True)
class Candidates:
    """Runs that exist, newest first: of the job that the name starts with, of the client it ends with, the latest."""

    of_job: Sequence[str]
    of_client: Sequence[str]
    latest: Sequence[str]


def job_of(run_id: str) -> str:
    """The job id that a run id starts with, or the run id itself where it has another form."""
    found = _JOB_ID.match(run_id)
    return found[0] if found else run_id


def possible_clients(run_id: str) -> tuple[str, ...]:
    """Every client id that a run id may end with: all its endings at a dash, longest first, undoubled."""
    found = _JOB_ID.match(run_id)
    parts = run_id[found.end() if found else 0 :].strip("-").split("-")
    endings = ["-".join(parts[start:]) for start in range(len(parts))]
    return tuple(dict.fromkeys(ending for ending in endings if ending))


def client_of(run_id: str) -> str | None:
    """The client id in a run id of the usual form."""
    found = _JOB_ID.match(run_id)
    return (run_id[found.end() :].strip("-") or None) if found else None


def similar_runs(missing: str, candidates: Candidates) -> tuple[str, ...]:
    """What was probably meant, most probable first, at most five; of a bare job id, all runs of the job."""
    of_job = [one for one in candidates.of_job if one.startswith(f"{missing}-")]
    if _JOB_ID.fullmatch(missing) and of_job:
        return tuple(of_job)
    ordered: list[str] = []
    # The client's name twice, or only a part of it.
    ordered += [one for one in candidates.of_job if missing.startswith(one) or one.startswith(f"{missing}-")]
    ordered += get_close_matches(missing, candidates.of_job, n=MOST, cutoff=0.6)
    ordered += candidates.of_client[:MOST]
    ordered += get_close_matches(missing, candidates.latest, n=MOST, cutoff=0.8)
    return tuple(dict.fromkeys(ordered))[:MOST]
