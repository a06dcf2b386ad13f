"""Parity of the transformer: forward passes, traces, sampling, windows, rotary positions and small formulas.

Reads the format of the transformer's fixtures (specification of the transformer, section 19). File names come from the
index; the window list, which the index does not name, is found by its content.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from inference import diffusion
from inference.parity import find_dit_index
from inference.parity.report import Case, check, compare, not_applicable
from models.attention import Attend, SequenceLengths, attention
from models.dit import DiT, DiTConfig, Mlp, Rope, time_sinusoid
from models.rope import RopeSpec, rotate, text_rotation, video_rotation
from models.windows import plan_windows

Index = Mapping[str, Any]

FLOAT32 = 1e-5
"""Largest difference of a float32 result of standard deviation about 1."""

ROUNDED_MAX, ROUNDED_RMS = 2e-2, 2e-3
"""Bounds with attention in bfloat16: rounding flips cascade through the layers."""

FLIPPED_BEYOND, FLIPPED_SHARE = 1e-4, 0.01
"""In the first block's attention no flip has cascaded yet: hardly an element may differ at all."""

FLIPPED_RMS = 2e-4
"""Or so much over all: one flipped key moves a whole window by little. A model in float64, without any rounding of its
own, differs from the stored results in 9 % of the elements and by an rms of 9e-5; only a machine that adds up as
that of the fixtures comes below 1 %. Rounding at a wrong place makes ten times that."""

TIMESTEP_ULPS = 2.5e-4
"""A few units in the last place of a float32 timestep near 1000."""

RELATIVE = 1e-6
"""Relative difference of rotary frequencies, which reach 402 radians."""


def cases(folder: Path) -> Iterator[Case]:
    """Every case of a folder of transformer fixtures."""
    index: Index = find_dit_index(folder)
    models: dict[str, DiT] = {}
    for name, entry in index["models"].items():
        models[name], case = _load_model(f"weights {name}", folder / entry["file"], entry["config"])
        yield case
    with torch.inference_mode():
        for entry in index["forward"]:
            yield from _forward_cases(entry["name"], models[entry["model"]], folder / entry["file"])
        for entry in index.get("trace", ()):
            yield from _trace_cases(entry["name"], models[entry["model"]], folder / entry["file"])
        for entry in index.get("e2e", ()):
            yield from _sampler_cases(entry, models[entry["model"]], folder / entry["file"])
        yield from _window_cases(folder)
        if "rope" in index:
            yield from _rope_cases(index["rope"]["cases"], folder / index["rope"]["file"])
        if "misc" in index:
            yield from _misc_cases(index["misc"], folder / index["misc"]["file"])


def config_of(entry: Mapping[str, Any]) -> DiTConfig:
    """The configuration that an index entry describes."""
    is_3b = entry["style"] == "3b"
    return DiTConfig(
        width=entry["vid_dim"],
        text_width=entry["txt_in_dim"],
        num_layers=entry["num_layers"],
        num_heads=entry["heads"],
        head_dim=entry["head_dim"],
        latent_channels=entry["vid_out_channels"],
        mlp=Mlp.SWIGLU if entry["mlp"] == "swiglu" else Mlp.GELU,
        mlp_ratio=entry["expand_ratio"],
        rope=Rope.INTEGER if is_3b else Rope.PIXEL,
        rope_dim=entry.get("rope_dim", entry["head_dim"]),
        num_separate_layers=entry.get("mm_layers", entry["num_layers"]),
        last_layer_video_only=is_3b,
        output_modulation=is_3b,
        window=tuple(entry["window_counts"]),
    )


def rounded_attention(q: Tensor, k: Tensor, v: Tensor, lengths: SequenceLengths) -> Tensor:
    """Attention with inputs and result rounded to bfloat16 and float32 in between, as the fixtures were made."""
    q, k, v = (x.bfloat16().float() for x in (q, k, v))
    return attention(q, k, v, lengths).bfloat16().float()


def _load_model(name: str, path: Path, config: Mapping[str, Any]) -> tuple[DiT, Case]:
    with torch.device("meta"):
        model = DiT(config_of(config))
    stored = {key: value.float() for key, value in load_file(path).items()}
    expected = {key: value.shape for key, value in model.state_dict().items()}
    shapes = {key: value.shape for key, value in stored.items()}
    wrong = sorted(key for key in shapes.keys() | expected.keys() if shapes.get(key) != expected.get(key))
    if wrong:
        # Cases that need the model still run, on weights that cannot match, and fail by their own numbers.
        reason = f"differs at {wrong[0]} and {len(wrong) - 1} more"
        return model.to_empty(device="cpu"), check(name, False, "same keys and shapes", reason, math.inf)
    model.load_state_dict(stored, strict=True, assign=True)
    return model, check(name, True, "same keys and shapes")


def _inputs(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    video, text = tensors["vid"].float(), tensors["txt"].float()
    return video, text, tensors["timestep"], tensors["vid_shape"], tensors["txt_shape"]


def _forward_cases(name: str, model: DiT, path: Path) -> Iterator[Case]:
    tensors = load_file(path)
    yield compare(f"{name} float32", model(*_inputs(tensors)), tensors["out_fp32"], max_abs=FLOAT32)
    if "out_bf16attn" in tensors:
        result = model(*_inputs(tensors), attend=rounded_attention)
        yield compare(f"{name} bf16 attention", result, tensors["out_bf16attn"], max_abs=ROUNDED_MAX, rms=ROUNDED_RMS)


def _trace_cases(name: str, model: DiT, path: Path) -> Iterator[Case]:
    tensors = load_file(path)
    exact = _trace(model, tensors, attention)
    rounded = _trace(model, tensors, rounded_attention)
    dead = f"block{len(model.blocks) - 1}.txt" if model.config.last_layer_video_only else None
    for key in sorted(tensors.keys() - {"vid", "txt", "timestep", "vid_shape", "txt_shape"}):
        if key == dead:
            yield not_applicable(f"{name} {key}", "the last layer's text is used by nothing, so it is not computed")
        elif ".attn_bf16." in key:
            yield _flips(f"{name} {key}", rounded[key.replace("attn_bf16", "attn")], tensors[key])
        elif key == "out_bf16attn":
            yield compare(f"{name} {key}", rounded["out_fp32"], tensors[key], max_abs=ROUNDED_MAX, rms=ROUNDED_RMS)
        elif key not in exact:
            yield check(f"{name} {key}", False, f"max {FLOAT32:g}", "no such intermediate result", math.inf)
        else:
            yield compare(f"{name} {key}", exact[key], tensors[key], max_abs=FLOAT32)


def _flips(name: str, actual: Tensor, expected: Tensor) -> Case:
    case = compare(name, actual, expected, max_abs=ROUNDED_MAX)
    limit = f"{FLIPPED_SHARE:.0%} beyond {FLIPPED_BEYOND:g}, or rms {FLIPPED_RMS:g}"
    if not case.passed:
        return replace(case, limit=limit)
    share = ((actual - expected).abs() > FLIPPED_BEYOND).double().mean().item()
    is_close = share < FLIPPED_SHARE or (case.rms or 0.0) < FLIPPED_RMS
    return replace(case, limit=limit, passed=is_close, reason=f"{share:.2%} beyond")


def _trace(model: DiT, tensors: Mapping[str, Tensor], attend: Attend) -> dict[str, Tensor]:
    """Intermediate results by the fixtures' names, with the last layer's text computed although nothing needs it."""
    seen: dict[str, Tensor] = {}
    num_video = int((tensors["vid_shape"].prod(-1) // 4).sum())

    def single(key: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[key] = output.float()

        return hook

    def streams(key: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Sequence[Tensor]) -> None:
            rows = torch.cat(tuple(output)).float()
            seen[f"{key}.vid"], seen[f"{key}.txt"] = rows[:num_video], rows[num_video:]

        return hook

    def keep_text(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "keep_text": True}

    handles: list[RemovableHandle] = []
    handles += [getattr(model, key).register_forward_hook(single(key)) for key in ("vid_in", "txt_in", "emb_in")]
    for number, block in enumerate(model.blocks):
        handles.append(block.register_forward_pre_hook(keep_text, with_kwargs=True))
        handles.append(block.register_forward_hook(streams(f"block{number}")))
        handles.append(block.get_submodule("attn").register_forward_hook(streams(f"block{number}.attn")))
    try:
        seen["out_fp32"] = model(*_inputs(tensors), attend=attend)
        # The model keeps the time embedding of a timestep, so its module may not have run just now.
        seen["emb_in"] = model.emb_in(tensors["timestep"])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _sampler_cases(entry: Index, model: DiT, path: Path) -> Iterator[Case]:
    tensors = {key: value.float() for key, value in load_file(path).items()}
    for run in entry["runs"]:
        suffix, name = run["suffix"], f"{entry['name']} {run['suffix']}"
        stored = tensors[f"cond_{suffix}"]
        # The shift was computed from a mixed-up size in the published code; the index records what came out.
        degraded = diffusion.interpolate(tensors["lq"], tensors["aug_noise"], run["t_after_shift_as_reference"])
        yield compare(f"{name} condition", diffusion.make_condition(degraded), stored, max_abs=FLOAT32)
        for key, attend, limits in (
            ("out_fp32", attention, {"max_abs": FLOAT32}),
            ("out_bf16attn", rounded_attention, {"max_abs": ROUNDED_MAX, "rms": ROUNDED_RMS}),
        ):
            velocity = diffusion.velocity_of(model, stored, tensors["txt"], attend=attend)
            result = diffusion.euler_sample(velocity, tensors["noise"], diffusion.timesteps(1))
            yield compare(f"{name} {key}", result, tensors[f"{key}_{suffix}"], **limits)


def _window_cases(folder: Path) -> Iterator[Case]:
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"counts", "regular", "shifted"} <= content.keys():
            continue
        counts = tuple(content["counts"])
        for kind in ("regular", "shifted"):
            stored = content[kind]
            wrong = [key for key in stored if _window_rows(key, counts, kind == "shifted") != stored[key]]
            reason = f"other windows for the grids {'; '.join(wrong)}"
            yield check(f"windows {kind} ({len(stored)} grids)", not wrong, "exact", reason, float(len(wrong)))


def _window_rows(grid: str, counts: tuple[int, ...], shifted: bool) -> list[list[int]]:
    t, h, w = (int(number) for number in grid.split(","))
    windows = plan_windows((t, h, w), (counts[0], counts[1], counts[2]), shifted=shifted)
    return [[bound for interval in window for bound in interval] for window in windows]


def _rope_cases(entries: Sequence[Index], path: Path) -> Iterator[Case]:
    tensors = load_file(path)
    for entry in entries:
        name = entry["name"]
        kind = Rope.INTEGER if entry["style"] == "3b" else Rope.PIXEL
        spec = RopeSpec(kind, entry["head_dim"], entry.get("rope_dim", entry["head_dim"]))
        stored = tensors[f"{name}.freqs"].double()
        ratio = spec.frequencies().double() / stored
        yield compare(f"{name} frequencies / stored", ratio, torch.ones_like(ratio), max_abs=RELATIVE)
        window = [((0, length),) for length in entry["window"]]
        tables = {"vid": video_rotation(spec, window, entry.get("txt", 0), stored.device)}
        if "txt" in entry:
            tables["txt"] = text_rotation(spec, entry["txt"], stored.device)
        for stream, table in tables.items():
            for part in ("q", "k"):
                key = f"{name}.{stream}_{part}"
                result = rotate(tensors[key], table)
                yield compare(f"{name} {stream} {part}", result, tensors[f"{key}_out"], max_abs=FLOAT32)


def _misc_cases(entry: Index, path: Path) -> Iterator[Case]:
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    if "time.t" in tensors:
        yield compare("time sinusoid", time_sinusoid(tensors["time.t"]), tensors["time.sinusoid"], max_abs=FLOAT32)
    rows_of: dict[tuple[int, int, int], list[Index]] = {}
    for row in entry.get("timestep_shift", ()):
        t, h, w = row["latent_thw"]
        rows_of.setdefault((t, h, w), []).append(row)
    for size, rows in rows_of.items():
        ours = torch.tensor([diffusion.shift_timestep(row["t_in"], size) for row in rows], dtype=torch.float64)
        expected = torch.tensor([row["t_out"] for row in rows], dtype=torch.float64)
        yield compare(f"timestep shift at {size[0]},{size[1]},{size[2]}", ours, expected, max_abs=TIMESTEP_ULPS)
    for steps, stored in entry.get("euler", {}).get("timesteps", {}).items():
        ours = torch.tensor(diffusion.timesteps(int(steps)), dtype=torch.float64)
        expected = torch.tensor(stored, dtype=torch.float64)
        yield compare(f"timesteps of {steps} steps", ours, expected, max_abs=TIMESTEP_ULPS)
    for key in sorted(tensors):
        if match := re.fullmatch(r"euler\.out(\d+)", key):
            condition = tensors["euler.cond"]

            def velocity(x: Tensor, t: float, condition: Tensor = condition) -> Tensor:
                return 0.7 * x - 0.4 * condition + 0.0003 * t

            result = diffusion.euler_sample(velocity, tensors["euler.x"], diffusion.timesteps(int(match[1])))
            yield compare(f"euler {match[1]} steps", result, tensors[key], max_abs=FLOAT32)
        if match := re.fullmatch(r"lerp\.t(\d+)", key):
            mixed = diffusion.interpolate(tensors["euler.x"], tensors["euler.cond"], float(match[1]))
            yield compare(f"lerp at {match[1]}", mixed, tensors[key], max_abs=FLOAT32)
