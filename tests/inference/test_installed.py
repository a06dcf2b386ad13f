"""What is said of files in a hub cache and in the program's own folder, and what an import and a deletion change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from inference.catalogue import NANO, ModelEntry, Part, WeightFile, converted_name
from inference.errors import CheckpointError
from inference.installed import delete_model, import_folder, survey, verify_model
from inference.locate import own_folder, repository_folder
from tests.inference.fake_hub import COMMIT

CONTENT = {"a.pth": b"a" * 1000, "b.pth": b"b" * 900, "vae.pth": b"v" * 500}


def weight(name: str) -> tuple[WeightFile, ...]:
    content = CONTENT[name]
    original = WeightFile(
        name=name, repository="acme/one", revision="main", num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    return WeightFile(name=converted_name(name, "bf16")), original


def entry(name: str, file: str) -> ModelEntry:
    files = {Part.DIT: weight(file), Part.VAE: weight("vae.pth")}
    return ModelEntry(name=name, title=name, num_parameters=1, files=files, latent_scale=1.0, default_fidelity=0.0)


CATALOGUE = {"one": entry("one", "a.pth"), "two": entry("two", "b.pth"), "nano": NANO}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "hf"


def cached(name: str, content: bytes | None = None) -> Path:
    """A file as the hub's library leaves it: a blob and a link to it. The path of the link."""
    repository = repository_folder("acme/one")
    blob = repository / "blobs" / str(weight(name)[1].sha256)
    link = repository / "snapshots" / COMMIT / name
    for folder in (blob.parent, link.parent):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(CONTENT[name] if content is None else content)
    link.symlink_to(f"../../blobs/{blob.name}")
    return link


def problems() -> list[str]:
    return [problem.sentence for problem in survey(None, CATALOGUE).problems]


def test_nothing_is_here_at_first_but_the_embedded_model() -> None:
    found = survey(None, CATALOGUE)
    assert [model.is_ready for model in found.models] == [False, False, True]
    assert [model.missing_bytes for model in found.models] == [1500, 1400, 0]
    assert found.problems == ()
    assert found.free_bytes > 0


def test_a_file_counts_as_verified_once_it_was_read() -> None:
    cached("a.pth")
    before = survey(None, CATALOGUE).models[0].files
    assert [file.is_verified for file in before] == [False]
    assert verify_model(CATALOGUE["one"]) == 1
    assert [file.is_verified for file in survey(None, CATALOGUE).models[0].files] == [True]


def test_verifying_reads_the_file_again_though_it_was_verified() -> None:
    link = cached("a.pth")
    verify_model(CATALOGUE["one"])
    stat = link.stat()
    link.resolve().write_bytes(b"x" * 1000)
    os.utime(link.resolve(), ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time are the same
    with pytest.raises(CheckpointError, match="is damaged or another file"):
        verify_model(CATALOGUE["one"])


def test_a_link_to_nothing_is_explained() -> None:
    link = cached("a.pth")
    link.resolve().unlink()
    (sentence,) = problems()
    assert str(link) in sentence
    assert sentence.endswith("which is not there; download the model again to mend it.")


def test_a_stopped_download_is_explained_and_counted() -> None:
    part = cached("a.pth").resolve()
    part.rename(part.with_name(f"{part.name}.part"))
    part.with_name(f"{part.name}.part").write_bytes(b"a" * 400)
    found = survey(None, CATALOGUE).models[0]
    assert (found.partial_bytes, found.missing_bytes) == (400, 1100)
    assert any("The download of a.pth has stopped at 0.0 MB of 0.0 MB" in sentence for sentence in problems())


def test_a_file_that_is_too_short_is_explained_and_a_download_that_was_refused_too() -> None:
    link = cached("a.pth", b"a" * 10)
    refused = link.resolve().with_name(f"{weight('a.pth')[1].sha256}.rejected")
    refused.write_bytes(b"")
    found = problems()
    assert any("has 10 bytes, but a.pth must have 1,000; it is incomplete" in sentence for sentence in found)
    assert any("had the wrong hash and was set aside" in sentence for sentence in found)


def test_the_vae_is_there_once_for_both_models_and_a_second_copy_is_noticed() -> None:
    for name in CONTENT:
        cached(name)
    found = survey(None, CATALOGUE)
    vaes = [file for model in found.models[:2] for file in model.files if file.part is Part.VAE]
    assert vaes[0].path == vaes[1].path
    assert [file.used_by for file in vaes] == [("two",), ("one",)]
    assert found.problems == ()
    own_folder().mkdir(parents=True)
    (own_folder() / "vae.pth").write_bytes(CONTENT["vae.pth"])
    assert [sentence.partition(",")[0] for sentence in problems()] == ["vae.pth is here more than once"]


def test_deleting_keeps_what_another_model_needs() -> None:
    links = {name: cached(name) for name in CONTENT}
    blobs = {name: link.resolve() for name, link in links.items()}
    assert delete_model(CATALOGUE["one"], CATALOGUE) == 1000
    assert {name for name, blob in blobs.items() if blob.exists()} == {"b.pth", "vae.pth"}
    assert not links["a.pth"].is_symlink()
    assert delete_model(CATALOGUE["two"], CATALOGUE) == 1400
    assert not any(blob.exists() for blob in blobs.values())
    with pytest.raises(CheckpointError, match="nothing was deleted"):
        delete_model(CATALOGUE["two"], CATALOGUE)
    with pytest.raises(CheckpointError, match="is a part of this program"):
        delete_model(NANO, CATALOGUE)


def test_deleting_takes_what_is_unfinished_along_but_never_a_file_outside(tmp_path: Path) -> None:
    link = cached("a.pth")
    part = link.resolve().with_name(f"{weight('b.pth')[1].sha256}.part")
    part.write_bytes(b"b")
    outside = tmp_path / "mine.pth"
    outside.write_bytes(CONTENT["a.pth"])
    link.unlink()
    link.symlink_to(outside)  # somebody saved space by hand
    delete_model(CATALOGUE["one"], CATALOGUE)
    delete_model(CATALOGUE["two"], CATALOGUE)
    assert outside.exists()
    assert not part.exists()
    assert not link.is_symlink()


def test_originals_can_go_when_their_copies_are_there() -> None:
    original = cached("a.pth").resolve()
    with pytest.raises(CheckpointError, match="nothing was deleted"):
        delete_model(CATALOGUE["one"], CATALOGUE, only_originals=True)
    own_folder().mkdir(parents=True)
    copy = own_folder() / converted_name("a.pth", "bf16")
    copy.write_bytes(b"half")
    assert survey(None, CATALOGUE).models[0].original_bytes == 1000
    assert delete_model(CATALOGUE["one"], CATALOGUE, only_originals=True) == 1000
    assert copy.exists()
    assert not original.exists()


def test_an_import_links_verified_files_and_leaves_the_originals(tmp_path: Path) -> None:
    folder = tmp_path / "bought" / "deep"
    folder.mkdir(parents=True)
    for name in ("a.pth", "vae.pth"):
        (folder / name).write_bytes(CONTENT[name])
    (folder / "readme.txt").write_text("x")
    told: list[tuple[int, int]] = []
    new = import_folder(tmp_path / "bought", CATALOGUE, lambda *step: told.append(step))
    assert [path.name for path in new] == ["a.pth", "vae.pth"]
    assert new[0].stat().st_ino == (folder / "a.pth").stat().st_ino
    assert told[-1] == (1500, 1500)
    assert import_folder(tmp_path / "bought", CATALOGUE) == []
    assert survey(None, CATALOGUE).models[0].is_ready
    delete_model(CATALOGUE["one"], CATALOGUE)
    assert (folder / "a.pth").read_bytes() == CONTENT["a.pth"]


def test_an_import_takes_nothing_but_the_right_files(tmp_path: Path) -> None:
    folder = tmp_path / "bought"
    with pytest.raises(CheckpointError, match="There is no folder"):
        import_folder(folder, CATALOGUE)
    folder.mkdir()
    with pytest.raises(CheckpointError, match="has no model file of a known name"):
        import_folder(folder, CATALOGUE)
    (folder / "a.pth").write_bytes(b"y" * 1000)
    with pytest.raises(CheckpointError, match="is damaged or another file"):
        import_folder(folder, CATALOGUE)
    assert not (own_folder() / "a.pth").exists()
