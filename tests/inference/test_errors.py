"""Errors for people, also across a process border."""

from __future__ import annotations

import json

import pytest

from inference.errors import (
    CancelledError,
    CheckpointError,
    DeviceMemoryError,
    DiskFullError,
    MediaError,
    RestoreError,
    SettingsError,
    WorkerDiedError,
    from_message,
    to_message,
)


@pytest.mark.parametrize(
    "kind",
    [
        RestoreError, SettingsError, MediaError, CheckpointError, DeviceMemoryError, DiskFullError, WorkerDiedError,
        CancelledError,
    ],
)  # fmt: skip
def test_an_error_comes_out_of_json_as_it_went_in(kind: type[RestoreError]) -> None:
    error = from_message(json.loads(json.dumps(to_message(kind("Try again.")))))

    assert type(error) is kind
    assert str(error) == "Try again."


def test_an_unlisted_subclass_travels_as_its_parent() -> None:
    class OddMediaError(MediaError):
        pass

    assert type(from_message(to_message(OddMediaError("x")))) is MediaError


def test_a_message_of_an_unknown_kind_is_still_an_error_for_people() -> None:
    assert str(from_message({"kind": "SystemExit", "message": "Odd."})) == "Odd."


def test_a_settings_error_is_a_value_error_too() -> None:
    assert issubclass(SettingsError, ValueError)


def test_a_cancelled_job_says_that_nothing_was_written() -> None:
    assert "nothing was written" in str(CancelledError())
