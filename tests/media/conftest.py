"""Fixtures of the media tests: the shared clips and tiny segments in their time grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.media import EncodeParameters, FrameReader, MediaInfo, SegmentWriter
from inference.sizes import Size

TINY = Size(64, 48)


@pytest.fixture(scope="session")
def media(shared: Path) -> Path:
    return shared / "media"


@pytest.fixture(scope="session")
def edge(media: Path) -> Path:
    return media / "edge"


def picture(number: int) -> NDArray[np.uint8]:
    """A tiny picture that tells its number by the position of a bright bar."""
    pixels = np.full((TINY.height, TINY.width, 3), 60, dtype=np.uint8)
    pixels[:, number % TINY.width] = 220
    return pixels


@pytest.fixture
def segments(tmp_path: Path) -> Callable[[MediaInfo], list[Path]]:
    """Writes tiny frames at the frame times of a source, three segments of unequal length where there are enough."""

    def write(info: MediaInfo) -> list[Path]:
        if info.constant_rate:
            times = [info.start + number / info.fps for number in range(info.num_frames or 0)]
        else:
            with FrameReader(info.path, info) as reader:
                times = [frame.pts for frame in reader]
        parameters = EncodeParameters.for_source(info, TINY, preset="veryfast")
        cuts = sorted({cut for cut in (0, len(times) // 5, len(times) // 5 + 1) if cut < len(times)})
        paths = []
        for first, last in zip(cuts, [*cuts[1:], len(times)], strict=True):
            with SegmentWriter(tmp_path / f"{first:05d}.nut", parameters) as writer:
                for number in range(first, last):
                    writer.write(picture(number), times[number])
            paths.append(writer.path)
        return paths

    return write
