"""Running out of device memory in the middle of a job. The errors are made here: no machine of the tests has a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference import pipeline
from inference.budget import Budget
from inference.checkpoint import Models
from inference.meter import Meter
from inference.pipeline import Result, prepare, run
from inference.settings import load_settings
from inference.shot import ShotStream
from inference.tracker import Tracker
from inference.units import finished_units, read_plan

PLANNED, SMALLER = Budget(4, 1, 5), Budget(4, 1, 3, 1)
DECODE = ShotStream._decode_slice
RunJob = Callable[..., Result]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """Makes some decodes, `times` ones after the first `after`, run out of memory, as on a card with two plans.

    Gives the list to which each decode adds the length of its plan's window.
    """

    def plan(*_: Any, after: Budget | None = None, **__: Any) -> Budget:
        return PLANNED if after is None else SMALLER

    def fail(after: int, times: int) -> list[int]:
        windows: list[int] = []

        def decode_or_fail(stream: ShotStream, latent: torch.Tensor, state: Any) -> Any:
            windows.append(stream._plan.budget.window_latents)
            if after < len(windows) <= after + times:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return DECODE(stream, latent, state)

        monkeypatch.setattr(ShotStream, "_decode_slice", decode_or_fail)
        monkeypatch.setattr(pipeline, "plan_budget", plan)
        monkeypatch.setattr(pipeline, "can_plan_again", lambda _: True)
        return windows

    return fail


@pytest.fixture
def run_job(tiny_models: Models, tmp_path: Path) -> RunJob:
    def run_it(source: Path, work: Path | None = None, name: str = "out.mp4") -> Result:
        job = prepare(source, tmp_path / name, load_settings(["overlap=1", "factor=1.5"]).restore)
        return run(job, tiny_models, Tracker(Meter(torch.device("cpu"))), work, frames_per_unit=4)

    return run_it


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_job_that_runs_out_of_memory_goes_on_with_a_smaller_plan(
    fail: Any, run_job: RunJob, make_clip: Any, decoded: Any, tmp_path: Path, is_kept: bool
) -> None:
    source, work = make_clip("in.mp4", 6, 14), tmp_path / "work" if is_kept else None
    windows = fail(after=4, times=1)  # in the second shot

    result = run_job(source, work)

    assert (result.frames, result.shots, len(decoded(tmp_path / "out.mp4"))) == (20, 2, 20)
    assert sum("begun again with smaller pieces" in note for note in result.notes) == 1
    # The first shot, of 3 latents, was not made again; the second one, of 5, was from its start.
    assert windows == [5] * 5 + [3] * 5


def test_a_shot_that_is_begun_again_is_as_if_the_smaller_plan_had_been_there_first(
    fail: Any, run_job: RunJob, make_clip: Any, decoded: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_clip("in.mp4", 14)
    fail(after=2, times=1)
    run_job(source)
    fail(after=0, times=0)
    monkeypatch.setattr(pipeline, "plan_budget", lambda *_, **__: SMALLER)
    run_job(source, name="small.mp4")

    assert np.array_equal(decoded(tmp_path / "out.mp4"), decoded(tmp_path / "small.mp4"))


def test_the_second_time_is_an_error_and_the_work_folder_knows_the_smaller_plan(
    fail: Any, run_job: RunJob, make_clip: Any, tmp_path: Path
) -> None:
    source, work = make_clip("in.mp4", 6, 14), tmp_path / "work"
    fail(after=4, times=2)

    with pytest.raises(torch.OutOfMemoryError):
        run_job(source, work)
    plan = read_plan(work)
    assert plan is not None
    assert Budget(**plan["choices"]["budget"]) == SMALLER
    assert {unit.shot for unit in finished_units(work)} == {0}

    windows = fail(after=0, times=0)
    assert run_job(source, work).frames == 20
    assert set(windows) == {3}


def test_a_work_folder_of_an_older_version_keeps_its_units(
    fail: Any, run_job: RunJob, make_clip: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, work = make_clip("in.mp4", 14), tmp_path / "work"
    fail(after=2, times=2)
    monkeypatch.setattr(pipeline, "can_plan_again", lambda _: False)
    with pytest.raises(torch.OutOfMemoryError):
        run_job(source, work)
    text = (work / "plan.json").read_text()
    for name in ("parks_states", "offloads_dit", "states_on_host"):
        text = text.replace(f'"{name}": false', '"max_frames": null')
    (work / "plan.json").write_text(text)
    units = finished_units(work)
    windows = fail(after=0, times=0)

    assert units
    assert run_job(source, work).frames == 14
    assert len(windows) == 5 - len(units)


def test_an_image_is_tried_again_too(fail: Any, run_job: RunJob, tmp_path: Path) -> None:
    Image.new("RGB", (24, 16), "teal").save(tmp_path / "in.png")
    windows = fail(after=0, times=1)

    result = run_job(tmp_path / "in.png", name="out.png")

    assert windows == [5, 3]
    assert any("smaller pieces" in note for note in result.notes)


def test_only_a_card_has_another_plan() -> None:
    on_cpu, on_card = (SimpleNamespace(device=torch.device(name)) for name in ("cpu", "cuda"))

    assert not pipeline.can_plan_again(on_cpu)  # type: ignore[arg-type]
    assert pipeline.can_plan_again(on_card)  # type: ignore[arg-type]


def test_an_offloaded_transformer_is_on_the_device_for_its_turn_only(
    run_job: RunJob, make_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []

    @contextmanager
    def note(name: str) -> Iterator[None]:
        turns.append(f"+{name}")
        yield
        turns.append(f"-{name}")

    moved = replace(PLANNED, parks_states=True, offloads_dit=True, states_on_host=True)
    monkeypatch.setattr(pipeline, "plan_budget", lambda *_, **__: moved)
    monkeypatch.setattr(pipeline, "offloaded", lambda _: note("job"))
    monkeypatch.setattr("inference.shot.onload", lambda *_: note("window"))

    run_job(make_clip("in.mp4", 6))

    assert turns == ["+job", "+window", "-window", "-job"]
