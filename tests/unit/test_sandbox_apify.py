"""The pure logic of the Apify sandbox: what its API answers, how runs live, and what their webhooks carry."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from app.sandbox.apify import TOKEN, ApifySandbox
from app.sandbox.apify_account import HARVESTER, Limits, Timing
from app.sandbox.apify_runs import Event, Plan, RunStatus
from app.sandbox.apify_webhooks import WebhookRefusedError, render
from app.sandbox.messages import WireRequest, WireResponse

if TYPE_CHECKING:
    from app.model import Json
    from app.sandbox.apify_webhooks import Dispatch

START = datetime(2026, 5, 16, 9, 0, tzinfo=UTC)
SAMPLES = Path(__file__).parent.parent / "samples"
RUNS = f"/v2/acts/{HARVESTER.id}/runs"


@dataclass(slots=True)
class Bench:
    """A sandbox on a clock that only moves by hand."""

    at: datetime = START
    sandbox: ApifySandbox = field(init=False)

    def __post_init__(self) -> None:
        self.sandbox = ApifySandbox(now=lambda: self.at, random=Random(7))  # noqa: S311 - ids of a sandbox

    def wait(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.sandbox.tick()

    def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        /,
        **query: str,
    ) -> WireResponse:
        given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | (headers or {})
        return self.sandbox(WireRequest(method, path, tuple(query.items()), given, body))

    def start(self, run_input: Json = None, **query: str) -> str:
        answer = self.send("POST", RUNS, json.dumps(run_input).encode(), **query)
        assert answer.status == 201, answer.body
        return text(data(answer), "id")

    def start_with_webhook(self, **webhook: Json) -> str:
        events: Json = [event.value for event in Event if event is not Event.TEST]
        definition: dict[str, Json] = {"eventTypes": events, "requestUrl": "http://127.0.0.1:1/hook"}
        return self.start({"profiles": ["a", "b"]}, webhooks=encode([definition | webhook]))

    def get(self, run_id: str) -> dict[str, Json]:
        return data(self.send("GET", f"/v2/actor-runs/{run_id}"))

    def fired(self) -> list[Dispatch]:
        return self.sandbox.take_dispatches()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def encode(webhooks: Json) -> str:
    return base64.b64encode(json.dumps(webhooks).encode()).decode()


def parsed(answer: WireResponse) -> Json:
    value: Json = json.loads(answer.body)
    return value


def data(answer: WireResponse) -> dict[str, Json]:
    body = parsed(answer)
    assert isinstance(body, dict), body
    value = body["data"]
    assert isinstance(value, dict)
    return value


def text(value: Json, name: str) -> str:
    assert isinstance(value, dict)
    found = value[name]
    assert isinstance(found, str)
    return found


def error_of(answer: WireResponse) -> tuple[int, str]:
    body = parsed(answer)
    assert isinstance(body, dict)
    return answer.status, text(body["error"], "type")


def payload_of(dispatch: Dispatch) -> dict[str, Json]:
    value: Json = json.loads(dispatch.body)
    assert isinstance(value, dict)
    return value


def resource_of(dispatch: Dispatch) -> dict[str, Json]:
    resource = payload_of(dispatch)["resource"]
    assert isinstance(resource, dict)
    return resource


def ids(answer: WireResponse) -> list[str]:
    items = data(answer)["items"]
    assert isinstance(items, list)
    return [text(item, "id") for item in items]


class TestRefusals:
    def test_a_request_without_a_token_is_refused(self, bench: Bench) -> None:
        answer = bench.sandbox(WireRequest("GET", "/v2/users/me"))
        assert error_of(answer) == (401, "token-not-provided")

    def test_a_token_in_the_url_is_not_taken(self, bench: Bench) -> None:
        answer = bench.sandbox(WireRequest("GET", "/v2/users/me", (("token", TOKEN),)))
        assert error_of(answer) == (401, "token-not-provided")

    def test_a_wrong_token_is_refused(self, bench: Bench) -> None:
        answer = bench.send("GET", "/v2/users/me", b"", {"Authorization": "Bearer other"})
        assert error_of(answer) == (401, "user-or-token-not-found")

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v2/acts/nobody~nothing/runs"),
            ("GET", "/v2/acts/nobody~nothing"),
            ("GET", "/v2/actor-runs/unknown"),
            ("POST", "/v2/actor-runs/unknown/abort"),
            ("POST", "/v2/actor-runs/unknown/resurrect"),
            ("GET", "/v2/datasets/unknown"),
            ("GET", "/v2/key-value-stores/unknown/records/INPUT"),
        ],
    )
    def test_what_does_not_exist_is_not_found(self, bench: Bench, method: str, path: str) -> None:
        assert error_of(bench.send(method, path)) == (404, "record-not-found")

    @pytest.mark.parametrize("path", ["/", "/v2", "/v1/users/me", "/v2/datasets/x/y/z", "/v2/nothing"])
    def test_a_path_that_is_no_endpoint_is_not_found(self, bench: Bench, path: str) -> None:
        bench.start()
        assert bench.send("GET", path).status == 404

    def test_an_input_that_the_actor_refuses_starts_nothing(self, bench: Bench) -> None:
        bench.sandbox.refuses = lambda value: None if isinstance(value, dict) else "it must be an object"
        assert error_of(bench.send("POST", RUNS, b"[]")) == (400, "invalid-input")
        assert not bench.sandbox.runs
        assert not bench.sandbox.starts

    @pytest.mark.parametrize(
        ("body", "query", "kind"),
        [
            (b"{", {}, "run-input-body-not-valid-json"),
            (b"{}", {"memory": "1000"}, "invalid-parameter"),
            (b"{}", {"memory": "64"}, "invalid-parameter"),
            (b"{}", {"timeout": "soon"}, "invalid-parameter"),
            (b"{}", {"maxTotalChargeUsd": "much"}, "invalid-parameter"),
            (b"{}", {"webhooks": "%%%"}, "invalid-parameter"),
            (b"{}", {"webhooks": encode({"eventTypes": []})}, "invalid-parameter"),
            (b"{}", {"webhooks": encode([{"eventTypes": ["ACTOR.RUN.DONE"], "requestUrl": "http://x/"}])},
             "invalid-parameter"),
            (b"{}", {"webhooks": encode([{"eventTypes": ["TEST"], "requestUrl": "/relative"}])},
             "invalid-parameter"),
        ],
    )  # fmt: skip
    def test_a_malformed_start_starts_nothing(
        self, bench: Bench, body: bytes, query: dict[str, str], kind: str
    ) -> None:
        assert error_of(bench.send("POST", RUNS, body, **query)) == (400, kind)
        assert not bench.sandbox.runs

    def test_no_more_runs_at_once_than_the_plan_allows(self, bench: Bench) -> None:
        bench.sandbox.limits.concurrent_runs = 1
        bench.start()
        assert error_of(bench.send("POST", RUNS)) == (402, "concurrent-runs-limit-exceeded")
        bench.wait(5)
        bench.start()

    def test_no_more_memory_at_once_than_the_plan_allows(self, bench: Bench) -> None:
        bench.sandbox.limits = Limits(memory_mbytes=4096, status=403)
        bench.start(memory="2048")
        assert error_of(bench.send("POST", RUNS, memory="4096")) == (403, "actor-memory-limit-exceeded")
        bench.start(memory="2048")

    def test_a_resource_asked_for_too_often_in_a_second_is_rate_limited(self, bench: Bench) -> None:
        run_id, other = bench.start(), bench.start()
        for _ in range(60):
            bench.get(run_id)
        assert error_of(bench.send("GET", f"/v2/actor-runs/{run_id}")) == (429, "rate-limit-exceeded")
        bench.get(other)
        bench.wait(1)
        bench.get(run_id)


class TestStart:
    def test_the_answer_is_the_ready_run(self, bench: Bench) -> None:
        answer = bench.send("POST", RUNS, b"{}", memory="2048", timeout="60", build="beta", maxItems="5")
        run = data(answer)
        assert answer.status == 201
        assert (run["status"], run["startedAt"], run["finishedAt"]) == ("READY", "2026-05-16T09:00:00.000Z", None)
        assert run["options"] == {
            "build": "beta", "timeoutSecs": 60, "memoryMbytes": 2048, "diskMbytes": 4096, "maxItems": 5,
        }  # fmt: skip

    @pytest.mark.parametrize("name", [HARVESTER.id, f"{HARVESTER.username}~{HARVESTER.name}"])
    def test_an_actor_is_named_by_its_id_or_by_user_and_name(self, bench: Bench, name: str) -> None:
        assert bench.send("POST", f"/v2/acts/{name}/runs", b"{}").status == 201
        assert bench.sandbox.starts == {HARVESTER.id: 1}

    def test_ids_look_like_those_of_apify(self, bench: Bench) -> None:
        run = bench.get(bench.start())
        found = {
            text(run, name)
            for name in ("id", "buildId", "defaultDatasetId", "defaultKeyValueStoreId", "defaultRequestQueueId")
        }
        assert len(found) == 5
        assert all(len(one) == 17 and one.isalnum() for one in found)

    @pytest.mark.parametrize("compressed", [True, False])
    def test_the_input_is_stored_as_it_was_meant(self, bench: Bench, compressed: bool) -> None:
        # aiohttp undoes gzip and leaves the header, so a header alone says nothing.
        body = json.dumps({"profiles": ["é"] * 500}, ensure_ascii=False).encode()
        answer = bench.send("POST", RUNS, gzip.compress(body) if compressed else body, {"Content-Encoding": "gzip"})
        store = text(data(answer), "defaultKeyValueStoreId")
        record = bench.send("GET", f"/v2/key-value-stores/{store}/records/INPUT")
        assert (record.body, record.headers["Content-Type"]) == (body, "application/json")

    def test_an_unknown_or_broken_encoding_is_refused(self, bench: Bench) -> None:
        assert bench.send("POST", RUNS, b"x", {"Content-Encoding": "br"}).status == 415
        assert bench.send("POST", RUNS, b"\x1f\x8b broken", {"Content-Encoding": "gzip"}).status == 400

    def test_a_run_without_input_has_no_input_record(self, bench: Bench) -> None:
        store = text(data(bench.send("POST", RUNS)), "defaultKeyValueStoreId")
        assert error_of(bench.send("GET", f"/v2/key-value-stores/{store}/records/INPUT"))[0] == 404


class TestLife:
    def test_a_run_goes_from_ready_over_running_to_its_end(self, bench: Bench) -> None:
        bench.sandbox.script = lambda _: Plan(waits_seconds=2, lasts_seconds=3)
        run_id = bench.start()
        seen = []
        for _ in range(4):
            bench.wait(2)
            seen.append(bench.get(run_id)["status"])
        assert seen == ["RUNNING", "RUNNING", "SUCCEEDED", "SUCCEEDED"]
        assert bench.get(run_id)["finishedAt"] == "2026-05-16T09:00:05.000Z"

    def test_a_run_ends_at_the_time_it_was_due_however_late_anybody_looks(self, bench: Bench) -> None:
        run_id = bench.start()
        bench.at += timedelta(hours=3)
        assert bench.get(run_id)["finishedAt"] == "2026-05-16T09:00:01.000Z"

    def test_the_next_thing_due_is_told(self, bench: Bench) -> None:
        assert bench.sandbox.next_due() is None
        bench.start()
        bench.wait(0)
        assert bench.sandbox.next_due() == START + timedelta(seconds=1)
        bench.wait(1)
        assert bench.sandbox.next_due() is None

    @pytest.mark.parametrize(
        ("outcome", "exit_code"), [(RunStatus.FAILED, 1), (RunStatus.TIMED_OUT, None), (RunStatus.ABORTED, None)]
    )
    def test_a_script_decides_how_a_run_ends(self, bench: Bench, outcome: RunStatus, exit_code: int | None) -> None:
        bench.sandbox.script = lambda _: Plan(outcome=outcome, message="because")
        run_id = bench.start()
        bench.wait(1)
        run = bench.get(run_id)
        assert (run["status"], run["exitCode"], run["statusMessage"]) == (outcome.value, exit_code, "because")

    def test_a_plan_must_end_at_an_end(self) -> None:
        with pytest.raises(ValueError, match="cannot end as RUNNING"):
            Plan(outcome=RunStatus.RUNNING)

    def test_the_default_script_derives_items_and_cost_from_the_input(self, bench: Bench) -> None:
        run_id = bench.start({"maxPosts": 3, "profiles": ["a", "b", "c"]})
        bench.wait(60)
        run = bench.sandbox.run(run_id)
        assert len(run.dataset.items) == 9
        assert bench.get(run_id)["usageTotalUsd"] == 0.028

    def test_a_run_past_its_timeout_times_out_with_what_it_has_made(self, bench: Bench) -> None:
        bench.sandbox.timing = Timing(timing_out=5)
        bench.sandbox.script = lambda _: Plan(lasts_seconds=20, items=[1, 2, 3, 4], cost_usd=0.4)
        run_id = bench.start(timeout="10")
        bench.wait(11)
        assert bench.get(run_id)["status"] == "TIMING-OUT"
        bench.wait(60)
        assert bench.get(run_id)["status"] == "TIMED-OUT"
        assert bench.sandbox.run(run_id).dataset.items == [1, 2, 3]
        assert bench.get(run_id)["usageTotalUsd"] == 0.3

    def test_a_run_planned_without_an_end_waits_for_a_hand(self, bench: Bench) -> None:
        bench.sandbox.script = lambda _: Plan(lasts_seconds=None)
        run_id = bench.start(timeout="0")
        bench.wait(1_000_000)
        assert bench.get(run_id)["status"] == "RUNNING"
        bench.sandbox.finish(run_id, RunStatus.FAILED, items=[{"a": 1}], cost_usd=0.5, message="no luck")
        bench.wait(10)
        run = bench.get(run_id)
        assert (run["status"], run["usageTotalUsd"], run["statusMessage"]) == ("FAILED", 0.5, "no luck")
        with pytest.raises(ValueError, match="has ended"):
            bench.sandbox.finish(run_id)

    def test_an_abort_ends_a_run_and_does_nothing_to_one_that_ended(self, bench: Bench) -> None:
        bench.sandbox.script = lambda _: Plan(lasts_seconds=None)
        run_id = bench.start()
        assert data(bench.send("POST", f"/v2/actor-runs/{run_id}/abort"))["status"] == "ABORTED"
        finished = bench.get(run_id)["finishedAt"]
        bench.wait(9)
        assert data(bench.send("POST", f"/v2/actor-runs/{run_id}/abort"))["finishedAt"] == finished

    def test_a_graceful_abort_takes_its_time(self, bench: Bench) -> None:
        bench.sandbox.script = lambda _: Plan(lasts_seconds=None)
        run_id = bench.start()
        answer = bench.send("POST", f"/v2/actor-runs/{run_id}/abort", gracefully="true")
        assert data(answer)["status"] == "ABORTING"
        bench.wait(30)
        assert bench.get(run_id)["status"] == "ABORTED"

    def test_a_resurrected_run_goes_on_with_the_same_storages(self, bench: Bench) -> None:
        lives = [Plan(outcome=RunStatus.FAILED, items=[1], cost_usd=0.1), Plan(items=[2, 3], cost_usd=0.2)]
        bench.sandbox.script = lambda given: lives[given.life]
        run_id = bench.start()
        bench.wait(100)
        before = bench.get(run_id)
        run = data(bench.send("POST", f"/v2/actor-runs/{run_id}/resurrect", memory="4096"))
        assert (run["status"], run["finishedAt"], run["startedAt"]) == ("RUNNING", None, before["startedAt"])
        assert run["defaultDatasetId"] == before["defaultDatasetId"]
        bench.wait(100)
        assert bench.get(run_id)["status"] == "SUCCEEDED"
        assert bench.sandbox.run(run_id).dataset.items == [1, 2, 3]
        assert bench.get(run_id)["usageTotalUsd"] == 0.3

    def test_a_run_that_has_not_ended_cannot_be_resurrected(self, bench: Bench) -> None:
        assert bench.send("POST", f"/v2/actor-runs/{bench.start()}/resurrect").status == 400

    def test_a_deleted_run_is_gone_with_its_storages(self, bench: Bench) -> None:
        run = bench.get(bench.start())
        run_id = text(run, "id")
        bench.wait(5)
        bench.sandbox.delete_run(run_id)
        for path in (
            f"actor-runs/{run_id}",
            f"datasets/{run['defaultDatasetId']}/items",
            f"key-value-stores/{run['defaultKeyValueStoreId']}/records/INPUT",
        ):
            assert bench.send("GET", f"/v2/{path}").status == 404
        assert ids(bench.send("GET", RUNS)) == []
        assert bench.sandbox.starts == {HARVESTER.id: 1}


class TestLateness:
    def test_cost_and_stats_settle_after_the_end(self, bench: Bench) -> None:
        bench.sandbox.script = lambda _: Plan(lasts_seconds=2.5, cost_usd=0.9, early_cost_usd=0.1)
        run_id = bench.start()
        bench.wait(12.4)
        early = bench.get(run_id)
        bench.wait(0.1)
        late = bench.get(run_id)
        assert (early["usageTotalUsd"], late["usageTotalUsd"]) == (0.1, 0.9)
        early_stats, late_stats = early["stats"], late["stats"]
        assert isinstance(early_stats, dict)
        assert isinstance(late_stats, dict)
        assert (early_stats["durationMillis"], late_stats["durationMillis"]) == (2000, 2500)

    def test_an_unknown_early_cost_is_null_in_a_run_and_a_number_in_a_listing(self, bench: Bench) -> None:
        bench.sandbox.script = lambda _: Plan(cost_usd=0.9)
        run_id = bench.start()
        assert bench.get(run_id)["usageTotalUsd"] is None
        items = data(bench.send("GET", "/v2/actor-runs"))["items"]
        assert isinstance(items, list)
        assert isinstance(items[0], dict)
        assert items[0]["usageTotalUsd"] == 0.0

    def test_an_item_count_lags_while_the_items_are_all_there(self, bench: Bench) -> None:
        bench.sandbox.script = lambda _: Plan(items=[{"n": n} for n in range(5)])
        path = f"/v2/datasets/{bench.get(bench.start())['defaultDatasetId']}"
        bench.wait(1)
        assert data(bench.send("GET", path))["itemCount"] == 2
        answer = bench.send("GET", f"{path}/items")
        assert parsed(answer) == [{"n": n} for n in range(5)]
        assert answer.headers["x-apify-pagination-count"] == "2"
        bench.wait(5)
        assert data(bench.send("GET", path))["itemCount"] == 5

    def test_a_listing_may_show_a_run_late(self, bench: Bench) -> None:
        bench.sandbox.timing.listing_lag = 5
        run_id = bench.start()
        assert ids(bench.send("GET", RUNS)) == []
        bench.wait(5)
        assert ids(bench.send("GET", RUNS)) == [run_id]


class TestListings:
    @pytest.fixture
    def three(self, bench: Bench) -> list[str]:
        """Three runs, ten seconds apart, the last one still running."""
        started = []
        for _ in range(3):
            started.append(bench.start())
            bench.wait(10)
        bench.sandbox.script = lambda _: Plan(lasts_seconds=None)
        bench.sandbox.resurrect(started[-1])
        return started

    def test_pages_follow_each_other_in_either_order(self, bench: Bench, three: list[str]) -> None:
        page = bench.send("GET", RUNS, offset="1", limit="1")
        assert ids(page) == three[1:2]
        assert {name: data(page)[name] for name in ("total", "offset", "limit", "count", "desc")} == {
            "total": 3, "offset": 1, "limit": 1, "count": 1, "desc": False,
        }  # fmt: skip
        assert ids(bench.send("GET", "/v2/actor-runs", desc="1")) == three[::-1]
        assert ids(bench.send("GET", RUNS, offset="3")) == []

    def test_a_limit_of_zero_is_no_limit(self, bench: Bench, three: list[str]) -> None:
        assert ids(bench.send("GET", RUNS, limit="0")) == three

    def test_start_times_bound_a_listing_inclusively(self, bench: Bench, three: list[str]) -> None:
        assert ids(bench.send("GET", RUNS, startedAfter="2026-05-16T09:00:10.000Z")) == three[1:]
        assert ids(bench.send("GET", RUNS, startedBefore="2026-05-16T09:00:10.000Z")) == three[:2]
        assert bench.send("GET", RUNS, startedAfter="yesterday").status == 400

    def test_statuses_narrow_a_listing(self, bench: Bench, three: list[str]) -> None:
        assert ids(bench.send("GET", RUNS, status="RUNNING,FAILED")) == three[2:]

    def test_items_are_paged_and_shaped(self, bench: Bench) -> None:
        items: list[Json] = [{"a": n, "b": -n, "#debug": True} for n in range(4)]
        bench.sandbox.script = lambda _: Plan(items=[*items, {}])
        path = f"/v2/datasets/{bench.get(bench.start())['defaultDatasetId']}/items"
        bench.wait(60)
        page = bench.send("GET", path, offset="1", limit="2", fields="a")
        assert parsed(page) == [{"a": 1}, {"a": 2}]
        assert page.headers["x-apify-pagination-total"] == "5"
        assert page.headers["x-apify-pagination-limit"] == "2"
        assert parsed(bench.send("GET", path, offset="5")) == []
        assert parsed(bench.send("GET", path, clean="1", desc="1", limit="2", omit="b")) == [{"a": 3}]

    def test_what_the_sandbox_cannot_shape_it_refuses_aloud(self, bench: Bench) -> None:
        path = f"/v2/datasets/{bench.get(bench.start())['defaultDatasetId']}/items"
        assert bench.send("GET", path, format="csv").status == 400
        assert bench.send("GET", path, unwind="a").status == 400


class TestWebhooks:
    def test_the_default_payload_has_the_shape_of_the_documented_one(self, bench: Bench) -> None:
        run_id = bench.start_with_webhook()
        bench.wait(1)
        sample: Json = json.loads((SAMPLES / "apify-webhook-succeeded.json").read_text())
        assert isinstance(sample, dict)
        sample_resource, sample_stats = sample["resource"], None
        assert isinstance(sample_resource, dict)
        sample_stats = sample_resource["stats"]
        assert isinstance(sample_stats, dict)
        _, ended = bench.fired()
        payload, resource = payload_of(ended), resource_of(ended)
        stats = resource["stats"]
        assert isinstance(stats, dict)
        assert payload.keys() == sample.keys()
        assert resource.keys() >= sample_resource.keys()
        assert stats.keys() == sample_stats.keys()
        assert payload["eventType"] == "ACTOR.RUN.SUCCEEDED"
        assert payload["eventData"] == {"actorId": HARVESTER.id, "actorRunId": run_id}
        assert payload["createdAt"] == resource["finishedAt"] == "2026-05-16T09:00:01.000Z"

    def test_the_test_button_sends_the_documented_dummy(self, bench: Bench) -> None:
        bench.sandbox.send_test_webhook("http://127.0.0.1:1/hook")
        (sent,) = bench.fired()
        sample: Json = json.loads((SAMPLES / "apify-webhook-test.json").read_text())
        assert isinstance(sample, dict)
        assert payload_of(sent) | {"userId": "", "createdAt": ""} == sample | {"userId": "", "createdAt": ""}

    def test_each_event_of_a_life_is_told_once_in_order(self, bench: Bench) -> None:
        bench.sandbox.script = lambda given: Plan(outcome=[RunStatus.TIMED_OUT, RunStatus.FAILED][given.life])
        run_id = bench.start_with_webhook()
        bench.wait(5)
        bench.sandbox.resurrect(run_id)
        bench.wait(5)
        told = [(dispatch.event, resource_of(dispatch)["status"]) for dispatch in bench.fired()]
        assert told == [
            (Event.CREATED, "READY"),
            (Event.TIMED_OUT, "TIMED-OUT"),
            (Event.RESURRECTED, "RUNNING"),
            (Event.FAILED, "FAILED"),
        ]

    def test_an_aborted_run_is_told(self, bench: Bench) -> None:
        bench.sandbox.abort(bench.start_with_webhook())
        assert [dispatch.event for dispatch in bench.fired()] == [Event.CREATED, Event.ABORTED]

    def test_events_of_several_runs_come_in_the_order_of_time(self, bench: Bench) -> None:
        # The slow one moves first, and ends last.
        plans = {"slow": Plan(waits_seconds=1, lasts_seconds=10), "quick": Plan(waits_seconds=2, lasts_seconds=1)}
        bench.sandbox.script = lambda given: plans[given.options.build]
        hook = encode([{"eventTypes": ["ACTOR.RUN.SUCCEEDED"], "requestUrl": "http://127.0.0.1:1/hook"}])
        slow = bench.start(webhooks=hook, build="slow")
        quick = bench.start(webhooks=hook, build="quick")
        bench.wait(60)
        assert [dispatch.run_id for dispatch in bench.fired()] == [quick, slow]

    def test_only_the_events_subscribed_to_are_told(self, bench: Bench) -> None:
        bench.start_with_webhook(eventTypes=["ACTOR.RUN.FAILED"])
        bench.wait(5)
        assert bench.fired() == []

    def test_a_snapshot_stays_what_it_was(self, bench: Bench) -> None:
        run_id = bench.start_with_webhook()
        bench.wait(60)
        bench.sandbox.resurrect(run_id)
        _, ended, _ = bench.fired()
        assert resource_of(ended)["status"] == "SUCCEEDED"
        assert resource_of(ended)["usageTotalUsd"] == 0.01

    def test_a_second_run_with_the_same_idempotency_key_has_no_webhook(self, bench: Bench) -> None:
        bench.start_with_webhook(idempotencyKey="batch-1")
        bench.start_with_webhook(idempotencyKey="batch-1")
        bench.start_with_webhook(idempotencyKey="batch-2")
        assert len(bench.fired()) == 2

    def test_a_deleted_run_tells_nothing_more(self, bench: Bench) -> None:
        run_id = bench.start_with_webhook(eventTypes=["ACTOR.RUN.SUCCEEDED"])
        bench.sandbox.delete_run(run_id)
        bench.wait(60)
        assert bench.fired() == []

    def test_apify_headers_cannot_be_replaced_by_the_template(self, bench: Bench) -> None:
        template = '{"Authorization": "Bearer s", "content-type": "text/html", "X-Apify-Webhook-Dispatch-ID": "mine"}'
        bench.start_with_webhook(headersTemplate=template)
        (created,) = bench.fired()
        assert dict(created.headers) == {
            "Authorization": "Bearer s",
            "Content-Type": "application/json",
            "X-Apify-Webhook": "true",
            "X-Apify-Webhook-Dispatch-Id": created.id,
            "X-Apify-Request-Origin": "WEBHOOK",
        }

    def test_a_payload_template_replaces_the_payload(self, bench: Bench) -> None:
        template = '{"resource": {"id": {{resource.id}}}, "job": "251007-070457", "at": {{globals.dateUnix}}}'
        run_id = bench.start_with_webhook(payloadTemplate=template)
        (created,) = bench.fired()
        assert payload_of(created) == {
            "resource": {"id": run_id}, "job": "251007-070457", "at": int(START.timestamp()),
        }  # fmt: skip

    def test_a_webhook_that_must_not_retry_says_so(self, bench: Bench) -> None:
        bench.start_with_webhook(doNotRetry=True)
        (created,) = bench.fired()
        assert not created.retries


class TestTemplates:
    VARIABLES: dict[str, Json] = {"userId": 'a"b', "resource": {"id": "r1", "n": 1, "nested": {"x": [1]}}}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("template", "interpolate", "result"),
        [
            ('{"a": {{userId}}}', False, {"a": 'a"b'}),
            ('{"a": {{ resource.nested }}}', False, {"a": {"x": [1]}}),
            ('{"a": {{resource.missing.deep}}}', False, {"a": None}),
            ('{"a": "{{userId}}"}', False, {"a": "{{userId}}"}),
            ('{"a": "{{resource}}"}', True, {"a": {"id": "r1", "n": 1, "nested": {"x": [1]}}}),
            ('{"a": "run {{resource.id}} of {{userId}}, {{resource.n}}"}', True, {"a": 'run r1 of a"b, 1'}),
            ('{"a": "\\"{{userId}}"}', True, {"a": '"a"b'}),
            ('{"a": {{userId}}, "b": "{{resource.n}}"}', True, {"a": 'a"b', "b": 1}),
        ],
    )
    def test_variables_follow_the_documented_rules(self, template: str, interpolate: bool, result: Json) -> None:
        assert render(template, self.VARIABLES, interpolate=interpolate) == result

    @pytest.mark.parametrize("template", ['{"a": {{other}}}', '{"a": {{userId}}', "{{}}"])
    def test_unknown_variables_and_broken_json_are_refused(self, template: str) -> None:
        with pytest.raises(WebhookRefusedError):
            render(template, self.VARIABLES, interpolate=False)

    def test_a_start_with_a_broken_template_is_refused(self, bench: Bench) -> None:
        hook: Json = [{"eventTypes": ["TEST"], "requestUrl": "http://x/", "payloadTemplate": "{{nothing}}"}]
        assert error_of(bench.send("POST", RUNS, webhooks=encode(hook))) == (400, "invalid-parameter")


def test_a_head_request_has_no_body(bench: Bench) -> None:
    store = bench.get(bench.start())["defaultKeyValueStoreId"]
    answer = bench.send("HEAD", f"/v2/key-value-stores/{store}/records/INPUT")
    assert (answer.status, answer.body) == (200, b"")


def test_the_same_seed_gives_the_same_ids() -> None:
    assert Bench().start() == Bench().start()
