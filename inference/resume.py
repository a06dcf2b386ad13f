"""Owns going on with a video that an earlier process began: what makes it the same job, what is written down after each
unit, and how reader, shot detector and shot are brought back to where they stood.

The rest of the job sees the same source frames, in the same slices, with the same states, so the result has the same
bytes. That the source gives the same frames is not believed but compared: the frames that are read again have a
fingerprint. Where a seek does not bring them back, everything before them is decoded and dropped.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from inference.backends import departures
from inference.checkpoint import Models
from inference.media.boundary import writing
from inference.media.decode import Frame
from inference.media.info import MediaInfo
from inference.media.reader import FrameReader
from inference.media.shots import ShotDetector
from inference.settings import RestoreSettings, to_dict
from inference.shot import ShotStream
from inference.shot_state import ShotState, StateFileError, load_state, save_state
from inference.sizes import Size
from inference.units import Bookmark, Check, UnitStore, identify_source

log = logging.getLogger(__name__)

_SPARE_DISK = 4
"""A state is saved only where the disk has room for so many of it: the result matters more."""


def identify_job(
    source: Path, restore: RestoreSettings, size: Size, models: Models, frames_per_unit: int
) -> dict[str, Any]:
    """What has to be the same for units of an earlier run to be of use. Raises MediaError if `source` is gone."""
    parameter = next(models.vae.parameters())
    return {
        "source": identify_source(source),
        "restore": to_dict(restore),
        "size": [size.width, size.height],
        "frames_per_unit": frames_per_unit,
        "model": models.entry.name,
        "weights": models.fingerprint,
        "device": parameter.device.type,
        "precision": f"{parameter.dtype} and fp8" if models.dit.is_fp8 else str(parameter.dtype),
        "libraries": {"torch": torch.__version__, "av": av.__version__, **departures()},
    }


class TakenFrames:
    """What is kept of the frames that a shot has taken: the times of those that are not written yet, and of the latest
    ones, which who goes on reads again, their fingerprints."""

    def __init__(self, latest: Sequence[Frame] = (), num_held: int = 0) -> None:
        """`latest`: frames that were taken already, of which the last `num_held` are held."""
        self._held: deque[Fraction] = deque(frame.pts for frame in latest[len(latest) - num_held :])
        self._fingerprints: deque[bytes] = deque(frame.fingerprint for frame in latest)

    def follow(self, frames: Iterable[Frame]) -> Iterator[NDArray[np.uint8]]:
        """The pictures of `frames`, each of which is taken."""
        for frame in frames:
            self._held.append(frame.pts)
            self._fingerprints.append(frame.fingerprint)
            yield frame.pixels

    def give(self, count: int) -> list[Fraction]:
        """The times of the next frames to be written, which are no longer held."""
        return [self._held.popleft() for _ in range(count)]

    def to_read_again(self, num_warm_up: int) -> tuple[int, str]:
        """How many of the latest frames who goes on has to have, at least one, and the fingerprint of them all."""
        count = max(len(self._held), num_warm_up, 1)
        for _ in range(len(self._fingerprints) - count):
            self._fingerprints.popleft()
        assert len(self._fingerprints) == count
        return count, _join(self._fingerprints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the work on a video begins.

    shot, first_frame: number and first frame of the shot to begin with. state: where that one stands, None at its
    start. latest: its last frames that were taken, for the stream that goes on. taken: the same, for the next units.
    reader: gives the frame after them. detector: knows the frames before it; None if shots are not looked for.
    """

    reader: FrameReader
    detector: ShotDetector | None
    shot: int = 0
    first_frame: int = 0
    state: ShotState | None = None
    latest: list[NDArray[np.uint8]] = field(default_factory=list)
    taken: TakenFrames = field(default_factory=TakenFrames)


def go_on(
    source: Path, info: MediaInfo, store: UnitStore, device: torch.device, detect_shots: bool, check: Check
) -> Start:
    """Where the units in `store` end; units that cannot be gone on from are given up. The caller closes the reader."""
    fresh = ShotDetector() if detect_shots else None
    # In the reader's thread, so that the one that drives the card only has to compare.
    look = attrgetter("fingerprint", "thumbnail") if detect_shots else attrgetter("fingerprint")
    while (bookmark := store.bookmark) is not None:
        unit = store.units[-1]
        try:
            state = None if store.latest_state is None else load_state(store.latest_state, device)
        except StateFileError as error:
            log.warning("%s, so its unit is made again", error)
            store.step_back()
            continue
        num_held = 0 if state is None else state.taken - state.given
        opened = _read_again(source, info, unit.stop + num_held, bookmark, check, look)
        if opened is None:
            log.warning("%s gives other frames than before, so the job starts anew", source.name)
            store.clear()
            break
        reader, frames = opened
        log.info("%s: going on after %d units, at frame %d", source.name, len(store.units), unit.stop)
        if state is None:
            return Start(reader=reader, detector=fresh, shot=unit.shot + 1, first_frame=unit.stop)
        known = None if fresh is None or state.has_ended else ShotDetector(frames[-1].thumbnail, bookmark.recent)
        return Start(
            reader=reader,
            detector=known or fresh,
            shot=unit.shot,
            first_frame=unit.stop - state.given,
            state=state,
            latest=[frame.pixels for frame in frames],
            taken=TakenFrames(frames, num_held),
        )
    return Start(reader=FrameReader(source, info, check=check, look=look), detector=fresh)


def write_bookmark(
    path: Path, stream: ShotStream, taken: TakenFrames, detector: ShotDetector | None, *, is_kept: bool
) -> Bookmark:
    """Write down what the rest of the shot needs as it stands now: its state in `path`, and what is returned.

    The file is as quick as memory; `UnitStore.add` makes it durable.

    Unless `is_kept`, nothing is written that only a later process needs; after a shot this process may go on, too.
    """
    state = stream.state
    if not is_kept and not state.is_over:
        return Bookmark(ends_shot=False, num_frames=0, fingerprint="")
    with writing(path):
        path.unlink(missing_ok=True)  # of a unit that this process gave up
    if not state.is_over:
        _save(state, path)
    count, fingerprint = taken.to_read_again(stream.num_warm_up)
    return Bookmark(
        ends_shot=state.is_over,
        num_frames=count,
        fingerprint=fingerprint,
        recent=() if detector is None else detector.recent,
    )


def _save(state: ShotState, path: Path) -> None:
    """Save the state if the disk has room; without it a later process makes the units again that end with one."""
    size = state.num_bytes
    if shutil.disk_usage(path.parent).free < _SPARE_DISK * size:
        log.info("the disk has no room for the state of the shot (%.1f GB)", size / 1e9)
        return
    with writing(path):
        save_state(state, path)


def _read_again(
    source: Path, info: MediaInfo, stop: int, bookmark: Bookmark, check: Check, look: Callable[[Frame], object]
) -> tuple[FrameReader, list[Frame]] | None:
    """A reader whose next frame is number `stop`, and the frames before it that the bookmark names; None if the source
    gives others."""
    start = stop - bookmark.num_frames
    for may_seek in (True, False):
        reader = FrameReader(source, info, start=start, may_seek=may_seek, check=check, look=look)
        try:
            frames = list(islice(reader, bookmark.num_frames))
            if frames and _join(frame.fingerprint for frame in frames) == bookmark.fingerprint:
                return reader, frames
        except BaseException:
            reader.close()
            raise
        reader.close()
    return None


def _join(fingerprints: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(fingerprints)).hexdigest()
