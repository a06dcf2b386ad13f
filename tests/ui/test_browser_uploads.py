"""Uploads in a real Chromium: several at once, through a reload and a killed server, out of the server's folder."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, Route

from tests.ui.browsing import DESKTOP, PHONE, WAIT_MS, browser, overflow, playwright_driver
from tests.ui.server import Server, running_server
from tests.ui.test_browser import write_small_clip

__all__ = ["browser", "playwright_driver"]  # fixtures

pytestmark = pytest.mark.timeout(180)

MIB = 2**20
PART_BYTES = 8 * MIB
PIECES = "**/studio/uploads/*"
KILL_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def clip(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 small frames with their sound."""
    path = tmp_path_factory.mktemp("clips") / "holiday.mp4"
    write_small_clip(shared / "media" / "edge" / "base_480x270_h264_aac.mp4", path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[Server]:
    """A server with a folder that has one clip in it."""
    folder = tmp_path_factory.mktemp("server")
    media = folder / "media" / "tapes"
    media.mkdir(parents=True)
    shutil.copyfile(clip, media / "from the server.mp4")
    with running_server(folder, "--folder", str(folder / "media")) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with _visiting(browser, server) as page:
        yield page


@dataclass
class Held:
    """Pieces that have been sent and are kept back, as by a slow network."""

    page: Page
    from_offset: int

    def __post_init__(self) -> None:
        self.is_over = False
        self.routes: list[Route] = []
        self.page.route(PIECES, self._hold)

    def _hold(self, route: Route) -> None:
        request = route.request
        if not self.is_over and request.method == "PATCH" and int(request.headers["upload-offset"]) >= self.from_offset:
            self.routes.append(route)
        else:
            route.continue_()

    def release(self) -> None:
        self.is_over = True
        for route in self.routes:
            route.continue_()


def test_two_files_go_up_at_once_and_the_third_waits(page: Page, clip: Path, tmp_path: Path) -> None:
    files = [pad(clip, tmp_path / f"{name}.mp4", 20 * MIB) for name in "abc"]
    held = Held(page, PART_BYTES)
    page.set_input_files(".zone input", [str(file) for file in files])
    page.locator(".files li.sending .note", has_text="Uploading, 8.4 MB of 21.0 MB").nth(1).wait_for()
    assert page.locator(".files li").evaluate_all("(rows) => rows.map((row) => row.className)") == [
        "sending", "sending", "waiting",
    ]  # fmt: skip
    assert [bar.get_attribute("aria-valuenow") for bar in page.locator(".files .bar").all()] == ["40", "40", "0"]
    page.get_by_role("button", name="Start").click()
    page.get_by_text("Starts as soon as the upload is complete.").wait_for()
    held.release()
    page.locator(".jobs li").nth(2).wait_for()
    assert page.locator(".files li").count() == 0
    for name in ("a", "b", "c"):
        page.locator(".jobs li", has_text=f"{name}.mp4").wait_for()


def test_speed_and_time_left_are_shown(page: Page, clip: Path, tmp_path: Path) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 4 * MIB},
    )
    page.set_input_files(".zone input", [str(pad(clip, tmp_path / "slow.mp4", 40 * MIB))])
    page.locator(".files .note", has_text="MB/s").wait_for()
    assert page.locator(".files .note").inner_text().endswith(" left")
    page.get_by_role("button", name="Remove slow.mp4").click()
    page.locator(".files li").wait_for(state="detached")


def test_a_reload_in_the_middle_costs_nothing_that_has_arrived(page: Page, clip: Path, tmp_path: Path) -> None:
    file = pad(clip, tmp_path / "long.mp4", 24 * MIB)
    held = Held(page, 2 * PART_BYTES)
    page.set_input_files(".zone input", [str(file)])
    page.locator(".files .note", has_text="Uploading, 16.8 MB of 25.2 MB").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())  # it asks whether to leave
    page.reload()
    page.get_by_text("Interrupted. Choose the same file again to continue.").wait_for()
    held.routes.clear()
    held.release()
    offsets = _watch_offsets(page)
    page.set_input_files(".zone input", [str(file)])
    page.locator(".files li.ready").wait_for()
    assert page.locator(".files li").count() == 1
    assert offsets == [2 * PART_BYTES]
    page.get_by_role("button", name="Remove long.mp4").click()


def test_another_file_of_the_same_name_does_not_continue_an_interrupted_one(
    page: Page, clip: Path, tmp_path: Path
) -> None:
    held = Held(page, PART_BYTES)
    page.set_input_files(".zone input", [str(pad(clip, tmp_path / "same.mp4", 10 * MIB))])
    page.locator(".files .note", has_text="Uploading, 8.4 MB").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())
    page.reload()
    page.locator(".files li.interrupted").wait_for()
    held.routes.clear()
    held.release()
    offsets = _watch_offsets(page)
    other = pad(clip, tmp_path / "other" / "same.mp4", 10 * MIB + 1)
    page.set_input_files(".zone input", [str(other)])
    page.locator(".files li.ready").wait_for()
    assert offsets[0] == 0
    assert page.locator(".files li.interrupted").count() == 1


def test_a_removed_upload_is_gone_for_good(page: Page, clip: Path, tmp_path: Path) -> None:
    held = Held(page, PART_BYTES)
    page.set_input_files(".zone input", [str(pad(clip, tmp_path / "gone.mp4", 10 * MIB))])
    page.locator(".files .note", has_text="Uploading, 8.4 MB").wait_for()
    with page.expect_response(lambda response: response.request.method == "DELETE") as removal:
        page.get_by_role("button", name="Remove gone.mp4").click()
    assert removal.value.status == 204
    held.routes.clear()
    page.reload()
    page.locator(".zone").wait_for()
    page.wait_for_load_state("networkidle")
    assert page.locator(".files li").count() == 0


def test_a_limit_is_told_in_the_row(page: Page, clip: Path) -> None:
    def pretend(route: Route) -> None:  # a real file of this size is more than a test should write
        size = {"upload-length": str(10**12)} if route.request.method == "POST" else {}
        route.continue_(headers=route.request.headers | size)

    page.route("**/studio/uploads", pretend)
    page.set_input_files(".zone input", [str(clip)])
    note = page.locator(".files li.bad .note")
    note.wait_for()
    assert "has 1000.0 GB and the limit is 100 GB; cut it into parts" in note.inner_text()


def test_a_link_that_is_not_public_is_told(page: Page, server: Server) -> None:
    field = page.get_by_role("textbox", name="Link to a video or an image")
    field.fill(server.url)
    field.press("Enter")
    page.get_by_role("alert").get_by_text("Only the usual ports 80 and 443").wait_for()
    assert field.input_value() == server.url  # to be corrected
    field.fill("http://localhost/a.mp4")
    field.press("Enter")
    page.locator(".files li.bad .note", has_text="localhost is not on the public internet").wait_for()
    assert field.input_value() == ""
    page.reload()
    page.locator(".files li.bad .note", has_text="localhost is not on the public internet").wait_for()


def test_a_file_of_the_server_is_chosen_by_tick(page: Page, server: Server) -> None:
    page.get_by_text("Server folder").click()
    page.get_by_role("checkbox", name="tapes/from the server.mp4").check()
    page.get_by_role("button", name="Add chosen files").click()
    page.locator(".files li.ready", has_text="from the server.mp4").wait_for()
    assert (server.log.parent / "media" / "tapes" / "from the server.mp4").exists()


def test_the_drop_zone_fits_a_phone(browser: Browser, server: Server, clip: Path) -> None:
    with _visiting(browser, server, is_phone=True) as page:
        page.get_by_text("Server folder").tap()
        page.get_by_role("checkbox").wait_for()
        page.set_input_files(".zone input", [str(clip)])
        page.locator(".files li.ready").wait_for()
        assert overflow(page)[0] == 0
        box = page.get_by_role("button", name="Add", exact=True).bounding_box()
        assert box is not None
        assert box["height"] >= 44


def test_300_mb_killed_at_half_and_resumed_are_the_same_bytes(browser: Browser, clip: Path, tmp_path: Path) -> None:
    """The server, its worker and all else are killed in the middle of a part; the page goes on by itself."""
    size = 300 * 10**6
    file = pad(clip, tmp_path / "large.mp4", size)
    with running_server(tmp_path) as first, _visiting(browser, first) as page:
        offsets = _watch_offsets(page)
        page.set_input_files(".zone input", [str(file)])
        part = _wait_for_half(page, tmp_path / "data", size)
        first.kill()
        killed_at = part.stat().st_size
        assert size / 2 <= killed_at < size
        num_before = len(offsets)
        with running_server(tmp_path, port=first.port):
            page.locator(".files li.ready").wait_for(timeout=90_000)
            assert page.locator(".files li").count() == 1
            assert killed_at in offsets[num_before - 1 :]
            assert min(offsets[num_before:]) >= killed_at - PART_BYTES
            (whole,) = (tmp_path / "data").glob("sessions/*/uploads/*/large.mp4")
            assert _sha256(whole) == _sha256(file)


@contextlib.contextmanager
def _visiting(browser: Browser, server: Server, is_phone: bool = False) -> Iterator[Page]:
    context = browser.new_context(viewport=PHONE if is_phone else DESKTOP, has_touch=is_phone, is_mobile=is_phone)
    try:
        context.set_default_timeout(WAIT_MS)
        context.set_default_navigation_timeout(WAIT_MS)
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.locator(".zone").wait_for()
        yield page
        assert errors == []
    finally:
        context.close()


def _watch_offsets(page: Page) -> list[int]:
    """Where each piece that is sent from now on begins."""
    offsets: list[int] = []

    def note(request: Request) -> None:
        if request.method == "PATCH":
            offsets.append(int(request.headers["upload-offset"]))

    page.on("request", note)
    return offsets


def _wait_for_half(page: Page, data: Path, size: int) -> Path:
    """The growing file once half of it is there."""
    deadline = time.monotonic() + KILL_LIMIT_S
    while time.monotonic() < deadline:
        for part in data.glob("sessions/*/uploads/*/content.part"):
            if part.stat().st_size >= size / 2:
                return part
        page.wait_for_timeout(5)
    raise AssertionError(f"the upload did not get to its half: {page.locator('.files').inner_text()}")


def pad(clip: Path, target: Path, size: int) -> Path:
    """`clip` with a box at its end that players skip, so that it is a good video of `size` bytes."""
    target.parent.mkdir(exist_ok=True)
    content = clip.read_bytes()
    block = random.Random(target.name).randbytes(MIB)
    with target.open("wb") as file:
        rest = size - len(content) - 8
        file.write(content + struct.pack(">I4s", rest + 8, b"free"))
        for number in range(0, rest, MIB):
            file.write((struct.pack(">Q", number) + block)[: min(MIB, rest - number)])
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
