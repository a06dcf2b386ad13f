"""The errors that people read.

RestoreError                  str(error) is one sentence for the user, with the next thing to try
├── SettingsError             a value cannot work (also ValueError)
├── MediaError                a file cannot be read or written
├── CheckpointError           weights are missing, corrupt, or their keys do not match
├── DeviceMemoryError         the device ran out of memory; names the setting to lower
├── DiskFullError             a file could not be written for lack of space; the job can go on when there is some
├── FolderInUseError          another process works in the work folder; the job can go on when that one has ended
├── WorkerDiedError           the process that did the job has ended
└── CancelledError            the user stopped the job

They cross the process border between the worker and its client as `to_message` / `from_message`.
"""

from __future__ import annotations

from collections.abc import Mapping


class RestoreError(Exception):
    """Something went wrong that the user can understand; `str(error)` is the sentence to show."""


class SettingsError(RestoreError, ValueError):
    """A setting, or a combination of settings, cannot work."""


class MediaError(RestoreError):
    """A video or image cannot be read or written."""


class CheckpointError(RestoreError):
    """Model weights are missing, corrupt, or not the ones that were asked for."""


class DeviceMemoryError(RestoreError):
    """The device has too little memory for this job."""


class DiskFullError(RestoreError):
    """There is no space left where the job writes."""


class FolderInUseError(RestoreError):
    """Another process works in the work folder of this job."""


class WorkerDiedError(RestoreError):
    """The worker process ended during the job, through no fault that it could name."""


class CancelledError(RestoreError):
    """The user stopped the job."""

    def __init__(self, message: str = "The job was cancelled; nothing was written.") -> None:
        super().__init__(message)


_KINDS: dict[str, type[RestoreError]] = {
    kind.__name__: kind
    for kind in (
        RestoreError,
        SettingsError,
        MediaError,
        CheckpointError,
        DeviceMemoryError,
        DiskFullError,
        FolderInUseError,
        WorkerDiedError,
        CancelledError,
    )  # fmt: skip
}


def to_message(error: RestoreError) -> dict[str, str]:
    """`error` as a JSON-able mapping. A subclass that is not listed above travels as its nearest listed parent."""
    kind = next(parent.__name__ for parent in type(error).__mro__ if parent.__name__ in _KINDS)
    return {"kind": kind, "message": str(error)}


def from_message(message: Mapping[str, str]) -> RestoreError:
    """The error that `to_message` described, of the same type where the type is known."""
    return _KINDS.get(message.get("kind", ""), RestoreError)(message.get("message", "The job failed."))
