"""How fast this machine is: samples of finished jobs, kept in a file, and a short test where there is none.

    <data>/calibration.json    the latest samples of each model

`Calibration.restore` stands between the queue and the worker. It takes a sample of every whole job, and lets a job go
before the test: the test is stopped, the job waits until it has ended.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inference.errors import CancelledError, RestoreError
from inference.progress import Cancellation, Progress, Report
from seedvr_ui.attempt import Restore
from seedvr_ui.estimate import Sample, samples_for

log = logging.getLogger(__name__)

NAME = "calibration.json"
_KEPT_PER_MODEL = 20
_LEAST_S = 0.5


class Calibration:
    """The samples in `folder`, taken from `restore`. `clip` is a short video for tests; None: there are no tests.

    `is_idle` says whether nothing waits or runs. Safe for many threads.
    """

    def __init__(
        self, folder: Path, restore: Restore, clip: Path | None = None, is_idle: Callable[[], bool] = lambda: True
    ) -> None:
        self.is_idle = is_idle
        self._folder = folder
        self._restore = restore
        self._clip = clip
        self._lock = threading.Lock()
        self._working = threading.Lock()  # the worker does one thing at a time
        self._test: Cancellation | None = None
        self._tried: dict[str, str] = {}
        self._is_closed = False
        self._samples = _read(folder / NAME)

    def samples(self, model: str) -> list[Sample]:
        """What is known about the model, newest first."""
        with self._lock:
            return samples_for(self._samples, model)

    def restore(
        self,
        source: Path,
        target: Path,
        settings: Mapping[str, Any],
        report: Report,
        cancellation: Cancellation,
        *,
        work: Path,
    ) -> Mapping[str, Any]:
        """Restore as the worker does, and remember what it took."""
        is_whole = not work.exists()  # else the seconds are those of the rest only
        with self._lock:
            if self._test is not None:
                self._test.cancel()
        with self._working:
            cancellation.check()
            summary = self._restore(source, target, settings, report, cancellation, work=work)
        if is_whole:
            self._note(summary, settings, target.stat().st_size, is_test=False)
        return summary

    def ask(self, model: str, settings: Mapping[str, Any]) -> bool:
        """Begin a short test of the model if nothing is known about it and the worker is idle; whether one is at work.

        Models whose files are not on this machine are not tested, and never downloaded for it.
        """
        with self._lock:
            if self._test is not None:
                return True
            known = bool(samples_for(self._samples, model))
            if self._clip is None or self._is_closed or known or model in self._tried:
                return False
        if not self.is_idle() or not self._working.acquire(blocking=False):
            return False
        with self._lock:
            self._test = Cancellation()
        threading.Thread(
            target=self._run_test, args=(model, settings, self._test), name="calibration", daemon=True
        ).start()  # fmt: skip
        return True

    def trouble(self, model: str) -> str:
        """Why the test of this model did not work; empty if it did, or was not tried."""
        with self._lock:
            return self._tried.get(model, "")

    def close(self) -> None:
        """Stop a test that is at work, and begin none."""
        with self._lock:
            self._is_closed = True
            if self._test is not None:
                self._test.cancel()

    def _run_test(self, model: str, settings: Mapping[str, Any], cancellation: Cancellation) -> None:
        assert self._clip is not None  # `ask` has looked
        folder = self._folder / "calibration"
        target = folder / "test.mp4"
        engine = {**settings.get("engine", {}), "model": model, "offline": True}
        chosen = {"engine": engine, "restore": {"factor": 1.0}}
        try:
            shutil.rmtree(folder, ignore_errors=True)  # a test that goes on from another one would look too fast
            folder.mkdir()
            summary = self._restore(self._clip, target, chosen, _ignore, cancellation, work=folder / "work")
            with self._lock:
                self._tried[model] = ""
            self._note(summary, chosen, target.stat().st_size, is_test=True)
            log.info("a short test of %s took %.1f s", model, summary["seconds"]["total"])
        except CancelledError:
            log.info("the test of %s makes room for a job", model)
        except (RestoreError, OSError) as error:
            if not cancellation.is_set():
                log.info("%s could not be tested: %s", model, error)
                with self._lock:
                    self._tried[model] = str(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with self._lock:
                self._test = None
            self._working.release()

    def _note(
        self, summary: Mapping[str, Any], settings: Mapping[str, Any], result_bytes: int, *, is_test: bool
    ) -> None:
        sample = _to_sample(summary, settings, result_bytes, is_test=is_test)
        if sample is None:
            return
        with self._lock:
            others = [other for other in self._samples if other.model != sample.model]
            same = [other for other in self._samples if other.model == sample.model]
            self._samples = [*others, *sorted([*same, sample], key=lambda one: one.at)[-_KEPT_PER_MODEL:]]
            try:
                _write(self._folder / NAME, self._samples)
            except OSError as error:  # estimates are rougher without it, nothing else
                log.warning("%s could not be written: %s", NAME, error)


def _to_sample(
    summary: Mapping[str, Any], settings: Mapping[str, Any], result_bytes: int, *, is_test: bool
) -> Sample | None:
    """What a summary says; None if it says too little, or the job was too short to tell anything."""
    seconds = summary.get("seconds", {})
    load = float(seconds.get("load", 0.0))
    worked = float(seconds.get("total", 0.0)) - load
    if worked < _LEAST_S or not summary.get("frames") or not summary.get("width"):
        return None
    return Sample(
        asked=settings.get("engine", {}).get("model", summary["model"]),
        model=summary["model"],
        device=summary["device"],
        pixels=summary["width"] * summary["height"],
        frames=summary["frames"],
        seconds=worked,
        load_s=load,
        host_bytes=summary["peak_memory_bytes"],
        device_bytes=summary["peak_device_bytes"],
        device_total=summary.get("device_total_bytes"),
        result_bytes=result_bytes,
        quality=settings.get("restore", {}).get("encode", {}).get("quality", 16),
        is_image=not summary["fps"],
        is_test=is_test,
        at=time.time(),
    )


def _ignore(progress: Progress) -> None:
    """A test reports to nobody."""


def _read(path: Path) -> list[Sample]:
    try:
        return [Sample(**values) for values in json.loads(path.read_text(encoding="utf-8"))["samples"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used and is begun anew: %s", path.name, error)
        return []


def _write(path: Path, samples: list[Sample]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"samples": [sample.to_dict() for sample in samples]}, indent=1), encoding="utf-8")
    os.replace(part, path)
