"""The metrics, as a Prometheus server reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.clock import parse_iso
from app.model import BatchState, CallOutcome, ErrorKind
from app.sandbox.airtable_errors import rate_limited
from app.sandbox.hand_clock import HandClock
from tests.support.harness import Harness, harness
from tests.support.harvesting import harvesting
from tests.support.watching import let_time_pass, rows, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client import Metric


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Harness]:
    """A running service; time stands still until a test lets it pass."""
    async with harness(tmp_path, clock=HandClock()) as house, house.running():
        yield house


async def scrape(house: Harness) -> dict[str, Metric]:
    answer = await house.call("GET", "/metrics")
    assert answer.status == 200, answer.text
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


async def values(house: Harness, name: str) -> dict[str, float]:
    """The samples of one metric, by the value of their only label, or by nothing."""
    family = (await scrape(house))[f"runrecords_{name}"]
    return {"".join(sample.labels.values()): sample.value for sample in family.samples}


def pass_time(house: Harness, seconds: float) -> None:
    clock = house.sources.clock
    assert isinstance(clock, HandClock)
    clock.pass_time(seconds)


async def test_metrics_need_the_internal_token(served: Harness) -> None:
    assert (await served.call("GET", "/metrics", token=None)).status == 401
    assert (await served.call("GET", "/metrics", token="another")).status == 401
    answer = await served.call("GET", "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_names_and_labels_keep_to_the_conventions(served: Harness) -> None:
    await served.call("PATCH", "/runs/nobody", {"set": {"posts_scored": 1}})
    await served.kick_off()
    for family in (await scrape(served)).values():
        assert family.documentation.strip().endswith(".") or family.name.startswith("process_"), family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", sample.name)
            assert family.type in {"histogram", "summary"} or not re.search(r"_(count|sum|bucket)$", sample.name)
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert not re.search(r"_(ms|minutes?|hours?|percent|kb|mb)(_|$)", sample.name), sample.name
            assert set(sample.labels) <= {"outcome", "state", "kind", "version", "method", "status", "le", "file"}
            assert "nobody" not in sample.labels.values()


async def test_every_known_state_and_kind_is_there_from_the_first_scrape(served: Harness) -> None:
    assert await values(served, "open_errors") == dict.fromkeys(ErrorKind, 0)
    assert await values(served, "batches") == dict.fromkeys(BatchState, 0)
    assert await values(served, "airtable_calls_this_month") == dict.fromkeys(CallOutcome, 0)
    assert await values(served, "messages") == {"pending": 0, "dead": 0}
    assert await values(served, "kickoffs") == {"created": 0, "already_existed": 0}
    assert "runrecords_creation_success_ratio" not in await scrape(served)  # nothing has ended: there is no rate
    for name in ("runs", "held_updates", "oldest_pending_age_seconds", "airtable_rest_seconds", "schema_flaws"):
        assert await values(served, name) == {"": 0}


async def test_the_sizes_of_the_stores_files_are_shown(served: Harness) -> None:
    await served.kick_off()
    await let_go(served)
    wal = served.store_path.with_name("runs.db-wal")
    sizes = {"database": served.store_path.stat().st_size, "wal": wal.stat().st_size}
    assert min(sizes.values()) > 0
    assert await values(served, "store_bytes") == sizes


async def test_a_store_that_was_moved_away_counts_no_bytes_and_is_told_by_readiness(served: Harness) -> None:
    moved = served.folder / "moved"
    moved.mkdir()
    for name in ("runs.db", "runs.db-wal"):
        served.store_path.with_name(name).rename(moved / name)
    assert await values(served, "store_bytes") == {"database": 0, "wal": 0}
    assert (await served.call("GET", "/readyz")).status == 503


async def test_kickoffs_are_counted_by_whether_they_made_a_run_and_creations_by_their_end(served: Harness) -> None:
    for client_id in ("Guy", "Dean", "Ana"):
        await served.kick_off(client_id)
        await let_go(served)
    for _ in range(2):
        await served.call("POST", "/runs", {"client_id": "Guy", "job_id": "251007-070457"})
    served.airtable.remove_option("Status", "Failed")
    await served.kick_off("Eve", fields={"status": "Failed"})
    await let_go(served)
    assert await values(served, "kickoffs") == {"created": 4, "already_existed": 2}
    assert await values(served, "creations") == {"delivered": 3, "failed": 1}
    assert await values(served, "creation_success_ratio") == {"": 0.75}
    assert await values(served, "messages") == {"pending": 0, "dead": 1}
    assert await values(served, "runs") == {"": 4}
    assert (await values(served, "open_errors"))["rejected"] == 1
    calls = await values(served, "airtable_calls_this_month")
    assert (calls["ok"], calls["refused"]) == (3, 1)
    served.airtable.add_option("Status", "Failed")
    await served.call("POST", "/outbox/retry", {"kind": "rejected"})
    await let_go(served)
    assert await values(served, "creation_success_ratio") == {"": 1.0}


async def let_go(house: Harness) -> None:
    """Let time pass until nothing is on its way."""
    clock = house.sources.clock
    assert isinstance(clock, HandClock)
    waiting = "SELECT count(*) FROM outbox WHERE state IN ('pending', 'sending')"
    await let_time_pass(clock, lambda: rows(house.store_path, waiting) == [(0,)])


async def test_updates_and_what_became_of_them_are_counted_as_they_happen(served: Harness) -> None:
    run_id = await served.kick_off()
    await let_go(served)
    await served.airtable_server.stop()
    for key in ("a", "a", "b"):
        await served.call("PATCH", f"/runs/{run_id}", {"add": {"posts_scored": 1}}, headers={"Idempotency-Key": key})
    await served.call("PATCH", "/runs/251007-070457-Nobody", {"add": {"posts_scored": 1}})
    pass_time(served, 90)
    await served.airtable_server.start()
    await let_go(served)
    assert await values(served, "updates") == {"queued": 2, "duplicate": 1, "held": 1}
    found = await samples(served)
    assert found["runrecords_messages_per_record_count", ""] == 2
    assert found["runrecords_messages_per_record_sum", ""] == 3  # both updates went in one write
    assert found["runrecords_records_per_call_sum", ""] == 2
    assert found["runrecords_delivery_delay_seconds_count", ""] == 3
    assert found["runrecords_delivery_delay_seconds_bucket", "60.0"] == 1  # the create; the updates waited longer
    assert found["runrecords_airtable_calls_total", "create 200"] == 1
    assert found["runrecords_airtable_calls_total", "update none"] >= 1
    assert found["runrecords_airtable_calls_total", "update 200"] == 1
    assert found["runrecords_airtable_call_duration_seconds_count", "create"] == 1


async def samples(house: Harness) -> dict[tuple[str, str], float]:
    """Every sample, by its name and the values of its labels."""
    families = (await scrape(house)).values()
    return {(one.name, " ".join(one.labels.values())): one.value for family in families for one in family.samples}


DOCS = Path(__file__).parent.parent.parent / "docs"
#: What Prometheus' language has beside names of metrics: its functions, its words, and what stands in braces.
NO_METRIC = {"sum", "by", "rate", "increase", "histogram_quantile", "or", "le", "method", "status", "outcome"}


def alerts() -> list[dict[str, str]]:
    (group,) = yaml.safe_load((DOCS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    panels = json.loads((DOCS / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    return [one["expr"] for one in alerts()] + [target["expr"] for panel in panels for target in panel["targets"]]


async def test_the_alerts_and_the_dashboard_ask_for_metrics_labels_and_values_that_exist(served: Harness) -> None:
    await served.kick_off()
    await let_go(served)
    await served.call("POST", "/check")
    known: dict[str, dict[str, set[str]]] = {"up": {"job": {"runrecords"}}}
    for family in (await scrape(served)).values():
        for one in family.samples:
            labels = known.setdefault(one.name, {})
            for label, value in one.labels.items():
                labels.setdefault(label, set()).add(value)
    known["runrecords_airtable_calls_total"]["status"].add("429")
    for expression in expressions():
        assert [expression.count(one) for one in "([{"] == [expression.count(one) for one in ")]}"], expression
        names = set(re.findall(r"[a-z_]+", re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression))) - NO_METRIC
        assert names, expression
        assert names <= known.keys(), (expression, names - known.keys())
        for name, asked in re.findall(r"([a-z_]+)\{([^}]*)\}", expression):
            for label, value in re.findall(r'(\w+)!?="([^"]*)"', asked):
                assert value in known[name][label], (expression, label, value)


def test_each_alert_has_its_chapter_in_the_operations_manual() -> None:
    manual = (DOCS / "operations.md").read_text(encoding="utf-8")
    headings = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", manual, re.MULTILINE)}
    for rule in alerts():
        assert rule["alert"].lower() in headings
        assert rule["annotations"]["runbook"] == f"operations.md#{rule['alert'].lower()}"  # type: ignore[index]


async def test_what_waits_has_an_age_in_seconds(served: Harness) -> None:
    await served.airtable_server.stop()
    await served.kick_off("Guy")
    pass_time(served, 90)
    await served.kick_off("Dean")
    assert await values(served, "messages") == {"pending": 2, "dead": 0}
    assert await values(served, "oldest_pending_age_seconds") == {"": 90}
    assert await values(served, "creations") == {"delivered": 0, "failed": 0}


async def test_held_updates_and_their_errors_are_counted(served: Harness) -> None:
    for run_id in ("251007-070457-Guy", "251007-070457-Guy", "251007-070457-Dean"):
        await served.call("PATCH", f"/runs/{run_id}", {"add": {"posts_scored": 1}})
    assert await values(served, "held_updates") == {"": 3}
    assert (await values(served, "open_errors"))["missing_record"] == 2


async def test_a_base_that_asks_for_a_rest_shows_how_much_of_it_is_left(served: Harness) -> None:
    served.airtable_server.faults.add(rate_limited())
    await served.kick_off()
    assert served.service is not None
    sync = served.service.sync
    await until(lambda: sync.rests_for > 0)
    (before,) = (await values(served, "airtable_rest_seconds")).values()
    pass_time(served, 10)
    (after,) = (await values(served, "airtable_rest_seconds")).values()
    assert before - after == pytest.approx(10)
    assert await values(served, "airtable_in_trouble") == {"": 0}


async def test_a_base_that_denies_access_is_in_trouble(served: Harness) -> None:
    served.airtable.scopes = ()
    await served.kick_off()
    assert served.service is not None
    sync = served.service.sync
    await until(lambda: sync.trouble is not None)
    assert await values(served, "airtable_in_trouble") == {"": 1}


async def test_batches_are_counted_by_state(tmp_path: Path) -> None:
    async with harvesting(tmp_path) as field, field.running():
        await field.kick_off(["a"], ["b"])
        await field.until(lambda: all(one.state == "running" for one in field.batches()))
        assert (await values(field.house, "batches"))["running"] == 2
        await field.settled()
        counted = await values(field.house, "batches")
        assert counted == dict.fromkeys(BatchState, 0.0) | {BatchState.MEASURED: 2.0}


async def test_the_last_check_against_airtable_is_shown_with_what_it_found(tmp_path: Path) -> None:
    async with harness(tmp_path) as house, house.running():
        assert not [name for name in await scrape(house) if "check" in name]
        await house.kick_off()
        await house.synced()
        house.airtable.edit(house.airtable.records()[0].id, {"Client ID": "by hand"})
        report = (await house.call("POST", "/check")).json()
        findings = {"drift": 1, "duplicate_record": 0, "record_deleted": 0, "unknown_record": 0}
        assert await values(house, "check_findings") == findings
        assert await values(house, "check_failed") == {"": 0}
        assert await values(house, "check_records") == {"": 1}
        (ended,) = (await values(house, "check_timestamp_seconds")).values()
        assert ended == parse_iso(str(report["finished_at"])).timestamp()
        house.airtable.scopes = ()
        await house.call("POST", "/check")
        assert await values(house, "check_failed") == {"": 1}
