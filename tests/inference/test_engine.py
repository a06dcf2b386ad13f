"""The engine: device and model choice, lazy loading, summary, memory errors; and what fits on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inference import engine as engine_module
from inference.checkpoint import load_models
from inference.devices import choose_device, choose_dtype, choose_model
from inference.engine import Engine
from inference.errors import CheckpointError, DeviceMemoryError, MediaError, RestoreError, SettingsError
from inference.progress import Progress, Stage
from inference.settings import EngineSettings, Precision, RestoreSettings, load_settings
from inference.threads import use_threads
from models.fp8 import Fp8Support

CPU = torch.device("cpu")


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    return Engine(EngineSettings(model="nano", device="cpu", weights=str(tiny_model), threads=1))


def test_the_summary_tells_what_was_done(engine: Engine, make_clip: Any, tmp_path: Path) -> None:
    summary = engine.restore(make_clip("in.mp4", 5, sound=True), tmp_path / "out.mp4", RestoreSettings(seed=3))

    assert (summary.frames, summary.width, summary.height, summary.fps, summary.shots) == (5, 48, 32, "24", 1)
    assert (summary.model, summary.precision) == ("nano", "float32")
    assert {"total", "load", "encode", "denoise", "decode", "write"} <= set(summary.seconds)
    assert summary.peak_memory_bytes > 0
    assert summary.peak_device_bytes is None
    values = json.loads(json.dumps(summary.to_dict()))
    assert load_settings(values["settings"]).restore == RestoreSettings(seed=3)


def test_stages_are_reported_in_order_and_end_with_every_frame(engine: Engine, make_clip: Any, tmp_path: Path) -> None:
    told: list[Progress] = []

    engine.restore(make_clip("in.mp4", 5), tmp_path / "out.mp4", report=told.append)

    stages = [progress.stage for progress in told]
    assert list(dict.fromkeys(stages)) == [Stage.PREPARE, Stage.LOAD, Stage.RESTORE, Stage.FINISH]
    assert (told[-1].frames_done, told[-1].frames_total) == (5, 5)


def test_the_model_is_loaded_by_the_first_job_and_stays(
    engine: Engine, make_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def load(name: str, *rest: Any) -> Any:
        loads.append(name)
        return load_models(name, *rest)

    monkeypatch.setattr(engine_module, "load_models", load)
    source = make_clip("in.mp4", 1)
    assert loads == []
    for _ in range(2):
        engine.restore(source, tmp_path / "out.mp4")
    assert loads == ["nano"]

    engine.close()
    engine.restore(source, tmp_path / "out.mp4")
    assert loads == ["nano", "nano"]


def test_a_bad_source_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "in.mp4").write_bytes(b"")
    engine = Engine(EngineSettings(model="seedvr2-7b", device="cpu", offline=True))

    with pytest.raises(MediaError, match="empty"):
        engine.restore(tmp_path / "in.mp4", tmp_path / "out.mp4")


def test_missing_weights_are_a_checkpoint_error(make_clip: Any, tmp_path: Path) -> None:
    engine = Engine(EngineSettings(model="seedvr2-3b", device="cpu", offline=True))

    with pytest.raises(CheckpointError):
        engine.restore(make_clip("in.mp4", 1), tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_names_the_setting_to_lower(
    engine: Engine, make_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(engine_module, "run", fail)

    with pytest.raises(DeviceMemoryError, match=r"restore\.window"):
        engine.restore(make_clip("in.mp4", 1), tmp_path / "out.mp4")


def test_another_runtime_error_is_a_bug_and_stays_one(
    engine: Engine, make_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(engine_module, "run", fail)

    with pytest.raises(RuntimeError, match="shapes differ"):
        engine.restore(make_clip("in.mp4", 1), tmp_path / "out.mp4")


def test_a_second_job_at_the_same_time_is_refused(engine: Engine, make_clip: Any, tmp_path: Path) -> None:
    source = make_clip("in.mp4", 1)

    def report(_: Progress) -> None:
        with pytest.raises(RestoreError, match="busy"):
            engine.restore(source, tmp_path / "other.mp4")

    engine.restore(source, tmp_path / "out.mp4", report=report)


def test_unknown_models_and_absent_cards_are_settings_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="seedvr2-3b"):
        Engine(EngineSettings(model="seedvr3", device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"engine\.device=cpu"):
        Engine(EngineSettings(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match="cuda:7"):
        choose_device("cuda:7")
    assert choose_device("cuda:1") == torch.device("cuda", 1)


def test_auto_means_nano_in_float32_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = choose_device("auto")

    assert device == CPU
    assert choose_model("auto", device).name == "nano"
    assert choose_dtype(Precision.AUTO, device) is torch.float32
    assert choose_dtype(Precision.AUTO, torch.device("cuda"), needs_float32=True) is torch.float32
    assert choose_dtype(Precision.BFLOAT16, device) is torch.bfloat16


def test_fp8_is_refused_where_it_cannot_be_and_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"engine\.precision=fp8 needs a CUDA card .*the device is cpu; set engine"):
        Engine(EngineSettings(device="cpu", precision=Precision.FP8))
    card = torch.device("cuda", 0)
    monkeypatch.setattr("inference.devices.fp8_support", lambda device: Fp8Support(device == card))

    assert choose_dtype(Precision.FP8, card) is torch.bfloat16
    with pytest.raises(SettingsError):
        choose_dtype(Precision.FP8, torch.device("cuda", 1))


def test_a_job_in_fp8_says_so(
    tiny_model: Path, make_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.devices.fp8_support", lambda device: Fp8Support(works=True))
    source = make_clip("in.mp4", 3)
    with Engine(EngineSettings(model="nano", device="cpu", precision=Precision.FP8, weights=str(tiny_model))) as engine:
        summary = engine.restore(source, tmp_path / "out.mp4", RestoreSettings(factor=2))

    assert summary.precision == "bfloat16 and fp8"


def test_threads_follow_the_setting_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert use_threads(3) == torch.get_num_threads() == 3
        assert use_threads(0) == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "")
        assert use_threads(0) >= 1
    finally:
        torch.set_num_threads(before)
