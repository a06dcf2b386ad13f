"""Makes `nano`: `python -m training.train --data FOLDER --out FOLDER`. Owns stages, optimiser and state file.

1. codec: closed form. 2. refine: the residual blocks of the decoder. 3. latent: transformer and decoder, with pixel
losses through the decoder. 4. joint: all weights through the real autoencoder. The state is written every two minutes
and at the end of a call; a call with the same `--out` goes on from there. Runs on one GPU or on the CPU.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.presets import NANO_DIT, NANO_VAE
from training.bank import CROP, Example, Pair, make_pairs, sample, to_video
from training.codec import fit_codec
from training.data import load_sources
from training.losses import latent_loss, pixel_loss, psnr_y
from training.nano import Nano, resize, write_weights

log = logging.getLogger(__name__)

WARM_UP = 60
"""Steps at the start of a stage in which the rate rises."""
CLIP_FRAMES = 17
CODEC_VIDEOS = 60
SAVE_EVERY_S = 120.0
NUM_VALIDATION = 24
SHARES = {"refine_pixels": 1.0, "refine_parts": 0.1, "decoder.": 0.02, "vid_": 0.05, ".ada.": 0.05, "vae.": 0.02}
"""Share of the rate for the weights whose name holds the text; the first that does decides, else 1."""


class Stage(StrEnum):
    REFINE = "refine"
    LATENT = "latent"
    JOINT = "joint"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Minutes of training of each stage, peak rates of Adam, clips a step, weight of the latent loss."""

    refine_minutes: float = 6.0
    latent_minutes: float = 9.0
    joint_minutes: float = 9.0
    refine_rate: float = 1e-3
    latent_rate: float = 1e-3
    joint_rate: float = 3e-4
    batch: int = 6
    latent_weight: float = 0.01
    seed: int = 0

    def minutes(self, stage: Stage) -> float:
        return {Stage.REFINE: self.refine_minutes, Stage.LATENT: self.latent_minutes}.get(stage, self.joint_minutes)

    def rate(self, stage: Stage) -> float:
        return {Stage.REFINE: self.refine_rate, Stage.LATENT: self.latent_rate}.get(stage, self.joint_rate)


@dataclass(slots=True)
class Position:
    """Where training is: the stage, its steps and its seconds so far."""

    stage: Stage = Stage.REFINE
    steps: int = 0
    seconds: float = 0.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.json, clips/ and photos/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the state and of weights/")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop this call after so long")
    parser.add_argument("--threads", type=int, default=0)
    for name, value in ((f, getattr(Recipe(), f)) for f in Recipe.__dataclass_fields__):
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stop = time.monotonic() + 60 * options.minutes
    pairs = make_pairs(load_sources(options.data, CLIP_FRAMES), recipe.seed)
    held_out = make_pairs(load_sources(options.data, CLIP_FRAMES, validation=True), recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    validation = [_move(sample(held_out, rng), device) for _ in range(NUM_VALIDATION)] if held_out else []
    nano, position = start(pairs, recipe, options.out, device)
    run(nano, pairs, validation, recipe, position, options.out, stop)
    return 0


def start(pairs: list[Pair], recipe: Recipe, out: Path, device: torch.device) -> tuple[Nano, Position]:
    """The model and its place: from the state file when there is one, else the codec fitted to `pairs`."""
    torch.manual_seed(recipe.seed)
    state_file = out / "state.pt"
    if not state_file.is_file():
        codec = fit_codec(_codec_videos(pairs, recipe.seed), NANO_VAE)
        return _to(Nano(NANO_DIT, NANO_VAE, codec), device), Position()
    state = torch.load(state_file, map_location="cpu", weights_only=False)  # our own file
    nano = Nano(NANO_DIT, NANO_VAE, state["codec"])
    position: Position = state["position"]
    if position.stage in (Stage.JOINT, Stage.DONE):
        nano.become_joint()
    nano.load_state_dict(state["weights"])
    return _to(nano, device), position


def _to(nano: Nano, device: torch.device) -> Nano:
    codec = nano.codec
    nano.codec = type(codec)(tuple(step.to(device) for step in codec.steps), codec.scale.to(device))
    return nano.to(device)


def _codec_videos(pairs: list[Pair], seed: int) -> Iterator[Tensor]:
    """Sharp and enlarged clips in turn."""
    rng = np.random.default_rng(seed)
    for turn, index in enumerate(rng.permutation(len(pairs))[:CODEC_VIDEOS]):
        pair = pairs[index]
        video = to_video(pair.sharp[:9])
        if turn % 2:
            video = resize(to_video(pair.small[:9]), (video.shape[-2], video.shape[-1]))
        yield video[None]


def run(
    nano: Nano,
    pairs: list[Pair],
    validation: list[Example],
    recipe: Recipe,
    position: Position,
    out: Path,
    stop: float,
) -> None:
    """Trains until `stop` (monotonic seconds) or to the end of the last stage, and writes state and weights."""
    report_validation(nano, validation, position)
    while position.stage is not Stage.DONE and time.monotonic() < stop:
        finished = _run_stage(nano, pairs, validation, recipe, position, out, stop)
        if not finished:
            break
        following = {Stage.REFINE: Stage.LATENT, Stage.LATENT: Stage.JOINT}.get(position.stage, Stage.DONE)
        position.stage, position.steps, position.seconds = following, 0, 0.0
        if following is Stage.JOINT:
            nano.become_joint()
    _save(nano, position, out)
    report_validation(nano, validation, position)
    write_weights(nano, out / "weights")


def _run_stage(
    nano: Nano,
    pairs: list[Pair],
    validation: list[Example],
    recipe: Recipe,
    position: Position,
    out: Path,
    stop: float,
) -> bool:
    optimizer = _optimizer(nano, position.stage)
    device = next(nano.parameters()).device
    budget = 60 * recipe.minutes(position.stage)
    peak = recipe.rate(position.stage)
    nano.skips_restorer = position.stage is Stage.REFINE
    saved = last = time.monotonic()
    warm_up_from = position.steps
    while position.seconds < budget:
        if last >= stop:
            return False
        warm = min(1.0, (position.steps - warm_up_from + 1) / WARM_UP)
        rate = peak * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * position.seconds / budget)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        rng = np.random.default_rng((recipe.seed, list(Stage).index(position.stage), position.steps))
        report = step(nano, optimizer, [_move(sample(pairs, rng), device) for _ in range(recipe.batch)], recipe)
        now = time.monotonic()
        position.seconds += now - last
        position.steps += 1
        last = now
        if position.steps % 20 == 0:
            log.info("%s %d: %.0f s, %s", position.stage, position.steps, position.seconds, report)
        if now - saved > SAVE_EVERY_S:
            _save(nano, position, out)
            report_validation(nano, validation, position)
            saved = last = time.monotonic()
    return True


@torch.no_grad()
def report_validation(nano: Nano, examples: list[Example], position: Position) -> None:
    """Logs PSNR-Y against the enlarged input on examples that were never trained on, for each scale."""
    gains: dict[int, list[float]] = {}
    for example in examples:
        restored, _, enlarged = nano([example], (CROP, CROP))
        sharp = example.sharp[None]
        gain = psnr_y(restored, sharp) - psnr_y(enlarged, sharp)
        gains.setdefault(CROP // example.small.shape[-1], []).append(gain.item())
    words = ", ".join(f"x{scale} {np.mean(values):+.3f} dB" for scale, values in sorted(gains.items()))
    log.info("%s %d: validation %s", position.stage, position.steps, words)


def step(nano: Nano, optimizer: torch.optim.Optimizer, examples: list[Example], recipe: Recipe) -> str:
    """One update; returns a line with the loss and with PSNR-Y against that of the enlarged input."""
    sharp = torch.stack([example.sharp for example in examples])
    restored, latent, enlarged = nano(examples, (CROP, CROP))
    with torch.no_grad():
        wanted = nano.encode(sharp)
    loss = pixel_loss(restored, sharp) + recipe.latent_weight * latent_loss(latent, wanted)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    gain = (psnr_y(restored.detach(), sharp) - psnr_y(enlarged, sharp)).mean()
    return f"loss {loss.item():.4f}, PSNR-Y {gain.item():+.3f} dB against bicubic"


def _move(example: Example, device: torch.device) -> Example:
    return Example(example.sharp.to(device), example.small.to(device), example.strength)


def _optimizer(nano: Nano, stage: Stage) -> torch.optim.AdamW:
    """Adam with a share of the rate for each weight: what carries the exact start moves slowly, the rest freely."""
    groups = []
    for name, parameter in nano.named_parameters():
        if name.startswith(("restorer.dit.emb_in", "restorer.dit.txt_in")):
            parameter.requires_grad_(False)  # constants of a model with one timestep and one text
        elif stage is Stage.REFINE and ".refine_" not in name:
            parameter.requires_grad_(False)
        elif not (stage is Stage.JOINT and name.startswith("decoder.")):
            parameter.requires_grad_(True)
            groups.append({"params": [parameter], "share": _share(name)})
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)


def _share(name: str) -> float:
    """Share of the rate, by how far a step in these weights moves pixels."""
    if name.startswith("vae.") and ("conv_norm_out" in name or "conv_out" in name):
        return 0.0  # large constants that cancel: a small step here is a large error
    for part, share in SHARES.items():
        if part in name:
            return share
    return 1.0


def _save(nano: Nano, position: Position, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    part = out / "state.pt.part"
    codec = type(nano.codec)(tuple(step.cpu() for step in nano.codec.steps), nano.codec.scale.cpu())
    torch.save({"codec": codec, "weights": nano.state_dict(), "position": position}, part)
    part.replace(out / "state.pt")


if __name__ == "__main__":
    raise SystemExit(main())
