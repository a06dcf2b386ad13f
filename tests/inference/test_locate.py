"""Finding weights that are already here."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.catalogue import NANO, SEEDVR2_3B, SEEDVR2_7B, Part, WeightFile
from inference.errors import CheckpointError
from inference.locate import check_weights_folder, embedded_folder, hub_cache, locate, own_folder

RELEASED, MIRROR = [file for file in SEEDVR2_3B.files[Part.DIT] if file.repository is not None]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `HF_HOME`."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "hf"


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def _cache(file: WeightFile, commit: str, digest: str, is_current: bool = False) -> Path:
    """Puts a file into the hub's cache the way the hub's library does."""
    folder = hub_cache() / f"models--{str(file.repository).replace('/', '--')}"
    blob = _touch(folder / "blobs" / digest)
    link = folder / "snapshots" / commit / file.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(blob)
    if is_current:
        _touch(folder / "refs/main").write_text(commit)
    return link


def test_nothing_here_is_nothing_found() -> None:
    assert locate(SEEDVR2_3B.files[Part.DIT]) is None


@pytest.mark.parametrize(
    "name",
    [
        "seedvr2_ema_3b.pth",
        "seedvr2_ema_3b_fp16.safetensors",
        "seedvr2_ema_3b.bf16.safetensors",
        "seedvr2_ema_3b.fp16.safetensors",
    ],
)
def test_each_kind_of_file_is_found_in_the_weights_folder(name: str, tmp_path: Path) -> None:
    path = _touch(tmp_path / name)
    found = locate(SEEDVR2_3B.files[Part.DIT], tmp_path)
    assert found is not None
    assert (found.path, found.file.name) == (path, name)


def test_a_converted_file_is_taken_before_the_original(tmp_path: Path) -> None:
    _touch(tmp_path / "seedvr2_ema_3b.pth")
    converted = _touch(tmp_path / "seedvr2_ema_3b.bf16.safetensors")
    found = locate(SEEDVR2_3B.files[Part.DIT], tmp_path)
    assert found is not None
    assert found.path == converted


def test_the_released_file_is_taken_before_the_mirror(tmp_path: Path) -> None:
    _touch(tmp_path / MIRROR.name)
    released = _touch(tmp_path / RELEASED.name)
    found = locate(SEEDVR2_3B.files[Part.DIT], tmp_path)
    assert found is not None
    assert found.path == released


def test_the_weights_folder_is_taken_before_the_cache(tmp_path: Path) -> None:
    _cache(RELEASED, "a" * 40, str(RELEASED.sha256), is_current=True)
    mine = _touch(tmp_path / "mine" / MIRROR.name)
    found = locate(SEEDVR2_3B.files[Part.DIT], mine.parent)
    assert found is not None
    assert found.path == mine


def test_a_conversion_is_taken_before_the_cached_original() -> None:
    _cache(RELEASED, "a" * 40, str(RELEASED.sha256), is_current=True)
    converted = _touch(own_folder() / "seedvr2_ema_3b.bf16.safetensors")
    found = locate(SEEDVR2_3B.files[Part.DIT])
    assert found is not None
    assert found.path == converted


def test_a_cached_copy_without_a_branch_reference_is_found() -> None:
    link = _cache(RELEASED, "b" * 40, str(RELEASED.sha256))
    found = locate(SEEDVR2_3B.files[Part.DIT])
    assert found is not None
    assert found.path == link


def test_of_several_cached_uploads_the_pinned_one_is_found() -> None:
    _cache(RELEASED, "a" * 40, "0" * 64, is_current=True)
    pinned = _cache(RELEASED, "b" * 40, str(RELEASED.sha256))
    found = locate(SEEDVR2_3B.files[Part.DIT])
    assert found is not None
    assert found.path == pinned


def test_a_cached_first_upload_of_3b_does_not_count() -> None:
    _cache(RELEASED, "a" * 40, RELEASED.superseded[0], is_current=True)
    assert locate(SEEDVR2_3B.files[Part.DIT]) is None


def test_the_vae_of_the_other_repository_serves_too() -> None:
    file = next(file for file in SEEDVR2_3B.files[Part.VAE] if file.repository == "ByteDance-Seed/SeedVR2-7B")
    link = _cache(file, "c" * 40, str(file.sha256), is_current=True)
    found = locate(SEEDVR2_7B.files[Part.VAE])
    assert found is not None
    assert found.path == link


def test_the_cache_may_lie_outside_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "volume"))
    link = _cache(RELEASED, "a" * 40, str(RELEASED.sha256), is_current=True)
    assert tmp_path / "volume" in link.parents
    assert locate(SEEDVR2_3B.files[Part.DIT]) is not None


def test_without_hf_home_the_hubs_default_place_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub_cache() == tmp_path / "huggingface/hub"


def test_embedded_weights_lie_beside_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded_folder().parts[-2:] == ("models", "weights")
    monkeypatch.setattr("inference.locate.embedded_folder", lambda: tmp_path)
    path = _touch(tmp_path / "nano_dit.safetensors")
    found = locate(NANO.files[Part.DIT])
    assert found is not None
    assert found.path == path


def test_an_unset_weights_folder_is_none() -> None:
    assert check_weights_folder("") is None


def test_a_file_is_no_weights_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; correct engine\.weights"):
        check_weights_folder(_touch(tmp_path / "dit.pth"))
