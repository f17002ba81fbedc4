"""A real browser: Debian's Chromium, driven by Playwright, watched for errors and for requests to anywhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import pytest
from playwright.async_api import async_playwright

from tests.support.harness import INTERNAL_TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, ConsoleMessage, Page, Request

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WHO = "Ana Petrov"


def chromium() -> str:
    """Where Chromium is. Skips the test where there is none; in CI it fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        said = (
            "no Chromium here: 'make test' installs it as root, else apt-get install --no-install-recommends chromium"
        )
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return found


@contextlib.asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """The browser, without a window and with a profile of its own."""
    executable = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Visit:
    """One person's window on the page, and all that went wrong in it."""

    page: Page
    url: str
    troubles: list[str] = field(default_factory=list)

    async def sign_in(self, token: str = INTERNAL_TOKEN, name: str = WHO) -> None:
        await self.page.goto(self.url + "/")
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_label("Internal token").fill(token)
        await self.page.get_by_role("button", name="Sign in").click()

    async def go(self, path: str) -> None:
        await self.page.goto(self.url + path)

    async def beat(self) -> None:
        """Let the page's own clock pass the time after which it asks again, and wait for what it then shows."""
        async with self.page.expect_response(lambda answer: answer.request.resource_type == "fetch"):
            await self.page.clock.run_for(3_100)

    def on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.troubles.append(f"console: {message.text}")

    def on_request(self, request: Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.troubles.append(f"a request to {request.url}")


@contextlib.asynccontextmanager
async def visit(
    browser: Browser,
    url: str,
    *,
    width: int = 1200,
    scheme: Literal["light", "dark"] = "light",
    script: bool = True,
    scale: float = 1,
) -> AsyncIterator[Visit]:
    """A new window, with no cookies; what went wrong in it fails the test at its end."""
    context = await browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        java_script_enabled=script,
        reduced_motion="reduce",
        device_scale_factor=scale,
    )
    try:
        page = await context.new_page()
        page.set_default_timeout(10_000)
        if script:
            await page.clock.install()
        one = Visit(page, url)
        page.on("console", one.on_console)
        page.on("pageerror", lambda error: one.troubles.append(f"script: {error}"))
        context.on("request", one.on_request)
        yield one
        assert one.troubles == []
    finally:
        await context.close()
