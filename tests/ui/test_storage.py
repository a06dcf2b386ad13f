"""Folders, names, and what is deleted when."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from inference.errors import RestoreError
from seedvr_ui.storage import Storage, is_id, new_id, safe_name


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("holiday 1998.mp4", "holiday 1998.mp4"),
        ("../../etc/passwd", "passwd"),
        ("C:\\films\\a.mov", "a.mov"),
        ("a\x00b\n.mp4", "a_b_.mp4"),
        ("...", "upload"),
        ("..hidden.mp4", "hidden.mp4"),
        ("", "upload"),
        ('x<>:"|?*y.mkv', "x_______y.mkv"),
        ("Ünïcode 映画.mp4", "Ünïcode 映画.mp4"),
    ],
)
def test_a_name_becomes_safe_and_stays_recognisable(given: str, kept: str) -> None:
    assert safe_name(given) == kept


def test_a_long_name_is_cut_but_keeps_its_suffix() -> None:
    name = safe_name("映" * 300 + ".mp4")
    assert name.endswith(".mp4")
    assert len(name.encode()) <= 160


def test_ids_are_recognised_and_nothing_else_is() -> None:
    assert is_id(new_id())
    assert not any(is_id(text) for text in ("", "..", new_id() + "/", new_id().upper() + "g", "a" * 31))


def test_a_path_is_never_made_from_something_that_is_no_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an id"):
        Storage(tmp_path).job_folder(new_id(), "../../x")


def test_only_folders_of_this_storage_can_be_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        Storage(tmp_path / "data").remove(tmp_path)
    assert tmp_path.is_dir()


def test_rested_folders_are_deleted_and_fresh_or_kept_ones_stay(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    old, fresh, kept = (storage.job_folder(new_id(), new_id()) for _ in range(3))
    for folder in (old, fresh, kept):
        folder.mkdir(parents=True)
        (folder / "source.mp4").touch()
    long_ago = time.time() - 1000
    for folder in (old, kept):
        for path in (folder / "source.mp4", folder):
            os.utime(path, (long_ago, long_ago))
    assert storage.remove_older_than(500, keep={kept}) == [old]
    assert (old.exists(), fresh.exists(), kept.exists()) == (False, True, True)


def test_too_little_space_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RestoreError, match="free and this needs"):
        Storage(tmp_path).require_space(10**18)
