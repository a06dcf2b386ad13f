"""What the page says before Start: how long the chosen files will take, and what will not fit. Without gradio.

Puts together what is known: the samples of this machine, its free disk and memory, the limits, and the queue.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

from inference.catalogue import CATALOGUE
from inference.errors import RestoreError, SettingsError
from seedvr_ui.calibration import Calibration
from seedvr_ui.estimate import Estimate, Room, Task, estimate, make_task, shortages, warn
from seedvr_ui.jobs import Job
from seedvr_ui.price import Price
from seedvr_ui.sessions import SessionManager
from seedvr_ui.uploads import Upload
from seedvr_ui.wording import about_range, to_size, to_size_range

_RESERVED_BYTES = 256 * 2**20

DownloadBytes = Callable[[str], int]
"""The bytes that have to be downloaded before a model can be used; 0 if it is here."""


class Forecast:
    """`download_bytes` tells what a model still needs; `sizes` are (label, restore settings) that could be chosen."""

    def __init__(
        self,
        manager: SessionManager,
        calibration: Calibration,
        download_bytes: DownloadBytes,
        price: Price | None = None,
    ) -> None:
        self._manager = manager
        self._calibration = calibration
        self._download_bytes = download_bytes
        self._price = price

    def expect(self, job: Job) -> tuple[float, float] | None:
        """The seconds that a whole job will take, as a range; None while nothing is known."""
        samples = self._calibration.samples(_model(job.settings))
        if not samples or not job.media:
            return None
        try:
            return estimate([make_task(job.media, job.settings.get("restore", {}))], samples).seconds
        except SettingsError:  # the job will say it
            return None

    def about(
        self,
        owner: str,
        upload_ids: Sequence[str],
        settings: Mapping[str, Any],
        sizes: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> dict[str, Any]:
        """{"lines", "warnings", "pending"}: sentences about the uploads if they were started now with `settings`.

        `pending`: a short test is at work, so that a better answer comes in some seconds. `sizes` are (label, restore
        settings), among which a smaller one is looked for when something does not fit.
        """
        media = [upload.media for upload in self._ready(owner, upload_ids) if upload.media is not None]
        if not media:
            return {"lines": [], "warnings": [], "pending": False}
        model = _model(settings)
        restore = settings.get("restore", {})
        try:
            tasks = [make_task(one, restore) for one in media]
        except SettingsError as error:
            return {"lines": [], "warnings": [str(error)], "pending": False}
        samples = self._calibration.samples(model)
        missing = self._download_bytes(model)
        is_pending = not samples and not missing and self._calibration.ask(model, settings)
        weights_bytes = _weights_bytes(samples[0].model if samples else model)
        need = estimate(tasks, samples, weights_bytes)
        room = self._room(owner, samples[0].device_total if samples else None)
        smaller = None
        if shortages(need, room):
            smaller = _largest_that_fits(
                media, restore, sizes, room, lambda tasks: estimate(tasks, samples, weights_bytes)
            )
        lines = self._lines(need, tasks, missing, is_pending)
        return {"lines": lines, "warnings": warn(need, room, smaller), "pending": is_pending}

    def _lines(self, need: Estimate, tasks: Sequence[Task], missing: int, is_pending: bool) -> list[str]:
        files = "" if len(tasks) == 1 else f" for {len(tasks)} files"
        lines = []
        if need.seconds is not None:
            line = f"{about_range(*need.seconds).capitalize()}{files}"
            if self._price is not None:
                line += f", {self._price.of_range(*need.seconds)}"
            counts = self._manager.counts()
            waiting = counts["queued"] + counts["running"]
            if waiting:
                line += f", after {waiting} {'job' if waiting == 1 else 'jobs'} before it"
            lines.append(f"{line}.")
        elif missing:
            lines.append(f"The model is not here yet: {to_size(missing)} are downloaded first.")
        elif is_pending:
            lines.append("Measuring how fast this machine is…")
        elif any(task.num_frames is None for task in tasks):
            lines.append("How long it takes cannot be told: the file does not say how long it is.")
        else:
            lines.append("How long it takes is not known yet; the first job will tell.")
        sizes = [f"Result {to_size_range(*need.result_bytes)}"]
        if need.memory is not None:
            kind = "GPU memory" if need.on_device else "memory"
            sizes.append(f"{kind} up to {to_size(need.memory[1])}")
        lines.append(f"{', '.join(sizes)}.")
        if need.seconds is not None:
            known = "a short test" if need.is_test else "1 earlier job" if need.num_samples == 1 else "earlier jobs"
            lines.append(f"From {known} on this machine.")
        return lines

    def _ready(self, owner: str, upload_ids: Sequence[str]) -> list[Upload]:
        """The uploads that can be started; those that are gone or not whole are no matter for an estimate."""
        found = []
        for upload_id in upload_ids:
            try:
                found.append(self._manager.uploads.ready(owner, upload_id))
            except RestoreError:
                continue
        return found

    def _room(self, owner: str, device_total: int | None) -> Room:
        manager = self._manager
        return Room(
            disk=shutil.disk_usage(manager.storage.root).free - _RESERVED_BYTES,
            memory=psutil.virtual_memory().available,
            device=device_total,
            stored=manager.limits.max_stored_bytes - manager.usage(owner).num_bytes,
        )


def _largest_that_fits(
    media: Sequence[Mapping[str, Any]],
    restore: Mapping[str, Any],
    sizes: Sequence[tuple[str, Mapping[str, Any]]],
    room: Room,
    estimate_of: Callable[[Sequence[Task]], Estimate],
) -> str | None:
    """The label of the size with the most pixels for which nothing is short; None if there is none."""
    best: tuple[float, str] | None = None
    for label, size in sizes:
        try:
            tasks = [make_task(one, {"encode": restore.get("encode", {}), **size}) for one in media]
        except SettingsError:
            continue
        pixels = sum(task.size.pixels for task in tasks)
        if not shortages(estimate_of(tasks), room) and (best is None or pixels > best[0]):
            best = (pixels, label)
    return best[1] if best else None


def _weights_bytes(model: str) -> int:
    """The bytes of the model's released files; 0 where they are small, or the program chooses the model later."""
    entry = CATALOGUE.get(model)
    parts = entry.files.values() if entry is not None else ()
    return sum(next((file.num_bytes or 0 for file in files if file.repository), 0) for files in parts)


def _model(settings: Mapping[str, Any]) -> str:
    return str(settings.get("engine", {}).get("model", "auto"))
