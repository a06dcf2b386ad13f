"""Rotary position embedding over three axes: frequencies, tables and the rotation itself.

A table holds one complex number per token and channel pair, `(L, D // 2)`; pairs that do not rotate hold 1.
Tables are computed in float32 from the configuration, never from frequencies stored in a checkpoint, which
lose up to several radians in half precision. Source of the formulas: specification of the transformer, section 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from models.windows import Partition


class Rope(Enum):
    """How token positions are counted."""

    INTEGER = "integer"
    """Whole numbers that restart in every window and follow the text (3B); the text rotates too."""

    PIXEL = "pixel"
    """From -1 to 1 across every window (7B, nano); the text does not rotate."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """What a table depends on besides positions. `rope_dim` counts only for integer positions."""

    kind: Rope
    head_dim: int
    rope_dim: int

    def frequencies(self) -> Tensor:
        """Radians per unit of position for each pair of one axis, `(F,)` float32 on the CPU."""
        if self.kind is Rope.INTEGER:
            width = self.rope_dim // 3
            exponents = torch.arange(0, width // 2 * 2, 2, dtype=torch.float32, device="cpu") / width
            return 1.0 / 10000.0**exponents
        width = self.head_dim // 2 // 3
        return torch.linspace(1.0, 128.0, width // 2, dtype=torch.float32, device="cpu") * math.pi


def axis_positions(kind: Rope, intervals: Partition, offset: int = 0) -> Tensor:
    """Window-local position of every index along one axis, `(n,)` float32 on the CPU.

    `offset` is added to whole-number positions and ignored for those from -1 to 1.
    """
    if kind is Rope.INTEGER:
        local = [torch.arange(offset, offset + stop - start, dtype=torch.float32) for start, stop in intervals]
    else:
        local = [torch.linspace(-1.0, 1.0, stop - start, dtype=torch.float32) for start, stop in intervals]
    return torch.cat(local)


def video_rotation(spec: RopeSpec, partitions: Sequence[Partition], text_length: int, device: torch.device) -> Tensor:
    """Table of one video's grid tokens in row-major order, `(t * h * w, D // 2)` complex64.

    `partitions` are the window borders along t, h and w; `text_length` is the first temporal position when
    positions are whole numbers.
    """
    frequencies = spec.frequencies()
    pairs = frequencies.numel()
    size = [intervals[-1][1] for intervals in partitions]
    table = torch.ones((*size, spec.head_dim // 2), dtype=torch.complex64, device=device)
    for axis, intervals in enumerate(partitions):
        positions = axis_positions(spec.kind, intervals, text_length if axis == 0 else 0)
        shape = [1, 1, 1, pairs]
        shape[axis] = -1
        turns = _unit(positions[:, None] * frequencies).to(device)
        table[..., axis * pairs : (axis + 1) * pairs] = turns.view(shape)
    return table.flatten(0, 2)


def text_rotation(spec: RopeSpec, length: int, device: torch.device) -> Tensor:
    """Table of one text, `(length, D // 2)` complex64: all ones where the text does not rotate."""
    table = torch.ones((length, spec.head_dim // 2), dtype=torch.complex64, device=device)
    if spec.kind is Rope.INTEGER:
        frequencies = spec.frequencies()
        turns = _unit(torch.arange(length, dtype=torch.float32)[:, None] * frequencies)
        table[:, : 3 * frequencies.numel()] = turns.repeat(1, 3).to(device)
    return table


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of `x` `(L, N, D)` by `table` `(L, D // 2)`, in float32; keeps the dtype of `x`."""
    pairs = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2).to(x.dtype)


def _unit(angles: Tensor) -> Tensor:
    return torch.complex(angles.cos(), angles.sin())


class _Frequencies(nn.Module):
    freqs: Tensor

    def __init__(self, spec: RopeSpec) -> None:
        super().__init__()
        self._spec = spec
        self.register_buffer("freqs", torch.empty_like(spec.frequencies(), device=torch.get_default_device()))
        self.restore()
        self.register_load_state_dict_post_hook(lambda module, _: module.restore())

    def restore(self) -> None:
        """Set the exact float32 values again, whatever a file or a cast put here."""
        self.freqs = self._spec.frequencies().to(self.freqs.device)


class RopeBuffer(nn.Module):
    """Keeps `rope.freqs` in the state dict, as released checkpoints do. Nothing computes with it."""

    def __init__(self, spec: RopeSpec) -> None:
        super().__init__()
        self.rope = _Frequencies(spec)
