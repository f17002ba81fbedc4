"""What happens, counted as it happens, from the start of the process on; `/metrics` shows it beside the store's counts.

It knows neither the store nor HTTP: who does something says so here. Names, units and help follow Prometheus'
conventions (prometheus.io/docs/practices/naming). No run, client or message is ever a label: their number has no end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PREFIX: Final = "runrecords"
#: What an update, and a request to Airtable, can be.
UPDATE_OUTCOMES: Final = ("queued", "held", "duplicate")
CALL_METHODS: Final = ("create", "update", "find", "list", "describe")

_DELAYS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 21_600, 86_400)
_CALLS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RECORDS: Final = (1, 2, 3, 5, 10)
_MESSAGES: Final = (1, 2, 3, 5, 10, 20, 50, 100, 1_000)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a series each that nobody reads


class Meters:
    """Durations are seconds."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        registry = self.registry
        updates = Counter(
            f"{PREFIX}_updates", "Updates accepted since the start, by outcome.", ["outcome"], registry=registry
        )
        self._delays = Histogram(
            f"{PREFIX}_delivery_delay_seconds",
            "From the acceptance of a message to its delivery being on record.",
            buckets=_DELAYS,
            registry=registry,
        )
        self._calls = Counter(
            f"{PREFIX}_airtable_calls",
            "Requests to Airtable since the start, by HTTP status (none: there was no answer).",
            ["method", "status"],
            registry=registry,
        )
        self._call_seconds = Histogram(
            f"{PREFIX}_airtable_call_duration_seconds",
            "How long Airtable took to answer, or not to.",
            ["method"],
            buckets=_CALLS,
            registry=registry,
        )
        self._records = Histogram(
            f"{PREFIX}_records_per_call", "Records that a call wrote; ten fit.", buckets=_RECORDS, registry=registry
        )
        self._messages = Histogram(
            f"{PREFIX}_messages_per_record",
            "Messages that one written record delivered.",
            buckets=_MESSAGES,
            registry=registry,
        )
        self._updated = {outcome: updates.labels(outcome) for outcome in UPDATE_OUTCOMES}
        for method in CALL_METHODS:
            self._calls.labels(method, "200")
            self._call_seconds.labels(method)

    def updated(self, outcome: str) -> None:
        self._updated[outcome].inc()

    def called(self, method: str, status: int | None, seconds: float) -> None:
        """A request to Airtable ended, with an answer or without one."""
        self._calls.labels(method, "none" if status is None else str(status)).inc()
        self._call_seconds.labels(method).observe(seconds)

    def delivered(self, records: Sequence[Iterable[float]]) -> None:
        """A call wrote these records: for each, how long its messages had waited since they were accepted."""
        if records:
            self._records.observe(len(records))
        for delays in records:
            number = 0
            for delay in delays:
                number += 1
                self._delays.observe(max(0.0, delay))
            self._messages.observe(number)
