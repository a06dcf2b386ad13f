"""The speed, memory and GPU benchmarks, run for real on the smallest clips that go through."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ceilings, gpu, gpu_accuracy, memory, report, speed, store
from benchmarks.jobs import JobCost, run_job
from inference.errors import RestoreError
from models.dit import DiT
from models.vae_memory import VAEMemory
from models.video_vae import VideoVAE
from tests.benchmarks.conftest import TINY_DIT, TINY_VAE


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def cost(seconds: float, peak_bytes: int) -> JobCost:
    return JobCost(seconds=seconds, peak_bytes=peak_bytes, summary={"frames": 10, "model": "nano", "device": "cpu"})


@pytest.mark.timeout(300)  # it starts the command line, torch included
def test_speed_measures_a_whole_process(nano_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--frames", "3", "--runs", "1", "--size", "32x16", "--target", "restore.factor=2"]
    assert speed.main([*options, "--set", f"engine.weights={nano_weights}"]) == 0
    result = last_json(capsys)
    assert result["frames"] == 3
    assert result["frames_per_second"] > 0  # type: ignore[operator]
    assert result["peak_bytes"] > 50e6  # type: ignore[operator]  # torch alone is more


@pytest.mark.timeout(300)
def test_a_failed_job_is_its_own_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(RestoreError, match=r"text\.mp4"):
        run_job(tmp_path / "text.mp4", tmp_path / "out.mp4", ["engine.device=cpu"])


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RestoreError, match="code -9"):
        run_job(tmp_path / "in.mp4", tmp_path / "out.mp4", ["engine.device=cpu"], limit_s=0.01)


def test_the_median_run_is_reported() -> None:
    assert speed.median_of([cost(5, 1), cost(1, 1), cost(2, 1)]).seconds == 2


@pytest.mark.parametrize(("long_peak", "code"), [(1_150_000_000, 0), (1_151_000_000, 1)])
def test_memory_fails_above_its_limit(
    long_peak: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = iter([1_000_000_000, long_peak])
    monkeypatch.setattr(memory, "run_job", lambda *_: cost(1.0, next(peaks)))
    assert memory.main(["--seconds", "0.1", "0.2", "--size", "32x16"]) == code
    result = last_json(capsys)
    assert result["pass"] is (code == 0)


def test_the_gpu_benchmark_needs_a_card_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.count(".") == 1


def test_the_gpu_stages_run_on_random_weights() -> None:
    with torch.device("meta"):
        dit, vae = DiT(TINY_DIT), VideoVAE(TINY_VAE)
    for network in (dit, vae):
        gpu.randomize(network, torch.device("cpu"), torch.float32)
    stages, _ = gpu.measure_both(dit, vae, (32, 16), num_frames=9, runs=2, baseline=True)
    assert [stage.name for stage in stages] == ["VAE encode", "DiT", "VAE decode"]
    assert all(len(stage.seconds) == 2 and stage.median_ms > 0 and stage.plain_seconds for stage in stages)
    assert all(stage.flop > 0 and stage.predicted_bytes > 0 for stage in stages)


def test_the_transformer_is_measured_in_8_bits_and_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        dit, vae = DiT(TINY_DIT), VideoVAE(TINY_VAE)
    for network in (dit, vae):
        gpu.randomize(network, torch.device("cpu"), torch.float32)
    stages, _ = gpu.measure_both(dit, vae, (32, 16), num_frames=9, runs=2, baseline=True, fp8=True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(ceilings, "SIDE", 64)
    monkeypatch.setattr(ceilings, "COPY_VALUES", 64)
    limits = ceilings.measure_ceilings(torch.device("cpu"), torch.float32)
    text, values = gpu.describe(stages, limits, torch.device("cpu"))
    assert dit.is_fp8
    assert limits.product > 0
    assert limits.copy > 0
    assert "no fp8 (the device is cpu)" in text
    assert [row.split("|")[1].strip(" *") for row in text.splitlines()[-5:]] == list(values["stages"])[:3] + [
        "all",
        "DiT in bfloat16",
    ]
    three = sum(values["stages"][name]["median_ms"] for name in ("VAE encode", "DiT", "VAE decode"))
    assert values["total_ms"] == pytest.approx(three, abs=0.5)


def test_the_fast_path_is_held_against_float32_beside_the_plain_one() -> None:
    with torch.device("meta"):
        dit, vae = DiT(TINY_DIT), VideoVAE(TINY_VAE)
    for network in (dit, vae):
        gpu.randomize(network, torch.device("cpu"), torch.bfloat16)
    text = torch.randn(5, TINY_DIT.text_width).bfloat16()
    found = gpu_accuracy.compare(dit, vae, text, fp8=True)
    assert {accuracy.stage for accuracy in found} == {"VAE encode", "DiT", "VAE decode", "all"}
    assert all(0 < accuracy.plain < 0.1 and accuracy.ratio == 1 for accuracy in found)  # both are plain on a CPU
    for accuracy in found:  # only the transformer is in 8 bits
        assert accuracy.fp8 is not None
        off = accuracy.fp8 - accuracy.fast
        assert off > 0.002 if accuracy.stage == "DiT" else off >= 0 if accuracy.stage == "all" else off == 0


def test_random_weights_keep_activations_finite() -> None:
    with torch.device("meta"):
        vae = VideoVAE(TINY_VAE)
    gpu.randomize(vae, torch.device("cpu"), torch.float32)
    latent = gpu.encode(vae, torch.rand(1, 3, 5, 16, 16) * 2 - 1, 4, VAEMemory())
    assert latent.shape == (1, 4, 2, 2, 2)
    assert torch.isfinite(latent).all()
    assert latent.std() > 1e-3


def test_tables_are_markdown_with_numbers_to_the_right() -> None:
    assert report.table(["name", "ms"], [["a", "5"], ["bcdef", "123"]]).splitlines() == [
        "| name  |  ms |",
        "|-------|----:|",
        "| a     |   5 |",
        "| bcdef | 123 |",
    ]


def test_the_machine_is_named_with_every_result(capsys: pytest.CaptureFixture[str]) -> None:
    report.publish("speed", "Title", "body", {"value": 1}, save_to=None)
    result = last_json(capsys)
    assert {"cpu", "cores", "torch", "python"} <= set(result["machine"])  # type: ignore[call-overload]


def test_the_queue_is_measured_over_real_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert store.main(["--jobs", "100", "--runs", "1", "--starts", "0"]) in (0, 1)
    figures = last_json(capsys)["median_s"]
    assert {"submit", "take a job", "finish a job", "open the index"} <= set(figures)  # type: ignore[call-overload]


def test_a_figure_above_its_budget_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "measure", lambda *_: {"submit": [0.2, 0.1, 0.2]})
    assert store.main([]) == 1
    assert "Over budget: submit." in capsys.readouterr().out
