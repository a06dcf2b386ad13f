"""Owns the transformer's large products in 8 bits: which layers, what is kept of their weights, where it works.

Quantised are the linears of the blocks (queries, keys and values; attention's output; the feed-forward network), which
are 98 % of the weights and all of the large products. What comes in and goes out (patches, text, time embedding) and
what modulates stays as it is. A weight has a scale for each output channel, made once; an activation one for each
token, made when it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from models.fp8_ops import MULTIPLE, Fp8Rows, product, quantize_rows

MIN_CAPABILITY = (8, 9)
"""Ada, Hopper, Blackwell: the first cards whose tensor cores take e4m3."""

_MAX_PROBE_DISTANCE = 0.01


class Fp8Linear(nn.Module):
    """A linear layer whose operands are e4m3: `weight` (N, K) with `weight_scale` (N, 1); the bias stays as it was.

    Takes tokens `(L, K)`, quantised already or not, and gives `(L, N)` in the type of the layer that it was made from.
    Raises ValueError for a layer whose sides are no multiples of 16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        _check_sides(linear)
        rows = quantize_rows(linear.weight.detach())
        self.weight = nn.Parameter(rows.values, requires_grad=False)
        self.weight_scale = nn.Parameter(rows.scales, requires_grad=False)
        self.bias = linear.bias
        self.dtype = linear.weight.dtype

    def forward(self, x: Tensor | Fp8Rows) -> Tensor:
        rows = quantize_rows(x) if isinstance(x, Tensor) else x
        return product(rows, Fp8Rows(self.weight, self.weight_scale), self.bias, self.dtype)


def quantize_linears(blocks: nn.Module) -> list[str]:
    """Puts an `Fp8Linear` in the place of every linear layer below `blocks`, one after the other; returns their names.

    Raises ValueError before anything is changed if a layer's sides do not allow it.
    """
    names = [name for name, layer in blocks.named_modules() if isinstance(layer, nn.Linear)]
    for name in names:
        _check_sides(cast("nn.Linear", blocks.get_submodule(name)))
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = blocks.get_submodule(parent)
        with torch.inference_mode(False), torch.no_grad():
            setattr(owner, child, Fp8Linear(getattr(owner, child)))  # the one before it is free here
    return names


def _check_sides(linear: nn.Linear) -> None:
    if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
        raise ValueError(
            f"A layer of {linear.in_features} to {linear.out_features} channels cannot compute in 8 bits; both have to"
            f" be multiples of {MULTIPLE}."
        )


@dataclass(frozen=True, slots=True)
class Fp8Support:
    """Whether a device computes products in 8 bits, and why it does not."""

    works: bool
    reason: str = ""


@lru_cache(maxsize=16)
def fp8_support(device: torch.device) -> Fp8Support:
    """Judged by a real product on the device, which has to agree with that of the same values in float32."""
    if device.type != "cuda":
        return Fp8Support(False, f"the device is {device.type}")
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return Fp8Support(False, f"this card has capability {capability[0]}.{capability[1]}")
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(rows, 256, generator=generator).to(device, torch.bfloat16) for rows in (33, 48))
    try:
        left, right = quantize_rows(x), quantize_rows(w)
        found = product(left, right, None, torch.bfloat16).float()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        return Fp8Support(False, f"torch {torch.__version__} cannot do it here: {reason}")
    exact = left.dequantize() @ right.dequantize().t()
    distance = float((found - exact).norm() / exact.norm())
    if not distance < _MAX_PROBE_DISTANCE:
        return Fp8Support(False, f"a test product is off by {distance:.1%}")
    return Fp8Support(True)
