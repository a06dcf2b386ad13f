"""Turns float32 weights into half-precision safetensors: a half of the disk, and faster to load.

One tensor is in memory at a time, the result is written as `.part` and renamed when complete, and the original stays.
Rotary frequencies are converted like the rest, to keep the keys; they are computed at load and never read.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock, Timeout

from inference.catalogue import ModelEntry, Part, converted_name
from inference.download import gigabytes
from inference.errors import CheckpointError
from inference.locate import check_weights_folder, locate, own_folder
from inference.state_file import PICKLE_SUFFIXES, StateFile, open_state
from inference.verify import ReportBytes, verify

log = logging.getLogger(__name__)

_SPARE_BYTES = 64 * 2**20


class Half(StrEnum):
    """The precision to convert to. bfloat16 keeps the range of float32, float16 more digits."""

    BFLOAT16 = "bf16"
    FLOAT16 = "fp16"

    @property
    def dtype(self) -> torch.dtype:
        """The torch name."""
        return torch.bfloat16 if self is Half.BFLOAT16 else torch.float16

    @property
    def code(self) -> str:
        """The name in a safetensors header."""
        return "BF16" if self is Half.BFLOAT16 else "F16"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted file; `saved_bytes` come free when the original is removed, which only its owner does."""

    source: Path
    target: Path
    source_bytes: int
    target_bytes: int

    @property
    def saved_bytes(self) -> int:
        """What removing the original would save against keeping it."""
        return self.source_bytes - self.target_bytes

    def __str__(self) -> str:
        return (
            f"{self.target} ({gigabytes(self.target_bytes)}) replaces {self.source} ({gigabytes(self.source_bytes)});"
            f" remove the latter to save {gigabytes(self.saved_bytes)} net of the new file."
        )


def convert_model(
    entry: ModelEntry,
    weights: str | Path | None = None,
    precision: Half = Half.BFLOAT16,
    report_bytes: ReportBytes | None = None,
) -> list[Conversion]:
    """Converts what this machine has of a model as `.pth`: into `weights` if given, else this program's own folder.

    Files are verified first. Returns one entry per converted file, none if everything is converted already.
    """
    folder = check_weights_folder(weights)
    conversions = []
    for part in (Part.DIT, Part.VAE):
        found = locate(entry.files[part], folder)
        if found is None:
            raise CheckpointError(
                f"There is nothing to convert: the weights of {entry.name} are not on this machine; restore something"
                " with this model first, or set engine.weights to the folder that has them."
            )
        if found.path.suffix in PICKLE_SUFFIXES:
            verify(found.file, found.path, report_bytes)
            target = (folder or own_folder()) / converted_name(found.path.name, precision)
            conversions.append(convert(found.path, target, precision, report_bytes))
    return conversions


def convert(
    source: Path, target: Path, precision: Half = Half.BFLOAT16, report_bytes: ReportBytes | None = None
) -> Conversion:
    """Writes the tensors of `source` as safetensors in half precision; replaces `target` only when complete.

    report_bytes: called with (written, in all). Raises CheckpointError if the source cannot be read, a value does not
    fit the precision, or the disk lacks the room.
    """
    if target.exists() and target.resolve() == source.resolve():
        raise CheckpointError(f"{source} cannot be converted onto itself; give the result another name.")
    state = open_state(source)
    header, sizes = _header(state, precision)
    total = len(header) + sum(sizes.values())
    part = target.with_name(f"{target.name}.part")
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(target.parent, total, part)
        with FileLock(f"{part}.lock", timeout=0), part.open("wb") as stream:
            try:
                _write(stream, header, state, precision, total, report_bytes)
            except BaseException:
                part.unlink()
                raise
            part.replace(target)
    log.info("converted %s to %s", source, target)
    return Conversion(source, target, source.stat().st_size, total)


def _header(state: StateFile, precision: Half) -> tuple[bytes, Mapping[str, int]]:
    """The safetensors header with its length in front, and the bytes of each tensor in file order."""
    sizes = {key: 2 * torch.Size(shape).numel() for key, shape in state.shapes.items()}
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "source": state.path.name}}
    begin = 0
    for key, shape in state.shapes.items():
        entries[key] = {
            "dtype": precision.code,
            "shape": list(shape),
            "data_offsets": [begin, begin + sizes[key]],
        }
        begin += sizes[key]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    return len(text).to_bytes(8, "little") + text, sizes


def _write(
    stream: BinaryIO,
    header: bytes,
    state: StateFile,
    precision: Half,
    total: int,
    report_bytes: ReportBytes | None,
) -> None:
    done = stream.write(header)
    for key in state:
        done += stream.write(_to_bytes(state, key, precision))
        if report_bytes is not None:
            report_bytes(done, total)
    stream.flush()
    os.fsync(stream.fileno())


def _to_bytes(state: StateFile, key: str, precision: Half) -> memoryview:
    source = state[key]
    if not source.is_floating_point() or source.dtype.itemsize < 2:
        raise CheckpointError(f"{state.path} holds {source.dtype} weights ({key}), which cannot be converted.")
    tensor = source.to(precision.dtype).contiguous()
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            f"{key} of {state.path} has values that {precision} cannot hold; convert to {Half.BFLOAT16} instead, or"
            " download the file again if it holds infinite values itself."
        )
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _check_disk(folder: Path, needed: int, part: Path) -> None:
    reused = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(folder).free + reused
    if needed + _SPARE_BYTES > free:
        raise CheckpointError(
            f"The converted file needs {gigabytes(needed)} but only {gigabytes(free)} is free on the disk of {folder};"
            " free some space there first."
        )


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except Timeout as error:
        raise CheckpointError(f"{target} is being converted by another process; wait for it to finish.") from error
    except OSError as error:
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder's permissions"
        raise CheckpointError(f"{target} cannot be written ({error.strerror or error}); {advice}.") from error
