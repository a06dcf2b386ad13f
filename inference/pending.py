"""Owns writing the units of a video without waiting for them: while one is written to the disk, the next is made.

At the end of a unit the encoder still holds some forty frames, and a disk in a network takes its time to make files
durable; a card that waits for them stands still. So a unit whose last frame was handed over is pending: what going on
after it needs is taken down at once, as it stands at this boundary, and a thread does the rest, up to the record with
which the unit is finished. At most one unit is pending. A crash loses that one and the one in work, with all that was
encoded and restored for later ones.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.errors import CancelledError, MediaError
from inference.media.shots import ShotDetector
from inference.media.writer import EncodeParameters, SegmentWriter
from inference.resume import TakenFrames, write_bookmark
from inference.shot import ShotStream
from inference.tracker import Tracker
from inference.units import Bookmark, UnitStore

Taken = TypeVar("Taken")
log = logging.getLogger(__name__)

_POLL_S = 0.1
_STOP_S = 1.0
"""Who asked for a stop waits so long for the pending unit, of the two seconds within which a job stops."""


class PendingUnit:
    """A unit of which all frames were handed over. Nothing else may change `store` before `wait` says True."""

    def __init__(self, store: UnitStore, segment: SegmentWriter, shot: int, bookmark: Bookmark) -> None:
        self._store, self._segment, self._shot, self._bookmark = store, segment, shot, bookmark
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"finish {segment.path.name}", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait at most so long, or as long as it takes; True when the unit is finished, or cannot be."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Leave the unit unfinished, unless it is just about to be finished."""
        self._segment.abort()
        self._thread.join()

    def raise_error(self) -> None:
        """Raises MediaError if the unit could not be finished."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._segment.close()
            self._store.add(self._shot, self._segment.num_frames, self._bookmark)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread, which raises it
            self._error = error


class UnitWriter:
    """Writes frames into the units of `store`, one after another. `is_kept`: a later process may go on from them.

        with UnitWriter(store, parameters, tracker, is_kept=True) as units:
            units.write(pictures, times)        # of one slice
            units.end(shot, stream, taken, detector)

    Leaving the block finishes the pending unit, in whatever way it is left: what was restored is not lost. If that is
    by an exception, it is that one which goes on, and the unit in work is given up.
    """

    def __init__(self, store: UnitStore, parameters: EncodeParameters, tracker: Tracker, *, is_kept: bool) -> None:
        self._store, self._parameters, self._tracker, self._is_kept = store, parameters, tracker, is_kept
        self._number = len(store.units)
        self._segment: SegmentWriter | None = None
        self._pending: PendingUnit | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._segment is not None:
            self._segment.abort()
        if error is None:
            self._settle()
        else:
            self._rescue(error)

    @property
    def num_frames(self) -> int:
        """Frames of the unit in work so far."""
        return 0 if self._segment is None else self._segment.num_frames

    def write(self, pictures: NDArray[np.uint8], times: Iterable[Fraction]) -> None:
        """Hand over the next frames, (T, h, w, 3) uint8, with the time of each in seconds; the first begins a unit.

        Waits only if the encoder is far behind, see `SegmentWriter`. Raises MediaError if these frames or the unit
        before could not be written.
        """
        if self._segment is None:
            self._segment = SegmentWriter(self._store.segment(self._number), self._parameters)
        with self._tracker.measure("hand over"):
            for picture, time in zip(pictures, times, strict=True):
                self._segment.write(picture, time)
        self._look()

    def watch(self, frames: Iterable[Taken]) -> Iterator[Taken]:
        """`frames` as they are; a unit that is finished while they are taken is told of, and an error is raised."""
        for frame in frames:
            yield frame
            self._look()

    def end(self, shot: int, stream: ShotStream, taken: TakenFrames, detector: ShotDetector | None) -> None:
        """The unit in work has all its frames: take down where `stream`, `taken` and `detector` stand after it."""
        assert self._segment is not None
        self._settle()
        with self._tracker.measure("take down"):
            path = self._store.unfinished_state(self._number)
            bookmark = write_bookmark(path, stream, taken, detector, is_kept=self._is_kept)
        self._pending = PendingUnit(self._store, self._segment, shot, bookmark)
        self._segment, self._number = None, self._number + 1

    def _look(self) -> None:
        if self._pending is not None and self._pending.wait(0):
            self._settle()

    def _settle(self) -> None:
        """Wait until the pending unit is finished; may be stopped meanwhile. Raises MediaError if it cannot be."""
        if self._pending is None:
            return
        with self._tracker.measure("hand over"):
            while not self._pending.wait(_POLL_S):
                self._tracker.check()
        pending, self._pending = self._pending, None
        pending.raise_error()
        self._tracker.finish_unit()

    def _rescue(self, error: BaseException) -> None:
        """Finish the pending unit although the job ends by `error`, which nothing that goes wrong here may hide."""
        if self._pending is None:
            return
        if not self._pending.wait(_STOP_S if isinstance(error, CancelledError) else None):
            self._pending.give_up()
        try:
            self._settle()
        except MediaError as other:
            log.warning("the unit before is made again: %s", other)
        except Exception:
            log.exception("the unit before is not told of")
