"""Which optional code computes in this process: settled once, before a model is loaded, by what was proven here.

- The Triton kernels are given up for plain PyTorch if a first call of one fails, for example for want of a C compiler.
- flash-attn takes part in the choice of an attention backend only where torch's own kernel does not work, and only
  after it has passed the doctor's trial, in a process that may crash or hang without harm.
- apex is never used: its one fused step, the RMS norm, is part of the kernels here, together with what follows it.

Whatever is left out costs one line of the log, never a job.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from pathlib import Path

import torch

from inference.doctor.examine import examine
from inference.doctor.findings import Severity
from inference.without import FLASH_ATTN, KERNELS, switched_off
from models import fused_ops, token_ops
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
    is_wanted = FLASH_ATTN not in off and _is_installed("flash_attn")
    is_wanted = is_wanted and not probe(Backend.VARLEN, device, dtype, head_dim).works
    admit(Backend.FLASH_ATTN, is_admitted=is_wanted and _has_passed(FLASH_ATTN, limit_s))


def departures() -> dict[str, str]:
    """What this process computes with in place of the usual: units made with something else do not go with it."""
    found = {"attention": Backend.FLASH_ATTN.value} if is_admitted(Backend.FLASH_ATTN) else {}
    return found if fused_ops.may_use_kernels() else {**found, "kernels": "off"}


def _has_passed(part: str, limit_s: float) -> bool:
    report = examine(Path(tempfile.gettempdir()), checks=(part,), limit_s=limit_s)
    for finding in report.findings:
        log.info("%s", finding.sentence)
    return bool(report.findings) and report.worst is Severity.OK


def _kernel_fault(device: torch.device) -> str:
    x = torch.linspace(-3, 3, 64, device=device)[None]
    try:
        with torch.no_grad():
            difference = (token_ops.silu_mul(x, x) - torch.nn.functional.silu(x) * x).abs().max().item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  Triton, its compiler and the driver raise what they like
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "" if difference < 1e-3 else f"a result differs by {difference:.1e}"


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
