"""What the page gets to see of a file: facts, thumbnail, and the preview with both sides. Real files and processes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from inference.errors import CancelledError, MediaError
from inference.media_preview import plan_sheet, preview
from inference.media_proxy import check_media, count_shots, make_preview
from inference.progress import Cancellation

NUM_FRAMES, RATE = 6, 12
LEVELS = [40 + 30 * index for index in range(NUM_FRAMES)]


def _write_clip(path: Path, width: int, height: int, levels: list[int], sound: bool = False) -> Path:
    """A clip whose frame i is evenly `levels[i]` gray, with a tone if `sound`."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        tone = output.add_stream("aac", rate=48_000, layout="mono") if sound else None
        for index, level in enumerate(levels):
            frame = VideoFrame.from_ndarray(np.full((height, width, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if tone is not None:
            for index in range(len(levels) * 48_000 // RATE // 1024):
                wave = np.sin(np.arange(1024, dtype=np.float32) / 10).reshape(1, -1)
                sample = AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                sample.sample_rate, sample.pts, sample.time_base = 48_000, index * 1024, Fraction(1, 48_000)
                output.mux(tone.encode(sample))
            output.mux(tone.encode(None))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return _write_clip(tmp_path / "in.mp4", 32, 24, LEVELS)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return _write_clip(tmp_path / "out.mp4", 64, 48, LEVELS[::-1], sound=True)


def _frames(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_good_file_gives_its_facts_and_a_thumbnail(result: Path, tmp_path: Path) -> None:
    facts = check_media(result, tmp_path / "thumbnail.jpg")
    assert facts == {
        "width": 64, "height": 48, "is_image": False, "fps": 12.0, "num_frames": 6, "duration": 0.5, "has_audio": True,
    }  # fmt: skip
    with Image.open(tmp_path / "thumbnail.jpg") as picture:
        assert picture.size == (64, 48)


@pytest.mark.parametrize("name", ["text_renamed.mp4", "audio_only.m4a"])
def test_a_bad_file_gives_one_sentence_with_its_name(shared: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError) as caught:
        check_media(shared / "media" / "edge" / name, tmp_path / "thumbnail.jpg")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_preview_shows_frame_i_of_the_source_above_frame_i_of_the_result(
    source: Path, result: Path, tmp_path: Path
) -> None:
    told = preview(source, result, tmp_path)
    frames = _frames(tmp_path / told["video"])
    top, rows = told["after_top"], told["height"]
    upper = [frame[:rows].mean() for frame in frames]
    lower = [frame[top : top + rows].mean() for frame in frames]
    assert upper == pytest.approx(LEVELS, abs=4)
    assert lower == pytest.approx(LEVELS[::-1], abs=4)


def test_the_sides_do_not_mix_at_their_border(source: Path, result: Path, tmp_path: Path) -> None:
    told = preview(source, result, tmp_path)
    first = _frames(tmp_path / told["video"])[0].astype(float)
    assert np.ptp(first[: told["height"]]) < 8
    assert np.ptp(first[told["after_top"] :]) < 8


def test_the_preview_has_the_sound_of_the_result(source: Path, result: Path, tmp_path: Path) -> None:
    told = preview(source, result, tmp_path)
    assert told["has_audio"]
    with av.open(str(tmp_path / told["video"])) as container:
        seconds = sum(frame.samples for frame in container.decode(audio=0)) / 48_000
    assert seconds == pytest.approx(0.5, abs=0.06)


def test_an_image_preview_has_both_sides_as_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "in.png")
    Image.new("RGB", (40, 20), (0, 0, 200)).save(tmp_path / "out.png")
    told = preview(tmp_path / "in.png", tmp_path / "out.png", tmp_path)
    assert (told["kind"], told["width"], told["height"]) == ("image", 40, 20)
    with Image.open(tmp_path / told["before"]) as before, Image.open(tmp_path / told["after"]) as after:
        assert (before.size, after.size) == ((20, 10), (40, 20))


def test_making_a_preview_stops_when_cancelled(source: Path, result: Path, tmp_path: Path) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(CancelledError):
        make_preview(source, result, tmp_path, cancellation)
    assert not (tmp_path / "preview.mp4").exists()


def test_a_result_that_is_gone_has_no_preview_but_a_sentence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        make_preview(source, tmp_path / "missing.mp4", tmp_path, Cancellation())


@pytest.mark.parametrize("size", [(64, 48), (3840, 2160), (2160, 3840), (7, 5), (1, 1), (10_000, 1_000)])
def test_a_sheet_keeps_the_shape_within_what_browsers_decode(size: tuple[int, int]) -> None:
    sheet = plan_sheet(*size)
    assert max(sheet.width, sheet.height) <= 1920
    assert min(sheet.width, sheet.height) <= 1080
    assert (sheet.width % 2, sheet.height % 2, sheet.cell % 16) == (0, 0, 0)
    assert sheet.after_top >= sheet.height + 4
    if min(size) > 16:
        assert sheet.width / sheet.height == pytest.approx(size[0] / size[1], rel=0.06)


def test_shots_are_counted_as_restoring_finds_them(shared: Path) -> None:
    """A film with two cuts; `tests/inference/test_resume.py` restores it."""
    assert count_shots(shared / "media" / "demo" / "d03_film_640x272_aac.mp4", Cancellation()) == 3
