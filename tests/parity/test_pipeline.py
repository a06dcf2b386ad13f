"""The parity cases of pre- and post-processing: stored numbers, and files that must not pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from inference.parity.pipeline import cases
from inference.parity.report import Case


@pytest.fixture(scope="module")
def results(shared: Path) -> list[Case]:
    return list(cases(shared / "goldens" / "pipeline"))


def test_every_stored_case_passes_or_is_replaced_by_design(results: list[Case]) -> None:
    assert [case for case in results if case.passed is False] == []


def test_all_fixture_kinds_are_run(results: list[Case]) -> None:
    kinds = {case.name.partition("/")[0] for case in results}
    assert kinds == {"alpha", "blend", "color", "e2e_reference", "port_batches", "resize", "sizes", "temporal"}


def test_every_row_of_the_tables_is_a_case(results: list[Case]) -> None:
    counts = [sum(case.name.startswith(prefix) for case in results) for prefix in ("sizes/", "temporal/")]
    assert counts == [68 + 40, 69 + 15 + 150]


def test_only_the_ports_fades_and_padding_do_not_apply(results: list[Case]) -> None:
    names = [case.name for case in results if case.passed is None]
    assert names
    assert all("blend/" in name or name.endswith(("padding", "cross-faded frames")) for name in names)
    assert all(case.reason for case in results if case.passed is None)


def _copy(source: Path, target: Path, **changed: torch.Tensor) -> None:
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        save_file({**tensors, **changed}, target, metadata=file.metadata())


def test_files_are_known_by_their_content_not_their_name(shared: Path, tmp_path: Path) -> None:
    _copy(shared / "goldens" / "pipeline" / "resize.safetensors", tmp_path / "other_name.safetensors")
    results = list(cases(tmp_path))
    assert len(results) == 6 * 2 + 3 * 3
    assert all(case.name.startswith("other_name/") for case in results)


def test_one_wrong_value_fails_its_case_only(shared: Path, tmp_path: Path) -> None:
    source = shared / "goldens" / "pipeline" / "color.safetensors"
    with safe_open(source, "pt") as file:
        wrong = file.get_tensor("large.adain")
    wrong[0, 1, 5, 6] += 1e-4
    _copy(source, tmp_path / "x.safetensors", **{"large.adain": wrong})
    assert [case.name for case in cases(tmp_path) if case.passed is False] == ["x/large/adain"]


def test_a_wrong_shape_fails_with_both_shapes(shared: Path, tmp_path: Path) -> None:
    source = shared / "goldens" / "pipeline" / "color.safetensors"
    _copy(source, tmp_path / "x.safetensors", **{"match.out.0": torch.zeros(7)})
    failed = [case for case in cases(tmp_path) if case.passed is False]
    assert [case.reason for case in failed] == ["shape (200,) instead of (7,)"]


def test_a_value_that_is_no_number_fails(shared: Path, tmp_path: Path) -> None:
    source = shared / "goldens" / "pipeline" / "color.safetensors"
    _copy(source, tmp_path / "x.safetensors", **{"match.out.0": torch.full((200,), float("nan"))})
    assert [case.name for case in cases(tmp_path) if case.passed is False] == ["x/match.0"]


def test_a_wrong_row_of_a_table_fails(tmp_path: Path) -> None:
    table = {"port_4n1": [[2, [0, 1, 1, 1, 1]], [3, [0, 1, 2, 2, 2]]]}
    (tmp_path / "rows.json").write_text(json.dumps(table))
    assert [case.passed for case in cases(tmp_path)] == [True, False]


def test_missing_weights_fail_with_the_name_of_the_file(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    _copy(shared / "goldens" / "pipeline" / "e2e_reference.safetensors", folder / "e2e.safetensors")
    (case,) = cases(folder)
    assert case.passed is False
    assert "a_weights.safetensors" in case.reason


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a fixture")
    (tmp_path / "list.json").write_text("[1, 2]")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert list(cases(tmp_path)) == []
