"""The finished part of a job that was stopped: a file that plays, with the sound of that part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.checkpoint import Models
from inference.errors import CancelledError, MediaError
from inference.media.probe import probe
from inference.meter import Meter
from inference.partial import join_finished
from inference.pipeline import prepare, run
from inference.progress import Cancellation, Progress
from inference.settings import load_settings
from inference.tracker import Tracker
from inference.units import finished_units

UNIT = 8


def restore(models: Models, source: Path, target: Path, work: Path, stop_at: int | None = None) -> list[Progress]:
    """Run the job until `stop_at` units are finished; the reports that came."""
    cancellation, told = Cancellation(), []

    def report(progress: Progress) -> None:
        told.append(progress)
        if progress.units == stop_at:
            cancellation.cancel()

    settings = load_settings(["window=9", "overlap=1", "resolution=16", "encode.preset=ultrafast"]).restore
    run(
        prepare(source, target, settings), models, Tracker(Meter(torch.device("cpu")), report, cancellation), work, UNIT
    )
    return told


@pytest.fixture
def stopped(tiny_models: Models, tmp_path: Path) -> Callable[[Path, int], Path]:
    """Cancels a job on a source after some units; gives its work folder."""

    def stop(source: Path, units: int) -> Path:
        with pytest.raises(CancelledError):
            restore(tiny_models, source, tmp_path / "out.mp4", tmp_path / "work", units)
        assert not (tmp_path / "out.mp4").exists()
        return tmp_path / "work"

    return stop


Stopped = Callable[[Path, int], Path]
Decoded = Callable[[Path], list[NDArray[np.uint8]]]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_finished_part_plays_with_its_sound_and_the_job_can_still_go_on(
    tiny_models: Models, stopped: Stopped, make_clip: Any, decoded: Decoded, tmp_path: Path, suffix: str
) -> None:
    source, part = make_clip("in.mp4", 40, 30, sound=True), tmp_path / f"part.{suffix}"
    work = stopped(source, 4)

    report = join_finished(work, source, part)

    count = sum(unit.num_frames for unit in finished_units(work))
    info = probe(part)
    assert (report.num_frames, info.num_frames) == (count, count)
    assert 20 < count < 40
    with av.open(str(part)) as container:
        sound = [p for p in container.demux(audio=0) if p.size and p.pts is not None]
        end = max((p.pts + p.duration) * p.time_base for p in sound)
        stop = float(info.start + info.duration)
        assert stop <= float(end) < stop + 1024 / 48000 + 0.002

    restore(tiny_models, source, tmp_path / "out.mp4", work)
    whole = decoded(tmp_path / "out.mp4")
    assert len(whole) == 70
    assert all(np.array_equal(a, b) for a, b in zip(decoded(part), whole, strict=False))


def test_subtitles_and_chapters_end_with_the_finished_part(stopped: Stopped, shared: Path, tmp_path: Path) -> None:
    source = shared / "media" / "edge" / "subs_srt_ass_chapters.mkv"
    whole = probe(source)
    work = stopped(source, 2)

    join_finished(work, source, tmp_path / "part.mkv")

    with av.open(str(tmp_path / "part.mkv")) as container:
        info = probe(tmp_path / "part.mkv")
        end = info.start + info.duration
        assert end < whole.duration / 2
        for packet in container.demux():
            if packet.size and packet.stream.type == "subtitle":
                assert (packet.pts + packet.duration) * packet.time_base <= end + packet.time_base
        assert all(
            chapter["end"] * chapter["time_base"] <= end + chapter["time_base"] for chapter in container.chapters()
        )
        assert container.duration / av.time_base <= float(end) + 0.1


def test_nothing_finished_is_said(make_clip: Any, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="Nothing of 'in.mp4' is finished yet"):
        join_finished(tmp_path / "work", make_clip("in.mp4", 3), tmp_path / "part.mp4")
    assert not (tmp_path / "part.mp4").exists()


def test_the_part_of_another_source_is_refused(stopped: Stopped, make_clip: Any, tmp_path: Path) -> None:
    work = stopped(make_clip("in.mp4", 30), 1)

    with pytest.raises(MediaError, match="not the file that the job began with"):
        join_finished(work, make_clip("other.mp4", 31), tmp_path / "part.mp4")


def test_a_damaged_unit_and_those_after_it_are_left_out(stopped: Stopped, make_clip: Any, tmp_path: Path) -> None:
    source = make_clip("in.mp4", 40)
    work = stopped(source, 3)
    (work / "000001.nut").write_bytes(b"damaged")

    assert join_finished(work, source, tmp_path / "part.mp4").num_frames == 5


@pytest.mark.parametrize(
    "name",
    [
        "vfr.mp4",
        "start_12s5.ts",
        "animated.webp",
        "interlaced_tff_ntsc_h264.ts",
        "corrupt_bytes.mp4",
        "truncated_60pct_faststart.mp4",
        "edit_list_cut_off_keyframe.mp4",
        "av1_opus.mp4",
        "fps23976.mp4",
        "resolution_change.h264",
    ],
)
def test_every_kind_of_source_goes_on_at_the_same_frame(
    tiny_models: Models, stopped: Stopped, shared: Path, tmp_path: Path, name: str
) -> None:
    source = shared / "media" / "edge" / name
    restore(tiny_models, source, tmp_path / "whole.mp4", tmp_path / "other")

    told = restore(tiny_models, source, tmp_path / "out.mp4", stopped(source, 2))

    assert told[1].units in (2, 3)  # whether or not another one was at the encoder
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_progress_goes_on_from_what_is_done(
    tiny_models: Models, stopped: Stopped, make_clip: Any, tmp_path: Path
) -> None:
    source = make_clip("in.mp4", 26, 14)
    work = stopped(source, 3)
    done = finished_units(work)[-1].stop

    told = restore(tiny_models, source, tmp_path / "out.mp4", work)

    frames = [progress.frames_done for progress in told[1:]]
    assert frames == sorted(frames)
    assert frames[0] >= done
    assert frames[-1] == 40
    assert told[1].frames_per_second is None  # what is done counts for nothing in the speed
    assert [progress.units for progress in told[1:]] == sorted(progress.units for progress in told[1:])
