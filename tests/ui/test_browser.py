"""The whole app in a real headless Chromium: real server, real worker, real files.

Everything here has a limit: the server is a process group that is always ended, Playwright runs in one module-wide
fixture that is always stopped, and each wait and each test may take only so long.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from playwright.sync_api import Browser, Page

from tests.ui.browsing import DESKTOP, PHONE, WAIT_MS, Visit, browser, overflow, playwright_driver, visiting
from tests.ui.server import Server, running_server

pytestmark = pytest.mark.timeout(180)

JOB_MS = 90_000
NUM_FRAMES, WIDTH, HEIGHT = 12, 64, 48

__all__ = ["browser", "playwright_driver"]  # fixtures

Finished = tuple[Visit, list[list[str]]]


@pytest.fixture(scope="module")
def clip(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 small frames with their sound."""
    path = tmp_path_factory.mktemp("clips") / "holiday 1998.mp4"
    write_small_clip(shared / "media" / "edge" / "base_480x270_h264_aac.mp4", path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def desktop(browser: Browser, server: Server) -> Iterator[Visit]:
    """A visitor who comes for the first time."""
    with visiting(browser, server.url, DESKTOP) as visit:
        yield visit


@pytest.fixture(scope="module")
def finished(browser: Browser, server: Server, clip: Path) -> Iterator[Finished]:
    """A visit in which two files were uploaded, started and restored; and the job states that were seen on the way."""
    second = clip.with_name("second.mp4")
    shutil.copyfile(clip, second)
    with visiting(browser, server.url, DESKTOP) as visit:
        page = visit.page
        page.set_input_files(".zone input", [str(clip), str(second)])
        page.locator(".files li.ready").nth(1).wait_for()
        page.get_by_role("button", name="Start").click()
        page.locator(".jobs li").nth(1).wait_for()
        seen = _watch_jobs(page)
        assert seen[-1] == ["succeeded", "succeeded"], (  # else each test that needs them would wait for nothing
            f"{page.locator('#queue').inner_text()}\n{server.log.read_text(errors='replace')[-4000:]}"
        )
        yield visit, seen


@pytest.fixture(scope="module")
def phone(browser: Browser, server: Server, finished: Finished) -> Iterator[Visit]:
    """The same visitor with the two results, on a phone."""
    with visiting(browser, server.url, PHONE, like=finished[0], touch=True) as visit:
        yield visit


def test_the_first_screen_shows_everything_without_scrolling(desktop: Visit) -> None:
    page = desktop.page
    for name in ("#drop", "#size", "#model", "#start", "#queue", "#result"):
        box = page.locator(name).bounding_box()
        assert box is not None, name
        assert box["y"] >= 0, name
        assert box["y"] + box["height"] <= DESKTOP["height"], name
    assert overflow(page) == (0, 0)


def test_nothing_is_asked_of_another_machine_and_no_script_fails(finished: Finished) -> None:
    visit, _ = finished
    assert (visit.outside, visit.errors) == ([], [])


def test_two_files_are_restored_one_after_another(finished: Finished) -> None:
    _, seen = finished
    assert ["running", "queued"] in seen
    assert all(states.count("running") <= 1 for states in seen)


def test_the_download_is_the_clip_twice_as_large_with_all_frames_and_its_sound(
    finished: Finished, clip: Path, tmp_path: Path
) -> None:
    page = finished[0].page
    page.locator(".jobs li", has_text="holiday 1998").get_by_role("link", name="Download").wait_for()
    with page.expect_download(timeout=WAIT_MS) as download:
        page.locator(".jobs li", has_text="holiday 1998").get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "holiday 1998_restored.mp4"
    path = tmp_path / "result.mp4"
    download.value.save_as(path)
    with av.open(str(path)) as result:
        frames = [(frame.width, frame.height) for frame in result.decode(video=0)]
    assert frames == [(2 * WIDTH, 2 * HEIGHT)] * NUM_FRAMES
    assert _sound(path) == _sound(clip)
    assert len(_sound(path)) > 10


def test_the_log_of_a_job_has_lines_of_the_server_and_of_the_worker(finished: Finished) -> None:
    row = finished[0].page.locator(".jobs li", has_text="holiday 1998")
    row.get_by_role("button", name="Details of holiday 1998").click()
    with finished[0].page.expect_download(timeout=WAIT_MS) as download:
        row.get_by_role("link", name="Log of holiday 1998").click()
    records = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    row.get_by_role("button", name="Details of holiday 1998").click()
    assert len({record["job"] for record in records}) == 1
    assert {"inference.engine", "seedvr_ui.runner"} <= {record["logger"] for record in records}


def test_the_system_page_examines_the_machine(finished: Finished) -> None:
    page = finished[0].context.new_page()
    try:
        page.goto(finished[0].page.url)
        page.get_by_role("link", name="System").click()
        page.get_by_role("button", name="Examine this machine").click()
        page.get_by_text("nano is here").wait_for(timeout=JOB_MS)
        page.set_viewport_size(PHONE)
        assert overflow(page)[0] == 0
        page.get_by_role("link", name="Back to the studio").click()
        page.locator(".zone").wait_for()
    finally:
        page.close()


def test_the_divider_follows_the_mouse_and_the_arrow_keys(finished: Finished) -> None:
    page = finished[0].page
    _wait_for_picture(page)
    box = page.locator(".stage").bounding_box()
    assert box is not None
    divider = page.get_by_role("slider", name="Divider between before and after")
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=4)
    page.mouse.up()
    assert divider.get_attribute("aria-valuenow") == "20"
    divider.press("ArrowRight")
    assert divider.get_attribute("aria-valuenow") == "22"
    divider.press("End")
    assert divider.get_attribute("aria-valuenow") == "100"


def test_dragging_the_divider_changes_the_picture(finished: Finished) -> None:
    page = finished[0].page
    _wait_for_picture(page)
    divider = page.get_by_role("slider", name="Divider between before and after")
    divider.press("Home")
    after = _pixels(page)
    divider.press("End")
    assert _pixels(page) != after


def test_no_label_stays_over_the_other_side(finished: Finished) -> None:
    page = finished[0].page
    _wait_for_picture(page)
    divider = page.get_by_role("slider", name="Divider between before and after")
    divider.press("End")
    assert _is_visible_on_stage(page, "Before")
    assert not _is_visible_on_stage(page, "After")
    divider.press("Home")
    assert not _is_visible_on_stage(page, "Before")
    assert _is_visible_on_stage(page, "After")


def test_the_full_screen_button_says_how_to_leave(finished: Finished) -> None:
    page = finished[0].page
    _wait_for_picture(page)
    page.get_by_role("button", name="Full screen", exact=True).click()
    page.get_by_role("button", name="Exit full screen").click()
    page.get_by_role("button", name="Full screen", exact=True).wait_for()


def test_one_playhead_moves_the_video(finished: Finished) -> None:
    page = finished[0].page
    _wait_for_picture(page)
    assert page.locator("video").count() == 1  # both sides come from one decoder
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('video').currentTime > 0.1")
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("document.querySelector('video').paused")
    before = page.evaluate("document.querySelector('video').currentTime")
    page.get_by_role("button", name="Next frame").click()
    page.wait_for_function("(time) => document.querySelector('video').currentTime !== time", arg=before)


def test_a_reload_keeps_queue_and_result(finished: Finished) -> None:
    page = finished[0].page
    page.reload()
    page.locator(".jobs li.succeeded").nth(1).wait_for()
    _wait_for_picture(page)


def test_another_browser_does_not_see_the_queue(finished: Finished, desktop: Visit) -> None:
    page = desktop.page
    page.locator(".studio-queue .empty").wait_for()
    assert page.locator(".jobs li").count() == 0


def test_a_phone_has_one_column_and_no_sideways_scroll(phone: Visit) -> None:
    page = phone.page
    page.locator(".jobs li.succeeded").nth(1).wait_for()
    _wait_for_picture(page)
    assert overflow(page)[0] == 0
    names = ("#drop", "#size", "#start", "#queue", "#result")
    boxes = [box for name in names if (box := page.locator(name).bounding_box()) is not None]
    assert len(boxes) == len(names)
    assert max(box["x"] for box in boxes) - min(box["x"] for box in boxes) <= 1


def test_a_finger_moves_the_divider(phone: Visit) -> None:
    page = phone.page
    _wait_for_picture(page)
    page.locator(".stage").scroll_into_view_if_needed()
    box = page.locator(".stage").bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    assert page.get_by_role("slider", name="Divider between before and after").get_attribute("aria-valuenow") == "75"


def test_a_bad_file_gets_one_clear_sentence_and_cannot_be_started(desktop: Visit, shared: Path) -> None:
    page = desktop.page
    page.set_input_files(".zone input", [str(shared / "media" / "edge" / "text_renamed.mp4")])
    note = page.locator(".files li.bad .note")
    note.wait_for()
    assert "text_renamed.mp4" in note.inner_text()
    assert note.inner_text().rstrip(".").count(". ") == 0
    page.get_by_role("button", name="Start").click()
    page.get_by_text("Add a video or an image first.").wait_for()
    assert page.locator(".jobs li").count() == 0


def test_the_sentence_about_a_bad_file_is_not_cut_off(desktop: Visit, clip: Path, shared: Path) -> None:
    page = desktop.page
    page.set_input_files(".zone input", [str(clip), str(clip), str(shared / "media" / "edge" / "text_renamed.mp4")])
    page.locator(".files li.bad .note").wait_for()
    note, files = page.locator(".files li.bad").bounding_box(), page.locator(".files").bounding_box()
    assert note is not None
    assert files is not None
    assert note["y"] + note["height"] <= files["y"] + files["height"] + 1
    start = page.get_by_role("button", name="Start").bounding_box()
    assert start is not None
    assert start["y"] + start["height"] <= DESKTOP["height"]  # within reach, however long the list is
    assert overflow(page)[0] == 0


def test_the_panels_begin_alike(desktop: Visit) -> None:
    page = desktop.page
    gaps = []
    for name in ("#queue", "#result"):
        panel, heading = page.locator(name).bounding_box(), page.locator(f"{name} h2").bounding_box()
        assert panel is not None
        assert heading is not None
        gaps.append(heading["y"] - panel["y"])
    assert abs(gaps[0] - gaps[1]) <= 1


def test_a_running_job_can_be_cancelled_and_removed(desktop: Visit, shared: Path) -> None:
    page = desktop.page
    page.set_input_files(".zone input", [str(shared / "media" / "edge" / "base_480x270_h264_aac.mp4")])
    page.locator(".files li.ready").wait_for()
    page.get_by_role("button", name="Start").click()
    page.locator(".jobs li.running").wait_for()
    page.get_by_role("button", name="Cancel base_480x270_h264_aac.mp4").click()
    page.locator(".jobs li.cancelled").wait_for(timeout=JOB_MS)
    page.get_by_role("button", name="Remove base_480x270_h264_aac.mp4").click()
    assert page.locator(".jobs li").count() == 1, "one press only asks"
    page.get_by_role("button", name="Really delete base_480x270_h264_aac.mp4").click()
    page.locator(".studio-queue .empty").wait_for()


def test_a_running_job_can_be_paused_and_goes_on_after_a_reload(desktop: Visit, shared: Path) -> None:
    page = desktop.page
    page.set_input_files(".zone input", [str(shared / "media" / "edge" / "base_480x270_h264_aac.mp4")])
    page.locator(".files li.ready").wait_for()
    page.get_by_role("button", name="Start").click()
    page.locator(".jobs li.running").wait_for()
    page.get_by_role("button", name="Pause base_480x270_h264_aac.mp4").click()
    page.locator(".jobs li.paused").wait_for(timeout=JOB_MS)
    page.reload()
    page.locator(".jobs li.paused").wait_for()
    page.get_by_role("button", name="Continue base_480x270_h264_aac.mp4").click()
    page.locator(".jobs li.running").wait_for(timeout=JOB_MS)
    page.get_by_role("button", name="Cancel base_480x270_h264_aac.mp4").click()
    page.locator(".jobs li.cancelled").wait_for(timeout=JOB_MS)


def test_a_chosen_file_is_still_there_after_a_reload(desktop: Visit, clip: Path) -> None:
    page = desktop.page
    page.set_input_files(".zone input", [str(clip)])
    page.locator(".files li.ready").wait_for()
    page.reload()
    page.locator(".files li.ready").wait_for()
    page.get_by_role("button", name=f"Remove {clip.name}").click()
    page.locator(".files li").wait_for(state="detached")


def _watch_jobs(page: Page) -> list[list[str]]:
    """The states of all jobs, each time that was looked, until all are finished."""
    seen: list[list[str]] = []
    deadline = time.monotonic() + JOB_MS / 1000
    while time.monotonic() < deadline:
        states = page.locator(".jobs li").evaluate_all("(rows) => rows.map((row) => row.classList[0])")
        if not seen or states != seen[-1]:
            seen.append(states)
        if not {"queued", "running"} & set(states):
            break
        page.wait_for_timeout(100)
    return seen


def _is_visible_on_stage(page: Page, label: str) -> bool:
    """Whether any of the label's middle is not cut away by the side that it belongs to."""
    return bool(
        page.locator(".stage .badge", has_text=label).evaluate(
            """(badge) => {
                const box = badge.getBoundingClientRect();
                const side = badge.parentElement.getBoundingClientRect();
                const middle = (box.left + box.right) / 2;
                return side.left < middle && middle < side.right;
            }"""
        )
    )


def _wait_for_picture(page: Page) -> None:
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    page.locator(".stage canvas").wait_for()


def _pixels(page: Page) -> str:
    return str(page.evaluate("document.querySelector('canvas').toDataURL()"))


def _sound(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def write_small_clip(source: Path, target: Path) -> None:
    """The first frames of `source`, scaled down, with its sound packets of the same span."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        rate = given.streams.video[0].average_rate or Fraction(24)
        video = output.add_stream("libx264", rate=rate, options={"crf": "10", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = output.add_stream_from_template(given.streams.audio[0])
        for index, frame in zip(range(NUM_FRAMES), given.decode(video=0), strict=False):
            small = frame.reformat(WIDTH, HEIGHT, "yuv420p")
            small.pts, small.time_base = index, 1 / rate
            output.mux(video.encode(small))
        output.mux(video.encode(None))
        given.seek(0)
        for packet in given.demux(audio=0):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            if packet.pts * packet.time_base >= NUM_FRAMES / rate:
                break
            packet.stream = sound
            output.mux(packet)


def test_a_browser_refused_nothing_of_what_the_page_does(finished: Finished, phone: Visit) -> None:
    """The policy of `seedvr_ui/headers.py` leaves all that was used before."""
    assert (finished[0].errors, phone.errors) == ([], [])
