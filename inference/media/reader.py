"""Owns reading frames: FrameReader decodes in a background thread and yields upright RGB frames with exact times.

The thread reads ahead, so that who drives a card, and takes a window of frames at once, never waits for a file.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from inference.errors import MediaError
from inference.media.decode import Frame, decode_frames
from inference.media.images import animation_frames, read_image
from inference.media.info import MediaInfo
from inference.media.limits import num_waiting_frames
from inference.media.probe import probe

_QUEUE_BYTES = 128 * 2**20
_POLL_S = 0.1
_CLOSE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


class FrameReader:
    """Iterates the frames of a video once, in order, in constant memory: up to 128 MiB of them are read ahead.

        with FrameReader(path) as frames:
            for frame in frames: ...

    A still image gives one frame. Damage inside a video is passed over and told in `warnings` once the iteration has
    ended; MediaError is raised when not a single frame can be decoded. `start` skips that many frames: by a seek where
    the file's times tell frame numbers and `may_seek`, else by decoding them. A seek is exact in sound files only, so
    compare what comes, or go without. `check` is called while a frame is waited for and may raise to stop. `look` is
    called with each frame in the decoder thread, before it is handed over: for what depends on that frame alone.
    Closing at any time stops the thread.
    """

    def __init__(
        self,
        path: Path | str,
        info: MediaInfo | None = None,
        *,
        start: int = 0,
        may_seek: bool = True,
        check: Callable[[], None] | None = None,
        look: Callable[[Frame], object] | None = None,
    ) -> None:
        if start < 0:
            raise ValueError(f"start must not be negative, got {start}")
        self.path = Path(path)
        self.info = probe(self.path) if info is None else info
        self.warnings: list[str] = []
        self._start, self._may_seek, self._check, self._look = start, may_seek, check, look
        self._queue: queue.Queue[Frame | _End] = queue.Queue(num_waiting_frames(self.info.size, _QUEUE_BYTES))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._is_finished or self._stop.is_set():
            raise StopIteration
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"decode {self.path.name}", daemon=True)
            self._thread.start()
        while True:
            try:
                item = self._queue.get(timeout=_POLL_S)
                break
            except queue.Empty:
                if self._check is not None:
                    self._check()
                if not self._thread.is_alive() and self._queue.empty():
                    item = _End(RuntimeError("the decoder thread ended without a result"))
                    break
        if isinstance(item, Frame):
            return item
        self._is_finished = True
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Stop decoding and free the file. May be called more than once."""
        self._stop.set()
        while not self._queue.empty():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for frame in self._frames():
                if self._look is not None:
                    self._look(frame)
                if not self._put(frame):
                    return
        except BaseException as caught:  # noqa: BLE001 - carried to the consumer, who raises it
            error = caught
        self._put(_End(error))

    def _put(self, item: Frame | _End) -> bool:
        """Hand `item` over; False when the reader was closed meanwhile."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def _frames(self) -> Iterator[Frame]:
        if self.info.is_image:
            if self._start == 0:
                yield Frame(read_image(self.path).pixels, Fraction(0), 1 / self.info.fps, 0)
            return
        if self.info.is_animated_image:
            for index, (pixels, pts, duration) in enumerate(animation_frames(self.path)):
                if index >= self._start:
                    yield Frame(pixels, pts, duration, index)
            return
        yield from decode_frames(self.info, self._start, self._stop.is_set, self.warnings.append, self._may_seek)


def read_frames(path: Path | str, info: MediaInfo | None = None) -> NDArray[np.uint8]:
    """All frames of a short video as one array (T, h, w, 3) uint8. Raises MediaError like FrameReader."""
    with FrameReader(path, info) as reader:
        frames = [frame.pixels for frame in reader]
    if not frames:
        raise MediaError(f"'{Path(path).name}' has no frames; choose another file.")
    return np.stack(frames)
