"""The training loop itself: it learns, is resumed where it stopped, and writes weights that the program loads."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from models.dit import DiTConfig, Mlp, Rope
from models.video_vae import VAEConfig
from training import train
from training.bank import Pair, make_pairs
from training.data import Source
from training.nano import read_weights
from training.train import Recipe, run, start, validation_batches

DIT = DiTConfig(
    width=112, text_width=8, num_layers=1, num_heads=2, head_dim=16, latent_channels=24, mlp=Mlp.GELU, mlp_ratio=1,
    rope=Rope.PIXEL, num_separate_layers=0, last_layer_video_only=False, output_modulation=False,
)  # fmt: skip
VAE = VAEConfig(widths=(16, 20, 24, 32), num_blocks=1, num_groups=1, latent_channels=24)
RECIPE = Recipe(total_minutes=10, rate=1e-3, warm_up=4, batch=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "NANO_DIT", DIT)
    monkeypatch.setattr(train, "NANO_VAE", VAE)
    monkeypatch.setattr(train, "SHAPES", (((48, 48), 1.0),))
    monkeypatch.setattr(train, "VALIDATION_SIZE", (48, 48))


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    rows, columns = np.mgrid[0:96, 0:144]
    frames = [
        np.stack([(rows * 5 + 3 * t) % 256, (columns * 7) % 256, (rows + columns + t) % 256], axis=-1) for t in range(9)
    ]
    return make_pairs([Source("stripes", np.stack(frames).astype(np.uint8))], versions=5, seed=0)


def _stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> float:
    """A clock for `run` that counts its calls: it shows the end of the call after so many steps."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(train.time, "monotonic", lambda: float(next(ticks)))
    return float(steps)


def test_training_goes_on_from_its_state_and_its_weights_load(
    pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    nano, position, moments = start(pairs, RECIPE, tmp_path, device)
    assert position.steps == 0
    assert moments is None
    before = {name: value.clone() for name, value in nano.state_dict().items()}
    with monkeypatch.context() as patch:
        run(nano, pairs, validation_batches(pairs, 0), RECIPE, position, moments, tmp_path, _stop_after(patch, 3))
    assert position.steps > 0
    assert any(not torch.equal(value, before[name]) for name, value in nano.state_dict().items())
    assert torch.equal(nano.restorer.dit.emb_in.proj_in.weight, before["restorer.dit.emb_in.proj_in.weight"])

    again, resumed, moments = start(pairs, RECIPE, tmp_path, device)
    assert resumed.steps == position.steps
    assert moments is not None
    assert all(torch.equal(value, nano.state_dict()[name]) for name, value in again.state_dict().items())
    with monkeypatch.context() as patch:
        run(again, pairs, {}, RECIPE, resumed, moments, tmp_path, _stop_after(patch, 2))
    assert resumed.steps > position.steps

    fresh, _, _ = start(pairs, RECIPE, tmp_path / "elsewhere", device, init=tmp_path / "weights")
    example = validation_batches(pairs, 0)["x2 degraded"]
    with torch.no_grad():
        assert (fresh(example).video - again(example).video).square().mean().sqrt() < 5e-3
    read_weights(fresh, tmp_path / "weights")


def test_a_call_whose_time_is_over_only_writes(pairs: list[Pair], tmp_path: Path) -> None:
    nano, position, moments = start(pairs, RECIPE, tmp_path, torch.device("cpu"))
    run(nano, pairs, {}, RECIPE, position, moments, tmp_path, time.monotonic() - 1)
    assert position.steps == 0
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        "nano_dit.safetensors",
        "nano_vae.safetensors",
    ]
