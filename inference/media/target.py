"""Owns which result files can be written, checked before any work starts."""

from __future__ import annotations

import os
from pathlib import Path

from inference.durable import MAX_NAME_BYTES
from inference.errors import MediaError
from inference.media.images import IMAGE_SUFFIXES
from inference.media.info import Kind

VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


def check_target(path: Path | str, kind: Kind = Kind.VIDEO, source: Path | None = None) -> None:
    """Raise MediaError when a result of `kind` cannot be written to `path`.

    The suffix must fit, the folder must exist and be writable, and the result must not replace `source`.
    """
    path = Path(path)
    _check_name(path)
    if path.is_dir():
        raise MediaError(f"'{path}' is a folder; give the result a file name.")
    if kind is Kind.VIDEO and path.suffix.lower() not in VIDEO_FORMATS:
        raise MediaError(f"A video cannot be written as '{path.name}'; name the result .mp4, .mov or .mkv.")
    if kind is Kind.IMAGE and path.suffix.lower() not in IMAGE_SUFFIXES:
        raise MediaError(f"An image cannot be written as '{path.name}'; name the result .png, .jpg or .webp.")
    if not path.parent.is_dir():
        raise MediaError(f"The folder '{path.parent}' does not exist; create it or choose another one.")
    if not os.access(path.parent, os.W_OK):
        raise MediaError(f"The folder '{path.parent}' cannot be written to; choose another one.")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise MediaError("The result would replace its own source; give it another name.")


def check_is_new(path: Path | str, source: Path | None = None) -> None:
    """Raise MediaError when a result written to `path` would replace a file that holds something.

    The file `source` is left to `check_target`, whose sentence says more.
    """
    path = Path(path)
    _check_name(path)
    if not path.is_file() or path.stat().st_size == 0:
        return
    if source is not None and source.exists() and path.samefile(source):
        return
    raise MediaError(f"'{path}' exists already; give the result another name, or add --overwrite to replace it.")


def _check_name(path: Path) -> None:
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        raise MediaError(f"The name '{path.name[:40]}...' is too long; name the result with fewer letters.")
