"""The parity command on the transformer's fixtures: all pass, other folders work, and what is wrong is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.parity import Kind, folder_kind, run_parity
from inference.parity.dit import cases
from inference.parity.report import Case, compare, not_applicable, summary

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], None]


@pytest.fixture(scope="module")
def results(shared: Path) -> list[Case]:
    return list(cases(shared / "goldens/dit"))


def test_every_stored_case_passes(results: list[Case]) -> None:
    assert [case for case in results if case.passed is False] == []


def test_only_the_dead_text_of_the_last_3b_layer_does_not_apply(results: list[Case]) -> None:
    skipped = [case for case in results if case.passed is None]
    assert [case.name for case in skipped] == ["t1_3b_trace block3.txt"]
    assert "used by nothing" in skipped[0].reason


def test_every_entry_of_the_index_is_run(results: list[Case], shared: Path) -> None:
    index = json.loads((shared / "goldens/dit/index.json").read_text())
    names = [case.name for case in results]
    for entry in (*index["forward"], *index["trace"], *index["e2e"], *index["rope"]["cases"]):
        assert any(name.startswith(entry["name"]) for name in names)
    assert sum("bf16" in name for name in names) == len(index["forward"]) + 4 + 3
    assert {"windows regular (33 grids)", "windows shifted (33 grids)", "euler 7 steps", "time sinusoid"} <= set(names)


def test_float32_cases_are_held_to_the_strict_bound(results: list[Case]) -> None:
    strict = [case for case in results if "float32" in case.name or "out_fp32" in case.name]
    assert len(strict) == 6 + 2 + 3
    assert {case.limit for case in strict} == {"max 1e-05"}


@pytest.fixture
def small_copy(shared: Path, tmp_path: Path) -> Callable[..., Path]:
    """A folder with one model and its trace under other file names; `changes` alter tensors of a file by its role."""

    def copy(**changes: Change) -> Path:
        source = shared / "goldens/dit"
        index: dict[str, Any] = json.loads((source / "index.json").read_text())
        trace = dict(index["trace"][0], file="x2.safetensors", name="other trace")
        model = dict(index["models"]["m3b"], file="x1.safetensors")
        for role, name, target in (("weights", "p_m3b", "x1"), ("trace", "p_t1_3b_trace", "x2")):
            tensors = load_file(source / f"{name}.safetensors")
            changes.get(role, lambda _: None)(tensors)
            save_file(tensors, tmp_path / f"{target}.safetensors")
        (tmp_path / "x0.json").write_text(json.dumps({"models": {"m3b": model}, "forward": [], "trace": [trace]}))
        shutil.copy(source / "p_windows.json", tmp_path / "x3.json")
        return tmp_path

    return copy


def _verdict(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def test_a_folder_with_other_file_names_passes_with_a_table_and_a_json_line(
    small_copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_parity(small_copy()) == 0
    output = capsys.readouterr().out
    assert "other trace block0.attn_bf16.vid" in output
    verdict = _verdict(output)
    assert (verdict["cases"], verdict["failed"]) == (24, [])
    assert 0 < verdict["max_abs_err"] < 1e-2


def test_a_changed_weight_fails_what_follows_it_and_only_that(
    small_copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tensors: Tensors) -> None:
        tensors["blocks.2.attn.proj_out.all.bias"][3] += 0.01

    assert run_parity(small_copy(weights=change)) == 1
    failed = _verdict(capsys.readouterr().out)["failed"]
    assert "other trace block2.attn.vid" in failed
    assert "other trace out_fp32" in failed
    assert not any("block1" in name for name in failed)


def test_few_wrong_elements_of_the_rounded_attention_fail(
    small_copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tensors: Tensors) -> None:
        tensors["block0.attn_bf16.vid"][:2] += 5e-3

    assert run_parity(small_copy(trace=change)) == 1
    assert _verdict(capsys.readouterr().out)["failed"] == ["other trace block0.attn_bf16.vid"]


def test_a_result_that_is_not_finite_fails_and_leaves_the_json_valid(
    small_copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tensors: Tensors) -> None:
        tensors["vid_in"][0, 0] = float("nan")

    assert run_parity(small_copy(trace=change)) == 1
    verdict = _verdict(capsys.readouterr().out)
    assert verdict["failed"] == ["other trace vid_in"]
    assert verdict["max_abs_err"] is None


def test_weights_with_another_key_fail_by_name(
    small_copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tensors: Tensors) -> None:
        tensors["surplus"] = tensors.pop("vid_out_norm.weight")

    assert run_parity(small_copy(weights=change)) == 1
    output = capsys.readouterr().out
    assert "weights m3b" in _verdict(output)["failed"]
    assert "differs at surplus and 1 more" in output


def test_other_windows_fail(small_copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_copy()
    stored = json.loads((folder / "x3.json").read_text())
    stored["shifted"]["1,9,47"].reverse()
    (folder / "x3.json").write_text(json.dumps(stored))
    assert run_parity(folder) == 1
    assert _verdict(capsys.readouterr().out)["failed"] == ["windows shifted (33 grids)"]


@pytest.mark.parametrize(("name", "kind"), [("dit", Kind.DIT), ("vae", Kind.VAE), ("pipeline", Kind.PIPELINE)])
def test_a_folder_is_recognised_by_its_content(name: str, kind: Kind, shared: Path) -> None:
    assert folder_kind(shared / "goldens" / name) is kind


def test_tables_alone_are_a_pipeline_folder(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "goldens/pipeline/temporal.json", tmp_path / "rows.json")
    assert folder_kind(tmp_path) is Kind.PIPELINE


@pytest.mark.parametrize("name", ["media", "spec", "no such folder"])
def test_a_folder_without_fixtures_gets_one_sentence(
    name: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_parity(shared / name) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "holds no known fixtures" in output.err


@pytest.mark.parametrize("index", [{"models": {"a": 3}, "forward": []}, {"models": {}, "forward": 1}])
def test_an_index_of_something_else_gets_one_sentence(
    index: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert run_parity(tmp_path) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert "holds no known fixtures" in output.err


def test_a_truncated_file_gets_one_sentence(
    small_copy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_copy()
    whole = (folder / "x2.safetensors").read_bytes()
    (folder / "x2.safetensors").write_bytes(whole[: len(whole) // 2])
    assert run_parity(folder) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "damaged or incomplete" in output.err


def test_a_comparison_with_another_shape_fails() -> None:
    case = compare("x", torch.zeros(2, 3), torch.zeros(3, 2), max_abs=1.0)
    assert case.passed is False
    assert case.reason == "shape (2, 3) instead of (3, 2)"


def test_a_comparison_within_the_maximum_but_beyond_the_rms_fails() -> None:
    assert compare("x", torch.full((4,), 0.5), torch.zeros(4), max_abs=1.0, rms=0.4).passed is False


def test_cases_that_do_not_apply_count_as_neither() -> None:
    cases = [compare("a", torch.zeros(1), torch.zeros(1), max_abs=0.1), not_applicable("b", "replaced by design")]
    assert summary(cases) == {"cases": 1, "failed": [], "max_abs_err": 0.0}
