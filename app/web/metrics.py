"""`GET /metrics`, for Prometheus: what the store holds and how the loops fare, read when it is asked for.

What is counted as it happens is in `app.meters`. Every known state and kind is there from the first scrape, at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from app import __version__
from app.clock import parse_iso
from app.meters import PREFIX
from app.model import BatchState, CallOutcome, ErrorKind
from app.policy.budget import BudgetState
from app.web import contract

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
    from datetime import datetime
    from enum import StrEnum

    from app.clock import Clock
    from app.meters import Meters
    from app.store.views import CheckSummary, Counts
    from app.web.guard import Bearer

#: What a check can find.
CHECK_KINDS: Final = (
    ErrorKind.DRIFT,
    ErrorKind.DUPLICATE_RECORD,
    ErrorKind.RECORD_DELETED,
    ErrorKind.UNKNOWN_RECORD,
)


@dataclass(frozen=True, slots=True)
class LoopState:
    """How the loops stand at this moment."""

    base_rests_for_seconds: float
    base_in_trouble: bool
    schema_flaws: int


class Metrics:
    def __init__(
        self,
        count: Callable[[datetime], Awaitable[Counts]],
        loops: Callable[[], LoopState],
        meters: Meters,
        clock: Clock,
        *,
        internal: Bearer,
    ) -> None:
        self._count = count
        self._loops = loops
        self._meters = meters
        self._clock = clock
        self._internal = internal
        self._process = ProcessCollector(registry=None)

    def routes(self) -> list[web.RouteDef]:
        return [contract.METRICS.served_by(self.scrape)]

    async def scrape(self, request: web.Request) -> web.Response:
        self._internal.check(request)
        counts = await self._count(self._clock.now())
        loops = loop_metrics(self._loops())
        families = [*store_metrics(counts), *loops, *self._meters.registry.collect(), *self._process.collect()]
        return web.Response(body=generate_latest(_Taken(families)), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@dataclass(frozen=True, slots=True)
class _Taken:
    """Metrics of one moment, in the shape that the client writes."""

    families: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def store_metrics(counts: Counts) -> Iterator[Metric]:
    yield InfoMetricFamily(f"{PREFIX}_build", "The version that runs.", {"version": __version__})
    yield _gauge("runs", "Runs that the store knows: kicked off here, or adopted from Airtable.", counts.runs)
    kickoffs = {"created": counts.created, "already_existed": counts.already_existed}
    yield _counters("kickoffs", "Kickoffs accepted, by whether they made a run.", "outcome", kickoffs)
    creations = {"delivered": counts.creations_delivered, "failed": counts.creations_failed}
    yield _gauges(
        "creations", "Creations by their present end: in Airtable, or set aside until retried.", "outcome", creations
    )
    if (ended := counts.creations_delivered + counts.creations_failed) > 0:
        yield _gauge(
            "creation_success_ratio",
            "Creations that are in Airtable, over those and the ones set aside.",
            counts.creations_delivered / ended,
        )
    yield _gauges(
        "messages",
        "Messages not delivered: on their way (pending), or set aside until retried (dead).",
        "state",
        {"pending": counts.pending, "dead": counts.dead},
    )
    yield _gauge(
        "oldest_pending_age_seconds",
        "How long the oldest message that is on its way has waited; 0 when none is.",
        counts.oldest_pending_seconds or 0.0,
    )
    yield _gauge("held_updates", "Updates held because nobody kicked off their run.", counts.held)
    yield _gauges("open_errors", "Errors that need eyes, by kind.", "kind", _each(ErrorKind, counts.open_errors))
    yield _gauges("batches", "Apify batches by state.", "state", _each(BatchState, counts.batches))
    yield _gauges(
        "airtable_calls_this_month",
        "Requests to Airtable since the first of the month, 00:00 UTC, by how they ended.",
        "outcome",
        _each(CallOutcome, counts.calls_this_month.by_outcome),
    )
    yield _gauge(
        "airtable_calls_forecast",
        "What this month's requests come to at its end, if it goes on as it went.",
        counts.calls_this_month.forecast,
    )
    yield _gauge(
        "airtable_calls_budget", "The month's budget of requests; 0 when none is set.", counts.calls_this_month.budget
    )
    states = {state.value: int(state == counts.calls_this_month.state) for state in BudgetState}
    yield _gauges("airtable_budget_state", "How the service keeps to the budget: 1 is how.", "state", states)
    yield _gauges("store_bytes", "Sizes of the store's database and of its WAL.", "file", counts.file_bytes)
    if counts.last_check is not None:
        yield from check_metrics(counts.last_check)


def check_metrics(check: CheckSummary) -> Iterator[Metric]:
    """How the last consistency check ended; nothing before the first."""
    finished = parse_iso(check.finished_at)
    yield _gauge(
        "check_timestamp_seconds", "When the last check against Airtable ended, Unix time.", finished.timestamp()
    )
    yield _gauge(
        "check_duration_seconds",
        "How long the last check took.",
        (finished - parse_iso(check.started_at)).total_seconds(),
    )
    yield _gauge("check_failed", "1 if the last check could not finish, else 0.", int(check.trouble is not None))
    yield _gauge("check_records", "Records that the last check read.", check.records)
    yield _gauges(
        "check_findings",
        "What the last check found, by kind.",
        "kind",
        _each(CHECK_KINDS, check.found) | dict(check.found),
    )


def loop_metrics(state: LoopState) -> Iterator[Metric]:
    yield _gauge(
        "airtable_rest_seconds", "For how long the base is still left alone, as it asked.", state.base_rests_for_seconds
    )
    yield _gauge("airtable_in_trouble", "1 while nothing reaches Airtable, else 0.", int(state.base_in_trouble))
    yield _gauge("schema_flaws", "Differences between the registry and the table's real columns.", state.schema_flaws)


def _each(words: Iterable[StrEnum], counted: Mapping[str, int]) -> dict[str, int]:
    return {word.value: counted.get(word.value, 0) for word in words}


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_text, value=value)


def _gauges(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _counters(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", help_text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family
