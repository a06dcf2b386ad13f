"""One shot: every frame once, streaming, windows joined, cancellable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.budget import Budget
from inference.checkpoint import Models
from inference.errors import CancelledError
from inference.meter import Meter
from inference.progress import Cancellation, Progress, Stage
from inference.settings import ColorFix
from inference.shot import ShotPlan, restore_shot
from inference.sizes import Size
from inference.tracker import Tracker

PLAN = ShotPlan(
    target=Size(28, 20),
    padded=Size(32, 32),
    budget=Budget(encode_frames=4, decode_latents=1, window_latents=3),
    overlap=1,
    seed=1,
    color_fix=ColorFix.NONE,
    fidelity=0.0,
)


def make_tracker(cancellation: Cancellation | None = None) -> Tracker:
    return Tracker(Meter(torch.device("cpu")), None, cancellation)


Frames = list[NDArray[np.uint8]]
MovingFrames = Callable[[int], Frames]


@pytest.fixture
def restore(tiny_models: Models, moving_frames: MovingFrames) -> Callable[..., Frames]:
    def run(count: int, plan: ShotPlan = PLAN, first_frame: int = 0, noise_scale: float = 1.0) -> Frames:
        models = replace(tiny_models, entry=replace(tiny_models.entry, noise_scale=noise_scale))
        return list(restore_shot(models, moving_frames(count), plan, make_tracker(), first_frame))

    return run


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9, 16, 17, 18, 26])
def test_a_shot_of_any_length_gives_each_frame_once(restore: Callable[..., Frames], count: int) -> None:
    frames = restore(count)

    assert len(frames) == count
    assert {(frame.shape, frame.dtype) for frame in frames} == {((20, 28, 3), np.dtype(np.uint8))}


def test_a_shot_without_frames_gives_none(restore: Callable[..., Frames]) -> None:
    assert restore(0) == []


@pytest.mark.parametrize(("encode_frames", "decode_latents"), [(8, 1), (4, 3), (40, 9)])
def test_the_size_of_the_slices_does_not_change_the_result(
    restore: Callable[..., Frames], encode_frames: int, decode_latents: int
) -> None:
    budget = Budget(encode_frames=encode_frames, decode_latents=decode_latents, window_latents=3)

    difference = np.abs(np.int16(restore(18)) - np.int16(restore(18, replace(PLAN, budget=budget))))

    assert difference.max() <= 1  # one rounding


def test_a_shot_that_fits_one_window_does_not_depend_on_the_window(restore: Callable[..., Frames]) -> None:
    longer = replace(PLAN, budget=replace(PLAN.budget, window_latents=20))

    assert np.array_equal(restore(9), restore(9, longer))


def test_the_same_seed_gives_the_same_frames_and_another_one_does_not(restore: Callable[..., Frames]) -> None:
    first, again, other = (restore(6, replace(PLAN, seed=seed)) for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_model_without_noise_does_not_depend_on_the_seed(restore: Callable[..., Frames]) -> None:
    first, other = (restore(6, replace(PLAN, seed=seed), noise_scale=0.0) for seed in (1, 2))

    assert np.array_equal(first, other)


def test_the_position_in_the_clip_decides_the_noise(restore: Callable[..., Frames]) -> None:
    assert not np.array_equal(restore(6), restore(6, first_frame=100))


def test_frames_are_read_only_as_the_windows_need_them(tiny_models: Models, moving_frames: MovingFrames) -> None:
    taken, ahead = 0, []

    def source() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for frame in moving_frames(60):
            taken += 1
            yield frame

    for given, _ in enumerate(restore_shot(tiny_models, source(), PLAN, make_tracker()), 1):
        ahead.append(taken - given)

    assert max(ahead) == max(ahead[:20]) <= 4 * 3 + 4  # one window and one slice, however long the shot


def test_a_cancelled_shot_stops_at_the_next_step(tiny_models: Models, moving_frames: MovingFrames) -> None:
    cancellation = Cancellation()
    frames = restore_shot(tiny_models, moving_frames(60), PLAN, make_tracker(cancellation))
    next(frames)
    cancellation.cancel()

    with pytest.raises(CancelledError):
        list(islice(frames, 8))


def test_a_network_in_work_stops_between_its_blocks(tiny_models: Models, moving_frames: MovingFrames) -> None:
    cancellation, ran = Cancellation(), []
    first, second = tiny_models.dit.blocks
    first.register_forward_pre_hook(lambda *_: cancellation.cancel())
    second.register_forward_pre_hook(lambda *_: ran.append(second))

    with pytest.raises(CancelledError):
        list(restore_shot(tiny_models, moving_frames(20), PLAN, make_tracker(cancellation)))
    assert ran == []


def test_fidelity_brings_the_result_closer_to_the_source(tiny_models: Models) -> None:
    source = np.stack([np.full((10, 14, 3), 30 * index + 20, np.uint8) for index in range(5)])

    def error(fidelity: float) -> float:
        frames = list(restore_shot(tiny_models, source, replace(PLAN, fidelity=fidelity), make_tracker()))
        return float(np.abs(np.float32(frames).mean((1, 2)) - np.float32(source).mean((1, 2))).mean())

    assert error(1.0) < 0.2 * error(0.0)


def test_the_colour_fix_ties_colours_to_the_source(tiny_models: Models, moving_frames: MovingFrames) -> None:
    source = moving_frames(5)

    def error(kind: ColorFix) -> float:
        frames = list(restore_shot(tiny_models, source, replace(PLAN, color_fix=kind), make_tracker()))
        return float(np.abs(np.float32(frames).mean((1, 2)) - np.float32(source).mean((1, 2))).mean())

    assert error(ColorFix.ADAIN) < 0.3 * error(ColorFix.NONE)


def test_work_is_counted_up_to_the_number_of_frames(tiny_models: Models, moving_frames: MovingFrames) -> None:
    told: list[Progress] = []
    tracker = Tracker(Meter(torch.device("cpu")), told.append)
    tracker.enter(Stage.RESTORE, 17)

    list(restore_shot(tiny_models, moving_frames(17), PLAN, tracker))

    done = [progress.frames_done for progress in told]
    assert done == sorted(done)
    assert done[-1] == 17
    assert len(set(done)) > 10
