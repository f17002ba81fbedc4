"""The page in a real browser: seen, used, read aloud, narrow and dark."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from playwright.async_api import expect

from app.sandbox.hand_clock import HandClock
from app.sandbox.messages import WireResponse
from app.sandbox.wire import reply
from tests.support.browser import WHO, Visit, open_browser, visit
from tests.support.harness import Harness, harness
from tests.support.npm import npm_folder
from tests.support.watching import let_time_pass, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from app.model import Json

pytestmark = pytest.mark.asyncio(loop_scope="module")

JOB = "251007-070457"
RUN = f"{JOB}-Guy-Wilson"
ODD = "<script>document.title='owned'</script>\u202egnp.exe <b>&amp;"
REFUSED = WireResponse.json(422, {"error": {"type": "INVALID_MULTIPLE_CHOICE_OPTIONS", "message": "no such option"}})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> str:
    folder = npm_folder(request.config, request.config.rootpath / "tests" / "e2e" / "axe")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


class House:
    """A service on a clock of the test's own: what waits for company waits until the test lets time pass."""

    def __init__(self, house: Harness, clock: HandClock) -> None:
        self.house = house
        self.clock = clock

    @property
    def url(self) -> str:
        assert self.house.service is not None
        return self.house.service.url

    async def update(self, run_id: str, change: Json) -> None:
        assert (await self.house.call("PATCH", f"/runs/{run_id}", change)).status == 202

    async def delivered(self) -> None:
        waiting = "SELECT count(*) FROM outbox WHERE state IN ('pending', 'sending')"
        await let_time_pass(self.clock, lambda: rows(self.house.store_path, waiting) == [(0,)], step=0.5)


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[House]:
    clock = HandClock()
    async with harness(folder, clock=clock, airtable={"linger_seconds": 2.0}) as house, house.running():
        yield House(house, clock)


async def test_a_run_is_seen_to_arrive_and_reach_airtable_by_itself(browser: Browser, tmp_path: Path) -> None:
    async with opened(tmp_path) as one, visit(browser, one.url) as seen:
        page = seen.page
        await seen.sign_in(token="guessed")
        await expect(page.get_by_role("alert")).to_have_text("This is not the token.")
        seen.troubles.clear()  # Chromium itself notes the 403
        await page.get_by_label("Internal token").fill("internal-token-of-the-tests")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("All is well")
        await expect(page.get_by_role("heading", name="Do this first")).to_be_visible()

        await one.house.kick_off("Guy-Wilson", client_name=ODD)
        await seen.beat()
        arrived = page.locator("#runs tbody tr")
        await expect(arrived).to_contain_text(RUN)
        await expect(arrived).to_contain_text("pending")
        # What a caller wrote is shown as it was written, with nothing invisible in it; and it is no markup.
        await expect(arrived).to_contain_text(ODD.replace("\u202e", "⟨U+202E⟩"))
        assert await page.title() == "All is well · Run Records"

        # What the reader is at stays: the place, the focus, what is selected, what is unfolded.
        await page.locator("summary").click()
        link = page.get_by_role("link", name=RUN)
        await link.focus()
        await page.evaluate("getSelection().selectAllChildren(document.getElementById('asof'))")
        before = await link.bounding_box()
        await one.delivered()
        await one.house.kick_off("Dean-Hobin")
        await seen.beat()
        await expect(page.locator("#runs tbody tr")).to_have_count(2)
        row = page.locator("#runs tbody tr", has_text=RUN)
        await expect(row).to_contain_text("synced")
        await expect(link).to_be_focused()
        assert "09:00:00" in await page.evaluate("getSelection().toString()")  # an older time, as long as it is marked
        assert await page.locator("details").first.get_attribute("open") is not None
        await page.evaluate("getSelection().removeAllRanges()")
        await seen.beat()
        await expect(page.locator("#asof")).not_to_contain_text("09:00:00")
        after = await link.bounding_box()
        assert before is not None
        assert after is not None
        assert abs(after["y"] - before["y"]) < 100  # one row came before it; the page did not jump

        await link.click()
        await expect(page.locator("#timeline")).to_contain_text("delivered")
        await one.update(RUN, {"append": {"progress_log": "scored"}})
        await seen.beat()
        await expect(page.locator("#messages")).to_contain_text("due at")
        await one.delivered()
        await seen.beat()
        await expect(page.locator("#messages")).to_have_count(0)


async def test_a_missing_record_is_seen_and_resolved_with_the_keyboard_alone(browser: Browser, tmp_path: Path) -> None:
    async with opened(tmp_path) as one, visit(browser, one.url) as seen:
        page, keys = seen.page, seen.page.keyboard
        await one.house.kick_off("Guy-Wilson")
        await one.delivered()
        await seen.sign_in()
        await expect(page.get_by_role("heading", level=1)).to_have_text("All is well")
        await one.update(f"{RUN}-Wilson", {"add": {"posts_scored": 1}})
        await seen.beat()
        await expect(page.get_by_role("heading", level=1)).to_have_text("One thing needs eyes")
        await expect(page.locator("#missing")).to_contain_text(f"{RUN}-Wilson")
        await expect(page.locator("#missing").get_by_role("link", name=RUN, exact=True)).to_be_visible()

        await page.reload()
        await keys.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await keys.press("Enter")
        for _ in range(8):
            await keys.press("Tab")
            if await page.evaluate("document.activeElement.textContent.startsWith('Look and resolve')"):
                break
        await keys.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Error 1: missing record")
        await page.get_by_label("Note").focus()
        await keys.type("a doubled name")
        await one.update(f"{RUN}-Wilson", {"add": {"posts_scored": 1}})
        await seen.beat()
        await expect(page.locator("#error")).to_contain_text("2 times")
        await expect(page.get_by_label("Note")).to_have_value("a doubled name")
        await expect(page.get_by_label("Note")).to_be_focused()
        await keys.press("Tab")
        await keys.press("Space")
        await keys.press("Tab")
        await keys.press("Enter")
        await expect(page.get_by_text("The error is resolved.")).to_be_visible()
        await expect(page.locator("#error")).to_contain_text(f"Resolved by {WHO}")
        await expect(page.locator("#error")).to_contain_text("a doubled name")
        await page.get_by_role("link", name="Overview").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("All is well")
        assert rows(one.house.store_path, "SELECT state FROM held_updates") == [("discarded",), ("discarded",)]
        assert rows(one.house.store_path, "SELECT action, who, error_id, note FROM decisions") == [
            ("resolve", WHO, 1, "a doubled name")
        ]


async def test_a_dead_message_is_retried_and_the_check_run_without_script(browser: Browser, tmp_path: Path) -> None:
    async with opened(tmp_path) as one, visit(browser, one.url, script=False) as seen:
        page = seen.page
        await one.house.kick_off("Guy-Wilson")
        one.house.airtable_server.faults.add(reply(REFUSED))
        await one.delivered()
        await seen.sign_in()
        await expect(page.get_by_role("heading", level=1)).to_have_text("2 things need eyes")
        await page.get_by_role("link", name="1 message was set aside").click()
        await expect(page.locator("#messages")).to_contain_text("no such option")
        await page.get_by_role("link", name="1, create").click()
        await page.get_by_role("button", name="Retry message 1").click()
        await expect(page.get_by_text("It will be sent again when its turn comes.")).to_be_visible()
        await expect(page.locator("#message")).to_contain_text(f"Retried by {WHO}")
        await one.delivered()
        await seen.go(f"/page/runs/{RUN}")
        await expect(page.locator("#about")).to_contain_text("synced")
        await expect(page.locator("#timeline")).to_contain_text(f"message 1, by {WHO}")
        await page.get_by_role("link", name="Check", exact=True).click()
        await expect(page.locator("#check")).to_contain_text("No check has run yet")
        await page.get_by_role("button", name="Run the check").click()
        await expect(page.get_by_text("The check has begun.")).to_be_visible()
        checked = "SELECT count(*) FROM checks"
        await let_time_pass(one.clock, lambda: rows(one.house.store_path, checked) == [(1,)])
        await page.reload()
        await expect(page.locator("#check")).to_contain_text("Records read")
        await expect(page.locator("#check")).to_contain_text(f"Asked for by {WHO}")
        await page.get_by_role("button", name="Sign out").click()
        await seen.go("/page/runs")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


PAGES = (
    "/",
    "/page/runs",
    f"/page/runs/{RUN}",
    "/page/errors",
    "/page/errors/2",
    "/page/outbox/2",
    "/page/check",
    "/page/runs/nobody",
    "/docs",
)
IN_THE_DARK = ("/", f"/page/runs/{RUN}", "/page/errors/2", "/page/outbox?state=dead", "/page/errors")


async def test_every_page_is_sound_for_screen_readers_narrow_and_dark(
    browser: Browser, tmp_path: Path, axe: str
) -> None:
    async with opened(tmp_path) as one:
        await one.house.kick_off("Guy-Wilson", client_name="W" * 90, batches=[{"input": {}, "profiles": 3}])
        await one.delivered()
        one.house.airtable_server.faults.add(reply(REFUSED))
        await one.update(RUN, {"set": {"apify_status": "x" * 300}})
        await one.delivered()
        await one.update("Nobody_" + "y" * 120, {"add": {"posts_scored": 1}})
        async with visit(browser, one.url, width=360) as seen:
            await seen.go("/")
            await _is_sound(seen, axe, "the sign-in")
            await seen.sign_in()
            for path in PAGES:
                await seen.go(path)
                await _is_sound(seen, axe, path)
            seen.troubles = [one for one in seen.troubles if "404" not in one]  # the run that nobody knows
        async with visit(browser, one.url, width=740, scheme="dark") as seen:  # just wide enough for tables
            await seen.sign_in()
            for path in IN_THE_DARK:
                await seen.go(path)
                await _is_sound(seen, axe, path, "color-contrast")


async def _is_sound(seen: Visit, axe: str, path: str, *rules: str) -> None:
    """No violation of all that axe knows, or of `rules`; and nothing is wider than the screen."""
    widths = await seen.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], f"{path} has to be scrolled sideways"
    await seen.page.evaluate(axe)
    found = await seen.page.evaluate(
        """async rules => (await axe.run(rules.length ? {runOnly: rules} : {})).violations.map(
            one => `${one.id}: ${one.nodes.map(node => node.html).join(" ").slice(0, 300)}`)""",
        list(rules),
    )
    assert found == [], path


HIDE = """hidden => {
    Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_the_page_says_when_the_service_is_gone_and_when_the_session_has_ended(
    browser: Browser, tmp_path: Path
) -> None:
    clock = HandClock()
    async with harness(tmp_path, clock=clock) as house:
        async with house.running() as service:
            house.settings = house.settings.model_copy(
                update={
                    "server": house.settings.server.model_copy(update={"port": int(service.url.rpartition(":")[2])})
                }
            )
            url = service.url
        async with visit(browser, url) as seen:
            page, connection = seen.page, seen.page.locator("#connection")
            async with house.running():
                await seen.sign_in()
                await expect(page.get_by_role("button", name="Pause updates")).to_be_visible()
            await page.clock.run_for(3_100)
            await expect(connection).to_contain_text("cannot be reached since")
            async with house.running():
                await seen.beat()
                await expect(connection).to_have_text("")
                await page.get_by_role("button", name="Pause updates").click()
                await expect(page.get_by_role("button", name="Pause updates")).to_have_attribute("aria-pressed", "true")
                asked: list[str] = []
                page.on("request", lambda request: asked.append(request.url))
                await page.clock.run_for(10_000)
                assert asked == []
                async with page.expect_response(lambda answer: answer.request.resource_type == "fetch"):
                    await page.get_by_role("button", name="Pause updates").click()
                await page.evaluate(HIDE, True)
                asked.clear()
                await page.clock.run_for(10_000)
                assert asked == []  # nobody looks
                async with page.expect_response(lambda answer: answer.request.resource_type == "fetch"):
                    await page.evaluate(HIDE, False)
                clock.pass_time(13 * 3600)
                await seen.beat()
                await expect(connection).to_contain_text("signed out")
            seen.troubles = [one for one in seen.troubles if "ERR_CONNECTION_REFUSED" not in one]
