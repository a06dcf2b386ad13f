"""Windows over the latents of a shot: which latents the transformer sees together, and how neighbours are joined.

Long shots do not fit into one pass of the transformer. Neighbouring windows share `overlap` latents; the shared ones
are mixed linearly in latent space, before the one decode stream, so that no pixel is ever cross-faded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """Latents [start, stop) of a shot; the first `shared` of those from `join` on were also in the window before.

    Latents before `join` are there only to give a short last window more context; their results are dropped.
    """

    start: int
    join: int
    stop: int
    shared: int


def frames_to_latents(num_frames: int) -> int:
    """Latents of `num_frames` frames: 1 for the first frame, then 1 for each 4 begun."""
    return (num_frames + 2) // 4 + 1 if num_frames > 0 else 0


def latents_to_frames(num_latents: int) -> int:
    """Frames that `num_latents` latents decode to."""
    return 4 * num_latents - 3 if num_latents > 0 else 0


class WindowPlanner:
    """Plans windows of at most `size` latents while the shot's length is not known yet.

    `overlap` is cut to half a window, so that a latent is in at most two windows that count for it. `done` latents have
    been planned before: a planner is as good as an earlier one that has come as far.
    """

    def __init__(self, size: int, overlap: int, done: int = 0) -> None:
        assert size >= 1
        assert overlap >= 0
        self._size, self._overlap = size, min(overlap, size // 2)
        self._done = done

    def next_full(self, available: int) -> Window | None:
        """The next whole window if the first `available` latents of the shot hold it, else None."""
        shared = min(self._overlap, self._done)
        start = self._done - shared
        if start + self._size > available:
            return None
        return self._take(Window(start, start, start + self._size, shared))

    def last(self, total: int) -> Window | None:
        """The window for what is left once the shot has turned out to have `total` latents; None if nothing is.

        It reaches back to at least half a window where the shot allows: lone latents restore worse.
        """
        if total <= self._done:
            return None
        shared = min(self._overlap, self._done)
        join = self._done - shared
        start = min(join, max(0, total - (self._size + 1) // 2))
        return self._take(Window(start, join, total, shared))

    @property
    def overlap(self) -> int:
        """Latents that two whole windows share."""
        return self._overlap

    @property
    def first_needed(self) -> int:
        """The first latent that a later window can still ask for."""
        context = (self._size + 1) // 2
        return max(0, self._done - max(self._overlap, context - 1))

    def _take(self, window: Window) -> Window:
        self._done = window.stop
        return window


def blend_weights(count: int) -> tuple[float, ...]:
    """Weight of the later window for each of `count` shared latents: an even ramp that never reaches 0 or 1."""
    return tuple((index + 1) / (count + 1) for index in range(count))


def blend(earlier: Tensor, later: Tensor) -> Tensor:
    """Mix the shared latents of two windows, both (B, C, t, h, w) of the same t, along time."""
    assert earlier.shape == later.shape
    weights = torch.tensor(blend_weights(later.shape[2]), dtype=torch.float32, device=later.device)
    return torch.lerp(earlier.float(), later.float(), weights.view(1, 1, -1, 1, 1)).to(later.dtype)


def join_window(
    held: Tensor | None, window: Window, latent: Tensor, overlap: int
) -> tuple[Tensor | None, Tensor | None]:
    """Join a restored window (1, C, t, h, w) to what the one before it left; returns (settled, held).

    `settled` are the next latents of the one stream, each latent exactly once; `held`, the last `overlap` latents, wait
    for the next window to be mixed with, and are settled as they are when there is none. Both are None when empty.
    """
    latent = latent[:, :, window.join - window.start :]
    if held is not None:
        settled, earlier = held.split([held.shape[2] - window.shared, window.shared], dim=2)
        later, new = latent.split([window.shared, latent.shape[2] - window.shared], dim=2)
        latent = torch.cat([settled, blend(earlier, later), new], dim=2)
    ready = max(0, latent.shape[2] - overlap)
    return _unless_empty(latent[:, :, :ready]), _unless_empty(latent[:, :, ready:])


def _unless_empty(latent: Tensor) -> Tensor | None:
    return latent if latent.shape[2] else None
