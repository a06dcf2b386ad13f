"""What a job would do on this machine, or on a card that is not here, without doing it: for `seedvr plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inference.budget import Budget, Need, Prediction, plan_budget, predict, usable_memory
from inference.catalogue import AUTO_MODEL, ModelEntry, default_model, find_model
from inference.checkpoint import CONFIGS
from inference.chunking import frames_to_latents, latents_to_frames
from inference.devices import choose_device, choose_dtype, choose_model, describe_device, describe_precision
from inference.media.probe import probe
from inference.settings import Precision, Settings
from inference.sizes import Size, padded_size, target_size

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """How a job would be done.

    device: in words. frames: of the source as far as it says, None if it does not. size: of the result; padded: of the
    networks. memory: bytes of the device that can be used, and prediction: what the job takes of them; None on a CPU.
    """

    source: str
    model: str
    device: str
    precision: str
    frames: int | None
    size: Size
    padded: Size
    budget: Budget
    memory: int | None
    prediction: Prediction | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        values = asdict(self)
        if self.prediction is not None:
            values["prediction"]["device"] = self.prediction.device
        window = latents_to_frames(self.budget.window_latents)
        return values | {"window_frames": window, "moved": list(self.budget.moved(self.frames))}

    def to_rows(self) -> list[tuple[str, str]]:
        """What it says, as names and words."""
        budget, prediction = self.budget, self.prediction
        most = "" if budget.max_frames is None else f", {budget.max_frames} at full size at a time"
        rows = [
            ("model", f"{self.model} in {self.precision}"),
            ("device", self.device),
            ("result", f"{self.size}" + ("" if self.frames is None else f", {self.frames} frames")),
            ("window", f"{latents_to_frames(budget.window_latents)} frames"),
            ("slices", f"{budget.encode_frames} frames encoded, {4 * budget.decode_latents} decoded{most}"),
            ("moved", " and ".join(budget.moved(self.frames)) or "nothing"),
        ]
        if prediction is not None and self.memory is not None:
            parts = (("encode", prediction.encode), ("denoise", prediction.denoise), ("decode", prediction.decode))
            words = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
            rows.append(("device memory", f"{prediction.device / GIB:.1f} of {self.memory / GIB:.1f} GiB ({words})"))
            if prediction.host >= 0.05 * GIB:
                rows.append(("main memory", f"{prediction.host / GIB:.1f} GiB for what is moved or waits for its turn"))
        return rows


def plan_job(source: Path, settings: Settings, memory_gib: float | None = None) -> JobPlan:
    """The plan for restoring `source`; with `memory_gib`, as for a card of which so much can be used.

    Raises MediaError, SettingsError, and DeviceMemoryError if the job cannot be done there.
    """
    info = probe(source)
    size = target_size(info.size, settings.restore, is_image=info.is_image)
    memory = None if memory_gib is None else int(memory_gib * GIB)
    model, fp8 = settings.engine.model, settings.engine.precision is Precision.FP8
    if memory is None:
        device = choose_device(settings.engine.device)
        entry = choose_model(model, device, fp8=fp8)
        dtype = choose_dtype(settings.engine.precision, device, entry.needs_float32)
        words = describe_device(device)
        if device.type == "cuda":
            memory = usable_memory(device)
    else:
        device, words = torch.device("cuda"), f"a CUDA card with {memory_gib:g} GiB to use"
        entry = find_model(default_model(memory, fp8=fp8) if model == AUTO_MODEL else model)
        dtype = _dtype_of_a_card(settings.engine.precision, entry)
    dit, vae = CONFIGS[entry.name]
    need = Need(
        dit=dit,
        vae=vae,
        dtype=dtype,
        fp8=fp8,
        size=padded_size(size),
        num_frames=1 if info.is_image else None,
        clip_frames=info.num_frames,
        source=info.size,
    )
    budget = plan_budget(device, need, frames_to_latents(settings.restore.window), memory)
    return JobPlan(
        source=str(source),
        model=entry.name,
        device=words,
        precision=describe_precision(dtype, fp8=fp8),
        frames=info.num_frames,
        size=size,
        padded=need.size,
        budget=budget,
        memory=memory,
        prediction=None if memory is None else predict(budget, need),
    )


def _dtype_of_a_card(precision: Precision, entry: ModelEntry) -> torch.dtype:
    """As `choose_dtype` for a card of today, which computes in bfloat16 and in fp8."""
    if precision is Precision.FP8 or (precision is Precision.AUTO and not entry.needs_float32):
        return torch.bfloat16
    return choose_dtype(precision, torch.device("cpu"), entry.needs_float32)
