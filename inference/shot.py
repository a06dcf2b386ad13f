"""The data path of one shot: frames in, restored frames out, in one pass and with the same memory for any length.

    frames -> resize -> pad -> VAE encode (stream) -> DiT windows -> VAE decode (stream) -> crop -> colour fix -> frames

Each step is a generator that pulls from the one before. What is held is one window of latents and the source frames
of that window; the resized pictures that serve as colour reference are made again from those, which costs less than
keeping them. Source frames are `(h, w, 3) uint8`, latents `(1, C, t, h, w)`, video `(1, 3, T, H, W)` in [-1, 1].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from inference.back_projection import SourceTrust, back_projection
from inference.checkpoint import Models
from inference.chunking import Window, WindowPlanner, join_windows, latents_to_frames
from inference.color_fix import color_fix
from inference.devices import Budget
from inference.diffusion import denoise, unit_noise
from inference.settings import ColorFix
from inference.sizes import Size
from inference.tracker import Tracker, Work
from inference.transforms import crop, pad_video, resize_to_target, to_frames, to_pictures
from models.video_vae import VAEState

Frame = NDArray[np.uint8]

_NOISE_FRAMES = 5
"""First frames of a shot from which its noise is estimated: one estimate for the whole shot cannot flicker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotPlan:
    """What is the same for every shot of a job.

    `target` is the size of the result, `padded` that of the networks. `fidelity` (0..1) is the strength of the
    back-projection for a source without noise and blur; `overlap` counts latents.
    """

    target: Size
    padded: Size
    budget: Budget
    overlap: int
    seed: int
    color_fix: ColorFix
    fidelity: float


def restore_shot(
    models: Models, frames: Iterable[Frame], plan: ShotPlan, tracker: Tracker, first_frame: int = 0
) -> Iterator[Frame]:
    """Restore one shot: as many frames `(H, W, 3)` of `plan.target` come out as `frames` brings.

    `first_frame` is the position of the shot in the clip; it decides the noise, so that a shot restores the same
    whatever was restored before it. Raises CancelledError between any two steps of a network.
    """
    return _Shot(models, plan, tracker, first_frame).restore(iter(frames))


class _Shot:
    """The steps of one shot and what they share: the source frames whose restored ones have not come out yet."""

    def __init__(self, models: Models, plan: ShotPlan, tracker: Tracker, first_frame: int) -> None:
        self._models, self._plan, self._tracker, self._first_frame = models, plan, tracker, first_frame
        parameter = next(models.vae.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._held: deque[Frame] = deque()
        self._trust = SourceTrust(plan.fidelity)

    def restore(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The steps in order."""
        planner = WindowPlanner(self._plan.budget.window_latents, self._plan.overlap)
        latents = self._encode(frames)
        windows = self._denoise(latents, planner)
        for pictures in self._decode(join_windows(windows, planner.overlap)):
            count = min(len(pictures), len(self._held))  # what was padded at the end of the shot falls away here
            sources = [self._held.popleft() for _ in range(count)]
            with self._tracker.measure("finish"):
                restored = self._finish_slice(pictures[:count], sources)
            yield from restored.numpy()
            self._tracker.advance(Work.DECODE, count)

    def _encode(self, frames: Iterator[Frame]) -> Iterator[Tensor]:
        """Scaled latents, slice by slice; the last frame is repeated to fill the last slice (spec pipeline A3)."""
        state: VAEState | None = None
        size = self._plan.budget.encode_frames
        while part := list(islice(frames, size if state is not None else size + 1)):
            self._held.extend(part)
            with self._tracker.measure("encode"):
                if state is None:
                    self._trust.observe(np.stack(part[:_NOISE_FRAMES]))
                missing = -(len(part) if state is not None else len(part) - 1) % 4
                latent, state = self._encode_slice([*part, *[part[-1]] * missing], state)
            yield latent
            self._tracker.advance(Work.ENCODE, len(part))

    def _denoise(self, pieces: Iterator[Tensor], planner: WindowPlanner) -> Iterator[tuple[Window, Tensor]]:
        """Restored windows; each starts as soon as its last latent is there."""
        kept: deque[Tensor] = deque()  # latents, one by one
        start = 0  # the number of the first one
        for piece in pieces:
            kept.extend(piece.split(1, dim=2))
            while (window := planner.next_full(start + len(kept))) is not None:
                yield window, self._denoise_window(window, list(islice(kept, window.start - start, None)))
                while start < planner.first_needed:
                    kept.popleft()
                    start += 1
        if (window := planner.last(start + len(kept))) is not None:
            yield window, self._denoise_window(window, list(islice(kept, window.start - start, None)))

    def _decode(self, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pictures `(T, 3, H, W)` at the padded size, in slices of the one decode stream."""
        state: VAEState | None = None
        for piece in pieces:
            for latent in piece.split(self._plan.budget.decode_latents, dim=2):
                self._tracker.check()
                with self._tracker.measure("decode"):
                    pictures, state = self._decode_slice(latent, state)
                yield pictures

    # The steps that compute. Inference mode is entered in these and never across a yield, where it would leak.

    @torch.inference_mode()
    def _encode_slice(self, frames: list[Frame], state: VAEState | None) -> tuple[Tensor, VAEState]:
        pictures = resize_to_target(self._upload(frames), self._plan.target, self._device)
        video = pad_video(pictures, self._plan.padded).to(self._dtype)
        posterior, state = self._models.vae.encode(video, state)
        return posterior.mean * self._models.latent_scale, state

    @torch.inference_mode()
    def _denoise_window(self, window: Window, latents: list[Tensor]) -> Tensor:
        latents = latents[: window.stop - window.start]
        before = latents_to_frames(window.join + window.shared)
        with self._tracker.measure("denoise"):
            latent = rearrange(torch.cat(latents, dim=2), "1 C t h w -> t h w C")
            frames, height, width, channels = latent.shape
            size = (frames, height, width, channels)
            noise = unit_noise(self._plan.seed, self._first_frame + window.start, size).to(self._device)
            noise *= self._models.entry.noise_scale
            restored = denoise(self._models.dit, noise, latent, self._models.text, on_block=self._tracker.check)
        self._tracker.advance(Work.DENOISE, latents_to_frames(window.stop) - before)
        return rearrange(restored, "t h w C -> 1 C t h w")

    @torch.inference_mode()
    def _decode_slice(self, latent: Tensor, state: VAEState | None) -> tuple[Tensor, VAEState]:
        video, state = self._models.vae.decode((latent / self._models.latent_scale).to(self._dtype), state)
        return rearrange(video, "1 C T H W -> T C H W"), state

    @torch.inference_mode()
    def _finish_slice(self, pictures: Tensor, sources: list[Frame]) -> Tensor:
        """Decoded pictures `(T, 3, H, W)` -> frames `(T, H, W, 3) uint8`: crop, colour, fidelity, one rounding."""
        target = self._plan.target
        content = crop(pictures, target).float()
        uploaded = self._upload(sources)
        content = color_fix(self._plan.color_fix, content, resize_to_target(uploaded, target, self._device))
        if self._plan.fidelity > 0:
            content = self._project(content, to_pictures(uploaded, self._device))
        return to_frames(content)

    def _project(self, content: Tensor, source: Tensor) -> Tensor:
        frames = zip(content.split(1), source.split(1), strict=True)
        return torch.cat([back_projection(c, s, self._trust.strength(c, s)) for c, s in frames])

    def _upload(self, frames: list[Frame]) -> Tensor:
        """Frames `(T, h, w, 3) uint8` on the device; through page-locked memory where that is faster."""
        stacked = torch.from_numpy(np.stack(frames))
        if self._device.type != "cuda":
            return stacked
        return stacked.pin_memory().to(self._device, non_blocking=True)
