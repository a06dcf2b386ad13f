"""The real page in a real Chromium through a real nginx, below a path, with a short timeout and a small body limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.ui.browsing import DESKTOP, WAIT_MS, browser, playwright_driver, visiting
from tests.ui.nginx import PREFIX, running_nginx
from tests.ui.server import running_server
from tests.ui.test_browser import write_small_clip
from tests.ui.test_browser_uploads import MIB, pad

pytestmark = pytest.mark.timeout(240)

__all__ = ["browser", "playwright_driver"]  # fixtures

JOB_MS = 120_000
READ_TIMEOUT_S = 4
SIZE = 20 * MIB
_NOTE_STATES = """
window.states = [];
new MutationObserver(() => {
    const row = document.querySelector(".jobs li");
    if (row && window.states.at(-1) !== row.classList[0]) window.states.push(row.classList[0]);
}).observe(document, { subtree: true, childList: true, attributes: true });
"""


def test_a_file_goes_through_nginx_in_parts_and_its_result_comes_back_in_ranges(
    browser: Browser, shared: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "small.mp4"
    write_small_clip(shared / "media" / "edge" / "base_480x270_h264_aac.mp4", clip)
    pad(clip, tmp_path / "holiday.mp4", SIZE)
    with (
        running_server(tmp_path, "--root-path", PREFIX) as server,
        running_nginx(tmp_path / "nginx", server.port, READ_TIMEOUT_S) as proxy,
        visiting(browser, proxy.url, DESKTOP) as visit,
    ):
        page = visit.page
        page.evaluate(_NOTE_STATES)
        page.set_input_files(".zone input", [str(tmp_path / "holiday.mp4")])
        page.locator(".files li.ready").wait_for()
        page.get_by_role("button", name="Start").click()
        page.locator(".past .jobs li.succeeded").wait_for(timeout=JOB_MS)
        assert "running" in page.evaluate("window.states")
        page.wait_for_function("document.querySelector('.player video')?.readyState >= 2")

        link = page.get_by_role("link", name="Download").first
        with page.expect_download(timeout=WAIT_MS) as download:
            link.click()
        whole = Path(download.value.path()).read_bytes()
        address = link.evaluate("(link) => link.href")
        part = page.request.get(address, headers={"Range": "bytes=100-199"})
        assert (part.status, part.body()) == (206, whole[100:200])
        assert part.headers["content-range"] == f"bytes 100-199/{len(whole)}"
        assert (visit.outside, visit.errors) == ([], [])
        requests = [request for request in proxy.requests() if request[-1].startswith(PREFIX)]  # no favicon of the site
        assert page.request.post(proxy.url, data=b"x" * (10 * MIB)).status == 413  # so nothing above was that large

    assert [
        request for request in requests if request[0][0] in "45" and request[0] != "499"
    ] == []  # 499: not waited for
    parts = [int(length) for _, method, length, _, _ in requests if method == "PATCH"]
    assert sum(parts) >= SIZE
    assert len(parts) == 3
