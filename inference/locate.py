"""Finds weights that are already on this machine. Never touches the network, never reads a file's content.

The order: the folder of `engine.weights`, this program's own folder (where conversions go), the Hugging Face cache,
and for the embedded model the package's `models/weights`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import models
from inference.catalogue import WeightFile
from inference.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class LocatedFile:
    """A file of the catalogue and where it lies."""

    file: WeightFile
    path: Path


def hub_home() -> Path:
    """Folder of everything from Hugging Face: `HF_HOME`, else the place the hub's own library uses."""
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"


def hub_cache() -> Path:
    """Folder of downloaded repositories; `HF_HUB_CACHE` overrides it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(os.path.expandvars(cache)).expanduser()
    return hub_home() / "hub"


def own_folder() -> Path:
    """Folder of what this program derives from downloads: converted weights and remembered hashes."""
    return hub_home() / "seedvr"


def embedded_folder() -> Path:
    """Folder of the weights that ship with this program."""
    return Path(models.__path__[0]) / "weights"


def check_weights_folder(weights: str | Path | None) -> Path | None:
    """`engine.weights` as a folder, None if it is not set. Raises CheckpointError if it is not a folder."""
    if weights is None or str(weights) == "":
        return None
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"The weights folder {folder} does not exist; correct engine.weights or leave it empty.")
    return folder


def locate(files: Sequence[WeightFile], weights: Path | None = None) -> LocatedFile | None:
    """The first of `files` (best first) that is on this machine, looking in one place after the other."""
    searches: list[Callable[[WeightFile], Path | None]] = [
        partial(_in_folder, own_folder()),
        _in_hub_cache,
        _in_package,
    ]
    if weights is not None:
        searches.insert(0, partial(_in_folder, weights))
    for search in searches:
        for file in files:
            if path := search(file):
                return LocatedFile(file, path)
    return None


def _in_folder(folder: Path, file: WeightFile) -> Path | None:
    path = folder / file.name
    return path if path.is_file() else None


def _in_package(file: WeightFile) -> Path | None:
    return _in_folder(embedded_folder(), file) if file.repository is None else None


def repository_folder(repository: str) -> Path:
    """The hub cache's folder of a model repository."""
    return hub_cache() / f"models--{repository.replace('/', '--')}"


def _in_hub_cache(file: WeightFile) -> Path | None:
    """A cached copy in any snapshot; blobs are named after their SHA-256, so the wanted one can be told by name."""
    if file.repository is None:
        return None
    snapshots = _snapshots(file, repository_folder(file.repository))
    copies = [path for path in snapshots if path.resolve().name not in file.superseded]
    matching = (path for path in copies if path.resolve().name == file.sha256)
    return next(matching, copies[0] if copies else None)


def _snapshots(file: WeightFile, folder: Path) -> Iterator[Path]:
    """Copies of `file` in the snapshots of one repository, the one of its branch first."""
    ref = folder / "refs" / (file.revision or "main")
    current = ref.read_text().strip() if ref.is_file() else ""
    snapshots = sorted((folder / "snapshots").glob("*"), key=lambda snapshot: snapshot.name != current)
    return (snapshot / file.name for snapshot in snapshots if (snapshot / file.name).is_file())
