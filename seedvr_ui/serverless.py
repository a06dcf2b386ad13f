"""One job of a serverless worker: a file comes from a link, is restored, and goes to a link. Without runpod and gradio.

    input    {"source": "https://...", "target": "https://... (presigned, for PUT)", "settings": {"restore.factor": 2}}
    output   {"name", "bytes", "sha256", "seconds", "summary"}      or {"error": sentence}

Files travel by link in both directions, since RunPod's messages are limited to 10 MB (20 MB for waiting calls). Both
links may lead to the public internet only, as those that people paste into the page (`seedvr_ui/network.py`).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore2

from inference.errors import MediaError, RestoreError, SettingsError
from inference.progress import Progress, Report
from inference.settings import Settings, load_settings, to_dict
from seedvr_ui.fetch import LOST, ask
from seedvr_ui.network import LinkError, Network

log = logging.getLogger(__name__)

MAX_BYTES = 4 * 10**9
"""Largest source and largest result, in bytes."""

MAX_INPUT_BYTES = 64 * 1024
"""Longest input of a job, as text; links and settings need far less."""

_INPUT = {"source", "target", "settings"}
_NUM_TRIES = 5
_RETRY_WAIT_S = 2.0
_TELL_EVERY_S = 2.0
_SPARE_BYTES = 256 * 2**20
_BLOCK_BYTES = 2**20
_TIMEOUTS_S = {"connect": 10.0, "read": 120.0, "write": 60.0, "pool": 10.0}

Restore = Callable[[Path, Path, Mapping[str, Any], Report], Mapping[str, Any]]
"""Restores a file into another one with a tree of settings; returns the summary. Raises RestoreError."""

Tell = Callable[[Mapping[str, Any]], object]
"""Takes the progress of the job that runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandler:
    """Handles jobs one after another. `engine` is how this worker's models are set; a job cannot change it."""

    restore: Restore
    engine: Mapping[str, Any] = field(default_factory=dict)
    network: Network = field(default_factory=Network)
    max_bytes: int = MAX_BYTES
    retry_wait_s: float = _RETRY_WAIT_S

    def handle(self, wanted: object, tell: Tell) -> dict[str, Any]:
        """What the job `wanted` (the input of RunPod's job) gives. Anything that is not a RestoreError is a bug."""
        begin = time.perf_counter()
        try:
            source, target, settings = self._read(wanted)
            with tempfile.TemporaryDirectory(prefix="seedvr-job-") as name:
                folder = Path(name)
                tell({"stage": "fetch"})
                clip = self._fetch(source, folder)
                result = folder / f"restored{_result_suffix(clip)}"
                tree = {"engine": dict(self.engine), "restore": to_dict(settings)["restore"]}
                summary = self.restore(clip, result, tree, _Throttle(tell))
                tell({"stage": "send"})
                num_bytes, digest = self._send(result, target)
        except RestoreError as error:
            log.warning("the job failed: %s", error)
            return {"error": str(error)}
        return {
            "name": f"{clip.stem}_restored{result.suffix}",
            "bytes": num_bytes,
            "sha256": digest,
            "seconds": round(time.perf_counter() - begin, 3),
            "summary": dict(summary),
        }

    # --- inside ---

    def _read(self, wanted: object) -> tuple[str, str, Settings]:
        if not isinstance(wanted, Mapping) or set(wanted) - _INPUT or not {"source", "target"} <= set(wanted):
            raise SettingsError(
                'The input has to be {"source": link, "target": link, "settings": {...}} and nothing else.'
            )
        if len(str(wanted)) > MAX_INPUT_BYTES:
            raise SettingsError(f"The input is longer than {MAX_INPUT_BYTES} characters; give the file as a link.")
        source, target, settings = wanted["source"], wanted["target"], wanted.get("settings") or {}
        if not isinstance(source, str) or not isinstance(target, str) or not isinstance(settings, Mapping):
            raise SettingsError('source and target are links, settings a mapping such as {"restore.factor": 2}.')
        if any(str(key).partition(".")[0] == "engine" for key in settings):
            raise SettingsError("The engine of this worker is set by its owner; leave engine settings away.")
        for link in (source, target):  # before any work: a target that cannot be used would waste all of it
            self._judge(link)
        return source, target, load_settings(settings)

    def _judge(self, link: str) -> None:
        """Refuse a link that leads elsewhere than to the public internet; each connection is judged once more."""
        url = self.network.check(link)
        try:
            self.network.addresses(url.host.strip("[]"), url.port or (443 if url.scheme == "https" else 80))
        except httpcore2.ConnectError as error:
            raise LinkError(f"{error}; check the link.") from error

    def _fetch(self, link: str, folder: Path) -> Path:
        """The file behind `link`; a lost connection goes on where it broke off."""
        part, received, validator, name = folder / "source.part", 0, "", "source"
        for attempt in range(1, _NUM_TRIES + 1):
            try:
                with ask(link, self.network, received, validator) as answer:
                    name, validator, received = answer.name, answer.validator, answer.start
                    self._admit(answer.size or 0, folder, "source")
                    with part.open("r+b" if received else "wb") as file:
                        file.truncate(received)
                        file.seek(received)
                        for block in answer.blocks:
                            received += len(block)
                            self._admit(received, folder, "source", is_written=True)
                            file.write(block)
                    if answer.size is not None and received < answer.size:
                        raise httpcore2.ReadError("the connection was closed early")
                break
            except LOST as error:
                if attempt == _NUM_TRIES:
                    raise MediaError("The source cannot be fetched, its server does not answer; try again.") from error
                time.sleep(self.retry_wait_s * attempt)
        return part.rename(folder / name)

    def _send(self, result: Path, link: str) -> tuple[int, str]:
        """PUT the result; its size and SHA-256. Presigned links want a length and take no redirects."""
        num_bytes = result.stat().st_size
        self._admit(num_bytes, result.parent, "result", is_written=True)
        with result.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        url = self.network.check(link)
        address = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = [("Content-Length", str(num_bytes)), ("Content-Type", "application/octet-stream")]
        for attempt in range(1, _NUM_TRIES + 1):
            try:
                with self.network.connections() as pool:
                    answer = pool.request(
                        "PUT", address, headers=headers, content=_blocks(result), extensions={"timeout": _TIMEOUTS_S}
                    )
                if answer.status < 300:
                    return num_bytes, digest
                if answer.status < 500 and answer.status not in (408, 429):
                    raise LinkError(f"The target answers {answer.status}; give a link that takes a PUT, still valid.")
            except LOST as error:
                log.warning("the target does not answer: %s", type(error).__name__)
            if attempt < _NUM_TRIES:
                time.sleep(self.retry_wait_s * attempt)
        raise LinkError("The target does not take the result; try again with another link.")

    def _admit(self, num_bytes: int, folder: Path, what: str, *, is_written: bool = False) -> None:
        if num_bytes > self.max_bytes:
            limit = f"{self.max_bytes / 1e9:g} GB"
            raise MediaError(f"The {what} is larger than {limit}, which is the limit here; cut the video into parts.")
        if shutil.disk_usage(folder).free < _SPARE_BYTES + (0 if is_written else num_bytes):
            raise MediaError("The disk of this worker is too small for the file; give the worker a larger disk.")


class _Throttle:
    """Tells progress when the stage changes, and else every other second: each telling is a request to RunPod."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._last: tuple[str, float] = ("", 0.0)

    def __call__(self, progress: Progress) -> None:
        stage, told_at = self._last
        now = time.monotonic()
        if progress.stage.value == stage and now - told_at < _TELL_EVERY_S:
            return
        self._last = (progress.stage.value, now)
        values = {"frames_done": progress.frames_done, "frames_total": progress.frames_total, "eta_s": progress.eta_s}
        self._tell({"stage": progress.stage.value, **values})


def _result_suffix(source: Path) -> str:
    """Images stay images; everything else becomes an MP4."""
    suffix = source.suffix.lower()
    return suffix if suffix in (".png", ".jpg", ".jpeg", ".webp") else ".mp4"


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
