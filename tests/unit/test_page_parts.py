"""What the page is drawn and said with: plots, sentences, times and names."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from app.clock import iso
from app.store.views import ActivityStep, CallCounts, CheckSummary, Counts
from app.web.charts import delay_chart, flow_chart, nice_ticks, said_seconds
from app.web.session import clean_name
from app.web.showing import age, said
from app.web.verdict import Standing, concerns, headline

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = datetime(2026, 5, 16, 9, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)
SVG = "{http://www.w3.org/2000/svg}"


def steps(*flows: tuple[int, int, int], delays: Sequence[float | None] = ()) -> list[ActivityStep]:
    timed = [*delays, *[None] * (len(flows) - len(delays))]
    return [
        ActivityStep(iso(NOW + STEP * n), *flow, median_delay_seconds=delay, slowest_delay_seconds=delay and 2 * delay)
        for n, (flow, delay) in enumerate(zip(flows, timed, strict=True))
    ]


# Plots ----------------------------------------------------------------------------------------------------------


def test_ticks_are_even_round_and_reach_the_highest_value() -> None:
    assert nice_ticks(0, whole=True) == [0, 1]
    assert nice_ticks(3, whole=True) == [0, 1, 2, 3]
    assert nice_ticks(24, whole=True) == [0, 10, 20, 30]
    assert nice_ticks(0.0) == [0, 0.5, 1]
    assert nice_ticks(0.3) == [0, 0.1, 0.2, 0.3]
    for most in (1, 7, 19, 101, 99_999, 1_234_567):
        ticks = nice_ticks(most, whole=True)
        assert ticks[-1] >= most
        assert 2 <= len(ticks) <= 6


def test_a_plot_draws_each_series_within_its_frame_and_says_it_in_words() -> None:
    drawn = ET.fromstring(flow_chart(steps((5, 0, 0), (0, 4, 0), (2, 0, 1)), "Messages <now>"))  # noqa: S314 - our own
    assert drawn.get("aria-label") == "Messages <now>. 7 messages accepted, 4 delivered, 1 set aside."
    assert drawn.get("role") == "img"
    names = [one.get("class") for one in drawn.iter()]
    assert (names.count("delivered"), names.count("accepted"), names.count("dead")) == (1, 1, 1)
    (bar,) = [one for one in drawn.iter() if one.get("class") == "delivered"]
    assert float(bar.get("y", "")) + float(bar.get("height", "")) == pytest.approx(186)
    numbers = [float(n) for one in drawn.iter() for n in re.findall(r"[\d.]+", one.get("d", ""))]
    assert all(0 <= n <= 520 for n in numbers)
    assert {one.text for one in drawn.iter() if one.get("class") == "unit"} == {"messages"}


def test_the_delay_is_drawn_in_the_unit_that_suits_it_with_gaps_where_nothing_was_delivered() -> None:
    flows = [(1, 1, 0)] * 4
    drawn = delay_chart(steps(*flows, delays=(60.0, None, 120.0, 90.0)), "Delay")
    assert ">minutes<" in drawn
    assert drawn.count("<circle") == 3
    line = re.search(r'<path class="median" d="([^"]*)"', drawn)
    assert line is not None
    assert (line[1].count("M"), line[1].count("L")) == (2, 1)
    assert ">seconds<" in delay_chart(steps((0, 0, 0)), "Delay")
    assert "Nothing was delivered." in delay_chart(steps((0, 0, 0)), "Delay")


def test_spans_of_time_are_said_in_the_unit_that_suits_them() -> None:
    said = [said_seconds(one) for one in (0.04, 1.54, 42, 119, 180, 7300, 200_000)]
    assert said == ["40 ms", "1.5 s", "42 s", "119 s", "3 min", "2 h", "2 days"]
    assert [age(NOW - timedelta(seconds=s), NOW) for s in (0.5, 1.2, 75, -30)] == [
        "now",
        "1 s ago",
        "75 s ago",
        "in 30 s",
    ]


# Sentences ------------------------------------------------------------------------------------------------------

CALM = Counts(
    runs=3, created=3, already_existed=0, creations_delivered=3, creations_failed=0, pending=1, dead=0,
    oldest_pending_seconds=2.0, held=0, open_errors={}, batches={}, calls_this_month=CallCounts(7), last_check=None,
    file_bytes={},
)  # fmt: skip
STEADY = Standing(trouble=None, rests_for_seconds=0.0, schema_flaws=(), is_checking=False)
FAILED_CHECK = CheckSummary("", "", "", "no answer", 0, 0, 0, {}, 0, 0, 0, ())


def test_all_is_well_when_nothing_is_open_stuck_or_in_trouble() -> None:
    assert concerns(CALM, STEADY) == []
    assert headline([]) == "All is well"


@pytest.mark.parametrize(
    ("counts", "standing", "text"),
    [
        (replace(CALM, open_errors={"missing_record": 1}), STEADY, "1 run is missing"),
        (replace(CALM, open_errors={"missing_record": 1200}), STEADY, "1,200 runs are missing"),
        (replace(CALM, open_errors={"of_tomorrow": 2}), STEADY, "Errors of the kind of_tomorrow: 2"),
        (replace(CALM, dead=2), STEADY, "2 messages were set aside"),
        (replace(CALM, oldest_pending_seconds=301.0), STEADY, "has waited for more than 5 minutes"),
        (CALM, replace(STEADY, trouble="denied"), "nothing reaches Airtable"),
        (CALM, replace(STEADY, schema_flaws=["no column"]), "does not fit the registry"),
        (replace(CALM, calls_this_month=CallCounts(95, budget=100, state="reserved")), STEADY, "calls are used up"),
        (replace(CALM, last_check=FAILED_CHECK), STEADY, "could not finish"),
    ],
)
def test_each_thing_that_is_not_well_is_said(counts: Counts, standing: Standing, text: str) -> None:
    (one,) = concerns(counts, standing)
    assert text in one.text
    assert headline([one]) == "One thing needs eyes"


def test_missing_records_are_said_first() -> None:
    found = concerns(replace(CALM, dead=1, open_errors={"rejected": 1, "missing_record": 1}), STEADY)
    assert found[0].link == "/page/errors?kind=missing_record&state=open"
    assert headline(found) == "3 things need eyes"


# Names and what others wrote -------------------------------------------------------------------------------------


def test_what_others_wrote_is_escaped_set_apart_and_wholly_visible() -> None:
    assert said("<b>\u202eevil\x00") == "<bdi>&lt;b&gt;⟨U+202E⟩evil⟨U+0000⟩</bdi>"
    assert said(None) == "<bdi></bdi>"
    assert len(said("x" * 100_000)) < 21_000


def test_a_name_is_one_short_visible_line() -> None:
    assert clean_name(" Ana\r\nSet-Cookie: x \u202e ") == "Ana Set-Cookie: x"
    assert len(clean_name("y" * 500)) == 60
    assert clean_name("Zoë Müller 李") == "Zoë Müller 李"
