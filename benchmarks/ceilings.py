"""What a card reaches in large products and copies: the ceilings that `./run.sh bench gpu` puts beside the networks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from models.fp8 import fp8_support
from models.fp8_ops import quantize_rows

SIDE = 8192
RUNS = 10
COPY_VALUES = 2**29


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """product: TFLOP/s in half precision. copy: GB/s, bytes read and written.

    fp8, fp8_exact: TFLOP/s of products in e4m3 with a scale for each row and column, sums kept in the tensor cores as
    the program does, and in float32; None where the card cannot, for the reason in `without_fp8`.
    """

    product: float
    copy: float
    fp8: float | None = None
    fp8_exact: float | None = None
    without_fp8: str = ""

    def to_text(self) -> str:
        """In words."""
        eighth = f"in fp8 {self.fp8:.0f} ({self.fp8_exact:.0f} with float32 sums)" if self.fp8 else "no fp8"
        reason = f" ({self.without_fp8})" if self.without_fp8 else ""
        return f"matrix product {self.product:.0f} TFLOP/s, {eighth}{reason}, copy {self.copy:.0f} GB/s"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        fp8 = {"matmul_fp8_tflops": self.fp8, "matmul_fp8_float32_sums_tflops": self.fp8_exact}
        return {
            "matmul_tflops": round(self.product, 1),
            **{name: None if value is None else round(value, 1) for name, value in fp8.items()},
            "copy_gbs": round(self.copy, 1),
        }


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measured on `device`, each after one run to warm up. Its memory is free again afterwards."""
    left, right = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    operations = 2 * SIDE**3
    product = operations / _median_s(lambda: left @ right, device) / 1e12
    support, rates = fp8_support(device), []
    if support.works:
        a, b = quantize_rows(left), quantize_rows(right)
        for fast in (True, False):

            def multiply(fast: bool = fast) -> None:
                torch._scaled_mm(
                    a.values, b.values.t(), scale_a=a.scales, scale_b=b.scales.t(), out_dtype=torch.bfloat16,
                    use_fast_accum=fast,
                )  # fmt: skip

            rates.append(operations / _median_s(multiply, device) / 1e12)
    source = torch.randn(COPY_VALUES, device=device, dtype=dtype)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _median_s(lambda: target.copy_(source), device) / 1e9
    fp8, exact = rates or (None, None)
    return Ceilings(product=product, copy=copy, fp8=fp8, fp8_exact=exact, without_fp8=support.reason)


def _median_s(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
