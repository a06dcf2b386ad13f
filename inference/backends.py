"""Which optional code computes in this process: settled once, before a model is loaded, by what was proven here.

- The Triton kernels are given up for plain PyTorch if a first call of one fails, for example for want of a C compiler;
  the convolution among them, which asks most of the compiler, for cuDNN if what it gives is wrong.
- flash-attn takes part in the choice of an attention backend only where torch's own kernel does not work, and only
  after it has passed the doctor's trial, in a process that may crash or hang without harm.
- apex is never used: its one fused step, the RMS norm, is part of the kernels here, together with what follows it.

Whatever is left out costs one line of the log, never a job.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from inference.doctor.examine import examine
from inference.doctor.findings import Severity
from inference.without import FLASH_ATTN, KERNELS, switched_off
from models import conv_ops, fused_ops, token_ops
from models.attention import Backend, admit, is_admitted, probe

log = logging.getLogger(__name__)

TRIAL_LIMIT_S = 30.0


def settle_backends(device: torch.device, dtype: torch.dtype, head_dim: int, limit_s: float = TRIAL_LIMIT_S) -> None:
    """Admit what works for a model with attention heads of `head_dim` on `device` in `dtype`."""
    off = switched_off()
    if KERNELS in off:
        fused_ops.use_kernels(False)
    elif device.type == "cuda" and (reason := _kernel_fault(device)):
        log.warning("the Triton kernels do not work here (%s), so plain PyTorch does their work", reason)
        fused_ops.use_kernels(False)
    elif conv_ops.is_for(like := torch.empty(0, device=device, dtype=dtype)) and (reason := _convolution_fault(like)):
        log.warning("the Triton convolution does not work here (%s), so cuDNN does its work", reason)
        conv_ops.use_own(False)
    is_wanted = FLASH_ATTN not in off and _is_installed("flash_attn")
    is_wanted = is_wanted and not probe(Backend.VARLEN, device, dtype, head_dim).works
    admit(Backend.FLASH_ATTN, is_admitted=is_wanted and _has_passed(FLASH_ATTN, limit_s))


def departures() -> dict[str, str]:
    """What this process computes with in place of the usual: units made with something else do not go with it."""
    found = {"attention": Backend.FLASH_ATTN.value} if is_admitted(Backend.FLASH_ATTN) else {}
    if not conv_ops.may_use_own():
        found["convolutions"] = "cuDNN"
    return found if fused_ops.may_use_kernels() else {**found, "kernels": "off"}


def _has_passed(part: str, limit_s: float) -> bool:
    report = examine(Path(tempfile.gettempdir()), checks=(part,), limit_s=limit_s)
    for finding in report.findings:
        log.info("%s", finding.sentence)
    return bool(report.findings) and report.worst is Severity.OK


def _kernel_fault(device: torch.device) -> str:
    x = torch.linspace(-3, 3, 64, device=device)[None]
    return _fault(lambda: token_ops.silu_mul(x, x), lambda: torch.nn.functional.silu(x) * x, 1e-3)


def _convolution_fault(like: Tensor) -> str:
    x, weight, bias, residual = (
        torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(like) - 0.5
        for shape in ((4, 5, 300, 128), (128, 128, 3, 3, 3), (128,), (2, 5, 300, 128))
    )
    taps = conv_ops.Taps(0.05 * weight)

    def convolve() -> Tensor:
        out, moments = conv_ops.convolve(x, taps, bias, residual, 32)
        return torch.cat([out.float().flatten(), moments.flatten()])

    def convolve_plainly() -> Tensor:
        with fused_ops.plain_pytorch():
            return convolve()

    return _fault(convolve, convolve_plainly, 0.05)  # three roundings of values up to 2


def _fault(compute: Callable[[], Tensor], compare: Callable[[], Tensor], most: float) -> str:
    """Why `compute` does not work: what it raises, or how far it is off; empty if it does."""
    try:
        with torch.no_grad():
            difference = (compute() - compare()).abs().max().item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  Triton, its compiler and the driver raise what they like
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "" if difference < most else f"a result differs by {difference:.1e}"


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
