"""The VAE's parity cases: all pass on the stored results, and a wrong result is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from inference.parity import vae
from inference.parity.vae_tiling import plan_spans


def copy_with(source: Path, target: Path, change: dict[str, torch.Tensor]) -> None:
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    save_file({**load_file(source), **change}, target, metadata=metadata)


def test_every_stored_result_is_met(shared: Path) -> None:
    cases = list(vae.cases(shared / "goldens" / "vae"))
    assert [case.name for case in cases if not case.passed] == []
    assert len(cases) > 150


def test_a_wrong_stored_result_fails_under_other_file_names(shared: Path, tmp_path: Path) -> None:
    source = shared / "goldens" / "vae"
    (tmp_path / "b_weights.safetensors").symlink_to(source / "b_weights.safetensors")
    mean = load_file(source / "b_posterior.safetensors")["mean"]
    copy_with(source / "b_posterior.safetensors", tmp_path / "other.safetensors", {"mean": mean + 1e-3})
    assert [case.name for case in vae.cases(tmp_path) if not case.passed] == ["other mean"]


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"meta": '{"kind": "vae_other"}'})
    with pytest.raises(ValueError, match="unknown kind"):
        list(vae.cases(tmp_path))


def test_tiles_cover_the_axis_and_a_tile_inside_the_last_overlap_is_left_out() -> None:
    spans = [(span.start, span.end) for span in plan_spans(10, 32, 8)]
    assert spans == [(0, 4), (3, 7), (6, 10)]
