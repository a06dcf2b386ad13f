"""The Triton kernels, without a card: run by Triton's interpreter against their plain twins, and compiled for cards."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.models.kernel_steps import STEPS

ROOT = Path(__file__).resolve().parents[2]

triton = pytest.importorskip("triton", reason="Triton is made for Linux on x86-64 only")

CAPABILITIES = (80, 89, 90, 120)
"""A100; L40 and RTX 4090; H100 and H200; RTX 5090."""

SHARED_LIMIT = 99 * 1024
"""Bytes of shared memory of one block on capability 8.9, the smallest of these."""


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    """What `kernel_steps` found."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.kernel_steps"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("step", [step.__name__ for step in STEPS])
def test_a_kernel_equals_its_plain_twin(step: str, differences: dict[str, float]) -> None:
    assert differences[step] < 2e-5  # rounding: some inputs lie 40 standard deviations from zero


HALF, SINGLE, E4M3, INT, LONG, FLOAT = "*bf16", "*fp32", "*fp8e4nv", "i32", "i64", "fp32"
FRAME = {"G": 32, "LOOP": 16}
KERNELS: list[tuple[str, str, dict[str, str], dict[str, int], int]] = [
    (
        "frames", "add_kernel",
        {"x": HALF, "bias": HALF, "residual": HALF, "out": HALF, "partial": SINGLE, "num_pixels": INT, "width": INT,
         "out_frame": LONG, "out_row": LONG},
        {"C": 512, "PIXELS": 8, "HAS_BIAS": 1, "HAS_RESIDUAL": 1, "HAS_OUT": 1, **FRAME}, 4,
    ),
    (
        "frames", "unfold_kernel",
        {"grid": HALF, "bias": SINGLE, "out": HALF, "partial": SINGLE, "height": INT, "width": INT},
        {"C": 512, "PIXELS": 8, "Z": 2, **FRAME}, 4,
    ),
    (
        "frames", "norm_silu_kernel",
        {"x": HALF, "x_bias": HALF, "moments": SINGLE, "weight": HALF, "bias": HALF, "out": HALF, "num_pixels": INT,
         "eps": FLOAT},
        {"C": 128, "PIXELS": 32, "HAS_BIAS": 1, "HAS_SILU": 1, **FRAME}, 4,
    ),
    (
        "frames", "combine_kernel",
        {"partial": SINGLE, "moments": SINGLE, "num_blocks": INT}, {"G": 32, "BLOCKS": 1024}, 4,
    ),
    (
        "frames", "picture_in_kernel",
        {"x": HALF, "weight": HALF, "bias": HALF, "out": HALF, "partial": SINGLE, "height": INT, "width": INT},
        {"C": 128, "PIXELS": 128, **FRAME}, 8,
    ),
    (
        "frames", "picture_out_kernel",
        {"x": HALF, "bias": HALF, "out": HALF, "num_frames": INT, "height": INT, "width": INT},
        {"TAPS": 88, "PIXELS": 256}, 4,
    ),
    ("frames", "softmax_kernel", {"scores": SINGLE, "out": HALF, "length": INT, "scale": FLOAT}, {"BLOCK": 4096}, 8),
    (
        "tokens", "norm_scale_shift_kernel",
        {"x": HALF, "factor": HALF, "offset": HALF, "out": HALF, "width": INT, "eps": FLOAT}, {"BLOCK": 4096}, 8,
    ),
    (
        "tokens", "gate_add_kernel",
        {"x": HALF, "gate": HALF, "residual": HALF, "out": HALF, "width": INT}, {"BLOCK": 4096}, 8,
    ),
    ("tokens", "silu_mul_kernel", {"gate": HALF, "x": HALF, "out": HALF, "count": LONG}, {"BLOCK": 4096}, 8),
    (
        "tokens", "window_qkv_kernel",
        {"first": HALF, "second": HALF, "first_q": HALF, "first_k": HALF, "second_q": HALF, "second_k": HALF,
         "rotation": SINGLE, "rows": "*i64", "q": HALF, "k": HALF, "v": HALF, "num_rows": INT, "num_first": INT,
         "eps": FLOAT},
        {"N": 20, "D": 128, "ROWS": 16}, 4,
    ),
    (
        "fp8", "quantize_rows_kernel",
        {"x": HALF, "rows": "*i64", "out": E4M3, "scales": SINGLE, "width": INT}, {"HAS_ROWS": 1, "BLOCK": 16384}, 16,
    ),
    (
        "fp8", "norm_scale_shift_fp8_kernel",
        {"x": HALF, "factor": HALF, "offset": HALF, "out": E4M3, "scales": SINGLE, "width": INT, "eps": FLOAT},
        {"BLOCK": 4096}, 8,
    ),
    (
        "fp8", "silu_mul_fp8_kernel",
        {"gate": HALF, "x": HALF, "out": E4M3, "scales": SINGLE, "width": INT}, {"BLOCK": 8192}, 8,
    ),
    (
        "pairs", "norm_silu_pairs_kernel",
        {"x": HALF, "x_bias": HALF, "moments": SINGLE, "weight": HALF, "bias": HALF, "history": HALF, "first": HALF,
         "second": HALF, "third": HALF, "fourth": HALF, "head": HALF, "tail": HALF, "num_pixels": INT,
         "num_pairs": INT, "eps": FLOAT},
        {"C": 256, "G": 32, "PIXELS": 8, "HAS_BIAS": 1, "HAS_HISTORY": 0, "HAS_REST": 1}, 4,
    ),
    (
        "pairs", "norm_silu_pairs_kernel",
        {"x": HALF, "x_bias": HALF, "moments": SINGLE, "weight": HALF, "bias": HALF, "history": HALF, "first": HALF,
         "second": HALF, "third": HALF, "fourth": HALF, "head": HALF, "tail": HALF, "num_pixels": INT,
         "num_pairs": INT, "eps": FLOAT},
        {"C": 512, "G": 32, "PIXELS": 4, "HAS_BIAS": 0, "HAS_HISTORY": 1, "HAS_REST": 0}, 4,
    ),
    (
        "pairs", "join_pairs_kernel",
        {"first": HALF, "second": HALF, "third": HALF, "fourth": HALF, "bias": HALF, "residual": HALF, "out": HALF,
         "partial": SINGLE, "num_pixels": INT, "width": INT, "out_frame": LONG, "out_row": LONG},
        {"C": 512, "PIXELS": 4, "HAS_RESIDUAL": 1, **FRAME}, 4,
    ),
    ("fp8", "gelu_fp8_kernel", {"x": HALF, "out": E4M3, "scales": SINGLE, "width": INT}, {"BLOCK": 16384}, 16),
]  # fmt: skip
"""Module, kernel, types of its arguments, constants as for the released models, and warps."""


MODULES = ("fp8", "frames", "pairs", "tokens")
WITHOUT_FP8 = 80
"""A card that cannot convert to e4m3, where no kernel of that module is ever started."""


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_compiles_for_cards_within_their_shared_memory(capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    modules = {name: importlib.import_module(f"models.kernels.{name}") for name in MODULES}
    for module, name, types, constants, warps in KERNELS:
        if module == "fp8" and capability == WITHOUT_FP8:
            continue
        kernel: Any = getattr(modules[module], name)
        signature = {**types, **dict.fromkeys(constants, "constexpr")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Triton announces a new default of its own
            compiled = triton.compile(
                ASTSource(kernel, signature=signature, constexprs=constants),
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": warps},
            )
        assert compiled.asm["cubin"], name
        assert compiled.metadata.shared <= SHARED_LIMIT, name


def test_every_kernel_is_compiled_by_that_test() -> None:
    found = {
        name
        for module in MODULES
        for name in vars(importlib.import_module(f"models.kernels.{module}"))
        if name.endswith("_kernel")
    }

    assert found == {name for _, name, *_ in KERNELS}
