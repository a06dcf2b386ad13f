"""How the streaming VAE may save device memory, and the page-locked host memory that its histories can live in.

It changes numbers by rounding at the most: histories are copied, sub-slices are what the causal stream does anyway, and
where fewer frames are in work, fewer of them are convolved in pairs.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class VAEMemory:
    """What the fast form for GPUs does to need less device memory; the other forms are small by themselves.

    max_frames: the most frames in work at full size at a time, None for all of a slice. With 1, memory counts for more
    than time, and frames are not convolved in pairs either.
    states_on_host: histories live in host memory and are on the device only while their convolution runs.
    keeps_states: a slice leaves the state for the next one; the state of a clip's only slice is most of its memory.
    """

    max_frames: int | None = None
    states_on_host: bool = False
    keeps_states: bool = True

    @property
    def may_pair(self) -> bool:
        """Whether frames may be convolved in pairs (``pair_ops.py``): faster, with twice the memory for them."""
        return self.max_frames != 1


def page_locked_bytes(num_bytes: int) -> int:
    """What a page-locked block of so many bytes takes: PyTorch's allocator rounds it up to a power of two."""
    return 1 << (num_bytes - 1).bit_length() if num_bytes > 0 else 0


def to_host(x: Tensor, reuse: Tensor | None = None) -> Tensor:
    """``x`` in host memory, page-locked if it comes from CUDA; in that of ``reuse`` if that is there and fits.

    The copy is queued on the current stream: the host may read it after `wait_for_host_copies`. A meta tensor gives one
    of its shape that takes no memory.
    """
    if x.is_meta:
        return x.new_empty(()).expand(x.shape)
    fits = reuse is not None and reuse.device.type == "cpu" and (reuse.shape, reuse.dtype) == (x.shape, x.dtype)
    if reuse is None or not fits:
        reuse = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
    return reuse.copy_(x, non_blocking=True)


def move_to_host(histories: MutableSequence[Tensor]) -> None:
    """Replaces each tensor by its host copy, one after the other, and waits until they can be read."""
    moved = [index for index, history in enumerate(histories) if history.device.type != "cpu"]
    for index in moved:
        device = histories[index].device
        histories[index] = to_host(histories[index])
    if moved:
        wait_for_host_copies(device)


def wait_for_host_copies(device: torch.device) -> None:
    """Returns when all copies that `to_host` queued on the current stream are done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
