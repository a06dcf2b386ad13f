"""Plans the memory of a shot: how much of it is in work at once, and what is moved to the host to make room.

A plan is chosen by what it is predicted to need (`footprint.py`), weights included, before anything is computed. On the
CPU the pieces are small and always the same, so that a result does not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch

from inference.chunking import frames_to_latents, latents_to_frames
from inference.errors import DeviceMemoryError
from inference.footprint import (
    dit_footprint,
    dit_weights,
    finish_footprint,
    latent_bytes,
    vae_footprint,
    vae_weights,
)
from inference.sizes import Size
from models.dit import DiTConfig
from models.vae_memory import VAEMemory
from models.video_vae import VAEConfig


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a shot is in work at once, and what waits in host memory.

    `encode_frames`: frames per VAE encode slice, a multiple of 4. `decode_latents`: latents per VAE decode slice.
    `window_latents`: latents per pass of the transformer. `max_frames`: frames in the VAE at full size at a time; None
    means all of a slice. `parks_states`: a state of the VAE is on the device only in its own direction's turn.
    `offloads_dit`: the transformer's weights are on the device only for its turn. `states_on_host`: each history of the
    VAE is on the device only while its convolution runs. `turn_latents`: latents that encoder, transformer and decoder
    work off in a turn each; with 1 a turn is as short as it can be, which is a window. `is_image`: there is one frame,
    so that the VAE keeps no state.
    """

    encode_frames: int
    decode_latents: int
    window_latents: int
    max_frames: int | None = None
    parks_states: bool = False
    offloads_dit: bool = False
    states_on_host: bool = False
    turn_latents: int = 1
    is_image: bool = False

    @property
    def vae_memory(self) -> VAEMemory:
        """The part of the plan that is the VAE's."""
        return VAEMemory(self.max_frames, self.states_on_host, keeps_states=not self.is_image)

    @property
    def turn_frames(self) -> int:
        """Frames of a turn. In shorter shots no state outlives its turn, so that none has to be moved."""
        return latents_to_frames(self.turn_latents)

    @property
    def moves_things(self) -> bool:
        """Whether anything may be moved to host memory."""
        return self.parks_states or self.offloads_dit

    def has_more_turns(self, num_frames: int | None) -> bool:
        """Whether a shot of at most `num_frames`, None for any number, may take more than one turn."""
        return num_frames is None or num_frames >= self.turn_frames

    def moved(self, num_frames: int | None = None) -> tuple[str, ...]:
        """What is moved to host memory, in words, for shots of at most `num_frames`; None for any number."""
        parks = self.parks_states and not self.states_on_host and self.has_more_turns(num_frames)
        states = "the VAE's states between turns"
        if self.turn_latents > 1:
            states += f" of {self.turn_frames} frames"
        return tuple(
            words
            for is_moved, words in (
                (parks, states),
                (self.states_on_host, "the VAE's states"),
                (self.offloads_dit, "the transformer's weights"),
            )
            if is_moved
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a plan is made for: networks, number format, padded picture size.

    `fp8`: the transformer's large products are in 8 bits. `num_frames`: of the longest shot, where that is known to be
    short (4n+1); None stands for any number. `clip_frames`: of all shots together, as far as the file says. `source`:
    size of its pictures; None stands for the padded size.
    """

    dit: DiTConfig
    vae: VAEConfig
    dtype: torch.dtype
    size: Size
    fp8: bool = False
    num_frames: int | None = None
    clip_frames: int | None = None
    source: Size | None = None

    @property
    def most_frames(self) -> int | None:
        """No shot has more than these; None stands for any number."""
        return min((count for count in (self.num_frames, self.clip_frames) if count is not None), default=None)

    @property
    def is_image(self) -> bool:
        """Whether there is one frame and no more."""
        return self.num_frames == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Most device memory in each turn, in bytes, weights included; and the host memory for what is moved or waits."""

    encode: int
    denoise: int
    decode: int
    host: int

    @property
    def device(self) -> int:
        """Most device memory of the whole shot."""
        return max(self.encode, self.denoise, self.decode)


ROOM = 0.94
"""Share of the memory that is planned with; the rest is for the allocator's gaps and cuDNN's workspaces."""

_LESS = 0.9
"""Of what a plan that failed was predicted to need, its successor may take so much."""

_FAST_PIECES = ((16, 4, 16), (16, 4, 8), (8, 2, 8), (8, 2, 4), (4, 1, 4), (4, 1, 2))
"""Frames per encode slice, latents per decode slice, frames at full size at a time: fastest first. Each copies the
histories less often than the next: from the first to the fourth that is 4 % of the time (an H100, 720p). Still longer
ones gain nothing."""

_SMALL_PIECES = ((4, 1, 1),)
"""Without pairs of frames, which costs up to 40 % of the time."""

_LATENTS = (25, 21, 17, 13, 11, 9, 7, 5)

TURN_LATENTS = 96
"""Of a turn where states are parked. Few shots are longer; those move their states once in so many latents, and while
their frames are encoded, as many source frames are held in main memory."""

_PARKED: dict[str, Any] = {"parks_states": True, "turn_latents": TURN_LATENTS}
_MOVES: tuple[dict[str, Any], ...] = ({}, _PARKED, {**_PARKED, "offloads_dit": True})
"""What is moved, once for each turn: faster pieces are worth it, and a longer window is, too."""

_MOVES_MOST: dict[str, Any] = {"parks_states": True, "offloads_dit": True, "states_on_host": True}
"""Every history moves with every slice, and again for each piece at full size, when nothing else helps."""

_CPU_LATENTS = 9


def candidates(window_latents: int = 0, *, is_image: bool = False) -> Iterator[Budget]:
    """All plans for a card, the best first; those with long turns may also be had with `shorter_turns`.

    `window_latents` > 0 is the user's own choice.
    """
    windows = (1,) if is_image else (window_latents,) if window_latents else _LATENTS
    kinds = (_FAST_PIECES, _SMALL_PIECES)
    for window, pieces, moves in product(windows, kinds, _MOVES):
        yield from (
            Budget(frames, latents, window, most, is_image=is_image, **moves) for frames, latents, most in pieces
        )
    if is_image:
        return
    for pieces, window in product(kinds, windows):
        yield from (Budget(frames, latents, window, most, **_MOVES_MOST) for frames, latents, most in pieces)


def plan_budget(
    device: torch.device,
    need: Need,
    window_latents: int = 0,
    memory: int | None = None,
    after: Budget | None = None,
) -> Budget:
    """The best plan that is predicted to fit.

    `memory`: bytes of the card that this process may use, weights included; None asks the driver. `after`: a plan that
    did not fit although it was predicted to, which leaves those that need less than it.
    Raises DeviceMemoryError, which says what to change, if no plan fits.
    """
    if device.type != "cuda":
        return Budget(encode_frames=8, decode_latents=2, window_latents=window_latents or _CPU_LATENTS)
    memory = usable_memory(device) if memory is None else memory
    host = free_host_memory()
    plans = list(candidates(window_latents, is_image=need.is_image))
    limit = memory * ROOM
    if after is not None:
        limit = min(limit, predict(after, need).device * _LESS)
        tried = next((index for index, plan in enumerate(plans) if after in (plan, shorter_turns(plan))), -1)
        plans = plans[tried + 1 :]
    least_host: int | None = None
    for plan in plans:
        if predict(plan, need).device > limit:
            continue
        for fitting in (plan, shorter_turns(plan)):
            needed = predict(fitting, need).host
            if needed <= host * ROOM or not fitting.moves_things:
                return fitting
            least_host = needed if least_host is None else min(least_host, needed)
    raise DeviceMemoryError(_does_not_fit(need, plans, memory, host, least_host, is_again=after is not None))


def shorter_turns(plan: Budget) -> Budget:
    """The same with turns of a window, for which fewer source frames wait: for machines with little main memory."""
    return replace(plan, turn_latents=1)


def usable_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that are free or belong to this process already, within the share that it may use."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), allowed)


def free_host_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory that can be had: of the machine, and within the limit of the container that this runs in."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:  # no container, or one of the older kind
        return free
    cached = int(stat.get("inactive_file", 0))  # counted as used, and given up when memory is asked for
    return free if limit == "max" else max(0, min(free, int(limit) - used + cached))


def predict(budget: Budget, need: Need) -> Prediction:
    """The memory that a shot takes by this plan."""
    size, dtype = need.size, need.dtype
    part = vae_footprint(
        need.vae,
        size.width,
        size.height,
        dtype,
        budget.encode_frames,
        budget.decode_latents,
        budget.vae_memory,
        need.num_frames,
    )
    dit = dit_weights(need.dit, dtype, need.fp8)
    window = dit_footprint(need.dit, budget.window_latents, size.width, size.height, dtype, need.fp8)
    encoder, decoder = (0, 0) if budget.parks_states else (part.encode_state, part.decode_state)
    # A turn begins with what the one before left over, which is less than a window, and ends with a whole slice.
    waiting = budget.turn_latents + budget.window_latents + budget.encode_frames // 4
    if need.most_frames is not None:
        waiting = min(waiting, frames_to_latents(need.most_frames))
    always = vae_weights(need.vae, dtype) + part.pair_taps + (0 if budget.offloads_dit else dit.device)
    encoded, restored = (
        latent_bytes(need.vae, waiting, size.width, size.height, kind) for kind in (dtype, torch.float32)
    )
    frames = 1 if need.is_image else 4 * budget.decode_latents
    finish = finish_footprint(frames, size.width, size.height)
    own_state = 0 if budget.states_on_host else part.decode_state
    source = need.source or size
    host = latents_to_frames(waiting) * 3 * source.width * source.height
    host += dit.host if budget.offloads_dit else 0
    if budget.states_on_host or (budget.parks_states and budget.has_more_turns(need.most_frames)):
        host += part.encode_histories + part.decode_histories
    return Prediction(
        encode=always + part.encode_peak + decoder + encoded,
        denoise=always + (dit.device if budget.offloads_dit else 0) + window + encoder + decoder + encoded + restored,
        decode=always + max(part.decode_peak, own_state + finish) + encoder + restored,
        host=host,
    )


def _does_not_fit(
    need: Need, plans: list[Budget], memory: int, host: int, least_host: int | None, *, is_again: bool
) -> str:
    """The sentence for a size that no plan makes fit; `least_host` of those for which the device has enough."""
    least = min((predict(plan, need) for plan in plans), key=lambda parts: parts.device, default=None)
    advice = "choose a smaller size (restore.resolution)"
    if not need.is_image and len({plan.window_latents for plan in plans}) == 1:
        advice += " or a shorter restore.window"
    if least_host is not None:
        return (
            f"Pictures of {need.size} fit on this device only with {least_host / ROOM / 2**30:.0f} GiB of main memory"
            f" to move things to, and {host / 2**30:.0f} GiB are free; close other programs, or {advice}."
        )
    if is_again or least is None:
        return f"The device ran out of memory twice, and no plan for {need.size} needs less; {advice}."
    return (
        f"Pictures of {need.size} need {least.device / ROOM / 2**30:.1f} GiB of device memory with this model at the"
        f" least, and {memory / 2**30:.1f} GiB can be used; {advice}, a smaller model or another device."
    )
