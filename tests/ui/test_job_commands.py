"""`seedvr jobs`: on a data folder, and over the HTTP API of the real server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from typer.testing import CliRunner

from inference.cli import app
from seedvr_ui.access import COOKIE
from seedvr_ui.accounts import AccountsFile
from seedvr_ui.storage import local_owner, new_id
from tests.ui.conftest import Wait
from tests.ui.proxy import losing_proxy
from tests.ui.server import ROOT, Server, running_server

SAMPLE = ROOT / "samples" / "sintel_320x136.mp4"
TINY = ["restore.factor=1", "engine.model=nano"]
_WAIT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What a command has printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def jobs(*arguments: object) -> Answer:
    result = CliRunner().invoke(app, ["jobs", *map(str, arguments)], catch_exceptions=False)
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default data folder of this test."""
    for name in ("SEEDVR_USER", "SEEDVR_PASSWORD", "SEEDVR_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEEDVR_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "Ünï bild.png"
    Image.new("RGB", (32, 24), "teal").save(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("commands")) as server:
        yield server


# --- on a data folder ---


def test_a_job_is_submitted_listed_shown_changed_and_counted(home: Path, picture: Path) -> None:
    (job,) = jobs("submit", picture, "seed=7", "--json").document
    assert (job["status"], job["name"]) == ("queued", "Ünï bild.png")
    assert job["owner"] == local_owner(home)
    assert picture.exists()
    listed = jobs("list", "--json").document
    assert (listed["total"], listed["jobs"]) == (1, [job])
    assert jobs("show", job["id"], "--json").document["settings"]["restore"]["seed"] == 7
    assert jobs("pause", job["id"], "--json").document[0]["status"] == "paused"
    assert jobs("resume", job["id"], "--json").document[0]["status"] == "queued"
    assert jobs("cancel", job["id"], "--keep-part", "--json").document[0]["status"] == "cancelled"
    assert jobs("retry", job["id"], "--json").document[0]["status"] == "queued"
    shown = jobs("show", job["id"]).out
    assert "queued: tried again" in shown
    assert "32×24" in shown
    table = jobs("list").out
    assert job["id"] in table
    assert "next in line" in table
    assert jobs("reindex").out == "1\n"


def test_the_list_has_all_owners_and_can_be_filtered(picture: Path) -> None:
    other = new_id()
    (mine,) = jobs("submit", picture, "--json").document
    (theirs,) = jobs("submit", picture, "--owner", other, "--json").document
    assert theirs["owner"] == other
    jobs("pause", theirs["id"])

    def ids(*options: str) -> list[str]:
        return [job["id"] for job in jobs("list", "--json", *options).document["jobs"]]

    assert ids() == [mine["id"], theirs["id"]]
    assert ids("--owner", other) == [theirs["id"]]
    assert ids("--status", "paused") == [theirs["id"]]
    assert ids("--limit", "1") == [mine["id"]]
    assert ids("--search", "nothing") == []


def test_an_owner_may_be_named_by_the_account(home: Path, picture: Path) -> None:
    anna = AccountsFile(home / "accounts.json").add("Anna", "correct horse")
    (theirs,) = jobs("submit", picture, "--owner", "anna", "--json").document
    jobs("submit", picture)
    assert theirs["owner"] == anna.id
    assert [job["id"] for job in jobs("list", "--owner", "Anna", "--json").document["jobs"]] == [theirs["id"]]
    answer = jobs("list", "--owner", "ben")
    assert (answer.code, "'ben' is neither an account nor an owner" in answer.err) == (2, True)


def test_a_rebuilt_index_has_what_the_folders_have(home: Path, picture: Path) -> None:
    (job,) = jobs("submit", picture, "--json").document
    for path in home.glob("index.sqlite3*"):
        path.unlink()
    assert jobs("reindex", "--json").document == {"jobs": 1}
    assert jobs("list", "--json").document["jobs"][0]["id"] == job["id"]


def test_a_job_goes_out_and_in_again(tmp_path: Path, picture: Path) -> None:
    (job,) = jobs("submit", picture, "seed=7", "--json").document
    jobs("pause", job["id"])
    archive = tmp_path / "job.archive"
    assert jobs("export", job["id"], archive).code == 0
    assert jobs("export", job["id"], archive).code == 2
    other = tmp_path / "other machine"
    new = jobs("import", archive, "--start", "--data", other, "--json").document
    assert new["status"] == "queued"
    assert new["owner"] == local_owner(other)
    assert jobs("show", new["id"], "--data", other, "--json").document["settings"]["restore"]["seed"] == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "nowhere.mp4"], "There is no file nowhere.mp4"),
        (["submit", "seed=3"], "Name a file to restore"),
        (["submit", "{picture}", "sede=3"], "did you mean restore.seed?"),
        (["submit", "{text}"], "notes.txt"),
        (["submit", "{picture}", "--owner", "../x"], "neither an account nor an owner"),
        (["show", "../../etc/passwd"], "no longer exists"),
        (["resume", "{job}"], "This job is queued and cannot become queued"),
        (["import", "{text}"], ""),
        (["import", "nowhere"], "There is no file nowhere"),
        (["export", "{job}", "nowhere/job"], "There is no folder nowhere"),
        (["list", "--url", "x", "--data", "y"], "give one of them"),
        (["list", "--url", "ftp://x"], "is no address"),
        (["list", "--url", "http://127.0.0.1:1"], "does not answer"),
        (["reindex", "--url", "http://127.0.0.1:1"], "leave --url out"),
        (["list", "--data", "nowhere"], "There are no jobs in nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(tmp_path: Path, picture: Path, arguments: list[str], words: str) -> None:
    (job,) = jobs("submit", picture, "--json").document
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    answer = jobs(*(word.format(picture=picture, text=text, job=job["id"]) for word in arguments))
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert words in answer.err
    assert jobs("list", "--json").document["total"] == 1
    assert list(tmp_path.rglob("uploads/*")) == []


def test_either_all_files_are_submitted_or_none(tmp_path: Path, picture: Path, home: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    assert jobs("submit", picture, text).code == 2
    assert jobs("list", "--json").document["total"] == 0
    assert list(home.rglob("uploads/*")) == []


def test_the_local_owner_stays_and_is_private(home: Path) -> None:
    assert local_owner(home) == local_owner(home)
    assert (home / "local-owner").stat().st_mode & 0o077 == 0
    assert [path.name for path in home.iterdir()] == ["local-owner"]


def test_it_loads_neither_torch_nor_gradio() -> None:
    program = "import sys, seedvr_ui.job_commands; sys.exit(bool({'torch', 'gradio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=100, check=False).returncode == 0


def test_the_program_lists_the_commands_without_loading_them() -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom inference.cli import app\n"
        "text = CliRunner().invoke(app, ['--help']).stdout\n"
        "sys.exit('jobs' not in text or any(name.startswith('seedvr_ui') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=100, check=False).returncode == 0


def test_ctrl_c_leaves_the_job_and_says_so(picture: Path) -> None:
    command = [sys.executable, "-m", "inference.cli", "jobs", "submit", str(picture), "--wait"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )  # fmt: skip
    assert process.stderr is not None
    try:
        assert ": job " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=_WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    (job,) = jobs("list", "--json").document["jobs"]
    assert job["status"] == "queued"
    assert "the job goes on" in errors
    assert job["id"] in errors


# --- with a server ---


def test_a_running_server_takes_a_job_from_the_folder(server: Server, picture: Path) -> None:
    data = server.log.parent / "data"
    answer = jobs("submit", picture, *TINY, "--data", data, "--wait", "--json")
    (job,) = answer.document
    assert job["status"] == "succeeded"
    assert job["has_result"]


def test_a_server_elsewhere_is_used_in_the_same_way(server: Server, tmp_path: Path, home: Path, picture: Path) -> None:
    url = ("--url", server.url.rstrip("/"))
    (job,) = jobs("submit", picture, *TINY, *url, "--wait", "--json").document
    assert (job["status"], job["name"], job["owner"]) == ("succeeded", "Ünï bild.png", "")
    assert job["id"] in jobs("list", "--status", "succeeded", "--search", "bild", *url).out
    assert "succeeded: done" in jobs("show", job["id"], *url).out
    archive = tmp_path / "job.archive"
    assert jobs("export", job["id"], archive, *url).code == 0
    assert archive.stat().st_size > 1000
    new = jobs("import", archive, *url, "--json").document
    assert new["id"] != job["id"]
    for arguments, words in [
        (["resume", job["id"]], "This job is succeeded and cannot become queued"),
        (["show", new_id()], "no longer exists"),
        (["show", "../uploads"], "is no job"),
        (["submit", picture, "engine.weights=/etc"], "chosen where the server is started"),
        (["submit", Path(__file__)], "test_job_commands.py"),
        (["submit", picture, "--owner", new_id()], "leave --owner out"),
    ]:
        answer = jobs(*arguments, *url)
        assert (answer.code, words in answer.err) == (2, True), answer
    cookies = {COOKIE: local_owner(home)}
    assert httpx2.get(f"{server.url}api/v1/uploads", cookies=cookies).json() == []


def test_somebody_elses_jobs_are_not_seen(server: Server, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = ("--url", server.url)
    jobs("submit", picture, *url)
    monkeypatch.setenv("SEEDVR_DATA", str(picture.parent / "another home"))
    assert jobs("list", "--json", *url).document["total"] == 0


def test_a_file_goes_on_after_cut_connections_and_below_a_path(server: Server, tmp_path: Path) -> None:
    """The second piece arrives, but its sender does not hear so."""
    picture = tmp_path / "large.bmp"
    Image.new("RGB", (3000, 2400), "teal").save(picture)  # 21.6 MB: three pieces
    with losing_proxy(server.url, "/below") as (url, lost):
        (job,) = jobs("submit", picture, *TINY, "--url", url, "--json").document
        assert len(lost) == 1
        assert jobs("cancel", job["id"], "--url", url).code == 0
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    (source,) = (server.log.parent / "data").rglob("source/large.bmp")
    assert hashlib.sha256(source.read_bytes()).hexdigest() == digest


def test_a_running_job_hears_the_command_line(server: Server, wait_until: Wait) -> None:
    data = server.log.parent / "data"
    (job,) = jobs("submit", SAMPLE, "engine.model=nano", "--data", data, "--json").document

    def status() -> str:
        return str(jobs("show", job["id"], "--data", data, "--json").document["status"])

    wait_until(lambda: status() == "running")
    assert jobs("pause", job["id"], "--data", data, "--json").document[0]["wish"] == "pause"
    wait_until(lambda: status() == "paused")
    assert jobs("cancel", job["id"], "--data", data, "--json").document[0]["status"] == "cancelled"


def test_an_address_that_is_no_studio_is_told(server: Server) -> None:
    answer = jobs("list", "--url", f"{server.url}nothing/here")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
