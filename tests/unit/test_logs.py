"""Logs: one form for all, fields instead of prose, and no secret in any of them."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from app.logs import REDACTED, Redaction, configure_logs, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "patVerySecret.0123456789"


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root, ours = logging.getLogger(), logging.getLogger("app")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level = handlers, level
    ours.setLevel(our_level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_is_one_json_object_with_its_name_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs([], for_people=False)
    get_logger("app.test").info("run.created", run_id="251007-Guy", batches=2)
    (line,) = written(capsys)
    assert (line["event"], line["level"], line["run_id"], line["batches"]) == ("run.created", "info", "251007-Guy", 2)
    assert str(line["timestamp"]).endswith("Z")


def test_what_the_context_says_stands_in_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs([], for_people=False)
    structlog.contextvars.bind_contextvars(request_id="r1")
    get_logger("app.test").info("one")
    logging.getLogger("some.library").warning("two")
    assert [(line["event"], line["request_id"]) for line in written(capsys)] == [("one", "r1"), ("two", "r1")]


def test_libraries_are_heard_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs([], for_people=False)
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble with %s", "that")
    assert [line["event"] for line in written(capsys)] == ["trouble with that"]


def test_a_line_that_nobody_takes_is_lost_and_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w", buffering=1, encoding="utf-8")  # noqa: SIM115 - what it holds can never be written
    monkeypatch.setattr("sys.stderr", full)
    configure_logs([], for_people=False)
    get_logger("app.test").error("thing.done")
    with contextlib.suppress(OSError):
        full.close()


def test_quiet_keeps_ours_back(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs([], for_people=False, quiet=True)
    get_logger("app.test").error("trouble")
    assert written(capsys) == []


def fail() -> None:
    raise RuntimeError(f"failed with {SECRET}")


@pytest.mark.parametrize("for_people", [True, False])
def test_no_secret_is_written_in_any_form(capsys: pytest.CaptureFixture[str], for_people: bool) -> None:
    configure_logs([SECRET], for_people=for_people)
    log = get_logger("app.test")
    event = f"event of {SECRET}"
    log.info(event, text=f"x{SECRET}y", nested={"a": [SECRET, {SECRET: (SECRET,)}]}, error=ValueError(SECRET))
    logging.getLogger("some.library").warning("said %s", SECRET)
    try:
        fail()
    except RuntimeError:
        log.exception("failed")
        logging.getLogger("some.library").exception("failed too")
    told = capsys.readouterr().err
    assert SECRET not in told
    assert told.count(REDACTED) >= 8
    assert "RuntimeError: failed with" in told
    assert "Logging error" not in told


@pytest.mark.parametrize("name", ["token", "authorization", "Authorization", "api_key", "webhook_secret", "set-cookie"])
def test_what_a_telling_name_carries_is_cut_whatever_it_is(name: str) -> None:
    redaction = Redaction([])
    event = {"event": "e", name: "unknown to us", "headers": {name: "unknown to us", "Accept": "json"}}
    assert redaction(None, "info", event) == {
        "event": "e",
        name: REDACTED,
        "headers": {name: REDACTED, "Accept": "json"},
    }


def test_counts_are_not_mistaken_for_secrets() -> None:
    event = {"event": "e", "total_tokens_used": 7, "messages": 3, "ok": True, "nothing": None, "share": 0.5}
    assert Redaction([SECRET])(None, "info", event) == event


def test_an_empty_secret_cuts_nothing() -> None:
    assert Redaction(["", SECRET]).text("a word") == "a word"


def test_the_longer_of_two_secrets_is_cut_whole() -> None:
    assert Redaction(["abc", "abcdef"]).text("x abcdef y") == f"x {REDACTED} y"


@given(
    st.recursive(
        st.text(max_size=5) | st.integers() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    st.text(max_size=5),
)
def test_wherever_a_secret_stands_it_is_cut(value: object, around: str) -> None:
    event = {"event": "e", "value": [value, f"{around}{SECRET}{around}"]}
    assert SECRET not in repr(Redaction([SECRET])(None, "info", event))
