"""Whether a file is the one that was meant."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from inference.catalogue import WeightFile
from inference.errors import CancelledError, CheckpointError
from inference.locate import own_folder
from inference.verify import remember_sha256, sha256_of, verify

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = WeightFile(name="dit.pth", num_bytes=len(CONTENT), sha256=DIGEST)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good file."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    path = tmp_path / "dit.pth"
    path.write_bytes(CONTENT)
    return path


def _count_reads(path: Path) -> int:
    """How often hashing reported progress; 0 if the file was not read."""
    reads: list[int] = []
    sha256_of(path, lambda done, _total: reads.append(done))
    return len(reads)


def test_the_right_file_is_accepted(path: Path) -> None:
    assert verify(FILE, path) == DIGEST


def test_a_file_of_another_size_is_refused_with_both_sizes(path: Path) -> None:
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match=r"has 6,999 bytes, but dit\.pth must have 7,000"):
        verify(FILE, path)


def test_a_file_with_a_changed_byte_is_refused_with_both_hashes_and_kept(path: Path) -> None:
    changed = b"W" + CONTENT[1:]
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=f"{hashlib.sha256(changed).hexdigest()}, expected {DIGEST}"):
        verify(FILE, path)
    assert path.read_bytes() == changed


def test_an_earlier_upload_is_named_as_such(path: Path) -> None:
    with pytest.raises(CheckpointError, match="is an earlier upload"):
        verify(replace(FILE, sha256="0" * 64, superseded=(DIGEST,)), path)


def test_a_file_with_unknown_hash_is_not_read(path: Path) -> None:
    path.chmod(0)
    assert verify(WeightFile(name="dit.pth"), path) is None


def test_a_missing_file_is_a_sentence(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file or directory\)"):
        verify(FILE, path.with_name("none.pth"))


def test_a_hash_is_remembered(path: Path) -> None:
    sha256_of(path)
    assert _count_reads(path) == 0


def test_a_change_of_the_same_size_is_noticed(path: Path) -> None:
    sha256_of(path)
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(1, 1))
    assert sha256_of(path) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_a_renamed_file_can_keep_its_hash(path: Path) -> None:
    remember_sha256(path, DIGEST)
    assert _count_reads(path) == 0


@pytest.mark.parametrize("record", ["", "[]", "{", '{"x": 1}'])
def test_a_damaged_record_is_replaced(path: Path, record: str) -> None:
    own_folder().mkdir(parents=True)
    (own_folder() / "verified.json").write_text(record)
    assert sha256_of(path) == DIGEST
    assert _count_reads(path) == 0


def test_a_record_that_cannot_be_written_is_done_without(path: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("a file where the folder should be")
    assert sha256_of(path) == DIGEST


def test_hashing_can_be_cancelled(path: Path) -> None:
    def cancel(_done: int, _total: int) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        verify(FILE, path, cancel)
