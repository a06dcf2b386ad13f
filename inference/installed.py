"""Which weights are on this machine, what is wrong with them, and how they come and go. Without torch.

Looking never reads a file's content: a hash counts as verified if the record of `inference.verify` has it. Changed and
deleted are only files of this program's own folder and of the hub's cache; a folder that the user named in
`engine.weights` is theirs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from inference.catalogue import CATALOGUE, ModelEntry, Part, WeightFile
from inference.download import gigabytes
from inference.errors import CheckpointError
from inference.locate import check_weights_folder, hub_cache, locate, own_folder, repository_folder
from inference.verify import ReportBytes, forget_sha256, known_sha256, verify

_ORIGINAL = ".pth"
_HALF = (".bf16.safetensors", ".fp16.safetensors")
_BLOCK_BYTES = 8 * 2**20


class Task(StrEnum):
    """What can be done to models that takes long; see `inference.model_task`."""

    DOWNLOAD = "download"
    VERIFY = "verify"
    CONVERT = "convert"
    IMPORT = "import"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """A file of a model that is here. `is_verified` is None where no hash is known to compare with.

    `used_by` are the other models on this machine that need the same file.
    """

    part: Part
    name: str
    path: Path
    num_bytes: int
    is_verified: bool | None
    used_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What is here of one model.

    missing: parts that have to be downloaded; missing_bytes of them are still to come, partial_bytes have come.
    convert_saves_bytes: what a half-precision copy takes less than the float32 files it replaces; 0 if there are none.
    original_bytes: float32 files beside their half-precision copy, which may be deleted.
    """

    name: str
    title: str
    is_embedded: bool
    files: tuple[FileState, ...]
    missing: tuple[Part, ...]
    missing_bytes: int
    partial_bytes: int
    convert_saves_bytes: int
    original_bytes: int

    @property
    def is_ready(self) -> bool:
        """Whether it can be used without a download."""
        return not self.missing

    @property
    def is_present(self) -> bool:
        """Whether its transformer, the file that no other model has, is here."""
        return Part.DIT not in self.missing

    @property
    def num_bytes(self) -> int:
        """Bytes of its files, shared ones included."""
        return sum(file.num_bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A file that is not what its name says; `sentence` explains it, with the next step."""

    path: Path
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All models, what is wrong, and the free bytes of the disk that downloads go to."""

    models: tuple[ModelState, ...]
    problems: tuple[Problem, ...]
    free_bytes: int


def survey(weights: str | Path | None = None, catalogue: Mapping[str, ModelEntry] = CATALOGUE) -> Survey:
    """What there is now. `weights`: the folder of `engine.weights`. Raises CheckpointError if it is no folder."""
    folder = check_weights_folder(weights)
    present = [entry for entry in catalogue.values() if locate(entry.files[Part.DIT], folder)]
    models = tuple(_model_state(entry, folder, present) for entry in catalogue.values())
    return Survey(models=models, problems=tuple(_problems(catalogue, folder)), free_bytes=free_bytes())


def free_bytes() -> int:
    """Room on the disk of the hub's cache, which need not exist yet."""
    folder = hub_cache()
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def verify_model(entry: ModelEntry, weights: str | Path | None = None, report_bytes: ReportBytes | None = None) -> int:
    """Hashes all files of a model that are here anew; returns how many. Raises CheckpointError for a wrong one."""
    folder = check_weights_folder(weights)
    found = [located for files in entry.files.values() if (located := locate(files, folder)) is not None]
    if not found:
        raise CheckpointError(f"There is nothing to verify: no file of {entry.name} is on this machine; download it.")
    total, before = sum(located.path.stat().st_size for located in found), 0
    for located in found:
        forget_sha256(located.path)
        verify(located.file, located.path, _shifted(report_bytes, before, total))
        before += located.path.stat().st_size
    return len(found)


def import_folder(
    source: str | Path, catalogue: Mapping[str, ModelEntry] = CATALOGUE, report_bytes: ReportBytes | None = None
) -> list[Path]:
    """Takes the model files of a folder, and of those below it, into this program's own folder, verified.

    They are linked where the file system can, else copied; the originals stay. Returns what is new. Raises
    CheckpointError if there is none, one is not the file that its name says, or the disk is full.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder} on this server; check its path.")
    wanted = {file.name: file for entry in catalogue.values() for files in entry.files.values() for file in files}
    try:
        names = [path for path in sorted(folder.rglob("*")) if path.name in wanted and path.is_file()]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error
    found = {path.name: path for path in names if path.parent != own_folder()}
    if not found:
        known = ", ".join(sorted(name for name, file in wanted.items() if file.repository)[:4])
        raise CheckpointError(f"{folder} has no model file of a known name ({known}, ...); choose another folder.")
    new = []
    total, before = sum(path.stat().st_size for path in found.values()), 0
    for name, path in found.items():
        verify(wanted[name], path, _shifted(report_bytes, before, total))
        before += path.stat().st_size
        target = own_folder() / name
        if not target.exists():
            _take(path.resolve(), target)
            new.append(target)
    return new


def delete_model(
    entry: ModelEntry, catalogue: Mapping[str, ModelEntry] = CATALOGUE, *, only_originals: bool = False
) -> int:
    """Deletes the files of a model that no other model on this machine needs, unfinished ones too; returns the bytes.

    only_originals: only float32 files that have a half-precision copy. Raises CheckpointError if there is nothing.
    """
    if entry.is_embedded:
        raise CheckpointError(f"{entry.name} is a part of this program and stays.")
    others = [one for one in catalogue.values() if one.name != entry.name and locate(one.files[Part.DIT])]
    needed = {file for one in others for files in one.files.values() for file in files}
    doomed: set[Path] = set()
    for files in entry.files.values():
        if only_originals:
            originals = _replaced(files, None)
            doomed |= {path for path in originals if _is_ours(path)}
        else:
            doomed |= {path for file in files if file not in needed for path in _copies(file)}
    blobs = {path.resolve() for path in doomed if path.is_symlink() and path.exists()}
    freed = 0
    for path in sorted(doomed | {blob for blob in blobs if _is_ours(blob)}):
        freed += path.lstat().st_size if not path.is_symlink() else 0
        path.unlink(missing_ok=True)
    if not doomed:
        raise CheckpointError(f"Nothing of {entry.name} is in the folders of this program, so nothing was deleted.")
    return freed


def _model_state(entry: ModelEntry, folder: Path | None, present: list[ModelEntry]) -> ModelState:
    located = {part: locate(files, folder) for part, files in entry.files.items()}
    others = [one for one in present if one.name != entry.name]
    files = []
    for part, found in located.items():
        if found is not None:
            shared = tuple(one.name for one in others if one.files.get(part) == entry.files[part])
            known = known_sha256(found.path)
            is_verified = None if found.file.sha256 is None else known == found.file.sha256
            size = found.path.stat().st_size
            files.append(
                FileState(
                    part=part, name=found.file.name, path=found.path, num_bytes=size, is_verified=is_verified,
                    used_by=shared,
                )
            )  # fmt: skip
    missing = [part for part, found in located.items() if found is None]
    remote = [next((file for file in entry.files[part] if file.repository), None) for part in missing]
    parts = [path for file in remote if file is not None and (path := part_file(file)) is not None and path.is_file()]
    partial = sum(path.stat().st_size for path in parts)
    originals = [path for candidates in entry.files.values() for path in _replaced(candidates, folder)]
    to_convert = [file.num_bytes for file in files if file.name.endswith(_ORIGINAL)]
    return ModelState(
        name=entry.name,
        title=entry.title,
        is_embedded=entry.is_embedded,
        files=tuple(files),
        missing=tuple(missing),
        missing_bytes=max(0, sum(file.num_bytes or 0 for file in remote if file is not None) - partial),
        partial_bytes=partial,
        convert_saves_bytes=sum(num_bytes // 2 for num_bytes in to_convert),
        original_bytes=sum(path.stat().st_size for path in originals),
    )


def part_file(file: WeightFile) -> Path | None:
    """Where a download of `file` grows; None if the hub does not have it, or its hash is not known."""
    if file.repository is None or file.sha256 is None:
        return None
    return repository_folder(file.repository) / "blobs" / f"{file.sha256}.part"


def _replaced(files: tuple[WeightFile, ...], folder: Path | None) -> list[Path]:
    """The float32 files that are here beside a half-precision copy of them."""
    halves = [file for file in files if file.name.endswith(_HALF)]
    originals = [file for file in files if file.name.endswith(_ORIGINAL)]
    if not halves or locate(halves, folder) is None:
        return []
    found = locate(originals, folder)
    return [] if found is None else [found.path]


def _copies(file: WeightFile) -> Iterator[Path]:
    """All that is here under the name of `file` in our folders, unfinished and refused downloads too."""
    places = [own_folder()]
    if file.repository is not None:
        repository = repository_folder(file.repository)
        places += (repository / "snapshots").glob("*")
        blobs = repository / "blobs"
        if file.sha256 is not None:
            candidates = [blobs / f"{file.sha256}{suffix}" for suffix in ("", ".part", ".rejected")]
            yield from (path for path in candidates if path.is_file())
    for place in places:
        for path in (place / file.name, place / f"{file.name}.part"):
            if path.is_file() or path.is_symlink():
                yield path


def _is_ours(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in (own_folder(), hub_cache().resolve(), hub_cache()))


def _problems(catalogue: Mapping[str, ModelEntry], folder: Path | None) -> Iterator[Problem]:
    files = {file for entry in catalogue.values() for files in entry.files.values() for file in files}
    seen: set[Path] = set()
    for file in sorted(files, key=lambda file: (file.name, file.repository or "")):
        for path in [*_copies(file), *([folder / file.name] if folder is not None else [])]:
            if path not in seen and (sentence := _what_is_wrong(file, path)):
                seen.add(path)
                yield Problem(path=path, sentence=sentence)
    whole = {file.name: [path for path in _copies(file) if path.name == file.name and path.is_file()] for file in files}
    for name, paths in sorted(whole.items()):
        distinct = {path.stat().st_ino: path for path in paths}
        if len(distinct) > 1:
            where = " and ".join(str(path.parent) for path in distinct.values())
            yield Problem(path=paths[-1], sentence=f"{name} is here more than once, in {where}; one copy is enough.")


def _what_is_wrong(file: WeightFile, path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {os.readlink(path)}, which is not there; download the model again to mend it."
    if not path.is_file():
        return ""
    size = path.stat().st_size
    if path.suffix == ".part":
        if path.name == f"{file.name}.part":
            return f"{path} is left of a conversion that was not finished; convert again, or delete the model."
        of = f" of {gigabytes(file.num_bytes)}" if file.num_bytes else ""
        return f"The download of {file.name} has stopped at {gigabytes(size)}{of}; download again to go on from there."
    if path.suffix == ".rejected":
        return f"A download of {file.name} had the wrong hash and was set aside as {path}; it may be deleted."
    if file.num_bytes not in (None, size) and path.name in (file.name, file.sha256):
        return (
            f"{path} has {size:,} bytes, but {file.name} must have {file.num_bytes:,}; it is incomplete. Delete it and"
            " download again."
        )
    return ""


def _take(source: Path, target: Path) -> None:
    """`source` under the name `target`: linked, or copied by way of a part file."""
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:  # another file system, or one without links
            with source.open("rb") as original, part.open("wb") as copy:
                shutil.copyfileobj(original, copy, _BLOCK_BYTES)
                copy.flush()
                os.fsync(copy.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f"{source.name} cannot be taken into {target.parent} ({error.strerror or error}); free some space, or set"
            " HF_HOME to another folder."
        ) from error


def _shifted(report_bytes: ReportBytes | None, before: int, total: int) -> ReportBytes | None:
    """Reports one file's bytes as a part of all."""
    if report_bytes is None:
        return None
    return lambda done, _size: report_bytes(before + done, total)
