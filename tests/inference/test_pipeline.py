"""Whole jobs on files: frames, times, sound, shots, images, and nothing left behind when a job does not finish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from inference import pipeline
from inference.checkpoint import Models
from inference.errors import CancelledError, MediaError
from inference.media.decode import Frame
from inference.media.shots import ShotDetector
from inference.meter import Meter
from inference.pipeline import Result, prepare, run, split_shots
from inference.progress import Cancellation, Progress, Stage
from inference.settings import load_settings
from inference.shot import ShotPlan
from inference.shot_state import ShotState
from inference.tracker import Tracker

Decoded = Callable[[Path], list[NDArray[np.uint8]]]
RunJob = Callable[..., Result]


@pytest.fixture
def run_job(tiny_models: Models) -> RunJob:
    def run_it(
        source: Path, target: Path, *settings: str, tracker: Tracker | None = None, frames_per_unit: int | None = None
    ) -> Result:
        job = prepare(source, target, load_settings(settings).restore)
        tracker = tracker or Tracker(Meter(torch.device("cpu")))
        return run(job, tiny_models, tracker, frames_per_unit=frames_per_unit)

    return run_it


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(**{kind: 0})
            if packet.size and packet.pts is not None
        ]


def test_a_video_keeps_its_frames_rate_and_sound(
    run_job: RunJob, make_clip: Any, decoded: Decoded, tmp_path: Path
) -> None:
    source = make_clip("in.mp4", 7, sound=True)

    result = run_job(source, tmp_path / "out.mp4")

    frames = decoded(tmp_path / "out.mp4")
    assert (result.frames, result.shots, len(frames)) == (7, 1, 7)
    assert frames[0].shape == (32, 48, 3)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == 24
    assert [data for _, data in packets(tmp_path / "out.mp4", "audio")] == [
        data for _, data in packets(source, "audio")
    ]


def test_each_shot_is_restored_by_itself(run_job: RunJob, make_clip: Any, decoded: Decoded, tmp_path: Path) -> None:
    whole = run_job(make_clip("in.mp4", 3, 4), tmp_path / "whole.mp4", "fidelity=0", "color_fix=none")
    joined = run_job(
        make_clip("in.mp4", 3, 4), tmp_path / "joined.mp4", "fidelity=0", "color_fix=none", "detect_shots=false"
    )

    assert (whole.shots, joined.shots) == (2, 1)
    assert (whole.frames, joined.frames) == (7, 7)
    first, other = decoded(tmp_path / "whole.mp4"), decoded(tmp_path / "joined.mp4")
    assert np.abs(np.int16(first[3:]) - np.int16(other[3:])).max() > 8


@pytest.fixture
def flat_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of restoring, makes each frame one gray that tells its number: for tests of order, times and files."""

    class FlatStream:
        def __init__(self, models: Models, plan: ShotPlan, tracker: Tracker, first_frame: int, *_: Any) -> None:
            self.state = ShotState()
            self._plan, self._first_frame = plan, first_frame

        def slices(self, frames: Iterable[Any]) -> Iterator[NDArray[np.uint8]]:
            self.state.taken = len(list(frames))  # frames come out later than they go in, as in truth
            for index in range(self._first_frame, self._first_frame + self.state.taken):
                yield np.full((1, self._plan.target.height, self._plan.target.width, 3), 20 + 8 * index % 200, np.uint8)

    monkeypatch.setattr(pipeline, "ShotStream", FlatStream)


@pytest.mark.usefixtures("flat_frames")
def test_segments_are_joined_in_order_without_losing_a_frame(
    run_job: RunJob, make_clip: Any, decoded: Decoded, tmp_path: Path
) -> None:
    result = run_job(make_clip("in.mp4", 11, 6), tmp_path / "out.mp4", frames_per_unit=4)

    grays = [frame.mean() for frame in decoded(tmp_path / "out.mp4")]
    assert (result.frames, result.shots) == (17, 2)
    assert grays == pytest.approx([20 + 8 * index for index in range(17)], abs=3)


@pytest.mark.usefixtures("flat_frames")
def test_frame_times_of_a_variable_rate_are_kept(run_job: RunJob, shared: Path, tmp_path: Path) -> None:
    source = shared / "media" / "edge" / "vfr.mp4"

    run_job(source, tmp_path / "out.mp4", "resolution=16", "keep_audio=false")

    before, after = (sorted(time for time, _ in packets(path, "video")) for path in (source, tmp_path / "out.mp4"))
    assert np.allclose(np.diff(np.float64(before)), np.diff(np.float64(after)), atol=1e-3)


@pytest.mark.usefixtures("flat_frames")
def test_sound_is_left_out_on_request(run_job: RunJob, make_clip: Any, tmp_path: Path) -> None:
    run_job(make_clip("in.mp4", 3, sound=True), tmp_path / "out.mp4", "keep_audio=false")

    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(container.streams.audio) == 0


@pytest.mark.usefixtures("flat_frames")
def test_damage_is_told_in_the_notes(run_job: RunJob, shared: Path, decoded: Decoded, tmp_path: Path) -> None:
    source = shared / "media" / "edge" / "truncated_60pct_faststart.mp4"

    result = run_job(source, tmp_path / "out.mp4", "resolution=16")

    assert result.frames == len(decoded(tmp_path / "out.mp4"))
    assert any("damaged" in note for note in result.notes)


@pytest.mark.parametrize(("name", "frames"), [("one_frame.mp4", 1), ("two_frames.mp4", 2), ("tiny_16x16.mp4", 8)])
def test_very_short_and_very_small_videos_work(
    run_job: RunJob, decoded: Decoded, shared: Path, tmp_path: Path, name: str, frames: int
) -> None:
    run_job(shared / "media" / "edge" / name, tmp_path / "out.mp4", "resolution=16")

    assert len(decoded(tmp_path / "out.mp4")) == frames


def test_an_image_becomes_an_image_of_any_size(run_job: RunJob, tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 13, 3), 100, np.uint8)).save(tmp_path / "in.png")

    result = run_job(tmp_path / "in.png", tmp_path / "out.png", "resolution=21")

    with Image.open(tmp_path / "out.png") as image:
        assert (image.size, image.mode) == ((30, 21), "RGB")
    assert (result.frames, result.shots) == (1, 1)


def test_an_image_keeps_its_transparency(run_job: RunJob, tmp_path: Path) -> None:
    pixels = np.full((16, 16, 4), 100, np.uint8)
    pixels[:, :8, 3], pixels[:, 8:, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "in.png")

    run_job(tmp_path / "in.png", tmp_path / "out.png")

    with Image.open(tmp_path / "out.png") as image:
        alpha = np.array(image.getchannel("A"))
    assert alpha.shape == (32, 32)
    assert alpha[:, :8].max() < 8
    assert alpha[:, 24:].min() > 247


class StopAt(Tracker):
    """Asks for a stop, or fails, when `at` is reached."""

    def __init__(self, at: Callable[[Progress], bool], error: Exception | None = None) -> None:
        cancellation = Cancellation()

        def report(progress: Progress) -> None:
            if at(progress):
                if error is not None:
                    raise error
                cancellation.cancel()

        super().__init__(Meter(torch.device("cpu")), report, cancellation)


@pytest.mark.parametrize(
    "at",
    [lambda progress: progress.frames_done >= 6, lambda progress: progress.stage is Stage.FINISH],
    ids=["restoring", "finishing"],
)
def test_a_cancelled_job_leaves_no_file(
    run_job: RunJob, make_clip: Any, tmp_path: Path, at: Callable[[Progress], bool]
) -> None:
    source = make_clip("in.mp4", 12)

    with pytest.raises(CancelledError):
        run_job(source, tmp_path / "out.mp4", tracker=StopAt(at))

    assert list(tmp_path.iterdir()) == [source]


def test_a_failed_job_leaves_an_older_result_as_it_was(run_job: RunJob, make_clip: Any, tmp_path: Path) -> None:
    source, target = make_clip("in.mp4", 8), tmp_path / "out.mp4"
    target.write_bytes(b"older")

    with pytest.raises(ZeroDivisionError):
        run_job(source, target, tracker=StopAt(lambda progress: progress.frames_done >= 4, ZeroDivisionError()))

    assert target.read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}


def test_a_finished_job_leaves_only_the_result(run_job: RunJob, make_clip: Any, tmp_path: Path) -> None:
    run_job(make_clip("in.mp4", 2), tmp_path / "out.mp4")

    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}


@pytest.mark.parametrize("name", ["in.mp4", "out.gif", "missing/out.mp4", "out.png"])
def test_a_target_that_cannot_be_written_is_refused_before_any_work(make_clip: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError):
        prepare(make_clip("in.mp4", 2), tmp_path / name, load_settings().restore)


def frames_of(*values: int) -> list[Frame]:
    """Frames that differ by a pattern for each value."""
    return [
        Frame(np.random.default_rng(value).integers(0, 255, (36, 64, 3), np.uint8), Fraction(index), Fraction(1), index)
        for index, value in enumerate(values)
    ]


def test_shots_hold_each_frame_once_and_in_order() -> None:
    shots = [[frame.index for frame in shot] for shot in split_shots(frames_of(1, 1, 1, 2, 3, 3), ShotDetector())]

    assert shots == [[0, 1, 2], [3], [4, 5]]


def test_without_a_detector_everything_is_one_shot() -> None:
    assert [len(list(shot)) for shot in split_shots(frames_of(1, 2, 3), None)] == [3]
    assert list(split_shots([], None)) == []


def test_from_inside_a_shot_the_first_shot_is_its_rest_which_may_be_empty() -> None:
    frames = frames_of(1, 1, 1, 2, 3, 3)

    for taken in (1, 2, 3):
        detector = ShotDetector(frames[taken - 1].thumbnail)
        shots = [[frame.index for frame in shot] for shot in split_shots(frames[taken:], detector, is_inside=True)]
        assert shots == [list(range(taken, 3)), [3], [4, 5]]
    assert [list(shot) for shot in split_shots([], ShotDetector(frames[0].thumbnail), is_inside=True)] == [[]]
