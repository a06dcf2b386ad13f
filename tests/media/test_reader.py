"""FrameReader: upright pixels, exact times, damage, and a decoder thread that always ends."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.errors import CancelledError, MediaError
from inference.media import Frame, FrameReader, probe, read_frames

VIDEOS = [
    "alpha_vp9.webm", "anamorphic_360x270_sar4x3.mp4", "animated.gif", "animated.webp", "av1_opus.mp4",
    "base_480x270_h264_aac.mp4", "bt601_tags.mp4", "corrupt_bytes.mp4", "cover_art.mp4",
    "edit_list_cut_off_keyframe.mp4", "ffv1_gbrp10.mkv", "flac_audio.mkv", "fps1.mp4", "fps23976.mp4", "fps60.mp4",
    "fragmented.mp4", "full_range.mp4", "gray_h264.mp4", "h264_hi10.mp4", "interlaced_tff_ntsc_h264.ts",
    "interlaced_tff_pal_anamorphic_mpeg2.vob", "mjpeg.avi", "mono_aac.mp4", "odd_321x137_vp9_opus.webm",
    "odd_431x183_h264_444.mp4", "one_frame.mp4", "portrait_216x384.mp4", "prores422_10bit_pcm.mov",
    "resolution_change.h264", "rgb_lossless_h264.mkv", "rot_turn_180.mp4", "rot_turn_ccw90.mp4", "rot_turn_cw90.mp4",
    "start_12s5.ts", "subs_mov_text.mp4", "subs_srt_ass_chapters.mkv", "surround51_ac3.mkv", "tiny_16x16.mp4",
    "truncated_60pct_faststart.mp4", "two_audio_tracks.mp4", "two_frames.mp4", "uhd_one_frame_3840x2160.mp4",
    "vfr.mp4", "vp9_10bit.webm", "wide_640x90.mp4",
]  # fmt: skip
WHOLE = {  # name: (frames, seconds from the first frame to the last)
    "corrupt_bytes.mp4": (47, Fraction(47, 24)),
    "truncated_60pct_faststart.mp4": (26, Fraction(28, 24)),
    "edit_list_cut_off_keyframe.mp4": (48, Fraction(47, 24)),
    "resolution_change.h264": (96, Fraction(95, 24)),
    "interlaced_tff_ntsc_h264.ts": (45, Fraction(44 * 1001, 30000)),
    "fps23976.mp4": (48, Fraction(47 * 1001, 24000)),
    "animated.webp": (16, Fraction(15, 8)),
    "vfr.mp4": (26, Fraction(47, 24)),
}


def some_frames(path: Path, count: int, start: int = 0) -> list[Frame]:
    with FrameReader(path, start=start) as reader:
        return list(itertools.islice(reader, count))


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_upright_rgb_at_rising_times(edge: Path, name: str) -> None:
    info = probe(edge / name)
    frames = some_frames(edge / name, 3)
    assert len(frames) == min(3, info.num_frames or 0)
    assert all(frame.pixels.shape == (info.height, info.width, 3) for frame in frames)
    assert all(frame.pixels.dtype == np.uint8 and frame.pixels.std() > 5 for frame in frames)
    assert frames[0].pts == info.start
    assert all(a.pts < b.pts and a.index + 1 == b.index for a, b in itertools.pairwise(frames))


@pytest.mark.parametrize("name", WHOLE)
def test_every_frame_comes_once_at_its_exact_time(edge: Path, name: str) -> None:
    with FrameReader(edge / name) as reader:
        frames = list(reader)
    num_frames, span = WHOLE[name]
    assert len(frames) == num_frames
    assert abs(frames[-1].pts - frames[0].pts - span) <= Fraction(1, 10_000)


def test_damage_is_told_at_the_end(edge: Path) -> None:
    with FrameReader(edge / "corrupt_bytes.mp4") as reader:
        list(reader)
    assert any("47 of its 48 frames" in note for note in reader.warnings)


def test_a_sound_file_gives_no_warning(edge: Path) -> None:
    with FrameReader(edge / "two_frames.mp4") as reader:
        list(reader)
    assert reader.warnings == []


@pytest.mark.parametrize("name", ["rot_turn_cw90.mp4", "rot_turn_180.mp4", "rot_turn_ccw90.mp4"])
def test_turned_videos_look_like_the_upright_one(edge: Path, name: str) -> None:
    upright = some_frames(edge / "base_480x270_h264_aac.mp4", 1)[0]
    assert difference(some_frames(edge / name, 1)[0].pixels, upright.pixels) < 3


@pytest.mark.parametrize("name", ["anamorphic_360x270_sar4x3.mp4", "full_range.mp4", "bt601_tags.mp4", "h264_hi10.mp4"])
def test_other_ways_to_store_a_picture_show_the_same_picture(edge: Path, name: str) -> None:
    plain = some_frames(edge / "base_480x270_h264_aac.mp4", 1)[0]
    assert difference(some_frames(edge / name, 1)[0].pixels, plain.pixels) < 4


def test_a_stream_that_changes_its_size_keeps_the_first_one(edge: Path) -> None:
    frames = read_frames(edge / "resolution_change.h264")
    assert frames.shape == (96, 270, 480, 3)
    assert all(frame.std() > 5 for frame in frames[::16])


def test_a_change_of_size_is_told(edge: Path) -> None:
    with FrameReader(edge / "resolution_change.h264") as reader:
        assert len(list(reader)) == 96
    assert [warning for warning in reader.warnings if "picture size changes" in warning] != []


def test_interlaced_frames_come_without_combs(edge: Path) -> None:
    path = edge / "interlaced_tff_ntsc_h264.ts"
    info = probe(path)

    def combs(info_used: object) -> float:
        with FrameReader(path, info_used) as reader:  # type: ignore[arg-type]
            frame = next(itertools.islice(reader, 23, None)).pixels.astype(np.int16)
        return float(np.abs(2 * frame[1:-1] - frame[:-2] - frame[2:]).mean())

    assert combs(info) < 0.25 * combs(dataclasses.replace(info, interlaced=False))


@pytest.mark.parametrize("name", ["d07_hdr10_pq_960x540_10bit.mp4", "d08_phone_portrait_hlg_10bit.mp4"])
def test_hdr_comes_as_a_well_exposed_sdr_picture(media: Path, name: str) -> None:
    pixels = some_frames(media / "demo" / name, 1)[0].pixels
    low, middle, high = np.percentile(pixels, [1, 50, 99])
    assert low < 40
    assert 60 < middle < 180
    assert high > 200
    assert (pixels == 255).mean() < 0.02


def test_frames_before_the_start_can_be_decoded_instead_of_passed_by(edge: Path) -> None:
    path = edge / "base_480x270_h264_aac.mp4"
    whole = some_frames(path, 33)[30:]
    with FrameReader(path, start=30, may_seek=False) as reader:
        late = list(itertools.islice(reader, 3))
    assert [(frame.index, frame.pts) for frame in late] == [(frame.index, frame.pts) for frame in whole]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(late, whole, strict=True))


def test_who_waits_for_a_frame_can_stop(edge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel() -> None:
        raise CancelledError

    endless = threading.Event()
    monkeypatch.setattr(FrameReader, "_frames", lambda _: iter(lambda: endless.wait(20) or None, 1))
    with FrameReader(edge / "two_frames.mp4", check=cancel) as reader:
        with pytest.raises(CancelledError):
            next(reader)
        endless.set()


@pytest.mark.parametrize("name", ["base_480x270_h264_aac.mp4", "av1_opus.mp4", "start_12s5.ts", "animated.webp"])
def test_reading_from_a_later_frame_gives_the_same_frames(edge: Path, name: str) -> None:
    whole = some_frames(edge / name, 13)[10:]
    late = some_frames(edge / name, 3, start=10)
    assert [frame.index for frame in late] == [10, 11, 12]
    assert [frame.pts for frame in late] == [frame.pts for frame in whole]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(late, whole, strict=True))


def test_closing_in_the_middle_ends_the_decoder_thread(edge: Path) -> None:
    with FrameReader(edge / "fps60.mp4") as reader:
        next(reader)
        thread = next(t for t in threading.enumerate() if t.name == "decode fps60.mp4")
    thread.join(10)
    assert not thread.is_alive()
    assert list(reader) == []


@pytest.mark.parametrize(("size", "frames"), [((64, 36), 64), ((1920, 1080), 21), ((3840, 2160), 5), ((8192, 8192), 4)])
def test_frames_are_read_ahead_by_bytes_and_no_further(
    media: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], frames: int
) -> None:
    """An endless video of which nobody takes more than one frame."""
    info = dataclasses.replace(probe(media / "edge" / "fps60.mp4"), width=size[0], height=size[1])
    frame = Frame(np.zeros((2, 2, 3), np.uint8), Fraction(0), Fraction(1), 0)
    is_full, decoded, waiting = threading.Event(), 0, 0
    put = FrameReader._put

    def count() -> Iterator[Frame]:
        nonlocal decoded
        while True:
            decoded += 1
            yield frame

    def put_or_tell(reader: FrameReader, item: Any) -> bool:
        nonlocal waiting
        waiting = max(waiting, reader._queue.qsize())
        if reader._queue.full():
            is_full.set()
        return put(reader, item)

    monkeypatch.setattr(FrameReader, "_frames", lambda _: count())
    monkeypatch.setattr(FrameReader, "_put", put_or_tell)
    with FrameReader(info.path, info) as reader:
        next(reader)
        assert is_full.wait(20)
    assert waiting == frames
    assert decoded <= 1 + frames + 1  # taken, waiting, and the one that finds no room


def test_each_frame_is_looked_at_in_the_decoder_thread_before_it_comes(edge: Path) -> None:
    looked: list[tuple[int, str]] = []

    def look(frame: Frame) -> None:
        looked.append((frame.index, threading.current_thread().name))

    with FrameReader(edge / "two_frames.mp4", look=look) as reader:
        frames = list(reader)

    assert [frame.index for frame in frames] == [0, 1]
    assert looked == [(0, "decode two_frames.mp4"), (1, "decode two_frames.mp4")]


def test_an_error_of_a_look_reaches_the_reader(edge: Path) -> None:
    def fail(frame: Frame) -> None:
        raise ZeroDivisionError

    with FrameReader(edge / "two_frames.mp4", look=fail) as reader, pytest.raises(ZeroDivisionError):
        next(reader)


def test_what_is_found_out_of_a_frame_is_kept() -> None:
    frame = Frame(np.zeros((2, 2, 3), np.uint8), Fraction(1, 3), Fraction(1), 0)
    other = dataclasses.replace(frame, pts=Fraction(1, 2))

    assert frame.fingerprint is frame.fingerprint
    assert frame.thumbnail is frame.thumbnail
    assert frame.fingerprint != other.fingerprint


def test_an_error_of_the_decoder_thread_reaches_the_reader(edge: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes((edge / "two_frames.mp4").read_bytes())
    info = probe(path)
    path.write_bytes((edge / "text_renamed.mp4").read_bytes())
    with FrameReader(path, info) as reader, pytest.raises(MediaError, match="not a video or image"):
        next(reader)


def test_a_still_image_is_a_video_of_one_frame(media: Path) -> None:
    frames = some_frames(media / "img" / "photo.png", 2)
    assert [frame.pixels.shape for frame in frames] == [(378, 480, 3)]
