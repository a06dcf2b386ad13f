"""Owns the parity cases of pre- and post-processing: fixture files of the formats of spec pipeline E.

Files are known by what they hold (`kind` in the `meta` of safetensors, the tables of JSON), not by their names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from inference.alpha import picture_edges, refine_alpha
from inference.color.bands import wavelet_low
from inference.color.histogram import match_histogram
from inference.color.spaces import lab_to_rgb, rgb_to_lab
from inference.color_fix import adain, lab, limited_wavelet, wavelet
from inference.diffusion import make_condition
from inference.parity import port, read_meta
from inference.parity.report import Case, check, compare, not_applicable
from inference.sizes import Size, area_size, centre_crop, padded_size, shortest_edge_sizes
from inference.temporal import mirror_after, mirror_before, mirror_to_4n1, repeat_last
from inference.transforms import crop, resize_bicubic, resize_to_target, to_frames, to_unit
from models.video_vae import VAEConfig, VideoVAE

Tensors = dict[str, Tensor]

FADE_REASON = "design.md 3.3: windows share latents before one decode stream, instead of cross-fading decoded pixels"
PADDING_REASON = "design.md 3.4: the border is reflected instead of padded with black rows"


def cases(folder: Path) -> Iterator[Case]:
    """Every case of every fixture file in `folder`, in the order of names; files of other kinds are passed over."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            yield from _table_cases(path)
        elif path.suffix == ".safetensors":
            meta = read_meta(path)
            if (recognise := _KINDS.get(str(meta.get("kind", "")))) is not None:
                yield from recognise(path, meta)


# Tables of geometry and frame indices: exact.


def _table_cases(path: Path) -> Iterator[Case]:
    table = json.loads(path.read_text())
    if not isinstance(table, dict):
        return
    for columns, rows in _TABLES.items():
        for row in table.get(columns, []):
            yield rows(f"{path.stem}/{columns}", row)


def _area_row(name: str, row: list[Any]) -> Case:
    source, requested, *expected = row
    resized = area_size(_size(source), _size(requested))
    area = centre_crop(resized)
    got = [[resized.height, resized.width], [area.top, area.left], [area.size.height, area.size.width]]
    return _exact(f"{name} {_hw(source)} to {_hw(requested)}", got, expected)


def _side_row(name: str, row: list[Any]) -> Case:
    source, shortest, max_edge, *expected = row
    resized = shortest_edge_sizes(_size(source), shortest, max_edge)[-1]
    padded = padded_size(resized)
    got = [[resized.height, resized.width], [padded.height, padded.width]]
    return _exact(f"{name} {_hw(source)} side {shortest} max {max_edge}", got, expected)


def _repeat_row(name: str, row: list[Any]) -> Case:
    frames, sequence_parallel, expected = row
    return _exact(f"{name} {frames} frames sp {sequence_parallel}", repeat_last(frames, sequence_parallel), expected)


def _mirror_row(name: str, row: list[Any]) -> Case:
    frames, expected = row
    return _exact(f"{name} {frames} frames", mirror_to_4n1(frames), expected)


def _count_row(name: str, row: list[Any]) -> Case:
    frames, count, prepend, expected = row
    got = (mirror_before if prepend else mirror_after)(frames, count)
    return _exact(f"{name} {frames} frames {'before' if prepend else 'after'} {count}", got, expected)


_TABLES: dict[str, Callable[[str, list[Any]], Case]] = {
    "area": _area_row,
    "side": _side_row,
    "reference": _repeat_row,
    "port_4n1": _mirror_row,
    "port_count": _count_row,
}


# Tensors.


def _resize_cases(path: Path, meta: Mapping[str, Any]) -> Iterator[Case]:
    tensors = _read(path)
    seen = {"area": 0, "side": 0}
    for case in meta["cases"]:
        kind = case["kind"]
        key, seen[kind] = seen[kind], seen[kind] + 1
        frames = tensors[f"{kind}.in.{key}"]  # (T, 3, h, w) uint8
        resized, out = tensors[f"{kind}.resized.{key}"], tensors[f"{kind}.out.{key}"].transpose(0, 1)
        name = f"{path.stem}/{kind}.{key}"
        source = Size(frames.shape[-1], frames.shape[-2])
        if kind == "area":
            size = area_size(source, _size(case["res"]))
            yield _close(f"{name}/resized", resize_bicubic(frames.float() / 255, size), resized, 2e-6)
            yield _close(
                f"{name}/out", crop(resize_to_target(frames.permute(0, 2, 3, 1), size), centre_crop(size)), out, 4e-6
            )
        else:
            got = port.resize_by_side(frames.float() / 255, case["shortest"], case["max"])
            yield _close(f"{name}/resized", got, resized, 2e-6)
            size = Size(resized.shape[-1], resized.shape[-2])
            yield _close(f"{name}/out picture", got.clamp(0, 1) * 2 - 1, crop(out, size), 4e-6)
            yield not_applicable(f"{name}/out padding", PADDING_REASON)


def _color_cases(path: Path, meta: Mapping[str, Any]) -> Iterator[Case]:
    tensors = _read(path)
    for image in meta["images"]:
        content, style, name = tensors[f"{image}.content"], tensors[f"{image}.style"], f"{path.stem}/{image}"
        low = wavelet_low(style)
        for kind, got in (
            ("style_low", low),
            ("style_high", style - low),
            ("wavelet_plain", wavelet(content, style)),
            ("adain", adain(content, style)),
            ("wavelet", limited_wavelet(content, style)),
        ):
            yield _close(f"{name}/{kind}", got, tensors[f"{image}.{kind}"], 2e-6)
        for kind, method in (("lab", lab), ("hsv", port.hsv), ("wavelet_adaptive", port.adaptive_wavelet)):
            yield _ranked(f"{name}/{kind}", method(content, style), tensors[f"{image}.{kind}"])
    if "space.rgb" in tensors:
        rgb = tensors["space.rgb"]
        yield _close(f"{path.stem}/space.lab", rgb_to_lab(rgb), tensors["space.lab"], 1e-4)
        yield _close(f"{path.stem}/space.lab_back", lab_to_rgb(tensors["space.lab"]), tensors["space.lab_back"], 1e-4)
        yield _close(f"{path.stem}/space.hsv", port.rgb_to_hsv(rgb), tensors["space.hsv"], 1e-4)
        back = port.hsv_to_rgb(tensors["space.hsv"])
        yield _close(f"{path.stem}/space.hsv_back", back, tensors["space.hsv_back"], 1e-4)
    for key in _numbered(tensors, "match.source."):
        got = match_histogram(tensors[f"match.source.{key}"], tensors[f"match.reference.{key}"])
        yield _close(f"{path.stem}/match.{key}", got, tensors[f"match.out.{key}"], 0.0)


def _blend_cases(path: Path, meta: Mapping[str, Any]) -> Iterator[Case]:
    tensors = _read(path)
    for overlap in meta["overlaps"]:
        got = port.fade(tensors[f"prev.{overlap}"], tensors[f"cur.{overlap}"])
        for key, value in (("w_prev", port.fade_weights(overlap)), ("out", got)):
            reached = _close(f"{path.stem}/{key}.{overlap}", value, tensors[f"{key}.{overlap}"], 2e-6)
            yield _replaced(reached, FADE_REASON)


def _alpha_cases(path: Path, meta: Mapping[str, Any]) -> Iterator[Case]:
    tensors = _read(path)
    for name, *_ in meta["cases"]:
        restored = tensors[f"{name}.rgb_out"]
        edges = picture_edges(to_unit(restored))
        yield _mostly(f"{path.stem}/{name}/edges", edges, tensors[f"{name}.edges"], 1e-6, 0.999, most=1 / 255 + 1e-6)
        refined = refine_alpha(tensors[f"{name}.alpha"], restored, zero_border=True)
        yield _mostly(f"{path.stem}/{name}/out", refined, tensors[f"{name}.out"], 1e-4, 0.999)


def _end_to_end_cases(path: Path, meta: Mapping[str, Any]) -> Iterator[Case]:
    weights = _find_weights(path, meta)
    if weights is None:
        reason = f"{meta['weights']} is neither in this folder nor in one beside it"
        yield check(f"{path.stem}/weights", False, "present", reason)
        return
    vae = _load_vae(weights, meta["config"])
    tensors = _read(path)
    for key, case in enumerate(meta["cases"]):
        frames, eps = tensors[f"in.{key}"].permute(0, 2, 3, 1), tensors[f"eps.{key}"]
        for name, got in _run_reference(vae, frames, eps, _size(case["res"]), meta["scaling_factor"]).items():
            expected = tensors[f"{name}.{key}"]
            if expected.dtype == torch.uint8:  # within one step, in units of white
                yield _close(f"{path.stem}/{name}.{key}", got / 255, expected / 255, 1 / 255 + 1e-6)
            else:
                yield _close(f"{path.stem}/{name}.{key}", got, expected, 2e-5)


def _run_reference(vae: VideoVAE, frames: Tensor, eps: Tensor, requested: Size, scale: float) -> Tensors:
    """Spec A2-A13 without the network, on frames `(T, h, w, 3) uint8`; every stored intermediate by its name."""
    size = area_size(Size(frames.shape[2], frames.shape[1]), requested)
    style = crop(resize_to_target(frames, size), centre_crop(size))  # (T, 3, H, W)
    padded = style[repeat_last(len(style))].transpose(0, 1)  # (3, T', H, W)
    with torch.inference_mode():
        posterior, _ = vae.encode(padded[None])
        latent = posterior.sample(eps) * scale
        decoded = vae.decode(latent / scale)[0][0]
    channels_last = latent[0].permute(1, 2, 3, 0)  # (t, h, w, C)
    pictures = decoded.transpose(0, 1)[: len(style)]
    colored = wavelet(pictures, style)
    return {
        "transformed": style.transpose(0, 1),
        "padded": padded,
        "latent": channels_last,
        "condition": make_condition(channels_last),
        "decoded": decoded if decoded.shape[1] > 1 else decoded[:, 0],
        "colored": colored,
        "out": to_frames(colored),
        "out_nocolor": to_frames(pictures),
    }


def _batch_cases(path: Path, meta: Mapping[str, Any]) -> Iterator[Case]:
    tensors = _read(path)
    for key, case in enumerate(meta["cases"]):
        source, expected = (tensors[f"{side}.{key}"].permute(0, 3, 1, 2) for side in ("in", "out"))
        color, name = case.get("color", ""), f"{path.stem}/{key} {case.get('color', 'no colour')}"
        run = port.run_batches(
            source[:, :3],
            meta["resolution"],
            case["batch"],
            case["overlap"],
            prepend=case.get("prepend", 0),
            uniform=case.get("uniform", False),
            color=color,
        )
        yield _exact(f"{name}/plan", [run.written, run.encoded_frames], [case["written"], case["encoded_frames"]])
        judge = _ranked if color in ("lab", "hsv", "wavelet_adaptive") else partial(_close, limit=2e-6)
        faded = torch.tensor(run.faded)
        yield judge(f"{name}/frames", run.pictures[~faded], expected[~faded, :3])
        if faded.any():
            reached = judge(f"{name}/cross-faded frames", run.pictures[faded], expected[faded, :3])
            yield _replaced(reached, FADE_REASON)
        if source.shape[1] == 4:
            alpha = refine_alpha(source[:, 3:], run.uncolored, zero_border=True)
            yield _mostly(f"{name}/alpha", alpha, expected[:, 3:], 1e-4, 0.999)


_KINDS: dict[str, Callable[[Path, Mapping[str, Any]], Iterator[Case]]] = {
    "resize": _resize_cases,
    "color": _color_cases,
    "blend": _blend_cases,
    "alpha": _alpha_cases,
    "e2e_reference": _end_to_end_cases,
    "port_batches": _batch_cases,
}


# Comparisons.


def _exact(name: str, got: object, expected: object) -> Case:
    same = got == expected
    return check(name, same, "exact", f"{got} instead of {expected}", max_abs_err=0.0 if same else 1.0)


def _close(name: str, got: Tensor, expected: Tensor, limit: float) -> Case:
    return compare(name, got, expected, max_abs=limit)


def _mostly(
    name: str,
    got: Tensor,
    expected: Tensor,
    limit: float,
    share: float,
    *,
    mean: float = math.inf,
    most: float = math.inf,
) -> Case:
    """At least `share` of the values within `limit`, all of them within `most`, their mean error within `mean`."""
    case = compare(name, got, expected, max_abs=most)
    text = f"{share:.1%} within {limit:g}" + (f", mean {mean:g}" if mean < math.inf else "")
    if case.reason:
        return replace(case, limit=text)
    error = (got.double() - expected.double()).abs()
    within, average = float((error <= limit).double().mean()), float(error.mean())
    passed = bool(case.passed) and within >= share and average <= mean
    reason = "" if passed else f"{within:.2%} within {limit:g}, mean {average:.2g}"
    return replace(case, limit=text, passed=passed, reason=reason)


def _ranked(name: str, got: Tensor, expected: Tensor) -> Case:
    """Bound of results that rank pixels: rounding swaps neighbours of near-equal rank."""
    return _mostly(name, got, expected, 2e-4, 0.995, mean=2e-5)


def _replaced(case: Case, reason: str) -> Case:
    """`case` as not applicable; its numbers stay, from the formula that only the parity code has."""
    return replace(case, passed=None, reason=reason)


# Reading.


def _read(path: Path) -> Tensors:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _find_weights(path: Path, meta: Mapping[str, Any]) -> Path | None:
    """The weights file that `meta` names: in the fixture's folder, or in a folder beside it."""
    folders = [path.parent, *sorted(p for p in path.parent.resolve().parent.iterdir() if p.is_dir())]
    return next((f / meta["weights"] for f in folders if (f / meta["weights"]).is_file()), None)


def _load_vae(path: Path, config: Mapping[str, Any]) -> VideoVAE:
    first, second, third, fourth = config["block_out_channels"]
    vae = VideoVAE(
        VAEConfig(
            widths=(first, second, third, fourth),
            num_blocks=config["layers_per_block"],
            num_groups=config["norm_num_groups"],
            latent_channels=config["latent_channels"],
        )
    )
    vae.load_state_dict(_read(path), strict=True)
    return vae.eval()


def _numbered(tensors: Tensors, prefix: str) -> list[str]:
    return sorted((key.removeprefix(prefix) for key in tensors if key.startswith(prefix)), key=lambda k: (len(k), k))


def _size(height_width: list[int]) -> Size:
    return Size(height_width[1], height_width[0])


def _hw(height_width: list[int]) -> str:
    return f"{height_width[1]}x{height_width[0]}"
