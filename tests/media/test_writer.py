"""SegmentWriter: right colours, exact times, complete files or none."""

from __future__ import annotations

import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from inference.errors import MediaError
from inference.media import EncodeParameters, SegmentWriter
from inference.media import writer as writer_module
from inference.media.color import ToRgb, to_yuv420
from inference.media.info import ColorTags
from inference.sizes import Size

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = EncodeParameters(
    size=Size(64, 48), fps=Fraction(24), time_base=Fraction(1, 90_000), quality=4, preset="veryfast"
)
BARS = [(200, 30, 30), (30, 180, 40), (20, 40, 210), (210, 190, 30)]


def bars() -> np.ndarray:
    return np.repeat(np.array(BARS, dtype=np.uint8), 16, axis=0)[None].repeat(48, axis=0)


def write(path: Path, times: list[Fraction], parameters: EncodeParameters = PARAMETERS) -> None:
    with SegmentWriter(path, parameters) as writer:
        for time in times:
            writer.write(bars(), time)


def test_colours_come_back(tmp_path: Path) -> None:
    write(tmp_path / "a.nut", [Fraction(0)])
    with av.open(tmp_path / "a.nut") as container:
        frame = next(container.decode(video=0))
    shown = ToRgb(64, 48, ColorTags(matrix=1, full_range=False), 48)(frame)
    assert np.abs(shown[24, 8::16].astype(int) - BARS).max() <= 6


def test_a_segment_is_tagged_and_starts_with_a_key_frame(tmp_path: Path) -> None:
    write(tmp_path / "a.nut", [Fraction(n, 24) for n in range(5)])
    with av.open(tmp_path / "a.nut") as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == "yuv420p"
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert next(container.demux(video=0)).is_keyframe


def test_uneven_frame_times_are_kept_exactly(tmp_path: Path) -> None:
    times = [Fraction(1), Fraction(5, 4), Fraction(3), Fraction(3) + Fraction(1, 90_000), Fraction(7)]
    write(tmp_path / "a.nut", times)
    with av.open(tmp_path / "a.nut") as container:
        assert [frame.pts * frame.time_base for frame in container.decode(video=0)] == times


def test_all_segments_have_the_same_parameters(tmp_path: Path) -> None:
    write(tmp_path / "a.nut", [Fraction(0)])
    write(tmp_path / "b.nut", [Fraction(n, 24) for n in range(9, 39)])
    with av.open(tmp_path / "a.nut") as first, av.open(tmp_path / "b.nut") as second:
        assert first.streams.video[0].codec_context.extradata == second.streams.video[0].codec_context.extradata


def test_an_exception_leaves_no_file_and_no_thread(tmp_path: Path) -> None:
    def compute(writer: SegmentWriter) -> None:
        with writer:
            writer.write(bars(), Fraction(0))
            raise RuntimeError("computing failed")

    with pytest.raises(RuntimeError, match="computing failed"):
        compute(SegmentWriter(tmp_path / "a.nut", PARAMETERS))
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name == "encode a.nut" for thread in threading.enumerate())


def test_the_final_name_appears_only_when_closed(tmp_path: Path) -> None:
    with SegmentWriter(tmp_path / "a.nut", PARAMETERS) as writer:
        writer.write(bars(), Fraction(0))
        assert not (tmp_path / "a.nut").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.nut"]


def test_giving_up_ends_the_wait_of_another_thread_for_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder stands still when the segment is given up; what it and the queue still hold is not encoded."""
    at_work, may_go_on = threading.Event(), threading.Event()
    converted = []

    def slow(pixels: np.ndarray, reformatter: object) -> av.VideoFrame:
        at_work.set()
        assert may_go_on.wait(20)
        converted.append(pixels)
        return to_yuv420(pixels, reformatter)  # type: ignore[arg-type]

    monkeypatch.setattr(writer_module, "to_yuv420", slow)
    segment = SegmentWriter(tmp_path / "a.nut", PARAMETERS)
    for number in range(20):
        segment.write(bars(), Fraction(number, 24))
    errors: list[BaseException] = []

    def close() -> None:
        try:
            segment.close()
        except MediaError as error:
            errors.append(error)

    closing = threading.Thread(target=close)
    closing.start()
    assert at_work.wait(20)
    giving_up = threading.Thread(target=segment.abort)
    giving_up.start()
    assert segment._abort.wait(20)
    may_go_on.set()
    for thread in (closing, giving_up):
        thread.join(20)

    assert [str(error) for error in errors] == ["Writing 'a.nut' was given up; start the job again."]
    assert len(converted) == 1
    assert list(tmp_path.iterdir()) == []


def test_times_that_go_back_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="must rise"):
        write(tmp_path / "a.nut", [Fraction(1), Fraction(1, 2)])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="could not be written"):
        write(tmp_path / "gone" / "a.nut", [Fraction(n, 24) for n in range(30)])


def test_an_odd_size_is_refused(tmp_path: Path) -> None:
    parameters = EncodeParameters(size=Size(63, 48), fps=Fraction(24), time_base=Fraction(1, 90_000))
    with pytest.raises(MediaError, match="even width and height"):
        SegmentWriter(tmp_path / "a.nut", parameters)


def test_no_frames_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="got no frames"):
        write(tmp_path / "a.nut", [])
    assert list(tmp_path.iterdir()) == []


def test_a_frame_of_another_size_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="expected uint8 frames of 64x48"),
        SegmentWriter(tmp_path / "a.nut", PARAMETERS) as writer,
    ):
        writer.write(np.zeros((48, 48, 3), np.uint8), Fraction(0))


DIRTY_HEAP = """
import ctypes, dataclasses, hashlib, itertools, random, sys
from fractions import Fraction
from pathlib import Path
from inference.media import EncodeParameters, FrameReader, SegmentWriter, probe
from inference.sizes import Size

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for parameter, value in ((-3, 2**30), (-1, 2**31 - 1)):  # freed blocks stay in the heap, as in a process that computes
    libc.mallopt(parameter, value)
info = dataclasses.replace(probe(sys.argv[1]), width=960, height=540)
with FrameReader(info.path, info, start=49) as reader:
    frames = [frame.pixels for frame in itertools.islice(reader, 37)]
parameters = EncodeParameters(size=Size(960, 540), fps=Fraction(24), time_base=Fraction(1, 90_000))
chance, path = random.Random(1), Path(sys.argv[2])
for _ in range(4):
    with SegmentWriter(path, parameters) as writer:
        for index, frame in enumerate(frames):
            writer.write(frame, Fraction(index, 24))
    print(hashlib.sha256(path.read_bytes()).hexdigest())
    blocks = []
    for size in chance.choices([200, 5_000, 60_000, 600_000, 2_000_000], k=300):
        blocks.append(libc.malloc(size))
        ctypes.memset(blocks[-1], chance.randrange(256), size)
    chance.shuffle(blocks)
    for block in blocks:
        libc.free(block)
"""


def test_the_same_frames_give_the_same_bytes_whatever_memory_held_before(media: Path, tmp_path: Path) -> None:
    source = media / "demo" / "d03_film_640x272_aac.mp4"
    command = [sys.executable, "-c", DIRTY_HEAP, str(source), str(tmp_path / "a.nut")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)

    assert len(result.stdout.split()) == 4
    assert len(set(result.stdout.split())) == 1
