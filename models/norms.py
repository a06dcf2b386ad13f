"""Root-mean-square norm and the modulation of a sub-layer by the time embedding (AdaLN-single).

Source of the formulas: specification of the transformer, sections 5 and 6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
ATTENTION, MLP = 0, 1
"""Index of a sub-layer in the time embedding."""

SHIFT, SCALE, GATE = 0, 1, 2
"""Index of a vector within a sub-layer of the time embedding."""


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """`x / sqrt(mean(x^2) + 1e-5)` over the last axis, times `weight`; statistics in float32, dtype of `x` kept."""
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


class RMSNorm(nn.Module):
    """Root-mean-square norm with one weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


def _vectors(width: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """A shift, scale and gate that change nothing."""
    return nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))


class BlockModulation(nn.Module):
    """Learned shift, scale and gate of one stream, added to those of the time embedding.

    `embedding` is `(2, 3, B, C)`: sub-layer, vector, video, channel. Results are `(B, C)`, or one row per token when
    `owners` `(L,)` names the video of each token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn_shift, self.attn_scale, self.attn_gate = _vectors(width)
        self.mlp_shift, self.mlp_scale, self.mlp_gate = _vectors(width)

    def enter(self, x: Tensor, layer: int, embedding: Tensor, owners: Tensor | None) -> Tensor:
        """Scale and shift the normed input `x` `(L, C)` of a sub-layer. No "1 +": the stored scale carries it."""
        shift, scale = (self.attn_shift, self.attn_scale) if layer == ATTENTION else (self.mlp_shift, self.mlp_scale)
        return scale_shift(x, scale, shift, embedding[layer], owners)

    def leave(self, x: Tensor, residual: Tensor, layer: int, embedding: Tensor, owners: Tensor | None) -> Tensor:
        """`residual + gate * x`, both `(L, C)`."""
        gate = self.attn_gate if layer == ATTENTION else self.mlp_gate
        return torch.addcmul(residual, x, _rows(embedding[layer, GATE] + gate, owners))


class OutputModulation(nn.Module):
    """Scale and shift before the output layer (3B). It reads the attention slice of the time embedding, as trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_shift = nn.Parameter(torch.zeros(width))
        self.out_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, embedding: Tensor, owners: Tensor | None) -> Tensor:
        return scale_shift(x, self.out_scale, self.out_shift, embedding[ATTENTION], owners)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor, embedding: Tensor, owners: Tensor | None) -> Tensor:
    """`x * (embedding scale + scale) + (embedding shift + shift)`; `embedding` `(3, B, C)` is one sub-layer's slice."""
    factor, offset = _rows(embedding[SCALE] + scale, owners), _rows(embedding[SHIFT] + shift, owners)
    if x.dtype is torch.float32:
        # Two roundings, like the published network: with a fused one, queries and keys that lie on a tie round to the
        # other bfloat16 value before attention, and whole rows of the result then differ.
        return (x * factor).add_(offset)
    return torch.addcmul(offset, x, factor)


def _rows(vectors: Tensor, owners: Tensor | None) -> Tensor:
    return vectors if owners is None else vectors.index_select(0, owners)
