"""The queue on the page in a real Chromium: it comes back from everything, shows parts, finds, estimates and tells.

Real server, real worker, real files; see `test_browser` for the limits that hold here too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, Response, expect

from tests.ui.browsing import DESKTOP, PHONE, WAIT_MS, Visit, browser, overflow, playwright_driver, visiting
from tests.ui.proxy import cutting_proxy
from tests.ui.server import Server, free_port, running_server

pytestmark = pytest.mark.timeout(240)

__all__ = ["browser", "playwright_driver"]  # fixtures

JOB_MS = 120_000
FPS, LONG_FRAMES, SHORT_FRAMES = 24, 336, 6
_COUNT_NOTES = """
window.notes = [];
window.Notification = class {
    static permission = "default";
    static async requestPermission() { window.asked = (window.asked ?? 0) + 1; return (this.permission = "granted"); }
    constructor(title, options) { window.notes.push({ title, ...options }); }
    close() {}
};
"""
"""Stands in for the browser's own notifications, which a headless browser does not show."""


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 seconds, which take long enough to be looked at on the way; several units."""
    return write_clip(tmp_path_factory.mktemp("clips") / "long way.mp4", LONG_FRAMES, (144, 96))


@pytest.fixture(scope="module")
def short_clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("short")
    return [write_clip(folder / f"{name}.mp4", SHORT_FRAMES, (48, 32)) for name in ("alpha", "beta", "gamma")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), "--price-per-hour", "3600 USD") as server:
        yield server


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    """A new visitor on a desktop; what is left of the jobs is cancelled, so that the next one has its turn."""
    with visiting(browser, server.url, DESKTOP) as visit:
        yield visit
        leave(visit.page)
        assert (visit.outside, visit.errors) == ([], [])


def test_nothing_is_sent_when_nothing_has_changed(visit: Visit, short_clips: list[Path]) -> None:
    page = visit.page
    start(page, short_clips[0])
    page.locator(".past .jobs li.succeeded").wait_for(timeout=JOB_MS)
    with page.expect_response(lambda reply: is_snapshot(reply) and reply.status == 204):
        pass
    seen: list[tuple[str, int]] = []
    page.on("requestfinished", lambda request: seen.append((request.url, request.sizes()["responseBodySize"])))
    with page.expect_response(is_snapshot):
        pass
    with page.expect_response(is_snapshot) as reply:
        pass
    assert reply.value.status == 204
    assert all("studio/snapshot" in url and size == 0 for url, size in seen), seen


def test_no_stream_is_held_open(browser: Browser, server: Server) -> None:
    with visiting(browser, server.url, DESKTOP) as visit:
        addresses: list[str] = []
        visit.page.on("request", lambda request: addresses.append(request.url))
        visit.page.reload()
        with visit.page.expect_response(lambda reply: is_snapshot(reply) and reply.status == 204):
            pass
        assert not [address for address in addresses if "heartbeat" in address or "queue/data" in address]


def test_a_second_device_and_a_reload_show_the_same(
    visit: Visit, browser: Browser, server: Server, long_clip: Path
) -> None:
    page = visit.page
    start(page, long_clip)
    page.locator(".jobs li.running").wait_for(timeout=JOB_MS)
    page.reload()
    page.locator(".jobs li.running").wait_for()
    with visiting(browser, server.url, PHONE, like=visit, touch=True) as other:
        other.page.locator(".jobs li.running").wait_for()
        assert overflow(other.page)[0] == 0
        other.page.get_by_role("button", name=f"Pause {long_clip.name}").tap()
        page.locator(".jobs li.paused").wait_for(timeout=JOB_MS)


def test_a_lost_network_is_told_and_the_page_comes_back(visit: Visit, long_clip: Path) -> None:
    page = visit.page
    start(page, long_clip)
    page.locator(".jobs li.running").wait_for(timeout=JOB_MS)
    visit.context.set_offline(True)
    page.get_by_text("The connection to the server is lost").wait_for()
    visit.context.set_offline(False)
    expect(page.locator(".trouble")).to_be_empty()
    page.get_by_role("button", name=f"Pause {long_clip.name}").click()
    page.locator(".jobs li.paused").wait_for(timeout=JOB_MS)


def test_finished_shots_play_while_the_rest_runs_and_a_kept_part_plays_and_downloads(
    visit: Visit, long_clip: Path, tmp_path: Path
) -> None:
    page = visit.page
    start(page, long_clip)
    page.get_by_role("button", name=f"Watch part {long_clip.name}").click(timeout=JOB_MS)
    wait_for_part(page)
    first = page.evaluate("document.querySelector('.part-player video').duration")
    assert page.locator(".jobs li.running").count() == 1, "it still runs"
    page.locator(".jobs li.running .text", has_text=re.compile(r"shot 1 of 1(?! so far)")).wait_for()
    assert "USD so far" in page.locator(".jobs li.running .cost").inner_text()

    page.get_by_role("button", name=f"Cancel {long_clip.name}").click()
    group = page.get_by_role("group", name="Keep the finished part?")
    group.get_by_role("button", name="Go on").click()
    assert page.locator(".jobs li.running").count() == 1
    page.get_by_role("button", name=f"Cancel {long_clip.name}").click()
    group.get_by_role("button", name="Keep").click()
    page.locator(".past .jobs li.cancelled").wait_for(timeout=JOB_MS)
    assert "finished part was kept" in page.locator(".past li.cancelled .text").inner_text()

    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name=f"Watch part {long_clip.name}").click()
    wait_for_part(page)
    assert page.evaluate("document.querySelector('.part-player video').duration") >= first
    with page.expect_download(timeout=WAIT_MS) as download:
        page.get_by_role("link", name="Download part").click()
    assert download.value.suggested_filename == "long way_part.mp4"
    path = tmp_path / "part.mp4"
    download.value.save_as(path)
    with av.open(str(path)) as part:
        frames = sum(1 for _ in part.decode(video=0))
    assert 0 < frames < LONG_FRAMES


def test_a_tab_closed_on_the_way_finds_its_job_finished(browser: Browser, server: Server, long_clip: Path) -> None:
    with visiting(browser, server.url, DESKTOP) as visit:
        start(visit.page, long_clip)
        visit.page.wait_for_function(
            """() => parseInt(document.querySelector(".jobs li.running .percent")?.textContent ?? "0") >= 30""",
            timeout=JOB_MS,
        )
        visit.page.close()
        page = visit.context.new_page()
        wait_until_idle(page, server)
        page.goto(server.url)
        page.locator(".past .jobs li.succeeded").wait_for()
        page.wait_for_function("document.querySelector('.player video')?.readyState >= 2")


def test_the_order_is_changed_with_the_keyboard_and_the_focus_stays(
    visit: Visit, long_clip: Path, short_clips: list[Path]
) -> None:
    page = visit.page
    start(page, long_clip, *short_clips)
    page.locator(".jobs li.running").wait_for(timeout=JOB_MS)
    expect(waiting(page)).to_have_text(["alpha.mp4", "beta.mp4", "gamma.mp4"])
    up = page.get_by_role("button", name="Move up gamma.mp4")
    up.focus()
    page.keyboard.press("Enter")
    expect(waiting(page)).to_have_text(["alpha.mp4", "gamma.mp4", "beta.mp4"])
    expect(up).to_be_focused()
    page.keyboard.press("Enter")
    expect(waiting(page)).to_have_text(["gamma.mp4", "alpha.mp4", "beta.mp4"])
    expect(up).to_be_focused()
    rows = page.locator(".jobs li.queued")
    rows.filter(has_text="beta.mp4").drag_to(rows.filter(has_text="gamma.mp4"))
    expect(waiting(page)).to_have_text(["beta.mp4", "gamma.mp4", "alpha.mp4"])
    assert " · takes " in rows.first.inner_text()


def test_finished_jobs_are_found_and_their_settings_used_again(visit: Visit, short_clips: list[Path]) -> None:
    page = visit.page
    page.get_by_label("Same size").check()
    start(page, short_clips[0])
    page.get_by_label("4×").check()
    start(page, short_clips[1])
    past = page.locator(".past .jobs li")
    expect(past).to_have_count(2, timeout=JOB_MS)
    search = page.get_by_role("searchbox")
    search.fill("ALPHA")
    expect(past.locator(".name")).to_have_text(["alpha.mp4"])
    search.fill("size 4×")
    expect(past.locator(".name")).to_have_text(["beta.mp4"])
    search.fill("nowhere")
    page.get_by_text("Nothing finished has").wait_for()
    search.fill("")
    expect(past).to_have_count(2)

    past.filter(has_text="alpha").get_by_role("button", name="Details of").click()
    details = past.filter(has_text="alpha").locator(".details")
    assert "1×" in details.inner_text()
    assert "Is removed on" in details.inner_text()
    details.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Same size")).to_be_checked()
    past.filter(has_text="beta").get_by_role("button", name="Details of").click()
    past.filter(has_text="beta").get_by_role("button", name="Run with the form's settings").click()
    expect(past).to_have_count(3, timeout=JOB_MS)
    again = past.filter(has_text="beta").first
    again.get_by_role("button", name="Details of").click()
    assert "1×" in again.locator(".details").inner_text(), "the form's size, not the old one"


def test_the_end_of_a_job_is_told_once_and_only_if_that_was_asked_for(visit: Visit, short_clips: list[Path]) -> None:
    page = visit.page
    page.add_init_script(_COUNT_NOTES)
    page.reload()
    page.locator(".studio-queue h2").wait_for()
    start(page, short_clips[0])
    past = page.locator(".past .jobs li.succeeded")
    expect(past).to_have_count(1, timeout=JOB_MS)
    assert page.evaluate("[window.notes.length, window.asked ?? 0]") == [0, 0]

    bell = page.get_by_label("Tell me when it is done")
    bell.check()
    expect(bell).to_be_checked()
    assert page.evaluate("window.asked") == 1
    start(page, short_clips[1])
    expect(past).to_have_count(2, timeout=JOB_MS)
    page.wait_for_function("window.notes.length === 1")
    assert page.evaluate("window.notes[0].title") == "beta.mp4 is done"

    page.reload()
    expect(past).to_have_count(2)
    with page.expect_response(is_snapshot):
        pass
    assert page.evaluate("window.notes") == [], "what was told, or ended before the page came, is no news"


def test_permission_that_is_there_is_used(visit: Visit) -> None:
    visit.context.grant_permissions(["notifications"])
    bell = visit.page.get_by_label("Tell me when it is done")
    bell.check()
    expect(bell).to_be_checked()
    visit.page.reload()
    expect(visit.page.get_by_label("Tell me when it is done")).to_be_checked()


def test_what_the_chosen_file_takes_is_told_and_follows_the_form(visit: Visit, long_clip: Path) -> None:
    page = visit.page
    expect(page.locator("#estimate")).to_be_hidden()
    choose(page, long_clip)
    lines = page.locator("#estimate .lines")
    expect(lines).to_contain_text("on this machine", timeout=JOB_MS)
    expect(lines).to_contain_text(re.compile("About|Less than"))
    expect(lines).to_contain_text("USD")
    before = lines.inner_text()
    page.get_by_label("4×").check()
    expect(lines).not_to_have_text(before)
    page.get_by_role("button", name=f"Remove {long_clip.name}").click()
    expect(page.locator("#estimate")).to_be_hidden()


def test_the_form_is_remembered_and_start_stays_in_reach(visit: Visit, browser: Browser, server: Server) -> None:
    page = visit.page
    page.get_by_label("1080p").check()
    page.get_by_role("button", name="More options").click()
    page.get_by_label("Seed").fill("42")
    page.get_by_label("Seed").press("Tab")
    page.wait_for_function("localStorage.getItem('seedvr_form') !== null")
    in_reach(page)
    page.reload()
    expect(page.get_by_label("1080p")).to_be_checked()
    page.get_by_role("button", name="More options").click()
    expect(page.get_by_label("Seed")).to_have_value("42")
    with visiting(browser, server.url, PHONE, touch=True) as phone:
        phone.page.get_by_role("button", name="More options").tap()
        phone.page.get_by_label("Seed").scroll_into_view_if_needed()
        in_reach(phone.page)
        assert overflow(phone.page)[0] == 0


def test_behind_a_proxy_that_cuts_connections_and_below_a_path_all_works(
    browser: Browser, short_clips: list[Path], tmp_path: Path
) -> None:
    with (
        running_server(tmp_path, "--root-path", "/seed") as server,
        cutting_proxy(server.url, "/seed", 2.0) as (address, cut),
        visiting(browser, address, DESKTOP) as visit,
    ):
        page = visit.page
        start(page, short_clips[0])
        page.locator(".past .jobs li.succeeded").wait_for(timeout=JOB_MS)
        page.wait_for_function("document.querySelector('.player video')?.readyState >= 2")
        page.get_by_label("4×").check()
        start(page, short_clips[1])
        expect(page.locator(".past .jobs li.succeeded")).to_have_count(2, timeout=JOB_MS)
        assert (visit.outside, visit.errors, cut) == ([], [], [])


def test_a_server_that_is_killed_and_started_again_is_found_again_by_itself(
    browser: Browser, long_clip: Path, tmp_path: Path
) -> None:
    """The page goes on as it is, or Gradio loads it anew: it does when one of its own events was on its way."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_server(tmp_path, port=port))
        visit = stack.enter_context(visiting(browser, server.url, DESKTOP))
        page = visit.page
        start(page, long_clip)
        page.locator(".jobs li.running").wait_for(timeout=JOB_MS)
        server.kill()
        page.get_by_text("The connection to the server is lost").wait_for()
        stack.enter_context(running_server(tmp_path, port=port))
        expect(page.locator(".trouble")).to_be_empty()
        page.locator(".past .jobs li.succeeded").wait_for(timeout=JOB_MS)
        page.get_by_label("4×").check()
        choose(page, long_clip)  # the form works too
        page.locator("#start").click()
        page.locator(".jobs li.running").wait_for(timeout=JOB_MS)


def write_clip(path: Path, num_frames: int, size: tuple[int, int]) -> Path:
    """A moving pattern with some detail."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            wave = np.sin((columns + 2 * number) / 9.0) + np.cos((rows - number) / 5.0)
            picture = np.stack([128 + 50 * wave, 120 + 40 * np.roll(wave, 7), 90 + 30 * wave], axis=-1)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.clip(0, 255).astype(np.uint8)), "rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def choose(page: Page, *clips: Path) -> None:
    page.set_input_files(".zone input", [str(clip) for clip in clips])
    page.locator(".files li.ready").nth(len(clips) - 1).wait_for()


def start(page: Page, *clips: Path) -> None:
    choose(page, *clips)
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator(".files li").first.wait_for(state="detached")


def waiting(page: Page) -> Locator:
    return page.locator(".jobs li.queued .name")


def is_snapshot(reply: Response) -> bool:
    return "studio/snapshot" in reply.url


def wait_for_part(page: Page) -> None:
    page.wait_for_function("document.querySelector('.part-player video')?.readyState >= 2", timeout=JOB_MS)


def wait_until_idle(page: Page, server: Server) -> None:
    """Until the server says that nothing runs or waits; asked outside of any page."""
    for _ in range(JOB_MS // 500):
        counts = page.context.request.get(f"{server.url}healthz").json()["jobs"]
        if not counts["running"] + counts["queued"] + counts["interrupted"]:
            return
        page.wait_for_timeout(500)
    raise AssertionError("the server is still at work")


def in_reach(page: Page) -> None:
    """The Start button lies within the window."""
    box, viewport = page.locator("#start").bounding_box(), page.viewport_size
    assert box is not None
    assert viewport is not None
    assert 0 <= box["y"] <= viewport["height"] - box["height"]


def leave(page: Page) -> None:
    """Cancel what runs or waits, newest first."""
    page.evaluate(
        """async () => {
            const ask = (address, options) => fetch(new URL(address, document.baseURI), options);
            const { running, waiting } = await (await ask("studio/snapshot")).json();
            for (const job of [...waiting, ...running].filter((job) => job.canCancel)) {
                await ask(`studio/jobs/${job.id}/do/cancel`, {
                    method: "POST", body: "{}", headers: { "content-type": "application/json" },
                });
            }
        }"""
    )
