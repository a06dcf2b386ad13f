"""Makes `nano`: `python -m training.train --data FOLDER --out FOLDER`. Owns optimiser, schedule and state file.

The autoencoder starts in closed form (`codec.py`), the transformer as the identity; then all of it is trained together,
with pixel losses on what the program would write. The state is written every two minutes and at the end of a call; a
call with the same `--out` goes on from there. Runs on one GPU or on the CPU.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.presets import NANO_DIT, NANO_VAE
from training.bank import Batch, Pair, Sampler, make_pairs, to_video
from training.codec import fit_codec
from training.data import load_sources
from training.losses import pixel_loss, psnr_y
from training.nano import Nano, read_weights, resize, write_weights

log = logging.getLogger(__name__)

CLIP_FRAMES = 17
CODEC_VIDEOS = 60
SAVE_EVERY_S = 120.0
SHAPES = (((144, 144), 1.0), ((144, 144), 1.0), ((240, 240), 0.36), ((288, 480), 0.15))
"""Sizes of crops, one drawn for each step, and their share of `Recipe.batch`, so that steps take alike. The large ones
have windows of attention like those of whole pictures."""
VALIDATION_SIZE = (240, 240)
SHARES = {
    "refine_": 0.5,
    "decoder.": 0.02,
    "codec.": 0.01,
    "vid_": 0.05,
    ".ada.": 0.05,
}
"""Share of the rate for the weights whose name holds the text; the first that does decides, else 1."""
FROZEN = ("restorer.dit.emb_in", "restorer.dit.txt_in")
"""Constants of a model with one timestep and one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Length of the whole training, peak rate of Adam, steps in which the rate rises (at the start of every call),
    clips of 144x144 at each of two scales a step, degraded versions of each clip."""

    total_minutes: float = 24.0
    rate: float = 1e-3
    warm_up: int = 300
    batch: int = 24
    versions: int = 12
    seed: int = 0


@dataclass(slots=True)
class Position:
    """Where training is: steps and seconds so far."""

    steps: int = 0
    seconds: float = 0.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.json, clips/ and photos/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the state and of weights/")
    parser.add_argument("--init", type=Path, help="folder of weights to start from, in place of the closed form")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop this call after so long")
    parser.add_argument("--workers", type=int, default=0, help="processes that degrade clips")
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    stop = time.monotonic() + 60 * options.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    pairs = _pairs(options.data, recipe, options.workers, validation=False)
    held_out = _pairs(options.data, recipe, options.workers, validation=True)
    log.info("%d pairs, %d held out", len(pairs), len(held_out))
    nano, position, moments = start(pairs, recipe, options.out, device, options.init)
    validation = validation_batches([pair.to(device) for pair in held_out], recipe.seed)
    run(nano, [pair.to(device) for pair in pairs], validation, recipe, position, moments, options.out, stop)
    return 0


def _pairs(data: Path, recipe: Recipe, workers: int, *, validation: bool) -> list[Pair]:
    return make_pairs(load_sources(data, CLIP_FRAMES, validation), recipe.versions, recipe.seed, workers)


def start(
    pairs: list[Pair], recipe: Recipe, out: Path, device: torch.device, init: Path | None = None
) -> tuple[Nano, Position, Mapping[str, Any] | None]:
    """Model, place and Adam's moments: from the state file when there is one, else `init`, else the codec alone."""
    torch.manual_seed(recipe.seed)
    nano = Nano(NANO_DIT, NANO_VAE, fit_codec(_codec_videos(pairs, recipe.seed), NANO_VAE))
    if init is not None:
        read_weights(nano, init)
    nano.to(device)
    state_file = out / "state.pt"
    if not state_file.is_file():
        return nano, Position(), None
    state = torch.load(state_file, map_location=device, weights_only=True)
    nano.load_state_dict(state["weights"])
    return nano, Position(state["steps"], state["seconds"]), state["moments"]


def _codec_videos(pairs: list[Pair], seed: int) -> Iterator[Tensor]:
    """Sharp and enlarged clips in turn."""
    rng = np.random.default_rng(seed)
    for turn, index in enumerate(rng.permutation(len(pairs))[:CODEC_VIDEOS]):
        pair = pairs[index]
        video = to_video(pair.sharp[:9])[None]
        if turn % 2:
            video = resize(to_video(pair.small[:9])[None], (video.shape[-2], video.shape[-1]))
        yield video


def validation_batches(pairs: list[Pair], seed: int) -> dict[str, Batch]:
    """Batches of clips that were never trained on, by what happened to them."""
    rng = np.random.default_rng(seed)
    batches = {}
    for scale in (2, 4):
        for name, is_clean in (("clean", True), ("degraded", False)):
            chosen = [pair for pair in pairs if (pair.strength == 1.0) is is_clean]
            if any(pair.scale == scale for pair in chosen):
                batches[f"x{scale} {name}"] = Sampler(chosen).sample(scale, VALIDATION_SIZE, 16, rng)
    return batches


def run(
    nano: Nano,
    pairs: list[Pair],
    validation: dict[str, Batch],
    recipe: Recipe,
    position: Position,
    moments: Mapping[str, Any] | None,
    out: Path,
    stop: float,
) -> None:
    """Trains until `stop` (monotonic seconds) or to the end, and writes state and weights."""
    optimizer = make_optimizer(nano)
    if moments is not None:
        optimizer.load_state_dict(moments)
    sampler = Sampler(pairs)
    budget = 60 * recipe.total_minutes
    warm_up_from = position.steps
    report_validation(nano, validation, position)
    saved = last = time.monotonic()
    while position.seconds < budget and last < stop:
        warm = min(1.0, (position.steps - warm_up_from + 1) / recipe.warm_up)
        rate = recipe.rate * warm * (0.01 + 0.495 * (1 + math.cos(math.pi * position.seconds / budget)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        rng = np.random.default_rng((recipe.seed, position.steps))
        report = step(nano, optimizer, sampler, recipe, rng)
        now = time.monotonic()
        position.seconds += now - last
        position.steps += 1
        last = now
        if position.steps % 50 == 0:
            log.info("%d: %.0f s, %s", position.steps, position.seconds, report)
        if now - saved > SAVE_EVERY_S:
            _save(nano, optimizer, position, out)
            write_weights(nano, out / "weights")
            report_validation(nano, validation, position)
            saved = last = time.monotonic()
    _save(nano, optimizer, position, out)
    report_validation(nano, validation, position)
    write_weights(nano, out / "weights")


def step(
    nano: Nano, optimizer: torch.optim.Optimizer, sampler: Sampler, recipe: Recipe, rng: np.random.Generator
) -> str:
    """One update from crops of two scales; returns a line with the loss and the gain over bicubic."""
    size, share = SHAPES[rng.integers(len(SHAPES))]
    count = max(1, round(share * recipe.batch))
    optimizer.zero_grad()
    losses, gains = [], []
    for scale in (2, 4 if rng.random() < 0.7 else 3):
        batch = sampler.sample(scale, size, count, rng)
        restored = nano(batch)
        loss = pixel_loss(restored.video, batch.sharp)
        loss.backward()
        losses.append(loss.detach())
        with torch.no_grad():
            gains.append((psnr_y(restored.video, batch.sharp) - psnr_y(restored.enlarged, batch.sharp)).mean())
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return f"loss {torch.stack(losses).mean():.4f}, PSNR-Y {torch.stack(gains).mean():+.3f} dB against bicubic"


@torch.no_grad()
def report_validation(nano: Nano, batches: dict[str, Batch], position: Position) -> None:
    """Logs PSNR-Y against the enlarged input on clips that were never trained on."""
    gains = []
    for name, batch in batches.items():
        restored = nano(batch)
        gain = psnr_y(restored.video, batch.sharp) - psnr_y(restored.enlarged, batch.sharp)
        gains.append(f"{name} {gain.mean():+.3f}")
    log.info("validation at step %d: %s dB", position.steps, ", ".join(gains))


def make_optimizer(nano: Nano) -> torch.optim.AdamW:
    """Adam with a share of the rate for each weight: what carries the exact start moves slowly, the rest freely."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in nano.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
        if parameter.requires_grad:
            groups.setdefault(_share(name), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "share": share} for share, group in groups.items()],
        lr=0.0,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )


def _share(name: str) -> float:
    """Share of the rate, by how far a step in these weights moves pixels."""
    return next((share for part, share in SHARES.items() if part in name), 1.0)


def _save(nano: Nano, optimizer: torch.optim.Optimizer, position: Position, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    part = out / "state.pt.part"
    torch.save(
        {
            "weights": nano.state_dict(),
            "moments": optimizer.state_dict(),
            "steps": position.steps,
            "seconds": position.seconds,
        },
        part,
    )
    part.replace(out / "state.pt")


if __name__ == "__main__":
    raise SystemExit(main())
