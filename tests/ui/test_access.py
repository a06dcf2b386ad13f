"""The gate: who comes in, by cookie and by password, from which site, and what admins may do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from limits import RateLimitItemPerMinute

from seedvr_ui.access import LOGIN_COOKIE, Access
from seedvr_ui.accounts import Account, Accounts, AccountsFile
from seedvr_ui.admission import make_access
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.login import Login
from seedvr_ui.page_routes import add_page_routes
from seedvr_ui.player import Display
from seedvr_ui.routes import add_routes
from seedvr_ui.serve_options import ServeOptions
from seedvr_ui.sessions import SessionManager
from seedvr_ui.signed_out import FOLDER_NAME, SignedOut
from seedvr_ui.snapshots import Snapshots
from tests.ui.conftest import Submit, Wait

PASSWORD = "correct horse"
PAGE = {"accept": "text/html,*/*", "sec-fetch-mode": "navigate", "sec-fetch-site": "none"}
FORM = {"content-type": "application/x-www-form-urlencoded"}

MakeApp = Callable[..., FastAPI]
SignIn = Callable[..., TestClient]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of accounts, made once, since hashing takes its time."""
    file = AccountsFile(tmp_path_factory.mktemp("accounts") / "accounts.json")
    file.add("root", PASSWORD, is_admin=True)
    file.add("anna", PASSWORD)
    file.add("ben", PASSWORD)
    return file.path.read_bytes()


@pytest.fixture
def accounts(tmp_path: Path, written: bytes) -> Accounts:
    (tmp_path / "accounts.json").write_bytes(written)
    return Accounts(AccountsFile(tmp_path / "accounts.json"), b"s" * 32)


def make_app(manager: SessionManager, access: Access) -> FastAPI:
    app = FastAPI()
    add_routes(app, manager, access)
    add_page_routes(app, manager, access, Snapshots(manager, Display, access.name_of))
    app.get("/", response_class=HTMLResponse)(lambda: "<p>page</p>")
    app.get("/{path:path}")(lambda path: {"reached": path})
    app.post("/{path:path}")(lambda path: {"reached": path})
    return app


@pytest.fixture
def app(manager: SessionManager, accounts: Accounts, tmp_path: Path) -> FastAPI:
    login = Login(accounts, b"s" * 32, SignedOut(tmp_path), RateLimitItemPerMinute(6, 5), RateLimitItemPerMinute(30, 5))
    return make_app(manager, Access(login))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Nobody."""
    with TestClient(app, follow_redirects=False) as client:
        yield client


@pytest.fixture
def sign_in(app: FastAPI) -> SignIn:
    """sign_in(name) is a browser of that account."""

    def sign_in(name: str) -> TestClient:
        client = TestClient(app, follow_redirects=False)
        assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
        return client

    return sign_in


def account(accounts: Accounts, name: str) -> Account:
    found = accounts.named(name)
    assert found is not None
    return found


@pytest.fixture
def job(submit: Submit, accounts: Accounts) -> Job:
    """A waiting job of anna."""
    return submit("holiday.mp4", session=account(accounts, "anna").id)


# --- coming in ---


@pytest.mark.parametrize(
    ("path", "target"),
    [("/", "login"), ("/config", "login"), ("/studio/jobs/x/download", "../../../login"), ("/a/b", "../login")],
)
def test_a_page_leads_to_the_login_page_by_a_relative_address(client: TestClient, path: str, target: str) -> None:
    reply = client.get(path, headers=PAGE)
    assert (reply.status_code, reply.headers["location"]) == (303, target)


@pytest.mark.parametrize("path", ["/", "/config", "/studio/snapshot", "/gradio_api/info", "/studio/me", "/login/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "PROPFIND"])
def test_everything_else_gets_a_sentence(client: TestClient, method: str, path: str) -> None:
    reply = client.request(method, path)
    if path == "/login/x":
        assert reply.status_code == 404
        return
    assert reply.status_code == 401
    assert reply.json() == {"error": "Sign in first: on the page, or with name and password by HTTP Basic."}
    assert reply.headers["www-authenticate"].startswith("Basic ")


def test_a_browser_is_not_made_to_ask_with_a_window_of_its_own(client: TestClient) -> None:
    reply = client.get("/studio/snapshot", headers={"sec-fetch-mode": "cors", "sec-fetch-site": "same-origin"})
    assert (reply.status_code, "www-authenticate" in reply.headers) == (401, False)


@pytest.mark.parametrize("path", ["/healthz", "/login", "/favicon.ico", "/studio/static/login.css"])
def test_what_is_open_is_open(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/studio/static/../../access.py", "/studio/static/%2e%2e/access.py", "/healthz/", "//healthz"]
)
def test_open_addresses_lead_nowhere_else(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code in (401, 404)
    assert "Visitor" not in reply.text


def test_the_health_check_tells_strangers_nothing_about_jobs(client: TestClient, sign_in: SignIn) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert "jobs" in sign_in("anna").get("/healthz").json()


def test_signing_in_opens_the_page_and_signing_out_closes_it(client: TestClient) -> None:
    reply = client.post("/login", data={"name": "Anna", "password": PASSWORD})
    assert (reply.status_code, reply.headers["location"]) == (303, "./")
    cookie = reply.headers["set-cookie"]
    assert all(
        part in cookie for part in (f"{LOGIN_COOKIE}=", "HttpOnly", "SameSite=Lax", "Path=/;", "Max-Age=2592000")
    )
    assert "Secure" not in cookie
    assert client.get("/", headers=PAGE).text == "<p>page</p>"
    assert client.get("/studio/me").json() == {"name": "anna", "isAdmin": False}
    assert client.get("/login").headers["location"] == "./"
    assert client.post("/logout").headers["location"] == "login"
    assert client.get("/studio/me").status_code == 401


def test_signing_out_ends_the_session_for_copies_of_it_too_and_no_other_one(sign_in: SignIn) -> None:
    laptop, phone = sign_in("anna"), sign_in("anna")
    copied = {"cookie": f"{LOGIN_COOKIE}={laptop.cookies[LOGIN_COOKIE]}"}
    stranger = TestClient(laptop.app, headers=copied)
    assert stranger.get("/studio/me").status_code == 200
    assert laptop.post("/logout").status_code == 303
    assert stranger.get("/studio/me").status_code == 401
    assert phone.get("/studio/me").status_code == 200


def test_a_sign_out_that_cannot_be_written_down_is_none(sign_in: SignIn, tmp_path: Path) -> None:
    (tmp_path / FOLDER_NAME).symlink_to(tmp_path / "a disk that is away")
    anna = sign_in("anna")
    reply = anna.post("/logout")
    assert (reply.status_code, "you are still signed in" in reply.text) == (507, True)
    assert "set-cookie" not in reply.headers
    assert anna.get("/studio/me").status_code == 200


def test_behind_tls_and_below_a_path_the_cookie_says_so(
    manager: SessionManager, accounts: Accounts, tmp_path: Path
) -> None:
    app = make_app(manager, Access(Login(accounts, b"s" * 32, SignedOut(tmp_path)), "/seed/"))
    reply = TestClient(app, follow_redirects=False).post(
        "/login", data={"name": "anna", "password": PASSWORD}, headers={"x-forwarded-proto": "https"}
    )
    assert "; Secure" in reply.headers["set-cookie"]
    assert "; Path=/seed;" in reply.headers["set-cookie"]


def test_the_cookie_of_an_anonymous_browser_is_no_session(client: TestClient, accounts: Accounts) -> None:
    owner = account(accounts, "anna").id
    assert client.get("/studio/me", headers={"cookie": f"seedvr_session={owner}"}).status_code == 401
    assert client.get("/studio/me", headers={"cookie": f"{LOGIN_COOKIE}={owner}"}).status_code == 401


def test_a_wrong_password_is_said_on_the_page_and_the_name_stays(client: TestClient) -> None:
    reply = client.post("/login", data={"name": '"><b>anna', "password": "wrong"})
    assert reply.status_code == 401
    assert 'role="alert">The name or the password is wrong' in reply.text
    assert 'value="&quot;&gt;&lt;b&gt;anna"' in reply.text
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"name=anna", b"a=b&" * 50, b"x" * 20000, b"{}"])
def test_what_is_no_form_is_no_password(client: TestClient, body: bytes) -> None:
    assert client.post("/login", content=body, headers=FORM).status_code == 401


def test_too_many_attempts_have_to_wait_on_the_page_and_by_basic(client: TestClient) -> None:
    spoof = iter(range(100))
    for _ in range(6):
        headers = {
            "x-forwarded-for": f"192.0.2.{next(spoof)}"
        }  # believed only by the server, of proxies that it trusts
        assert client.post("/login", data={"name": "anna", "password": "wrong"}, headers=headers).status_code == 401
    reply = client.post("/login", data={"name": "anna", "password": PASSWORD})
    assert (reply.status_code, "Too many attempts" in reply.text) == (429, True)
    assert 0 < int(reply.headers["retry-after"]) <= 300
    reply = client.get("/studio/me", auth=("anna", PASSWORD))
    assert (reply.status_code, "Too many attempts" in reply.json()["error"]) == (429, True)


def test_programs_come_in_with_name_and_password(client: TestClient) -> None:
    for _ in range(10):  # more than wrong ones would be let through
        assert client.get("/studio/me", auth=("anna", PASSWORD)).json()["name"] == "anna"
    reply = client.get("/studio/me", auth=("anna", "wrong"))
    assert (reply.status_code, reply.json()["error"][:40]) == (401, "The name or the password is wrong; check")


@pytest.mark.parametrize(
    "header", ["Basic", "Basic !!", "Basic YW5uYQ==", "Bearer x", "Basic " + "A" * 5000, "Basic /w=="]
)
def test_a_strange_authorization_is_none(client: TestClient, header: str) -> None:
    assert client.get("/studio/me", headers={"authorization": header}).status_code == 401


# --- from which site ---

SITES = [
    ({"sec-fetch-site": "same-origin"}, True),
    ({"sec-fetch-site": "none"}, True),
    ({"sec-fetch-site": "same-site"}, False),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "cross-site", "origin": "http://testserver"}, False),
    ({"origin": "http://testserver"}, True),
    ({"origin": "https://testserver"}, True),
    ({"origin": "http://testserver:81"}, False),
    ({"origin": "http://evil.example"}, False),
    ({"origin": "http://testserver.evil.example"}, False),
    ({"origin": "null"}, False),
    ({"origin": ""}, False),
    ({"origin": "https://app.example", "x-forwarded-host": "app.example"}, True),
    ({}, True),
]


@pytest.mark.parametrize(("headers", "is_own"), SITES)
@pytest.mark.parametrize("path", ["/login", "/logout", "/studio/links", "/gradio_api/queue/join"])
def test_what_another_site_sends_changes_nothing(
    sign_in: SignIn, path: str, headers: dict[str, str], is_own: bool
) -> None:  # fmt: skip
    reply = sign_in("anna").post(path, data={"name": "ben", "password": PASSWORD}, headers=headers)
    assert (reply.status_code == 403) is not is_own
    assert is_own or "another site" in reply.json()["error"]


def test_where_nobody_signs_in_another_site_changes_nothing_either(manager: SessionManager, session: str) -> None:
    client = TestClient(make_app(manager, Access()), cookies={"seedvr_session": session})
    assert client.post("/x", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/x").json() == {"reached": "x"}


HOSTS = [
    ("localhost:7860", True),
    ("LOCALHOST.:9000", True),
    ("127.0.0.1", True),
    ("127.3.2.1:8080", True),
    ("[::1]:7860", True),
    ("studio.test:80", True),
    ("[fd00::5]:80", True),
    ("rebound.example:7860", False),
    ("localhost.rebound.example", False),
    ("127.0.0.1.rebound.example", False),
    ("x.studio.test", False),
    ("192.168.1.2:7860", False),
    ("user@rebound.example", False),
    ("[::1", False),
    ("", False),
]


def test_where_nobody_signs_in_on_loopback_no_foreign_name_leads_here(manager: SessionManager, tmp_path: Path) -> None:
    access = make_access(
        ServeOptions(host="127.0.0.1", data=tmp_path, allowed_hosts=("Studio.test", "[fd00::5]")), print
    )
    client = TestClient(make_app(manager, access))
    for host, is_ours in HOSTS:
        for method, path in (("GET", "/"), ("GET", "/healthz"), ("POST", "/x")):
            reply = client.request(method, path, headers={"host": host})
            assert reply.status_code == (200 if is_ours else 403), host
            assert is_ours or ("--allow-host" in reply.json()["error"] and "set-cookie" not in reply.headers)


@pytest.mark.parametrize(("host", "is_login_off"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_other_servers_are_asked_under_any_name(
    manager: SessionManager, tmp_path: Path, written: bytes, host: str, is_login_off: bool
) -> None:
    if not is_login_off:
        (tmp_path / "accounts.json").write_bytes(written)
    access = make_access(ServeOptions(host=host, data=tmp_path, is_login_off=is_login_off), print)
    reply = TestClient(make_app(manager, access)).get("/healthz", headers={"host": "studio.example"})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file/x", "/gradio_api/upload", "/gradio_api/proxy=http://x",
        "/gradio_api/component_server", "/gradio_api/runs", "/gradio_api/stream/x", "/gradio_api/vibe-code",
        "/monitoring", "/monitoring/summary", "/gradio_api/of-a-later-version",
        "/seed/gradio_api/file=/etc/passwd",
    ],
)  # fmt: skip
def test_the_file_routes_of_gradio_are_not_there(sign_in: SignIn, path: str) -> None:
    client = sign_in("root")
    assert client.get(path).status_code == 404
    assert client.post(path).status_code == 404


# --- admins ---


def test_others_are_told_that_there_is_no_such_job(sign_in: SignIn, job: Job) -> None:
    reply = sign_in("ben").post(f"/studio/jobs/{job.id}/do/cancel")
    unknown = sign_in("ben").post(f"/studio/jobs/{'0' * 32}/do/cancel")
    assert (reply.status_code, reply.json()) == (unknown.status_code, unknown.json())
    assert reply.status_code == 404


def test_the_same_user_has_the_same_jobs_on_every_device(sign_in: SignIn, job: Job) -> None:
    for _ in range(2):
        waiting = sign_in("Anna").get("/studio/snapshot").json()["waiting"]
        assert [one["id"] for one in waiting] == [job.id]


def test_an_admin_sees_everybody_only_when_asking_and_with_names(sign_in: SignIn, job: Job) -> None:
    admin = sign_in("root")
    assert admin.get("/studio/snapshot").json()["waiting"] == []
    (seen,) = admin.get("/studio/snapshot?everybody=true").json()["waiting"]
    assert (seen["id"], seen["owner"]) == (job.id, "anna")
    assert job.owner not in admin.get("/studio/snapshot?everybody=true").text  # the id stays with its owner
    assert sign_in("anna").get("/studio/snapshot?everybody=true").status_code == 403


def test_an_admin_acts_in_the_name_of_the_owner(
    sign_in: SignIn, job: Job, manager: SessionManager, accounts: Accounts
) -> None:  # fmt: skip
    admin = sign_in("root")
    assert admin.post(f"/studio/jobs/{job.id}/do/duplicate").status_code == 200
    assert {one.owner for one in manager.unfinished(None)} == {account(accounts, "anna").id}
    assert admin.post(f"/studio/jobs/{job.id}/do/pause").status_code == 200
    assert manager.job(job.owner, job.id).status is JobStatus.PAUSED
    assert admin.post(f"/studio/jobs/{job.id}/do/resume").status_code == 200
    assert admin.post(f"/studio/jobs/{job.id}/do/cancel").status_code == 200
    assert admin.post(f"/studio/jobs/{job.id}/do/remove").status_code == 200
    assert len(manager.unfinished(job.owner)) == 1


def test_priorities_are_for_admins(sign_in: SignIn, job: Job, manager: SessionManager) -> None:
    choice = {"priority": 5}
    assert sign_in("anna").post(f"/studio/jobs/{job.id}/do/priority", json=choice).status_code == 403
    assert sign_in("root").post(f"/studio/jobs/{job.id}/do/priority", json=choice).status_code == 200
    assert manager.job(job.owner, job.id).priority == 5


def test_a_result_is_served_in_ranges_and_an_admins_look_is_not_its_owners(
    sign_in: SignIn, job: Job, manager: SessionManager, wait_until: Wait
) -> None:
    manager.start()
    wait_until(lambda: manager.job(job.owner, job.id).status is JobStatus.SUCCEEDED)
    path = f"/studio/jobs/{job.id}/download"
    admin, anna = sign_in("root"), sign_in("anna")
    assert admin.get(path).text == "restored pixels"
    assert not manager.job(job.owner, job.id).is_seen
    whole = anna.get(path)
    assert manager.job(job.owner, job.id).is_seen
    part = anna.get(path, headers={"range": "bytes=9-", "if-range": whole.headers["etag"]})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "pixels", "bytes 9-14/15")
    changed = anna.get(path, headers={"range": "bytes=9-", "if-range": '"another"'})
    assert (changed.status_code, changed.text) == (200, "restored pixels")
    head = anna.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "15")
    assert anna.get(path, headers={"range": "bytes=99-"}).status_code == 416


def test_an_account_that_is_removed_is_out_at_once(sign_in: SignIn, accounts: Accounts) -> None:
    anna = sign_in("anna")
    accounts.file.remove("anna")
    assert anna.get("/studio/me").status_code == 401
