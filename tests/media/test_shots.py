"""ShotDetector on real clips: cuts between clips are found, motion inside them is not taken for one."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from inference.media import FrameReader, probe
from inference.media.shots import ShotDetector, thumbnail

CLIPS = {
    "demo/d01_old_film_640x480_aac.mp4": [0],
    "demo/d02_actors_800x332_vp8_vorbis.webm": [0],
    "demo/d03_film_640x272_aac.mp4": [0, 49, 86],
    "demo/d04_lowres_noisy_320x180_15fps.mp4": [0],
    "demo/d05_blurry_blocky_480x270.avi": [0],
    "demo/d06_cctv_384x216_10fps.mp4": [0],
    "gt/p01_butterfly_960x540.mp4": [0],
    "gt/p02_juggle_960x540.mp4": [0],
    "gt/p03_sintel_lossless_source_1024x436.mp4": [0],
    "gt/p05_pan_cups_640x360.mp4": [0],
}
_cache: dict[str, list[np.ndarray]] = {}


def clip(media: Path, name: str) -> list[np.ndarray]:
    """The first frames of a clip at a quarter of its size."""
    if name not in _cache:
        info = probe(media / name)
        small = dataclasses.replace(info, width=info.width // 4, height=info.height // 4)
        with FrameReader(media / name, small) as reader:
            _cache[name] = [frame.pixels for frame in itertools.islice(reader, max(CLIPS[name]) + 40)]
    return _cache[name]


def starts(frames: list[np.ndarray]) -> list[int]:
    detector = ShotDetector()
    return [number for number, frame in enumerate(frames) if detector.push(thumbnail(frame))]


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_has_the_cuts_that_eyes_see(media: Path, name: str) -> None:
    assert starts(clip(media, name)) == CLIPS[name]


@pytest.mark.parametrize("second", ["demo/d04_lowres_noisy_320x180_15fps.mp4", "gt/p01_butterfly_960x540.mp4"])
@pytest.mark.parametrize("first", ["demo/d01_old_film_640x480_aac.mp4", "demo/d06_cctv_384x216_10fps.mp4"])
def test_two_joined_clips_are_two_shots(media: Path, first: str, second: str) -> None:
    head, tail = clip(media, first)[-20:], clip(media, second)[:12]
    assert starts(head + tail) == [0, 20]


@pytest.mark.parametrize("stop", [1, 5, 49, 50, 60])
def test_a_detector_goes_on_where_another_one_stopped(media: Path, stop: int) -> None:
    frames = clip(media, "demo/d03_film_640x272_aac.mp4")
    first, whole = ShotDetector(), starts(frames)
    for frame in frames[:stop]:
        first.push(thumbnail(frame))

    second = ShotDetector(thumbnail(frames[stop - 1]), first.recent)

    assert [n for n, frame in enumerate(frames[stop:], stop) if second.push(thumbnail(frame))] == [
        n for n in whole if n >= stop
    ]
    assert second.recent != ()


def test_a_dissolve_is_no_cut(media: Path) -> None:
    old = clip(media, "gt/p05_pan_cups_640x360.mp4")
    new = [frame[: old[0].shape[0], : old[0].shape[1]] for frame in clip(media, "gt/p01_butterfly_960x540.mp4")]
    mixed = [
        (a * (1 - weight) + b[: a.shape[0], : a.shape[1]] * weight).astype(np.uint8)
        for a, b, weight in zip(old, new, np.linspace(0, 1, len(old)), strict=False)
    ]
    assert starts(mixed) == [0]


def test_black_frames_with_noise_are_one_shot() -> None:
    noise = np.random.default_rng(0)
    assert starts([noise.integers(0, 6, (90, 160, 3), dtype=np.uint8) for _ in range(10)]) == [0]


def test_a_change_of_light_is_no_cut(media: Path) -> None:
    frames = clip(media, "demo/d06_cctv_384x216_10fps.mp4")[:12]
    assert starts([frame if n < 6 else (frame * 0.6).astype(np.uint8) for n, frame in enumerate(frames)]) == [0]


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (36, 64), (300, 500)])
def test_frames_of_any_size_are_taken(shape: tuple[int, int]) -> None:
    dark, light = np.zeros((*shape, 3), np.uint8), np.full((*shape, 3), 250, np.uint8)
    light[: shape[0] // 2] = 40
    assert starts([dark, dark, dark])[0] == 0
    assert starts([light] * 3) == [0]
