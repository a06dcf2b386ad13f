"""Owns writing the units of a video without waiting for them: while one is still at the encoder, the next is made.

The encoder holds some forty frames at the end of a unit, and a card that waits for them stands still. So a unit whose
last frame was handed over is pending: what going on after it needs is written down at once, as it stands at this
boundary, and its record, with which it is finished, when the encoder is done. At most one unit is pending, and records
are written in the order of the units. A crash loses the pending unit and the one in work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from inference.errors import CancelledError
from inference.media.shots import ShotDetector
from inference.media.writer import EncodeParameters, SegmentWriter
from inference.resume import TakenFrames, write_bookmark
from inference.shot import ShotStream
from inference.tracker import Tracker
from inference.units import Bookmark, UnitStore

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_STOP_S = 1.0
"""Who asked for a stop waits so long for the pending unit, of the two seconds within which a job stops."""


@dataclass(frozen=True, slots=True)
class _Pending:
    segment: SegmentWriter
    shot: int
    bookmark: Bookmark


class UnitWriter:
    """Writes frames into the units of `store`, one after another. `is_kept`: a later process may go on from them.

        with UnitWriter(store, parameters, tracker, is_kept=True) as units:
            units.write(pictures, times)        # of one slice
            units.end(shot, stream, taken, detector)

    Leaving the block finishes the pending unit, in whatever way it is left: what was restored is not lost. By an
    exception it is that exception which goes on, and the unit in work is given up.
    """

    def __init__(self, store: UnitStore, parameters: EncodeParameters, tracker: Tracker, *, is_kept: bool) -> None:
        self._store, self._parameters, self._tracker, self._is_kept = store, parameters, tracker, is_kept
        self._segment: SegmentWriter | None = None
        self._pending: _Pending | None = None

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
            self._save_pending(error)

    @property
    def num_frames(self) -> int:
        """Frames of the unit in work so far."""
        return 0 if self._segment is None else self._segment.num_frames

    def write(self, pictures: NDArray[np.uint8], times: Iterable[Fraction]) -> None:
        """Hand over the next frames, (T, h, w, 3) uint8, with the time of each in seconds; the first begins a unit.

        Waits only if the encoder is far behind, see `SegmentWriter`. Raises MediaError if something could not be
        written.
        """
        if self._segment is None:
            path = self._store.next_segment(after=0 if self._pending is None else 1)
            self._segment = SegmentWriter(path, self._parameters)
        with self._tracker.measure("hand over"):
            for picture, time in zip(pictures, times, strict=True):
                self._segment.write(picture, time)
        if self._pending is not None and self._pending.segment.has_ended:
            self._settle()

    def end(self, shot: int, stream: ShotStream, taken: TakenFrames, detector: ShotDetector | None) -> None:
        """The unit in work has all its frames: write down where `stream`, `taken` and `detector` stand after it."""
        assert self._segment is not None
        self._settle()
        with self._tracker.measure("keep"):
            bookmark = write_bookmark(self._store.next_state, stream, taken, detector, is_kept=self._is_kept)
        self._segment.end()
        self._pending, self._segment = _Pending(self._segment, shot, bookmark), None

    def _settle(self) -> None:
        """Finish the pending unit, as soon as the encoder is done. May be stopped meanwhile."""
        if self._pending is None:
            return
        with self._tracker.measure("keep"):
            while not self._pending.segment.wait(_LOOK_S):
                self._tracker.check()
            self._finish()

    def _finish(self) -> None:
        """Count the pending unit as finished. Raises MediaError if it could not be written; then it is given up."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        pending.segment.close()
        self._store.add(pending.shot, pending.segment.num_frames, pending.bookmark)
        self._tracker.finish_unit()

    def _save_pending(self, error: BaseException) -> None:
        """Finish the pending unit although the job ends by `error`, which nothing that goes wrong here may hide."""
        if self._pending is None:
            return
        if isinstance(error, CancelledError) and not self._pending.segment.wait(_STOP_S):
            log.info("the encoder needs too long for %s, which is made again", self._pending.segment.path.name)
            self._pending.segment.abort()
            return
        try:
            self._finish()
        except Exception:
            log.exception("a unit could not be finished while the job ended")
