"""A real headless Chromium for tests: one a module, always ended; pages note what they ask for and complain about."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Playwright,
    Request,
    ViewportSize,
    sync_playwright,
)

WAIT_MS = 20_000
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
CHROMIUM_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@dataclass
class Visit:
    """One browser context with one page, and what it asked for outside of the server or complained about."""

    context: BrowserContext
    page: Page
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def playwright_driver() -> Iterator[Playwright]:
    driver = sync_playwright().start()
    try:
        yield driver
    finally:
        driver.stop()


@pytest.fixture(scope="module")
def browser(playwright_driver: Playwright) -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.fail("No Chromium is installed; install it with: apt-get install --no-install-recommends chromium")
    browser = playwright_driver.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS, timeout=WAIT_MS)
    try:
        yield browser
    finally:
        browser.close()


@contextlib.contextmanager
def visiting(
    browser: Browser, url: str, viewport: ViewportSize, like: Visit | None = None, touch: bool = False
) -> Iterator[Visit]:
    """The page in a fresh browser context, or in one with the cookies of another visit; closed at the end."""
    context = browser.new_context(viewport=viewport, has_touch=touch, is_mobile=touch, accept_downloads=True)
    try:
        context.set_default_timeout(WAIT_MS)
        context.set_default_navigation_timeout(WAIT_MS)
        if like is not None:
            context.add_cookies(like.context.cookies())  # type: ignore[arg-type]
        visit = Visit(context, context.new_page())
        visit.page.on("request", lambda request: _note_outside(visit, request, url))
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("console", lambda message: _note_refusal(visit, message))
        visit.page.goto(url)
        visit.page.locator(".zone").wait_for()
        visit.page.locator(".studio-queue h2").wait_for()
        visit.page.locator(".studio-compare h2").wait_for()
        yield visit
    finally:
        context.close()


@contextlib.contextmanager
def signed_in(browser: Browser, url: str, viewport: ViewportSize, name: str, password: str) -> Iterator[Visit]:
    """The page in a fresh browser context, after `name` has signed in on the login page."""
    context = browser.new_context(viewport=viewport, accept_downloads=True)
    try:
        context.set_default_timeout(WAIT_MS)
        context.set_default_navigation_timeout(WAIT_MS)
        visit = Visit(context, context.new_page())
        visit.page.on("request", lambda request: _note_outside(visit, request, url))
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("console", lambda message: _note_refusal(visit, message))
        visit.page.goto(url)
        visit.page.get_by_label("Name").fill(name)
        visit.page.get_by_label("Password").fill(password)
        visit.page.get_by_role("button", name="Sign in").click()
        visit.page.locator(".zone").wait_for()
        visit.page.locator(".studio-queue h2").wait_for()
        visit.page.get_by_role("button", name="Sign out").wait_for()
        yield visit
    finally:
        context.close()


def _note_outside(visit: Visit, request: Request, own: str) -> None:
    if not request.url.startswith((own, "data:", "blob:")):
        visit.outside.append(request.url)


def _note_refusal(visit: Visit, message: ConsoleMessage) -> None:
    """What the browser did not do for the page, since a header of ours forbids it."""
    if message.type == "error" and "Policy" in message.text:
        visit.errors.append(message.text)


def overflow(page: Page) -> tuple[int, int]:
    """Pixels by which the page is wider and higher than the window."""
    root = "document.documentElement"
    wide, high = page.evaluate(f"[{root}.scrollWidth - {root}.clientWidth, {root}.scrollHeight - {root}.clientHeight]")
    return int(wide), int(high)
