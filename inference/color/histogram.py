"""Owns histogram matching (spec pipeline C, HM): give one set of values the distribution of another, by rank."""

from __future__ import annotations

import torch
from torch import Tensor


def match_histogram(source: Tensor, reference: Tensor) -> Tensor:
    """Values of `source`, any shape, replaced by the values of `reference` of the same rank.

    Ties are ranked by flat index. With unequal counts the reference is read at the nearest rank below.
    """
    order = torch.sort(source.flatten(), stable=True).indices
    ranked = torch.sort(reference.flatten()).values
    if ranked.numel() != order.numel():
        quantiles = torch.linspace(0, 1, order.numel(), dtype=torch.float32, device=source.device)
        ranked = ranked[(quantiles * (ranked.numel() - 1)).long()]
    matched = torch.empty_like(ranked)
    matched[order] = ranked
    return matched.view(source.shape)
