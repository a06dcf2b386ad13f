"""Files that arrive in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import MediaError, RestoreError
from seedvr_ui import uploads as module
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import new_id
from seedvr_ui.uploads import OffsetError, UnknownUploadError, Upload, UploadLockedError, Uploads
from tests.ui.conftest import FakeEngine


def _send(uploads: Uploads, session: str, name: str, *pieces: bytes) -> Upload:
    upload = uploads.begin(session, name, sum(map(len, pieces)), "f")
    for piece in pieces:
        upload = uploads.append(session, upload.id, upload.received, piece)
    return upload


def test_pieces_become_the_file_again(manager: SessionManager, session: str, tmp_path: Path) -> None:
    upload = _send(manager.uploads, session, "a.mp4", b"abc", b"defg", b"h")
    assert upload.is_ready
    _, path = manager.uploads.take(session, upload.id, tmp_path / "job")
    assert (path.name, path.read_bytes()) == ("a.mp4", b"abcdefgh")


def test_a_piece_at_the_wrong_place_is_refused_with_the_right_one(manager: SessionManager, session: str) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    manager.uploads.append(session, upload.id, 0, b"abc")
    with pytest.raises(OffsetError) as caught:
        manager.uploads.append(session, upload.id, 0, b"abc")
    assert caught.value.received == 3


def test_a_piece_beyond_the_announced_size_is_refused(manager: SessionManager, session: str) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 4, "f")
    with pytest.raises(OffsetError):
        manager.uploads.append(session, upload.id, 0, b"abcde")
    assert manager.uploads.get(session, upload.id).received == 0


def test_an_upload_goes_on_after_a_restart_where_the_file_on_disk_ends(
    manager: SessionManager, engine: FakeEngine, session: str, tmp_path: Path
) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    manager.uploads.append(session, upload.id, 0, b"abc")
    with (manager.storage.upload_folder(session, upload.id) / "content.part").open("ab") as part:
        part.write(b"de")  # written when the process was killed, and told to nobody
    again = Uploads(manager.storage, engine.check, 10**6)
    assert again.get(session, upload.id).received == 5
    assert again.append(session, upload.id, 5, b"fghij").is_ready
    assert again.take(session, upload.id, tmp_path / "job")[1].read_bytes() == b"abcdefghij"


def test_a_check_that_a_crash_cut_short_is_made_again(
    manager: SessionManager, engine: FakeEngine, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    upload = manager.uploads.begin(session, "a.mp4", 3, "f")
    with monkeypatch.context() as patch:
        patch.setattr(manager.uploads, "_check", crash)
        with pytest.raises(KeyboardInterrupt):
            manager.uploads.append(session, upload.id, 0, b"abc")
    again = Uploads(manager.storage, engine.check, 10**6)
    assert [(owner, found.id) for owner, found in again.unsettled()] == [(session, upload.id)]
    assert again.finish(session, upload.id).is_ready
    assert again.unsettled() == []


def test_only_one_may_write_to_an_upload(manager: SessionManager, session: str) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    with manager.uploads.writing(session, upload.id):
        with pytest.raises(UploadLockedError):
            manager.uploads.append(session, upload.id, 0, b"abc")
        with pytest.raises(UploadLockedError):
            manager.uploads.take(session, upload.id, Path("nowhere"))
    manager.uploads.append(session, upload.id, 0, b"abc")


def test_a_bad_file_gets_its_sentence_and_its_bytes_are_deleted(manager: SessionManager, session: str) -> None:
    upload = _send(manager.uploads, session, "a.mp4", b"bad bytes")
    assert upload.error == "'a.mp4' is not a video; choose another file."
    assert not (manager.storage.upload_folder(session, upload.id) / "a.mp4").exists()


def test_an_empty_file_is_whole_at_once(manager: SessionManager, session: str) -> None:
    assert manager.uploads.begin(session, "a.mp4", 0, "f").is_whole


def test_a_file_over_the_limit_is_refused_before_it_is_sent(manager: SessionManager, session: str) -> None:
    with pytest.raises(RestoreError, match="limit"):
        manager.uploads.begin(session, "a.mp4", 10**6 + 1, "f")


def test_empty_uploads_without_end_are_refused(
    manager: SessionManager, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    for _ in range(2):
        manager.uploads.begin(session, "a.mp4", 0)
    with pytest.raises(RestoreError, match="2 files wait to be started; start or remove some"):
        manager.uploads.begin(session, "a.mp4", 0)
    manager.uploads.begin(new_id(), "a.mp4", 0)


def test_an_unfinished_upload_cannot_be_started(manager: SessionManager, session: str, tmp_path: Path) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    with pytest.raises(RestoreError, match="not arrived completely"):
        manager.uploads.take(session, upload.id, tmp_path / "job")


def test_another_session_cannot_touch_an_upload(manager: SessionManager, session: str) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    with pytest.raises(UnknownUploadError):
        manager.uploads.append(new_id(), upload.id, 0, b"abc")


def test_a_discarded_upload_is_gone_and_its_writer_hears_so(manager: SessionManager, session: str) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    with manager.uploads.writing(session, upload.id) as part:
        part.write(b"abc")
        manager.uploads.discard(session, upload.id)
        with pytest.raises(UnknownUploadError):
            part.write(b"def")
    assert manager.uploads.of_session(session) == []


def test_a_record_of_an_earlier_version_is_still_read(manager: SessionManager, session: str) -> None:
    folder = manager.storage.upload_folder(session, upload_id := new_id())
    folder.mkdir(parents=True)
    (folder / "content.part").write_bytes(b"abc")
    (folder / "upload.json").write_text(
        f'{{"id": "{upload_id}", "name": "a.mp4", "size": 5, "fingerprint": "f", "begun_at": 1.0, "received": 0,'
        ' "media": null, "error": ""}'
    )
    assert manager.uploads.append(session, upload_id, 3, b"de").is_ready


def test_a_bad_file_that_is_gone_before_it_is_deleted_is_still_only_bad(
    manager: SessionManager, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sent it may have read the verdict and discarded it."""

    def check(source: Path, thumbnail: Path) -> dict[str, object]:
        source.unlink()
        raise MediaError("no video")

    monkeypatch.setattr(manager.uploads, "_check", check)
    assert _send(manager.uploads, session, "a.mp4", b"bad").error == "no video"
