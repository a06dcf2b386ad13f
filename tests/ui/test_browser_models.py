"""The dialogs of the head in a real browser: models, the public link, and that no other script than ours runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from inference.catalogue import SEEDVR2_3B, Part
from seedvr_ui.accounts import AccountsFile
from tests.inference.fake_hub import COMMIT
from tests.ui.browsing import DESKTOP, PHONE, browser, overflow, playwright_driver, signed_in
from tests.ui.server import Server, running_server
from tests.ui.test_share import LINK, write_helper

pytestmark = pytest.mark.timeout(180)

__all__ = ["browser", "playwright_driver"]  # fixtures

PASSWORD = "correct horse"
HALF = 6_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A shared server with a model whose download was cut off, a link to nothing, and a wrong VAE."""
    folder = tmp_path_factory.mktemp("server")
    accounts = AccountsFile(folder / "data" / "accounts.json")
    accounts.add("root", PASSWORD, is_admin=True)
    accounts.add("ben", PASSWORD)
    repository = folder / "hf" / "hub" / "models--ByteDance-Seed--SeedVR2-3B"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    dit = next(file for file in SEEDVR2_3B.files[Part.DIT] if file.repository)
    vae = next(file for file in SEEDVR2_3B.files[Part.VAE] if file.repository)
    (repository / "blobs" / f"{dit.sha256}.part").write_bytes(bytes(HALF))
    with (repository / "blobs" / str(vae.sha256)).open("wb") as blob:
        blob.truncate(vae.num_bytes)  # without content, it takes no room
    (repository / "snapshots" / COMMIT / "ema_vae.pth").symlink_to(f"../../blobs/{vae.sha256}")
    (repository / "snapshots" / COMMIT / "pos_emb.pt").symlink_to("../../blobs/none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder / "hf"))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
        patch.setenv("SEEDVR_FRPC", str(write_helper(folder)))
        patch.setenv("GRADIO_SHARE_SERVER_ADDRESS", "203.0.113.7:7000")
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.delenv(name, raising=False)
        with running_server(folder, "--share") as server:
            yield server


def test_an_admin_sees_and_changes_models_and_a_reload_loses_nothing(browser: Browser, server: Server) -> None:
    with signed_in(browser, server.url, DESKTOP, "root", PASSWORD) as visit:
        page = visit.page
        page.get_by_role("button", name="Models").click()
        row = page.locator("[data-model='seedvr2-3b']")
        expect(row).to_contain_text("paused: 6.0 MB are here")
        expect(row).to_contain_text("ema_vae.pth: 1.0 GB, not verified yet")
        problems = page.locator(".problems")
        expect(problems).to_contain_text("pos_emb.pt is a link to ../../blobs/none, which is not there")
        expect(problems).to_contain_text("has stopped at 6.0 MB of 13.6 GB")
        row.get_by_role("button", name="Verify").click()
        expect(row.get_by_role("progressbar")).to_be_visible()
        page.reload()
        page.get_by_role("button", name="Models").click()
        expect(row).to_contain_text("is damaged or another file", timeout=60_000)
        page.locator(".import input").fill("/no/such/folder")
        page.keyboard.press("Enter")
        expect(page.locator(".studio-dialog")).to_contain_text("There is no folder /no/such/folder on this server")
        page.keyboard.press("Escape")
        expect(page.locator(".studio-dialog")).to_be_hidden()
        assert (visit.errors, visit.outside) == ([], [])


def test_others_see_models_and_cannot_change_them(browser: Browser, server: Server) -> None:
    with signed_in(browser, server.url, PHONE, "ben", PASSWORD) as visit:
        page = visit.page
        expect(page.get_by_role("button", name="Share")).to_have_count(0)
        page.get_by_role("button", name="Models").click()
        expect(page.locator("[data-model='seedvr2-3b']")).to_contain_text("paused: 6.0 MB are here")
        expect(page.locator(".studio-dialog")).to_contain_text("Only admins change what is installed.")
        assert page.locator(".studio-dialog button:visible").all_inner_texts() == ["Close"]
        assert overflow(page)[0] == 0
        assert "models--ByteDance" not in page.content()


def test_deleting_asks_first(browser: Browser, server: Server) -> None:
    part = next((server.log.parent / "hf").rglob("*.part"))
    with signed_in(browser, server.url, DESKTOP, "root", PASSWORD) as visit:
        visit.page.get_by_role("button", name="Models").click()
        row = visit.page.locator("[data-model='seedvr2-3b']")
        row.get_by_role("button", name="Delete").click()
        row.get_by_role("button", name="Keep").click()
        expect(row.get_by_role("button", name="Go on")).to_be_visible()
        assert part.exists()
        row.get_by_role("button", name="Delete").click()
        row.get_by_role("button", name="Delete").click()
        expect(row).to_contain_text("not installed, 14.6 GB to download")
        expect(visit.page.locator(".problems li")).to_have_count(0)
        assert not part.exists()
        assert visit.errors == []


def test_an_admin_gets_the_public_link_with_its_code(browser: Browser, server: Server) -> None:
    with signed_in(browser, server.url, PHONE, "root", PASSWORD) as visit:
        visit.page.get_by_role("button", name="Share").click()
        expect(visit.page.get_by_role("link", name=LINK)).to_be_visible()
        code = visit.page.get_by_role("img", name="QR code of the link")
        expect(code).to_be_visible()
        assert code.evaluate("image => image.naturalWidth") > 50
        expect(visit.page.locator(".studio-dialog[open]")).to_contain_text("up to one week")
        assert overflow(visit.page)[0] == 0
        assert (visit.errors, visit.outside) == ([], [])


def test_a_script_that_got_into_the_page_does_not_run_and_nothing_leaves_it(browser: Browser, server: Server) -> None:
    with signed_in(browser, server.url, DESKTOP, "root", PASSWORD) as visit:
        page = visit.page
        page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "window.wasRun = 1";
            document.head.append(script);
            const image = document.createElement("img");
            image.setAttribute("onerror", "window.wasRun = 2");
            image.src = "data:,";
            document.body.append(image);
        }""")
        leaves = page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)")
        assert (page.evaluate("window.wasRun ?? null"), leaves) == (None, "TypeError")
        expected = "Content Security Policy directive"
        assert len([error for error in visit.errors if expected in error]) >= 2, json.dumps(visit.errors)
