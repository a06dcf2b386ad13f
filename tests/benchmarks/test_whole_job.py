"""The figures of a whole job: what the thread that drives the card waited for is told apart from what it computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.whole_job import NETWORK_PARTS, WAITING_PARTS, JobFigures, measure_job
from inference.checkpoint import load_models


def test_every_part_that_is_waited_in_is_one_of_a_job(tiny_weights: Path, clips: Path) -> None:
    models = load_models("nano", tiny_weights)

    job = measure_job("nano", models.dit, models.vae, models.text, 32, 0.5, clips / "texture.mkv")

    assert {*NETWORK_PARTS, *(part for parts in WAITING_PARTS.values() for part in parts)} < job.seconds.keys()
    assert job.waits["other"] >= 0


def test_waits_are_seconds_by_kind() -> None:
    parts = {"encode": 2.0, "finish": 0.5, "read": 0.25, "hand over": 0.5, "take down": 0.25, "write": 0.125}
    job = JobFigures(clip="a.mp4", num_frames=10, size=(64, 32), seconds={**parts, "total": 4.0})

    assert job.waits == pytest.approx({"reading": 0.25, "writing": 0.875, "other": 0.375})
