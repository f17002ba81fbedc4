"""Looking and deciding over HTTP: listings by page, errors resolved, messages sent again, counts."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from app.sandbox.hand_clock import START, HandClock
from tests.support.harness import Harness, harness
from tests.support.watching import rows

if TYPE_CHECKING:
    from pathlib import Path

    from app.model import Json


async def listed(house: Harness, path: str, name: str) -> list[dict[str, Json]]:
    answer = await house.call("GET", path)
    assert answer.status == 200, answer.text
    found = answer.json()[name]
    assert isinstance(found, list)
    return [row for row in found if isinstance(row, dict)]


async def paged(house: Harness, path: str, name: str) -> list[list[Json]]:
    """The ids (or run ids) of each page, following the cursors to the end."""
    pages: list[list[Json]] = []
    cursor: Json = ""
    while cursor is not None:
        suffix = f"&cursor={cursor}" if cursor else ""
        answer = (await house.call("GET", path + suffix)).json()
        found = answer[name]
        assert isinstance(found, list)
        pages.append([row.get("id", row.get("run_id")) for row in found if isinstance(row, dict)])
        cursor = answer["next_cursor"]
    return pages


async def refuse_posts_of(house: Harness, run_id: str) -> int:
    """Let Airtable refuse an update of a run, and return its message, dead by then."""
    house.airtable.remove_column("Total Posts Harvested")
    answer = await house.call("PATCH", f"/runs/{run_id}", {"set": {"posts_harvested": 1}})
    await house.synced()
    message_id = answer.json()["message_id"]
    assert isinstance(message_id, int)
    assert rows(house.store_path, "SELECT state FROM outbox WHERE id = ?", message_id) == [("dead",)]
    return message_id


async def test_runs_come_newest_first_and_page_by_page_without_gap_or_overlap(served: Harness) -> None:
    run_ids = [await served.kick_off(f"c{number}") for number in range(7)]
    pages = await paged(served, "/runs?limit=3", "runs")
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [run_id for page in pages for run_id in page] == run_ids[::-1]
    assert (await served.call("GET", "/runs?limit=7")).json()["next_cursor"] is None


async def test_a_page_stays_where_it_was_when_newer_runs_come(served: Harness) -> None:
    run_ids = [await served.kick_off(f"c{number}") for number in range(4)]
    first = (await served.call("GET", "/runs?limit=2")).json()
    await served.kick_off("later")
    second = await listed(served, f"/runs?limit=2&cursor={first['next_cursor']}", "runs")
    assert [row["run_id"] for row in second] == [run_ids[1], run_ids[0]]


async def test_runs_are_filtered_by_each_parameter_and_by_all_together(served: Harness) -> None:
    guy = await served.kick_off("Guy")
    ann = await served.kick_off("Ann")
    other = await served.kick_off("Guy", "260101-000000", fields={"status": "Failed"})
    await served.synced()
    for query, expected in (
        ("client_id=Guy", [other, guy]),
        ("job_id=251007-070457", [ann, guy]),
        ("status=Failed", [other]),
        ("sync=synced", [other, ann, guy]),
        ("sync=failed", []),
        ("client_id=Guy&job_id=251007-070457&status=Running&sync=synced", [guy]),
        ("client_id=guy", []),
        ("client_id=' OR '1'='1", []),
    ):
        assert [row["run_id"] for row in await listed(served, f"/runs?{query}", "runs")] == expected, query


async def test_the_outbox_is_filtered_by_state_run_and_kind(served: Harness) -> None:
    guy, ann = await served.kick_off("Guy"), await served.kick_off("Ann")
    await served.synced()
    dead = await refuse_posts_of(served, guy)
    for query, expected in (
        ("state=dead", [("update", guy)]),
        ("state=delivered", [("create", ann), ("create", guy)]),
        ("state=pending", []),
        (f"run_id={guy}", [("update", guy), ("create", guy)]),
        (f"run_id={guy}&kind=create&state=delivered", [("create", guy)]),
    ):
        found = await listed(served, f"/outbox?{query}", "messages")
        assert [(row["kind"], row["run_id"]) for row in found] == expected, query
    message = (await listed(served, "/outbox?state=dead", "messages"))[0]
    assert message["id"] == dead
    assert 'Unknown field name: "Total Posts Harvested"' in str(message["waits_for"])


async def test_errors_are_filtered_by_kind_state_run_and_client(served: Harness) -> None:
    for client in ("Ann", "Bob"):
        await served.call("PATCH", f"/runs/251007-070457-{client}", {"add": {"posts_harvested": 1}})
    await served.kick_off("Bob")
    for query, expected in (
        ("kind=missing_record", ["Bob", "Ann"]),
        ("state=open", ["Ann"]),
        ("state=resolved", ["Bob"]),
        ("run_id=251007-070457-Ann", ["Ann"]),
        ("client_id=Bob", ["Bob"]),
        ("kind=rejected", []),
    ):
        assert [row["client_id"] for row in await listed(served, f"/errors?{query}", "errors")] == expected, query
    assert [len(page) for page in await paged(served, "/errors?limit=1", "errors")] == [1, 1]


async def test_what_a_listing_does_not_know_is_refused_by_name(served: Harness) -> None:
    for query, said in (
        ("/runs?clientid=x", "did you mean 'client_id'?"),
        ("/runs?sync=sinced", "did you mean 'synced'?"),
        ("/runs?limit=0", "between 1 and 500"),
        ("/runs?limit=501", "between 1 and 500"),
        ("/runs?limit=-1", "'limit'"),
        ("/runs?limit=ten", "'limit'"),
        ("/runs?limit=%D9%A3", "'limit'"),
        ("/runs?limit=1&limit=2", "given twice"),
        ("/runs?cursor=abc", "next_cursor"),
        ("/runs?cursor=", "next_cursor"),
        (f"/runs?cursor={'9' * 30}", "next_cursor"),
        ("/errors?kind=missing", "did you mean"),
        ("/errors?state=closed", "'state'"),
        ("/outbox?state=sent", "'state'"),
        ("/outbox?client_id=x", "not a parameter"),
        ("/runs/x?limit=1", "not a parameter"),
        ("/stats?since=1", "not a parameter"),
    ):
        answer = await served.call("GET", query)
        assert answer.status == 422, query
        assert said in answer.text, (query, answer.text)


# Errors


async def test_an_error_is_resolved_once_by_hand_and_what_it_holds_stays_held(served: Harness) -> None:
    held = await served.call("PATCH", "/runs/251007-070457-Ann", {"add": {"posts_harvested": 2}})
    error = held.json()["error"]
    assert isinstance(error, dict)
    path = f"/errors/{error['id']}/resolve"
    resolved = await served.call("POST", path, {"note": "told Ann"})
    assert resolved.status == 200
    said = resolved.json()
    assert (said["state"], said["resolution"], said["note"]) == ("resolved", "by_hand", "told Ann")
    assert (await served.call("POST", path)).status == 409
    await served.kick_off("Ann")
    await served.synced()
    assert served.records()["251007-070457-Ann"]["Total Posts Harvested"] == 2


async def test_discarding_an_error_throws_away_what_it_holds(served: Harness) -> None:
    held = await served.call("PATCH", "/runs/251007-070457-Ann", {"add": {"posts_harvested": 2}})
    error = held.json()["error"]
    assert isinstance(error, dict)
    assert (await served.call("POST", f"/errors/{error['id']}/resolve", {"discard": True})).status == 200
    assert rows(served.store_path, "SELECT state FROM held_updates") == [("discarded",)]
    await served.kick_off("Ann")
    await served.synced()
    assert "Total Posts Harvested" not in served.records()["251007-070457-Ann"]


async def test_a_resolve_that_says_something_unknown_changes_nothing(served: Harness) -> None:
    await served.call("PATCH", "/runs/251007-070457-Ann", {"add": {"posts_harvested": 2}})
    wrong: list[Json] = [{"discard": "yes"}, {"discarded": True}, {"note": 5}, {"note": "x" * 2_001}, []]
    for body in wrong:
        assert (await served.call("POST", "/errors/1/resolve", body)).status == 422, body
    assert rows(served.store_path, "SELECT state FROM errors") == [("open",)]


# Retry


async def test_a_dead_message_is_sent_again_when_a_person_says_so(served: Harness) -> None:
    run_id = await served.kick_off()
    await served.synced()
    dead = await refuse_posts_of(served, run_id)
    served.airtable.rename_column("System Notes", "Total Posts Harvested")
    assert (await served.call("POST", f"/outbox/{dead}/retry")).json()["state"] == "pending"
    again = await served.call("POST", f"/outbox/{dead}/retry")
    assert again.status == 409
    await served.synced()
    # The column is a text now, so it is refused again, for another cause. Its delivery would end both.
    causes = rows(served.store_path, "SELECT substr(cause, 1, 13), state FROM errors ORDER BY id")
    assert causes == [("UNKNOWN_FIELD", "open"), ("INVALID_VALUE", "open")]


async def test_dead_messages_are_sent_again_by_kind_run_and_time(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house, house.running():
        guy = await house.kick_off()
        await house.synced()
        await refuse_posts_of(house, guy)
        clock.pass_time(3600)
        later = (START + timedelta(minutes=1)).isoformat()
        bodies: list[dict[str, Json]] = [
            {"kind": "record_deleted"},
            {"run_id": "nobody"},
            {"since": later},
            {"kind": "rejected", "run_id": guy, "since": START.isoformat()},
            {},
        ]
        retried = []
        for body in bodies:
            retried.append((await house.call("POST", "/outbox/retry", body)).json()["retried"])
            await house.synced()
        assert retried == [0, 0, 0, 1, 1]
        refused: list[Json] = [{"kind": "bad"}, {"since": "yesterday"}, {"since": 5}, {"message": 1}]
        for wrong in refused:
            assert (await house.call("POST", "/outbox/retry", wrong)).status == 422


# Counts


async def test_stats_count_what_is_there(tmp_path: Path) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house, house.running():
        guy = await house.kick_off("Guy")
        await house.synced()
        await house.call("POST", "/runs", {"client_id": "Guy", "job_id": "251007-070457"})
        await refuse_posts_of(house, guy)
        await house.call("PATCH", "/runs/251007-070457-Bob", {"add": {"posts_harvested": 1}})
        await house.airtable_server.stop()
        await house.kick_off("Ann")
        clock.pass_time(90)
        stats = (await house.call("GET", "/stats")).json()
    assert (stats["runs"], stats["pending"], stats["dead"], stats["held"]) == (2, 1, 1, 1)
    assert stats["oldest_pending_seconds"] == 90.0
    assert stats["creation_success_rate"] == 1.0
    assert stats["open_errors"] == {"missing_record": 1, "rejected": 1}
    counts = stats["calls_this_month"]
    assert isinstance(counts, dict)
    assert isinstance(counts["by_outcome"], dict)
    assert (counts["by_outcome"]["ok"], counts["by_outcome"]["refused"]) == (1, 1)
    creations = stats["creations"]
    assert isinstance(creations, list)
    assert isinstance(creations[0], dict)
    assert (creations[0]["created"], creations[0]["already_existed"]) == (2, 1)


async def test_the_timeline_tells_what_happened_to_a_run_in_order(served: Harness) -> None:
    await served.call("PATCH", "/runs/251007-070457-Ann", {"add": {"posts_harvested": 2}})
    run_id = await served.kick_off("Ann")
    await served.synced()
    await refuse_posts_of(served, run_id)
    timeline = (await served.call("GET", f"/runs/{run_id}")).json()["timeline"]
    assert isinstance(timeline, list)
    told = [entry["what"] for entry in timeline if isinstance(entry, dict)]
    order = ["update held", "create accepted", "delivered", "update set aside"]
    assert [what for what in told if what in order] == order, told
