"""POST /runs over a real socket: the single creation point."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from app.sandbox.hand_clock import HandClock
from tests.support.harness import Harness, harness
from tests.support.watching import rows

if TYPE_CHECKING:
    from pathlib import Path

    from app.model import Json


KICKOFF: dict[str, Json] = {"client_id": "Guy-Wilson", "client_name": "Guy Wilson", "job_id": "251007-070457"}


async def test_a_kickoff_answers_201_with_the_run_as_get_shows_it(served: Harness) -> None:
    answer = await served.call("POST", "/runs", {**KICKOFF, "fields": {"posts_harvested": 3, "progress_log": "begun"}})
    assert answer.status == 201
    assert answer.headers["Content-Type"].startswith("application/json")
    created = answer.json()
    assert created.pop("created") is True
    assert created["run_id"] == "251007-070457-Guy-Wilson"
    assert created["client_name"] == "Guy Wilson"
    assert created["status"] == "Running"
    fields = created["fields"]
    assert isinstance(fields, dict)
    assert (fields["posts_harvested"], fields["progress_log"]) == (3, "begun")
    shown = (await served.call("GET", "/runs/251007-070457-Guy-Wilson")).json()
    assert shown.keys() == created.keys()
    assert shown["fields"] == fields


async def test_what_was_answered_201_is_in_the_file_at_that_moment(served: Harness) -> None:
    for number in range(20):
        answer = await served.call("POST", "/runs", {"client_id": f"c{number}", "job_id": "251007-070457"})
        kept = rows(served.store_path, "SELECT kind FROM outbox WHERE run_id = ?", f"251007-070457-c{number}")
        assert (answer.status, kept) == (201, [("create",)])


async def test_the_same_run_again_answers_200_and_writes_nothing(served: Harness) -> None:
    await served.call("POST", "/runs", KICKOFF)
    await served.synced()
    everything = "SELECT run_id, fields, changed_at, due_at, sync FROM runs", "SELECT id, state, change FROM outbox"
    before = [rows(served.store_path, query) for query in everything]
    again = await served.call("POST", "/runs", {**KICKOFF, "fields": {"posts_harvested": 99}, "batches": []})
    assert again.status == 200
    assert again.json()["created"] is False
    assert again.json()["client_name"] == "Guy Wilson"
    assert [rows(served.store_path, query) for query in everything] == before
    await served.synced()
    assert len(served.airtable_server.log) == 1


async def test_many_kickoffs_of_one_run_at_once_create_it_once(served: Harness) -> None:
    answers = await asyncio.gather(*(served.call("POST", "/runs", KICKOFF) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
    await served.synced()
    assert list(served.records()) == ["251007-070457-Guy-Wilson"]


async def test_without_a_job_id_two_calls_in_one_second_are_two_jobs(tmp_path: Path) -> None:
    clock = HandClock(datetime(2025, 10, 7, 23, 59, 59, 500_000, tzinfo=UTC))
    async with harness(tmp_path, clock=clock) as house, house.running():
        answers = [await house.call("POST", "/runs", {"client_id": "Guy"}) for _ in range(3)]
        other = await house.call("POST", "/runs", {"client_id": "Ann"})
    assert [answer.status for answer in answers] == [201] * 3
    assert [answer.json()["run_id"] for answer in answers] == [
        "251007-235959-Guy",
        "251008-000000-Guy",
        "251008-000001-Guy",
    ]
    assert other.json()["run_id"] == "251007-235959-Ann"


async def test_an_idempotency_key_makes_a_kickoff_without_job_id_one_job(served: Harness) -> None:
    key = {"Idempotency-Key": "kickoff-1"}
    first = await served.call("POST", "/runs", {"client_id": "Guy"}, headers=key)
    again = await served.call("POST", "/runs", {"client_id": "Guy"}, headers=key)
    assert (first.status, again.status) == (201, 200)
    assert again.json()["run_id"] == first.json()["run_id"]
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(1,)]


async def test_a_key_that_came_with_another_kickoff_is_refused(served: Harness) -> None:
    key = {"Idempotency-Key": "kickoff-1"}
    await served.call("POST", "/runs", {"client_id": "Guy"}, headers=key)
    other = await served.call("POST", "/runs", {"client_id": "Ann"}, headers=key)
    assert other.status == 422
    assert other.json()["type"] == "urn:runrecords:problem:idempotency-key-reused"
    assert rows(served.store_path, "SELECT client_id FROM runs") == [("Guy",)]


async def test_a_key_of_an_update_never_stands_for_a_kickoff(served: Harness) -> None:
    """Any word may be a run's name in an update, that of the kickoffs' own keys too."""
    key = {"Idempotency-Key": "one"}
    await served.call("PATCH", "/runs/kickoff", {"add": {"posts_harvested": 1}}, headers=key)
    created = await served.call("POST", "/runs", {"client_id": "Guy"}, headers=key)
    assert created.status == 201, created.text


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "\u00e9"])
async def test_a_key_that_is_not_printable_ascii_is_refused(served: Harness, key: str) -> None:
    answer = await served.call("POST", "/runs", KICKOFF, headers={"Idempotency-Key": key})
    assert answer.status == 400
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(0,)]


async def test_batches_are_kept_in_their_order_with_their_input_as_given(served: Harness) -> None:
    batches: list[Json] = [
        {"input": {"urls": ["https://example.com/é"], "n": 1.5}, "profiles": 5, "actor_id": "someone~actor"},
        {"input": None},
    ]
    answer = await served.call("POST", "/runs", {**KICKOFF, "batches": batches})
    assert answer.status == 201
    shown = answer.json()["batches"]
    assert isinstance(shown, list)
    kept = rows(served.store_path, "SELECT number, input, profiles, actor_id, state FROM batches ORDER BY number")
    configured = served.settings.apify.actor_id
    assert kept == [
        (1, '{"n":1.5,"urls":["https://example.com/é"]}', 5, "someone~actor", "queued"),
        (2, "null", None, configured, "queued"),
    ]
    assert len(shown) == 2


async def test_a_batch_without_any_actor_is_refused(tmp_path: Path) -> None:
    async with harness(tmp_path, apify={"actor_id": ""}) as house, house.running():
        answer = await house.call(
            "POST", "/runs", {**KICKOFF, "batches": [{"input": {}, "actor_id": "a"}, {"input": 1}]}
        )
        assert answer.status == 422
        assert pointers(answer.json()) == ["/batches/1/actor_id"]
        assert rows(house.store_path, "SELECT count(*) FROM runs") == [(0,)]


def pointers(problem: dict[str, Json]) -> list[Json]:
    errors = problem["errors"]
    assert isinstance(errors, list)
    return [error["pointer"] for error in errors if isinstance(error, dict)]


async def test_each_flaw_of_a_kickoff_is_named_by_its_pointer(served: Harness) -> None:
    wrong: list[tuple[Json, list[Json]]] = [
        ({}, ["/client_id"]),
        ([], [""]),
        ({"client_id": 5}, ["/client_id"]),
        ({"client_id": "Guy", "job_id": 7}, ["/job_id"]),
        ({"client_id": "Guy", "jobid": "x"}, ["/jobid"]),
        ({"client_id": "Guy", "fields": {"post_harvested": 1}}, ["/fields/post_harvested"]),
        ({"client_id": "Guy", "fields": {"a/b~c": 1}}, ["/fields/a~1b~0c"]),
        ({"client_id": "Guy", "fields": {'it\'s \\ "odd"': 1}}, ['/fields/it\'s \\ "odd"']),
        (
            {"client_id": "Guy", "fields": {"status": "Done", "posts_harvested": "3"}},
            ["/fields/status", "/fields/posts_harvested"],
        ),
        ({"client_id": "Guy", "fields": {"run_id": "x"}}, ["/fields/run_id"]),
        ({"client_id": "Guy", "batches": [{}]}, ["/batches/0/input"]),
        ({"client_id": "Guy", "batches": [{"input": 1, "profiles": -1}]}, ["/batches/0/profiles"]),
        ({"client_id": "Guy", "batches": [{"input": 1, "profiles": True}]}, ["/batches/0/profiles"]),
        ({"client_id": "Guy", "batches": [{"input": 1, "actor_id": "a/b"}]}, ["/batches/0/actor_id"]),
        ({"client_id": "Guy", "client_name": "A", "fields": {"client_name": "B"}}, ["/fields/client_name"]),
    ]
    for body, expected in wrong:
        answer = await served.call("POST", "/runs", body)
        assert answer.status == 422, body
        assert pointers(answer.json()) == expected, body
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(0,)]


async def test_a_wrong_name_is_answered_with_the_closest_known_one(served: Harness) -> None:
    field = await served.call("POST", "/runs", {"client_id": "Guy", "fields": {"post_harvested": 1}})
    member = await served.call("POST", "/runs", {"client": "Guy"})
    nested = await served.call("POST", "/runs", {"client_id": "Guy", "batches": [{"input": 1, "profile": 3}]})
    option = await served.call("POST", "/runs", {"client_id": "Guy", "fields": {"status": "Complete"}})
    assert "did you mean 'posts_harvested'?" in field.text
    assert "did you mean 'client_id'?" in member.text or "did you mean 'client_name'?" in member.text
    assert "did you mean 'profiles'?" in nested.text
    assert "did you mean 'Completed'?" in option.text


async def test_an_input_with_a_number_that_json_cannot_write_is_refused(served: Harness) -> None:
    for number in (b"NaN", b"1e400", b"-Infinity"):
        body = b'{"client_id": "Guy", "batches": [{"input": {"n": [' + number + b"]}}]}"
        answer = await served.call("POST", "/runs", body)
        assert answer.status in {400, 422}, answer.text
    assert rows(served.store_path, "SELECT count(*) FROM runs") == [(0,)]


async def test_a_create_is_offered_again_after_the_service_was_stopped_before_it_was_sent(house: Harness) -> None:
    await house.airtable_server.stop()
    async with house.running():
        run_id = await house.kick_off()
    await house.airtable_server.start()
    async with house.running():
        await house.synced()
    assert list(house.records()) == [run_id]
