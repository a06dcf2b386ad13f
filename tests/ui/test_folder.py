"""Sources out of a folder of the server: what is shown, what is taken, and that originals stay as they are."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from seedvr_ui.access import COOKIE, Access
from seedvr_ui.folder import FolderError, ServerFolder
from seedvr_ui.routes import add_routes
from seedvr_ui.sessions import SessionManager
from seedvr_ui.transfers import Transfers
from tests.ui.conftest import FakeEngine, Wait


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with media, and beside it what must not be seen."""
    root = tmp_path / "media"
    (root / "tapes" / "1998").mkdir(parents=True)
    (root / ".private").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (root / "a.mp4").write_bytes(b"pixels of a")
    (root / "tapes" / "1998" / "b ü.MKV").write_bytes(b"pixels of b")
    (root / "notes.txt").write_bytes(b"text")
    (root / ".hidden.mp4").write_bytes(b"hidden")
    (root / ".private" / "c.mp4").write_bytes(b"hidden")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "up").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.mp4")
    return root


@pytest.fixture
def transfers(manager: SessionManager, root: Path) -> Iterator[Transfers]:
    transfers = Transfers(manager.uploads, ServerFolder(root))
    yield transfers
    transfers.close()


@pytest.fixture
def client(manager: SessionManager, session: str, transfers: Transfers) -> Iterator[TestClient]:
    app = FastAPI()
    add_routes(app, manager, Access(), transfers)
    with TestClient(app, cookies={COOKIE: session}) as client:
        yield client


def test_the_list_has_media_only_and_nothing_hidden_or_linked(client: TestClient) -> None:
    files = client.get("/studio/folder").json()["files"]
    assert [(file["path"], file["size"]) for file in files] == [("a.mp4", 11), ("tapes/1998/b ü.MKV", 11)]
    assert client.get("/studio/uploads").json()["hasFolder"] is True


def test_a_folder_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="create it, or name another one with --folder"):
        ServerFolder(tmp_path / "nowhere")


def test_without_a_folder_there_is_nothing_to_choose(manager: SessionManager, session: str) -> None:
    app = FastAPI()
    add_routes(app, manager, Access())
    client = TestClient(app, cookies={COOKIE: session})
    assert client.get("/studio/uploads").json()["hasFolder"] is False
    assert client.get("/studio/folder").json() == {"files": []}
    reply = client.post("/studio/folder", json={"file": "0" * 32})
    assert (reply.status_code, "no folder" in reply.json()["error"]) == (400, True)


def test_a_chosen_file_is_another_name_of_the_original_which_stays(
    client: TestClient, manager: SessionManager, session: str, root: Path, wait_until: Wait
) -> None:
    upload_id = _choose(client, "tapes/1998/b ü.MKV")
    wait_until(lambda: manager.uploads.get(session, upload_id).is_ready)
    before = os.stat(root / "tapes/1998/b ü.MKV")
    (job,) = manager.submit(session, [upload_id], {})
    assert (job.source.name, job.source.read_bytes()) == ("b ü.MKV", b"pixels of b")
    assert os.path.samestat(os.stat(job.source), before)
    manager.cancel(session, job.id)
    manager.remove(session, job.id)
    after = os.stat(root / "tapes/1998/b ü.MKV")
    assert not job.source.exists()
    assert (after.st_ino, after.st_mtime_ns, after.st_nlink) == (before.st_ino, before.st_mtime_ns, 1)
    assert (root / "tapes/1998/b ü.MKV").read_bytes() == b"pixels of b"


def test_where_no_second_name_is_possible_the_file_is_copied(
    client: TestClient, manager: SessionManager, session: str, root: Path, wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(ServerFolder, "link", refuse)
    upload_id = _choose(client, "a.mp4")
    wait_until(lambda: manager.uploads.get(session, upload_id).is_ready)
    copy = manager.storage.upload_folder(session, upload_id) / "a.mp4"
    assert copy.read_bytes() == b"pixels of a"
    assert not os.path.samestat(os.stat(copy), os.stat(root / "a.mp4"))


def test_a_bad_file_is_told_and_the_original_stays(
    client: TestClient, manager: SessionManager, session: str, root: Path, wait_until: Wait
) -> None:
    (root / "bad.mp4").write_bytes(b"bad")
    upload_id = _choose(client, "bad.mp4")
    wait_until(lambda: manager.uploads.get(session, upload_id).error != "")
    client.delete(f"/studio/uploads/{upload_id}", headers={"Tus-Resumable": "1.0.0"})
    assert (root / "bad.mp4").read_bytes() == b"bad"


def test_nobody_can_write_to_an_original_through_an_upload(
    client: TestClient, manager: SessionManager, session: str, root: Path, wait_until: Wait
) -> None:
    upload_id = _choose(client, "a.mp4")
    wait_until(lambda: manager.uploads.get(session, upload_id).is_ready)
    for offset in ("0", "11"):
        headers = {
            "Tus-Resumable": "1.0.0", "Upload-Offset": offset, "Content-Type": "application/offset+octet-stream",
        }  # fmt: skip
        reply = client.patch(f"/studio/uploads/{upload_id}", content=b"x", headers=headers)
        assert reply.status_code == 404
    assert (root / "a.mp4").read_bytes() == b"pixels of a"


@pytest.mark.parametrize("chosen", ["../secret.mp4", "a.mp4", "/etc/passwd", "link.mp4", "0" * 32, "%2e%2e"])
def test_only_what_the_list_shows_can_be_chosen(client: TestClient, chosen: str) -> None:
    reply = client.post("/studio/folder", json={"file": chosen})
    assert (reply.status_code, "look at its list again" in reply.json()["error"]) == (400, True)


@pytest.mark.parametrize("name", ["tapes/1998/b ü.MKV", "a.mp4"])
def test_a_link_that_takes_the_place_of_a_listed_file_is_not_followed(root: Path, tmp_path: Path, name: str) -> None:
    folder = ServerFolder(root)
    (file,) = (file for file in folder.files() if file.path == name)
    other = tmp_path / "other"
    other.mkdir()
    target = other / Path(name).name
    os.rename(root / name, target)
    parent = (root / name).parent
    if parent == root:
        (root / name).symlink_to(target)
    else:
        parent.rmdir()
        parent.symlink_to(other)
    assert (root / name).read_bytes() == target.read_bytes()  # a careless look would find the very same file
    with pytest.raises(FolderError, match="has changed"), folder.open(file):
        pytest.fail("it was opened")
    with pytest.raises(FolderError, match="has changed"):
        folder.link(file, tmp_path / "taken.mp4")
    assert not (tmp_path / "taken.mp4").exists()


def test_a_file_that_changed_since_it_was_listed_is_not_taken(root: Path) -> None:
    folder = ServerFolder(root)
    file = folder.files()[0]
    (root / "a.mp4").write_bytes(b"other")
    with (
        pytest.raises(FolderError, match=r"a\.mp4 has changed in the server folder; choose it again"),
        folder.open(file),
    ):
        pytest.fail("it was opened")


def test_a_copy_that_a_restart_cut_short_goes_on(
    manager: SessionManager, engine: FakeEngine, session: str, root: Path, wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(ServerFolder, "link", refuse)
    folder = ServerFolder(root)
    file = folder.files()[0]
    uploads = manager.uploads
    upload = uploads.begin(session, "a.mp4", 0, origin="folder", address=file.id)
    uploads.describe(session, upload.id, "a.mp4", file.size, file.stamp)
    with uploads.writing(session, upload.id) as part:
        part.write(b"pixels")
    transfers = Transfers(uploads, folder)
    transfers.start()
    wait_until(lambda: uploads.get(session, upload.id).is_ready)
    transfers.close()
    assert (manager.storage.upload_folder(session, upload.id) / "a.mp4").read_bytes() == b"pixels of a"


def _choose(client: TestClient, path: str) -> str:
    """The id of the upload that choosing `path` in the list begins."""
    (file,) = (file for file in client.get("/studio/folder").json()["files"] if file["path"] == path)
    reply = client.post("/studio/folder", json={"file": file["id"]})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])
