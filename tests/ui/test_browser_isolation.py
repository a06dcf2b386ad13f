"""Two users in two browsers against the real app: neither sees, fetches or changes anything of the other's.

`ATTEMPTS` are the requests that are tried: with the other's ids, with the own ids and paths that lead elsewhere, and at
Gradio's routes. A route of ours that no attempt is made at fails a test, so a new one has to be added here.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from seedvr_ui.accounts import AccountsFile
from tests.ui.browsing import DESKTOP, WAIT_MS, Visit, browser, playwright_driver, signed_in
from tests.ui.server import ROOT, Server, running_server
from tests.ui.test_browser_queue import write_clip

pytestmark = pytest.mark.timeout(240)

__all__ = ["browser", "playwright_driver"]  # fixtures

JOB_MS = 120_000
PASSWORD = "correct horse"
MARKER = b"geheim-7d1f"
TUS = {"tus-resumable": "1.0.0"}
PIECE = {**TUS, "content-type": "application/offset+octet-stream", "upload-offset": "0"}
JSON = {"content-type": "application/json"}
UP = "../" * 12
ENCODED_UP = "%2e%2e%2f" * 12


@dataclass(frozen=True)
class Attempt:
    """A request of somebody who is signed in. {job}, {upload}, {owner}, {data} are the victim's, {my_*} their own.

    `route` is the route of ours that it aims at, if it is one.
    """

    method: str
    path: str
    statuses: tuple[int, ...]
    route: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


def _on_job(method: str, rest: str, route: str, statuses: tuple[int, ...] = (404,), body: str = "") -> Attempt:
    headers = JSON if body else {}
    return Attempt(method, f"/studio/jobs/{{job}}{rest}", statuses, f"/studio/jobs/{{job_id}}{route}", headers, body)


def _by_program(method: str, rest: str, route: str = "", statuses: tuple[int, ...] = (404,), body: str = "") -> Attempt:
    headers = JSON if body else {}
    return Attempt(method, f"/api/v1/{rest}", statuses, f"/api/v1/{route}" if route else "", headers, body)


_ACTIONS = ("cancel", "pause", "resume", "retry", "remove", "duplicate", "up", "down", "priority")
_VERBS = ("start", "pause", "resume", "cancel", "retry", "duplicate")
_TASKS = ("download", "verify", "convert", "pause")
_FILES = "/studio/jobs/{job_id}/files/{name}"
_PART = "/studio/jobs/{job_id}/part/{name}"
_UPLOAD = "/studio/uploads/{upload_id}"

ATTEMPTS = (
    # with the ids of somebody else
    _on_job("GET", "/download", "/download"),
    _on_job("HEAD", "/download", "/download"),
    Attempt("GET", "/studio/jobs/{job}/download", (404,), headers={"range": "bytes=0-9"}),
    _on_job("GET", "/log", "/log"),
    Attempt("GET", "/studio/system", (403,), "/studio/system"),
    Attempt("GET", "/studio/system/report", (403,), "/studio/system/report"),
    Attempt("POST", "/studio/system/examine", (403,), "/studio/system/examine"),
    Attempt("GET", "/metrics", (403,), "/metrics"),
    _on_job("GET", "/files/thumbnail.jpg", "/files/{name}"),
    _on_job("HEAD", "/files/thumbnail.jpg", "/files/{name}"),
    _on_job("GET", "/files/{preview}", "/files/{name}"),
    _on_job("GET", "/files/manifest.json", "/files/{name}"),
    _on_job("GET", "/part", "/part"),
    _on_job("POST", "/part", "/part"),
    _on_job("GET", "/part/000001.mp4", "/part/{name}"),
    _on_job("HEAD", "/part/000001.mp4", "/part/{name}"),
    _on_job("GET", "/part/000001.mp4?download=true", "/part/{name}"),
    *(_on_job("POST", f"/do/{action}", "/do/{action}") for action in _ACTIONS),
    _on_job("POST", "/do/cancel", "/do/{action}", body='{"keep": true}'),
    Attempt("POST", "/studio/jobs/{my_job}/do/before", (400,), headers=JSON, body='{"before": "{job}"}'),
    Attempt("GET", "/studio/snapshot?everybody=true", (403,), "/studio/snapshot"),
    Attempt("HEAD", "/studio/uploads/{upload}", (404,), _UPLOAD, TUS),
    Attempt("PATCH", "/studio/uploads/{upload}", (404,), _UPLOAD, PIECE, "evil"),
    Attempt("DELETE", "/studio/uploads/{upload}", (404,), _UPLOAD, TUS),
    Attempt("POST", "/studio/uploads/{upload}", (404,), _UPLOAD, {**PIECE, "x-http-method-override": "PATCH"}, "evil"),
    Attempt("POST", "/studio/uploads/{upload}", (404,), _UPLOAD, {**TUS, "x-http-method-override": "DELETE"}),
    Attempt("GET", "/studio/uploads/{upload}", (404, 405)),
    Attempt("POST", "/studio/uploads", (400,), "/studio/uploads", {**TUS, "upload-concat": "final;uploads/{upload}"}),
    Attempt("POST", "/studio/folder", (400,), "/studio/folder", JSON, '{"file": "{upload}"}'),
    Attempt("POST", "/studio/folder", (400,), "", JSON, '{"file": "../../{data}/accounts.json"}'),
    Attempt("POST", "/studio/links", (400,), "/studio/links", JSON, '{"link": "file://{data}/secret.key"}'),
    Attempt("POST", "/studio/links", (400,), "", JSON, '{"link": "http://127.0.0.1:{port}/studio/jobs/{job}/download"}'),
    # the same by the API for programs
    _by_program("GET", "jobs/{job}", "jobs/{job_id}"),
    _by_program("DELETE", "jobs/{job}", "jobs/{job_id}"),
    *(_by_program("POST", f"jobs/{{job}}/{act}", f"jobs/{{job_id}}/{act}") for act in _VERBS),
    _by_program("POST", "jobs/{job}/move", "jobs/{job_id}/move", body='{"to": "first"}', statuses=(404, 422)),
    _by_program("POST", "jobs", "jobs", (404,), '{"uploads": ["{upload}"]}'),
    _by_program("GET", "jobs?owner={owner}&search=geheim", "jobs", (200, 403, 422)),
    _by_program("GET", "jobs/{job}/download", "jobs/{job_id}/download"),
    _by_program("GET", "jobs/{job}/export", "jobs/{job_id}/export"),
    _by_program("GET", "jobs/..%2f{job}/export"),
    _by_program("GET", "uploads/{upload}", "uploads/{upload_id}"),
    _by_program("GET", "uploads/{my_linked_folder}", "uploads/{upload_id}"),
    _by_program("DELETE", "uploads/{upload}", "uploads/{upload_id}"),
    _by_program("GET", "imports/{job}", "imports/{import_id}"),
    _by_program("POST", "imports", "imports", (400, 411, 422), "not an archive"),
    # the public link is for admins, and models are changed by admins only
    Attempt("GET", "/studio/share", (403,), "/studio/share"),
    *(_by_program("POST", f"models/nano/{act}", f"models/{{model}}/{act}", (403,)) for act in _TASKS),
    _by_program("POST", "models/import", "models/import", (403,), '{"folder": "{data}"}'),
    _by_program("DELETE", "models/nano", "models/{model}", (403,)),
    _by_program("DELETE", "models/..%2f..%2f{owner}", statuses=(403, 404)),
    # with the own job, and a name that leads away from it
    Attempt("GET", "/studio/jobs/{my_job}/files/../../../../../{owner}/jobs/{job}/manifest.json", (404,), _FILES),
    Attempt("GET", f"/studio/jobs/{{my_job}}/files/{ENCODED_UP}etc%2fpasswd", (404,), _FILES),
    Attempt("GET", "/studio/jobs/{my_job}/files/%2e%2e%2f{job}%2fmanifest.json", (404,), _FILES),
    Attempt("GET", "/studio/jobs/{my_job}/files/%252e%252e%252f{job}%252fmanifest.json", (404,), _FILES),
    Attempt("GET", "/studio/jobs/{my_job}/files/..%5c..%5c{job}%5cmanifest.json", (404,), _FILES),
    Attempt("GET", "/studio/jobs/{my_job}/files/%2fetc%2fpasswd", (404,), _FILES),
    Attempt("GET", "/studio/jobs/{my_job}/files/thumbnail.jpg%00.png", (404,), _FILES),
    Attempt("GET", f"/studio/jobs/{{my_job}}/files/{'x' * 5000}", (404,), _FILES),
    Attempt("GET", "/studio/jobs/{my_job}/files/%e2%80%ae%f0%9f%8e%ac%cc%88.mp4", (404,), _FILES),
    Attempt("GET", "/studio/jobs/{my_job}/files/%ff%fe", (404,), _FILES),
    Attempt("GET", "/studio/jobs/{my_job}/files/thumbnail.jpg", (404,), _FILES),  # a link that was planted there
    Attempt("GET", "/studio/jobs/{my_job}/part/..%2f..%2f{job}%2fpart%2f000001.mp4", (404,), _PART),
    Attempt("GET", "/studio/jobs/{my_job}/part/000001.mp4", (404,), _PART),  # a link that was planted there
    Attempt("GET", "/studio/jobs/{my_job}/part/%d9%a0%d9%a0%d9%a0%d9%a0%d9%a0%d9%a1.mp4", (404,), _PART),
    Attempt("GET", "/studio/jobs/..%2f..%2f{owner}%2fjobs%2f{job}/download", (404,)),
    Attempt("GET", "/studio/jobs/{job}%00/download", (404,)),
    Attempt("GET", "/studio/jobs/%2e%2e/download", (404,)),
    Attempt("POST", "/studio/jobs/..%2f{job}/do/remove", (404, 405)),
    Attempt("HEAD", "/studio/uploads/..%2f..%2f{owner}%2fuploads%2f{upload}", (404, 405), "", TUS),
    Attempt("HEAD", "/studio/uploads/%2e%2e", (404,), "", TUS),
    Attempt("HEAD", "/studio/uploads/{my_linked_folder}", (404,), _UPLOAD, TUS),
    Attempt("PATCH", "/studio/uploads/{my_linked_file}", (404,), _UPLOAD, PIECE, "evil"),
    Attempt("DELETE", "/studio/uploads/{my_linked_folder}", (404,), _UPLOAD, TUS),
    # the files themselves
    Attempt("GET", "/studio/static/../../access.py", (404,)),
    Attempt("GET", f"/studio/static/{UP}{{data}}/accounts.json", (404,)),
    Attempt("GET", f"/studio/static/{ENCODED_UP}{{data}}/accounts.json", (404,)),
    Attempt("GET", "/studio/static/%252e%252e/login.html", (404,)),
    Attempt("GET", "/studio/static/..%5c..%5caccess.py", (404,)),
    Attempt("GET", "/static/../../../../../../../../../../..{data}/accounts.json", (403, 404)),
    Attempt("GET", "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{data}/secret.key", (403, 404)),
    Attempt("GET", "/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{data}/secret.key", (403, 404)),
    Attempt("GET", "/gradio_api/file={data}/accounts.json", (404,)),
    Attempt("GET", "/gradio_api/file={data}/sessions/{owner}/jobs/{job}/manifest.json", (404,)),
    Attempt("HEAD", "/gradio_api/file={data}/secret.key", (404,)),
    Attempt("GET", "/gradio_api/file%3d{data}/secret.key", (404,)),
    Attempt("GET", "/gradio_api/file/{data}/secret.key", (404,)),
    Attempt("GET", "//gradio_api/file={data}/secret.key", (404,)),
    Attempt("GET", "/./gradio_api/file={data}/secret.key", (404,)),
    Attempt("GET", "/gradio_api/info/../file={data}/secret.key", (404,)),
    Attempt("GET", "/file={data}/secret.key", (404,)),
    Attempt("POST", "/gradio_api/upload", (404,), "", {"content-type": "multipart/form-data; boundary=x"}, "--x--"),
    Attempt("GET", "/gradio_api/proxy=http://127.0.0.1:{port}/", (404,)),
    Attempt("POST", "/gradio_api/component_server", (404,), "", JSON, "{}"),
    Attempt("GET", "/gradio_api/runs", (404,)),
    Attempt("GET", "/monitoring/summary", (404,)),
)  # fmt: skip

OWN = {
    ("GET", "/studio/me"), ("GET", "/studio/snapshot"), ("GET", "/studio/uploads"), ("GET", "/studio/folder"),
    ("OPTIONS", "/studio/uploads"), ("OPTIONS", "/studio/uploads/{upload_id}"),
    ("GET", "/api/docs"), ("GET", "/api/openapi.json"), ("HEAD", "/api/openapi.json"), ("GET", "/api/v1/settings"),
    ("GET", "/api/v1/status"), ("GET", "/api/v1/models"), ("GET", "/api/v1/uploads"), ("POST", "/api/v1/uploads"),
}  # fmt: skip
"""Routes that take no id of anything: what they tell is looked at by a test of its own."""


_LIST_ROUTES = """
import json, sys
from pathlib import Path
import app

waiting, found = [("", route) for route in app.create_app(app.ServeOptions(data=Path(sys.argv[1]))).routes], []
while waiting:
    before, route = waiting.pop()
    inner = getattr(route, "original_router", None)
    waiting += [(before, one) for one in inner.routes] if inner is not None else []
    path = before + getattr(route, "path", "")
    if path == "/api" and hasattr(route, "app"):
        waiting += [(path, one) for one in route.app.routes]
    if path.startswith(("/studio", "/api")):
        found += [(method, path) for method in getattr(route, "methods", None) or ()]
print(json.dumps(found))
"""
"""Prints (method, path) of all routes of ours, in a process of its own."""


def test_an_attempt_is_made_at_every_route_of_ours(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIST_ROUTES, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    routes = {(method, path) for method, path in json.loads(done.stdout.splitlines()[-1])}
    assert ("GET", "/studio/jobs/{job_id}/download") in routes  # they are found at all
    assert routes - {(attempt.method, attempt.route) for attempt in ATTEMPTS} - OWN == set()
    assert len(ATTEMPTS) >= 40


# --- two users ---


@dataclass(frozen=True)
class Scene:
    """anna with a finished job and a file that waits; ben with a finished job of his own; root, an admin."""

    server: Server
    anna: Visit
    ben: Visit
    values: dict[str, str]
    secrets: list[bytes]
    folder: Path

    def files(self) -> dict[str, bytes]:
        """Everything that anna has."""
        owned = self.folder / "sessions" / self.values["owner"]
        return {str(path): path.read_bytes() for path in sorted(owned.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def scene(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("server")
    data = folder / "data"
    accounts = AccountsFile(data / "accounts.json")
    anna, ben = accounts.add("anna", PASSWORD).id, accounts.add("ben", PASSWORD).id
    accounts.add("root", PASSWORD, is_admin=True)
    clips = tmp_path_factory.mktemp("clips")
    hers = write_clip(clips / f"{MARKER.decode()}.mp4", 6, (48, 32))
    waits = write_clip(clips / f"{MARKER.decode()} waits.mp4", 7, (64, 32))
    his = write_clip(clips / "bens.mp4", 6, (48, 32))
    with (
        running_server(folder) as server,
        signed_in(browser, server.url, DESKTOP, "anna", PASSWORD) as of_anna,
        signed_in(browser, server.url, DESKTOP, "ben", PASSWORD) as of_ben,
    ):
        jobs = [_restore(of_anna.page, hers), _restore(of_ben.page, his)]
        of_anna.page.set_input_files(".zone input", str(waits))
        of_anna.page.locator(".files li.ready").wait_for()
        her_folder, his_folder = data / "sessions" / anna, data / "sessions" / ben
        upload = next((her_folder / "uploads").iterdir()).name
        manifest = json.loads((her_folder / "jobs" / jobs[0] / "manifest.json").read_text())
        (her_folder / "jobs" / jobs[0] / "part").mkdir(exist_ok=True)
        (her_folder / "jobs" / jobs[0] / "part" / "000001.mp4").write_bytes(MARKER)
        linked = _plant_links(his_folder, jobs[1], her_folder, jobs[0], upload)
        values = {
            "job": jobs[0], "upload": upload, "owner": anna, "data": str(data), "my_job": jobs[1],
            "preview": _preview_of(manifest), "port": str(server.port), **linked,
        }  # fmt: skip
        scene = Scene(server, of_anna, of_ben, values, [], data)
        scene.secrets.extend(_secrets(scene, data))
        yield scene


def _restore(page: Page, clip: Path) -> str:
    """Restore a file on the page: the id of its job."""
    page.set_input_files(".zone input", str(clip))
    page.locator(".files li.ready").wait_for()
    page.get_by_role("button", name="Start").click()
    page.locator(".jobs li.succeeded").wait_for(timeout=JOB_MS)
    return page.locator(".jobs li.succeeded").get_attribute("data-job") or ""


def _preview_of(manifest: dict[str, Any]) -> str:
    text = json.dumps(manifest)
    return next(name for name in ("preview.mp4", "before.png", "before.jpg") if name in text)


def _plant_links(his: Path, his_job: str, hers: Path, her_job: str, upload: str) -> dict[str, str]:
    """Links from ben's folders to anna's files, as if he had found a way to make some: ids of uploads with links."""
    thumbnail = his / "jobs" / his_job / "thumbnail.jpg"
    thumbnail.unlink(missing_ok=True)
    thumbnail.symlink_to(hers / "jobs" / her_job / "thumbnail.jpg")
    (his / "jobs" / his_job / "part").symlink_to(hers / "jobs" / her_job / "part")
    folder, file = "f" * 32, "e" * 32
    (his / "uploads").mkdir(exist_ok=True)
    (his / "uploads" / folder).symlink_to(hers / "uploads" / upload)
    (his / "uploads" / file).mkdir()
    record = json.loads((hers / "uploads" / upload / "upload.json").read_text())
    kept = next(path for path in (hers / "uploads" / upload).iterdir() if path.suffix not in (".json", ".jpg"))
    unfinished = {**record, "id": file, "name": "x.mp4", "size": 10**6, "media": None, "error": ""}
    (his / "uploads" / file / "upload.json").write_text(json.dumps(unfinished))
    (his / "uploads" / file / "content.part").symlink_to(kept)
    return {"my_linked_folder": folder, "my_linked_file": file}


def _secrets(scene: Scene, data: Path) -> list[bytes]:
    """What no answer to ben may have: pieces of all of anna's files, her id, and what only the server knows."""
    pieces = [content[len(content) // 2 :][:24] for content in scene.files().values() if len(content) >= 64]
    known = [MARKER, scene.values["owner"].encode(), (data / "secret.key").read_bytes(), b"$argon2id$"]
    return [*known, *(piece for piece in pieces if len(set(piece)) > 4)]


def _send(scene: Scene, attempt: Attempt, cookie: str = "") -> tuple[int, bytes]:
    """(status, all that came back) of the attempt, with its path as it stands there: no client tidies it up."""

    def fill(text: str) -> str:
        for name, value in scene.values.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    connection = http.client.HTTPConnection("127.0.0.1", scene.server.port, timeout=20)
    try:
        connection.putrequest(attempt.method, fill(attempt.path), skip_accept_encoding=True)
        body = fill(attempt.body).encode()
        headers = {name: fill(value) for name, value in attempt.headers.items()}
        if attempt.method not in ("GET", "HEAD"):
            headers["content-length"] = str(len(body))
        for name, value in (headers | ({"cookie": cookie} if cookie else {})).items():
            connection.putheader(name, value)
        connection.endheaders(body or None)
        reply = connection.getresponse()
        return reply.status, str(reply.headers).encode() + reply.read()
    finally:
        connection.close()


def _cookie(visit: Visit) -> str:
    return "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in visit.context.cookies())


def _name(attempt: Attempt) -> str:
    return f"{attempt.method} {attempt.path[:70]} {attempt.body[:30]}".strip()


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=_name)
def test_what_is_not_ones_own_is_refused(scene: Scene, attempt: Attempt) -> None:
    before = scene.files()
    status, answer = _send(scene, attempt, _cookie(scene.ben))
    assert status in attempt.statuses, answer[-500:]
    assert [secret for secret in scene.secrets if secret in answer] == []
    assert scene.files() == before


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=_name)
def test_nobody_gets_even_less(scene: Scene, attempt: Attempt) -> None:
    status, answer = _send(scene, attempt)
    assert status in ((404,) if "/static/" in attempt.path and attempt.path.startswith("/studio") else (401, 404))
    assert [secret for secret in scene.secrets if secret in answer] == []


def test_the_same_addresses_work_for_their_owner(scene: Scene) -> None:
    """Or the refusals would prove nothing."""
    for attempt in (
        Attempt("GET", "/studio/jobs/{job}/download", (200,)),
        Attempt("GET", "/studio/jobs/{job}/files/{preview}", (200,)),
        Attempt("GET", "/studio/jobs/{job}/files/thumbnail.jpg", (200,)),
        Attempt("GET", "/studio/jobs/{job}/part/000001.mp4", (200,)),
        Attempt("HEAD", "/studio/uploads/{upload}", (200,), headers=TUS),
    ):
        status, answer = _send(scene, attempt, _cookie(scene.anna))
        assert status in attempt.statuses, _name(attempt)
        assert attempt.method == "HEAD" or any(secret in answer for secret in scene.secrets), _name(attempt)


@pytest.mark.parametrize(("method", "path"), sorted(OWN))
def test_lists_have_nothing_of_the_other(scene: Scene, method: str, path: str) -> None:
    status, answer = _send(scene, Attempt(method, path.replace("{upload_id}", "{upload}"), ()), _cookie(scene.ben))
    assert status in ((422,) if method == "POST" else (200, 204))  # a file without a name
    assert [secret for secret in scene.secrets if secret in answer] == []
    assert scene.values["job"].encode() not in answer


def test_the_pages_show_nothing_of_the_other(scene: Scene) -> None:
    for visit, own, other in ((scene.anna, MARKER.decode(), "bens"), (scene.ben, "bens", MARKER.decode())):
        visit.page.reload()
        visit.page.locator(".jobs li.succeeded").wait_for()
        shown = visit.page.content()
        assert (own in shown, other in shown) == (True, False)
        assert visit.page.locator(".everybody").is_hidden()
        assert visit.outside == []


def test_a_browser_that_follows_the_others_links_gets_nothing(scene: Scene) -> None:
    links = scene.anna.page.eval_on_selector_all("a[href], img[src]", "all => all.map((one) => one.href || one.src)")
    links = [link for link in links if scene.values["job"] in link]
    assert len(links) >= 2
    for link in links:
        status = scene.ben.page.evaluate("async (link) => (await fetch(link)).status", link)
        assert status == 404, link


def test_the_form_cannot_start_or_copy_what_belongs_to_the_other(scene: Scene) -> None:
    before = scene.files()
    page = scene.ben.page
    for element, values in (
        ("start", {"ready": [scene.values["upload"]]}),
        ("about", {"ready": [scene.values["upload"]]}),
    ):
        answers = page.evaluate(_CALL, {"element": element, "drop": values, "event": None})
        assert "no longer exists" in answers or element == "about", answers
        assert MARKER.decode() not in answers
    for action in ("use", "again"):
        answers = page.evaluate(
            _CALL, {"element": "queue", "drop": None, "event": {"action": action, "id": scene.values["job"]}}
        )
        assert "no longer exists" in answers, answers
    assert scene.files() == before
    page.reload()
    page.locator(".jobs li.succeeded").wait_for()
    assert page.locator(".jobs li").count() == 1


_CALL = """async ({ element, drop, event }) => {
    const config = await (await fetch("config")).json();
    const ids = { start: "start", about: "estimate", queue: "queue" };
    const target = config.components.find((one) => one.props.elem_id === ids[element]).id;
    const call = config.dependencies.find((one) => one.targets.some(([id, name]) => id === target && name === "click"));
    const values = call.inputs.map((id) => config.components.find((one) => one.id === id).props.value ?? null);
    if (drop) values[0] = drop;
    const session_hash = Math.random().toString(36).slice(2);
    const asked = { data: values, event_data: event, fn_index: call.id, session_hash, trigger_id: target };
    const headers = { "content-type": "application/json" };
    const joined = await fetch("gradio_api/queue/join", { method: "POST", body: JSON.stringify(asked), headers });
    if (!joined.ok) return `status ${joined.status}`;
    return await (await fetch(`gradio_api/queue/data?session_hash=${session_hash}`)).text();
}"""
"""What the page does for a press of Start, for the estimate, or for a button of the queue, with other values."""


def test_an_admin_sees_all_users_with_their_names(scene: Scene, browser: Browser) -> None:
    with signed_in(browser, scene.server.url, DESKTOP, "root", PASSWORD) as visit:
        assert visit.page.locator(".jobs li").count() == 0
        visit.page.get_by_label("All users").check()
        visit.page.locator(".jobs li.succeeded").nth(1).wait_for(timeout=WAIT_MS)
        assert sorted(visit.page.locator(".jobs .owner").all_inner_texts()) == ["anna", "ben"]
        assert visit.errors == []


def test_signing_out_ends_on_the_login_page_and_the_address_leads_back_there(scene: Scene, browser: Browser) -> None:
    with signed_in(browser, scene.server.url, DESKTOP, "ben", PASSWORD) as visit:
        visit.page.get_by_role("button", name="Sign out").click()
        visit.page.get_by_label("Password").wait_for()
        visit.page.goto(scene.server.url)
        assert visit.page.url.endswith("/login")
        visit.page.get_by_label("Name").fill("ben")
        visit.page.get_by_label("Password").fill("wrong")
        visit.page.get_by_role("button", name="Sign in").click()
        assert "wrong" in visit.page.get_by_role("alert").inner_text()


def test_signing_in_needs_no_script_and_fits_a_phone(scene: Scene, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    try:
        page = context.new_page()
        page.goto(scene.server.url)
        box = page.get_by_role("button", name="Sign in").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        page.get_by_label("Name").fill("anna")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_label("Password").press("Enter")
        page.wait_for_url(scene.server.url)
    finally:
        context.close()
