"""The final file: frames, rate, sound, subtitles, chapters, and nothing at all when something is wrong."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from inference.errors import CancelledError, MediaError
from inference.media import EncodeParameters, Kind, MediaInfo, SegmentWriter, check_target, mux, probe, read_frames
from inference.sizes import Size

Segments = Callable[[MediaInfo], list[Path]]
SOURCES = [
    "base_480x270_h264_aac.mp4",
    "av1_opus.mp4",
    "edit_list_cut_off_keyframe.mp4",
    "flac_audio.mkv",
    "fps23976.mp4",
    "fps60.mp4",
    "fragmented.mp4",
    "interlaced_tff_ntsc_h264.ts",
    "interlaced_tff_pal_anamorphic_mpeg2.vob",
    "odd_321x137_vp9_opus.webm",
    "one_frame.mp4",
    "resolution_change.h264",
    "start_12s5.ts",
    "surround51_ac3.mkv",
    "two_audio_tracks.mp4",
]


def sound_packets(path: Path, track: int) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(audio=track) if packet.size]


def tone(path: Path) -> np.ndarray:
    """Mono sound at 48 kHz, placed on the clock of the first video frame."""
    with av.open(path) as container:
        resampler = av.AudioResampler("flt", "mono", 48_000)
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
    start = float(frames[0].pts * frames[0].time_base - probe(path).start)
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    pad = round(start * 48_000)
    return np.concatenate([np.zeros(pad), samples]) if pad > 0 else samples[-pad:]


def lag(a: np.ndarray, b: np.ndarray) -> float:
    """Seconds by which `b` is later than `a`."""
    length = 1 << 18
    product = np.fft.rfft(b, length) * np.conj(np.fft.rfft(a, length))
    place = int(np.fft.irfft(product).argmax())
    return (place if place < length // 2 else place - length) / 48_000


@pytest.mark.parametrize("name", SOURCES)
def test_count_rate_length_and_sync_are_those_of_the_source(
    edge: Path, tmp_path: Path, segments: Segments, name: str
) -> None:
    info = probe(edge / name)
    report = mux(segments(info), edge / name, tmp_path / "out.mp4", info, num_frames=info.num_frames)
    out = probe(tmp_path / "out.mp4")
    assert (out.num_frames, out.fps, out.duration) == (info.num_frames, info.fps, info.duration)
    assert report.num_audio_copied == len(info.audio) == len(out.audio)
    for before, after in zip(info.audio, out.audio, strict=True):
        assert abs((after.start - out.start) - (before.start - info.start)) < Fraction(1, 1000)


@pytest.mark.parametrize("name", ["base_480x270_h264_aac.mp4", "two_audio_tracks.mp4", "surround51_ac3.mkv"])
def test_sound_packets_are_copied_untouched(edge: Path, tmp_path: Path, segments: Segments, name: str) -> None:
    info = probe(edge / name)
    mux(segments(info), edge / name, tmp_path / "out.mp4", info)
    for track in range(len(info.audio)):
        assert sound_packets(tmp_path / "out.mp4", track) == sound_packets(edge / name, track)


def test_frames_keep_their_order_across_segments(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "base_480x270_h264_aac.mp4")
    mux(segments(info), None, tmp_path / "out.mp4", info)
    frames = read_frames(tmp_path / "out.mp4")
    assert frames.mean(axis=(1, 3)).argmax(axis=1).tolist() == list(range(48))


def test_uneven_frame_times_and_their_length_are_kept(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "vfr.mp4")
    mux(segments(info), edge / "vfr.mp4", tmp_path / "out.mp4", info, num_frames=26)

    def times(path: Path) -> list[Fraction]:
        with av.open(path) as container:
            return sorted(p.pts * p.time_base for p in container.demux(video=0) if p.size)

    assert times(tmp_path / "out.mp4") == times(edge / "vfr.mp4")
    out = probe(tmp_path / "out.mp4")
    assert (out.duration, out.fps) == (info.duration, info.fps)


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
def test_other_containers_keep_frames_and_sync(edge: Path, tmp_path: Path, segments: Segments, suffix: str) -> None:
    source = edge / "two_audio_tracks.mp4"
    info = probe(source)
    mux(segments(info), source, tmp_path / f"out{suffix}", info, num_frames=48)
    out = probe(tmp_path / f"out{suffix}")
    assert (out.num_frames, out.fps, len(out.audio)) == (48, info.fps, 2)
    assert abs(lag(tone(source), tone(out.path))) < 0.003


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_same_segments_give_the_same_bytes(edge: Path, tmp_path: Path, segments: Segments, suffix: str) -> None:
    info = probe(edge / "base_480x270_h264_aac.mp4")
    pieces = segments(info)
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in files:
        mux(pieces, info.path, path, info)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", ["base_480x270_h264_aac.mp4", "start_12s5.ts", "flac_audio.mkv"])
def test_the_sound_of_a_part_ends_with_its_video(edge: Path, tmp_path: Path, segments: Segments, name: str) -> None:
    info = probe(edge / name)
    pieces = segments(info)[:2]
    report = mux(pieces, edge / name, tmp_path / "out.mp4", info, is_part=True)
    out = probe(tmp_path / "out.mp4")
    assert out.num_frames == report.num_frames < (info.num_frames or 0) / 2
    with av.open(tmp_path / "out.mp4") as container:
        packets = [p for p in container.demux(audio=0) if p.size and p.pts is not None]
    starts = [p.pts * p.time_base for p in packets]
    assert max(starts) < out.start + out.duration
    assert max(starts) + Fraction(1, 5) > out.start + out.duration


@pytest.mark.parametrize("name", ["demo/d02_actors_800x332_vp8_vorbis.webm", "edge/prores422_10bit_pcm.mov"])
def test_sound_that_mp4_cannot_hold_becomes_aac_in_step(
    media: Path, tmp_path: Path, segments: Segments, name: str
) -> None:
    info = probe(media / name)
    report = mux(segments(info), media / name, tmp_path / "out.mp4", info)
    assert [track.codec for track in probe(tmp_path / "out.mp4").audio] == ["aac"]
    assert report.num_audio_converted == 1
    assert "to AAC" in report.notes[0]
    assert abs(lag(tone(media / name), tone(tmp_path / "out.mp4"))) < 0.003


def test_sound_is_left_out_on_request(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "start_12s5.ts")
    mux(segments(info), edge / "start_12s5.ts", tmp_path / "out.mp4", info, keep_audio=False)
    out = probe(tmp_path / "out.mp4")
    assert (out.audio, out.start) == ((), 0)


def test_subtitles_chapters_and_title_are_kept(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "subs_srt_ass_chapters.mkv")
    report = mux(segments(info), info.path, tmp_path / "out.mp4", info)
    with av.open(info.path) as before, av.open(tmp_path / "out.mp4") as after:
        assert after.metadata["title"] == before.metadata["title"]
        assert [s.codec_context.name for s in after.streams.subtitles] == ["mov_text", "mov_text"]
        assert [chapter["metadata"]["title"] for chapter in after.chapters()] == [
            chapter["metadata"]["title"] for chapter in before.chapters()
        ]
        texts = [
            b"".join(part.dialogue for packet in c.demux(c.streams.subtitles[0]) for part in packet.decode())
            for c in (before, after)
        ]
    plain = [re.sub(rb"\{.*?\}", b"", text) for text in texts]
    assert b"Hello" in plain[0]
    assert plain[0] == plain[1]
    assert any("converted from srt" in note for note in report.notes)


def test_mov_text_subtitles_are_copied(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "subs_mov_text.mp4")
    report = mux(segments(info), info.path, tmp_path / "out.mp4", info)
    assert (report.num_subtitles, report.notes) == (1, ())


def test_the_index_is_before_the_media_and_colours_are_tagged(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "two_frames.mp4")
    mux(segments(info), info.path, tmp_path / "out.mp4", info)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"colrnclx\x00\x01\x00\x01\x00\x01\x00" in data


def test_a_missing_frame_stops_the_job_and_leaves_no_file(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "two_frames.mp4")
    pieces = segments(info)
    with pytest.raises(MediaError, match="2 of 3 frames"):
        mux(pieces, info.path, tmp_path / "out.mp4", info, num_frames=3)
    assert not list(tmp_path.glob("out*"))


def test_segments_of_other_settings_are_refused(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "two_frames.mp4")
    pieces = segments(info)
    with SegmentWriter(tmp_path / "x.nut", EncodeParameters.for_source(info, Size(32, 32))) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8), Fraction(5))
    with pytest.raises(MediaError, match=r"x\.nut' was encoded with other settings"):
        mux([*pieces, tmp_path / "x.nut"], info.path, tmp_path / "out.mp4", info)
    assert not list(tmp_path.glob("out*"))


def test_a_wrong_length_is_found_before_success(edge: Path, tmp_path: Path, segments: Segments) -> None:
    info = probe(edge / "fps23976.mp4")
    pieces = segments(probe(edge / "base_480x270_h264_aac.mp4"))
    stretched = dataclasses.replace(info, duration=info.duration * 2)
    with pytest.raises(MediaError, match="did not come out right"):
        mux(pieces, info.path, tmp_path / "out.mp4", stretched)
    assert not list(tmp_path.glob("out*"))


def test_cancelling_leaves_no_file(edge: Path, tmp_path: Path, segments: Segments) -> None:
    def cancel() -> None:
        raise CancelledError

    info = probe(edge / "base_480x270_h264_aac.mp4")
    pieces = segments(info)
    with pytest.raises(CancelledError):
        mux(pieces, info.path, tmp_path / "out.mp4", info, check=cancel)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("out.avi", Kind.VIDEO, r"name the result \.mp4"),
        ("out", Kind.VIDEO, r"name the result \.mp4"),
        ("out.mp4", Kind.IMAGE, r"name the result \.png"),
        ("none/out.mp4", Kind.VIDEO, "does not exist"),
        ("folder.mp4", Kind.VIDEO, "is a folder"),
        (".", Kind.VIDEO, "is a folder"),
    ],
)
def test_a_target_that_cannot_work_is_refused_early(tmp_path: Path, name: str, kind: Kind, sentence: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match=sentence):
        check_target(tmp_path / name, kind)


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(MediaError, match="replace its own source"):
        check_target(tmp_path / "a.mp4", Kind.VIDEO, tmp_path / "a.mp4")
