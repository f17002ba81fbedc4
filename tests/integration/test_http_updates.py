"""PATCH /runs/{run_id} over a real socket: queued, held or duplicate, and every way to be refused."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.watching import rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.model import Json
    from tests.support.harness import Answered, Harness


@pytest.fixture
async def served(house: Harness) -> AsyncIterator[Harness]:
    async with house.running():
        await house.kick_off()
        yield house


RUN = "/runs/251007-070457-Guy-Wilson"
RUN_ID = "251007-070457-Guy-Wilson"


async def update(house: Harness, body: Json | bytes, *, key: str | None = None, path: str = RUN) -> Answered:
    return await house.call("PATCH", path, body, headers={"Idempotency-Key": key} if key else None)


async def fields(house: Harness) -> dict[str, Json]:
    shown = (await house.call("GET", RUN)).json()["fields"]
    assert isinstance(shown, dict)
    return shown


def pointers(answer: Answered) -> list[Json]:
    errors = answer.json()["errors"]
    assert isinstance(errors, list)
    return [error["pointer"] for error in errors if isinstance(error, dict)]


async def test_an_update_is_queued_and_is_in_the_file_when_it_is_answered(served: Harness) -> None:
    for posts in range(1, 21):
        answer = await update(served, {"add": {"posts_harvested": posts}})
        assert answer.status == 202
        said = answer.json()
        message_id = said["message_id"]
        assert isinstance(message_id, int)
        assert said == {"outcome": "queued", "run_id": RUN_ID, "message_id": message_id}
        kept = rows(served.store_path, "SELECT kind, change FROM outbox WHERE id = ?", message_id)
        assert kept == [("update", json.dumps({"add": {"posts_harvested": posts}}, separators=(",", ":")))]


async def test_updates_fold_in_the_order_of_their_acceptance(served: Harness) -> None:
    changes: list[Json] = [
        {"set": {"posts_harvested": 10, "client_name": "Guy"}},
        {"add": {"posts_harvested": 5, "total_api_cost": 0.1}, "append": {"progress_log": "one"}},
        {"add": {"total_api_cost": 0.2}, "append": {"progress_log": ["two", "three\nfour"]}},
        {"set": {"client_name": None, "end_time": "2025-10-07T09:00:00+02:00"}},
    ]
    for change in changes:
        assert (await update(served, change)).status == 202
    folded = await fields(served)
    assert folded["posts_harvested"] == 15
    assert folded["total_api_cost"] == 0.3
    assert folded["progress_log"] == "one\ntwo\nthree\nfour"
    assert folded["client_name"] is None
    assert folded["end_time"] == "2025-10-07T07:00:00.000Z"


async def test_an_update_of_a_run_that_does_not_exist_is_held_and_says_so(served: Harness) -> None:
    for times in (1, 2):
        answer = await update(served, {"add": {"posts_harvested": 1}}, path="/runs/251007-070457-Guy-Wilsn")
        assert answer.status == 202
        said = answer.json()
        error = said["error"]
        assert isinstance(error, dict)
        assert (said["outcome"], error["kind"]) == ("held", "missing_record")
        assert error["similar_runs"] == [RUN_ID]
        assert "did not create" in str(error["message"])
        assert rows(served.store_path, "SELECT updates_held, times FROM missing_records") == [(times, times)]
    await served.synced()
    assert list(served.records()) == [RUN_ID]


async def test_the_same_key_and_body_again_is_a_duplicate_and_adds_once(served: Harness) -> None:
    change: Json = {"add": {"posts_harvested": 3, "posts_scored": 1}}
    reordered = b'{"append": {}, "add": {"posts_scored": 1.0, "posts_harvested": 3}, "set": {}}'
    assert (await update(served, change, key="k")).json()["outcome"] == "queued"
    for again in (change, reordered):
        answer = await update(served, again, key="k")
        assert (answer.status, answer.json()) == (202, {"outcome": "duplicate", "run_id": RUN_ID})
    assert (await fields(served))["posts_harvested"] == 3


async def test_many_retries_of_one_request_at_once_add_once(served: Harness) -> None:
    answers = await asyncio.gather(*(update(served, {"add": {"posts_harvested": 3}}, key="k") for _ in range(20)))
    outcomes = [answer.json()["outcome"] for answer in answers]
    assert sorted(map(str, outcomes)) == ["duplicate"] * 19 + ["queued"]
    assert (await fields(served))["posts_harvested"] == 3


async def test_a_key_with_another_body_is_refused_and_changes_nothing(served: Harness) -> None:
    await update(served, {"add": {"posts_harvested": 3}}, key="k")
    answer = await update(served, {"add": {"posts_harvested": 4}}, key="k")
    assert answer.status == 422
    assert answer.json()["type"] == "urn:runrecords:problem:idempotency-key-reused"
    assert (await fields(served))["posts_harvested"] == 3


async def test_one_key_serves_two_runs(served: Harness) -> None:
    await served.kick_off("Ann")
    change: Json = {"add": {"posts_harvested": 3}}
    outcomes = [
        (await update(served, change, key="k", path=path)).json()["outcome"]
        for path in (RUN, "/runs/251007-070457-Ann")
    ]
    assert outcomes == ["queued", "queued"]


async def test_a_held_update_is_held_once_whatever_its_sender_repeats(served: Harness) -> None:
    outcomes = [
        (await update(served, {"add": {"posts_harvested": 3}}, key="k", path="/runs/251007-070457-Ann")).json()[
            "outcome"
        ]
        for _ in range(3)
    ]
    assert outcomes == ["held", "duplicate", "duplicate"]
    assert (await served.call("POST", "/runs", {"client_id": "Ann", "job_id": "251007-070457"})).status == 201
    await served.synced()
    assert served.records()["251007-070457-Ann"]["Total Posts Harvested"] == 3


REFUSED: list[tuple[Json, list[str]]] = [
    ({}, [""]),
    ({"set": {}, "add": {}, "append": {}}, [""]),
    ([], [""]),
    ("set", [""]),
    (None, [""]),
    ({"set": []}, ["/set"]),
    ({"set": None}, ["/set"]),
    ({"add": 5}, ["/add"]),
    ({"sett": {"status": "Failed"}}, ["/sett"]),
    ({"set": {"run_id": "x"}}, ["/set/run_id"]),
    ({"set": {"client_id": "x"}}, ["/set/client_id"]),
    ({"append": {"client_id": "x"}}, ["/append/client_id"]),
    ({"set": {"Total Posts Harvested": 1}}, ["/set/Total Posts Harvested"]),
    ({"set": {"status": "Done"}}, ["/set/status"]),
    ({"set": {"status": 1}}, ["/set/status"]),
    ({"set": {"status": ""}}, ["/set/status"]),
    ({"set": {"posts_harvested": "3"}}, ["/set/posts_harvested"]),
    ({"set": {"posts_harvested": True}}, ["/set/posts_harvested"]),
    ({"set": {"posts_harvested": 1.5}}, ["/set/posts_harvested"]),
    ({"set": {"posts_harvested": [1]}}, ["/set/posts_harvested"]),
    ({"set": {"posts_harvested": 2**53}}, ["/set/posts_harvested"]),
    ({"set": {"posts_harvested": 10**400}}, ["/set/posts_harvested"]),
    ({"set": {"total_api_cost": "1"}}, ["/set/total_api_cost"]),
    ({"set": {"total_api_cost": False}}, ["/set/total_api_cost"]),
    ({"set": {"total_api_cost": 1e16}}, ["/set/total_api_cost"]),
    ({"set": {"total_api_cost": 10**400}}, ["/set/total_api_cost"]),
    ({"set": {"start_time": "yesterday"}}, ["/set/start_time"]),
    ({"set": {"start_time": "2025-10-07T09:00:00"}}, ["/set/start_time"]),
    ({"set": {"start_time": "0001-01-01T00:00:00+14:00"}}, ["/set/start_time"]),
    ({"set": {"start_time": 5}}, ["/set/start_time"]),
    ({"set": {"client_name": 5}}, ["/set/client_name"]),
    ({"set": {"client_name": {}}}, ["/set/client_name"]),
    ({"set": {"client_name": "x" * 100_001}}, ["/set/client_name"]),
    ({"set": {"progress_log": "x"}}, ["/set/progress_log"]),
    ({"set": {"progress_log": None}}, ["/set/progress_log"]),
    ({"add": {"progress_log": 1}}, ["/add/progress_log"]),
    ({"add": {"status": 1}}, ["/add/status"]),
    ({"add": {"posts_harvested": None}}, ["/add/posts_harvested"]),
    ({"add": {"posts_harvested": "1"}}, ["/add/posts_harvested"]),
    ({"append": {"posts_harvested": 1}}, ["/append/posts_harvested"]),
    ({"append": {"progress_log": 1}}, ["/append/progress_log"]),
    ({"append": {"progress_log": ["a", 1]}}, ["/append/progress_log"]),
    ({"append": {"progress_log": None}}, ["/append/progress_log"]),
    ({"set": {"posts_harvested": 1}, "add": {"posts_harvested": 1}}, ["/add/posts_harvested"]),
    ({"set": {"a": 1}, "add": {"b": 1}, "append": {"c": 1}}, ["/set/a", "/add/b", "/append/c"]),
]


async def test_each_flaw_of_an_update_is_named_by_its_pointer_and_changes_nothing(served: Harness) -> None:
    before = await fields(served)
    for body, expected in REFUSED:
        answer = await update(served, json.dumps(body).encode())
        assert answer.status == 422, (str(body)[:80], answer.text)
        assert pointers(answer) == expected, str(body)[:80]
    assert await fields(served) == before
    assert rows(served.store_path, "SELECT count(*) FROM outbox WHERE kind = 'update'") == [(0,)]


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400"])
@pytest.mark.parametrize("part", [b"set", b"add"])
async def test_numbers_that_no_cell_can_hold_are_refused(served: Harness, number: bytes, part: bytes) -> None:
    for field in (b"posts_harvested", b"total_api_cost"):
        answer = await update(served, b'{"' + part + b'": {"' + field + b'": ' + number + b"}}")
        assert answer.status in {400, 422}, answer.text
    assert rows(served.store_path, "SELECT count(*) FROM outbox WHERE kind = 'update'") == [(0,)]


async def test_wrong_names_and_options_are_answered_with_what_was_probably_meant(served: Harness) -> None:
    wrong: list[tuple[Json, str]] = [
        ({"set": {"posts_harvest": 1}}, "posts_harvested"),
        ({"add": {"total_cost": 1}}, "total_api_cost"),
        ({"append": {"progres_log": "x"}}, "progress_log"),
        ({"set": {"status": "completed"}}, "Completed"),
        ({"appends": {"progress_log": "x"}}, "append"),
    ]
    for body, meant in wrong:
        answer = await update(served, body)
        assert f"did you mean {meant!r}?" in answer.text, answer.text


async def test_a_body_that_is_no_json_is_400(served: Harness) -> None:
    for body in (b"", b"{", b'{"set": {"client_name": "\xff"}}', b"\xef\xbb\xbf{}", b"[" * 100_000, b"{} {}"):
        answer = await update(served, body)
        assert (answer.status, answer.json()["type"]) == (400, "urn:runrecords:problem:malformed"), body[:20]


async def test_a_log_keeps_its_last_hundred_thousand_characters(served: Harness) -> None:
    await update(served, {"append": {"progress_log": ["first", "x" * 99_990]}})
    await update(served, {"append": {"progress_log": "and the end"}})
    await served.synced()
    log = served.records()[RUN_ID]["Progress Log"]
    assert isinstance(log, str)
    assert len(log) == 100_000
    assert log.endswith("x\nand the end")
