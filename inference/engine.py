"""The engine: one model on one device, restoring files one after another.

    with Engine(EngineSettings(model="nano")) as engine:
        summary = engine.restore(Path("in.mp4"), Path("out.mp4"), RestoreSettings(resolution=720))

The model is loaded by the first job that needs it and stays until `close`.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from inference.allocator import grow_segments, hand_back_page_locked, keep_freed_memory
from inference.backends import settle_backends
from inference.catalogue import ModelEntry
from inference.checkpoint import CONFIGS, Models, load_models
from inference.devices import (
    choose_device,
    choose_dtype,
    choose_model,
    describe_device,
    describe_precision,
    device_memory,
)
from inference.errors import DeviceMemoryError, RestoreError
from inference.meter import Meter, peak_process_bytes
from inference.pipeline import prepare, run
from inference.progress import Cancellation, Report, Stage
from inference.settings import EngineSettings, Precision, RestoreSettings, Settings, to_dict
from inference.summary import Summary
from inference.threads import use_threads
from inference.tracker import Tracker

log = logging.getLogger(__name__)


class Engine:
    """Restores videos and images. One job at a time; use as a context manager, or call `close`.

    Raises SettingsError if the device or the model of `settings` does not exist.
    """

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.device = choose_device(self.settings.device)
        self.is_fp8 = self.settings.precision is Precision.FP8
        self.entry: ModelEntry = choose_model(self.settings.model, self.device, fp8=self.is_fp8)
        self.dtype = choose_dtype(self.settings.precision, self.device, self.entry.needs_float32)
        self._models: Models | None = None
        self._busy = threading.Lock()
        use_threads(self.settings.threads)
        keep_freed_memory()
        grow_segments()

    def restore(
        self,
        source: Path,
        target: Path,
        restore: RestoreSettings | None = None,
        report: Report | None = None,
        cancellation: Cancellation | None = None,
        work: Path | None = None,
    ) -> Summary:
        """Restore the video or image `source` into the new file `target`, whose suffix decides the format.

        `report` is called often, from this thread. Nothing is left under the name `target` unless the job finishes.
        `work` is a folder for this job alone: a video that does not finish goes on from there the next time, even if
        this process is killed; see `inference.pipeline.run`.
        Raises a RestoreError: SettingsError, MediaError, CheckpointError, DeviceMemoryError, CancelledError.
        """
        if not self._busy.acquire(blocking=False):
            raise RestoreError("The engine is busy with another job; wait until it has finished.")
        try:
            with _memory_errors(self.device):
                restore = restore or RestoreSettings()
                return self._restore(Path(source), Path(target), restore, report, cancellation, work)
        finally:
            self._busy.release()

    def load(self, report_bytes: Callable[[int, int], None] | None = None) -> None:
        """Load the model now rather than with the first job. Raises CheckpointError.

        `report_bytes` is called with (done, all) while files are downloaded or checked.
        """
        if self._models is None:
            log.info("loading %s on %s in %s", self.entry.name, self.device, self._precision)
            if self.dtype is torch.float32:  # what is asked for; cuDNN would round its operands to 10 bits
                torch.backends.cudnn.allow_tf32 = False
            settings = self.settings
            settle_backends(self.device, self.dtype, CONFIGS[self.entry.name][0].head_dim)
            self._models = load_models(
                self.entry.name,
                settings.weights,
                self.device,
                self.dtype,
                settings.offline,
                report_bytes,
                self.is_fp8,
            )

    def close(self) -> None:
        """Give the model's memory back. A later job loads it again."""
        self._models = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            hand_back_page_locked()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def _precision(self) -> str:
        return describe_precision(self.dtype, fp8=self.is_fp8)

    def _restore(
        self,
        source: Path,
        target: Path,
        restore: RestoreSettings,
        report: Report | None,
        cancellation: Cancellation | None,
        work: Path | None,
    ) -> Summary:
        meter = Meter(self.device)
        tracker = Tracker(meter, report, cancellation)
        with meter.measure("total"):
            tracker.enter(Stage.PREPARE)
            with meter.measure("prepare"):
                job = prepare(source, target, restore)
            tracker.enter(Stage.LOAD, job.info.num_frames)
            with meter.measure("load"):
                self.load(tracker.loaded)
            assert self._models is not None
            result = run(job, self._models, tracker, work)
        log.info("%s: %d frames in %.1f s", target.name, result.frames, meter.seconds()["total"])
        return Summary(
            source=str(source),
            target=str(target),
            frames=result.frames,
            width=job.size.width,
            height=job.size.height,
            fps="" if job.info.is_image else str(job.info.fps),
            shots=result.shots,
            seconds=meter.seconds(),
            peak_memory_bytes=peak_process_bytes(),
            peak_device_bytes=meter.peak_device_bytes(),
            device=describe_device(self.device),
            device_total_bytes=device_memory(self.device),
            precision=self._precision,
            model=self.entry.name,
            notes=result.notes,
            settings=to_dict(Settings(engine=self.settings, restore=restore)),
        )


@contextmanager
def _memory_errors(device: torch.device) -> Iterator[None]:
    """Turn running out of memory, which torch reports in several ways, into DeviceMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if device.type == "cuda":
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
            room = f"The device {device} ran out of memory ({free:.1f} of {total:.1f} GiB were free)"
            torch.cuda.empty_cache()
        else:
            room = "This machine ran out of memory"
        raise DeviceMemoryError(f"{room}; lower restore.window or the size (restore.resolution).") from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
