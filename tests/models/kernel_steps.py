"""Every step that has a Triton kernel, on small tensors; as a program, kernels against their plain twins.

Triton decides when it is imported whether kernels are interpreted, so that needs a process of its own:

    TRITON_INTERPRET=1 python -m tests.models.kernel_steps

On a machine with a CUDA card it runs the compiled kernels: `compute-sanitizer python -m tests.models.kernel_steps`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models import fp8_ops, fused_ops, pair_ops, token_ops
from tests.models.vae_models import random_tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def small(*shape: int, seed: int = 1) -> Tensor:
    return random_tensor(*shape, dtype=torch.float32, seed=seed).to(DEVICE)


def norm_of(channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(8, channels, eps=1e-6).to(DEVICE).requires_grad_(False)
    norm.weight.copy_(small(channels, seed=8))
    norm.bias.copy_(small(channels, seed=9))
    return norm


def add_into_a_padded_picture() -> list[Tensor]:
    buffer = torch.full((3, 8, 10, 32), 7.0, device=DEVICE)
    _, moments = fused_ops.add(
        small(3, 7, 9, 32) + 40, small(32, seed=2), small(3, 7, 9, 32, seed=3), 8, buffer[:, :7, :9]
    )
    return [buffer, moments]


def norm_and_silu() -> list[Tensor]:
    x, bias = small(3, 7, 9, 32) + 40, small(32, seed=2)
    moments, out, normed = fused_ops.moments(x, bias, 8), torch.empty_like(x), torch.empty_like(x)
    fused_ops.norm_silu(x, bias, moments, norm_of(32), out)
    fused_ops.norm_silu(x, None, fused_ops.moments(x, None, 8), norm_of(32), normed, silu=False)
    return [moments, out, normed]


def unfold() -> list[Tensor]:
    out = torch.full((4, 6, 8, 32), torch.nan, device=DEVICE)
    moments = fused_ops.unfold(small(2, 4, 5, 4 * 2 * 32), small(3, 3, 4 * 2 * 32, seed=2), 2, 8, out)
    return [out, moments]


def pictures() -> list[Tensor]:
    inside, moments = fused_ops.picture_in(small(5, 3, 6, 9), small(32, 3, 3, 3, 3, seed=2), small(32, seed=3), 8)
    return [inside, moments, fused_ops.picture_out(small(5, 6, 9, 32), small(3, 32, 3, 3, 3, seed=2), small(3, seed=3))]


def pairs_of_frames() -> list[Tensor]:
    results = []
    for frames, history in ((5, None), (4, None), (4, small(2, 7, 9, 32, seed=4)), (5, small(2, 7, 9, 32, seed=4))):
        x, bias = small(frames, 7, 9, 32) + 40, small(32, seed=2)
        for shift in (None, bias):
            past = None if history is None else history.clone()
            pairs = pair_ops.norm_silu_pairs(x, shift, fused_ops.moments(x, shift, 8), norm_of(32), past)
            results += [*pairs.factors, pairs.tail, *([] if pairs.head is None else [pairs.head])]
    products = [small(3, 7, 9, 32, seed=seed) + 40 for seed in (5, 6, 7, 8)]
    buffer = torch.full((6, 8, 10, 32), 7.0, device=DEVICE)
    for residual in (None, small(6, 7, 9, 32, seed=3)):
        results += [pair_ops.join_pairs(products, small(32, seed=2), residual, 8, buffer[:, :7, :9]), buffer.clone()]
    return results


def softmax() -> list[Tensor]:
    return [fused_ops.softmax(20 * small(5, 70), 0.3, torch.float32)]


def tokens() -> list[Tensor]:
    x, rest = small(9, 48), small(9, 48, seed=2)
    row, other = small(1, 48, seed=3), small(1, 48, seed=4)
    return [token_ops.norm_scale_shift(x, row, other), token_ops.gate_add(x, row, rest), token_ops.silu_mul(x, rest)]


def queries_of_two_streams() -> list[Tensor]:
    video, text = (
        token_ops.ProjectedTokens(small(rows, 3 * 3 * 16, seed=rows), small(16, seed=5), small(16, seed=rows + 1))
        for rows in (11, 4)
    )
    shared = token_ops.ProjectedTokens(torch.cat([video.qkv, text.qkv]), video.norm_q, video.norm_k)
    rotation = torch.polar(torch.ones(15, 8, device=DEVICE), 3 * small(15, 8, seed=6))
    rows = torch.randint(0, 15, (37,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return [q for streams in ([video, text], [shared]) for q in token_ops.window_qkv(streams, rotation, rows, 3)]


def rows_in_8_bits() -> list[Tensor]:
    x, rest, rows = small(9, 48), small(9, 48, seed=2), torch.tensor([7, 0, 7, 3], device=DEVICE)
    x[4] = 0
    row, other = small(1, 48, seed=3), small(1, 48, seed=4)
    made = [
        fp8_ops.quantize_rows(x),
        fp8_ops.quantize_rows(x, rows),
        fp8_ops.quantize_joined(x, rows, rest),
        fp8_ops.norm_scale_shift(x, row, other),
        fp8_ops.silu_mul(x, rest),
        fp8_ops.gelu(x),
    ]
    return [part for rows in made for part in (rows.dequantize(), rows.scales)]


STEPS: list[Callable[[], list[Tensor]]] = [
    add_into_a_padded_picture,
    norm_and_silu,
    unfold,
    pictures,
    pairs_of_frames,
    softmax,
    tokens,
    queries_of_two_streams,
    rows_in_8_bits,
]


def round_to_8_bits_as_cards_do() -> None:
    """Triton's interpreter loses the carry when a value rounds up to the next power of two (7.9 becomes 4, not 8)."""
    from triton.language import core
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_rightly(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (core.float32, core.float8e4nv):
            return convert(values, source, target, rounding)
        return torch.from_numpy(values.copy()).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    interpreter._convert_float = convert_rightly


@torch.no_grad()
def main() -> None:
    """Print the largest difference of each step, relative to its largest value, as JSON."""
    with fused_ops.plain_pytorch():
        plain = {step.__name__: step() for step in STEPS}
    fused_ops.uses_kernels = token_ops.uses_kernels = lambda x: True  # type: ignore[assignment]
    fused_ops._TILE, fused_ops._LOOP, fused_ops._COMBINED = 512, 2, 4  # small tensors have several tiles and blocks
    fused_ops._PICTURE_TILE, fused_ops._SOFTMAX_BLOCK = 16, 32
    pair_ops._TILE, pair_ops._LOOP = 512, 2
    if os.environ.get("TRITON_INTERPRET") == "1":
        round_to_8_bits_as_cards_do()
    found = {}
    for step in STEPS:
        pairs = zip(step(), plain[step.__name__], strict=True)
        found[step.__name__] = max(
            ((result - expected).abs().max() / expected.abs().max()).item() for result, expected in pairs
        )
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
