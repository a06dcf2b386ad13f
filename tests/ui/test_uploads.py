"""Files that arrive in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import RestoreError
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import new_id
from seedvr_ui.uploads import OffsetError, UnknownUploadError, Upload, Uploads
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


def test_the_same_file_continues_where_it_stopped_even_after_a_restart(
    manager: SessionManager, engine: FakeEngine, session: str
) -> None:
    first = manager.uploads.begin(session, "a.mp4", 10, "f")
    manager.uploads.append(session, first.id, 0, b"abc")
    again = Uploads(manager.storage, engine.check, 10**6).begin(session, "a.mp4", 10, "f")
    assert (again.id, again.received) == (first.id, 3)


def test_another_file_of_the_same_name_starts_anew(manager: SessionManager, session: str) -> None:
    first = manager.uploads.begin(session, "a.mp4", 10, "monday")
    assert manager.uploads.begin(session, "a.mp4", 10, "tuesday").id != first.id


def test_a_bad_file_gets_its_sentence_and_its_bytes_are_deleted(manager: SessionManager, session: str) -> None:
    upload = _send(manager.uploads, session, "a.mp4", b"bad bytes")
    assert upload.error == "'a.mp4' is not a video; choose another file."
    assert not (manager.storage.upload_folder(session, upload.id) / "a.mp4").exists()


def test_an_empty_file_is_checked_at_once(manager: SessionManager, session: str) -> None:
    assert manager.uploads.begin(session, "a.mp4", 0, "f").is_ready


def test_a_file_over_the_limit_is_refused_before_it_is_sent(manager: SessionManager, session: str) -> None:
    with pytest.raises(RestoreError, match="limit"):
        manager.uploads.begin(session, "a.mp4", 10**6 + 1, "f")


def test_an_unfinished_upload_cannot_be_started(manager: SessionManager, session: str, tmp_path: Path) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    with pytest.raises(RestoreError, match="not arrived completely"):
        manager.uploads.take(session, upload.id, tmp_path / "job")


def test_another_session_cannot_touch_an_upload(manager: SessionManager, session: str) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    with pytest.raises(UnknownUploadError):
        manager.uploads.append(new_id(), upload.id, 0, b"abc")


def test_a_discarded_upload_is_gone(manager: SessionManager, session: str) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 10, "f")
    manager.uploads.discard(session, upload.id)
    assert manager.uploads.of_session(session) == []
