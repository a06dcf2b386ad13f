"""Owns the border to the media libraries: how files are opened, and how their errors become sentences for people.

FFmpeg reads playlists, concatenation scripts and network addresses when it is let to; an uploaded file must not make it
open anything else. So only self-contained formats and the `file` protocol are allowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error

from inference.durable import MAX_NAME_BYTES
from inference.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,vvc,av1,obu,ivf,m4v,vc1,flv,asf,ogg,"
    "mxf,nut,dv,rm,gxf,mjpeg,yuv4mpegpipe,gif,apng,mp3,wav,w64,flac,aac,ac3,aiff,caf"
)
_HEAD_BYTES = 4096
_MAX_BOXES = 10_000


def open_input(path: Path) -> InputContainer:
    """Open `path` for demuxing. Raises what PyAV raises; use inside `reading`."""
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    # "file:" keeps a name such as "a:b.mp4" from being taken for a protocol.
    return av.open(f"file:{path}", "r", container_options=options, metadata_errors="replace")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn library errors while reading `path` into MediaError."""
    try:
        yield
    except MemoryError as error:
        raise MediaError(f"'{path.name}' is too large to read with the memory of this machine.") from error
    except (av.error.FFmpegError, OSError, ValueError, SyntaxError) as error:
        raise MediaError(why_unreadable(path)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn library errors while writing `path` into MediaError."""
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number and number > 0 else str(error)
        raise MediaError(
            f"'{path.name}' could not be written ({reason}); check free disk space and rights of its folder."
        ) from error


def check_source(path: Path) -> None:
    """Raise MediaError when `path` is missing, a folder, empty, or holds only zero bytes at its start."""
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES or not path.exists():
        raise MediaError(f"'{path}' does not exist; check the name and the folder.")
    if not path.is_file():
        raise MediaError(f"'{path}' is not a file; choose a video or an image.")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise MediaError(f"'{path.name}' cannot be opened ({error.strerror}); check its access rights.") from error
    if not head:
        raise MediaError(f"'{path.name}' is empty (0 bytes); copy or upload it again.")
    if not head.strip(b"\0"):
        raise MediaError(f"'{path.name}' holds only zero bytes; its transfer did not finish, copy or upload it again.")


def why_unreadable(path: Path) -> str:
    """The sentence that says why `path` cannot be read, from a look at its bytes."""
    boxes = _top_level_boxes(path)
    if b"ftyp" in boxes and b"moov" not in boxes and b"mdat" in boxes:
        return (
            f"'{path.name}' is cut short: its index (moov) is missing, so the recording or transfer did not finish; "
            "copy or record it again."
        )
    return (
        f"'{path.name}' is not a video or image that can be read here; check that it plays in a video player, "
        "or convert it to MP4."
    )


def _top_level_boxes(path: Path) -> set[bytes]:
    """Names of the outer boxes of an MP4-like file; empty for other files."""
    names: set[bytes] = set()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            position = 0
            while position + 8 <= size and len(names) < _MAX_BOXES:
                file.seek(position)
                header = file.read(16)
                length, name = int.from_bytes(header[:4], "big"), header[4:8]
                if position == 0 and name != b"ftyp":
                    return names
                names.add(name)
                if length == 1:
                    length = int.from_bytes(header[8:16], "big")
                if length < 8:
                    break
                position += length
    except OSError:
        return names
    return names
