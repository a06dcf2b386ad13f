"""What probe says about good files, and the sentence it says about bad ones."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import pytest

from inference.errors import MediaError
from inference.media import Kind, probe

NTSC = Fraction(30000, 1001)
VIDEOS = [
    ("base_480x270_h264_aac.mp4", 480, 270, Fraction(24), 48),
    ("alpha_vp9.webm", 480, 270, Fraction(24), 24),
    ("anamorphic_360x270_sar4x3.mp4", 480, 270, Fraction(24), 48),
    ("animated.gif", 240, 102, Fraction(1600, 201), 16),
    ("animated.webp", 240, 102, Fraction(8), 16),
    ("av1_opus.mp4", 480, 270, Fraction(24), 48),
    ("cover_art.mp4", 480, 270, Fraction(24), 48),
    ("edit_list_cut_off_keyframe.mp4", 480, 270, Fraction(24), 48),
    ("ffv1_gbrp10.mkv", 240, 136, Fraction(24), 5),
    ("flac_audio.mkv", 480, 270, Fraction(24), 48),
    ("fps1.mp4", 480, 270, Fraction(1), 2),
    ("fps23976.mp4", 480, 270, Fraction(24000, 1001), 48),
    ("fps60.mp4", 480, 270, Fraction(60), 120),
    ("fragmented.mp4", 480, 270, Fraction(24), 48),
    ("interlaced_tff_ntsc_h264.ts", 640, 480, NTSC, 45),
    ("interlaced_tff_pal_anamorphic_mpeg2.vob", 1024, 576, Fraction(25), 25),
    ("mjpeg.avi", 480, 270, Fraction(24), 24),
    ("odd_321x137_vp9_opus.webm", 321, 137, Fraction(24), 48),
    ("one_frame.mp4", 480, 270, Fraction(24), 1),
    ("portrait_216x384.mp4", 216, 384, Fraction(24), 48),
    ("prores422_10bit_pcm.mov", 480, 270, Fraction(24), 10),
    ("resolution_change.h264", 480, 270, Fraction(24), 96),
    ("rot_turn_180.mp4", 480, 270, Fraction(24), 48),
    ("rot_turn_ccw90.mp4", 480, 270, Fraction(24), 48),
    ("rot_turn_cw90.mp4", 480, 270, Fraction(24), 48),
    ("start_12s5.ts", 480, 270, Fraction(24), 48),
    ("tiny_16x16.mp4", 16, 16, Fraction(24), 8),
    ("truncated_60pct_faststart.mp4", 480, 270, Fraction(24), 26),
    ("vfr.mp4", 480, 270, Fraction(13), 26),
    ("vp9_10bit.webm", 480, 270, Fraction(24), 48),
    ("wide_640x90.mp4", 640, 90, Fraction(24), 48),
]
BAD_FILES = [
    ("zero_bytes.mp4", r"is empty .* again"),
    ("text_renamed.mp4", r"not a video or image .* convert"),
    ("truncated_no_moov.mp4", r"cut short: its index .* again"),
    ("nul_bytes.mkv", r"only zero bytes.* again"),
    ("audio_only.m4a", r"sound but no picture; choose"),
]


@pytest.mark.parametrize(("name", "width", "height", "fps", "num_frames"), VIDEOS, ids=[row[0] for row in VIDEOS])
def test_a_video_has_its_upright_size_exact_rate_and_count(
    edge: Path, name: str, width: int, height: int, fps: Fraction, num_frames: int
) -> None:
    info = probe(edge / name)
    assert (info.width, info.height, info.fps, info.num_frames) == (width, height, fps, num_frames)
    assert info.kind is Kind.VIDEO


def test_a_vp8_film_is_counted_without_its_hidden_frames(media: Path) -> None:
    assert probe(media / "demo" / "d02_actors_800x332_vp8_vorbis.webm").num_frames == 72


@pytest.mark.parametrize(("name", "sentence"), BAD_FILES)
def test_a_bad_file_gets_one_sentence_with_the_next_step(edge: Path, name: str, sentence: str) -> None:
    with pytest.raises(MediaError, match=sentence) as caught:
        probe(edge / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.mp4' does not exist"):
        probe(tmp_path / "none.mp4")


def test_a_folder_is_not_a_video(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is not a file"):
        probe(tmp_path)


def test_a_playlist_cannot_make_the_reader_open_other_files(tmp_path: Path, edge: Path) -> None:
    playlist = tmp_path / "upload.mp4"
    clip = (edge / "start_12s5.ts").as_uri()
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.0,\n{clip}\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError, match="not a video or image"):
        probe(playlist)


@pytest.mark.parametrize(("width", "height"), [(17_000, 1_000), (16_000, 14_000)])
def test_an_absurd_video_size_is_refused(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "huge.y4m"
    path.write_bytes(f"YUV4MPEG2 W{width} H{height} F25:1 C420\nFRAME\n".encode() + bytes(1000))
    with pytest.raises(MediaError, match=f"absurd picture size of {width}x{height}; reduce"):
        probe(path)


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_an_absurd_image_size_is_refused(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100))]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    )
    with pytest.raises(MediaError, match="absurd"):
        probe(path)


def test_a_name_like_a_protocol_is_still_a_file(tmp_path: Path, edge: Path) -> None:
    path = tmp_path / "http:clip.mp4"
    path.write_bytes((edge / "one_frame.mp4").read_bytes())
    assert probe(path).num_frames == 1


def test_warnings_tell_what_is_not_kept(media: Path, edge: Path) -> None:
    assert any("26 of 48 frames" in note for note in probe(edge / "truncated_60pct_faststart.mp4").warnings)
    assert any("Transparency" in note for note in probe(edge / "alpha_vp9.webm").warnings)
    assert any("cover" in note for note in probe(edge / "cover_art.mp4").warnings)
    assert any("interlaced" in note for note in probe(edge / "interlaced_tff_ntsc_h264.ts").warnings)
    assert any("10 bits" in note for note in probe(edge / "h264_hi10.mp4").warnings)
    assert any("HDR" in note for note in probe(media / "demo" / "d07_hdr10_pq_960x540_10bit.mp4").warnings)
    assert probe(edge / "base_480x270_h264_aac.mp4").warnings == ()


def test_only_uneven_frame_times_count_as_variable_rate(edge: Path) -> None:
    assert not probe(edge / "vfr.mp4").constant_rate
    assert probe(edge / "flac_audio.mkv").constant_rate  # its times are rounded to milliseconds


def test_tracks_and_chapters_are_listed(edge: Path) -> None:
    info = probe(edge / "subs_srt_ass_chapters.mkv")
    assert [track.codec for track in info.audio] == ["opus"]
    assert len(info.subtitles) == 2
    assert info.num_chapters == 2
    assert len(probe(edge / "two_audio_tracks.mp4").audio) == 2


@pytest.mark.parametrize(("name", "rotation"), [("rot_turn_cw90", 90), ("rot_turn_180", 180), ("rot_turn_ccw90", 270)])
def test_rotation_is_clockwise_degrees(edge: Path, name: str, rotation: int) -> None:
    assert probe(edge / f"{name}.mp4").rotation == rotation


def test_a_turned_photo_has_its_upright_size(media: Path) -> None:
    info = probe(media / "img" / "exif_orientation6.jpg")
    assert (info.kind, info.width, info.height) == (Kind.IMAGE, 960, 756)
