"""The drop zone in a real Chromium below a path prefix, over our own routes alone, with links that lead somewhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.sync_api import Browser, Page

from seedvr_ui.access import Access
from seedvr_ui.routes import add_routes
from seedvr_ui.sessions import Limits, SessionManager
from seedvr_ui.transfers import Transfers
from tests.ui.browsing import browser, playwright_driver
from tests.ui.conftest import MakeManager
from tests.ui.test_fetch import CONTENT, Site, _network, site

__all__ = ["browser", "playwright_driver", "site"]  # fixtures
pytestmark = pytest.mark.timeout(180)

PAGE = """<!doctype html><link rel="stylesheet" href="studio/static/studio.css"><div id="studio"><div id="drop">
<div class="studio-drop"></div></div></div><script type="module">
import { attach } from "./studio/static/drop.js";
attach(document.querySelector("#drop"), {}, () => {}, () => {});
</script>"""


@pytest.fixture
def manager(make_manager: MakeManager) -> SessionManager:
    return make_manager(Limits(max_upload_bytes=10**9))


@pytest.fixture
def page(browser: Browser, manager: SessionManager) -> Iterator[Page]:
    """A page with nothing but the drop zone, served below `/seed` as a proxy would."""
    inner, outer = FastAPI(), FastAPI()
    transfers = Transfers(manager.uploads, network=_network(), retry_waits_s=(0.0,) * 6)
    add_routes(inner, manager, Access(), transfers)
    inner.get("/", response_class=HTMLResponse)(lambda: PAGE)
    outer.mount("/seed", inner)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(outer, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    context = browser.new_context()
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/seed/")
    page.locator(".zone").wait_for()
    yield page
    context.close()
    server.should_exit = True
    thread.join(10)
    listener.close()
    transfers.close()
    assert not thread.is_alive()


def _contents(manager: SessionManager) -> list[bytes]:
    return [path.read_bytes() for path in sorted(manager.storage.root.glob("sessions/*/uploads/*/*.mp4"))]


def test_a_file_goes_up_below_a_path_prefix(page: Page, manager: SessionManager, tmp_path: Path) -> None:
    content = CONTENT * 60  # three parts
    (tmp_path / "a.mp4").write_bytes(content)
    page.set_input_files(".zone input", [str(tmp_path / "a.mp4")])
    page.locator(".files li.ready").wait_for()
    assert _contents(manager) == [content]


def test_a_link_shows_its_progress_and_goes_on_after_a_reload(page: Page, manager: SessionManager, site: Site) -> None:
    site.cut_at = [150_000]
    site.gate.clear()
    field = page.get_by_role("textbox", name="Link to a video or an image")
    field.fill(site("/films/holiday.mp4"))
    page.get_by_role("button", name="Add", exact=True).click()
    page.locator(".files li.working .note", has_text="of 300 kB").wait_for()
    page.reload()
    page.locator(".files li.working .note", has_text="Fetching").wait_for()
    site.gate.set()
    page.locator(".files li.ready .name", has_text="holiday.mp4").wait_for()
    assert _contents(manager) == [CONTENT]
    page.get_by_role("button", name="Remove holiday.mp4").click()
    page.locator(".files li").wait_for(state="detached")


def test_several_links_are_taken_and_a_wrong_one_stays_to_be_corrected(page: Page, site: Site) -> None:
    field = page.get_by_role("textbox", name="Link to a video or an image")
    field.fill(f"{site('/a.mp4')} {site('/status/404')} ftp://x/y")
    field.press("Enter")
    page.get_by_role("alert").get_by_text("Only links that begin with http").wait_for()
    assert field.input_value() == "ftp://x/y"
    page.locator(".files li.ready", has_text="a.mp4").wait_for()
    page.locator(".files li.bad .note", has_text="has no such file; check the link").wait_for()
