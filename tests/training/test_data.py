"""Training material: the split, and clips made from photos."""

from itertools import islice
from pathlib import Path

import numpy as np

from training.bank import CROP, NUM_FRAMES, Pair, sample
from training.data import VALIDATION, load_sources, moving_clip


def test_training_never_sees_a_validation_clip_and_validation_sees_nothing_else(shared: Path) -> None:
    trained = [source.name.split("@")[0] for source in islice(load_sources(shared / "train_media", 9), 4)]
    held_out = [source.name.split("@")[0] for source in islice(load_sources(shared / "train_media", 9, True), 3)]
    assert trained
    assert not VALIDATION & set(trained)
    assert held_out
    assert set(held_out) <= VALIDATION


def test_a_photo_becomes_a_clip_that_moves_smoothly() -> None:
    rng = np.random.default_rng(3)
    photo = rng.integers(0, 256, (1, 600, 900, 3), dtype=np.uint8)
    clip = moving_clip(photo, 9, np.random.default_rng(1))
    assert clip.shape == (9, 272, 480, 3)
    assert not np.array_equal(clip[0], clip[8])


def test_a_sample_shows_the_same_place_small_and_sharp() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (NUM_FRAMES + 2, 80, 90, 3), dtype=np.uint8)
    pair = Pair(small.repeat(4, axis=1).repeat(4, axis=2), small, 4, 1.0)
    for seed in range(6):
        example = sample([pair], np.random.default_rng(seed))
        assert example.sharp.shape == (3, NUM_FRAMES, CROP, CROP)
        assert (example.sharp[..., 1::4, 2::4] == example.small).all()
