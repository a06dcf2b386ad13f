"""The job: from a source file to a finished target file. Order and files here, tensors in `inference.shot`.

A video runs through probe, reader, shots and `ShotStream`; the result comes in units, which are encoded segments in a
work folder, and one final mux joins them and copies the source's sound. Nothing has the target's name before it is
finished and verified. A work folder that the caller gives outlives this process: the next one goes on from its units.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from inference.allocator import hand_back_page_locked
from inference.alpha import refine_alpha
from inference.budget import Budget, Need, plan_budget
from inference.checkpoint import Models
from inference.chunking import frames_to_latents, latents_to_frames
from inference.errors import MediaError
from inference.media.boundary import writing
from inference.media.decode import Frame
from inference.media.images import read_image, write_image
from inference.media.info import MediaInfo
from inference.media.mux import mux
from inference.media.probe import probe
from inference.media.shots import ShotDetector
from inference.media.target import check_target
from inference.media.writer import EncodeParameters
from inference.offload import offloaded
from inference.pending import UnitWriter
from inference.progress import Stage
from inference.resume import Start, TakenFrames, go_on, identify_job
from inference.settings import RestoreSettings
from inference.shot import ShotPlan, ShotStream, restore_shot
from inference.shot_state import ShotState
from inference.sizes import Size, padded_size, target_size
from inference.tracker import Tracker, Work
from inference.transforms import to_pictures
from inference.units import UnitStore, sole_use

_UNIT_SECONDS = {"cpu": 2, "cuda": 10}
_LEAST_UNIT_FRAMES = 24

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Outcome = TypeVar("Outcome")


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


def run(
    job: Job, models: Models, tracker: Tracker, work: Path | None = None, frames_per_unit: int | None = None
) -> Result:
    """Do the job. Raises MediaError and CancelledError; then there is no new file.

    `work` is a folder for this job alone that is there, or whose parent is. What a video has become so far stays in it
    when the job does not finish, in whatever way, and the next `run` goes on from there, to the same bytes; a folder
    that belongs to other settings, weights or another source is started anew. It is removed when the job has finished.
    Without `work` nothing is left. `frames_per_unit`: see `unit_frames`.
    """
    plan = plan_shots(job, models)
    tracker.enter(Stage.RESTORE, job.info.num_frames)
    if job.info.is_image:
        return restore_image(job, models, plan, tracker)
    count = frames_per_unit or unit_frames(job.info.fps, models.device.type)
    return restore_video(job, models, plan, tracker, work, count)


def unit_frames(fps: Fraction, device_type: str) -> int:
    """The most frames of a unit. A crash costs one or two units, and what of the turn in work was not decoded yet
    (`inference.shot`); finished ones can be watched early.

    A whole number of the encoder's groups of two seconds, so that no key frame is wasted: one on a CPU, where it takes
    long enough; five on CUDA, where a state of up to gigabytes goes to the disk after each unit.
    """
    return max(_LEAST_UNIT_FRAMES, round(_UNIT_SECONDS.get(device_type, 10) * fps))


def plan_shots(job: Job, models: Models) -> ShotPlan:
    """What every shot of the job has in common."""
    restore = job.restore
    hand_back_page_locked()  # of the job before, which the plan would count as taken
    return ShotPlan(
        target=job.size,
        padded=padded_size(job.size),
        budget=plan_budget(models.device, _need(job, models), frames_to_latents(restore.window)),
        overlap=restore.overlap,
        seed=restore.seed,
        color_fix=restore.color_fix,
        fidelity=models.entry.default_fidelity if restore.fidelity < 0 else restore.fidelity,
    )


def _need(job: Job, models: Models) -> Need:
    parameter = next(models.vae.parameters())
    return Need(
        dit=models.dit.config,
        vae=models.vae.config,
        dtype=parameter.dtype,
        fp8=models.dit.is_fp8,
        size=padded_size(job.size),
        num_frames=1 if job.info.is_image else None,
        clip_frames=job.info.num_frames,
        source=job.info.size,
    )


def can_plan_again(models: Models) -> bool:
    """Whether another plan would need less memory: on a CPU there is but one."""
    return models.device.type == "cuda"


def _by_plan(
    job: Job, models: Models, plan: ShotPlan, work: Callable[[ShotPlan], Outcome]
) -> tuple[Outcome, tuple[str, ...]]:
    """Do `work` by `plan`; when the device runs out of memory, once more by the next smaller one. Also gives notes."""
    try:
        with _placed(models, plan):
            return work(plan), ()
    except torch.OutOfMemoryError as error:
        if not can_plan_again(models):
            raise
        log.warning("out of memory with %s: %s", plan.budget, error)
    # Here, and not in the handler, the error no longer keeps the tensors of the attempt alive.
    torch.cuda.empty_cache()
    hand_back_page_locked()
    window = frames_to_latents(job.restore.window)
    smaller = replace(plan, budget=plan_budget(models.device, _need(job, models), window, after=plan.budget))
    note = "The device had less memory than was planned with, so a part was begun again with smaller pieces."
    with _placed(models, smaller):
        return work(smaller), (note,)


def _placed(models: Models, plan: ShotPlan) -> AbstractContextManager[None]:
    return offloaded(models.dit) if plan.budget.offloads_dit else nullcontext()


def restore_image(job: Job, models: Models, plan: ShotPlan, tracker: Tracker) -> Result:
    """A still image: a shot of one frame; transparency is enlarged with the result as its guide."""
    image = read_image(job.source)
    (restored,), notes = _by_plan(
        job, models, plan, lambda plan: list(restore_shot(models, [image.pixels], plan, tracker))
    )
    tracker.enter(Stage.FINISH)
    with tracker.measure("write"), _work_folder(job.target) as folder:
        alpha = None if image.alpha is None else _enlarge_alpha(image.alpha, restored)
        write_image(folder / job.target.name, restored, alpha, job.restore.encode.image_quality)
        _publish(folder, job.target, tracker)
    return Result(frames=1, shots=1, notes=(*job.info.warnings, *notes))


def restore_video(
    job: Job, models: Models, plan: ShotPlan, tracker: Tracker, work: Path | None, frames_per_unit: int
) -> Result:
    """A video: every frame of every shot once, encoded in units, then joined with the source's sound."""
    with _kept_folder(work, tracker) if work is not None else _work_folder(job.target) as folder:
        identity = identify_job(job.source, job.restore, job.size, models, frames_per_unit)
        store = UnitStore(folder, identity, {"budget": asdict(plan.budget)}, tracker.check)
        plan = replace(plan, budget=Budget(**store.choices["budget"]))

        def restore_units(plan: ShotPlan) -> Sequence[str]:
            if Budget(**store.choices["budget"]) != plan.budget:
                store.begin_shot_again({"budget": asdict(plan.budget)})
            start = go_on(job.source, job.info, store, models.device, job.restore.detect_shots, tracker.check)
            with start.reader as reader:
                _Video(job, models, plan, tracker, store, frames_per_unit, is_kept=work is not None).restore(start)
            return reader.warnings

        warnings, notes = _by_plan(job, models, plan, restore_units)
        if not store.units:
            raise MediaError(f"'{job.source.name}' has no frames; choose another file.")
        tracker.enter(Stage.FINISH)
        with tracker.measure("write"):
            report = mux(
                [unit.path for unit in store.units],
                job.source,
                job.target if work is not None else folder / job.target.name,
                job.info,
                keep_audio=job.restore.keep_audio,
                num_frames=store.num_frames,
                check=tracker.check,
            )
            if work is None:
                _publish(folder, job.target, tracker)
        result = Result(
            frames=store.num_frames,
            shots=store.units[-1].shot + 1,
            notes=(*job.info.warnings, *warnings, *notes, *report.notes),
        )
        if work is not None:
            store.remove()
        return result


class _Video:
    """The units of one video in the making. `is_kept`: a later process may go on from them."""

    def __init__(
        self,
        job: Job,
        models: Models,
        plan: ShotPlan,
        tracker: Tracker,
        store: UnitStore,
        frames_per_unit: int,
        *,
        is_kept: bool,
    ) -> None:
        self._models, self._plan, self._tracker, self._store = models, plan, tracker, store
        self._frames_per_unit, self._is_kept = frames_per_unit, is_kept
        encode = job.restore.encode
        self._parameters = EncodeParameters.for_source(job.info, job.size, encode.quality, encode.preset.value)

    def restore(self, start: Start) -> None:
        """All units from `start` on: shot after shot, and unit after unit of each."""
        self._count_earlier_work(start)
        first_frame, state, taken = start.first_frame, start.state, start.taken
        with UnitWriter(self._store, self._parameters, self._tracker, is_kept=self._is_kept) as units:
            for shot, frames in enumerate(_shots_from(start, self._tracker.find_shot), start.shot):
                self._tracker.begin_shot(shot)
                stream = ShotStream(self._models, self._plan, self._tracker, first_frame, state, start.latest)
                start.latest.clear()
                for pictures in stream.slices(units.watch(taken.follow(frames))):
                    units.write(pictures, taken.give(len(pictures)))
                    if units.num_frames + self._plan.slice_frames > self._frames_per_unit:
                        units.end(shot, stream, taken, start.detector)
                if units.num_frames:
                    units.end(shot, stream, taken, start.detector)
                first_frame += stream.state.taken
                state, taken = None, TakenFrames()

    def _count_earlier_work(self, start: Start) -> None:
        state = start.state or ShotState()
        done = {
            Work.ENCODE: start.first_frame + state.taken,
            Work.DENOISE: start.first_frame + min(latents_to_frames(state.planned), state.taken),
            Work.DECODE: self._store.num_frames,
        }
        self._tracker.go_on_from(done, len(self._store.units))


def _shots_from(start: Start, on_cut: Callable[[], None]) -> Iterator[Iterator[Frame]]:
    """The frames of each shot that are still to be taken; none for a shot whose frames were all taken before."""
    if start.state is not None and start.state.has_ended:
        yield iter(())
        start = replace(start, state=None)
    yield from split_shots(start.reader, start.detector, is_inside=start.state is not None, on_cut=on_cut)


def split_shots(
    frames: Iterable[Frame],
    detector: ShotDetector | None,
    *,
    is_inside: bool = False,
    on_cut: Callable[[], None] | None = None,
) -> Iterator[Iterator[Frame]]:
    """The shots of a video, each as an iterator that must be used up before the next one is asked for.

    `is_inside`: the first frame may be one in the middle of a shot; then the first shot may turn out to have no frame.
    Nothing is held but the first frame of the next shot. `on_cut` is called when a further shot is found.
    """
    source = iter(frames)
    following: list[Frame] = []

    def shot() -> Iterator[Frame]:
        yield from following
        following.clear()
        for frame in source:
            if detector is not None and detector.push(frame.thumbnail):
                following.append(frame)
                if on_cut is not None:
                    on_cut()
                return
            yield frame

    if is_inside:
        yield shot()
    elif (first := next(source, None)) is not None:
        if detector is not None:
            detector.push(first.thumbnail)
        following.append(first)
    while following:
        yield shot()


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
def _kept_folder(work: Path, tracker: Tracker) -> Iterator[Path]:
    """The work folder of a job that goes on later, for this process alone."""
    with sole_use(work, tracker.check):
        yield work


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
