"""The quality benchmark, run on a tiny clip with a tiny random model."""

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import quality
from benchmarks.clips import crop_to_multiple, write_lossless
from benchmarks.degrade import Kind
from benchmarks.metrics import Scores
from benchmarks.quality import Comparison, summary_table
from inference.settings import RestoreSettings

BASE = Scores(psnr_y=30.0, ssim=0.9, gmsd=0.1, flicker=1.0)


def comparison(psnr_y: float, ssim: float, gmsd: float, flicker: float) -> Comparison:
    restored = Scores(psnr_y=psnr_y, ssim=ssim, gmsd=gmsd, flicker=flicker)
    return Comparison(clip="clip", scale=2, kind=Kind.CLEAN, lanczos=BASE, restored=restored)


def test_better_in_everything_is_better() -> None:
    assert comparison(31, 0.91, 0.09, 1.0).is_better


@pytest.mark.parametrize(
    "values", [(29.9, 0.91, 0.09, 1.0), (31, 0.89, 0.09, 1.0), (31, 0.91, 0.11, 1.0), (31, 0.91, 0.09, 1.1)]
)
def test_worse_in_one_measure_is_not_better(values: tuple[float, float, float, float]) -> None:
    assert not comparison(*values).is_better


def test_the_table_shows_both_values_the_change_and_the_mean() -> None:
    table = summary_table([comparison(31, 0.91, 0.09, 1.0), comparison(33, 0.93, 0.07, 0.5)])
    assert "30.00 -> 31.00 (+1.00)" in table
    assert "30.00 -> 32.00 (+2.00)" in table.splitlines()[-1]


def test_a_perfect_restoration_is_better_than_lanczos(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    truth_path = tmp_path / "truth.mkv"
    write_lossless(truth_path, frames, Fraction(24))

    def restore(source: Path, target: Path, settings: RestoreSettings) -> None:
        assert settings.factor == 2
        with_suffix = target.with_suffix(".mkv")
        write_lossless(with_suffix, crop_to_multiple(frames, 4), Fraction(24))
        with_suffix.rename(target)

    engine = SimpleNamespace(restore=restore)
    result = quality.compare(engine, truth_path, 0, 2, Kind.DEGRADED, RestoreSettings(factor=2.0))  # type: ignore[arg-type]
    assert result.is_better
    assert result.restored.psnr_y == 100.0


def test_the_benchmark_runs_from_file_to_file_and_saves(
    clips: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--clips", str(clips), "--weights", str(tiny_weights), "--device", "cpu", "--frames", "5"]
    options += ["--scales", "2", "--restore", "color_fix=none", "--save", "--results", str(tmp_path / "results")]
    assert quality.main(options) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(c["clip"], c["scale"], c["kind"]) for c in result["clips"]] == [
        ("texture", 2, "clean"),
        ("texture", 2, "degraded"),
    ]
    assert np.isfinite(result["mean_delta"]["psnr_y"])
    assert result["settings"][-1] == "color_fix=none"
    (saved,) = (tmp_path / "results").glob("*-quality.json")
    assert json.loads(saved.read_text()) == result
    assert "| texture " in saved.with_suffix(".md").read_text()
