"""Which device to compute on, and in which number format. What fits into its memory is planned in `budget.py`."""

from __future__ import annotations

import torch

from inference.catalogue import AUTO_MODEL, ModelEntry, default_model, find_model
from inference.errors import SettingsError
from inference.settings import Precision
from models.fp8 import MIN_CAPABILITY, fp8_support

_DTYPES = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
    Precision.FP8: torch.bfloat16,  # of all but the large products
}


def choose_device(name: str) -> torch.device:
    """The torch device for `engine.device`; `auto` is the first CUDA device, else the CPU. Raises SettingsError."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise SettingsError("No CUDA device can be used here; set engine.device=cpu, or check the driver (nvidia-smi).")
    index = device.index or 0
    count = torch.cuda.device_count()
    if index >= count:
        raise SettingsError(f"There is no device cuda:{index}; this machine has cuda:0 to cuda:{count - 1}.")
    return torch.device("cuda", index)


def choose_dtype(precision: Precision, device: torch.device, needs_float32: bool = False) -> torch.dtype:
    """The number format of the networks; `auto` is bfloat16 on CUDA where the card computes in it, else float32.

    `needs_float32` is the model's: `auto` is then float32 everywhere. Raises SettingsError for fp8 where the device
    cannot compute in it: nobody who asks for it shall get something else.
    """
    if precision is Precision.FP8 and not (support := fp8_support(device)).works:
        raise SettingsError(
            f"engine.precision=fp8 needs a CUDA card of capability {'.'.join(map(str, MIN_CAPABILITY))} or newer (L40,"
            f" RTX 40, H100 and later), and {support.reason}; set engine.precision=auto."
        )
    if precision is not Precision.AUTO:
        return _DTYPES[precision]
    if device.type != "cuda" or needs_float32:
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def choose_model(name: str, device: torch.device, *, fp8: bool = False) -> ModelEntry:
    """The catalogue entry for `engine.model`; `auto` is the largest that fits a CUDA card (in `fp8`), else nano."""
    if name != AUTO_MODEL:
        return find_model(name)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return find_model(default_model(memory, fp8=fp8))


def describe_precision(dtype: torch.dtype, *, fp8: bool) -> str:
    """The number formats of the networks in words, for summary, plan and log."""
    name = str(dtype).removeprefix("torch.")
    return f"{name} and fp8" if fp8 else name


def describe_device(device: torch.device) -> str:
    """The device in words, for the summary."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def device_memory(device: torch.device) -> int | None:
    """The bytes of memory that a CUDA device has; None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
