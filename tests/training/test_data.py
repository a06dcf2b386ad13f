"""Training material: the split, and clips made from photos."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from training.bank import NUM_FRAMES, Pair, Sampler, make_pairs
from training.data import VALIDATION, Source, load_sources, moving_clip


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
    assert clip.shape == (9, 288, 480, 3)
    assert not np.array_equal(clip[0], clip[8])


def test_a_batch_shows_the_same_places_small_and_sharp() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (NUM_FRAMES + 2, 80, 90, 3), dtype=np.uint8)
    sharp = small.repeat(4, axis=1).repeat(4, axis=2)
    pair = Pair(torch.from_numpy(sharp), torch.from_numpy(small), 4, 1.0, np.ones((6, 7), np.float32))
    for seed in range(4):
        batch = Sampler([pair]).sample(4, (96, 96), 2, np.random.default_rng(seed))
        assert batch.sharp.shape == (2, 3, NUM_FRAMES, 96, 96)
        assert batch.strength.tolist() == [1.0, 1.0]
        assert (batch.sharp[..., 1::4, 2::4] == batch.small).all()


def test_a_crop_that_no_clip_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="holds crops"):
        Sampler([]).sample(2, (96, 96), 1, np.random.default_rng(0))


def test_sources_become_pairs_of_every_scale_and_small_ones_are_left_out() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (NUM_FRAMES, 110, 150, 3), dtype=np.uint8)
    pairs = make_pairs([Source("a", frames), Source("b", frames[:, :60])], versions=5, seed=1)
    assert [pair.scale for pair in pairs] == [2, 2, 4, 4, 3]
    assert all(pair.sharp.shape[1] == pair.small.shape[1] * pair.scale for pair in pairs)
    assert all(0 < pair.strength <= 1 for pair in pairs)
