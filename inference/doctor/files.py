"""Checks of the weights that are on this machine, by name, size and what is remembered; no file is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from inference.catalogue import CATALOGUE, ModelEntry, WeightFile
from inference.doctor.faults import found
from inference.doctor.findings import Finding
from inference.doctor.machine import to_gib
from inference.errors import CheckpointError
from inference.locate import LocatedFile, check_weights_folder, hub_cache, locate, own_folder, repository_folder
from inference.verify import is_remembered


def check_weights(weights: str) -> Iterator[Finding]:
    """Each model: here, verified, partial, of the wrong size, or behind a link that leads nowhere."""
    try:
        folder = check_weights_folder(weights)
    except CheckpointError as error:
        yield found("weights.folder", reason=str(error).partition(";")[0])
        folder = None
    yield from _broken_links(folder)
    yield from _unfinished_downloads()
    wrong: set[Path] = set()
    for entry in CATALOGUE.values():
        located = [locate(files, folder) for files in entry.files.values()]
        here = [file for file in located if file is not None]
        damaged = [file for file in here if _has_wrong_size(file)]
        for file in damaged:
            if file.path not in wrong:
                wrong.add(file.path)
                expected, size = file.file.num_bytes, file.path.stat().st_size
                yield found("weights.wrong", file=file.path, size=f"{size:,}", expected=f"{expected:,}")
        if not damaged:
            yield _judge(entry, here)


def _judge(entry: ModelEntry, here: list[LocatedFile]) -> Finding:
    if len(here) < len(entry.files):
        if entry.is_embedded:
            return found("weights.embedded", reason="a file of it is missing")
        return found("weights.none", model=entry.name)
    is_verified = all(is_remembered(file.file, file.path) for file in here)
    return found("weights.ok" if is_verified else "weights.unverified", model=entry.name)


def _has_wrong_size(file: LocatedFile) -> bool:
    return file.file.num_bytes is not None and file.path.stat().st_size != file.file.num_bytes


def _known_files() -> list[WeightFile]:
    return [file for entry in CATALOGUE.values() for files in entry.files.values() for file in files]


def _broken_links(folder: Path | None) -> Iterator[Finding]:
    known = _known_files()
    names = {file.name for file in known}
    places = [place for place in (folder, own_folder()) if place is not None]
    repositories = {file.repository for file in known if file.repository is not None}
    for repository in sorted(repositories):
        places += sorted((repository_folder(repository) / "snapshots").glob("*"))
    for place in places:
        for name in sorted(names):
            path = place / name
            if path.is_symlink() and not path.exists():
                yield found("weights.link", file=path, target=os.readlink(path))


def _unfinished_downloads() -> Iterator[Finding]:
    repositories = {repository_folder(file.repository).name for file in _known_files() if file.repository is not None}
    sizes = {file.sha256: file for file in _known_files() if file.sha256 is not None}
    for part in sorted(hub_cache().glob("models--*/blobs/*.part")):
        if part.parent.parent.name not in repositories:
            continue
        file = sizes.get(part.name.removesuffix(".part"))
        name = part.name if file is None else file.name
        done = to_gib(part.stat().st_size)
        total = "" if file is None or file.num_bytes is None else f" of {to_gib(file.num_bytes)}"
        yield found("weights.partial", file=name, done=f"{done}{total}")
