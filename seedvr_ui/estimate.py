"""What a job will take: time, disk and memory as ranges, from samples of earlier jobs; what does not fit, and what
would. Pure: numbers in, numbers and sentences out.

The time of a job is its work (pixels of the result times frames) times the seconds that such work took before, plus
loading the model. Ranges are as wide as the samples differ, and wider the fewer there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inference.settings import RestoreSettings
from inference.sizes import Size, target_size
from seedvr_ui.wording import to_size

Range = tuple[float, float]

_MOST_SAMPLES = 8
_SAME_SIZE = 4.0
_QUALITY_STEPS_PER_DOUBLING = 6.0
_USUAL_QUALITY = 16
_USUAL_BYTES = (10e3, 150e3)  # of a megapixel of H.264 video at that quality, from still drawings to noise
_USUAL_IMAGE_BYTES = (0.6e6, 3.2e6)  # of a megapixel of PNG
_PROCESS_BYTES = 450e6  # of a worker without weights and pictures
_LEAST_DEVICE_BYTES_PER_PIXEL = 6144  # four frames in the VAE of the released models; see `inference.devices`
_WORK_FACTOR = 2.3  # finished units and the result lie side by side for a while, then the preview


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one job, or a short test, has taken. `pixels` are those of a frame of the result.

    `asked` is the model that was asked for (it may be "auto"), `model` the one that did it. `seconds` is the work
    without `load_s`. `device_bytes` is the peak on a CUDA device, of `device_total` bytes. `is_test`: it was a short
    test, whose numbers say less.
    """

    asked: str
    model: str
    device: str
    pixels: int
    frames: int
    seconds: float
    load_s: float
    host_bytes: int
    device_bytes: int | None
    device_total: int | None
    result_bytes: int
    quality: int
    is_image: bool
    is_test: bool
    at: float

    @property
    def megapixels(self) -> float:
        """All pixels of all frames, in millions."""
        return self.pixels * self.frames / 1e6

    def to_dict(self) -> dict[str, Any]:
        """The sample as JSON-able values; `Sample(**values)` is the inverse."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A file and what shall become of it. `num_frames` is None where the length is not known."""

    size: Size
    num_frames: int | None
    is_image: bool
    quality: int

    @property
    def megapixels(self) -> float:
        """All pixels of the result, in millions; 0 where the length is not known."""
        return self.size.pixels * (self.num_frames or 0) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds, bytes of the results, bytes on the disk while they are made, and bytes of memory; None is unknown.

    `load_s` is part of `seconds`. `on_device` tells whether `memory` is that of a CUDA device.
    """

    seconds: Range | None
    load_s: float
    result_bytes: Range
    disk_bytes: Range
    memory: Range | None
    on_device: bool
    num_samples: int
    is_test: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What there is: free bytes on the disk, of memory, of the CUDA device (None: no such device is known), and what
    the owner may still store.
    """

    disk: int
    memory: int
    device: int | None
    stored: int


def make_task(media: Mapping[str, Any], restore: Mapping[str, Any]) -> Task:
    """The task that `restore`, a branch of a settings tree, makes of a file. Raises SettingsError if it cannot be."""
    is_image = bool(media.get("is_image"))
    chosen = RestoreSettings(
        resolution=restore.get("resolution") or 0, factor=restore.get("factor") or 0.0, box=restore.get("box") or ""
    )
    frames = media.get("num_frames") or round((media.get("duration") or 0) * (media.get("fps") or 0)) or None
    return Task(
        size=target_size(Size(media["width"], media["height"]), chosen, is_image=is_image),
        num_frames=1 if is_image else frames,
        is_image=is_image,
        quality=(restore.get("encode") or {}).get("quality", _USUAL_QUALITY),
    )


def samples_for(samples: Sequence[Sample], model: str) -> list[Sample]:
    """The samples of the model asked for on the device that it last ran on, newest first; jobs rather than tests."""
    found = [sample for sample in samples if model in (sample.asked, sample.model)]
    found.sort(key=lambda sample: -sample.at)
    same = [sample for sample in found if (sample.model, sample.device) == (found[0].model, found[0].device)]
    return [sample for sample in same if not sample.is_test] or same


def estimate(tasks: Sequence[Task], samples: Sequence[Sample], weights_bytes: int = 0) -> Estimate:
    """What `tasks`, one after another, will take. `samples` are those of their model (see `samples_for`), whose files
    have `weights_bytes`.
    """
    results = [_result_bytes(task, samples) for task in tasks]
    result = (sum(low for low, _ in results), sum(high for _, high in results))
    largest = max(results, key=lambda one: one[1])
    before = (result[0] - largest[0], result[1] - largest[1])
    loads = [sample.load_s for sample in samples]
    times = [_seconds(task, samples) for task in tasks]
    known = [time for time in times if time is not None]
    load = max(loads, default=0.0)
    seconds = None
    if known and len(known) == len(times):
        seconds = (sum(low for low, _ in known), sum(high for _, high in known) + load)
    return Estimate(
        seconds=seconds,
        load_s=load,
        result_bytes=result,
        disk_bytes=(before[0] + _WORK_FACTOR * largest[0], before[1] + _WORK_FACTOR * largest[1]),
        memory=_memory(max(task.size.pixels for task in tasks), samples, weights_bytes),
        on_device=bool(samples) and samples[0].device_bytes is not None,
        num_samples=len(samples),
        is_test=bool(samples) and samples[0].is_test,
    )


def shortages(need: Estimate, room: Room) -> list[tuple[str, float, float]]:
    """(what, bytes needed, bytes there) of everything that will not do, or perhaps will not."""
    found = []
    if need.disk_bytes[1] > room.disk:
        found.append(("disk", need.disk_bytes[1], float(room.disk)))
    if need.result_bytes[1] > room.stored:
        found.append(("limit", need.result_bytes[1], float(room.stored)))
    there = room.device if need.on_device else room.memory
    if need.memory is not None and there is not None and need.memory[1] > there:
        found.append(("device" if need.on_device else "memory", need.memory[1], float(there)))
    return found


def warn(need: Estimate, room: Room, smaller: str | None) -> list[str]:
    """A sentence about each shortage, with what to change; `smaller` is a size that would fit."""
    instead = f"choose {smaller}" if smaller else "choose a smaller size or fewer files"
    return [_warning(*shortage, instead=instead) for shortage in shortages(need, room)]


def _warning(what: str, needed: float, there: float, *, instead: str) -> str:
    missing = to_size(needed - there)
    match what:
        case "disk":
            return (
                f"This may need {to_size(needed)} on the disk and {to_size(max(0.0, there))} are free: {instead}, "
                f"or free {missing}, for example by removing finished jobs."
            )
        case "limit":
            return (
                f"The results may take {to_size(needed)} and you may store {to_size(max(0.0, there))} more: {instead}, "
                "or remove finished jobs."
            )
        case "device":
            return (
                f"This may need {to_size(needed)} of GPU memory and the card has {to_size(there)}: {instead}, or a "
                "smaller model."
            )
        case _:
            return (
                f"This may need {to_size(needed)} of memory and {to_size(there)} are free: {instead}, or close other "
                "programs."
            )


def _seconds(task: Task, samples: Sequence[Sample]) -> Range | None:
    """Work times the seconds a megapixel took, from samples of about this size where there are any."""
    if not task.megapixels or not samples:
        return None
    videos = [sample for sample in samples if sample.is_image == task.is_image] or list(samples)
    near = [
        sample for sample in videos if 1 / _SAME_SIZE <= sample.pixels / task.size.pixels <= _SAME_SIZE
    ]  # fmt: skip
    speeds = [sample.seconds / sample.megapixels for sample in (near or videos)[:_MOST_SAMPLES]]
    is_rough = samples[0].is_test or not near or any(sample.is_image != task.is_image for sample in videos)
    below, above = (0.6, 2.0) if is_rough else (0.75, 1.5) if len(speeds) < 3 else (0.9, 1.2)
    return below * min(speeds) * task.megapixels, above * max(speeds) * task.megapixels


def _result_bytes(task: Task, samples: Sequence[Sample]) -> Range:
    """From what a megapixel took before at another quality: six steps of CRF halve or double a file."""
    if task.is_image:
        return _USUAL_IMAGE_BYTES[0] * task.megapixels, _USUAL_IMAGE_BYTES[1] * task.megapixels
    scaled = [
        sample.result_bytes / sample.megapixels * _quality_factor(task.quality, sample.quality)
        for sample in samples[:_MOST_SAMPLES]
        if not sample.is_image and not sample.is_test
    ]
    factor = _quality_factor(task.quality, _USUAL_QUALITY)
    usual = (_USUAL_BYTES[0] * factor, _USUAL_BYTES[1] * factor)
    if len(scaled) >= 3:  # what this owner's machine usually sees; one film says little about the next
        usual = (min(scaled) / 2, max(scaled) * 2)
    return usual[0] * task.megapixels, usual[1] * task.megapixels


def _quality_factor(quality: int, before: int) -> float:
    return float(2.0 ** ((before - quality) / _QUALITY_STEPS_PER_DOUBLING))


def _memory(pixels: int, samples: Sequence[Sample], weights_bytes: int) -> Range | None:
    """Between the peaks of smaller and larger pictures; beyond the largest, what grows grows with the picture.

    A process's peak is that of all its jobs so far, so the smallest of the peaks of larger pictures counts. On CUDA the
    work is cut to fit the card, down to a least piece.
    """
    if not samples:
        return None
    peaks = sorted((sample.pixels, float(sample.device_bytes or sample.host_bytes)) for sample in samples)
    total = samples[0].device_total if samples[0].device_bytes is not None else None
    base = min(float(weights_bytes) if total else _PROCESS_BYTES + weights_bytes, peaks[-1][1])
    above = [peak for size, peak in peaks if size >= pixels]
    size, peak = peaks[-1]
    high = min(above) if above else base + (peak - base) * pixels / size
    if total is not None:
        least = weights_bytes + pixels * _LEAST_DEVICE_BYTES_PER_PIXEL
        return float(least), max(float(least), min(high, 0.95 * total))
    return min(high, *(peak for _, peak in peaks)), high
