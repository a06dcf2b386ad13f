"""The job: from a source file to a finished target file. Order and files here, tensors in `inference.shot`.

A video runs through probe, reader, shots, `restore_shot`, encoded segments in a work folder beside the target, and one
final mux that copies the source's sound. Nothing has the target's name before it is finished and verified.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference.alpha import refine_alpha
from inference.checkpoint import Models
from inference.chunking import frames_to_latents
from inference.devices import plan_budget
from inference.errors import MediaError
from inference.media.boundary import writing
from inference.media.decode import Frame
from inference.media.images import read_image, write_image
from inference.media.info import MediaInfo
from inference.media.mux import mux
from inference.media.probe import probe
from inference.media.reader import FrameReader
from inference.media.shots import ShotDetector
from inference.media.target import check_target
from inference.media.writer import SEGMENT_SUFFIX, EncodeParameters, SegmentWriter
from inference.progress import Stage
from inference.settings import RestoreSettings
from inference.shot import ShotPlan, restore_shot
from inference.sizes import Size, padded_size, target_size
from inference.tracker import Tracker
from inference.transforms import to_pictures

_SEGMENT_FRAMES = 240

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that was looked at and can be done: `size` is that of the result."""

    source: Path
    target: Path
    info: MediaInfo
    size: Size
    restore: RestoreSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished job made; `notes` are sentences about what was not kept."""

    frames: int
    shots: int
    notes: tuple[str, ...]


def prepare(source: Path, target: Path, restore: RestoreSettings) -> Job:
    """Look at `source` and at the place of `target`, before any model is loaded.

    Raises MediaError or SettingsError if the job cannot be done.
    """
    info = probe(source)
    check_target(target, info.kind, source)
    size = target_size(info.size, restore, is_image=info.is_image)
    return Job(source=source, target=target, info=info, size=size, restore=restore)


def run(job: Job, models: Models, tracker: Tracker) -> Result:
    """Do the job. Raises MediaError and CancelledError; then there is no new file and no work folder."""
    plan = plan_shots(job, models)
    tracker.enter(Stage.RESTORE, job.info.num_frames)
    return restore_image(job, models, plan, tracker) if job.info.is_image else restore_video(job, models, plan, tracker)


def plan_shots(job: Job, models: Models) -> ShotPlan:
    """What every shot of the job has in common."""
    restore, padded = job.restore, padded_size(job.size)
    parameter = next(models.vae.parameters())
    return ShotPlan(
        target=job.size,
        padded=padded,
        budget=plan_budget(
            parameter.device,
            parameter.dtype,
            padded.pixels,
            models.dit.config.width,
            models.vae.config.widths[0],
            frames_to_latents(restore.window),
        ),
        overlap=restore.overlap,
        seed=restore.seed,
        color_fix=restore.color_fix,
        fidelity=models.entry.default_fidelity if restore.fidelity < 0 else restore.fidelity,
    )


def restore_image(job: Job, models: Models, plan: ShotPlan, tracker: Tracker) -> Result:
    """A still image: a shot of one frame; transparency is enlarged with the result as its guide."""
    image = read_image(job.source)
    (restored,) = restore_shot(models, [image.pixels], plan, tracker)
    tracker.enter(Stage.FINISH)
    with tracker.measure("write"), _work_folder(job.target) as folder:
        alpha = None if image.alpha is None else _enlarge_alpha(image.alpha, restored)
        write_image(folder / job.target.name, restored, alpha, job.restore.encode.image_quality)
        _publish(folder, job.target, tracker)
    return Result(frames=1, shots=1, notes=job.info.warnings)


def restore_video(job: Job, models: Models, plan: ShotPlan, tracker: Tracker) -> Result:
    """A video: every frame of every shot once, encoded in segments, then joined with the source's sound."""
    encode = job.restore.encode
    parameters = EncodeParameters.for_source(job.info, job.size, encode.quality, encode.preset.value)
    segments: list[Path] = []
    frames = shots = 0
    with _work_folder(job.target) as folder, FrameReader(job.source, job.info) as reader:
        for shot in split_shots(reader, ShotDetector() if job.restore.detect_shots else None):
            tracker.begin_shot(shots)
            times: deque[Fraction] = deque()
            restored = restore_shot(models, _pixels(shot, times), plan, tracker, first_frame=frames)
            for part in _parts(restored, _SEGMENT_FRAMES):
                segments.append(folder / f"{len(segments):06d}{SEGMENT_SUFFIX}")
                with SegmentWriter(segments[-1], parameters) as writer:
                    for picture in part:
                        writer.write(picture, times.popleft())
                frames += writer.num_frames
            shots += 1
        if not segments:
            raise MediaError(f"'{job.source.name}' has no frames; choose another file.")
        tracker.enter(Stage.FINISH)
        with tracker.measure("write"):
            report = mux(
                segments,
                job.source,
                folder / job.target.name,
                job.info,
                keep_audio=job.restore.keep_audio,
                num_frames=frames,
                check=tracker.check,
            )
            _publish(folder, job.target, tracker)
    return Result(frames=frames, shots=shots, notes=(*job.info.warnings, *reader.warnings, *report.notes))


def split_shots(frames: Iterable[Frame], detector: ShotDetector | None) -> Iterator[Iterator[Frame]]:
    """The shots of a video, each as an iterator that must be used up before the next one is asked for.

    Nothing is held but the first frame of the next shot.
    """
    source = iter(frames)
    following = list(islice(source, 1))
    if detector is not None and following:
        detector.push(following[0].pixels)

    def shot() -> Iterator[Frame]:
        yield following.pop()
        for frame in source:
            if detector is not None and detector.push(frame.pixels):
                following.append(frame)
                return
            yield frame

    while following:
        yield shot()


def _pixels(frames: Iterator[Frame], times: deque[Fraction]) -> Iterator[Pixels]:
    """The pictures of `frames`; their times are put into `times`."""
    for frame in frames:
        times.append(frame.pts)
        yield frame.pixels


def _parts(frames: Iterator[Pixels], size: int) -> Iterator[Iterator[Pixels]]:
    """Iterators over at most `size` frames each, none of them empty; use one up before asking for the next."""
    for first in frames:
        yield chain([first], islice(frames, size - 1))


def _enlarge_alpha(alpha: Pixels, restored: Pixels) -> Pixels:
    with torch.inference_mode():
        small = torch.from_numpy(alpha)[None, None].float() / 255
        large = refine_alpha(small, to_pictures(restored[None]))
        return (large[0, 0] * 255).round().to(torch.uint8).numpy()


def _publish(folder: Path, target: Path, tracker: Tracker) -> None:
    """Give the finished file in `folder` its place; the last moment at which a cancellation counts."""
    tracker.check()
    with writing(target):
        os.replace(folder / target.name, target)


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that is always removed; named after the process, so that others can do it."""
    prefix = f".{target.name[:40]}.seedvr-{os.getpid()}-"
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.absolute().parent))
    except OSError as error:
        raise MediaError(
            f"'{target.name}' cannot be written into its folder ({error.strerror}); check the folder and its rights."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
