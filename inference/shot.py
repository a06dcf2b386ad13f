"""The data path of one shot: frames in, restored frames out, in one pass and with the same memory for any length.

    frames -> resize -> pad -> VAE encode (stream) -> DiT windows -> VAE decode (stream) -> crop -> colour fix -> frames

A slice of restored frames pulls what it needs through these steps. What is held between two slices is one window of
latents and the source frames of that window, or more of both where the plan has longer turns, so that a state of the
VAE is over and gone before the other one begins; the resized pictures that serve as colour reference are made again
from the source frames, which costs less than keeping them. All of it is in one value, `ShotState`, so a shot can stop
after any slice and go on in another process. Source frames are `(h, w, 3) uint8`, latents `(1, C, t, h, w)`, video
`(1, 3, T, H, W)` in [-1, 1].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from inference.back_projection import SourceTrust, back_projection
from inference.budget import Budget
from inference.checkpoint import Models
from inference.chunking import Window, WindowPlanner, join_window, latents_to_frames
from inference.color_fix import color_fix
from inference.diffusion import denoise, unit_noise
from inference.offload import onload
from inference.settings import ColorFix
from inference.shot_state import ShotState
from inference.sizes import Size
from inference.tracker import Tracker, Work
from inference.transforms import crop, pad_video, resize_to_target, to_frames, to_pictures
from inference.warm_up import num_warm_up_frames, remember
from models.vae_memory import move_to_host
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

    @property
    def slice_frames(self) -> int:
        """The most frames that come out of a shot at once."""
        return 4 * self.budget.decode_latents


def restore_shot(
    models: Models, frames: Iterable[Frame], plan: ShotPlan, tracker: Tracker, first_frame: int = 0
) -> Iterator[Frame]:
    """Restore one shot: as many frames `(H, W, 3)` of `plan.target` come out as `frames` brings.

    `first_frame` is the position of the shot in the clip; it decides the noise, so that a shot restores the same
    whatever was restored before it. Raises CancelledError between any two steps of a network.
    """
    for restored in ShotStream(models, plan, tracker, first_frame).slices(frames):
        yield from restored


class ShotStream:
    """One shot in slices.

    Between two slices, `state` and the `taken - given` source frames that are held are all that the rest depends on:
    a stream made with both goes on exactly where this one stands. One with a cold state also needs those before them.
    """

    def __init__(
        self,
        models: Models,
        plan: ShotPlan,
        tracker: Tracker,
        first_frame: int = 0,
        state: ShotState | None = None,
        latest: Sequence[Frame] = (),
    ) -> None:
        """`latest`: the last frames that were taken; those that are held, and for a cold state `num_warm_up_frames`."""
        self.state = state or ShotState()
        self._models, self._plan, self._tracker, self._first_frame = models, plan, tracker, first_frame
        parameter = next(models.vae.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        num_held = self.state.taken - self.state.given
        assert len(latest) >= num_held
        self._held: deque[Frame] = deque(latest[len(latest) - num_held :])
        self._latest = list(latest) if self.state.is_cold else []
        self._planner = WindowPlanner(plan.budget.window_latents, plan.overlap, self.state.planned)

    @property
    def num_warm_up(self) -> int:
        """How many of the latest frames that were taken are needed to go on from `state` as its file holds it."""
        if self.state.encoder is None or not self.state.has_large_histories:
            return 0
        return num_warm_up_frames(self._models.vae, self._plan.budget.encode_frames, self.state.taken)

    def slices(self, frames: Iterable[Frame]) -> Iterator[NDArray[np.uint8]]:
        """Restored frames `(T, H, W, 3)`, slice by slice; `frames` are those of the shot that were not taken yet."""
        source = iter(frames)
        if self.state.is_cold:
            with self._tracker.measure("warm up"):
                self._warm_up()
            self._tracker.warmed_up()
        while self._settle(source):
            yield self._restore_slice(self.state.settled.pop(0))

    def _warm_up(self) -> None:
        """Make the histories of a cold state again, by slices of the sizes that they came from."""
        state, size, latest = self.state, self._plan.budget.encode_frames, self._latest
        self._latest = []
        if state.encoder is not None and not state.encoder.histories:
            count = num_warm_up_frames(self._models.vae, size, state.taken)
            latest = latest[len(latest) - count :]
            assert len(latest) == count
            stream = None
            for start in range(0, count - 1, size):
                part = latest[: size + 1] if start == 0 else latest[start + 1 : start + 1 + size]
                _, stream = self._encode_slice(part, stream)
            assert stream is not None
            state.encoder = VAEState(stream.histories, state.encoder.num_frames)
            self._park(state.encoder)
        if state.decoder is not None and not state.decoder.histories:
            stream = None
            for latent in state.recent:
                self._tracker.check()
                _, stream = self._decode_slice(latent, stream)
            assert stream is not None
            state.decoder = VAEState(stream.histories, state.decoder.num_frames)

    def _settle(self, source: Iterator[Frame]) -> bool:
        """Work on until restored latents are there to be decoded; False when the shot is over."""
        state = self.state
        while not state.settled:
            window = self._next_window()
            if window is not None:
                self._denoise_turn(window)
            elif not state.has_ended:
                self._encode_turn(source)
            elif state.held is not None:
                self._add_settled(state.held)
                state.held = None
            else:
                return False
        return True

    def _next_window(self) -> Window | None:
        """The next window that can be restored from what was encoded so far."""
        window = self._planner.next_full(self.state.num_latents)
        return self._planner.last(self.state.num_latents) if window is None and self.state.has_ended else window

    def _encode_turn(self, source: Iterator[Frame]) -> None:
        """Slices up to the end of the shot, or of the encoder's turn."""
        goal = self.state.num_latents + self._plan.budget.turn_latents
        while self.state.num_latents < goal and not self.state.has_ended:
            self._encode_next(source)

    def _encode_next(self, source: Iterator[Frame]) -> None:
        """One slice of latents more; the last frame is repeated to fill the last slice (spec pipeline A3)."""
        state, size = self.state, self._plan.budget.encode_frames
        is_first = state.encoder is None
        with self._tracker.measure("read"):
            part = list(islice(source, size + 1 if is_first else size))
        state.has_ended = len(part) < (size + 1 if is_first else size)
        if not part:
            state.encoder = None
            return
        self._held.extend(part)
        with self._tracker.measure("encode"):
            self._park(state.decoder)
            if is_first:
                state.trust = SourceTrust.of(np.stack(part[:_NOISE_FRAMES]), self._plan.fidelity)
            missing = -(len(part) - 1 if is_first else len(part)) % 4
            latent, encoder = self._encode_slice([*part, *[part[-1]] * missing], state.encoder)
        state.encoder = None if state.has_ended else encoder
        state.taken += len(part)
        state.latents += _owned(latent, 1)
        self._tracker.advance(Work.ENCODE, len(part))

    def _denoise_turn(self, window: Window) -> None:
        """Restore a window, and all that follow it from what the encoder's turn has brought."""
        self._park(self.state.encoder, self.state.decoder)
        with onload(self._models.dit, self._device):
            following: Window | None = window
            while following is not None:
                self._denoise(following)
                following = self._next_window()

    def _denoise(self, window: Window) -> None:
        """Restore one window, join it to the one before, and drop the latents that no later window needs."""
        state = self.state
        restored = self._denoise_window(window)
        settled, held = join_window(state.held, window, restored, self._planner.overlap)
        if settled is not None:
            self._add_settled(settled)
        state.held = None if held is None else held.clone()
        needed = self._planner.first_needed
        del state.latents[: max(0, needed - state.first_latent)]
        state.first_latent = max(state.first_latent, needed)
        state.planned = window.stop
        before = latents_to_frames(window.join + window.shared)
        self._tracker.advance(Work.DENOISE, min(latents_to_frames(window.stop), state.taken) - before)

    def _add_settled(self, latent: Tensor) -> None:
        self.state.settled += _owned(latent, self._plan.budget.decode_latents)

    def _restore_slice(self, latent: Tensor) -> NDArray[np.uint8]:
        state = self.state
        self._tracker.check()
        with self._tracker.measure("decode"):
            self._park(state.encoder)
            pictures, state.decoder = self._decode_slice(latent, state.decoder)
            remember(state, latent, self._models.vae)
        count = min(len(pictures), len(self._held))  # what was padded at the end of the shot falls away here
        sources = [self._held.popleft() for _ in range(count)]
        step = count if self._device.type == "cuda" else 1  # frames that take long by themselves are done one by one
        restored = []
        for start in range(0, count, step):
            self._tracker.check()
            with self._tracker.measure("finish"):
                part = slice(start, min(start + step, count))
                restored.append(self._finish_slice(pictures[part], sources[part]).numpy())
        state.given += count
        self._tracker.advance(Work.DECODE, count)
        return restored[0] if len(restored) == 1 else np.concatenate(restored)

    def _park(self, *streams: VAEState | None) -> None:
        """Move states whose turn it is not to the host, if the plan says so; the VAE takes them back by itself."""
        if self._plan.budget.parks_states and self._device.type == "cuda":
            for stream in streams:
                if stream is not None:
                    move_to_host(stream.histories)

    # The steps that compute. Inference mode is entered in these and never across a yield, where it would leak.

    @torch.inference_mode()
    def _encode_slice(self, frames: list[Frame], stream: VAEState | None) -> tuple[Tensor, VAEState]:
        pictures = resize_to_target(self._upload(frames), self._plan.target, self._device)
        video = pad_video(pictures, self._plan.padded).to(self._dtype)
        posterior, stream = self._models.vae.encode(video, stream, self._tracker.check, self._plan.budget.vae_memory)
        return posterior.mean * self._models.latent_scale, stream

    @torch.inference_mode()
    def _denoise_window(self, window: Window) -> Tensor:
        first = window.start - self.state.first_latent
        latents = self.state.latents[first : first + window.stop - window.start]
        with self._tracker.measure("denoise"):
            latent = rearrange(torch.cat(latents, dim=2), "1 C t h w -> t h w C")
            frames, height, width, channels = latent.shape
            size = (frames, height, width, channels)
            noise = unit_noise(self._plan.seed, self._first_frame + window.start, size).to(self._device)
            noise *= self._models.entry.noise_scale
            restored = denoise(self._models.dit, noise, latent, self._models.text, on_block=self._tracker.check)
        return rearrange(restored, "t h w C -> 1 C t h w")

    @torch.inference_mode()
    def _decode_slice(self, latent: Tensor, stream: VAEState | None) -> tuple[Tensor, VAEState]:
        scaled = (latent / self._models.latent_scale).to(self._dtype)
        video, stream = self._models.vae.decode(scaled, stream, self._tracker.check, self._plan.budget.vae_memory)
        return rearrange(video, "1 C T H W -> T C H W"), stream

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
        return torch.cat([back_projection(c, s, self.state.trust.strength(c, s)) for c, s in frames])

    def _upload(self, frames: list[Frame]) -> Tensor:
        """Frames `(T, h, w, 3) uint8` on the device; through page-locked memory where that is faster."""
        is_cuda = self._device.type == "cuda"
        stacked = torch.empty((len(frames), *frames[0].shape), dtype=torch.uint8, pin_memory=is_cuda)
        np.stack(frames, out=stacked.numpy())
        return stacked.to(self._device, non_blocking=True) if is_cuda else stacked


def _owned(latent: Tensor, size: int) -> list[Tensor]:
    """Pieces of `size` latents, each with its own memory: what is kept of them keeps nothing else alive."""
    return [piece.clone() for piece in latent.split(size, dim=2)]
