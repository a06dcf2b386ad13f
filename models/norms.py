"""Root-mean-square norm and the modulation of a sub-layer by the time embedding (AdaLN-single).

Source of the formulas: specification of the transformer, sections 5 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import fp8_ops
from models.fp8_ops import Fp8Rows
from models.token_ops import gate_add, norm_scale_shift, rms_norm, scale_shift

ATTENTION, MLP = 0, 1
"""Index of a sub-layer in the time embedding."""

SHIFT, SCALE, GATE = 0, 1, 2
"""Index of a vector within a sub-layer of the time embedding."""


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

    def enter(
        self, x: Tensor, layer: int, embedding: Tensor, owners: Tensor | None, *, fp8: bool = False
    ) -> Tensor | Fp8Rows:
        """Norm, scale and shift the input `x` `(L, C)` of a sub-layer. No "1 +": the stored scale carries it."""
        shift, scale = (self.attn_shift, self.attn_scale) if layer == ATTENTION else (self.mlp_shift, self.mlp_scale)
        factor, offset = _factor_offset(scale, shift, embedding[layer], owners)
        return fp8_ops.norm_scale_shift(x, factor, offset) if fp8 else norm_scale_shift(x, factor, offset)

    def leave(self, x: Tensor, residual: Tensor, layer: int, embedding: Tensor, owners: Tensor | None) -> Tensor:
        """`residual + gate * x`, both `(L, C)`."""
        gate = self.attn_gate if layer == ATTENTION else self.mlp_gate
        return gate_add(x, _rows(embedding[layer, GATE] + gate, owners), residual)


class OutputModulation(nn.Module):
    """Scale and shift before the output layer (3B). It reads the attention slice of the time embedding, as trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_shift = nn.Parameter(torch.zeros(width))
        self.out_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, embedding: Tensor, owners: Tensor | None) -> Tensor:
        return scale_shift(x, *_factor_offset(self.out_scale, self.out_shift, embedding[ATTENTION], owners))


def _factor_offset(scale: Tensor, shift: Tensor, embedding: Tensor, owners: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a sub-layer's input is multiplied by, then what is added; `embedding` `(3, B, C)` is its slice."""
    return _rows(embedding[SCALE] + scale, owners), _rows(embedding[SHIFT] + shift, owners)


def _rows(vectors: Tensor, owners: Tensor | None) -> Tensor:
    return vectors if owners is None else vectors.index_select(0, owners)
